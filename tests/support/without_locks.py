"""A filesystem that has no locks."""

import fcntl
import os


def without_locks(monkeypatch, number):
    """Make the system's locks answer as on a filesystem that has none, with an error of this number."""

    def refuse(*_args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
