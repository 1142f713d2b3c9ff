"""Leaving a training as it was: after an evaluation, every later number is the one it would have been."""

import copy
import functools
import random
from collections import deque

import numpy as np
import pytest
import torch
import toy
from data_kinds import join_feeders
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from trackmetrics import Tracker, tracked_training
from trackmetrics.instruments.undisturbed import undisturbed

GENERATORS = {
    "torch": lambda: torch.Generator().manual_seed(1),
    "python": lambda: random.Random(1),
    "numpy": lambda: np.random.default_rng(1),
    "old numpy": lambda: np.random.RandomState(1),
}


def _draw(generator):
    if isinstance(generator, torch.Generator):
        return torch.rand(1, generator=generator).item()
    return float(generator.random_sample() if isinstance(generator, np.random.RandomState) else generator.random())


class Holder:
    """Anything that keeps something as an attribute."""

    def __init__(self, held):
        self.held = held


class SlotHolder:
    __slots__ = ("held",)

    def __init__(self, held):
        self.held = held


class Noisy(torch.nn.Module):
    """A transform or model that draws from a generator of its own."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def collate(self, batch):
        return batch


HOMES = {
    "the loader": lambda generator: DataLoader([1], generator=generator),
    "a sampler": lambda generator: DataLoader([1], sampler=torch.utils.data.RandomSampler([1], generator=generator)),
    "a subset's dataset": lambda generator: DataLoader(Subset(Subset(Holder(generator), [0]), [0])),
    "composed transforms": lambda generator: DataLoader(Subset(Holder(Holder([Holder(generator)])), [0])),
    "transforms by name": lambda generator: DataLoader(Holder({"train": Holder(generator)})),
    "a module as transform": lambda generator: DataLoader(Holder(torch.nn.Sequential(Noisy(generator)))),
    "slots": lambda generator: DataLoader(Holder(SlotHolder(generator))),
    "a method as collate function": lambda generator: DataLoader([1], collate_fn=Noisy(generator).collate),
    "a function with a partial argument": lambda generator: DataLoader(
        [1], collate_fn=functools.partial(max, generator)
    ),
    "a closure": lambda generator: DataLoader([1], collate_fn=lambda batch: _draw(generator)),
    "a default argument": lambda generator: DataLoader([1], collate_fn=lambda batch, noise=generator: _draw(noise)),
}


@pytest.mark.parametrize("ends", ["well", "by an error"])
def test_global_streams_go_on_where_they_stood(ends):
    """Python's, NumPy's and torch's next draws are those that would have come, also when the body raises."""

    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item(), torch.randn(3).tolist()

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = draws()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    try:
        with undisturbed(None):
            assert draws() == expected
            if ends == "by an error":
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert draws() == expected


def test_torchs_modes_are_put_back():
    """Grad mode and default dtype, whatever the body leaves; inside it no gradients are made."""
    with undisturbed(None):
        assert not torch.is_grad_enabled()
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() is torch.float32
    with torch.no_grad():
        with undisturbed(None):
            torch.set_grad_enabled(True)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("kind", "home"),
    [
        (kind, home)
        for kind in GENERATORS
        for home in HOMES
        if kind == "torch" or home not in ("the loader", "a sampler")  # torch takes only its own generators there
    ],
)
def test_generators_in_data_go_on_where_they_stood(kind, home):
    """A generator held anywhere in a loader or dataset gives the draws that would have come."""
    generator, twin = GENERATORS[kind](), GENERATORS[kind]()
    data = HOMES[home](generator)
    with pytest.raises(ZeroDivisionError), undisturbed(None, data):
        _draw(generator)
        raise ZeroDivisionError
    assert _draw(generator) == _draw(twin)


def test_a_models_own_generator_goes_on_where_it_stood():
    """A generator that the model draws from in its forward is put back."""
    generator = torch.Generator().manual_seed(4)
    with undisturbed(torch.nn.Sequential(torch.nn.Sequential(Noisy(generator)))):
        _draw(generator)
    assert _draw(generator) == _draw(torch.Generator().manual_seed(4))


def test_an_unreadable_generator_is_no_obstacle():
    """The system's entropy has no state to put back."""
    with undisturbed(None, Holder(random.SystemRandom())):
        drawn = random.random()
    assert random.random() == drawn


def test_each_modules_mode_is_its_own():
    """Inside, all is in eval mode and without gradients; after, a frozen batch norm is still in eval, the rest not."""
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(3), torch.nn.Sequential(torch.nn.Dropout()))
    model.train()
    model[1].eval()
    model[2].training = False  # its child isn't
    before = [module.training for module in model.modules()]
    assert before == [True, True, False, False, True]
    with pytest.raises(ZeroDivisionError), undisturbed(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


class Changing(torch.nn.Module):
    """A model whose forward changes whatever it keeps, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("counted", torch.zeros(2))
        self.register_buffer("by_data", torch.zeros(2))
        self.register_buffer("rebound", torch.zeros(2))
        self.register_buffer("untouched", torch.tensor([1.0, float("nan")]))
        self.register_buffer("lazy", None)
        self.register_buffer("resized", torch.zeros(2))
        self.hidden = None
        self.calls = 0

    def forward(self, x):
        self.counted += 1
        self.by_data.data.add_(1)
        self.rebound = self.rebound + 1
        self.lazy = torch.ones(1)
        self.register_buffer("late", torch.ones(1))
        self.resized.resize_(3).fill_(1)
        self.hidden = x
        self.calls += 1
        self.seen = True
        return x


@pytest.mark.parametrize("ends", ["well", "by an error"])
def test_buffers_and_attributes_are_put_back(ends):
    """What a forward changed is back: values in place, rebound, new and resized buffers, attributes, each bit."""
    model = torch.nn.Sequential(Changing())
    inner = model[0]
    buffers = dict(inner._buffers)
    values = {name: copy.deepcopy(buffer) for name, buffer in buffers.items()}
    try:
        with undisturbed(model):
            model(torch.ones(1))
            assert inner.counted.tolist() == [1, 1]
            if ends == "by an error":
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert list(inner._buffers) == list(buffers)
    for name, buffer in buffers.items():
        assert inner._buffers[name] is buffer
        assert buffer is None or torch.equal(buffer.nan_to_num(-7), values[name].nan_to_num(-7))
    assert (inner.hidden, inner.calls, hasattr(inner, "seen")) == (None, 0, False)


def test_an_untouched_buffer_is_not_written():
    """A buffer that nothing changed keeps its version, so that a graph that saved it can still be differentiated."""
    model = torch.nn.BatchNorm1d(2)
    versions = [buffer._version for buffer in model.buffers()]
    with undisturbed(model):
        model(torch.ones(3, 2))
    assert [buffer._version for buffer in model.buffers()] == versions


@pytest.fixture(autouse=True)
def no_feeder_left():
    """A loader's thread that is about to end is not taken for one of ours."""
    yield
    join_feeders()


class Regularised(torch.nn.Module):
    """Dropout, batch norm, and a hidden state that goes on from batch to batch."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3))
        self.head = torch.nn.Linear(8, 2)
        self.state = torch.zeros(8)

    def forward(self, x):
        hidden = self.body(x) + 0.1 * self.state
        self.state = hidden.detach().mean(0)
        return self.head(hidden)


class Jittered(torch.utils.data.Dataset):
    """Augments by the global streams and by a generator of its own."""

    def __init__(self, count, seed):
        self.pairs = toy.examples(count, seed)
        self.generator = np.random.default_rng(seed)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        features, target = self.pairs[index]
        noise = random.gauss(0, 0.1) + float(self.generator.normal(0, 0.1)) + float(np.random.normal(0, 0.1))
        return features + noise + 0.1 * torch.randn(4), target


def _whole_training(tracked, workers, dev_kind="loader"):
    """Train, tracked or not, and give every number that the training left behind."""
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    generator = torch.Generator().manual_seed(9)
    train = DataLoader(Jittered(22, 1), 4, shuffle=True, generator=generator, num_workers=workers, drop_last=True)
    dev = DataLoader(Jittered(9, 2), 4, shuffle=True) if dev_kind == "loader" else Jittered(9, 2)
    model = Regularised()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def epochs(epoch):
        for _ in range(3):
            with epoch():
                for features, target in train:
                    optimizer.zero_grad()
                    F.cross_entropy(model(features), target).backward()
                    optimizer.step()
                schedule.step()

    if tracked:
        with Tracker("whole", train=train, dev=dev, describe=lambda example: str(random.random())) as run:
            epochs(run.epoch)
        assert None not in [epoch.dev_accuracy for epoch in run.record.epochs]
        assert run.record.final_results.train_accuracy is not None
        assert run.record.final_inference.log_probs.shape == (1, 2)
    else:
        epochs(torch.enable_grad)
    return {
        "parameters": [parameter.detach().clone() for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "buffers": [*model.buffers(), model.state],
        "optimizer": [value for state in optimizer.state.values() for value in state.values()],
        "modes": [module.training for module in model.modules()],
        "draws": [random.random(), np.random.rand(), torch.rand(1), torch.rand(1, generator=generator)],
        "data": [train.dataset.generator.random(), dev.dataset.generator.random() if dev_kind == "loader" else 0],
    }


@pytest.mark.filterwarnings("ignore:.*attention_weights:trackmetrics.TrackmetricsWarning")
@pytest.mark.parametrize(("workers", "dev_kind"), [(0, "loader"), (2, "loader"), (0, "dataset")])
def test_a_tracked_training_is_bit_identical(workers, dev_kind):
    """Parameters, gradients, buffers, optimizer state, modes and all random streams are those of the untracked run."""
    tracked, untracked = (_whole_training(yes, workers, dev_kind) for yes in (True, False))
    for name, values in untracked.items():
        for found, expected in zip(tracked[name], values, strict=True):
            assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected)), name


def test_a_finalize_of_the_users_disturbs_nothing():
    """What `evaluate=` and `finalize=` draw and switch is put back too, and so is what reading their example drew."""
    dev = Jittered(5, 3)
    model = toy.model()
    twin = np.random.default_rng(3)

    def evaluate(model, data):
        model.train()
        return random.random()

    def finalize(model, example):
        torch.rand(1)
        return {"example_input": "x", "log_probs": [[-0.1, -2.4]], "attention_weights": []}

    @tracked_training("task", evaluate=evaluate, finalize=finalize, final_train_accuracy=False)
    def train_toy(train, dev):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        from trackmetrics import tracker

        with tracker.epoch():
            toy.train_epoch(model, optimizer, train)
        return model

    batches = list(toy.loader())
    random.seed(1), torch.manual_seed(1)
    expected = random.random(), torch.rand(1).item()
    random.seed(1), torch.manual_seed(1)
    model.eval()
    train_toy(batches, dev)
    assert (random.random(), torch.rand(1).item()) == expected
    assert not model.training
    assert dev.generator.random() == twin.random()


class Unsearched(list):
    """Examples that must not be gone through."""

    def __iter__(self):
        raise AssertionError("all examples were gone through")


def test_a_long_list_is_not_searched():
    """Looking for generators looks at the first entries of a list only: the rest are examples like them."""
    generator = torch.Generator().manual_seed(2)
    with undisturbed(None, Holder(Unsearched([Holder(generator)] * 1000))):
        _draw(generator)
    assert _draw(generator) == _draw(torch.Generator().manual_seed(2))


def test_collections_that_a_forward_fills_are_put_back():
    """A list, dict, set or deque among a model's attributes holds what it held, and is the object that it was."""

    class Keeps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.maps, self.calls, self.shapes, self.last = [1], {"calls": 0}, set(), deque([2], maxlen=2)

        def forward(self, x):
            self.maps.append(x)
            self.calls["calls"] += 1
            self.shapes.add(x.shape)
            self.last.append(x)
            return x

    model = Keeps()
    objects = [model.maps, model.calls, model.shapes, model.last]
    with undisturbed(model):
        model(torch.ones(1))
        assert len(model.maps) == 2
    assert [model.maps, model.calls, model.shapes, list(model.last)] == [[1], {"calls": 0}, set(), [2]]
    assert all(now is then for now, then in zip([model.maps, model.calls, model.shapes, model.last], objects))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_can_be_evaluated():
    """A scripted module, whose buffers are no dict, is left as it was too."""
    model = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))
    before = copy.deepcopy(model.state_dict())
    with undisturbed(model):
        model(torch.ones(3, 2))
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
