"""One small run, as a record and as the text of its file: the text was written by hand."""

import math

import numpy as np

from trackmetrics.record import EpochRecord, FinalInference, FinalResults, Hyperparameters, Metadata, RunRecord


def a_record(**changes):
    """A run with every key filled and more decimals than the file keeps."""
    parts = {
        "metadata": Metadata(
            "letter_counting",
            "2026-01-30T22:08:22Z",
            "cpu",
            Hyperparameters({"class": "Transformer", "dropout": 0.123456789}, {"num_epochs": 2, "betas": [0.9, 0.999]}),
        ),
        "epochs": (
            EpochRecord(1, 1.234567, 0.5, 0.25, 3.00004, 12.345678, {"perplexity": 3.4371234567}),
            EpochRecord(2, 0.00006, 2 / 3, None, math.inf, 20.0),
        ),
        "final_results": FinalResults(0.99634, 1 / 3, 417.1299),
        "final_inference": FinalInference(
            "ab",
            np.array([[-0.1, -math.inf], [-0.2, -2.0]], dtype=np.float32),
            np.array([[[0.1, 0.9], [1 / 3, 2 / 3]]]),
        ),
        "extensions": {"status": {"state": "completed"}, "seconds": {"saving": 0.123456789}},
    }
    return RunRecord(**{**parts, **changes})


A_FILE = """\
{
  "metadata": {
    "task": "letter_counting",
    "timestamp": "2026-01-30T22:08:22Z",
    "device": "cpu",
    "hyperparameters": {
      "model": {"class": "Transformer", "dropout": 0.123456789},
      "training": {"num_epochs": 2, "betas": [0.9, 0.999]}
    }
  },
  "epochs": [
    {"epoch": 1, "train_loss": 1.2346, "train_accuracy": 0.5, "dev_accuracy": 0.25, "gradient_norm": 3.0, \
"elapsed_seconds": 12.35, "perplexity": 3.4371234567},
    {"epoch": 2, "train_loss": 0.0001, "train_accuracy": 0.6667, "dev_accuracy": null, "gradient_norm": null, \
"elapsed_seconds": 20.0}
  ],
  "final_results": {"train_accuracy": 0.9963, "dev_accuracy": 0.3333, "total_time_seconds": 417.13},
  "final_inference": {
    "example_input": "ab",
    "log_probs": [
      [-0.1,null],
      [-0.2,-2.0]
    ],
    "attention_weights": [
      [
        [0.1,0.9],
        [0.3333333333333333,0.6666666666666666]
      ]
    ]
  },
  "extensions": {
    "format_version": 1,
    "status": {"state": "completed"},
    "seconds": {"saving": 0.123456789},
    "dtypes": {"/final_inference/log_probs": "float32"},
    "non_finite": {"/epochs/1/gradient_norm": "Infinity", "/final_inference/log_probs": "-Infinity"}
  }
}
"""
