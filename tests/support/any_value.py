"""Hypothesis strategies: any value that a user may log, of whatever library, with those that have no plain form."""

import dataclasses
import datetime
import enum
import types
import warnings
from collections import OrderedDict, namedtuple
from decimal import Decimal
from pathlib import Path, PureWindowsPath

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

Pair = namedtuple("Pair", "first second")


class Colour(enum.Enum):
    RED = 1
    GREEN = "green"


class Level(enum.IntEnum):
    HIGH = 3


class Name(str, enum.Enum):
    FIRST = "first"


class Parts(enum.Flag):
    LEFT = 1
    RIGHT = 2


class Rights(enum.IntFlag):
    READ = 4
    WRITE = 2


Odd = enum.Enum("Odd", {"\udc80": 1, "\U0001f600": 2})


@dataclasses.dataclass
class Settings:
    rate: float = 0.1


class Failing(dict):
    """A mapping that can't be read."""

    def items(self):
        raise RuntimeError("gone")


def _cycle():
    own = [1]
    own.append(own)
    return own


def _cycle_of_two():
    first, second = {}, {}
    first["second"], second["first"] = second, [first]
    return first


def _array_in_itself():
    array = np.empty(2, dtype=object)
    array[0] = array
    return array


def deep(levels):
    """Lists in one another."""
    value = [float("nan")]
    for _ in range(levels - 1):
        value = [value]
    return value


def _choose(make):
    """One of the values in the list that `make` gives, made anew; not all of them can be shown, as a strategy would."""
    return st.integers(0, len(make()) - 1).map(lambda index: make()[index])


any_text = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=8),
    st.text(st.characters(max_codepoint=0x9F), max_size=6),  # control characters among them
    st.sampled_from(
        ["", "\0", "\u2028\u2029", "\x7f\x1b[31m", "\ud83d", "\ude00\ud83d", "😀👩‍👩‍👧", "é中", "\ufeff", '"\\/']
    )
    | st.sampled_from(["x" * 100_000, "\udc80" * 1000, "null", "NaN"]),
)
numbers = st.one_of(
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.sampled_from(
        [2**63, -(2**63) - 1, 2**64, 10**308 - 1, 10**308, -(10**4000)]  # longer ones can't be shown where a test fails
    ),
    st.floats(),
    st.sampled_from([0.0, -0.0, 5e-324, 1.7976931348623157e308]),
    st.complex_numbers(),
    st.decimals(),
    st.booleans(),
)
dates = st.one_of(
    st.dates(),
    st.datetimes(),
    st.datetimes(timezones=st.timezones() | st.just(datetime.timezone.utc)),
    st.times(),
    st.timedeltas(),
)
members = _choose(
    lambda: [
        *Colour,
        *Level,
        *Name,
        *Odd,
        Parts.LEFT,
        Parts.LEFT | Parts.RIGHT,
        Parts(0),
        Rights.READ,
        Rights(7),
        Rights(9),
    ]
)
paths = _choose(lambda: [Path("a") / "b", Path("\udc80"), PureWindowsPath("c:\\d"), Path("/")])

TORCH_TYPES = sorted({item for item in vars(torch).values() if isinstance(item, torch.dtype)}, key=str)


def tensor_of(dtype):
    """A tensor of any type, empty ones and those that can't even be filled included; None where none can be made."""
    for make in (
        lambda: torch.tensor([0, 1, 2]).to(dtype),
        lambda: torch.tensor(1.5).to(dtype),
        lambda: torch.empty(2, dtype=dtype),
    ):
        try:
            return make()
        except (RuntimeError, TypeError, NotImplementedError):
            continue
    return None


def _ordinary_tensors(draw):
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    special = draw(st.sampled_from([0.0, float("nan"), float("inf"), -float("inf"), 1e30, -0.1]))
    return torch.full(shape, special, requires_grad=draw(st.booleans())).to(dtype)


def special_tensors():
    """Tensors of each type, and of each layout, kind and place that has its own rules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch's, that some of these kinds are new or old
        quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
        special = [
            quantized,
            torch.eye(2).to_sparse(),
            torch.eye(2).to_sparse_csr(),
            torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
            torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged),
            torch.empty(2, device="meta"),
            torch.nn.Parameter(torch.ones(2)),
            torch.tensor([1j]).conj(),
            torch.tensor([1 + 2j]).conj().imag,
            torch.ones(2, requires_grad=True) * 2,
            torch.ones(3, 3).t()[::2],
            torch.ones(1).expand(4),
        ]
        return [*special, *filter(lambda tensor: tensor is not None, map(tensor_of, TORCH_TYPES))]


tensors = st.composite(_ordinary_tensors)() | _choose(special_tensors)


_numpy_types = st.one_of(
    st_numpy.scalar_dtypes(),
    st_numpy.array_dtypes(max_size=2),
    st.sampled_from(["M8[ns]", "M8[D]", "m8[s]", "U3", "S3", "g", "G", ">f4", "<u8"]).map(np.dtype),
)
_of_numpy = st.one_of(
    _numpy_types.flatmap(
        lambda dtype: st_numpy.arrays(dtype, st_numpy.array_shapes(min_dims=0, max_dims=2, min_side=0))
    ),
    _numpy_types.map(lambda dtype: np.zeros(1, dtype)[0]),
    _choose(
        lambda: [
            np.longdouble("1e4000"),
            np.longdouble("-inf"),
            np.longdouble(1) / 3,
            np.zeros(1, "V2"),
            np.datetime64("NaT"),
            np.datetime64("20000-01-01"),
            np.ma.array([1.0, 2.0], mask=[False, True]),
            np.ma.masked,
            np.array([{"a": (1,)}, None, Colour.RED], dtype=object),
            np.array([object()]),
            np.array(["a\udc80"]),
            np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
            np.dtype("f4"),
            np.float32,
        ]
    ),
)
strangers = _choose(
    lambda: [
        b"bytes",
        bytearray(b"a"),
        object(),
        len,
        int,
        Settings(),
        Settings,
        Failing(a=1),
        Decimal("NaN"),
        range(3),
        memoryview(b"a"),
        torch.float8_e5m2,
        torch.device("cuda", 1),
        torch.strided,
        torch.Generator(),
        torch.Size([2]),
        types.SimpleNamespace(a=1),
        Ellipsis,
        NotImplemented,
    ]
)
cycles = _choose(lambda: [_cycle(), _cycle_of_two(), _array_in_itself(), deep(64), deep(65), deep(200)])
leaves = st.one_of(st.none(), any_text, numbers, dates, members, paths, tensors, _of_numpy, strangers, cycles)
odd_keys = st.one_of(any_text, st.integers(-3, 3), st.floats(), st.booleans(), st.none(), members, st.dates(), paths)


def _containers(inner):
    hashable = st.one_of(any_text, st.integers(), st.floats(), members, st.dates())
    return st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.builds(Pair, inner, inner),
        st.sets(hashable, max_size=3),
        st.frozensets(hashable, max_size=3),
        st.dictionaries(odd_keys, inner, max_size=3),
        st.dictionaries(any_text, inner, max_size=2).map(OrderedDict),
        st.dictionaries(any_text, inner, max_size=2).map(types.MappingProxyType),
    )


values = st.recursive(leaves, _containers, max_leaves=6)
"""Any value at all."""
