"""Two ranks that don't do the same, in the scenario that the command line names. Run by torchrun."""

import contextlib
import json
import os
import sys
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

from trackmetrics import Tracker
from trackmetrics.errors import TrackmetricsError
from trackmetrics.record import METRIC_KEYS

LIMIT = 3.0  # seconds that ranks wait for each other: half of the group's
RANK = int(os.environ["RANK"])


def examples(count):
    """Points in two classes."""
    points = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(points, (points.sum(1) > 0).long())


def loader(first=RANK):
    """This rank's part of the training set, from its `first` example on."""
    return DataLoader(Subset(examples(24), range(first, 24, 2)), batch_size=2)


def make_group():
    """The process group, unless there is one."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(seconds=2 * LIMIT))


def untrained(replicated=True):
    """A model, as replicas or as one rank's own, and its optimizer."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    if replicated:
        model = DistributedDataParallel(model)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def step(model, optimizer, batch):
    """One training step."""
    points, targets = batch
    optimizer.zero_grad()
    F.cross_entropy(model(points), targets).backward()
    optimizer.step()


def run(**options):
    """The run whose file is asked for."""
    return Tracker("apart", train=loader(), dev=DataLoader(examples(10), batch_size=2), **options)


def train(tracker, epochs, after=lambda epoch: None, replicated=True):
    """Train to `epochs` epochs, those before it included, unless `after` one it is time to stop; give the weights."""
    model, optimizer = untrained(replicated)
    for epoch in range(len(tracker.record.epochs) + 1, epochs + 1):
        with tracker.epoch():
            for batch in loader():
                step(model, optimizer, batch)
            stop = after(epoch)
        if stop:
            break
    return [parameter.abs().sum().item() for parameter in model.parameters()]


def late(rank):
    """A rank is busy with its own, longer than the others wait, at the end of the second epoch of four."""
    make_group()

    def after(epoch):
        if (RANK, epoch) == (int(rank), 2):
            time.sleep(LIMIT + 1)

    with run() as tracker:
        weights = train(tracker, 4, after)
    return tracker, weights


def early_stop(rank):
    """The loop stops when the record says so, with a rank that is late for one epoch."""
    make_group()
    with run() as tracker:
        model, optimizer = untrained()
        for epoch in range(1, 9):
            with tracker.epoch():
                for batch in loader():
                    step(model, optimizer, batch)
                if (RANK, epoch) == (int(rank), 2):
                    time.sleep(LIMIT + 0.05)
            losses = [item.train_loss for item in tracker.record.epochs if item.train_loss is not None]
            if len(losses) == 4:
                break
    return tracker, None


def resumed(when, after):
    """The run goes on from an earlier one whose file only rank 0 has; the group is made before the run or in it."""
    os.makedirs(f"machine{RANK}", exist_ok=True)
    os.chdir(f"machine{RANK}")
    if when == "before":
        make_group()
    with run(resume={"yes": True, "no": False}[after] if after in ("yes", "no") else int(after)) as tracker:
        make_group()
        assert len(tracker.record.epochs) == {"yes": 2, "no": 0}.get(after, 1)  # before the ranks make a model together
        weights = train(tracker, 2 if after == "no" else 4)
    return tracker, weights


def first_alone(then):
    """Rank 0 has a run of the same task by itself before; to the next one both come at once, or it comes later."""
    make_group()
    if RANK == 0:
        with run() as tracker:
            train(tracker, 1, replicated=False)
    if then == "later":
        dist.barrier()
        time.sleep(1 - RANK)
    with run() as tracker:
        weights = train(tracker, 2, replicated=then != "later")
    return tracker, weights


def leaves():
    """Rank 1 leaves the run before its first epoch, and trains on outside it."""
    make_group()
    with contextlib.suppress(LookupError), run() as tracker:
        dist.barrier()
        if RANK == 1:
            raise LookupError("no more")
        weights = train(tracker, 2)
    if RANK == 1:
        model, optimizer = untrained()
        for _ in range(2):
            for batch in loader():
                step(model, optimizer, batch)
        weights = [parameter.abs().sum().item() for parameter in model.parameters()]
    return tracker, weights


def leaves_first():
    """Rank 1 leaves its first epoch before rank 0 has begun the run; the second epoch both train."""
    make_group()
    time.sleep(1.5 * (1 - RANK))
    with run() as tracker:
        model, optimizer = untrained(replicated=False)
        for epoch in (1, 2):
            with contextlib.suppress(LookupError), tracker.epoch():
                if (RANK, epoch) == (1, 1):
                    raise LookupError("no more")
                for batch in loader():
                    step(model, optimizer, batch)
    return tracker, None


def uneven():
    """Rank 1 has fewer steps in a loop that is cut by steps; after it they train together again."""
    make_group()
    with run() as tracker:
        model, optimizer = untrained()
        with Join([model]), tracker.epochs(every=2):
            for batch in loader(8 * RANK):
                step(model, optimizer, batch)
        with tracker.epochs(every=6):
            for batch in loader():
                step(model, optimizer, batch)
    return tracker, None


class Normalises(nn.Module):
    """A model with running statistics, which replicas have each their own of, and other buffers that differ."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4, momentum=0.9)
        self.out = nn.Linear(4, 2)
        self.register_buffer("expanded", torch.tensor(float(RANK)).expand(3))
        self.register_buffer("unused", nn.UninitializedBuffer())
        with torch.inference_mode():
            self.register_buffer("inferred", torch.full((2,), float(RANK)))

    def forward(self, points):
        return self.out(self.norm(points)) + self.expanded[0] * 0 + self.inferred.clone() * 0


def statistics(parts):
    """Ranks evaluate a model with batch norms; `found` is what rank 0's own model has right of the whole set."""
    make_group()
    torch.manual_seed(0)
    plain = Normalises()
    plain.norm.running_mean.share_memory_()
    plain.norm.running_var.share_memory_()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(plain, ["expanded", "unused", "inferred"])
    model = DistributedDataParallel(plain)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    dev_set, found, states = examples(101), [], []
    own = Subset(dev_set, range(RANK, 101, 2)) if parts == "parts" else dev_set
    tracked = contextlib.nullcontext()
    if parts != "untracked":
        tracked = Tracker("apart", train=loader(), dev=DataLoader(own, batch_size=7))
    with tracked as tracker:
        for _ in range(4):
            with tracker.epoch() if tracker else contextlib.nullcontext():
                model.train()
                for batch in loader():
                    step(model, optimizer, batch)
            states.append([value.tolist() for value in (*plain.parameters(), *plain.norm.buffers(), plain.expanded)])
            points, targets = dev_set.tensors
            with torch.no_grad():
                right = model.module.eval()(points).argmax(1) == targets
            found.append(right.double().mean().item())
    return tracker, [found, states]


def evaluates(kind):
    """A function of the user's evaluates: each rank's part, all parts together, one set, one that rank 0 has alone."""
    make_group()

    def accuracy(model, data):
        counts = torch.zeros(2)
        with torch.no_grad():
            for points, targets in data:
                counts += torch.tensor([(model(points).argmax(1) == targets).sum(), len(targets)])
        if kind == "together":
            dist.all_reduce(counts)
        return (counts[0] / counts[1]).item()

    dev = DataLoader(Subset(examples(31), range(RANK, 31, 2)), batch_size=2)
    if kind == "sampled":
        dev = DataLoader(examples(23), batch_size=2, sampler=DistributedSampler(examples(23)))
    if kind == "shuffled":  # each rank in an order of its own
        order = torch.Generator().manual_seed(RANK)
        dev = DataLoader(examples(31), batch_size=2, shuffle=True, generator=order)
    if kind == "first":
        dev = DataLoader(examples(31), batch_size=2) if RANK == 0 else None
    options = {"train": loader(), "dev": dev, "evaluate": accuracy, "final_train_accuracy": False}
    with Tracker("apart", **options) as tracker:
        weights = train(tracker, 2)
    return tracker, weights


def main():
    """Write down what this rank found."""
    torch.set_num_threads(1)
    folder = os.getcwd()
    found = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            tracker, found["weights"] = globals()[sys.argv[1]](*sys.argv[2:])
            if tracker is not None:
                record = tracker.record
                found["epochs"] = [[getattr(epoch, key) for key in METRIC_KEYS] for epoch in record.epochs]
                found["final"] = record.final_results and record.final_results.dev_accuracy
        except TrackmetricsError as error:
            found["error"] = f"{type(error).__name__}: {error}"
    found["said"] = [str(item.message) for item in caught if item.category.__name__ == "TrackmetricsWarning"]
    with open(os.path.join(folder, f"said{RANK}.json"), "w") as file:
        json.dump(found, file)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
