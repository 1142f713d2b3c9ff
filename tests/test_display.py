"""A run as the value of a notebook's cell."""

import re
import subprocess
import sys

import pytest
from a_run_to_look_at import a_run

from trackmetrics.display import as_html
from trackmetrics.record import Metadata, RunRecord


def test_a_run_is_html():
    """Its task, epochs and results as text on the page's own ground; no script, no picture from elsewhere."""
    html = as_html(a_run())
    text = re.sub("<[^>]+>", "", html)
    for part in ("counting", "2026-01-30 22:08:22 UTC", "0.8000", "perplexity", "final results", "learning_rate"):
        assert part in text
    assert re.findall("<([a-z]+)", html).count("pre") == 1
    assert set(re.findall("<([a-z]+)", html)) == {"pre", "span"}
    assert "background" not in html


def test_texts_from_the_file_stay_texts():
    """Tags in them are escaped."""
    html = as_html(a_run(task="<script>alert(1)</script>"))
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert as_html(RunRecord(Metadata("t", "")))


NOTEBOOK = """
from IPython.testing.globalipapp import start_ipython
shell = start_ipython()
shell.run_cell("import trackmetrics; from trackmetrics.record import *")
shell.run_cell("run = RunRecord(Metadata('counting', '2026-01-30T22:08:22Z'))")
import sys
assert "rich" not in sys.modules, "importing is light"
shell.display_formatter.active_types = ["text/plain", "text/html"]
data, _ = shell.display_formatter.format(shell.user_ns["run"])
assert data["text/html"].startswith("<pre") and "counting" in data["text/html"], data
"""


def test_ipython_shows_a_run_so():
    """As soon as the package is imported, and without loading more for it."""
    pytest.importorskip("IPython")
    done = subprocess.run([sys.executable, "-c", NOTEBOOK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
