"""What every test gets: a folder of its own, a clock that is set by hand, and a look at what is left behind."""

import contextlib
import gc
import importlib
import random
import threading
from datetime import datetime, timezone

import numpy as np
import pytest
import torch
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer
from torch.utils.data.dataloader import _BaseDataLoaderIter

from trackmetrics.instruments import events
from trackmetrics.instruments.criteria import CRITERIA
from trackmetrics.surroundings import Surroundings, surroundings, within
from trackmetrics.testing import FakeClock

for helper in ("oracle", "metrics_by_hand"):
    pytest.register_assert_rewrite(helper)  # so that what they assert is shown with its values


def pytest_terminal_summary(terminalreporter):
    """Print what tests counted, which their passing alone doesn't say."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {name}: {value}")


_OF_OTHERS = ("QueueFeeder", "tqdm_monitor", "ThreadPoolExecutor", "wandb-", "Otel")


def _process_wide_state():
    """Everything that tracking patches, hooks or switches for the whole process."""
    return {
        "criteria": {criterion.name: getattr(criterion.owner, criterion.name) for criterion in CRITERIA},
        "torch.autograd.backward": torch.autograd.backward,
        "the engine's backward": torch.autograd._engine_run_backward,
        "GradScaler.scale": torch.amp.GradScaler.scale,
        "GradScaler.step": torch.amp.GradScaler.step,
        "Optimizer.__init__": torch.optim.Optimizer.__init__,
        "Optimizer.__setstate__": torch.optim.Optimizer.__setstate__,
        "Module.__init__": torch.nn.Module.__init__,
        "DataLoader iterators": _BaseDataLoaderIter.__next__,
        "Module.__call__": torch.nn.Module.__call__,
        "optimizer pre hooks": list(torch_optimizer._global_optimizer_pre_hooks.values()),
        "optimizer post hooks": list(torch_optimizer._global_optimizer_post_hooks.values()),
        "module forward hooks": dict(torch_module._global_forward_hooks),
        "module forward pre hooks": dict(torch_module._global_forward_pre_hooks),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "grad mode": torch.is_grad_enabled(),
        "live runs": events.live_runs(),
        "surroundings": surroundings(),
        # A loader's workers leave their queue's feeder to end when it likes; progress bars, compilers
        # and W&B's library have threads.
        "threads": sorted(item.name for item in threading.enumerate() if not item.name.startswith(_OF_OTHERS)),
    }


@pytest.fixture(autouse=True, scope="session")
def a_small_heap():
    """A run looks once through what the garbage collector knows: not through the hundreds of thousands around it."""
    importlib.import_module("torch._dynamo")  # as an optimizer's first step does
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """After every test, no patch, hook or mode of ours is left in the process."""
    before = _process_wide_state()
    yield
    assert _process_wide_state() == before


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path, monkeypatch):
    """Every test writes its `output/` into a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def clock():
    """The runs' clock, set by hand."""
    hand = FakeClock(datetime(2026, 1, 30, 22, 8, 22, tzinfo=timezone.utc))
    with within(Surroundings(hand)):
        yield hand


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test that has a `terminal` writes to it; a fixture can't see to that, for pytest sets the streams once more."""
    terminal = pyfuncitem.funcargs.get("terminal")
    stream = None if terminal is None else terminal.stream
    with contextlib.ExitStack() as stack:
        if stream is not None:
            stack.enter_context(contextlib.redirect_stdout(stream))
            stack.enter_context(contextlib.redirect_stderr(stream))
        return (yield)
