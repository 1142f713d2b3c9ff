"""Plain values: each kind of value has one documented spelling, and whatever has none is refused by name."""

import datetime
import enum
import json
import types
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from any_record import plain_values, texts, texts_with_surrogates
from comparison import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

from trackmetrics.plain import MAX_DEPTH, MAX_DIGITS, NotPlainError, to_plain


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    HIGH = 3


class Text(str):
    __slots__ = ()


class Number(float):
    pass


class Tagged(torch.Tensor):
    """A tensor of a class that isn't torch's."""


Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.1, 0.1),
        ("text", "text"),
        (Text("text"), "text"),
        (Number(0.5), 0.5),
        (-0.0, -0.0),
        (float("nan"), float("nan")),
        (float("-inf"), float("-inf")),
        (Colour.RED, "RED"),
        (Level.HIGH, "HIGH"),
        ((0.9, 0.999), [0.9, 0.999]),
        (Pair(1, "b"), [1, "b"]),
        ({"b", "a"}, ["a", "b"]),
        (frozenset([2, 1]), [1, 2]),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (types.MappingProxyType({"a": (1,)}), {"a": [1]}),
        (Path("data") / "train.txt", str(Path("data") / "train.txt")),
        (datetime.date(2026, 1, 30), "2026-01-30"),
        (datetime.datetime(2026, 1, 30, 22, 8, 22, tzinfo=datetime.timezone.utc), "2026-01-30T22:08:22+00:00"),
        (datetime.time(22, 8), "22:08:00"),
        (torch.float16, "torch.float16"),
        (torch.device("cuda", 1), "cuda:1"),
        (torch.Size([2, 3]), [2, 3]),
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array(2.5), 2.5),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([], dtype=np.float32), []),
        (np.array([{"a": (1,)}, None], dtype=object), [{"a": [1]}, None]),
        (torch.tensor(2.5), 2.5),
        (torch.tensor(3), 3),
        (torch.tensor([True, False]), [True, False]),
        (torch.tensor([[0.5, -1.0]], dtype=torch.bfloat16), [[0.5, -1.0]]),
        (torch.nn.Parameter(torch.tensor([0.5])), [0.5]),
        (torch.tensor([0.5], requires_grad=True) * 2, [1.0]),
        (torch.tensor([0.5]).as_subclass(Tagged), [0.5]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_value_has_its_spelling(value, expected):
    """Numbers, texts, enumerations, paths, dates, containers, arrays and tensors become what the page says."""
    assert_same(to_plain(value), expected)


def test_a_float32_scalar_is_widened_exactly():
    """The number that np.float32(0.1) stands for is 13421773 / 2**27, and that is what the file gets."""
    assert to_plain(np.float32(0.1)) == 13421773 / 2**27
    assert to_plain(torch.tensor(0.1)) == 13421773 / 2**27


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a/b", "a/b"),
        (3, "3"),
        (0.5, "0.5"),
        (True, "True"),
        (Colour.RED, "RED"),
        (np.int64(2), "2"),
        ("\udc80", "\\udc80"),
    ],
)
def test_a_key_becomes_text(key, expected):
    """Keys are text in JSON, so numbers, booleans and enumeration members are written as text."""
    assert to_plain({key: 1}) == {expected: 1}


@pytest.mark.parametrize(
    ("text", "expected"), [("\udc80", "\\udc80"), ("a\ud83dz", "a\\ud83dz"), ("\U0001f600", "\U0001f600")]
)
def test_a_lone_surrogate_becomes_its_escape(text, expected):
    """UTF-8 can't hold half of a surrogate pair, and can hold every whole character."""
    assert to_plain(text) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "a value of type builtins.object"),
        (1j, "a value of type builtins.complex"),
        (b"bytes", "a value of type builtins.bytes"),
        (datetime.timedelta(1), "a value of type datetime.timedelta"),
        (len, "a value of type builtins.builtin_function_or_method"),
        (torch.nn.Linear(1, 1), "a value of type torch.nn.modules.linear.Linear"),
        (torch.Generator(), "a value of type torch._C.Generator"),
        (torch.tensor([1j]), "a value of type builtins.complex"),
        (np.array([object()]), "a value of type builtins.object"),
        ({"a": [1, {2, 3j}]}, "a value of type builtins.complex"),
        ({(1, 2): "a"}, "a key of type tuple"),
        ({None: "a"}, "a key of type NoneType"),
        ({1: "a", "1": "b"}, "two keys that both become '1'"),
        (10**MAX_DIGITS, "an integer of more than 308 digits"),
        (-(10**5000), "an integer of more than 308 digits"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_has_no_plain_form_is_refused_by_name(value, message):
    """The error names the type, never the value's own words."""
    with pytest.raises(NotPlainError) as caught:
        to_plain(value)
    assert str(caught.value) == message


def test_a_tensor_without_data_is_refused():
    """A tensor on the meta device has no numbers to give; the reason is torch's."""
    with pytest.raises(NotPlainError, match=r"^a value of type torch\.Tensor that can't be read \(NotImplementedError"):
        to_plain(torch.empty(2, device="meta"))


def test_a_value_that_fails_when_it_is_read_is_refused():
    """Whatever a stranger's class raises becomes the one error that callers know."""

    class Broken(dict):
        def items(self):
            raise RuntimeError("gone")

    with pytest.raises(NotPlainError, match=r"Broken that can't be read \(RuntimeError\('gone'\)\)$"):
        to_plain(Broken(a=1))


def nested(levels):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_nesting_is_taken_to_its_limit_and_no_further():
    """64 lists in one another are plain; a 65th is refused."""
    assert to_plain(nested(MAX_DEPTH)) == nested(64)
    with pytest.raises(NotPlainError, match=r"^nested deeper than 64 levels, or a cycle$"):
        to_plain(nested(65))


def test_cycles_are_refused():
    """A list or dict that holds itself has no end, alone or through another."""
    own = []
    own.extend([own, own])
    first, second = {}, {}
    first["second"], second["first"] = second, first
    for cycle in (own, first):
        with pytest.raises(NotPlainError, match="or a cycle"):
            to_plain(cycle)


def test_the_users_own_containers_are_not_kept():
    """What a user changes afterwards doesn't change what was taken."""
    betas = [0.9]
    taken = to_plain({"betas": betas})
    betas.append(0.999)
    assert taken == {"betas": [0.9]}


@settings(deadline=None)
@given(plain_values)
def test_plain_values_stay_as_they_are(value):
    """Any nesting of nulls, booleans, numbers, texts, lists and dicts is its own plain form."""
    assert_same(to_plain(value), value)


mixed_values = st.recursive(
    st.one_of(st.none(), st.integers(), st.floats(), texts_with_surrogates, st.dates(), st.binary(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(texts, inner, max_size=3)
    ),
    max_leaves=6,
)


def holds_bytes(value):
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return isinstance(value, bytes) or any(map(holds_bytes, items))


@settings(deadline=None)
@given(mixed_values)
def test_whatever_is_taken_can_be_written_as_utf8_json(value):
    """A value is refused with NotPlainError or has a form that the standard library writes in UTF-8."""
    try:
        plain = to_plain(value)
    except NotPlainError:
        assert holds_bytes(value)  # the one kind among these that has none
        return
    assert json.dumps(plain, ensure_ascii=False).encode("utf-8")
