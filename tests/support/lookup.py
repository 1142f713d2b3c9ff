"""Models whose predictions are known: each is a table of logits, looked up by its input."""

import torch

from trackmetrics.instruments.criteria import Call, Made
from trackmetrics.instruments.events import Listener, listening
from trackmetrics.instruments.pairing import Pairing


class Lookup(torch.nn.Module):
    """`model(numbers)` is the table's rows: logits `[*, classes]`."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Parameter(torch.as_tensor(table, dtype=torch.float32))

    def forward(self, numbers):
        return self.table[numbers]


def table(rows=10, classes=3, seed=0):
    """Logits for as many inputs."""
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def best(row):
    """The class with the largest score, found by a loop."""
    row = list(row)
    return row.index(max(row))


def share(pairs):
    """How many of the (predicted, target) pairs agree, of all of them."""
    pairs = list(pairs)
    return sum(predicted == target for predicted, target in pairs) / len(pairs)


class _Heard(Listener):
    def __init__(self):
        self.calls = []

    def criterion_called(self, criterion, arguments, result):
        self.calls.append(Call(Made.of(criterion, arguments, result)))


def learned(loss):
    """The pairing that a training learns from the one criterion call in `loss()`."""
    heard = _Heard()
    with listening(heard):
        loss()
    (call,) = heard.calls
    return Pairing.of(call)
