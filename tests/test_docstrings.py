"""The examples in the docstrings are true."""

import doctest
from importlib import import_module
from importlib.resources import files

import pytest

from trackmetrics.errors import MissingExtraError

ROOT = files("trackmetrics")
MODULES = sorted(
    prefix + file.name.removesuffix(".py")
    for folder, prefix in (
        (ROOT, "trackmetrics."),
        (ROOT / "instruments", "trackmetrics.instruments."),
        (ROOT / "integrations", "trackmetrics.integrations."),
        (ROOT / "report", "trackmetrics.report."),
        (ROOT / "sinks", "trackmetrics.sinks."),
    )
    for file in folder.iterdir()
    if file.name.endswith(".py") and file.name != "__init__.py" and ">>>" in file.read_text(encoding="utf-8")
)
EXTRAS = {"trackmetrics.plots": "matplotlib"}  # without which its example has nothing to show


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    """Each `>>>` line gives what the docstring says."""
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    try:
        module = import_module(name)
    except MissingExtraError as error:
        pytest.skip(str(error))
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0
