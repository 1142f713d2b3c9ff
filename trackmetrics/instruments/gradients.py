"""The gradients of one moment, read for their norm: none is changed, and nothing done to one later matters.

Small gradients are copied side by side, so that one reduction takes them all; large ones are reduced where they are.
Of both the norms of their rows are kept; the global norm is the root of the sum of the squares of all of these.
Of a gradient that is sharded over processes this process's shard is read, and its part kept by itself.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch

from ..ranks import world_size

_SMALL = 2**14  # elements up to which copying a gradient costs less than a reduction of its own
_TINY = 2**10  # the same, where there are so many that their copy outgrows a processor's cache
_CACHE = 2**20  # elements
# A CPU adds up one float after the other, which loses a thousandth over ten million. A row of this length stays far
# below a relative error of 1e-6, whatever it holds, and the rows' norms are added up in float64.
_ROW = 2**9

_GRAD = operator.attrgetter("grad")
_REQUIRES = operator.attrgetter("requires_grad")
_DTYPE = operator.attrgetter("dtype")
_Kind = tuple[torch.dtype, torch.device]
_Group_of = tuple[torch.dtype, torch.device, float | None]


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
        """Read the gradients that `parameters` have now; `scale` is a factor in them that is to be taken out.

        What the last reading gave is of no use from then on: its memory is taken for this one.
        """
        grads = list(map(_GRAD, parameters))
        scale = None if scale is None else scale.clone()
        if self._plan is not None and self._plan.keys == list(map(id, parameters)):
            try:
                return self._plan.read(grads, scale)
            except (AttributeError, RuntimeError, TypeError):  # one is None, or sparse, or of other size this time
                pass
        keys = [id(parameter) for parameter, grad in zip(parameters, grads) if grad is not None]
        grads = [grad.detach() for grad in grads if grad is not None]
        self._plan = _Plan(keys, grads)
        return self._plan.read(grads, scale)


class _Shards:
    """Which of some gradients are shards, and by which factor each one's norm is a part of what all ranks have.

    Where several ranks hold the same shard each counts for its part.
    """

    def __init__(self, grads: Sequence[torch.Tensor]) -> None:
        self.factors = [_factor(grad) for grad in grads]
        self.indices = [index for index, factor in enumerate(self.factors) if factor is not None]

    def local(self, grads: list[torch.Tensor]) -> list[torch.Tensor]:
        """The gradients, this process's own part of each."""
        if not self.indices:
            return grads
        grads = list(grads)
        for index in self.indices:
            holder: Any = grads[index]
            grads[index] = holder.to_local()
        return grads


def _factor(grad: Any) -> float | None:
    """None for a gradient that is whole, or has to be added up over its mesh first."""
    placements = getattr(grad, "placements", ())
    if not placements or any(placement.is_partial() for placement in placements):
        return None
    sizes = (grad.device_mesh.size(index) for index, place in enumerate(placements) if not place.is_replicate())
    return math.sqrt(math.prod(sizes) / world_size())


class _Plan:
    """How the gradients of `keys` are read: in groups, reduced by one call, or each by itself."""

    def __init__(self, keys: list[int], grads: list[torch.Tensor]) -> None:
        self._kinds = _kinds_of(grads)
        self._shards = _Shards(grads)
        grads, factors = self._shards.local(grads), self._shards.factors
        plain = [index for index, grad in enumerate(grads) if _is_plain(grad)]
        small = [index for index in plain if grads[index].numel() <= _SMALL]
        if sum(grads[index].numel() for index in small) > _CACHE:
            small = [index for index in small if grads[index].numel() <= _TINY]
        large = set(plain).difference(small)
        # A CPU has no call that reduces large ones both fast and right; each is taken in rows.
        in_rows = [index for index in plain if index in large and _has_rows(grads[index])]
        reduced = [index for index in plain if index in large and grads[index].device.type != "cpu"]
        self.keys = keys
        self.key_set = frozenset(keys)
        self.groups = [_Group(*group, keys, grads, factors) for group in _alike(small, in_rows, grads, factors)]
        self.reduced = [(group, [keys[index] for index in group]) for group, _ in _alike(reduced, [], grads, factors)]
        self.single = sorted(set(range(len(grads))).difference(small, in_rows, reduced))
        self.factors = {key: factor for key, factor in zip(keys, factors) if factor is not None}

    def read(self, grads: list[torch.Tensor], scale: torch.Tensor | None) -> Gradients:
        if _kinds_of(grads) != self._kinds:
            raise TypeError("gradients of another type or size, or with a graph of their own")
        grads = self._shards.local(grads)
        for group in self.groups:
            group.read(grads)
        norms: dict[int, torch.Tensor] = {}
        for index in self.single:
            norms[self.keys[index]] = _norms_of(grads[index])
        for indices, keys in self.reduced:
            own = [grads[index] for index in indices]
            norms.update(zip(keys, torch._foreach_norm(own, 2, dtype=_wide(own[0].dtype, own[0].device))))
        return Gradients(self, norms, scale)


def _kinds_of(grads: list[torch.Tensor]) -> Any:
    """What is to be as it was when a plan was made; gradients that require gradients never are."""
    device = grads[0].device if grads else None
    return device, True in map(_REQUIRES, grads), list(map(_DTYPE, grads)), list(map(torch.Tensor.numel, grads))


def _alike(
    small: list[int], large: list[int], grads: list[torch.Tensor], factors: list[float | None]
) -> list[tuple[list[int], list[int]]]:
    """Those of one type on one device, each; shards by themselves."""
    alike: dict[_Group_of, tuple[list[int], list[int]]] = {}
    for which, indices in enumerate((small, large)):
        for index in indices:
            kind = (grads[index].dtype, grads[index].device, factors[index])
            alike.setdefault(kind, ([], []))[which].append(index)
    return list(alike.values())


def _is_plain(grad: torch.Tensor) -> bool:
    kinds = (torch.Tensor, torch.nn.Parameter)
    return type(grad) in kinds and grad.layout is torch.strided and grad.is_floating_point()


def _has_rows(grad: torch.Tensor) -> bool:
    return grad.device.type == "cpu" and grad.is_contiguous() and grad.numel() % _ROW == 0


class _Group:
    """Gradients of one type on one device: small ones are copied side by side, large ones stay; the norms of all rows.

    The memory for both is taken once: what is new each time would be new to the processor's cache too, or even come
    from the operating system page by page.
    """

    def __init__(
        self,
        small: list[int],
        large: list[int],
        keys: list[int],
        grads: list[torch.Tensor],
        factors: list[float | None],
    ) -> None:
        self.factor = factors[(small or large)[0]]
        own = [grads[index] for index in small]
        kind = grads[(small or large)[0]]
        dtype, device = kind.dtype, kind.device
        self._small = None if len(small) == len(grads) else small
        self._keys = [keys[index] for index in small]
        self._lengths = [grad.numel() for grad in own]
        self._wide = _wide(dtype, device)
        padding = -sum(self._lengths) % _ROW
        self._copy = torch.zeros(sum(self._lengths) + padding, dtype=dtype, device=device)
        parts = self._copy.split([*self._lengths, padding])
        self._places = [part.view(grad.shape) for part, grad in zip(parts, own)]
        rows = [self._copy.numel() // _ROW, *(grads[index].numel() // _ROW for index in large)]
        self._norms = torch.zeros(sum(rows), dtype=self._wide or dtype, device=device)
        self._of_copy, *of_large = self._norms.split(rows)
        self._rows = self._copy.view(-1, _ROW)
        self._large = [(index, keys[index], norms) for index, norms in zip(large, of_large)]

    def read(self, grads: list[torch.Tensor]) -> None:
        if self._places:
            own = grads if self._small is None else [grads[index] for index in self._small]
            torch._foreach_copy_(self._places, own)
            torch.linalg.vector_norm(self._rows, dim=1, dtype=self._wide, out=self._of_copy)
        for index, _, norms in self._large:
            torch.linalg.vector_norm(grads[index].view(-1, _ROW), dim=1, dtype=self._wide, out=norms)

    def norms(self, keys: Collection[int] | None) -> list[torch.Tensor]:
        """The norms of rows of those that `keys` name, or of all."""
        if keys is None:
            return [self._norms.clone()]
        stretches: list[list[int]] = []  # of neighbours
        end = 0
        for key, length in zip(self._keys, self._lengths):
            begin, end = end, end + length
            if key in keys:
                if stretches and stretches[-1][1] == begin:
                    stretches[-1][1] = end
                else:
                    stretches.append([begin, end])
        copied = [_norms_of_rows(self._copy[begin:end], self._wide) for begin, end in stretches]
        return copied + [norms.clone() for _, key, norms in self._large if key in keys]


class Gradients:
    """Gradients as they were when read; `keys` are the identities of their parameters, a set."""

    __slots__ = ("_norms", "_plan", "_scale", "keys")

    def __init__(self, plan: _Plan, norms: dict[int, torch.Tensor], scale: torch.Tensor | None) -> None:
        self.keys = plan.key_set
        self._plan = plan
        self._norms = norms
        self._scale = scale

    def norms(self, keys: Collection[int] | None = None) -> list[torch.Tensor]:
        """Tensors of norms whose squares sum to that of the gradient of `keys`; of all of it without `keys`.

        What is sharded isn't among it.
        """
        norms: list[torch.Tensor] = []
        for group in self._plan.groups:
            if group.factor is None:
                norms += group.norms(keys)
        for key, norm in self._norms.items():
            if key not in self._plan.factors and (keys is None or key in keys):
                norms.append(norm)
        return norms if self._scale is None else [norm / self._scale.to(norm.device) for norm in norms]

    def shards(self, keys: Collection[int] | None = None) -> list[torch.Tensor]:
        """The same of what is sharded: the squares of all processes sum to that of the gradient."""
        factors = self._plan.factors
        if not factors:
            return []
        norms = []
        for group in self._plan.groups:
            if group.factor is not None:
                norms += [norm * group.factor for norm in group.norms(keys)]
        for key, norm in self._norms.items():
            if key in factors and (keys is None or key in keys):
                norms.append(norm * factors[key])
        return norms if self._scale is None else [norm / self._scale.to(norm.device) for norm in norms]


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
