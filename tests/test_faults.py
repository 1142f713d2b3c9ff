"""A fault of ours costs its own number, never the training: one is put into every function that observes.

Which functions there are is read from the package's source. A fault is raised by a trace function, where a call of
the function begins or ends, so it needs no knowledge of what the function is, nested ones included.
"""

import contextlib
import functools
import inspect
import math
import os
import random
import re
import shutil
import sys
import types
import warnings
from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fingerprint import differences, fingerprint
from oracle import one_thread  # noqa: F401  a fixture
from strict_json import strict_loads
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from trackmetrics import FinalInference, Tracker, TrackmetricsWarning
from trackmetrics.plain import Growing
from trackmetrics.record import record_to_plain

pytestmark = pytest.mark.long

# What is trained


def tensors(count, seed=0, length=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, length, 4, generator=generator), torch.randint(3, (count,), generator=generator)


def loader(count, seed=0, **settings):
    return DataLoader(TensorDataset(*tensors(count, seed)), 4, **settings)


class Attentive(nn.Module):
    """A classifier that returns its attention."""

    def __init__(self, classes=3):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(5), nn.Dropout(0.2)
        self.query, self.head = nn.Linear(4, 4), nn.Linear(4, classes)
        self.calls = [0]

    def forward(self, inputs):
        self.calls[0] += 1
        inputs = self.norm(inputs)
        attention = (self.query(inputs) @ inputs.mT).softmax(-1)
        return self.head(self.drop(attention @ inputs).mean(1)), [attention]


class WithLoss(nn.Module):
    """Computes its loss inside, as the models of some libraries do."""

    def __init__(self):
        super().__init__()
        self.inner = Attentive()

    def forward(self, values, labels=None):
        scores, maps = self.inner(values)
        loss = None if labels is None else F.cross_entropy(scores, labels)
        return {"loss": loss, "logits": scores, "attentions": maps}


def classification(run):
    """Loaders, a gradient scaler, a schedule, values logged."""
    model = Attentive()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    train, dev = loader(8, shuffle=True), loader(6, 1, sampler=SubsetRandomSampler([4, 1, 2, 0]))
    for _ in range(2):
        with run.epoch() as epoch:
            for inputs, targets in train:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs)[0], targets)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                epoch.log(last=loss, number=np.float32(1))
            schedule.step()
    del dev
    return model, optimizer


def evaluating(run):
    """A dev set that the loop evaluates itself; a step that the gradient scaler skips."""
    model = Attentive()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    train, dev = loader(8), loader(6, seed=1)
    for epoch in range(2):
        with run.epoch():
            model.train()
            for number, (inputs, targets) in enumerate(train):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs)[0], targets)
                scaler.scale(loss * float("inf") if number == epoch else loss).backward()
                scaler.step(optimizer)
                scaler.update()
            model.eval()
            with torch.no_grad():
                for inputs, targets in dev:
                    F.cross_entropy(model(inputs)[0], targets)
    return model, optimizer


def language(run):
    """A loss inside the model, batches and examples as dicts, accumulation, a record each two steps."""
    model = WithLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    train_data = [dict(zip(("values", "labels"), example)) for example in zip(*tensors(8))]
    dev_data = [dict(zip(("values", "labels"), example)) for example in zip(*tensors(5, 1))]
    with run.epochs(every=2):
        for _ in range(2):
            for half in (train_data[:4], train_data[4:]):
                optimizer.zero_grad()
                for pair in (half[:2], half[2:]):
                    values, labels = (torch.stack([item[key] for item in pair]) for key in ("values", "labels"))
                    (model(values=values, labels=labels)["loss"] / 2).backward()
                optimizer.step()
    del dev_data
    return model, optimizer


@dataclass
class Item:
    input_tensor: torch.Tensor
    output_tensor: torch.Tensor
    input: str


def closures(run):
    """LBFGS, a binary criterion without reduction, examples as objects."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=2)
    inputs, targets = tensors(8)
    targets = (targets > 1).float()[:, None]
    dev = [Item(x, y, f"example {y.item()}") for x, y in zip(inputs[:3], targets)]
    for _ in range(2):
        with run.epoch():

            def closure():
                optimizer.zero_grad()
                loss = F.binary_cross_entropy_with_logits(model(inputs), targets, reduction="none").mean()
                loss.backward()
                return loss

            optimizer.step(closure)
    del dev
    return model, optimizer


class Stream(IterableDataset):
    def __len__(self):
        return 3

    def __iter__(self):
        return zip(*tensors(3))


def by_hand(run):
    """Gradients set by hand, log-probabilities, a stream; two optimizers, one over what is sparse."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 3), nn.LogSoftmax(-1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dev = DataLoader(Stream(), 2)
    for _ in range(2):
        with run.epoch():
            inputs, targets = tensors(6)
            loss = F.nll_loss(model(inputs), targets, weight=torch.ones(3), reduction="sum")
            for parameter, gradient in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters()))):
                parameter.grad = gradient
            optimizer.step()
    del dev
    return model, optimizer


def inside(run):
    """Optimizers stepped inside the backward; a regression."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 1))
    optimizers = {parameter: torch.optim.SGD([parameter], 0.01) for parameter in model.parameters()}
    for parameter, optimizer in optimizers.items():
        parameter.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
    train_batches = dev_batches = [(x[None], y[None, None].float()) for x, y in zip(*tensors(3))]
    for _ in range(2):
        with run.epoch():
            for inputs, targets in train_batches:
                model.zero_grad()
                F.mse_loss(model(inputs), targets).backward()
    del dev_batches
    return (model, *optimizers.values())


def unowned(run):
    """No optimizer, reentrant checkpoints, sparse and bfloat16 gradients, two losses in one backward."""
    model = nn.ModuleDict(
        {
            "words": nn.Embedding(5, 4, sparse=True),
            "body": nn.Sequential(nn.Linear(4, 40), nn.Linear(40, 40)),
            "scores": nn.Linear(40, 3).bfloat16(),
        }
    )
    for _ in range(2):
        with run.epoch():
            for words in torch.tensor([[[1, 2], [3, 3]], [[0, 1], [4, 4]]]):
                model.zero_grad()
                hidden = checkpoint(model["body"], model["words"](words).mean(1), use_reentrant=True)
                scores = model["scores"](hidden.bfloat16()).float()
                loss = F.cross_entropy(scores, torch.tensor([0, 2])) + F.kl_div(
                    scores.log_softmax(-1), torch.full((2, 3), 1 / 3), reduction="batchmean"
                )
                loss.backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.1 * parameter.grad.to_dense()
    return (model,)


def said(run):
    """Everything said by the user, with functions of the user's own."""
    model = Attentive()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.watch(model)
    for _ in range(2):
        with run.epoch() as epoch:
            for inputs, targets in loader(8):
                optimizer.zero_grad()
                scores = model(inputs)[0]
                loss = (scores.logsumexp(-1) - scores.gather(1, targets[:, None])[:, 0]).mean()
                loss.backward()
                optimizer.step()
                epoch.update(loss=loss, output=scores, target=targets)
    return model, optimizer


class Share:
    """A metric: how much of what it is fed its targets are, weighted by the outputs."""

    def __init__(self):
        self.parts = []

    def update(self, outputs, targets):
        self.parts.append((outputs.double().square().sum() + targets.double().sum(), targets.numel()))

    def compute(self):
        return sum(part for part, _ in self.parts) / sum(number for _, number in self.parts)

    def reset(self):
        self.parts = []


def measured(run):
    """Metrics of the user's: targets that are ignored, an evaluation in the body."""
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(20), nn.Linear(20, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    train, dev = loader(12), loader(6, seed=1)
    for number in range(2):
        with run.epoch(metrics={"again": Share()} if number else None):
            model.train()
            for inputs, targets in train:
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets, ignore_index=1).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                for inputs, targets in dev:
                    F.cross_entropy(model(inputs), targets, ignore_index=1)
    return model, optimizer


def finalize(model, example):
    return FinalInference("x", model(example[0][None])[0].log_softmax(-1), [])


SCENES = {
    classification: {},
    evaluating: {},
    language: {},
    closures: {"metrics": {"share": Share()}},
    by_hand: {},
    inside: {"metrics": {"share": Share()}},
    measured: {"metrics": {"share": Share(), "other": Share()}},
    unowned: {},
    said: {
        "train": list(zip(*tensors(3))),
        "example": next(zip(*tensors(1))),
        "evaluate": lambda model, data: 0.5,
        "finalize": finalize,
        "hyperparameters": {"model": {"depth": 1}, "note": "x"},
    },
}


class Untracked:
    """Stands for a run where there is none."""

    @contextlib.contextmanager
    def epoch(self, every=None, metrics=None):
        yield self

    epochs = epoch

    def log(self, **values):
        pass

    update = watch = lambda self, *args, **values: None


# Where a fault may be


ROOT = Path(str(files("trackmetrics")))
BESIDE = ("__init__", "cli", "demo", "decorator", "errors", "options", "run", "testing")  # no part in observing
# A fault in what takes something away or puts it back comes when that is done: else it is the fault that leaves it.
PUTS_BACK = ("__exit__", "_refill", "_release", "_remove", "_set_slots", "_write_back", "release", "remove", "undo")


class Fault(ZeroDivisionError):
    """Of ours."""


def functions(module):
    """The code of every function in a module, nested ones included, with its qualified name."""
    found = {}

    def look(code, prefix):
        for inner in filter(lambda constant: isinstance(constant, types.CodeType), code.co_consts):
            name = prefix + inner.co_name
            is_function = inner.co_flags & inspect.CO_OPTIMIZED
            if is_function and not inner.co_name.startswith("<"):
                found[_key(inner)] = name, bool(inner.co_flags & inspect.CO_GENERATOR)
            look(inner, name + (".<locals>." if is_function else "."))

    path = str(ROOT / f"{module}.py")
    look(compile(Path(path).read_text(encoding="utf-8"), path, "exec"), "")
    return found


def _key(code):
    return code.co_filename, code.co_firstlineno, code.co_name


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).with_suffix("").as_posix()
        if name.rpartition("/")[2] not in BESIDE:
            yield name


def ours(code):
    return code.co_filename.startswith(str(ROOT))


def _caller(frame):
    """Who called, past the `with` statements' own machinery."""
    caller = frame.f_back
    while caller.f_code.co_filename == contextlib.__file__:
        caller = caller.f_back
    return caller


class Calls:
    """Counts the calls of each function of ours from inside the package, and raises in the one that is chosen.

    Who calls from outside, torch or the user, is called back without anything of ours around it that could help.
    """

    def __init__(self, chosen=None, number=1, at_end=False):
        self.counts = Counter()
        self.chosen, self.number, self.at_end = chosen, number, at_end

    def __call__(self, frame, event, value):
        code = frame.f_code
        if self.chosen is not None and code.co_name != self.chosen[2]:  # this is what most calls come to
            return None
        if not ours(code) or not ours(_caller(frame).f_code):
            return None
        key = _key(code)
        self.counts[key] += 1
        if key != self.chosen or self.counts[key] != self.number:
            return None
        if self.at_end:
            return self.end
        raise Fault("a fault of ours")

    def end(self, frame, event, value):
        if event == "return":
            raise Fault("a fault of ours")
        return self.end


@dataclass
class Outcome:
    """What a training came to."""

    state: dict
    values: dict
    messages: list


@contextlib.contextmanager
def warnings_of_ours(action):
    """What is warned of, also where the filter makes errors of it."""
    said, warn = [], warnings.warn

    def listening_warn(message, *args, **settings):
        if isinstance(message, TrackmetricsWarning):
            said.append(str(message))
        warn(message, *args, **settings)

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter(action)
        patch.setattr(warnings, "warn", listening_warn)
        yield said


def train(scene, calls=None, action="ignore", tracked=True):
    """Train a scene from the same seeds, with the calls of our functions traced once the run has begun."""
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    shutil.rmtree("output", ignore_errors=True)
    tracer = sys.gettrace()
    with warnings_of_ours(action) as messages:
        try:
            with Tracker("t", progress=False, **SCENES[scene]) if tracked else contextlib.nullcontext() as run:
                sys.settrace(calls)
                parts = scene(run or Untracked())
        finally:
            sys.settrace(tracer)
    state = fingerprint(**{str(number): part for number, part in enumerate(parts)})
    if not tracked:
        return Outcome(state, {}, [])
    hooks = [len(parameter._post_accumulate_grad_hooks or ()) for parameter in parts[0].parameters()]
    assert sum(hooks) == (len(hooks) if scene is inside else 0), f"hooks are left: {hooks}"
    strict_loads(Path("output/t_training_metrics.json").read_bytes())
    return Outcome(state, dict(flat(record_to_plain(run.record))), messages)


def flat(value, place=""):
    """Every value of a record by its place; arrays and lists of numbers whole."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{place}/{key}")
    elif isinstance(value, (list, Growing)) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from flat(item, f"{place}/{number}")
    else:
        yield place, value


@functools.cache
def sound(scene):
    """A scene without a fault, and how often it calls each function; the training is the untracked one."""
    calls = Calls()
    outcome = train(scene, calls)
    assert differences(outcome.state, train(scene, tracked=False).state) == []
    return outcome, calls.counts


@functools.cache
def reached():
    """In which scene a function is called first, and how often."""
    found = {}
    for scene in SCENES:
        for key, count in sound(scene)[1].items():
            found.setdefault(key, (scene, count))
    return found


# What a fault may cost

NUM_EPOCHS = "/metadata/hyperparameters/training/num_epochs"  # as many as there are

PASSING = ("/extensions/warnings", "/extensions/seconds", "/extensions/status", NUM_EPOCHS)
RECORDS = re.compile(r"the records of epochs\(every=...\) could not be had")  # then they hold other steps
MAPS = re.compile(r"final_inference.attention_weights .*a fault of ours")  # then they are those that the model returns


def complaints(found, expected):
    """What is wrong with a training that had a fault, beside one that had none."""
    if differences(found.state, expected.state):
        yield f"the training differs: {differences(found.state, expected.state)}"
    new = [message for message in found.messages if message not in expected.messages]
    undivided = ("/epochs", "/extensions/gradient_norm") if any(map(RECORDS.match, new)) else ()
    if any(map(MAPS.match, new)):
        undivided += ("/extensions/attention",)
    lost = set()
    for place, value in expected.values.items():
        now = found.values.get(place)
        if place.startswith((*PASSING, *undivided)) or same(now, value):
            continue
        if now is None or (place.endswith("attention_weights") and len(now) == 0):
            lost.add(place)
        else:
            yield f"{place} is {now!r:.40}, not {value!r:.40}"
    if len(set(new)) < len(new):
        yield f"said twice: {new}"
    named = {place: [message for message in new if names(message, place)] for place in lost}
    for place, messages in named.items():
        if len(messages) != 1 and not place.startswith("/metadata/hyperparameters"):
            yield f"{place} is lost, and named by {messages}"
    numbers = {place for place in lost if not place.startswith("/metadata/hyperparameters")}  # only plain ones are kept
    if numbers and not any("a fault of ours" in message for message in new):
        yield f"{sorted(numbers)[:3]} lost, and the fault isn't said: {new}"


def same(one, other):
    if isinstance(other, np.ndarray):
        return isinstance(one, np.ndarray) and one.shape == other.shape and bool((one == other).all())
    if isinstance(other, float) and isinstance(one, float):
        return math.isclose(one, other, rel_tol=1e-6)  # in what order gradients are read is free
    return one == other


def names(message, place):
    """Whether a message is about the value at a place of the record, by its own name or that of a whole."""
    about = re.split(r" is null| is \[\]| could not be ", message)[0]
    _, part, *rest = place.split("/")
    own = rest[-1] if part == "epochs" else ".".join([part, *rest[:1]])
    wholes = {
        "epochs": ("the epoch's record", "what the epoch is told", "metrics="),
        "final_results": ("final_results and final_inference", own.replace("final_results.dev", "dev")),
        "final_inference": ("final_results and final_inference", "final_inference"),
        "metadata": ("metadata.device and metadata.hyperparameters", "gradient_norm"),  # that knows what is trained
        "extensions": ("extensions", "saving", *GO_WITH.get(rest[0], (rest[0],))),
    }
    return about in (own, *wholes.get(part, ()))


GO_WITH = {
    "gradient_norm": ("gradient_norm", "the epoch's record"),
    "attention": ("final_inference", "final_results and final_inference"),
}


GUARDS = ("_tell", "_reached")  # nothing but a `try`


def faults_in(module):
    for key, (name, is_generator) in functions(module).items():
        if key not in reached() or key[2] in GUARDS:
            continue
        scene, count = reached()[key]
        if key[2] not in PUTS_BACK:
            yield scene, name, Calls(key, 1)
            if count > 1 and not is_generator:  # whose later calls only go on with the first
                yield scene, name, Calls(key, min(count, 3))
        elif not is_generator:
            yield scene, name, Calls(key, 1, at_end=True)


@pytest.fixture
def quick(monkeypatch, clock):
    """A clock that stands, and a disk that is not waited for."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.parametrize("module", list(modules()))
def test_a_fault_costs_its_own_number_alone(module, quick):
    """Whichever function fails, at its first call or a later one, with warnings made errors or not.

    No exception gets out; the training ends bit-identical; the file is there and strict; every other number is right;
    and one warning names what is lost.
    """
    wrong = []
    for number, (scene, name, calls) in enumerate(faults_in(module)):
        expected, _ = sound(scene)
        action = ("ignore", "error")[number % 2]
        where = f"{name} in {scene.__name__}, call {calls.number}{' at its end' if calls.at_end else ''}"
        try:
            found = train(scene, calls, action)
        except Exception as error:
            wrong.append(f"{where}: {error!r}")
            continue
        wrong += [f"{where}: {complaint}" for complaint in complaints(found, expected)]
    assert not wrong, "\n".join(wrong)


def test_most_functions_are_reached(quick):
    """The scenes call most functions that observe; those that only torch calls back aren't counted among them."""
    observing = [module for module in modules() if module.startswith("instruments/") and module != "instruments/events"]
    known = {key for module in observing for key in functions(module)}
    assert len(known & reached().keys()) > 0.75 * len(known)
