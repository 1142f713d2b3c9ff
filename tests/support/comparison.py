"""Compares what was read with what was expected, more strictly than `==`: types, signs of zero and NaN count."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np


def assert_same(found, expected, place="the value"):
    """Assert that two values are of the same types and hold the same, NaN being the same as NaN, -0.0 not as 0.0."""
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray), place
        assert found.dtype == expected.dtype, place
        assert found.shape == expected.shape, place
        assert np.array_equal(found, expected, equal_nan=True), place
        assert np.array_equal(np.signbit(found) & ~np.isnan(found), np.signbit(expected) & ~np.isnan(expected)), place
    elif dataclasses.is_dataclass(expected):
        assert type(found) is type(expected), place
        for field in dataclasses.fields(expected):
            assert_same(getattr(found, field.name), getattr(expected, field.name), f"{place}.{field.name}")
    elif isinstance(expected, Mapping):
        assert isinstance(found, Mapping), place
        assert list(found) == list(expected), f"the keys of {place}"
        for key in expected:
            assert_same(found[key], expected[key], f"{place}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected), place
        assert len(found) == len(expected), f"the length of {place}"
        for index, item in enumerate(expected):
            assert_same(found[index], item, f"{place}[{index}]")
    elif isinstance(expected, float) and math.isnan(expected):
        assert isinstance(found, float), place
        assert math.isnan(found), place
    else:
        assert type(found) is type(expected), f"{place}: {found!r}, not {expected!r}"
        assert found == expected, place
        assert str(found) == str(expected), place  # -0.0 == 0.0
