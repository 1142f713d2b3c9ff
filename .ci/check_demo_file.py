"""Check the demo's file with a parser that isn't the writer: strict JSON, every key there, nothing null or empty."""

import json
import sys
from pathlib import Path

KEYS = {
    "": ["metadata", "epochs", "final_results", "final_inference", "extensions"],
    "/metadata": ["task", "timestamp", "device", "hyperparameters"],
    "/metadata/hyperparameters": ["model", "training"],
    "/epochs/0": ["epoch", "train_loss", "train_accuracy", "dev_accuracy", "gradient_norm", "elapsed_seconds"],
    "/final_results": ["train_accuracy", "dev_accuracy", "total_time_seconds"],
    "/final_inference": ["example_input", "log_probs", "attention_weights"],
}
FIXED_NAMES = {
    "model": ["class", "num_parameters", "num_trainable_parameters"],
    "training": ["num_epochs", "batch_size", "learning_rate", "optimizer", "scheduler", "criterion", "seed"],
}


def refuse(constant: str) -> None:
    """Strict JSON has no NaN and no infinities."""
    sys.exit(f"{constant} is no JSON")


def empty_places(value: object, pointer: str = "") -> list[str]:
    """Where nulls, empty lists, objects and strings stand."""
    if value is None or value in ([], {}, ""):
        return [pointer]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in empty_places(item, f"{pointer}/{key}")]


def main(path: str) -> None:
    """Exit with what is wrong, if anything is."""
    data = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=refuse)
    for pointer, keys in KEYS.items():
        found = data
        for part in pointer.split("/")[1:]:
            found = found[int(part)] if isinstance(found, list) else found[part]
        if list(found) != keys:
            sys.exit(f"{path}: {pointer or 'the top level'} has the keys {list(found)}, expected {keys}")
    for section, names in FIXED_NAMES.items():
        missing = [name for name in names if name not in data["metadata"]["hyperparameters"][section]]
        if missing:
            sys.exit(f"{path}: hyperparameters.{section} lacks {missing}")
    if empty := empty_places(data):
        sys.exit(f"{path}: empty at {empty}")
    if data["final_results"]["dev_accuracy"] <= 0.95:
        sys.exit(f"{path}: dev accuracy {data['final_results']['dev_accuracy']} is not above 0.95")
    print(f"{path}: dev accuracy {data['final_results']['dev_accuracy']}, every key filled")


if __name__ == "__main__":
    main(sys.argv[1])
