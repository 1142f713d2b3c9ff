"""Trainings that several processes share, started by torchrun: their figures are those of one process."""

import functools
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from trackmetrics.instruments.division import Division, agree, agreed, total
from trackmetrics.instruments.figures import Figures, Norms, Share, together

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed"),
]
WORKER = Path(__file__).parent / "support" / "ranks_worker.py"
FILE = "output/ranks_training_metrics.json"


def train(folder, ranks, *arguments):
    """What each rank found, by rank; None where one was killed. One rank is a training of one process."""
    folder.mkdir(parents=True, exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--log-dir", "logs",
                "--redirects", "3"] if ranks > 1 else []  # fmt: skip
    done = subprocess.Popen(
        [sys.executable, *launcher, str(WORKER), *arguments], cwd=folder, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        output, _ = done.communicate(timeout=150)
    finally:
        for process in (done,):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    found = [folder / f"said{rank}.json" for rank in range(ranks)]
    assert any(path.exists() for path in found) or "dies" in arguments, output
    return [json.loads(path.read_text()) if path.exists() else None for path in found]


@functools.cache
def alone(folder):
    """What one process finds over the same global batches."""
    (found,) = train(folder, 1)
    return found["record"]


@pytest.fixture
def expected(tmp_path_factory):
    """The record of one process."""
    return alone(tmp_path_factory.getbasetemp() / "one process")


def check(found, expected, ranks):
    """All ranks have the record of one process, to 1e-6 of each number; the file has it too; only rank 0 speaks."""
    for own in found:
        record = own["record"]
        for key in ("epochs", "norms", "final"):
            np.testing.assert_allclose(np.array(record[key], float), np.array(expected[key], float), rtol=1e-6)
        assert record["world_size"] == ranks
        assert record["class"] == "Attends"
        assert own["said"] == []
    first = found[0]["record"]
    assert first["example"] == expected["example"]
    np.testing.assert_allclose(first["log_probs"], expected["log_probs"], rtol=1e-5)
    np.testing.assert_allclose(first["attention"], expected["attention"], rtol=1e-5)


def logs(folder, rank):
    """What a rank wrote to its standard output and error."""
    return "".join(path.read_text() for path in folder.glob(f"logs/**/{rank}/std*.log"))


@pytest.mark.parametrize(
    ("parallel", "ranks", "more"),
    [
        ("replicated", 2, []),
        ("replicated", 4, []),
        ("replicated", 2, ["--accumulate", "summed"]),
        ("sharded", 2, []),
        ("sharded", 4, []),
        ("sharded", 2, ["--accumulate", "reduced"]),
        ("sharded", 2, ["--accumulate", "summed"]),
        ("sharded", 2, ["--accumulate", "gathered"]),
        ("sharded", 2, ["--evaluates"]),
        ("hybrid", 4, []),
        ("hybrid", 4, ["--accumulate", "summed"]),
    ],
)
def test_the_figures_are_those_of_one_process(tmp_path, expected, parallel, ranks, more):
    """Loss and accuracies weigh what each rank saw, in unequal parts; the norm is that of the averaged, whole gradient.

    One process on the same global batches is what they are compared with. Only rank 0 writes a file, and tells sinks.
    """
    found = train(tmp_path, ranks, "--parallel", parallel, *more)
    check(found, expected, ranks)
    assert os.listdir(tmp_path / "output") == ["ranks_training_metrics.json"]
    assert [own["told"] for own in found] == [["began", 1, 2, True]] + [[]] * (ranks - 1)
    for rank in range(1, ranks):
        assert "trackmetrics" not in logs(tmp_path, rank).lower()
        assert "epoch" not in logs(tmp_path, rank)


def test_an_optimizer_that_divides_its_state_over_ranks(tmp_path, expected):
    """ZeroRedundancyOptimizer steps another optimizer, of a part of the parameters: one step, and one optimizer."""
    found = train(tmp_path, 2, "--parallel", "replicated", "--divides")
    check(found, expected, 2)
    for own in found:
        optimizer = dict(own["record"]["optimizer"])
        assert (optimizer.pop("name"), optimizer.pop("wraps")) == ("ZeroRedundancyOptimizer", {"name": "Adam"})
        assert {**optimizer, "name": "Adam"} == expected["optimizer"]


@pytest.mark.parametrize("accumulate", ["", "reduced", "summed", "gathered"])
def test_gradients_that_are_computed_in_half_precision(tmp_path, expected, accumulate):
    """The norm is that of what is applied, as torch's own clipping finds it, not of what each rank computed.

    Beside the single process, bfloat16's roundings, of 0.4 percent at most each, cost less than a hundredth.
    """
    found = train(tmp_path, 2, "--parallel", "halved", "--accumulate", accumulate)
    for own in found:
        assert own["said"] == []
        for epoch, norms, right in zip(own["record"]["epochs"], own["clipped"], expected["epochs"], strict=True):
            assert epoch[3] == pytest.approx(np.mean(norms), rel=1e-6)
            assert [epoch[0], epoch[3]] == pytest.approx([right[0], right[3]], rel=0.01)


@pytest.mark.parametrize("parallel", ["replicated", "sharded"])
@pytest.mark.parametrize("dev", ["sampled", "apart", "examples"])
def test_each_dev_example_counts_once(tmp_path, expected, parallel, dev):
    """However they are handed out: by a sampler that pads, to each rank its own, one by one."""
    check(train(tmp_path, 2, "--parallel", parallel, "--dev", dev), expected, 2)


def test_a_dev_set_that_only_the_first_rank_has(tmp_path, expected):
    """It evaluates alone; with shards it can't, and that is said once."""
    check(train(tmp_path / "replicated", 2, "--parallel", "replicated", "--dev", "first"), expected, 2)
    found = train(tmp_path / "sharded", 2, "--parallel", "sharded", "--dev", "first")
    assert [epoch[2] for epoch in found[0]["record"]["epochs"]] == [None, None]
    assert found[0]["said"] == [
        "dev_accuracy is null: the model needs every rank, and rank 1 has no such set; give `evaluate=`, a function of "
        "model and data",
        "final_inference is null: the model needs every rank, and not each has it and the example in reach",
    ]
    assert found[1]["said"] == []


def test_an_inference_of_the_users_own(tmp_path, expected):
    """It is given the model without its replication, which one rank can run."""
    found = train(tmp_path, 2, "--parallel", "replicated", "--finalize", "--seconds", "20")
    assert [own["said"] for own in found] == [[], []]
    assert found[0]["record"]["example"] == "mine"
    np.testing.assert_allclose(found[0]["record"]["log_probs"], expected["log_probs"], rtol=1e-5)


def test_gradients_that_the_loop_averages_are_no_guess(tmp_path, expected):
    """They differ when the backward has ended: null, and the reason once; all else is right."""
    found = train(tmp_path, 2, "--parallel", "by_hand")
    (said,) = found[0]["said"]
    assert said.startswith("gradient_norm is null: the ranks' gradients differ at the end of a backward")
    for (loss, accuracy, dev, norm), right in zip(found[0]["record"]["epochs"], expected["epochs"], strict=True):
        assert [loss, accuracy, dev] == pytest.approx(right[:3], rel=1e-6)
        assert norm is None


@pytest.mark.parametrize(
    ("parallel", "ranks", "dev"),
    [("sharded", 2, "apart"), ("replicated", 4, "examples"), ("replicated", 2, "first")],
)
def test_metrics_are_computed_of_what_all_ranks_were_fed(tmp_path, parallel, ranks, dev):
    """Sums and lists of their states, alone and in a collection; one that can't is null, and that is said once."""
    pytest.importorskip("torchmetrics")
    (whole,) = train(tmp_path / "whole", 1, "--metrics", "all")
    found = train(tmp_path / "shared", ranks, "--parallel", parallel, "--dev", dev, "--metrics", "all")
    for own, other in zip(found[0]["record"]["metrics"], whole["record"]["metrics"], strict=True):
        assert own.keys() == other.keys()
        for name in ("all_f1", "all_confusion", "auroc"):
            for role in ("train", "dev"):
                np.testing.assert_allclose(own[f"{role}_{name}"], other[f"{role}_{name}"], rtol=1e-6)
        assert own["train_counts"] is None
        alone = dev == "first"  # by the first rank, which has them all
        assert own["dev_counts"] == (other["dev_counts"] if alone else None)
    first = whole["record"]["metrics"][0]
    assert np.sum(first["train_all_confusion"]) == first["train_counts"]
    names = ["train_counts"] if dev == "first" else ["train_counts", "dev_counts"]
    assert found[0]["said"] == [
        f"{name} is null: its state can't be put together over ranks, as torchmetrics' can; "
        f"say it with `epoch.log({name}=...)`"
        for name in names
    ]
    for own in found[1:]:
        assert own["said"] == []
        assert own["record"]["metrics"] == found[0]["record"]["metrics"]


def test_metrics_that_a_rank_lacks(tmp_path):
    """They are null, the reason said once; the others have their values."""
    pytest.importorskip("torchmetrics")
    found = train(tmp_path, 2, "--parallel", "replicated", "--metrics", "first")
    said = [text for text in found[0]["said"] if "auroc" in text]
    assert said == [
        f"{role}_auroc is null: rank 1 doesn't measure it; say it with `epoch.log({role}_auroc=...)`"
        for role in ("train", "dev")
    ]
    for epoch in found[0]["record"]["metrics"]:
        assert epoch["train_auroc"] is None
        assert epoch["train_all_f1"] is not None


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_not_tracked_costs_the_numbers_alone(tmp_path, expected, rank):
    """The wait has an end, half of the group's own limit; one warning; the training is the tracked one's."""
    found = train(tmp_path, 2, "--parallel", "replicated", "--happens", "undecorated", "--rank", str(rank),
                  "--seconds", "6")  # fmt: skip
    assert found[0]["weights"] == found[1]["weights"]
    assert 3 <= found[0]["seconds"] < 6
    if rank == 0:
        assert [own["said"] for own in found] == [[], []]
        assert not (tmp_path / "output").exists()
        return
    assert found[0]["said"] == [
        "the epoch's train_loss, train_accuracy, dev_accuracy and gradient_norm are null: only 1 of 2 ranks track this "
        "training; decorate it on each"
    ]
    assert found[0]["record"]["epochs"] == [[None] * 4] * 2
    assert found[0]["record"]["log_probs"] is not None  # a replica can do that alone


def test_a_rank_that_leaves_the_run_is_not_waited_for(tmp_path, expected):
    """The others go on at once, with null and one warning."""
    found = train(tmp_path, 2, "--parallel", "replicated", "--happens", "skips")
    assert found[0]["seconds"] < 15
    assert found[0]["said"] == ["final_results.train_accuracy is null: rank 1 left the run: LookupError"]
    assert found[0]["record"]["final"] == [None, None]
    np.testing.assert_allclose(found[0]["record"]["epochs"], expected["epochs"], rtol=1e-6)


def test_an_exception_on_all_ranks_is_the_users(tmp_path):
    """It ends the run as in one process: the file has the epoch before, and the error."""
    train(tmp_path, 2, "--parallel", "replicated", "--happens", "fails")
    data = json.loads((tmp_path / FILE).read_text())
    assert len(data["epochs"]) == 1
    assert data["extensions"]["status"]["error"] == {"type": "LookupError", "message": "no more"}


def test_a_group_that_is_gone_before_the_run_ends(tmp_path, expected):
    """The ranks know each other without it."""
    found = train(tmp_path, 2, "--parallel", "replicated", "--happens", "destroys")
    np.testing.assert_allclose(found[0]["record"]["final"], expected["final"], rtol=1e-6)
    assert found[0]["record"]["world_size"] == 2
    assert found[0]["said"] == []
    assert found[1]["said"] == []


def test_a_rank_that_dies_leaves_the_file_whole(tmp_path):
    """What the epochs before had shown is in it."""
    found = train(tmp_path, 2, "--parallel", "replicated", "--happens", "dies", "--seconds", "5")
    assert found[1] is None
    data = json.loads((tmp_path / FILE).read_text())
    assert [epoch["epoch"] for epoch in data["epochs"]] == [1]
    assert data["epochs"][0]["train_loss"] == 1.2417


def test_processes_that_do_not_say_which_rank_they_are(tmp_path):
    """The second one is refused the file, and told what is missing."""
    code = textwrap.dedent(
        """
        import multiprocessing, sys
        from trackmetrics import Tracker

        def rank():
            Tracker("spawned").__enter__()

        if __name__ == "__main__":
            with Tracker("spawned"):
                process = multiprocessing.get_context("spawn").Process(target=rank)
                process.start()
                process.join()
        """
    )
    (tmp_path / "spawns.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "spawns.py"], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if name != "RANK"},
    )  # fmt: skip
    assert (
        "or wait until that one has ended; if the two are ranks of one training, call init_process_group or set RANK "
        "before, so that one writes\n"
    ) in done.stderr


def test_a_rank_is_known_before_the_process_group(tmp_path):
    """By what torchrun says: it writes and prints nothing."""
    code = textwrap.dedent(
        """
        from trackmetrics import Tracker
        with Tracker("early", progress=True) as run:
            with run.epoch() as epoch:
                epoch.log(train_loss=float("nan"))
        assert len(run.record.epochs) == 1
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "RANK": "1", "WORLD_SIZE": "2"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(tmp_path) == []


# What ranks put together


def figures(*shares, **more):
    return Figures(*(Share(*share) for share in shares), **more).plain()


def test_sums_are_weighted_by_what_each_rank_saw():
    """A rank without a target changes nothing; NaN is never lost."""
    joint = Figures.of(together([figures((2.0, 4), (1, 4)), figures((9.0, 2), (2, 2)), figures((0.0, 0), (0, 0))]))
    assert (joint.loss.mean, joint.accuracy.mean) == (11 / 6, 0.5)
    assert math.isnan(Figures.of(together([figures((math.nan, 1)), figures((1.0, 1))])).loss.mean)


def test_a_fault_of_one_rank_is_all_ranks():
    """With the rank that met it."""
    joint = Figures.of(together([figures(), figures(faults={"train_loss": "it broke"})]))
    assert joint.faults == {"train_loss": "on rank 1 it broke"}


def test_norms_of_shards_are_summed_and_whole_ones_compared():
    """Skipped and infinite steps stay what they are; ranks that ran out of data have fewer steps."""
    one = Norms([1.0, 2.0], [(3.0, 0.0), (-1.0, 5.0), (0.0, math.inf)], 1)
    other = Norms([1.0], [(3.0, 4.0), (-1.0, 5.0), (0.0, 1.0)], 1)
    joint = Figures.of(together([figures(norms=one), figures(norms=other)]))
    assert joint.faults == {}
    summary = joint.norms.summary()
    assert (summary.steps, summary.skipped_steps, summary.non_finite_steps) == (4, 2, 1)
    assert (summary.min, summary.median, summary.max) == (1.0, 2.0, 5.0)
    for differs in (Norms([1.1]), Norms([1.0], [(3.0, 4.0)]), Norms([math.nan])):
        assert "gradient_norm" in Figures.of(together([figures(norms=one), figures(norms=differs)])).faults


def offer(*marks, length=3, why=None, collective=False, one_batch=False, called=False):
    sets = [{"name": "dev", "fault": "broken"} if mark is None else {"name": "dev", "mark": mark, "length": length}
            for mark in marks]  # fmt: skip
    return {
        "why": why,
        "sets": sets,
        "buffers": [],
        "collective": collective,
        "one_batch": one_batch,
        "targets": 8,
        "called": called,
    }


@pytest.mark.parametrize(
    ("offers", "how", "chosen", "why"),
    [
        ([offer("a"), offer("a")], "divided", 0, None),
        ([offer("a"), offer("b")], "apart", 0, None),
        ([offer("a"), offer()], "alone", 0, None),
        ([offer("a"), offer("a", why="no model")], "alone", 0, None),
        ([offer(None, "a"), offer("b", "a")], "divided", 1, None),
        ([offer("a"), offer("a", collective=True)], "divided", 0, None),
        ([offer("a", collective=True), offer()], "alone", 0, "the model needs every rank, and rank 1 has no such set"),
        ([offer("a", length=None, collective=True)] * 2, "all", 0, None),
        ([offer("", called=True)] * 2, "all", 0, None),
        ([offer("a", called=True), offer("b", called=True)], "each", 0, None),
        ([offer("a", called=True), offer("none", called=True)], "alone", 0, None),
        ([offer("none", called=True)] * 2, "all", 0, None),
        ([offer(), offer("a")], "", 0, ""),
        ([offer("a", collective=True, one_batch=True)] * 2, "all", 0, None),
        (
            [offer(mark, collective=True, one_batch=True) for mark in "ab"],
            "all",
            0,
            "the ranks compute each batch together, and their sets differ",
        ),
        (
            [offer("a", collective=True), offer("b", length=0, collective=True)],
            "apart",
            0,
            "the model needs every rank, and the set of rank 1 is empty",
        ),
        ([offer("a", why="no model"), offer("a")], "", 0, "no model"),
        ([offer(None), offer("a")], "", 0, "'dev' can't be evaluated (broken)"),
    ],
)
def test_ranks_agree_on_a_set(offers, how, chosen, why):
    """One for all, or why there is none."""
    found = agree(offers)
    assert (found[1], found[0], found[4]) == (how, chosen, why)


def test_a_users_function_gives_one_value_for_all_parts():
    """It has put them together itself; else there is none."""
    assert agreed([{"share": (0.5, 1)}, {"share": (0.5, 1)}]) == {"mean": 0.5}
    assert agreed([{"share": (0.5, 1)}, {"share": (0.6, 1)}])["fault"].startswith("`evaluate=` returned another")
    assert agreed([{"share": (0.5, 1)}, {"fault": "it broke"}]) == {"fault": "on rank 1 it broke"}


def test_counts_are_added_up():
    """Nothing that counts is a fault, and so is any rank's."""
    assert total([{"share": (1, 3)}, {"share": (2, 3)}]) == {"mean": 0.5}
    assert total([{"share": (0, 0)}] * 2) == {"fault": "it has no target that counts"}
    assert total([{"share": (1, 1)}, {"fault": "it broke"}]) == {"fault": "on rank 1 it broke"}
    assert Division() == (0, 1, 0, True)
