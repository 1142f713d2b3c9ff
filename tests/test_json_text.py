"""The file's text: strict, readable, exact to the last bit, and hostile text is refused, not obeyed."""

import math
import time
from operator import is_

import numpy as np
import pytest
from any_record import arrays, keys, plain_dicts, plain_values
from comparison import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from strict_json import strict_loads

from trackmetrics import json_text
from trackmetrics.errors import MetricsFileError
from trackmetrics.json_text import JsonText, decode, encode
from trackmetrics.non_finite import non_finite, restore_non_finite
from trackmetrics.plain import Growing

INF, NAN = math.inf, math.nan


def digits(decimal):
    """How many significant digits a decimal has."""
    return len(decimal.lower().partition("e")[0].replace("-", "").replace(".", "").strip("0"))


def written(array):
    """The decimals that stand in the file for a vector of numbers."""
    return strict_loads(encode({"row": array}), parse_float=str)["row"]


# How it looks


def test_the_layout_is_for_people():
    """Objects are indented, a list of short things stays on its line, a matrix has a row a line, the last line ends."""
    matrix = np.array([[0.5, -1.25], [2.0, 0.0]], dtype=np.float32)
    plain = {
        "name": 'a "quoted" é',
        "nothing": {},
        "few": {"a": 1, "b": [1, 2.5, None, True]},
        "many": {f"parameter_{index}": [index] for index in range(8)},
        "long": list(range(60)),
        "matrices": np.stack([matrix, -matrix]),
    }
    assert encode(plain).decode() == (
        "{\n"
        '  "name": "a \\"quoted\\" é",\n'
        '  "nothing": {},\n'
        '  "few": {"a": 1, "b": [1, 2.5, null, true]},\n'
        '  "many": {\n' + ",\n".join(f'    "parameter_{index}": [{index}]' for index in range(8)) + "\n  },\n"
        f'  "long": [{", ".join(map(str, range(60)))}],\n'
        '  "matrices": [\n'
        "    [\n      [0.5,-1.25],\n      [2.0,0.0]\n    ],\n"
        "    [\n      [-0.5,1.25],\n      [-2.0,-0.0]\n    ]\n"
        "  ]\n"
        "}\n"
    )


def test_a_flat_object_takes_one_line_however_long():
    """An epoch with many metrics stands on one line."""
    epoch = {f"metric_{index}": index / 7 for index in range(40)}
    lines = encode({"epochs": [epoch, epoch]}).decode().splitlines()
    assert [line.count("metric_39") for line in lines] == [0, 0, 1, 1, 0, 0]


# Numbers


@pytest.mark.parametrize(
    ("number", "decimal"),
    [(0.1, "0.1"), (1 / 3, "0.33333334"), (16777216, "16777216.0"), (1e-45, "1e-45"), (3.4028235e38, "3.4028235e38")],
)
def test_float32_takes_its_own_shortest_decimal(number, decimal):
    """0.1 in float32 is written 0.1, not 0.10000000149011612."""
    assert float(written(np.array([number], dtype=np.float32))[0]) == float(decimal)
    assert digits(written(np.array([number], dtype=np.float32))[0]) == digits(decimal)


def test_a_float32_whose_shortest_decimal_readers_get_wrong_is_written_with_more_digits():
    """7.038531e-26 names 0x1.5c87fap-84 among float32 numbers; read as a double and narrowed it is the neighbour."""
    number = np.float32(float.fromhex("0x1.5c87fap-84"))
    assert np.float32(float("7.038531e-26")) != number  # the trap
    (decimal,) = written(np.array([number]))
    assert np.float32(float(decimal)) == number


@settings(deadline=None, max_examples=200)
@given(arrays(2), st.data())
def test_every_float_comes_back_bit_for_bit_from_the_fewest_digits(array, data):
    """The decimals in the file, read by another parser, are the same floats, and no shorter decimals would be."""
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    for row in array:
        for decimal, number in zip(written(row), row):
            if not np.isfinite(number):
                assert decimal is None
                continue
            assert_same(array.dtype.type(float(decimal)), number)
            assert digits(decimal) == digits(np.format_float_scientific(number, unique=True))


@settings(deadline=None)
@given(st.integers(-(10**308) + 1, 10**308 - 1) | st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63) - 1]))
def test_integers_of_any_length_stay_integers(number):
    """JSON has no largest integer: a 128-bit seed is written and read back exactly, beside a float."""
    text = encode({"seed": number, "rate": 0.1})
    assert_same(strict_loads(text), {"seed": number, "rate": 0.1})
    assert_same(decode(text), {"seed": number, "rate": 0.1})


@settings(deadline=None)
@given(plain_dicts)
def test_any_plain_data_is_strict_json(plain):
    """Any texts, numbers and nesting: a strict parser reads the same, null for what is not finite."""
    assert_same(strict_loads(encode(plain)), without_non_finite(plain))
    assert_same(decode(encode(plain)), without_non_finite(plain))


def without_non_finite(plain):
    if isinstance(plain, dict):
        return {key: without_non_finite(item) for key, item in plain.items()}
    if isinstance(plain, list):
        return [without_non_finite(item) for item in plain]
    return None if plain in (INF, -INF) or plain != plain else plain


def test_the_strict_parser_of_these_tests_is_strict():
    """NaN, Infinity, a key that comes twice and half a surrogate pair's bytes are refused by it."""
    for text in (b"[NaN]", b"[-Infinity]", b'{"a": 1, "a": 1}', b'"\xed\xb2\x80"', b"[1,]"):
        with pytest.raises(ValueError):
            strict_loads(text)


def test_the_comparison_of_these_tests_can_fail():
    """Types, signs of zero, order of keys, widths and shapes all count."""
    pairs = [
        (1, 1.0),
        (True, 1),
        (0.0, -0.0),
        (NAN, 0.0),
        (0.0, NAN),
        ([1], (1,)),
        ([1], [1, 2]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (np.zeros(2, np.float32), np.zeros(2)),
        (np.zeros((1, 2)), np.zeros((2, 1))),
        (np.array([0.0]), np.array([-0.0])),
        (np.array([1.0]), np.array([NAN])),
    ]
    for found, expected in pairs:
        with pytest.raises(AssertionError):
            assert_same(found, expected)


# Text that isn't JSON


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"  \n",
        b"{",
        b'{"a": NaN}',
        b"[1,]",
        b"'a'",
        b"\xff\xfe",
        b'"\xed\xb2\x80"',
        b'"\\ud800"',
        b"{} {}",
        b"1e400",
    ],
)
def test_what_is_no_strict_json_is_refused(text):
    """Cut, lax or wrongly encoded text gets the one error, with the place in the text."""
    with pytest.raises(MetricsFileError, match=r"^not valid JSON: .*line \d+ column \d+"):
        decode(text)


@pytest.mark.parametrize("depth", [500, 990, 1020, 100_000])
@pytest.mark.parametrize("middle", ["1", "1" * 30])
def test_deep_nesting_is_read_or_refused_but_never_crashes(depth, middle):
    """However deep brackets nest, the outcome is a value or MetricsFileError."""
    fault = refusal(decode, b"[" * depth + middle.encode() + b"]" * depth)
    assert fault is None or (depth > 900 and fault.startswith("not valid JSON: "))


def refusal(function, *arguments):
    """The message of the MetricsFileError that a call raises, None where it raises nothing."""
    try:
        function(*arguments)
    except MetricsFileError as error:
        return str(error)
    return None


# Lists that grow


def noted(text, plain):
    """What a text says about numbers that JSON has no word for."""
    return strict_loads(b"".join(text.pieces({"non_finite": text.non_finite(plain)})))["non_finite"]


class Made:
    """Makes an epoch of a number, and counts how often."""

    def __init__(self):
        self.count = 0

    def __call__(self, number):
        self.count += 1
        return {"epoch": number, "losses": [number, NAN], "nested": {"a/b": -INF}}


def test_what_was_made_of_a_growing_list_is_not_made_again():
    """Each item is made plain once, however often the list is written; the text is that of a list written once."""
    text, made = JsonText(), Made()
    numbers = [float(number) for number in range(5)]
    for length in range(6):
        plain = {"epochs": Growing(numbers[:length], made), "other": length, "in": {"a/b": Growing(numbers, made)}}
        whole = {**plain, "epochs": [Made()(number) for number in numbers[:length]]}
        whole["in"] = {"a/b": [Made()(number) for number in numbers]}
        assert noted(text, plain) == non_finite(whole)
        assert strict_loads(b"".join(text.pieces(plain))) == without_non_finite(whole)
        assert noted(text, plain) == non_finite(whole)
    assert made.count == 5 + 5


def test_what_was_noted_of_a_growing_list_is_not_noted_again(monkeypatch):
    """Of a thousand diverged epochs, the place of each NaN is looked for and made text once."""
    asked = []
    monkeypatch.setattr(json_text, "non_finite", lambda *value: asked.append(value) or non_finite(*value))
    text = JsonText()
    losses = [NAN] * 50
    for length in range(51):
        plain = {"epochs": Growing(losses[:length], lambda loss: {"loss": loss})}
        noted(text, plain)
        assert len(asked) == length
    kept = text.non_finite(plain).texts
    assert len(kept) == 50
    assert all(map(is_, kept, text.non_finite(plain).texts))


def test_notes_stand_on_one_line_where_they_fit_and_on_one_each_where_not():
    """As members of any object do."""
    text = JsonText()
    few, many = ({"epochs": Growing([NAN] * count, lambda loss: {"loss": loss})} for count in (2, 4))
    assert b"".join(text.pieces({"of": text.non_finite(few)})).decode() == (
        '{\n  "of": {"/epochs/0/loss": "NaN", "/epochs/1/loss": "NaN"}\n}\n'
    )
    assert b"".join(text.pieces({"of": text.non_finite(many)})).decode() == (
        '{\n  "of": {\n'
        '    "/epochs/0/loss": "NaN",\n    "/epochs/1/loss": "NaN",\n'
        '    "/epochs/2/loss": "NaN",\n    "/epochs/3/loss": "NaN"\n'
        "  }\n}\n"
    )
    assert not text.non_finite({"epochs": Growing([1.0], float)})


def test_an_item_of_a_growing_list_stands_on_one_line():
    """However long and however deep."""
    lines = encode({"a": {"epochs": Growing([1.0, 2.0], Made())}}).decode().splitlines()
    assert lines == [
        "{",
        '  "a": {',
        '    "epochs": [',
        '      {"epoch": 1.0, "losses": [1.0, null], "nested": {"a/b": null}},',
        '      {"epoch": 2.0, "losses": [2.0, null], "nested": {"a/b": null}}',
        "    ]",
        "  }",
        "}",
    ]
    assert encode({"epochs": Growing([], Made())}) == b'{\n  "epochs": []\n}\n'


@pytest.mark.parametrize(
    "change", [lambda old: old[:1], lambda old: [*old[:1], 9.0], lambda old: [9.0, *old[1:]], list]
)
def test_a_list_that_did_not_grow_is_made_anew(change):
    """Shorter, or with another item in an item's place: nothing of what stood there before is left."""
    text, old = JsonText(), [0.5, 1.5]
    for items in (old, change(old), old):
        plain = {"epochs": Growing(items, Made())}
        assert strict_loads(b"".join(text.pieces(plain))) == without_non_finite({"epochs": list(map(Made(), items))})
        assert noted(text, plain) == non_finite({"epochs": list(map(Made(), items))})


# Numbers that JSON has no word for


def test_a_list_of_numbers_has_one_entry():
    """A thousand NaN in a logged list are one entry; a list that holds lists has one for each of these."""
    plain = {"a": [NAN, NAN, 1.0, None, -INF], "b": [[INF], [1.0, NAN], []], "c": [1.0, {"d": NAN}]}
    entries = {
        "/a": {"NaN": [[0, 2]], "-Infinity": [[4, 1]]},
        "/b/0": "Infinity",
        "/b/1": "NaN",
        "/c/1/d": "NaN",
    }
    assert non_finite(plain) == entries
    read = strict_loads(encode(plain))
    restore_non_finite(read, entries)
    assert_same(read, plain)


def test_non_finite_scalars_are_named_by_pointer():
    """Each one's place is a JSON pointer, '~' and '/' in keys escaped as RFC 6901 says."""
    plain = {"a": NAN, "b": [1.0, INF, {"c/d": -INF}], "~": {"~1": NAN}, "": INF, "fine": 1.0}
    assert non_finite(plain) == {
        "/a": "NaN",
        "/b/1": "Infinity",
        "/b/2/c~1d": "-Infinity",
        "/~0/~01": "NaN",
        "/": "Infinity",
    }


def test_an_array_has_one_entry_of_runs_over_its_flat_order():
    """A causal mask's upper triangle is a few runs, not thousands of pointers; runs go on over the ends of rows."""
    array = np.array([[0.0, -INF, -INF], [-INF, 0.0, NAN], [INF, 1.0, NAN]])
    assert non_finite({"log_probs": array}) == {
        "/log_probs": {"NaN": [[5, 1], [8, 1]], "Infinity": [[6, 1]], "-Infinity": [[1, 3]]}
    }
    assert non_finite({"log_probs": np.zeros((2, 2))}) == {}


def test_an_array_with_one_kind_of_them_has_its_name_alone():
    """A mask's infinities are each null of the array, wherever they stand; so in a list, unless it holds a null."""
    masked = np.array([[0.0, -INF, 1.0], [-INF, 0.0, -INF]])
    assert non_finite({"a": masked, "b": [NAN, 1], "c": [NAN, None], "d": [None], "e": [1]}) == {
        "/a": "-Infinity",
        "/b": "NaN",
        "/c": {"NaN": [[0, 1]]},
    }


def test_many_runs_are_the_same_as_few():
    """Runs in thousands, over the ends of rows too, are those that counting them one by one gives, on one line."""
    array = np.random.default_rng(0).choice([0.0, NAN, INF, -INF], size=(50, 60))
    array[10:15] = NAN
    expected = {}
    for index, number in enumerate(array.ravel().tolist()):
        if not math.isfinite(number):
            runs = expected.setdefault(str(number).replace("nan", "NaN").replace("inf", "Infinity"), [])
            if runs and sum(runs[-1]) == index:
                runs[-1][1] += 1
            else:
                runs.append([index, 1])
    text = JsonText()
    lines = b"".join(text.pieces({"non_finite": text.non_finite({"a": array})})).splitlines()
    assert len(lines) == 1 + 1 + 1 + 1 + 1
    entries = strict_loads(b"".join(lines))["non_finite"]
    assert entries == {"/a": expected}
    read = strict_loads(encode({"a": array}))
    restore_non_finite(read, entries)
    assert_same(np.array(read["a"]), array)


def test_pointers_are_read_as_rfc_6901_says():
    """'~1' is '/', '~0' is '~', and '~01' is '~1': the examples of the standard, each put back in its place."""
    plain = {"a/b": None, "m~n": None, "~1": [1.0, None], "": None}
    restore_non_finite(plain, {"/a~1b": "Infinity", "/m~0n": "-Infinity", "/~01/1": "Infinity", "/": "-Infinity"})
    assert plain == {"a/b": INF, "m~n": -INF, "~1": [1.0, INF], "": -INF}


@settings(deadline=None)
@given(st.dictionaries(keys, plain_values, max_size=5))
def test_restoring_gives_every_non_finite_value_back(plain):
    """Written, read and restored, any plain data is what it was, whatever its keys."""
    read = strict_loads(encode(plain))
    restore_non_finite(read, non_finite(plain))
    assert_same(read, plain)


@settings(deadline=None)
@given(st.integers(2, 3).flatmap(arrays))
def test_restoring_gives_an_arrays_non_finite_values_back(array):
    """Of two or three dimensions, any mixture of NaN and infinities among the numbers comes back in its place."""
    if array.size == 0:
        return
    read = strict_loads(encode({"a": array.astype(np.float64)}))
    restore_non_finite(read, non_finite({"a": array}))
    assert_same(np.array(read["a"], dtype=np.float64), array.astype(np.float64))


@pytest.mark.parametrize(
    ("pointer", "entry"),
    [
        ("/a", "NaN"),  # a number stands there
        ("/missing", "NaN"),
        ("/list/2", "NaN"),
        ("/list/-1", "NaN"),
        ("/list/01", "NaN"),
        ("/list/x", "NaN"),
        ("/list/1/0", "NaN"),
        ("list/1", "NaN"),
        ("x/nothing", "NaN"),
        ("", "NaN"),
        ("/", "NaN"),
        ("/list/1", "nan"),
        ("/list/1", None),
        ("/list/1", 5),
        ("/rows", 5),
        ("/rows", ["NaN"]),
        ("/rows", "nan"),
        ("/ragged", "NaN"),
        ("/empty", "NaN"),
        ("/numbers", "NaN"),  # no null stands in it
        ("/text", "NaN"),
        ("/~", "NaN"),  # '~' is '~0' in a pointer
        ("/~2", "NaN"),
        ("/rows", {"nan": [[0, 1]]}),
        ("/rows", {"NaN": 1}),
        ("/rows", {"NaN": [[0]]}),
        ("/rows", {"NaN": [["0", 1]]}),
        ("/rows", {"NaN": [[0.0, 1]]}),
        ("/rows", {"NaN": [[-1, 1]]}),
        ("/rows", {"NaN": [[3, 2]]}),
        ("/rows", {"NaN": [[0, -1]]}),
        ("/rows", {"NaN": [[1, 1]]}),  # a number stands there
        ("/rows", {"NaN": [[0, 1], [0, 1]]}),
        ("/ragged", {"NaN": [[0, 1]]}),
        ("/empty", {"NaN": [[0, 1]]}),
        ("/a", {"NaN": [[0, 1]]}),
        ("/text", {"NaN": [[0, 1]]}),
    ],
)
def test_an_entry_that_fits_no_null_is_refused(pointer, entry):
    """An entry that points nowhere, or at something else than a null, is named with its place."""
    plain = {"a": 1.0, "list": [1, None], "rows": [[None, 1], [1, None]], "ragged": [[None], [1, 2]], "empty": []}
    plain |= {"text": "abc", "nothing": None, "numbers": [1, 2], "~": None, "~2": None}
    with pytest.raises(MetricsFileError) as caught:
        restore_non_finite(plain, {pointer: entry})
    assert str(caught.value) == (f"/extensions/non_finite says {entry!r} stands at {pointer!r}, where no such null is")


def test_a_map_that_is_no_object_is_refused():
    """The map itself must be an object."""
    with pytest.raises(MetricsFileError) as caught:
        restore_non_finite({}, [1])
    assert str(caught.value) == "/extensions/non_finite is [1]; expected an object"


@pytest.mark.parametrize("run", [[0, 10**18], [10**18, 10**18], [0, 10**300], [4, 1]])
def test_a_run_longer_than_its_array_costs_no_time(run):
    """A forged length is refused before anything is counted off."""
    began = time.process_time()
    with pytest.raises(MetricsFileError):
        restore_non_finite({"a": [[None, None], [None, None]]}, {"/a": {"NaN": [run]}})
    assert time.process_time() - began < 1


@settings(deadline=None)
@given(st.dictionaries(keys, plain_values, max_size=3), plain_values)
def test_any_map_is_obeyed_or_refused(plain, entries):
    """Whatever stands in the place of the map, the outcome is restored data or MetricsFileError."""
    fault = refusal(restore_non_finite, plain, entries)
    assert fault is None or fault.startswith("/extensions/non_finite ")
