"""What can go wrong by the user's hand, one class a mistake.

Every message says what happened, with which value, and how to mend it.
"""

from __future__ import annotations


class TrackmetricsError(Exception):
    """Base of every error that trackmetrics raises.

    >>> from trackmetrics import TrackmetricsError, load_run
    >>> try:
    ...     load_run("nowhere.json")
    ... except TrackmetricsError as error:
    ...     print(error)
    nowhere.json can't be read: No such file or directory
    """


class ArgumentError(TrackmetricsError, ValueError):
    """An argument that can't be right: a wrong type, a wrong value, a name that is no parameter."""


class InvalidNameError(ArgumentError):
    """A task or part that can't be part of a file's name."""


class OutputError(TrackmetricsError, OSError):
    """An output folder or file that can't be written."""


class PathInUseError(OutputError):
    """A metrics file that another live run is writing."""


class ResumeError(TrackmetricsError, ValueError):
    """An earlier file that a run can't go on in."""


class RunStateError(TrackmetricsError, RuntimeError):
    """A call at the wrong moment: outside a run, or an epoch inside an epoch."""


class MetricsFileError(TrackmetricsError, ValueError):
    """A file that isn't a metrics file."""


class AttentionError(TrackmetricsError, RuntimeError):
    """Attention maps that can't be had of a model."""


class MissingExtraError(TrackmetricsError, ImportError):
    """A library that isn't installed, of an extra that is asked for."""


class TrackmetricsWarning(UserWarning):
    """A value that could not be had or written; training goes on.

    >>> import warnings
    >>> from trackmetrics import Tracker, TrackmetricsWarning
    >>> from trackmetrics.testing import runs_in_memory
    >>> with warnings.catch_warnings(record=True) as caught, runs_in_memory():
    ...     warnings.simplefilter("always", TrackmetricsWarning)
    ...     with Tracker("demo", train=[], dev=[]) as run, run.epoch() as epoch:
    ...         epoch.log(train_loss=float("nan"))
    >>> caught[0].category
    <class 'trackmetrics.errors.TrackmetricsWarning'>
    """


def reason(error: Exception) -> str:
    """Say what the system, or a library, gives as the reason of its error."""
    return getattr(error, "strerror", None) or str(error)


def shown(value: object, longest: int = 60) -> str:
    """Give a value as a message shows it: its `repr` on one line, `longest` characters at most; never raises.

    >>> shown("letter_counting")
    "'letter_counting'"
    """
    try:
        text = repr(value).replace("\n", " ")
    except Exception:  # a repr of the user's own, or nesting deeper than the stack
        text = f"a {type(value).__name__}"
    return text if len(text) <= longest else text[: longest - 3] + "..."


def fault(error: BaseException) -> str:
    """Give an error as a warning shows it: its `repr`, some lines of text at most; never raises."""
    return shown(error, 500)
