"""A tracked training is the untracked one to the last bit, after every epoch, whatever the training and its model.

The oracle is the same training with no tracker in reach. Each evaluates on data that draws from every global stream,
and everything is compared: parameters, gradients, buffers, what modules keep for themselves, optimizer state, the
batches that were seen, and where each random stream stands.
"""

import contextlib
import copy
import random
import types
from collections import OrderedDict, deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data_kinds import join_feeders
from fingerprint import differences, fingerprint
from oracle import Notes, one_thread, tracking  # noqa: F401  a fixture
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler
from training_styles import STYLES

pytestmark = [
    pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning"),
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning"),
]


@pytest.fixture(autouse=True)
def no_feeder_left():
    """A loader's thread that is about to end is not taken for one of ours."""
    yield
    join_feeders()


def seed_everything():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)


def noise():
    """A number that every global stream has a part in."""
    return 0.1 * (random.gauss(0, 1) + float(np.random.normal()) + torch.randn(()).item())


class Jittered(Dataset):
    """Five features and three classes; the features are jittered by the global streams and by a stream of its own."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(count, 5, generator=generator)
        self.targets = torch.randint(3, (count,), generator=generator)
        self.generator = np.random.default_rng(seed)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index] + noise() + float(self.generator.normal(0, 0.1)), self.targets[index]


def assert_identical(one, other):
    """Two trainings passed through the same states."""
    assert [differences(*pair) for pair in zip(one, other, strict=True)] == [[] for _ in other]


# Every style


class Watching(Notes):
    """Takes a fingerprint of the training after each epoch."""

    def __init__(self, run, parts):
        super().__init__(run)
        self.parts = {f"part {number}": part for number, part in enumerate(parts)}
        self.states = []

    @contextlib.contextmanager
    def epoch(self):
        with super().epoch():
            yield
        self.look()

    def look(self):
        self.states.append(fingerprint(**self.parts))


def states_of_style(name, tracked):
    """What a style passes through; and, if it was tracked, its run."""
    build, train = STYLES[name]
    seed_everything()
    data = {"train": Jittered(6, 1), "dev": Jittered(5, 2), "final_train_accuracy": True}
    with tracking(**data) if tracked else contextlib.nullcontext() as observed:
        parts = build()
        if tracked:
            observed.run.watch(next(part for part in parts if isinstance(part, nn.Module)))
        notes = Watching(observed.run if tracked else None, parts)
        train(notes, *parts)
    notes.look()
    return notes.states, observed


@pytest.mark.parametrize("name", STYLES)
def test_a_style_is_bit_identical_after_each_epoch(name):
    """Every style of training, evaluated after each epoch and at its end, passes through the untracked one's states."""
    (untracked, _), (tracked, observed) = (states_of_style(name, yes) for yes in (False, True))
    assert_identical(tracked, untracked)
    if name in ("plain", "scaler-sgd", "lbfgs", "checkpointing-reentrant", "gradients_set_by_hand", "no_optimizer"):
        assert None not in [epoch.dev_accuracy for epoch in observed.epochs]


# Models that keep something, or change in a forward


def mlp(*inner):
    return nn.Sequential(nn.Linear(5, 8), *inner, nn.Linear(8, 3))


class Recurrent(nn.Module):
    """A hidden state goes on from batch to batch; `keep` is how it is kept."""

    def __init__(self, keep):
        super().__init__()
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.kept, self.keep = keep(), keep
        self.calls = 0

    def hidden(self):
        kept = self.kept
        if isinstance(kept, (dict, OrderedDict)):
            kept = kept["layers"]
        if isinstance(kept, (list, tuple, deque)):
            kept = kept[-1]
        if isinstance(kept, np.ndarray):
            kept = torch.from_numpy(kept)
        return kept if isinstance(kept, torch.Tensor) else kept.hidden

    def forward(self, inputs):
        hidden = torch.tanh(self.body(inputs)) + 0.5 * self.hidden() + 0.01 * self.calls
        self.calls += 1
        self.hidden().mul_(0.5).add_(hidden.detach().mean(0))
        return self.head(hidden)


class Rebinding(Recurrent):
    """The hidden state is another tensor each time, its holder the same one."""

    def forward(self, inputs):
        hidden = torch.tanh(self.body(inputs)) + 0.5 * self.hidden()
        new = hidden.detach().mean(0)
        if isinstance(self.kept, torch.Tensor):
            self.kept = new
        elif isinstance(self.kept, deque):
            self.kept.append(new)
        elif isinstance(self.kept, dict):
            self.kept["layers"] = (new,)
        else:
            self.kept.hidden = new
        return self.head(hidden)


class Holder:
    def __init__(self, hidden):
        self.hidden = hidden


class SlotHolder:
    __slots__ = ("hidden",)

    def __init__(self, hidden):
        self.hidden = hidden


KEEPS = {
    "a tensor": lambda: torch.zeros(8),
    "an array": lambda: np.zeros(8, np.float32),
    "a list": lambda: [torch.zeros(8)],
    "a tuple": lambda: (torch.zeros(8), torch.zeros(8)),
    "a dict of lists": lambda: {"layers": [torch.zeros(8)]},
    "an ordered dict of tuples": lambda: OrderedDict(layers=(torch.zeros(8),)),
    "a deque": lambda: deque([torch.zeros(8)], maxlen=2),
    "an object": lambda: Holder(torch.zeros(8)),
    "an object with slots": lambda: SlotHolder(torch.zeros(8)),
    "a namespace": lambda: types.SimpleNamespace(hidden=torch.zeros(8)),
}
REBOUND = ("a tensor", "an ordered dict of tuples", "a deque", "an object", "an object with slots", "a namespace")


class Embedded(nn.Module):
    """An embedding that rescales the rows that it looks up, in place, whatever the mode."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 8, max_norm=0.5), nn.Linear(8, 3)

    def forward(self, inputs):
        return self.head(self.embedding((inputs.abs() * 10).long().clamp(max=49)).mean(1))


class Adapted(nn.Linear):
    """A frozen weight with a low-rank adapter beside it, which `eval()` adds to it and `train()` takes out again."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.down, self.up = nn.Parameter(torch.randn(2, sizes[0])), nn.Parameter(torch.randn(sizes[1], 2))
        self.weight.requires_grad_(False)
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += (-1 if mode else 1) * self.up @ self.down
            self.merged = not mode
        return self

    def forward(self, inputs):
        output = super().forward(inputs)
        return output if self.merged else output + inputs @ self.down.T @ self.up.T


class Normalised(nn.Linear):
    """Gives its weight another memory in each forward."""

    def forward(self, inputs):
        self.weight.data = F.normalize(self.weight.data, dim=1) * 1.01
        return super().forward(inputs)


class Averaged(nn.Module):
    """Keeps an average of its own weights: as a copy of a module, and as plain tensors."""

    def __init__(self):
        super().__init__()
        self.net = mlp(nn.Tanh())
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.shadow = {name: parameter.detach().clone() for name, parameter in self.net.named_parameters()}

    def forward(self, inputs):
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                self.shadow[name].mul_(0.9).add_(parameter, alpha=0.1)
                self.average.get_parameter(name).lerp_(self.shadow[name], 0.2)
        return self.net(inputs) + 0.1 * self.average(inputs)


class Unregistered(nn.Module):
    """Has a module in a list, where torch doesn't see it: it stays in train mode, and its batch norm counts."""

    def __init__(self):
        super().__init__()
        self.net = mlp(nn.Tanh())
        self.teacher = [mlp(nn.BatchNorm1d(8), nn.Dropout(0.5))]

    def forward(self, inputs):
        return self.net(inputs) + self.teacher[0](inputs).detach()


class Growing(nn.Module):
    """Registers buffers and builds a layer in its forward, and counts in one."""

    def __init__(self):
        super().__init__()
        self.net = mlp(nn.Tanh())

    def forward(self, inputs):
        if not hasattr(self, "seen"):
            self.register_buffer("seen", torch.zeros(()), persistent=False)
            self.register_buffer("scale", None)
        self.seen += len(inputs)
        self.scale = 1 / (1 + self.seen)
        if not self.training and not hasattr(self, "calibration"):
            self.calibration = nn.Linear(3, 3)
            self.bias = nn.Parameter(torch.zeros(3))
        return self.net(inputs) * (1 + self.scale)


class Drawing(nn.Module):
    """Draws in its forward in every mode: from the global streams and its own generator."""

    def __init__(self):
        super().__init__()
        self.net, self.generator = mlp(nn.Tanh()), torch.Generator().manual_seed(3)

    def forward(self, inputs):
        return self.net(inputs + torch.randn(5, generator=self.generator) + noise())


class Recorder:
    """A forward hook that keeps what it saw."""

    def __init__(self):
        self.outputs, self.count = [], 0

    def __call__(self, module, inputs, output):
        self.outputs.append(output.detach())
        self.count += 1
        return output + 0.01 * self.count


def hooked():
    model = mlp(nn.Tanh())
    model[0].register_forward_hook(Recorder())
    return model


MODELS = {
    "dropout and batch norm": lambda: mlp(nn.BatchNorm1d(8), nn.Dropout(0.3)),
    "a frozen batch norm": lambda: mlp(nn.BatchNorm1d(8).eval(), nn.Dropout(0.3)),
    "spectral norm": lambda: mlp(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))),
    "weight norm": lambda: mlp(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))),
    "spectral norm of old": lambda: mlp(nn.utils.spectral_norm(nn.Linear(8, 8))),
    "weight norm of old": lambda: mlp(nn.utils.weight_norm(nn.Linear(8, 8))),
    **{f"a state in {name}": lambda keep=keep: Recurrent(keep) for name, keep in KEEPS.items()},
    **{f"another state in {name}": lambda keep=KEEPS[name]: Rebinding(keep) for name in REBOUND},
    "an embedding with max_norm": Embedded,
    "an adapter that eval() merges": lambda: mlp(Adapted(8, 8)),
    "a weight that a forward replaces": lambda: mlp(Normalised(8, 8)),
    "averages of its weights": Averaged,
    "a module in a list": Unregistered,
    "buffers and layers made in a forward": Growing,
    "draws in the forward": Drawing,
    "a hook that keeps": hooked,
}


def plain_loop(epochs, run, model, optimizer, data, schedule=None, **seen):
    """Train, and take a fingerprint after each epoch and at the end; `run` is None for nobody watching."""
    states, batches = [], []

    def look():
        sampler = data if isinstance(data, (list, Dataset)) else (data.generator, data.sampler)
        parts = {"model": model, "optimizer": optimizer, "batches": batches, "data": sampler, **seen}
        states.append(fingerprint(**parts, schedule=schedule and schedule.state_dict()))

    for _ in range(epochs):
        with contextlib.nullcontext() if run is None else run.epoch():
            for inputs, targets in data:
                batches.append((inputs, targets))
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs), targets)
                loss.backward()
                optimizer.step()
            if schedule is not None:
                takes_loss = isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
                schedule.step(loss.item()) if takes_loss else schedule.step()
        look()
    return states, look


def both_ways(train, dev=lambda: DataLoader(Jittered(10, 2), 4, shuffle=True), **options):
    """Train untracked and tracked, each from the same seeds; give what each passed through, and the tracked run."""
    found = []
    for tracked in (False, True):
        seed_everything()
        data = dev()
        observing = tracking(final_train_accuracy=True, dev=data, **options)
        with observing if tracked else contextlib.nullcontext() as observed:
            states, look = train(observed.run if tracked else None, data)
        look()
        found.append(states)
    assert_identical(found[1], found[0])
    assert None not in [epoch.dev_accuracy for epoch in observed.epochs]
    assert observed.run.record.final_results.dev_accuracy is not None
    return observed


def shuffled():
    return DataLoader(Jittered(16, 1), 4, shuffle=True, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_bit_identical_after_each_epoch(name):
    """Whatever a model keeps, and whatever its forward changes, is after an evaluation as it was before."""

    def train(run, dev):
        model = MODELS[name]()
        optimizer = torch.optim.AdamW([item for item in model.parameters() if item.requires_grad], 0.01)
        return plain_loop(2, run, model, optimizer, shuffled(), dev=dev.dataset.generator)

    both_ways(train)


# Data that draws


GLOBAL = np.random.default_rng(0)


def jitter_by_global():
    return float(GLOBAL.normal())


class ByGlobal(Jittered):
    """Draws from a generator that a function of its module names."""

    def __getitem__(self, index):
        return self.inputs[index] + jitter_by_global(), self.targets[index]


class Jitter:
    """A transform with a generator that all its objects share."""

    generator = random.Random(0)

    def __call__(self, inputs):
        return inputs + self.generator.gauss(0, 1)


class ByClass(Jittered):
    """Draws from a generator that the class of its transform has."""

    transform = Jitter()

    def __getitem__(self, index):
        return self.transform(self.inputs[index]), self.targets[index]


DEFAULT = np.random.RandomState(0)


def jittering_collate(pairs, *, generator=DEFAULT):
    inputs, targets = zip(*pairs)
    return torch.stack(inputs) + float(generator.normal()), torch.stack(targets)


def reset_the_shared():
    """Generators that outlive a training start anew with each."""
    GLOBAL.bit_generator.state = np.random.default_rng(0).bit_generator.state
    Jitter.generator.seed(0)
    DEFAULT.seed(0)


class Stream(IterableDataset):
    """A stream that draws what it gives."""

    def __init__(self, count, seed):
        self.source, self.generator = Jittered(count, seed), torch.Generator().manual_seed(seed)

    def __len__(self):
        return len(self.source)

    def __iter__(self):
        order = torch.randperm(len(self), generator=self.generator).tolist()
        return (self.source[index] for index in order)


class Buckets(BatchSampler):
    """Shuffles its own list as it goes."""

    def __init__(self, count):
        super().__init__(range(count), 4, drop_last=False)
        self.order, self.passes = list(range(count)), 0

    def __iter__(self):
        self.passes += 1
        random.shuffle(self.order)
        return (self.order[at : at + 4] for at in range(0, len(self.order), 4))


def own():
    return torch.Generator().manual_seed(9)


def weighted(data):
    return WeightedRandomSampler(torch.arange(1.0, len(data) + 1), len(data), generator=own())


LOADERS = {
    "shuffled by the global stream": lambda data: DataLoader(data, 4, shuffle=True),
    "shuffled by its own": lambda data: DataLoader(data, 4, shuffle=True, generator=own()),
    "a sampler with its own": lambda data: DataLoader(data, 4, sampler=RandomSampler(data, generator=own())),
    "a weighted sampler": lambda data: DataLoader(data, 4, sampler=weighted(data)),
    "a batch sampler of one's own": lambda data: DataLoader(data, batch_sampler=Buckets(len(data))),
    "a collate function that draws": lambda data: DataLoader(data, 4, collate_fn=jittering_collate),
    "no loader": lambda data: data,
}
DATA = {
    **{name: (Jittered, make) for name, make in LOADERS.items() if name != "no loader"},
    "a dataset that names a global": (ByGlobal, LOADERS["shuffled by the global stream"]),
    "a dataset with a class's generator": (ByClass, LOADERS["shuffled by the global stream"]),
    "a stream": (Stream, lambda data: DataLoader(data, 4)),
}


@pytest.mark.parametrize("name", DATA)
def test_data_is_bit_identical_after_each_epoch(name):
    """The batches that the training sees, and all that they draw from, are those of the untracked training."""
    kind, load = DATA[name]

    def dev():
        reset_the_shared()
        return load(kind(10, 2))

    def train(run, dev):
        model = mlp(nn.Dropout(0.3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        shared = {"global": GLOBAL, "class's": Jitter.generator, "default": DEFAULT}
        return plain_loop(2, run, model, optimizer, load(kind(16, 1)), dev=dev.dataset.generator, **shared)

    both_ways(train, dev)


@pytest.mark.parametrize("persistent", [True, False])
def test_workers_draw_the_same(persistent):
    """The seeds of a loader's workers, and what they draw, are those of the untracked training."""

    def loader(data):
        return DataLoader(data, 4, shuffle=True, num_workers=2, persistent_workers=persistent)

    def train(run, dev):
        model = mlp(nn.Dropout(0.3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return plain_loop(2, run, model, optimizer, loader(Jittered(16, 1)), dev=dev.dataset.generator)

    both_ways(train, lambda: loader(Jittered(10, 2)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_in_the_middle_of_a_loader_moves_nothing(workers):
    """A record that closes while the user goes through a loader leaves the rest of the pass as it would have been.

    The set evaluated is a part of the very data set that is gone through.
    """

    def train(run, dev):
        data = dev.dataset.dataset
        loader = DataLoader(data, 4, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        model = mlp(nn.BatchNorm1d(8), nn.Dropout(0.3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with contextlib.nullcontext() if run is None else run.epochs(every=3):
            return plain_loop(2, None, model, optimizer, loader, dev=data.generator)

    observed = both_ways(train, lambda: DataLoader(torch.utils.data.Subset(Jittered(28, 1), range(10)), 4))
    assert len(observed.epochs) == 5


# What goes with an optimizer


SCHEDULES = {
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5),
    "on plateau": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
    "in sequence": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)],
        [1],
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_bit_identical_after_each_epoch(name):
    """Schedulers stand where they would, and so does what they do to the optimizer."""

    def train(run, dev):
        model = mlp(nn.Dropout(0.3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        return plain_loop(3, run, model, optimizer, shuffled(), schedule=SCHEDULES[name](optimizer))

    both_ways(train)


def test_an_average_of_the_weights_is_bit_identical():
    """A model averaged beside the trained one, and its batch norm brought up to date, as an averaging loop has it."""

    def train(run, dev):
        model = mlp(nn.BatchNorm1d(8), nn.Dropout(0.3))
        averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        states = []
        for _ in range(3):
            found, _ = plain_loop(1, run, model, optimizer, shuffled(), averaged=averaged)
            averaged.update_parameters(model)
            torch.optim.swa_utils.update_bn(shuffled(), averaged)
            states += found
        return states, lambda: states.append(fingerprint(averaged=averaged, model=model))

    both_ways(train)


# Functions of the user's


def test_functions_of_the_users_move_nothing():
    """`evaluate=`, `finalize=` may draw, train, attack and zero: the training goes on as if they had not."""
    generator = np.random.default_rng(5)

    def attack(model, data):
        with torch.enable_grad():
            inputs = torch.randn(4, 5, requires_grad=True)
            model(inputs).square().sum().backward()
            model(inputs + inputs.grad.sign() * float(generator.random())).sum().backward()
            model.requires_grad_(False)
        model.zero_grad(set_to_none=False)
        return random.random()

    def finalize(model, example):
        attack(model, example)
        return {"example_input": "x", "log_probs": [[-0.1, -2.4]], "attention_weights": []}

    def train(run, dev):
        generator.bit_generator.state = np.random.default_rng(5).bit_generator.state
        model = mlp(nn.BatchNorm1d(8), nn.Dropout(0.3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return plain_loop(2, run, model, optimizer, shuffled(), generator=generator)

    both_ways(train, evaluate=attack, finalize=finalize)


def test_an_evaluation_between_forward_and_backward_breaks_no_graph():
    """A graph that waits for its backward while a record closes finds what it saved, although a forward changes it."""

    def train(run, dev):
        model, probe = Recurrent(lambda: torch.zeros(8)), nn.Parameter(torch.ones(8))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        states = []
        with contextlib.nullcontext() if run is None else run.epochs(every=1):
            for inputs, targets in shuffled():
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs), targets)
                waiting = (probe * model.kept).sum()
                loss.backward()
                optimizer.step()
                waiting.backward()
                states.append(fingerprint(model=model, optimizer=optimizer, probe=probe))
        return states, lambda: None

    both_ways(train)


def test_an_evaluation_inside_an_autocast_uses_the_weights_as_they_are():
    """Autocast keeps its casts of the weights until it is left: a record that closes inside isn't evaluated by them."""
    model = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), 100.0)
    data = Jittered(32, 1)
    inputs, targets = data.inputs, data.targets
    expected = []
    with tracking(dev=list(zip(inputs, targets))) as observed, observed.run.epochs(every=1):
        observed.run.watch(model)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                assert torch.is_autocast_cache_enabled()
            with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
                expected.append((model(inputs).argmax(1) == targets).float().mean().item())
    assert [epoch.dev_accuracy for epoch in observed.epochs] == pytest.approx(expected)
    assert len(set(expected)) == 3
