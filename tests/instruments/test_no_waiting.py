"""Inside an epoch the device is never waited for, and at its end a few times, however long it was.

The device of these tests is torch's `meta`: a tensor there has no values, so that whoever wants one must ask for it,
and be counted. Every style of training is also counted on the CPU.
"""

import contextlib
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from oracle import Notes, one_thread, tracking  # noqa: F401  a fixture
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_styles import STYLES

pytestmark = [
    pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning"),
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning"),
]

# What needs values, or how many of them there are, before it can go on.
FETCHES = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim")


class Waits(TorchDispatchMode):
    """Counts whatever would wait for a device; `meta`, where a training is on it, answers with ones."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operation.overloadpacket.__name__
        tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)]
        by_mask = name == "index" and any(item.dtype in (torch.bool, torch.uint8) for item in tensors[1:])
        if name in FETCHES or by_mask:
            self.counted[name] += 1
            if name == "_local_scalar_dense" and tensors[0].is_meta:
                return torch.ones((), dtype=tensors[0].dtype).item()
        devices = {item.device.type for item in tensors if item.ndim or name in ("copy_", "_to_copy")}
        to = kwargs.get("device")
        if name == "_to_copy" and to is not None and torch.device(to).type not in devices:
            self.counted[f"{tensors[0].device.type} to {torch.device(to).type}"] += 1
            if tensors[0].is_meta:
                return torch.ones(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype)
        if name == "copy_" and len(devices) > 1:
            self.counted["copied between devices"] += 1
        return operation(*args, **kwargs)

    def take(self):
        counted, self.counted = self.counted, Counter()
        return dict(counted)


# On a device without values


def far(*shape, **settings):
    return torch.empty(shape, device="meta", **settings)


def classes(*shape):
    return far(*shape, dtype=torch.int64)


def mlp(layers=1):
    return nn.Sequential(*(nn.Linear(4, 4, device="meta") for _ in range(layers)))


def steps_of(loss, *, inputs=lambda number: far(6, 4), optimizer=torch.optim.SGD, every=1, clip=None, layers=1):
    """A training that steps so often; `loss(model, inputs, epoch)` is what it descends."""

    def train(epoch, number):
        model = mlp(layers)
        descends = optimizer(model.parameters(), lr=0.1)
        for step in range(number):
            loss(model, inputs(step), epoch).backward()
            if (step + 1) % every == 0:
                if clip is not None:
                    clip(model.parameters(), 1.0)
                descends.step()
                descends.zero_grad()

    return train


def weighted(model, inputs, epoch):
    targets = classes(len(inputs))
    return F.cross_entropy(model(inputs), targets, weight=far(4), ignore_index=1, label_smoothing=0.1)


def summed(model, inputs, epoch):
    return F.cross_entropy(model(inputs), classes(len(inputs)), weight=far(4), reduction="sum")


def unreduced(model, inputs, epoch):
    return F.cross_entropy(model(inputs), classes(len(inputs)), ignore_index=1, reduction="none").mean()


def logged(model, inputs, epoch):
    scores, targets = model(inputs), classes(len(inputs))
    loss = (scores.logsumexp(1) - scores[:, 0]).mean()
    epoch.update(loss=loss, output=scores, target=targets)
    epoch.log(last=loss, several=[loss, {"first": scores[0, 0]}], constant=3)
    return loss


def two(model, inputs, epoch):
    scores = model(inputs)
    return F.cross_entropy(scores, classes(len(inputs))) + 0.1 * F.mse_loss(scores, far(*scores.shape))


def without_optimizer(epoch, number):
    model = mlp()
    for _ in range(number):
        model.zero_grad()
        F.cross_entropy(model(far(6, 4)), classes(6)).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad


def scaled(epoch, number):
    """Scaled by hand, as a gradient scaler does it: its own step asks the device whether to take it."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("meta")
    for _ in range(number):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(far(6, 4)), classes(6))).backward()
        optimizer.step()


def plain(model, inputs, epoch):
    return F.cross_entropy(model(inputs), classes(len(inputs)))


TRAININGS = {
    "plain": steps_of(plain),
    "adam": steps_of(plain, optimizer=torch.optim.Adam),
    "a learning rate that is a tensor": steps_of(
        plain, optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=torch.tensor(lr), foreach=False)
    ),
    "accumulation": steps_of(lambda *parts: plain(*parts) / 3, every=3),
    "clipping": steps_of(plain, clip=nn.utils.clip_grad_norm_),
    "class weights, ignored targets": steps_of(weighted),
    "summed": steps_of(summed),
    "unreduced": steps_of(unreduced),
    "batches of several lengths": steps_of(plain, inputs=lambda number: far(2 + number % 5, 4)),
    "soft targets": steps_of(lambda model, inputs, _: F.cross_entropy(model(inputs), far(len(inputs), 4))),
    "binary": steps_of(lambda model, x, _: F.binary_cross_entropy_with_logits(model(x), far(len(x), 4))),
    "regression": steps_of(lambda model, inputs, _: F.mse_loss(model(inputs), far(len(inputs), 4))),
    "a divergence": steps_of(lambda model, x, _: F.kl_div(model(x), far(len(x), 4), reduction="batchmean")),
    "a loss by hand": steps_of(lambda model, inputs, _: model(inputs).square().mean()),
    "two losses": steps_of(two),
    "values said": steps_of(logged),
    "no optimizer": without_optimizer,
    "a gradient scaler": scaled,
    "large batches": steps_of(plain, inputs=lambda number: far(20000, 4)),
    "many parameters": steps_of(plain, layers=100),
}


class Nowhere:
    """What takes the place of an epoch where nobody tracks."""

    def log(self, **values):
        pass

    update = log


def waits(train, number, tracked=True, counts_inside=True, **options):
    """What a training of so many steps waited for: inside its epoch, and at the epoch's end; and the run.

    What isn't counted inside fails there instead.
    """
    waiting = Waits()
    if not tracked:
        with waiting:
            train(Nowhere(), number)
        return waiting.take(), {}, None
    with tracking(progress=False, **options) as observed, contextlib.ExitStack() as stack:
        with waiting if counts_inside else contextlib.nullcontext():
            epoch = stack.enter_context(observed.run.epoch())
            train(epoch, number)
        inside = waiting.take()
        with waiting:
            stack.close()
    assert "its instrument failed" not in str(observed.messages)
    assert observed.epochs[0].train_loss == 1.0
    return inside, waiting.take(), observed


@pytest.mark.parametrize("name", TRAININGS)
def test_an_epoch_waits_for_nothing(name):
    """Between an epoch's beginning and its end the device is asked for nothing that the bare loop doesn't ask for."""
    train = TRAININGS[name]
    bare, _, _ = waits(train, 12, tracked=False)
    inside, _, observed = waits(train, 12)
    assert inside == bare
    assert observed.run.record.extensions["gradient_norm"]["steps"] == (4 if name == "accumulation" else 12)


class Summed:
    """A metric of one's own that waits for nothing."""

    def reset(self):
        self.total, self.batches = None, 0

    def update(self, outputs, targets):
        self.total = outputs.sum() if self.total is None else self.total + outputs.sum()
        self.batches += 1

    def compute(self):
        return {"total": self.total, "batches": self.batches}


@pytest.mark.parametrize(
    "name",
    ["plain", "accumulation", "class weights, ignored targets", "unreduced", "binary", "regression", "large batches"],
)
def test_feeding_metrics_waits_for_nothing(name):
    """How many targets count isn't asked for inside the epoch; a batch is fed once that is known."""
    train = TRAININGS[name]
    inside, at_end, observed = waits(train, 12, metrics={"summed": Summed()})
    assert inside == waits(train, 12, tracked=False)[0]
    if name != "binary":  # whether its targets are 0 or 1 a device without values can't say
        assert observed.epochs[0].metrics["train_summed_batches"] == 12
    assert sum(at_end.values()) <= 30


@pytest.mark.parametrize("name", ["plain", "regression", "values said"])
def test_the_end_of_an_epoch_waits_a_few_times_however_long_it_was(name):
    """As often after 300 steps as after 10; and on the way there is no moment at which what waits is fetched."""
    short, long = waits(TRAININGS[name], 10), waits(TRAININGS[name], 300)
    assert short[0] == long[0] == {}
    assert short[1] == long[1]
    assert 0 < sum(long[1].values()) <= 10


def test_the_end_of_a_very_long_epoch_waits_as_often():
    """As often after 1,000 steps as after 10."""
    train = TRAININGS["regression"]
    assert waits(train, 1000, counts_inside=False)[1] == waits(train, 10)[1]


def test_the_end_of_an_epoch_waits_as_often_for_any_number_of_parameters():
    """As often for 2 parameters as for 200."""
    few, many = waits(TRAININGS["plain"], 3), waits(TRAININGS["many parameters"], 3)
    assert many[0] == few[0] == {}
    assert many[1] == few[1]


def test_the_count_sees_each_way_of_waiting():
    """A number, a truth, a list, a copy either way: each is counted."""
    ways = {
        "_local_scalar_dense": [
            lambda: far(1).item(),
            lambda: bool(far(1) > 0),
            lambda: float(far(1)),
            lambda: int(far(1)),
        ],
        "meta to cpu": [lambda: far(3).cpu(), lambda: far(3).tolist(), lambda: far(3).to("cpu", torch.float64)],
        "cpu to meta": [lambda: torch.ones(3).to("meta"), lambda: torch.tensor(2).to("meta")],
        "copied between devices": [lambda: far(3).copy_(torch.ones(3))],
    }
    for kind, calls in ways.items():
        for call in calls:
            waiting = Waits()
            with waiting:
                call()
            assert waiting.take() == {kind: 1}


# Every style, on the CPU


class Counting(Notes):
    """Counts what a style waits for inside its epochs; and apart from that, at the ends of them."""

    def __init__(self, run, waiting):
        super().__init__(run)
        self.waiting = waiting
        self.inside, self.at_ends = [], []

    @contextlib.contextmanager
    def epoch(self):
        with super().epoch():
            self.waiting.take()
            yield
            self.inside.append(self.waiting.take())
        self.at_ends.append(sum(self.waiting.take().values()))


def count(name, tracked):
    build, train = STYLES[name]
    torch.manual_seed(0)
    with tracking(evaluate_every=10**9) if tracked else contextlib.nullcontext() as observed, Waits() as waiting:
        notes = Counting(observed.run if tracked else None, waiting)
        train(notes, *build())
    return notes


@pytest.mark.parametrize("name", STYLES)
def test_a_style_waits_for_no_more_than_untracked(name):
    """In every style: nothing more inside an epoch, and a few times at its end."""
    untracked, tracked = count(name, False), count(name, True)
    assert tracked.inside == untracked.inside
    assert max(tracked.at_ends) <= 10
