"""What a task or a part may be called: a name that can be part of a file's name on every system."""

from __future__ import annotations

import sys
from typing import Any

from .errors import InvalidNameError, shown

_LONGEST = 200  # bytes; with the metrics file's suffix and a temporary file's own, below the 255 of filesystems


def check_name(role: str, name: Any) -> str:
    """Give `name` back if it can be part of a file's name, else raise `InvalidNameError`.

    `role` is what the name is for (`task`, `part`) and appears in the message.
    """
    mend = f"give a {role} of letters, digits, spaces, '_', '-' and '.', such as 'letter_counting'"
    if not isinstance(name, str):
        raise InvalidNameError(f"the {role} is {shown(name)}, of type {type(name).__name__}; {mend}")
    if not name.strip():
        raise InvalidNameError(f"the {role} is empty ({name!r}); {mend}")
    if "/" in name or "\\" in name or name.startswith("."):
        raise InvalidNameError(f"the {role} {name!r} looks like a path; {mend} (the folder goes into output_dir=)")
    if not name.isprintable():
        raise InvalidNameError(f"the {role} {name!r} holds a character that can't be printed; {mend}")
    if ":" in name and sys.platform == "win32":
        raise InvalidNameError(f"the {role} {name!r} holds a ':', which names a drive or a stream; {mend}")
    length = len(name.encode("utf-8", "surrogatepass"))
    if length > _LONGEST:
        raise InvalidNameError(f"the {role} {name[:40]!r}... is {length} bytes long; give {_LONGEST} at most")
    return name
