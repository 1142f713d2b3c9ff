"""`torch.compile` around model, loss, optimizer or the whole step: the eager figures, and nothing compiled again."""

import math

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from oracle import assert_close, global_norm, one_thread, tracking  # noqa: F401  one_thread is a fixture
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STEPS = 4


@pytest.fixture(autouse=True, scope="module")
def compiler_is_there():
    """The compiler wraps `Module.__init__` when it first compiles, and never takes that back."""
    torch._dynamo.mutation_guard.install_generation_tagging_init()


@pytest.fixture(autouse=True)
def compiler():
    """Each test has a compiler that has compiled nothing."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))
    return model, torch.optim.Adam(model.parameters(), lr=0.1)


def compiled(function, **settings):
    return torch.compile(function, backend="aot_eager", **settings)


def eager(model, optimizer):
    return stepping(optimizer, lambda inputs, target: F.cross_entropy(model(inputs), target))


def stepping(optimizer, loss_of, step=None):
    def run(inputs, target):
        optimizer.zero_grad()
        loss = loss_of(inputs, target)
        loss.backward()
        (step or optimizer.step)()
        return loss

    return run


def compiled_model(model, optimizer, **settings):
    outer = compiled(model, **settings)
    return stepping(optimizer, lambda inputs, target: F.cross_entropy(outer(inputs), target))


def whole_graph(model, optimizer):
    return compiled_model(model, optimizer, fullgraph=True)


def compiled_in_place(model, optimizer):
    model.compile(backend="aot_eager")
    return eager(model, optimizer)


def compiled_loss(model, optimizer):
    loss = compiled(lambda scores, target: F.cross_entropy(scores, target), fullgraph=True)
    return stepping(optimizer, lambda inputs, target: loss(model(inputs), target))


def compiled_module(model, optimizer):
    loss = compiled(nn.CrossEntropyLoss())
    return stepping(optimizer, lambda inputs, target: loss(model(inputs), target))


def model_and_loss(model, optimizer):
    return stepping(optimizer, compiled(lambda inputs, target: F.cross_entropy(model(inputs), target), fullgraph=True))


def compiled_optimizer(model, optimizer):
    step = compiled(optimizer.step)
    return stepping(optimizer, lambda inputs, target: F.cross_entropy(model(inputs), target), step)


def whole_step(model, optimizer):
    return compiled(eager(model, optimizer))


SEES_CRITERION = (compiled_model, whole_graph, compiled_in_place, compiled_optimizer)
HIDES_CRITERION = (compiled_loss, compiled_module, model_and_loss, whole_step)
COMPILES_STEPS = (compiled_optimizer, whole_step)


class Plain(torch.optim.Optimizer):
    """A user's own optimizer: nothing in its step keeps the compiler from taking all of it, hooks included."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    def step(self):
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(parameter.grad, alpha=-group["lr"])


def train_plainly(kind, make, warm):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    step = make(eager(model, kind(model.parameters(), lr=0.1)))
    for inputs, target in batches() if warm else ():
        step(inputs, target)
    with tracking() as run, run.run.epoch():
        for inputs, target in batches():
            step(inputs, target)
    return run


def test_a_compiled_step_that_leaves_no_trace_is_no_guess():
    """Compiled before the run, its hooks too, and without a state: norm and loss are null, each said once."""
    run = train_plainly(Plain, compiled, warm=True)
    assert (run.epochs[0].gradient_norm, run.epochs[0].train_loss) == (None, None)
    assert len(run.warned_of("gradient_norm")) == len(run.warned_of("train_loss")) == 1


@pytest.mark.parametrize("warm", [False, True])
def test_a_compiled_step_of_plain_sgd_is_seen(warm):
    """Torch's own optimizers never compile all of it, so it is heard: the figures are those of the eager steps."""
    seen, eagerly = (train_plainly(torch.optim.SGD, make, warm).epochs[0] for make in (compiled, lambda step: step))
    assert_close(seen.gradient_norm, eagerly.gradient_norm)
    assert_close(seen.train_loss, eagerly.train_loss)


def batches():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(8 * STEPS, 4, generator=generator)
    targets = torch.randint(0, 3, (8 * STEPS,), generator=generator)
    return DataLoader(TensorDataset(inputs, targets), 8, generator=generator)  # else each pass draws from torch's own


def by_hand(warm):
    """The eager training: each step's norm and loss, worked out beside it; what was predicted right."""
    model, optimizer = build()
    torch.manual_seed(2)
    norms, losses, right = [], [], 0
    for number in range(1 + warm):
        for inputs, target in batches():
            optimizer.zero_grad()
            scores = model(inputs)
            loss = F.cross_entropy(scores, target)
            loss.backward()
            if number == warm:
                norms.append(global_norm(model.parameters()))
                losses.append(loss.item())
                right += int((scores.argmax(1) == target).sum())
            optimizer.step()
    return math.fsum(norms) / STEPS, math.fsum(losses) / STEPS, right / (8 * STEPS)


def train(kind, warm, tracked):
    """Train compiled, `warm` before the run or cold in it; give what the run said, the weights, what was compiled."""
    model, optimizer = build()
    step = kind(model, optimizer)
    torch.manual_seed(2)
    for inputs, target in batches() if warm else ():
        step(inputs, target)
    epoch, messages, norms, losses = None, [], [], []
    if tracked:
        with tracking(dev=list(batches())) as run, run.run.epoch():
            for inputs, target in batches():
                step(inputs, target)
        epoch, messages = run.epochs[0], run
    else:
        for inputs, target in batches():
            losses.append(step(inputs, target).item())
            norms.append(global_norm(model.parameters()))  # nothing has clipped them since the backward
        epoch = math.fsum(norms) / STEPS, math.fsum(losses) / STEPS
    for inputs, target in batches():  # the run is over, and what is compiled stays so
        step(inputs, target)
    made = sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"]
    return epoch, [parameter.detach().clone() for parameter in model.parameters()], made, messages


@pytest.mark.parametrize("warm", [False, True], ids=["in the run", "before the run"])
@pytest.mark.parametrize("kind", [*SEES_CRITERION, *HIDES_CRITERION])
def test_compiled_training_gives_the_eager_figures(kind, warm):
    """Norm and loss are those worked out by hand, eagerly and in the untracked run, whose weights come out too."""
    norm, loss, accuracy = by_hand(warm)
    epoch, weights, made, run = train(kind, warm, tracked=True)
    if kind not in COMPILES_STEPS:  # a compiled optimizer rounds otherwise
        assert_close(epoch.gradient_norm, norm)
        assert_close(epoch.train_loss, loss)
    if kind in SEES_CRITERION:
        assert epoch.train_accuracy == accuracy
    else:
        assert epoch.train_accuracy is None
        assert len(run.warned_of("train_accuracy")) == 1
    torch._dynamo.reset()
    counters.clear()
    (norm, loss), expected, made_untracked, _ = train(kind, warm, tracked=False)
    assert_close(epoch.gradient_norm, norm)
    assert_close(epoch.train_loss, loss)
    assert all(map(torch.equal, weights, expected))
    assert made[0] <= made_untracked[0]
    assert made[1] == made_untracked[1]
