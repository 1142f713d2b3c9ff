"""What the styles of training share. A style is a plain loop that works out its own gradient norms; see `oracle`."""

import torch
import torch.nn.functional as F
from torch import nn

STYLES = {}


def style(build, name=None):
    """Register a training loop with what builds its parts."""

    def register(train):
        STYLES[name or train.__name__] = (build, train)
        return train

    return register


# What the styles are made of


def batches(number=4, size=3):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 5, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(number)
    ]


def net():
    """Dropout and batch norm draw and keep numbers: an observation that touched them would be seen."""
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.25), nn.Linear(8, 3))


def with_(optimizer, **settings):
    """Build a net and an optimizer over it."""

    def build():
        model = net()
        return model, optimizer(model.parameters(), lr=0.1, **settings)

    return build


sgd = with_(torch.optim.SGD, momentum=0.9)


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def plain(notes, model, optimizer):
    for _ in range(3):
        with notes.epoch():
            for batch in batches():
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                notes.step(model.parameters())
                optimizer.step()
