"""Weights, the tokens that they are of, and what follows: heads, examples, windows, and the kind of each map.

Weights of the same tokens are heads of one map; those of other tokens are other examples, or windows.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from .attention_maps import AttentionMap
from .lineage import Origin


@dataclass(frozen=True)
class Record:
    """A map with what tells its kind: where queries and keys come from, and which tokens they are.

    `one_head` says that there is no dimension of heads.
    """

    map: AttentionMap
    query: Origin | None
    key: Origin | None
    rows: frozenset[int]
    columns: frozenset[int]
    one_head: bool


class Places(NamedTuple):
    """Which tokens the weights are of, each in its place: queries and keys, in the weights' own shape."""

    rows: torch.Tensor
    columns: torch.Tensor


class Arranged(NamedTuple):
    """Weights `[batch, heads, query, key]`, and the tokens of their queries and keys."""

    weights: torch.Tensor
    rows: frozenset[int]
    columns: frozenset[int]


def of_heads(origin: Origin | None, heads: int, axis: int | None) -> torch.Tensor | None:
    """The tokens of queries or keys `[batch, heads, token]`; `axis` is that of the heads, if it isn't the second."""
    if origin is None or origin.tokens is None:
        return None
    tokens = origin.tokens[..., 0]
    if axis == -1:
        tokens = tokens.unsqueeze(1).expand(-1, heads, -1)
    elif axis is not None:
        tokens = tokens.transpose(1, axis)
    return tokens.repeat_interleave(heads // tokens.shape[1], 1) if tokens.ndim > 2 else tokens


def spread(rows: torch.Tensor | None, columns: torch.Tensor | None, shape: torch.Size) -> Places | None:
    """The tokens of queries and of keys, in the places of weights of a shape."""
    if rows is None or columns is None:
        return None
    return Places(rows.unsqueeze(-1).expand(shape), columns.unsqueeze(-2).expand(shape))


def arranged_by_tokens(weights: torch.Tensor, places: Places) -> Arranged | None:
    """Weights as `[batch, heads, query, key]`: heads are of the same tokens, examples and windows of others.

    None where tokens stand in no such order.
    """
    *_, queries, keys = weights.shape
    flat = weights.reshape(-1, queries, keys)
    rows = places.rows[..., 0].reshape(-1, queries)
    columns = places.columns[..., 0, :].reshape(-1, keys)
    alone = len(set(rows[0].tolist()))
    if alone < queries:  # heads that were joined with the queries
        if queries % alone or len(set(columns[0].tolist())) < keys:
            return None
        flat, rows = _heads_apart(flat, rows, alone)
        columns = columns.repeat_interleave(len(flat) // len(columns), 0)
    groups: dict[Any, list[int]] = {}
    for index, key in enumerate(zip(map(tuple, rows.tolist()), map(tuple, columns.tolist()))):
        groups.setdefault(key, []).append(index)
    heads = {len(group) for group in groups.values()}
    if len(heads) > 1:
        return None
    arranged = torch.stack([flat[group] for group in groups.values()])
    return Arranged(arranged, frozenset(rows.flatten().tolist()), frozenset(columns.flatten().tolist()))


def _heads_apart(flat: torch.Tensor, rows: torch.Tensor, alone: int) -> tuple[torch.Tensor, torch.Tensor]:
    count, queries, keys = flat.shape
    heads = queries // alone
    if bool((rows[:, :alone] == rows[:, -alone:]).all()):  # head by head
        return flat.reshape(count * heads, alone, keys), rows.reshape(count * heads, alone)
    turned = flat.reshape(count, alone, heads, keys).transpose(1, 2).reshape(count * heads, alone, keys)
    return turned, rows.reshape(count, alone, heads).transpose(1, 2).reshape(count * heads, alone)


def belong_together(one: Record, other: Record) -> bool:
    """Whether two maps are heads, or parts of the queries, of one."""
    if not (one.query and other.query and one.key and other.key and one.rows) or one.map.kind != other.map.kind:
        return False
    sources = [(item.query.sources, item.key.sources) for item in (one, other) if item.query and item.key]
    if sources[0] != sources[1] or one.columns != other.columns or not _common_path(one.map.name, other.map.name):
        return False
    if one.rows.isdisjoint(other.rows):
        return one.map.kind == "self" and one.map.weights.shape[:2] == other.map.weights.shape[:2]
    both = one.map.weights.shape, other.map.weights.shape
    return one.one_head and other.one_head and one.rows == other.rows and both[0] == both[1]


def joined(parts: list[Record]) -> Record:
    """One map of parts that belong together."""
    if len(parts) == 1:
        return parts[0]
    are_heads = parts[0].rows == parts[1].rows
    weights = torch.cat([part.map.weights for part in parts], 1 if are_heads else -2)
    checks = [part.map.check for part in parts if part.map.check is not None]
    path = functools.reduce(_common_path, (part.map.name for part in parts))
    return replace(parts[0], map=replace(parts[0].map, name=path, weights=weights, check=max(checks, default=None)))


def _common_path(one: str, other: str) -> str:
    parts = []
    for left, right in zip(one.split("."), other.split(".")):
        if left != right:
            break
        parts.append(left)
    return ".".join(parts)


def kinds(records: list[Record]) -> list[AttentionMap]:
    """The maps; those of an encoder, which a decoder attends to, and those of parts of the tokens, are told apart."""
    crossing = [record for record in records if record.map.kind == "cross" and record.key and record.query]
    attended = {record.key.stream for record in crossing if record.key}
    attending = {record.query.stream for record in crossing if record.query}
    maps = []
    for record in records:
        item = record.map
        stream = None if record.query is None else record.query.stream
        alone = stream in attended and (stream not in attending or _is_encoders(item.name))
        if item.kind == "self" and any(_are_windows(record, other) for other in records):
            item = replace(item, kind="window")
        maps.append(replace(item, kind="encoder") if item.kind == "self" and alone else item)
    return maps


def _are_windows(one: Record, other: Record) -> bool:
    """Whether two maps are of the same stream at the same place, each of tokens of its own."""
    if one.query is None or other.query is None or other.map.kind != "self":
        return False
    same = one.query.sources == other.query.sources and one.map.square and other.map.square
    own = {row for row in one.rows if row >= 0}  # the model's own tokens, below nought, are in each
    return same and bool(own) and own.isdisjoint(other.rows)


def _is_encoders(name: str) -> bool:
    return "encoder" in name and "decoder" not in name


def named(maps: list[AttentionMap]) -> list[AttentionMap]:
    """Each map with a name of its own."""
    times: Counter[str] = Counter()
    each = []
    for item in maps:
        times[item.name] += 1
        each.append(item if times[item.name] == 1 else replace(item, name=f"{item.name}#{times[item.name]}"))
    return each
