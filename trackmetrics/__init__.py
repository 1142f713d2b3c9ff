"""Decorate a PyTorch training function, and get one trustworthy file about the run.

    from trackmetrics import tracked_training, tracker

    @tracked_training(task="letter_counting")
    def train_classifier(args, train, dev):
        ...
        for _ in range(args.num_epochs):
            with tracker.epoch():
                ...
        return model

Importing this package is quick: torch is loaded when a run begins, the names below when they are first used.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decorator import tracked_training
    from .errors import TrackmetricsError, TrackmetricsWarning
    from .instruments.attention_capture import capture_attention
    from .metrics_file import load_run
    from .record import FinalInference, RunRecord
    from .run import Tracker, tracker

    __version__: str

__all__ = [
    "FinalInference",
    "RunRecord",
    "Tracker",
    "TrackmetricsError",
    "TrackmetricsWarning",
    "__version__",
    "capture_attention",
    "load_run",
    "tracked_training",
    "tracker",
]

_HOMES = {
    "capture_attention": "instruments.attention_capture",
    "FinalInference": "record",
    "RunRecord": "record",
    "Tracker": "run",
    "TrackmetricsError": "errors",
    "TrackmetricsWarning": "errors",
    "load_run": "metrics_file",
    "tracked_training": "decorator",
    "tracker": "run",
}


if not TYPE_CHECKING:  # else a type checker would take any name for one of these

    def __getattr__(name):
        if name == "__version__":
            from importlib.metadata import version

            return version("trackmetrics")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def _be_shown_in_notebooks() -> None:
    """A run as the value of a cell is a table, not its `repr`."""
    shell = sys.modules["IPython"].get_ipython()
    if shell is not None:
        shell.display_formatter.formatters["text/html"].for_type_by_name("trackmetrics.record", "RunRecord", _as_html)


def _as_html(run: Any) -> str:
    from .display import as_html

    return as_html(run)


if "IPython" in sys.modules:
    _be_shown_in_notebooks()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
