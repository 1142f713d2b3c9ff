"""Two ranks that don't do the same, in real processes: what it costs is said, the rest is right on both."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed"),
]
WORKER = Path(__file__).parent / "support" / "ranks_apart_worker.py"
FILE = "output/apart_training_metrics.json"
NOTHING = [None] * 4
COSTS = "the epoch's train_loss, train_accuracy, dev_accuracy and gradient_norm are null: "


def run(folder, *scenario):
    """What each of the two ranks found."""
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(WORKER),
         *scenario], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return [json.loads((folder / f"said{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What ranks find that do the same: four epochs, and the weights."""
    found, other = run(tmp_path_factory.mktemp("together"), "late", "-1")
    assert found["said"] == other["said"] == []
    assert found["epochs"] == other["epochs"]
    assert None not in found["epochs"][1]
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_late_costs_that_epoch(tmp_path, together, rank):
    """The others go on without its figures, and with them again from the next epoch on; all have the same record."""
    found, other = run(tmp_path, "late", str(rank))
    assert found["epochs"] == other["epochs"]
    assert found["epochs"] == [together["epochs"][0], NOTHING, *together["epochs"][2:]]
    assert found["weights"] == other["weights"] == together["weights"]
    assert found["said"] == [f"{COSTS}only 1 of 2 ranks came to the end of the epoch within 3 seconds"]
    assert found["final"] == together["final"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_loop_that_stops_by_the_record_stops_on_all_ranks(tmp_path, rank):
    """A rank that comes just when the others give it up has the same record as they."""
    found, other = run(tmp_path, "early_stop", str(rank))
    assert found["epochs"] == other["epochs"]
    assert len(found["epochs"]) in (4, 5)


@pytest.mark.parametrize("group", ["before", "in"])
@pytest.mark.parametrize(("resume", "kept"), [("yes", 2), ("1", 1)])
def test_a_run_is_gone_on_from_where_only_rank_0_has_the_file(tmp_path, together, group, resume, kept):
    """The group is made before the run or in it; the epochs before are on both ranks, the file on one."""
    run(tmp_path, "resumed", group, "no")
    found, other = run(tmp_path, "resumed", group, resume)
    assert found["said"] == other["said"] == []
    assert found["epochs"] == other["epochs"]
    before = [[round(value, 4) for value in epoch] for epoch in together["epochs"][:kept]]
    assert found["epochs"] == before + together["epochs"][: 4 - kept]  # the model's weights are its first ones again
    data = json.loads((tmp_path / "machine0" / FILE).read_text())
    assert [epoch["epoch"] for epoch in data["epochs"]] == [1, 2, 3, 4]
    assert data["extensions"]["resumed"][0]["after_epoch"] == kept
    assert os.listdir(tmp_path / "machine1") == []


def test_an_epoch_that_is_not_there_is_said_on_all_ranks(tmp_path):
    """None of them trains."""
    run(tmp_path, "resumed", "before", "no")
    found, other = run(tmp_path, "resumed", "before", "7")
    assert found["error"].startswith("ResumeError: resume=7, but ")
    assert other["error"] == found["error"].replace("ResumeError: ", "ResumeError: rank 0: ")


def test_a_run_that_rank_0_had_alone_costs_its_own_numbers(tmp_path, together):
    """The next one of the same task is found by both."""
    found, other = run(tmp_path, "first_alone", "at once")
    assert found["epochs"] == other["epochs"] == together["epochs"][:2]
    assert found["said"] == [f"{COSTS}only 1 of 2 ranks track this training; decorate it on each"]


def test_a_run_that_rank_0_had_alone_is_not_come_to_later(tmp_path):
    """Another rank that is the first to end an epoch of the next run waits for rank 0 to begin it."""
    found, other = run(tmp_path, "first_alone", "later")
    assert found["epochs"] == other["epochs"]
    assert None not in [loss for loss, *_ in found["epochs"]]


def test_a_rank_that_leaves_before_its_first_epoch_is_not_waited_for(tmp_path):
    """The other says so; both train on."""
    found, other = run(tmp_path, "leaves")
    assert found["epochs"] == [NOTHING, NOTHING]
    assert found["said"] == [f"{COSTS}rank 1 left the run: LookupError"]
    assert found["weights"] == other["weights"]


def test_an_epoch_that_a_rank_leaves_before_the_first_begins_the_run(tmp_path):
    """That is said as soon as there is a run; the next epoch is theirs together."""
    found, _ = run(tmp_path, "leaves_first")
    assert found["epochs"][0] == NOTHING
    assert found["epochs"][1][0] is not None
    assert found["said"][0] == f"{COSTS}rank 1 left the epoch: LookupError"


def test_a_loop_cut_by_steps_that_one_rank_leaves_first(tmp_path):
    """Its rest on the other has no numbers, nobody waits, and the next loop is theirs together."""
    found, other = run(tmp_path, "uneven")
    assert found["said"] == [f"{COSTS}rank 1 has no training step left in its loop"]
    assert found["epochs"][2] == NOTHING
    assert found["epochs"][:2] + found["epochs"][3:] == other["epochs"]
    assert all(value is not None for epoch in other["epochs"] for value in epoch)
    assert found["final"] == other["final"]


@pytest.mark.parametrize("parts", ["one set", "parts"])
def test_running_statistics_are_those_of_rank_0(tmp_path, parts):
    """The model that is judged is one, the first rank's; each trains on with its own, bit for bit as untracked."""
    found, other = run(tmp_path, "statistics", parts)
    (tmp_path / "untracked").mkdir()
    for tracked, untracked in zip((found, other), run(tmp_path / "untracked", "statistics", "untracked"), strict=True):
        assert tracked["weights"][1] == untracked["weights"][1]
    right, states = found["weights"]
    assert [epoch[2] for epoch in found["epochs"]] == pytest.approx(right, rel=1e-6)
    wrong, others = other["weights"]
    assert states != others
    assert right != wrong  # else it could be any rank's
    assert found["said"] == []


@pytest.mark.parametrize(
    ("kind", "has"),
    [("parts", False), ("sampled", False), ("together", True), ("first", True), ("shuffled", True)],
)
def test_a_function_of_the_users_over_parts(tmp_path, kind, has):
    """It counts where it gives one value on all ranks, or runs on rank 0 alone, which alone has the set."""
    found, other = run(tmp_path, "evaluates", kind)
    assert found["epochs"] == other["epochs"]
    assert [epoch[2] is not None for epoch in found["epochs"]] == [has, has]
    why = "'dev' can't be evaluated (`evaluate=` returned another value on each rank, which has a set of its own)"
    mend = "have `evaluate=` return the accuracy, where each rank has a part of the set that of all parts"
    assert found["said"] == ([] if has else [f"dev_accuracy is null: {why}; {mend}"])
