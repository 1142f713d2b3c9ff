"""Trainers keep settings for the whole process: each test has its own."""

import os
import sys

import pytest


@pytest.fixture(autouse=True)
def as_accelerate_was():
    """Its state, and what the Trainer puts into the environment for it."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        if name.startswith("ACCELERATE_"):
            del os.environ[name]
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
