"""A run leaves nothing behind, however it ends: what the user drops is freed, and all is saved and copied as before."""

import copy
import gc
import io
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings
import weakref
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
import toy
from oracle import one_thread  # noqa: F401  a fixture
from torch import nn

from trackmetrics import Tracker, tracked_training, tracker

pytestmark = pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))


# What the user drops is freed


def fail(error):
    raise error  # a class: an exception that a hook held would keep its frames alive


def in_the_body(error, model, optimizer, loss):
    fail(error)


def in_the_backward(error, model, optimizer, loss):
    model[0].weight.register_hook(lambda gradient: fail(error))
    loss.backward()


def in_the_forward(error, model, optimizer, loss):
    model[3].register_forward_pre_hook(lambda *_: fail(error))
    model(torch.ones(2, 4))


def in_the_step(error, model, optimizer, loss):
    optimizer.register_step_pre_hook(lambda *_: fail(error))
    optimizer.step()


def in_a_closure(error, model, optimizer, loss):
    optimizer.step(lambda: fail(error))


ENDS = {"returned": None} | {
    f"{error.__name__} {where.__name__}": (where, error)
    for where in (in_the_body, in_the_backward, in_the_forward, in_the_step, in_a_closure)
    for error in (ArithmeticError, KeyboardInterrupt)
}
ENDS["SystemExit in_the_body"] = in_the_body, SystemExit


def alive(references):
    gc.collect()
    return [name for name, reference in references.items() if reference() is not None]


def instances():
    """How many objects of each of the package's classes are alive, but for those that the user holds."""
    gc.collect()
    kinds = Counter(type(item) for item in gc.get_objects())
    users = ("trackmetrics.run", "trackmetrics.record", "trackmetrics.options", "trackmetrics.decorator")
    modules = {kind: str(kind.__module__) for kind in kinds}
    return {
        kind: count
        for kind, count in kinds.items()
        if modules[kind].startswith("trackmetrics.") and modules[kind] not in users
    }


@pytest.fixture
def as_many_instances():
    """After the test, no more objects of ours are alive than after any run."""
    with Tracker("a run before"):
        pass
    before = instances()
    yield
    assert instances() == before


@pytest.mark.parametrize("records", ["an epoch", "each two steps"])
@pytest.mark.parametrize("ends", ENDS)
def test_what_the_user_drops_is_freed(ends, records, as_many_instances):
    """Model, optimizer, data and the last batch are gone as soon as the user lets go of them, in the same function.

    The run and its epochs are still held, and the run's options named the data and functions.
    """
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train, dev = toy.loader(), toy.loader(8, seed=1)
    evaluate = lambda net, data, other=train: toy.accuracy(net, data)  # noqa: E731
    run = Tracker("t", train=train, dev=dev, evaluate=evaluate, example=dev.dataset[0])
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    epochs, caught = [], None
    try:
        with run:
            for number in range(3):
                with run.epoch() if records == "an epoch" else run.epochs(every=2) as epoch:
                    epochs.append(epoch)
                    for inputs, targets in train:
                        optimizer.zero_grad()
                        outputs = model(inputs)
                        loss = F.cross_entropy(outputs, targets)
                        epoch.log(last=loss)
                        epoch.update(loss=loss, output=outputs, target=targets)
                        loss.backward()
                        optimizer.step()
                        if number == 2 and ENDS[ends] is not None:
                            where, error = ENDS[ends]
                            where(error, model, optimizer, F.cross_entropy(model(inputs), targets))
                    schedule.step()
    except (ArithmeticError, KeyboardInterrupt, SystemExit) as error:
        caught = type(error)
    assert caught is (ENDS[ends] and ENDS[ends][1])
    references = {
        "model": weakref.ref(model),
        "weight": weakref.ref(model[0].weight),
        "gradient": weakref.ref(model[0].weight.grad),
        "optimizer": weakref.ref(optimizer),
        "schedule": weakref.ref(schedule),
        "train": weakref.ref(train),
        "dataset": weakref.ref(train.dataset),
        "dev": weakref.ref(dev),
        "evaluate": weakref.ref(evaluate),
        "inputs": weakref.ref(inputs),
        "outputs": weakref.ref(outputs),
        "loss": weakref.ref(loss),
    }
    for parameter in model.parameters():
        assert not parameter._post_accumulate_grad_hooks
    del model, parameter, optimizer, schedule, train, dev, evaluate, inputs, targets, outputs, loss
    assert alive(references) == []
    assert len(run.record.epochs) >= 2
    if before:
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_batch_is_freed_while_the_run_lives():
    """From one epoch to the next nothing keeps the last batch, nor what was made in between."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Tracker("t", final_train_accuracy=False) as run:
        for _ in range(3):
            with run.epoch():
                inputs, targets = torch.randn(64, 4), torch.randint(2, (64,))
                outputs = model(inputs)
                loss = F.cross_entropy(outputs, targets)
                loss.backward()
                optimizer.step()
            references = {
                name: weakref.ref(value)
                for name, value in {"inputs": inputs, "targets": targets, "outputs": outputs, "loss": loss}.items()
            }
            layer = nn.Linear(4, 4)  # a constructor's caller is looked into as well
            references["layer"] = weakref.ref(layer)
            value = None
            del inputs, targets, outputs, loss, layer, value
            assert alive(references) == []


@pytest.mark.parametrize("ends", ["returns", "raises"])
def test_a_decorated_function_keeps_nothing_of_its_call(ends, as_many_instances):
    """Arguments and result are the caller's alone when the call is over."""

    @tracked_training("t")
    def train(net, data):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        with tracker.epoch():
            toy.train_epoch(net, optimizer, data)
        if ends == "raises":
            raise ArithmeticError
        return {"model": net}

    net, data = toy.model(), toy.loader()
    try:
        result = train(net, data)
    except ArithmeticError:
        result = None
    references = {"net": weakref.ref(net), "data": weakref.ref(data)}
    del net, data, result
    assert alive(references) == []


def generator_of_steps():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Tracker("t") as run:
        while True:
            with run.epoch():
                F.cross_entropy(model(torch.ones(4, 4)), torch.tensor([0, 1, 0, 1])).backward()
                optimizer.step()
                yield weakref.ref(model)


@pytest.mark.parametrize("ends", ["closed", "closed in another thread", "dropped"])
def test_a_run_in_a_generator_ends_with_it(ends):
    """A generator that is closed, wherever, or dropped in the middle of an epoch ends its run and frees its model."""
    steps = generator_of_steps()
    reference = next(steps)
    next(steps)
    if ends == "closed":
        steps.close()
    elif ends == "closed in another thread":
        thread = threading.Thread(target=steps.close)
        thread.start()
        thread.join()
    del steps
    assert alive({"model": reference}) == []


# Saved, copied and compiled as before


def in_bytes(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def saved(model, optimizer, schedule, loss):
    """Everything that a user may save or copy, as bytes."""
    checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loss": loss, "epoch": 3}
    copies = copy.deepcopy((model, optimizer, schedule))
    found = {
        "pickled model": pickle.dumps(model),
        "pickled optimizer": pickle.dumps((model, optimizer)),
        "pickled parameter": pickle.dumps(model[0].weight),
        "saved model": in_bytes(model),
        "saved checkpoint": in_bytes(checkpoint),
        "saved scheduler": in_bytes(schedule.state_dict()),
        "copied model": pickle.dumps(copies[0]),
        "copied parameter": pickle.dumps(copy.deepcopy(model[0].weight)),
        "copied optimizer": pickle.dumps(copies[1].state_dict()),
    }
    # A plain pickle names a tensor's memory by its address.
    return {
        name: re.sub(rb"\d{12,16}", b"address", text) if "saved" not in name else text for name, text in found.items()
    }


def saving_training(run):
    """A training that saves at every point of its loop; warnings are errors in it."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with torch.enable_grad() if run is None else run.epoch():
                for inputs, targets in toy.loader(16):
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(inputs), targets)
                    found.append(saved(model, optimizer, schedule, loss))
                    loss.backward()
                    found.append(saved(model, optimizer, schedule, loss))
                    optimizer.step()
                    found.append(saved(model, optimizer, schedule, loss))
                schedule.step()
    return found, model, lambda: saved(model, optimizer, schedule, loss)


def test_what_is_saved_is_what_would_have_been_saved():
    """During the run and after it: the very bytes of the untracked training, without a warning, and they load."""
    untracked, _, after_untracked = saving_training(None)
    with Tracker("t", dev=toy.loader(8, seed=1)) as run:
        tracked, model, after = saving_training(run)
    untracked.append(after_untracked())
    tracked.append(after())
    for found, expected in zip(tracked, untracked, strict=True):
        assert [name for name in expected if found[name] != expected[name]] == []
        assert [name for name, text in found.items() if b"trackmetrics" in text] == []
    loaded = torch.load(io.BytesIO(tracked[-1]["saved model"]), weights_only=False)
    state = torch.load(io.BytesIO(in_bytes(model.state_dict())), weights_only=True)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
        assert torch.equal(state[name], value)


COMPILED = """
import pickle
import warnings

import torch
import torch.nn.functional as F

from trackmetrics import Tracker

warnings.simplefilter("ignore")


def compiled(criterion, *shapes):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = torch.nn.Linear(4, 3)
    targets = torch.ones(4, dtype=torch.int64) if criterion is F.cross_entropy else torch.ones(4, 3)
    step = torch.compile(lambda inputs: criterion(model(inputs), targets), backend=backend, fullgraph=True)
    for _ in range(2):
        step(torch.ones(4, 4)).backward()
    torch.compile(model, backend="eager")(torch.ones(4, 4)).sum().backward()
    assert len(graphs) == 1, len(graphs)


def scripted(criterion):
    function = torch.jit.script(criterion())
    assert "aten::" in str(function.inlined_graph), function.inlined_graph


with Tracker("t") as run:
    with run.epoch():
        compiled(F.cross_entropy)
        scripted(torch.nn.CrossEntropyLoss)
        scripted(torch.nn.BCEWithLogitsLoss)
    compiled(F.mse_loss)
compiled(F.cross_entropy)
compiled(F.mse_loss)
scripted(torch.nn.CrossEntropyLoss)
scripted(torch.nn.MSELoss)
scripted(torch.nn.KLDivLoss)
"""


def test_a_model_is_compiled_and_scripted_as_before():
    """As one graph, during a run and after it, in a process where nothing was compiled before."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
