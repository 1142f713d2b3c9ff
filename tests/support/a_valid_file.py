"""A metrics file with every key of the format filled, as plain data, and ways to break it."""

import copy
import json

REMOVED = object()
VALID = {
    "metadata": {
        "task": "letter_counting",
        "timestamp": "2024-02-29T23:59:59Z",
        "device": "cpu",
        "hyperparameters": {
            "model": {"class": "Transformer", "num_parameters": 4, "num_trainable_parameters": 4},
            "training": {
                "num_epochs": 2,
                "batch_size": 8,
                "learning_rate": 0.1,
                "optimizer": {"name": "SGD"},
                "scheduler": None,
                "criterion": {"name": "nll_loss"},
                "seed": 0,
            },
        },
    },
    "epochs": [
        {
            "epoch": 1,
            "train_loss": 0.7,
            "train_accuracy": 0.5,
            "dev_accuracy": 1,
            "gradient_norm": 2.5,
            "elapsed_seconds": 1.25,
            "perplexity": 3.5,
        },
        {
            "epoch": 2,
            "train_loss": None,
            "train_accuracy": None,
            "dev_accuracy": 0.0,
            "gradient_norm": None,
            "elapsed_seconds": 1.25,
        },
    ],
    "final_results": {"train_accuracy": 0.75, "dev_accuracy": None, "total_time_seconds": 1.25},
    "final_inference": {
        "example_input": "ab",
        "log_probs": [[-0.6931472, -0.6931472], [0.0, None]],
        "attention_weights": [[[0.5, 0.5], [0, 1]], [[0.25, 0.75], [0.5, 0.5]]],
    },
    "extensions": {
        "format_version": 1,
        "status": {"state": "completed", "process": 7, "host": "here"},
        "environment": {
            "python": "3.11.7",
            "trackmetrics": "0.1.0",
            "torch": "2.13.0",
            "numpy": "2.4.6",
            "platform": "Linux",
            "device_name": "x86_64",
            "world_size": 1,
        },
        "gradient_norm": {
            "meaning": "global L2 norm",
            "steps": 8,
            "skipped_steps": 0,
            "non_finite_steps": None,
            "measured": "at the optimizer's step",
            "epochs": [
                {
                    "epoch": 1,
                    "min": 2.0,
                    "median": 2.5,
                    "max": 3.0,
                    "steps": 4,
                    "skipped_steps": 0,
                    "non_finite_steps": 0,
                },
                {"epoch": 2},
            ],
        },
        "attention": {
            "maps": [
                {
                    "name": "layers.0.attn",
                    "kind": "self",
                    "shape": [1, 2, 2, 2],
                    "source": "observed",
                    "check": 1e-7,
                    "layer": 0,
                },
                {
                    "name": "layers.0.cross",
                    "kind": "cross",
                    "shape": [1, 2, 2, 3],
                    "source": "recomputed",
                    "check": None,
                    "weights": [[0.5, 0.25, 0.25], [1.0, 0.0, None]],
                },
                {
                    "name": "layers.1.attn",
                    "kind": "self",
                    "shape": [1, 2, 2, 2],
                    "source": "native",
                    "check": 0,
                    "layer": 1,
                },
            ],
            "heads": [[[[1.0, 0.0], [0, 1]], [[0, 1], [0, 1]]], [[[0.25, 0.75], [1, 0]], [[0.25, 0.75], [0, 1]]]],
            "fault": "no weights can be had of layers.2",
        },
        "seconds": {"evaluation": 0.5, "inference": 0.25, "saving": 0.125, "sinks": 0.25},
        "warnings": ["dev_accuracy is null: no dev set was found"],
        "resumed": [
            {
                "after_epoch": 1,
                "timestamp": "2024-03-01T00:00:00Z",
                "dropped_epochs": 0,
                "hyperparameters": {"/training/seed": {"before": 1, "now": 0}},
            }
        ],
        "dtypes": {
            "/final_inference/log_probs": "float32",
            "/extensions/attention/maps/1/weights": "float32",
            "/extensions/attention/heads": "float64",
        },
        "non_finite": {
            "/epochs/1/train_loss": "NaN",
            "/epochs/1/gradient_norm": "Infinity",
            "/final_inference/log_probs": {"-Infinity": [[3, 1]]},
            "/extensions/attention/maps/1/weights": {"NaN": [[5, 1]]},
        },
    },
}
SIDECAR = {"file": "t.heads.npy", "dtype": "float32", "shape": [2, 2, 2, 2], "sha256": "0123456789abcdef" * 4}


def edited(plain, edits):
    """A copy with other values at some JSON pointers; with REMOVED a key isn't there any more."""
    top = {"": copy.deepcopy(plain)}
    for pointer, value in edits.items():
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")]
        holder = top
        for part in parents:
            holder = holder[int(part) if isinstance(holder, list) else part]
        key = int(last) if isinstance(holder, list) else last
        if value is REMOVED:
            del holder[key]
        elif isinstance(holder, list) and key == len(holder):
            holder.append(value)
        else:
            holder[key] = value
    return top[""]


def text_of(plain):
    """The plain data as JSON."""
    return json.dumps(plain).encode()
