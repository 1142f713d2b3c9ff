"""Two processes under each trainer: one file, whose figures are those of one process over the same global batches."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")
WORKER = Path(__file__).parents[1] / "support" / "trainers_worker.py"


def train(folder, trainer, ranks):
    """What each rank found."""
    folder.mkdir(exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, str(WORKER), trainer], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"said{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """One process, without a trainer."""
    (found,) = train(tmp_path_factory.mktemp("alone"), "loop", 1)
    return found


@pytest.mark.parametrize("trainer", ["lightning", "transformers", "accelerate"])
def test_two_processes_find_what_one_finds(trainer, expected, tmp_path):
    """Each example of the dev set counts once, whatever the trainer pads; only rank 0 writes and warns."""
    if find_spec(trainer) is None or find_spec("accelerate") is None:
        pytest.skip(f"{trainer} isn't installed")
    found, other = train(tmp_path, trainer, 2)
    for own, right in zip(found["epochs"], expected["epochs"], strict=True):
        assert own == pytest.approx(right, rel=1e-6)
    assert found["final"] == pytest.approx(expected["final"], rel=1e-6)
    assert found["said"] == []
    assert found["example"] == expected["example"]
    assert other == {"said": []}
    assert os.listdir(tmp_path / "output") == ["toy_training_metrics.json"]
