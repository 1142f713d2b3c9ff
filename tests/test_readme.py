"""The README's code runs as it stands, and gives what it shows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import blocks, links

README = Path(__file__).parents[1] / "README.md"


def of_language(language):
    """The README's fenced blocks in one language."""
    return [block.code for block in blocks(README.read_text(encoding="utf-8")) if block.language == language]


def test_no_block_goes_unnoticed():
    """The blocks are those that the tests below look at."""
    assert [block.language for block in blocks(README.read_text(encoding="utf-8"))] == ["python", "json", "sh", "sh"]


def test_the_example_gives_the_output_shown(tmp_path):
    """Run in a process of its own, the example writes the epochs and results that the README prints."""
    (code,) = of_language("python")
    assert len(code.strip().splitlines()) <= 20
    (tmp_path / "example.py").write_text(code)
    subprocess.run([sys.executable, "example.py"], cwd=tmp_path, check=True, capture_output=True)
    data = json.loads((tmp_path / "output" / "majority_training_metrics.json").read_text())
    (shown,) = of_language("json")
    for line in re.findall(r'\{"epoch".*?\}', shown):
        expected = json.loads(line)
        found = data["epochs"][expected.pop("epoch") - 1]
        del expected["elapsed_seconds"]
        assert {key: found[key] for key in expected} == pytest.approx(expected, abs=0.02)
    results = json.loads(re.search(r'"final_results": (\{.*?\})', shown)[1])
    assert data["final_results"]["dev_accuracy"] == pytest.approx(results["dev_accuracy"], abs=0.02)
    assert data["final_inference"]["example_input"] == re.search(r'"example_input": "(.*)"', shown)[1]


def test_two_commands_do_all_the_set_up():
    """The README's shell blocks are the two commands that continuous integration runs, and no more."""
    commands = [line for block in of_language("sh") for line in block.strip().splitlines()]
    assert commands == ["pip install . && trackmetrics demo", "pip install '.[test]' && pytest"]


def test_every_link_leads_somewhere():
    """No link to a file that isn't there."""
    for target in links(README.read_text(encoding="utf-8")):
        assert (README.parent / target).exists(), target
