"""A training that several processes share, or one does alone: one rank of it. Run by torchrun, or by itself."""

import argparse
import contextlib
import functools
import json
import os
import signal
import sys
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from trackmetrics import Tracker, tracked_training
from trackmetrics.record import METRIC_KEYS

BATCH, STEPS, EPOCHS = 8, 3, 2
runs = []
told = []
clipped = []  # each epoch's norms, as clipping gives them


class Told:
    """A sink that keeps what it is told."""

    def run_began(self, record, path):
        """It is."""
        told.append("began")

    def epoch_ended(self, record, path):
        """How many there are."""
        told.append(len(record.epochs))

    def run_ended(self, record, path):
        """The results are there."""
        told.append(record.final_results is not None)


class Attends(nn.Module):
    """A small transformer that tells each token's class."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, 3)
        self.register_buffer("scale", torch.ones(()))  # which replicas tell each other before each forward

    def forward(self, tokens):
        return self.out(self.layer(self.embed(tokens))) * self.scale


def examples(count, seed):
    """Tokens with targets, some of which are ignored: a batch's part weighs more than another's."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(7, (count, 5), generator=generator)
    targets = (tokens + tokens.roll(1, 1)) % 3
    targets[torch.rand(count, 5, generator=generator) < 0.3] = -100
    targets[: count // 2, 0] = -100
    return TensorDataset(tokens, targets)


def plain(model):
    """One process."""
    return model


def replicated(model):
    """DistributedDataParallel."""
    return DistributedDataParallel(model)


def by_hand(model):
    """Replicas whose loop averages the gradients itself."""
    return model


def sharded(model):
    """FSDP2."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (model.layer, model):
        fully_shard(part, mesh=mesh)
    return model


def halved(model):
    """FSDP2 that computes and averages in half precision."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for part in (model.layer, model):
        fully_shard(part, mesh=init_device_mesh("cpu", (dist.get_world_size(),)), mp_policy=policy)
    return model


def flat(model):
    """FSDP1."""
    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


def hybrid(model):
    """FSDP2 over replicas."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("replicate", "shard"))
    for part in (model.layer, model):
        fully_shard(part, mesh=mesh)
    return model


def cuts(ranks):
    """Where a global batch is cut, unequally."""
    return {1: [0, 8], 2: [0, 3, 8], 4: [0, 1, 4, 6, 8]}[ranks]


def loader_of(dataset, rank, ranks):
    """A rank's own part of each global batch."""
    first, last = cuts(ranks)[rank : rank + 2]
    steps = range(0, len(dataset), BATCH)
    return DataLoader(dataset, batch_sampler=[list(range(step + first, step + last)) for step in steps])


def reduce_at(model, last, accumulate):
    """Say whether the coming backward is the `last` before a step: the only one after which gradients are averaged."""
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = last  # what no_sync sets
    elif isinstance(model, FSDPModule) and accumulate != "reduced":
        model.set_requires_gradient_sync(last)
        model.set_reshard_after_backward(last or accumulate != "gathered")


@tracked_training(task="ranks", output_dir="output", sinks=[Told()])
def train(model, train_loader, dev_loader, counts, accumulate, evaluates, make_optimizer, happens, metrics, tracker):
    """Train on a rank's part of the global batches, of which `counts` says how many targets count.

    With `accumulate` in two micro-batches each; where it `evaluates`, each epoch ends with a forward without gradients.
    `happens` is called with each epoch's number, and with None at the end. `metrics` are arguments of an epoch.
    """
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    optimizer = make_optimizer(model.parameters(), lr=0.01)
    for epoch in range(1, EPOCHS + 1):
        clipped.append([])
        with tracker.epoch(**metrics):
            happens and happens(epoch)
            for (tokens, targets), whole in zip(train_loader, counts, strict=True):
                optimizer.zero_grad()
                micro = (
                    list(zip(tokens.tensor_split(2), targets.tensor_split(2), strict=True))
                    if accumulate
                    else [(tokens, targets)]
                )
                for number, (ids, classes) in enumerate(micro, 1):
                    if accumulate:
                        reduce_at(model, number == len(micro), accumulate)
                    loss = F.cross_entropy(model(ids).movedim(-1, 1), classes)
                    counted = int((classes != -100).sum())  # the global batch's mean, as ranks are averaged
                    (loss * (counted / whole * ranks) if counted else loss.nan_to_num(0) * 0).backward()
                if type(model) is Attends and ranks > 1:
                    for parameter in model.parameters():
                        dist.all_reduce(parameter.grad)
                        parameter.grad /= ranks
                norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                clipped[-1].append((norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item())
                optimizer.step()
            if evaluates:
                with torch.no_grad():
                    model(tokens)
    if happens:
        happens(None)
    if isinstance(tracker, Tracker):
        runs.append(tracker)
    return model


def figures():
    """The run's record at full precision."""
    if not runs:
        return None
    record = runs[0].record
    inference = record.final_inference
    return {
        "epochs": [[getattr(epoch, key) for key in METRIC_KEYS] for epoch in record.epochs],
        "norms": [[item[key] for key in ("min", "median", "max", "steps")] for item in norms_of(record)],
        "metrics": [epoch.metrics for epoch in record.epochs],
        "final": [record.final_results.train_accuracy, record.final_results.dev_accuracy],
        "example": inference and inference.example_input,
        "log_probs": inference and inference.log_probs.tolist(),
        "attention": inference and inference.attention_weights.tolist(),
        "class": record.metadata.hyperparameters.model["class"],
        "optimizer": record.metadata.hyperparameters.training["optimizer"],
        "world_size": record.extensions["environment"]["world_size"],
    }


def norms_of(record):
    """The gradient norms of each epoch in summary, where there are any."""
    return [item for item in record.extensions["gradient_norm"]["epochs"] if "min" in item]


class Bare:
    """Stands for the tracker where nothing is tracked."""

    def epoch(self, **metrics):
        """Nothing."""
        return contextlib.nullcontext()


def fails(here, epoch):
    """The second epoch ends in an exception on all ranks, before any collective, and the training with it."""
    if epoch == 2:
        raise LookupError("no more")


def skips(here, epoch):
    """One rank leaves the run; the others wait for it in vain, but not in a collective."""
    if epoch is None and here:
        raise LookupError("the end")


def dies(here, epoch):
    """One rank is killed."""
    if epoch == 2 and here:
        os.kill(os.getpid(), signal.SIGKILL)


def destroys(here, epoch):
    """The group is gone before the run ends."""
    if epoch is None:
        dist.destroy_process_group()


HAPPENS = {function.__name__: function for function in (fails, skips, dies, destroys)}


class Counts:
    """A metric that knows nothing of several processes."""

    def reset(self):
        """Begin anew."""
        self.count = 0

    def update(self, outputs, targets):
        """Count targets."""
        self.count += targets.numel()

    def compute(self):
        """How many there were."""
        return self.count


def measured(kind, rank):
    """Arguments of an epoch: metrics of a kind, for a rank."""
    if not kind:
        return {}
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix, MulticlassF1Score

    grouped = MetricCollection(
        {"f1": MulticlassF1Score(3, average="macro"), "confusion": MulticlassConfusionMatrix(3)}, compute_groups=True
    )
    metrics = {"all": grouped, "auroc": MulticlassAUROC(3), "counts": Counts()}
    if kind == "first" and rank:
        del metrics["auroc"]
    return {"metrics": metrics}


def finalize(model, example):
    """The user's own inference: rank 0 alone makes it, though replicas tell each other a buffer at each forward."""
    with torch.no_grad():
        log_probs = model(example[0][None])[0].log_softmax(-1)
    return {"example_input": "mine", "log_probs": log_probs, "attention_weights": []}


def weights_of(model):
    """A number that tells one training from another."""
    parts = [part.to_local() if hasattr(part, "to_local") else part for part in model.parameters()]
    return sum(part.double().sum().item() for part in parts)


def main():
    """Train as the command line says."""
    options = argparse.ArgumentParser()
    options.add_argument("--parallel", default="plain")
    options.add_argument("--accumulate", default="", choices=["", "reduced", "summed", "gathered"])
    options.add_argument("--evaluates", action="store_true")
    options.add_argument("--divides", action="store_true", help="the optimizer's state over ranks")
    options.add_argument("--dev", default="shared")
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--happens", default="")
    options.add_argument("--metrics", default="")
    options.add_argument("--finalize", action="store_true")
    options.add_argument("--rank", type=int, default=1, help="where it happens")
    args = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Attends()
    if args.parallel != "plain":
        dist.init_process_group("gloo", timeout=timedelta(seconds=args.seconds))
    rank = dist.get_rank() if dist.is_initialized() else 0
    train_set, dev_set = examples(BATCH * STEPS, 1), examples(13, 2)
    wrapped = globals()[args.parallel](model)
    dev_loader = DataLoader(dev_set, batch_size=2)
    if args.dev == "sampled" and dist.is_initialized():
        dev_loader = DataLoader(dev_set, batch_size=2, sampler=DistributedSampler(dev_set))
    elif args.dev == "apart" and dist.is_initialized():
        own = torch.utils.data.Subset(dev_set, range(rank, len(dev_set), dist.get_world_size()))
        dev_loader = DataLoader(own, batch_size=2)
    elif args.dev == "first" and rank:
        dev_loader = None
    elif args.dev == "examples":
        dev_loader = [dev_set[index] for index in range(len(dev_set))]
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        counts = [int((part != -100).sum()) for part in train_set.tensors[1].split(BATCH)]
        here = rank == args.rank
        happens = functools.partial(HAPPENS[args.happens], here) if args.happens in HAPPENS else None
        arguments = wrapped, loader_of(train_set, rank, ranks), dev_loader, counts, args.accumulate
        make_optimizer = torch.optim.Adam
        if args.divides:
            make_optimizer = functools.partial(ZeroRedundancyOptimizer, optimizer_class=torch.optim.Adam)
        arguments += args.evaluates, make_optimizer, happens, measured(args.metrics, rank)
        with contextlib.suppress(LookupError):
            if args.finalize:
                tracked_training(task="ranks", finalize=finalize)(train.__wrapped__)(*arguments)
            elif args.happens == "undecorated" and here:
                train.__wrapped__(*arguments, Bare())
            else:
                train(*arguments)
    ended = time.monotonic() - began
    said = [str(item.message) for item in caught if item.category.__name__ == "TrackmetricsWarning"]
    with open(f"said{rank}.json", "w") as file:
        json.dump({"said": said, "seconds": ended, "weights": weights_of(model), "record": figures(),
                   "clipped": clipped, "told": told}, file)  # fmt: skip
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
