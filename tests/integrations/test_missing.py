"""A trainer's library that isn't installed."""

import importlib
import sys

import pytest

from trackmetrics import extras
from trackmetrics.errors import MissingExtraError


@pytest.mark.parametrize("library", ["lightning", "transformers", "accelerate"])
def test_a_missing_library_says_how_to_install_it(library, monkeypatch):
    """When the integration is imported: without its library there is nothing in it."""
    monkeypatch.setattr(extras, "installed", lambda name: False)
    monkeypatch.delitem(sys.modules, f"trackmetrics.integrations.{library}", raising=False)
    with pytest.raises(MissingExtraError) as caught:
        importlib.import_module(f"trackmetrics.integrations.{library}")
    assert str(caught.value) == f"{library} isn't installed; pip install 'trackmetrics[{library}]'"
