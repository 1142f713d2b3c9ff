"""The gradients of one moment, read for their norm: none is changed, and nothing done to one later matters.

Small gradients are copied side by side, so that one reduction takes them all; of a large one the norms of its rows
are kept. The global norm is the root of the sum of the squares of all of these.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch

_SMALL = 2**14  # elements up to which copying a gradient costs less than a reduction of its own
_TINY = 2**10  # the same, where there are so many that their copy outgrows a processor's cache
_CACHE = 2**20  # elements
# A CPU adds up one float after the other, which loses a thousandth over ten million. A row of this length stays far
# below a relative error of 1e-6, whatever it holds, and the rows' norms are added up in float64.
_ROW = 2**9

_GRAD = operator.attrgetter("grad")
_Kind = tuple[torch.dtype, torch.device]


class GradientReader:
    """Reads the gradients of parameters; how is worked out once, and kept while the same ones come.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> read = GradientReader().read([weight])
    >>> weight.grad.zero_()
    tensor([0., 0.])
    >>> global_norm(read.norms())
    tensor(5., dtype=torch.float64)
    """

    def __init__(self) -> None:
        self._plan: _Plan | None = None

    def read(self, parameters: Sequence[torch.Tensor], scale: torch.Tensor | None = None) -> Gradients:
        """Read the gradients that `parameters` have now; `scale` is a factor in them that is to be taken out."""
        grads = list(map(_GRAD, parameters))
        scale = None if scale is None else scale.clone()
        if self._plan is not None and self._plan.keys == list(map(id, parameters)):
            with contextlib.suppress(AttributeError, RuntimeError, TypeError):  # one is None, or sparse this time
                return Gradients(self._plan, grads, scale)
        keys = [id(parameter) for parameter, grad in zip(parameters, grads) if grad is not None]
        grads = [grad for grad in grads if grad is not None]
        self._plan = _Plan.of(keys, grads)
        return Gradients(self._plan, grads, scale)


@dataclass(frozen=True)
class _Group:
    """Gradients of one type on one device that are read together: where they stand in the plan, and their lengths."""

    indices: list[int]
    keys: list[int]
    lengths: list[int]
    padding: torch.Tensor  # zeros that make their copy a whole number of rows
    wide: torch.dtype | None


@dataclass(frozen=True)
class _Plan:
    """How the gradients of `keys` are read: copied side by side, reduced by one call, or each by itself."""

    keys: list[int]
    key_set: frozenset[int]
    copied: list[_Group]
    reduced: list[_Group]
    single: list[int]

    @staticmethod
    def of(keys: list[int], grads: list[torch.Tensor]) -> _Plan:
        plain = [index for index, grad in enumerate(grads) if _is_plain(grad)]
        small = [index for index in plain if grads[index].numel() <= _SMALL]
        if sum(grads[index].numel() for index in small) > _CACHE:
            small = [index for index in small if grads[index].numel() <= _TINY]
        # A CPU has no call that reduces large ones both fast and right; each is taken in rows.
        reduced = [index for index in plain if index not in set(small) and grads[index].device.type != "cpu"]
        single = sorted(set(range(len(grads))) - set(small) - set(reduced))
        copied, reduced_ = _groups(small, keys, grads), _groups(reduced, keys, grads)
        return _Plan(keys, frozenset(keys), copied, reduced_, single)


def _groups(indices: list[int], keys: list[int], grads: list[torch.Tensor]) -> list[_Group]:
    alike: dict[_Kind, list[int]] = {}
    for index in indices:
        alike.setdefault((grads[index].dtype, grads[index].device), []).append(index)
    groups = []
    for (dtype, device), members in alike.items():
        lengths = [grads[index].numel() for index in members]
        padding = torch.zeros(-sum(lengths) % _ROW, dtype=dtype, device=device)
        groups.append(_Group(members, [keys[index] for index in members], lengths, padding, _wide(dtype, device)))
    return groups


def _is_plain(grad: torch.Tensor) -> bool:
    kinds = (torch.Tensor, torch.nn.Parameter)
    return type(grad) in kinds and grad.layout is torch.strided and grad.is_floating_point()


class Gradients:
    """Gradients as they were when read; `keys` are the identities of their parameters, a set."""

    __slots__ = ("_copies", "_norms", "_scale", "keys")

    def __init__(self, plan: _Plan, grads: list[torch.Tensor], scale: torch.Tensor | None) -> None:
        self.keys = plan.key_set
        self._scale = scale
        self._copies = [_Copy(group, grads) for group in plan.copied]
        self._norms: dict[int, torch.Tensor] = {}
        for index in plan.single:
            self._norms[plan.keys[index]] = _norms_of(grads[index].detach())
        for group in plan.reduced:
            norms = torch._foreach_norm([grads[index].detach() for index in group.indices], 2, dtype=group.wide)
            self._norms.update(zip(group.keys, norms))

    def norms(self, keys: Collection[int] | None = None) -> list[torch.Tensor]:
        """Tensors of norms whose squares sum to that of the gradient of `keys`; of all of it without `keys`."""
        if keys is None:
            norms = [copy.rows for copy in self._copies]
            norms += self._norms.values()
        else:
            norms = [norm for copy in self._copies for norm in copy.norms(keys)]
            norms += [norm for key, norm in self._norms.items() if key in keys]
        return norms if self._scale is None else [norm / self._scale.to(norm.device) for norm in norms]


class _Copy:
    """Gradients of one group side by side, and the norms of the rows that they make; read while they are at hand."""

    __slots__ = ("group", "rows", "values")

    def __init__(self, group: _Group, grads: list[torch.Tensor]) -> None:
        own = grads if len(group.indices) == len(grads) else [grads[index] for index in group.indices]
        values: torch.Tensor = torch._C._nn.flatten_dense_tensors([*own, group.padding])
        self.group = group
        self.values = values.detach() if values.requires_grad else values
        self.rows = _norms_of_rows(self.values, group.wide)

    def norms(self, keys: Collection[int]) -> list[torch.Tensor]:
        """The norms of those that `keys` name: of each stretch of neighbours."""
        stretches: list[list[int]] = []
        end = 0
        for key, length in zip(self.group.keys, self.group.lengths):
            begin, end = end, end + length
            if key in keys:
                if stretches and stretches[-1][1] == begin:
                    stretches[-1][1] = end
                else:
                    stretches.append([begin, end])
        return [_norms_of_rows(self.values[begin:end], self.group.wide) for begin, end in stretches]


def global_norm(norms: Iterable[torch.Tensor]) -> torch.Tensor:
    """The root of the sum of the squares, as a tensor without dimensions."""
    alike: dict[_Kind, list[torch.Tensor]] = {}
    for norm in norms:
        alike.setdefault((norm.dtype, norm.device), []).append(norm.reshape(-1))
    vectors = [torch.cat(kind) for kind in alike.values()]
    device = vectors[0].device
    total: torch.Tensor = torch.linalg.vector_norm(torch.cat([vector.to(device, widest(device)) for vector in vectors]))
    return total


def widest(device: torch.device) -> torch.dtype:
    """The widest type of numbers that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def _wide(dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    """The type in which squares are summed: float32 for float16; bfloat16's squares overflow even that."""
    if dtype is torch.bfloat16:
        return widest(device)
    return torch.float32 if dtype is torch.float16 else None


def _norms_of_rows(values: torch.Tensor, wide: torch.dtype | None) -> torch.Tensor:
    """The norm of each row of a vector that is cut into rows; the last one may be short."""
    whole = values.numel() // _ROW * _ROW
    if whole == values.numel():
        rows: torch.Tensor = torch.linalg.vector_norm(values.view(-1, _ROW), dim=1, dtype=wide)
        return rows
    rest = torch.linalg.vector_norm(values[whole:], dtype=wide).reshape(1)
    return torch.cat((_norms_of_rows(values[:whole], wide), rest))


def _norms_of(grad: torch.Tensor) -> torch.Tensor:
    """The norms that make up one gradient's; a sparse one's repeated indices are added up first."""
    if grad.is_sparse:
        grad = grad.coalesce().values()
    elif grad.layout is not torch.strided:
        grad = grad.values()
    wide = _wide(grad.dtype, grad.device)
    if type(grad) not in (torch.Tensor, torch.nn.Parameter):
        norm: torch.Tensor = torch.linalg.vector_norm(grad, dtype=wide)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # a shard's: summed over its mesh
    if grad.is_complex():
        grad = torch.view_as_real(grad.resolve_conj())
    return _norms_of_rows(_in_memory_order(grad).reshape(-1), wide)


def _in_memory_order(grad: torch.Tensor) -> torch.Tensor:
    """The gradient with its dimensions in the order in which they lie in memory: taken in a row without a copy."""
    if grad.is_contiguous():
        return grad
    return grad.permute(sorted(range(grad.ndim), key=grad.stride, reverse=True))
