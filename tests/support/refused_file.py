"""What `load_run` says of a file that it refuses."""

import pytest

from trackmetrics import load_run
from trackmetrics.errors import MetricsFileError


def refusal_of(path):
    """The message with which a file is refused, without the path that it begins with."""
    with pytest.raises(MetricsFileError) as caught:
        load_run(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a metrics file: ")
    return message.removeprefix(f"{path} is not a metrics file: ")
