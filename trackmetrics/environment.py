"""Where a run ran: versions, platform, process."""

from __future__ import annotations

import functools
import os
import platform
import socket
from importlib import metadata
from typing import Any


def describe_environment(device_name: str | None, world_size: int) -> dict[str, Any]:
    """Versions of what computes, the platform, the device's name, the number of processes that train together."""
    return {
        **_versions(),
        "device_name": device_name or platform.processor() or platform.machine(),
        "world_size": world_size,
    }


@functools.cache
def _versions() -> dict[str, str]:
    """What can't change in a process; the package's own version is read from the disk, and a run saves each epoch."""
    import numpy
    import torch

    return {
        "python": platform.python_version(),
        "trackmetrics": metadata.version("trackmetrics"),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
    }


def describe_process() -> dict[str, Any]:
    """The process and host that run it, so that a reader can tell a live run from a dead one."""
    return {"process": os.getpid(), "host": socket.gethostname()}
