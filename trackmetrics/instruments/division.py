"""How the ranks of a distributed training evaluate a set together: each example counts once."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .data import ExamplesSource, LoaderSource, Source, UnreadableError, drawn, open_source, take_apart, tensors_in
from .discovery import unwrapped
from .figures import add
from .fully_sharded import is_fully_sharded, sharded
from .lent_buffers import differing
from .undisturbed import undisturbed

_NO_SET = "none"


class Division(NamedTuple):
    """Which batches a rank takes, every one of `ranks`, from its own on.

    Each takes as many as the one that has most, since a forward may need all: `most` is how many batches that one's set
    has, or examples where it holds single ones. A rank that does not `count` runs the model for the others alone.
    """

    rank: int = 0
    ranks: int = 1
    most: int = 0
    counts: bool = True


WHOLE = Division()


class Plan(NamedTuple):
    """What the ranks agreed on: which of the sets, and how; or why there is none.

    `lent` are the numbers of the buffers of the model that rank 0 lends to the others.
    """

    chosen: int = 0
    how: str = ""
    targets: int = 0
    most: int = 0
    why: str | None = None
    lent: Sequence[int] = ()

    def division(self, rank: int, ranks: int) -> Division | None:
        """What a rank has to do; None for nothing."""
        if self.how == "alone":
            return WHOLE if rank == 0 else None
        if self.how in ("all", "each"):
            return Division(counts=rank == 0 or self.how == "each")
        return Division(most=self.most) if self.how == "apart" else Division(rank, ranks, self.most)


def offer_of_set(data: Any) -> dict[str, Any]:
    """What a rank says of a set: a mark that tells one set from another, and its length where known; or the fault."""
    try:
        with undisturbed(None, data):
            source = open_source(data)
            return {"mark": _mark(source), "length": _length(source)}
    except Exception as error:
        return {"fault": str(error) if isinstance(error, UnreadableError) else f"{type(error).__name__}: {error}"}


def offer_of_any(data: Any) -> dict[str, Any]:
    """What a rank says of a set that a function of the user's reads: a mark, the same for all that can't be read.

    The function sees what the loader gives on this rank, which a sampler may have made a part of the set.
    """
    mark = _NO_SET
    if data is not None:
        mark = offer_of_set(data).get("mark", "")
        with contextlib.suppress(Exception), undisturbed(None, data):
            mark += hashlib.sha256(repr(drawn(data)).encode()).hexdigest()
    return {"mark": mark, "length": None}


def _length(source: Source) -> int | None:
    """How many batches there are, or single examples; None where that isn't known beforehand."""
    if isinstance(source, LoaderSource):
        return None if source.indices is None else source.number_of_batches
    return len(source.examples) if isinstance(source, ExamplesSource) and source.indexed else None


def _mark(source: Source) -> str:
    """Of the first and the last example, where it can be asked for, and of how many there are."""
    if isinstance(source, LoaderSource):
        held: Any = source.loader.dataset
        indices = source.indices if source.indices is not None else ()
        examples = [held[index] for index in (indices[0], indices[-1])] if len(indices) else []
        if source.indices is None:  # a stream, of which each rank may have its own
            examples = list(itertools.islice(held, 1))
        said: list[Any] = [len(indices), len(source.loader)]
    elif isinstance(source, ExamplesSource):
        examples = [source.examples[index] for index in (0, -1)] if source.indexed else [source.first()]
        said = [len(source.examples)]
    else:
        examples, said = [source.first()[0]], [len(source.loader)]
    digest = hashlib.sha256(repr(said).encode())
    for example in examples:
        digest.update(_bytes_of(example))
    return digest.hexdigest()


def _bytes_of(example: Any) -> bytes:
    try:
        parts = take_apart(example)
        tensors = [*tensors_in(parts.inputs), *tensors_in(parts.target)]
    except UnreadableError:
        tensors = list(tensors_in(example))
    text = repr(example) if isinstance(example, str) or not tensors else ""
    return text.encode() + b"".join(tensor.detach().cpu().double().numpy().tobytes() for tensor in tensors)


def agree(offers: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Make a plan of what the ranks offer: `why` there is an obstacle, `sets`, `buffers`, and `targets` a batch.

    Where all have one set it is divided; where each has another one, each evaluates its own. Where only rank 0 has it,
    it evaluates alone. A function of the user's is `called` on all. A collective model, of which each rank holds a
    shard, needs all ranks at each forward; where they compute `one_batch` together, all of them with the same one.
    """
    first = offers[0]
    if first["why"] is not None:
        return [*Plan(why=first["why"])]
    readable = [index for index, item in enumerate(first["sets"]) if "fault" not in item]
    if not readable:
        faults = (f"{item['name']!r} can't be evaluated ({item['fault']})" for item in first["sets"])
        return [*Plan(why="; ".join(faults))]
    chosen = readable[0]
    own = [offer["sets"][chosen] if offer["why"] is None and len(offer["sets"]) > chosen else {} for offer in offers]
    marks = [item.get("mark") for item in own]
    lengths = [item.get("length") for item in own]
    together = len(offers) > 1 and any(offer["collective"] for offer in offers)
    most = 0 if None in lengths or len(offers) == 1 else max(lengths)
    how = "divided" if len(set(marks)) == 1 else "apart"
    why = None
    if None in marks:
        how = "alone"
        why = f"the model needs every rank, and rank {marks.index(None)} has no such set" if together else None
    elif first["called"] and len(offers) > 1:
        without = [mark == _NO_SET for mark in marks]
        parts = "alone" if any(without) and not without[0] else "each"
        how = "all" if len(set(marks)) == 1 else parts
    elif len(offers) > 1 and any(offer["one_batch"] for offer in offers):
        how = "all"
        why = "the ranks compute each batch together, and their sets differ" if len(set(marks)) > 1 else None
    elif together and 0 in lengths:
        why = f"the model needs every rank, and the set of rank {lengths.index(0)} is empty"
    elif together and not most:
        how = "all"
        why = "the model needs every rank, and the ranks have streams that differ" if len(set(marks)) > 1 else None
    shared = why is None and how in ("divided", "apart")
    lent = differing([offer["buffers"] for offer in offers if offer["why"] is None]) if shared else []
    return [*Plan(chosen, how, first["targets"], most, why, lent)]


def total(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up what the ranks counted: `share`, or the `fault` that one met."""
    for rank, outcome in enumerate(outcomes):
        if "fault" in outcome:
            fault = outcome["fault"]
            return {"fault": fault if len(outcomes) == 1 or rank == 0 else f"on rank {rank} {fault}"}
    share = add([outcome["share"] for outcome in outcomes])
    return {"mean": share.mean} if share.weight else {"fault": "it has no target that counts"}


def agreed(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give the value that a function of the user's had on each rank, of a set of its own; or that they aren't one."""
    values = [outcome["share"][0] for outcome in outcomes if "share" in outcome]
    if len(values) == len(outcomes) and not all(math.isclose(value, values[0], rel_tol=1e-6) for value in values):
        return {"fault": "`evaluate=` returned another value on each rank, which has a set of its own"}
    return total(outcomes)


def collective(model: torch.nn.Module | None) -> bool:
    """Whether a forward of the model takes all ranks: each holds a shard of it."""
    if model is None:
        return False
    kind: Any = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    if kind is not None and any(isinstance(module, kind) for module in model.modules()):
        return True
    # DTensor's attribute, and the one by which DeepSpeed marks what it has sharded.
    return any(hasattr(shard, "device_mesh") or hasattr(shard, "ds_id") for shard in sharded(model.parameters()))


def computes_together(model: torch.nn.Module | None) -> bool:
    """Whether the ranks compute one batch together, each with a part of the weights: tensor parallelism.

    Only FSDP gathers the parts for a forward, so that each rank can have a batch of its own.
    """
    if model is None:
        return False
    split: list[Any] = [each for each in sharded(model.parameters()) if hasattr(each, "device_mesh")]
    if not split:
        return False
    gathers = any(map(is_fully_sharded, model.modules()))
    return not gathers or any(sum(placement.is_shard() for placement in each.placements) > 1 for each in split)


def without_replication(model: torch.nn.Module) -> torch.nn.Module:
    """The model that a replica holds: the replica's own forward talks to the others about buffers."""
    inner: Any = model
    while isinstance(inner, torch.nn.Module):
        if isinstance(inner, torch.nn.parallel.DistributedDataParallel):
            return unwrapped(model)
        inner = getattr(inner, "_orig_mod", None)
    return model
