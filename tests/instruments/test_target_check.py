"""A loop whose targets aren't its loader's gives no accuracy that an evaluation over the set could repeat."""

import warnings

import pytest
import torch
import toy
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from trackmetrics import Tracker, TrackmetricsWarning

pytestmark = pytest.mark.filterwarnings("ignore:final_inference.attention_weights")


def _run(loss, train, net=None):
    """The dev accuracy of an epoch over `train` with the loop's own `loss(net, inputs, targets)`, and what was said."""
    net = net or toy.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrackmetricsWarning)
        with Tracker("t", train=train, dev=train) as run, run.epoch():
            for batch in train:
                optimizer.zero_grad()
                for part in loss(net, *batch):
                    part.backward()
                optimizer.step()
    said = [str(item.message) for item in caught if "the loop's targets are not those" in str(item.message)]
    return run.record.epochs[0].dev_accuracy, said, net


CHANGING = {
    "labels turned round": lambda net, x, y: [F.cross_entropy(net(x), 1 - y)],
    "a threshold": lambda net, x, y: [F.cross_entropy(net(x), (y > 1).long())],
    "a part of the batch": lambda net, x, y: [F.cross_entropy(net(x)[1:], y[1:])],
    "turned round, binary": lambda net, x, y: [F.binary_cross_entropy_with_logits(net(x)[:, 0], 1.0 - y)],
}
KEEPING = {
    "as they are": lambda net, x, y: [F.cross_entropy(net(x), y)],
    "flattened": lambda net, x, y: [F.cross_entropy(net(x).view(-1, 2), y.view(-1))],
    "in chunks": lambda net, x, y: [F.cross_entropy(net(a), b) for a, b in zip(x.chunk(2), y.chunk(2))],
    "changed in the inputs": lambda net, x, y: [F.cross_entropy(net(x + 0.0), y)],
}


@pytest.mark.parametrize("loss", CHANGING.values(), ids=CHANGING)
def test_changed_targets_make_the_accuracy_null(loss):
    """Null, with one warning that says why and what to give."""
    accuracy, said, _ = _run(loss, toy.loader())
    assert accuracy is None
    assert len(said) == 2  # of the epochs' dev accuracy, and of the final training accuracy
    assert all("give `evaluate=`" in message for message in said)


@pytest.mark.parametrize("loss", KEEPING.values(), ids=KEEPING)
def test_the_loaders_own_targets_are_evaluated(loss):
    """The loader's targets, reshaped or trained on in parts, give the accuracy that a count by hand gives."""
    accuracy, said, net = _run(loss, toy.loader())
    assert said == []
    assert accuracy == toy.accuracy(net, toy.loader())


def test_a_shift_of_a_sequence_is_noticed():
    """Next-token targets that the loop cuts from its labels are not what the set holds."""
    tokens = torch.randint(0, 5, (16, 6))
    train = DataLoader(TensorDataset(tokens, tokens), batch_size=4)

    def shifted(net, inputs, labels):
        return [F.cross_entropy(net(inputs)[:, :-1].reshape(-1, 5), labels[:, 1:].reshape(-1))]

    accuracy, said, _ = _run(shifted, train, torch.nn.Embedding(5, 5))
    assert accuracy is None
    assert said


def test_loaders_side_by_side_are_each_asked():
    """The targets of either of two loaders that are gone through together count as the loader's own."""
    train, other = toy.loader(), toy.loader(seed=9)
    net = toy.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Tracker("t", train=train, dev=train) as run, run.epoch():
        for (features, classes), _ in zip(train, other):
            optimizer.zero_grad()
            F.cross_entropy(net(features), classes).backward()
            optimizer.step()
    assert run.record.epochs[0].dev_accuracy == toy.accuracy(net, train)


def test_no_batch_is_kept_after_the_first_step():
    """What was kept for the comparison goes with it."""
    train, net = toy.loader(), toy.model()
    with Tracker("t", train=train, dev=train) as run, run.epoch():
        toy.train_epoch(net, torch.optim.SGD(net.parameters(), lr=0.1), train)
        check = run._engine._training._metrics._target_check
        assert check._batches is None
        assert not check.changed()
        assert check._compared is None
