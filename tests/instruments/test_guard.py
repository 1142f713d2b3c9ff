"""A guard ends what fails, once; that a fault costs its own number alone is seen in test_faults."""

import pytest

from trackmetrics.instruments.guard import Guard


def test_a_broken_instrument_is_not_called_again():
    """The first exception is told, once; from then on the instrument gives what stands in for it."""
    told, calls = [], []
    spare = Guard("norm", lambda name, error: told.append((name, str(error))))

    def fails(value):
        calls.append(value)
        raise ValueError("no")

    assert spare(lambda value: value, 3) == 3
    assert spare(fails, 1, otherwise="nothing") == "nothing"
    assert spare(fails, 2, otherwise="nothing") == "nothing"
    assert told == [("norm", "no")]
    assert calls == [1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_no_fault(error):
    """Ctrl+C that arrives inside an instrument goes on to the user."""

    def interrupted():
        raise error

    with pytest.raises(error):
        Guard("norm", lambda *_: None)(interrupted)
