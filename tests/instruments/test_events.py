"""What is patched and hooked while a run lives, and that all of it is put back, whoever patched in between."""

import contextlib
import copy
import io
import pickle
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
import torch.nn.functional as F
from oracle import Notes, assert_norms, one_thread, tracking  # noqa: F401  a fixture
from torch import nn
from torch.optim import optimizer as torch_optimizer
from torch.utils.data.dataloader import _BaseDataLoaderIter

from trackmetrics import Tracker
from trackmetrics.instruments import events
from trackmetrics.instruments.criteria import CRITERIA

pytestmark = pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")

PATCHED = [
    *((criterion.owner, criterion.name) for criterion in CRITERIA),
    (torch.autograd, "_engine_run_backward"),
    (torch.amp.GradScaler, "scale"),
    (torch.amp.GradScaler, "step"),
    (torch.optim.Optimizer, "__init__"),
    (nn.Module, "__init__"),
    (_BaseDataLoaderIter, "__next__"),
]


def state():
    """The patched functions and the global hooks as they are now."""
    hooks = torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks
    return [getattr(owner, name) for owner, name in PATCHED], [list(hook.values()) for hook in hooks]


class Heard(events.Listener):
    """Keeps the names of what it is told, in order."""

    def __init__(self):
        self.names = []

    def criterion_called(self, criterion, arguments, result):
        self.names.append(criterion.function)

    def backward_begins(self, roots, inputs, retains):
        self.names.append("backward begins")

    def backward_ended(self, completed):
        self.names.append("backward ended" if completed else "backward failed")

    def optimizer_steps(self, optimizer, takes_closure):
        self.names.append("steps with closure" if takes_closure else "steps")

    def optimizer_stepped(self, optimizer):
        self.names.append("stepped")

    def closure_begins(self, optimizer):
        self.names.append("closure begins")

    def closure_ended(self, optimizer, completed):
        self.names.append("closure ended" if completed else "closure failed")

    def losses_scaled(self, scaled, scale):
        self.names.append(f"{len(scaled)} scaled by {scale.item():g}")

    def scaler_steps(self, optimizer):
        self.names.append("scaler steps")

    def scaler_stepped(self, optimizer):
        self.names.append("scaler stepped")

    def optimizer_built(self, optimizer):
        self.names.append(type(optimizer).__name__)

    def module_built(self, module, frame):
        self.names.append(type(module).__name__)


def test_every_patch_is_in_place_while_a_run_lives_and_back_afterwards():
    """Inside, each function is ours; outside, each is the very object that it was, and so are torch's global hooks."""
    before = state()
    with events.listening(Heard()):
        inside = state()
        assert all(mine is not own for mine, own in zip(inside[0], before[0], strict=True))
        assert [len(hooks) for hooks in inside[1]] == [len(hooks) + 1 for hooks in before[1]]  # those that are called
        assert events.live_runs() == 1
    after = state()
    assert all(mine is own for mine, own in zip(after[0], before[0], strict=True))
    assert after[1] == before[1]
    assert events.live_runs() == 0


def test_a_patched_function_looks_like_the_one_it_stands_for():
    """Name and documentation are those of the original."""
    before = state()[0]
    with events.listening(Heard()):
        for mine, own in zip(state()[0], before, strict=True):
            assert (mine.__name__, mine.__doc__) == (own.__name__, own.__doc__)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_everything_is_put_back_after_an_exception(error):
    """However a run ends, nothing of ours is left, and the exception is the user's own."""
    before = state()
    with pytest.raises(error), Tracker("fails") as run, run.epoch():
        nn.Linear(2, 2)(torch.ones(1, 2)).sum().backward()
        raise error
    assert state() == before


def test_nested_and_overlapping_runs_put_everything_back_at_the_last_ones_end():
    """Patches are made once, stay while any run lives, and go with the last, whichever that is."""
    before = state()
    first, second = (contextlib.ExitStack() for _ in range(2))
    first.enter_context(Tracker("first"))
    patched = state()
    with Tracker("inner"):
        assert state() == patched
    second.enter_context(Tracker("second"))
    assert events.live_runs() == 2
    second.close()
    assert state() == patched
    first.close()
    assert state() == before


def loop(model, optimizer):
    """One ordinary training step."""
    F.cross_entropy(model(torch.ones(1, 2)), torch.tensor([0])).backward()
    optimizer.step()


def test_a_listener_hears_a_training_step_in_order():
    """What is told, and when: construction, criterion, backward, step."""
    heard = Heard()
    with events.listening(heard):
        model = nn.Linear(2, 2)
        loop(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert heard.names == [
        "Linear",
        "SGD",
        "cross_entropy",
        "backward begins",
        "backward ended",
        "steps",
        "stepped",
    ]


def test_a_closure_is_heard_around_each_evaluation():
    """The closure that an optimizer is handed still returns its loss, and its exceptions."""
    heard = Heard()
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure():
        """The user's own."""
        return 3.0

    def fails():
        raise ArithmeticError

    with events.listening(heard):
        assert optimizer.step(closure) == 3.0
        assert optimizer.step(closure=closure) == 3.0
        with pytest.raises(ArithmeticError):
            optimizer.step(fails)
    once = ["steps with closure", "closure begins", "closure ended", "stepped"]
    assert heard.names == [*once, *once, "steps with closure", "closure begins", "closure failed"]


def test_a_gradient_scaler_is_heard():
    """The factor it applies, and the step that it takes or skips."""
    heard = Heard()
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with events.listening(heard):
        for factor in (1.0, float("inf")):
            scaler.scale([parameter.sum() * factor, (parameter * 2).sum()])[0].backward()
            scaler.step(optimizer=optimizer)
            scaler.update()
    backward = ["2 scaled by 8", "backward begins", "backward ended"]
    assert heard.names == [
        *backward, "scaler steps", "steps", "stepped", "scaler stepped",
        *backward, "scaler steps", "scaler stepped",
    ]  # fmt: skip


def test_a_backward_that_fails_is_heard_as_such():
    """The exception comes through, and the listener knows that the backward didn't complete."""
    heard = Heard()
    with events.listening(heard), pytest.raises(RuntimeError):
        torch.ones(1).sum().backward()
    assert heard.names == ["backward begins", "backward failed"]


def test_nobody_is_told_where_nobody_is_to_hear():
    """What runs inside `heard_by(None)` is silent, and afterwards the run hears again."""
    heard = Heard()
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with events.listening(heard):
        with events.heard_by(None):
            loop(model, optimizer)
        assert heard.names == []
        with pytest.raises(ArithmeticError), events.heard_by(None):
            raise ArithmeticError
        loop(model, optimizer)
    assert heard.names[0] == "cross_entropy"


def test_each_thread_hears_its_own():
    """Two listeners in two threads at once are told of their own thread's training alone."""
    heard = {"cross_entropy": Heard(), "mse_loss": Heard()}
    both = threading.Barrier(2, timeout=60)

    def work(name):
        with events.listening(heard[name]):
            both.wait()
            for _ in range(20):
                output = torch.ones(1, 2, requires_grad=True)
                target = torch.tensor([0]) if name == "cross_entropy" else torch.zeros(1, 2)
                getattr(F, name)(output, target)
            both.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in heard]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: set(listener.names) for name, listener in heard.items()} == {name: {name} for name in heard}
    assert [len(listener.names) for listener in heard.values()] == [20, 20]


# A user who patches the same function


@pytest.mark.parametrize(("owner", "name"), PATCHED, ids=[name for _, name in PATCHED])
def test_a_users_own_patch_made_during_the_run_stays(owner, name):
    """Whoever wraps one of the functions while we are there keeps theirs, and it works when we are gone."""
    original = getattr(owner, name)
    calls = []
    with events.listening(Heard()):
        ours = getattr(owner, name)

        def theirs(*args, **kwargs):
            calls.append(name)
            return ours(*args, **kwargs)

        setattr(owner, name, theirs)
    try:
        assert getattr(owner, name) is theirs
    finally:
        setattr(owner, name, original)


def test_a_users_patch_around_ours_is_not_heard_twice_in_the_next_run():
    """The patch that a user's own keeps alive only passes on: the next run hears each call once."""
    calls, heard = [], Heard()
    with pytest.MonkeyPatch.context() as patch:
        with events.listening(Heard()):
            ours = torch._C._nn.cross_entropy_loss
        patch.setattr(torch._C._nn, "cross_entropy_loss", lambda *args: calls.append("theirs") or ours(*args))
        with events.listening(heard):
            F.cross_entropy(torch.ones(1, 2), torch.tensor([0]))
    assert heard.names == ["cross_entropy"]
    assert calls == ["theirs"]


def test_a_users_patch_taken_back_during_the_run_leaves_ours():
    """A patch that comes and goes inside the run changes nothing."""
    before = state()
    heard = Heard()
    with events.listening(heard):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.autograd, "backward", lambda *args, **kwargs: None)
        nn.Parameter(torch.ones(1)).sum().backward()
    assert heard.names == ["backward begins", "backward ended"]
    assert state() == before


# After the run


def test_the_model_is_as_free_as_before():
    """Pickled, copied and saved during the run and after it, a tracked model is an ordinary one."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracking() as tracked:
        notes = Notes(tracked.run)
        with notes.epoch():
            loop(model, optimizer)
            during = pickle.dumps(copy.deepcopy(model))
            torch.save(model.state_dict(), io.BytesIO())
    assert pickle.loads(during)[0].weight.shape == (2, 2)
    copied = pickle.loads(pickle.dumps(copy.deepcopy((model, optimizer))))
    assert torch.equal(copied[0][0].weight, model[0].weight)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks


def test_the_second_run_counts_what_the_first_did():
    """Hooks of an earlier run are not there to be doubled: the same training gives the same counts again."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        with tracking() as tracked:
            notes = Notes(tracked.run)
            with notes.epoch():
                for _ in range(2):
                    optimizer.zero_grad()
                    F.cross_entropy(model(torch.ones(1, 2)), torch.tensor([0])).backward()
                    notes.step(model.parameters())
                    optimizer.step()
        assert_norms(tracked, notes)


def test_a_patch_made_around_ours_during_the_run_is_given_the_original():
    """Whoever wraps ours while the run lives keeps theirs, and from the run's end on it calls torch's own."""
    original = torch.autograd.backward

    def around(inner):
        return lambda *args, **kwargs: inner(*args, **kwargs)

    try:
        with events.listening(Heard()):
            theirs = torch.autograd.backward = around(torch.autograd.backward)
        assert torch.autograd.backward is theirs
        assert [cell.cell_contents for cell in theirs.__closure__] == [original]
    finally:
        torch.autograd.backward = original


def test_a_compiler_loaded_during_the_run_keeps_nothing_of_ours():
    """Its own patch on the constructor of modules, made around ours, calls torch's own after the run."""
    code = textwrap.dedent(
        """
        import sys, torch
        from trackmetrics.instruments import events

        with events.listening(events.Listener()):
            torch.compile(torch.nn.Linear(1, 1), backend="eager")(torch.ones(1, 1))
        waiting, seen = [torch.nn.Module.__init__], []
        while waiting:
            function = waiting.pop()
            seen.append(function.__code__.co_filename)
            cells = getattr(function, "__closure__", None) or ()
            waiting += [cell.cell_contents for cell in cells if hasattr(cell.cell_contents, "__code__")]
        assert len(seen) > 1, "the compiler has no patch of its own"
        sys.exit(any("trackmetrics" in name for name in seen))
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
