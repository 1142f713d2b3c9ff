"""The reference names everything that there is."""

import json
import re
from importlib.resources import files
from pathlib import Path

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"


def keys(schema):
    """Each key that a schema names, however deep."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for inner in schema.values():
            yield from keys(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from keys(inner)


def test_each_key_of_the_file_is_explained():
    """docs/reference/file.md has each key of the schema, as code."""
    schema = json.loads((files("trackmetrics") / "metrics_file.schema.json").read_text(encoding="utf-8"))
    page = (REFERENCE / "file.md").read_text(encoding="utf-8")
    named = {word for code in re.findall(r"`([^`\n]+)`", page) for word in re.findall(r"-?\w+", code)}
    assert set(keys(schema)) - named == set()
