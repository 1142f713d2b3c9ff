"""The gradient norm in every style of training, against a plain loop that takes it by hand."""

import functools
import json
import math
import threading

import pytest
import torch
from oracle import (
    Notes,
    Tracked,
    assert_close,
    assert_norms,
    one_thread,  # noqa: F401  a fixture
    run_tracked,
    run_untracked,
    state_of,
    tracking,
)
from styles_of_closures import Wrapped
from styles_shared import batches, loss_of, net, sgd
from torch import nn
from training_styles import STYLES

from trackmetrics import Tracker

pytestmark = [
    pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning"),
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning"),
]


# The matrix


@functools.cache
def untracked(name):
    """A style's run without a tracker, once for all tests."""
    notes, parts = run_untracked(STYLES[name])
    return notes, state_of(parts), torch.get_rng_state()


@functools.cache
def tracked_inside(name):
    """A style's tracked run, once for all tests."""
    tracked = run_tracked(STYLES[name])
    return tracked, state_of(tracked.parts), torch.get_rng_state()


@pytest.mark.parametrize("name", STYLES)
def test_norm_is_that_of_a_plain_loop(name):
    """In every style: the oracle's norm, and its counts exactly."""
    assert_norms(tracked_inside(name)[0], untracked(name)[0])


@pytest.mark.parametrize("name", STYLES)
def test_norm_is_the_same_with_everything_built_before_the_run(name):
    """Optimizers and models that were there before the run are found, and give the same figures."""
    assert_norms(run_tracked(STYLES[name], built="before"), untracked(name)[0])


@pytest.mark.parametrize("name", STYLES)
def test_observation_leaves_training_undisturbed(name):
    """Parameters, buffers, gradients, optimizer state and the random stream end bit-identical, tracked or not."""
    _, state, stream = untracked(name)
    _, state_when_tracked, stream_when_tracked = tracked_inside(name)
    assert state_when_tracked == state
    assert torch.equal(stream_when_tracked, stream)


@pytest.mark.parametrize("name", STYLES)
def test_no_hook_is_left_on_a_parameter(name):
    """When the run is over, no parameter has a hook that it didn't have before."""
    for model in tracked_inside(name)[0].parts:
        if isinstance(model, nn.Module):
            for parameter in model.parameters():
                assert not parameter._post_accumulate_grad_hooks
                assert not parameter._backward_hooks


def test_gradients_set_by_hand_are_said_in_the_extensions():
    """A norm measured only at the optimizer's step is marked as such; any other is not."""
    assert "measured" in run_tracked(STYLES["gradients_set_by_hand"]).norms
    assert "measured" not in run_tracked(STYLES["plain"]).norms


def test_the_extension_says_what_the_figures_mean_and_how_they_spread():
    """In the file as in the record: the norm in words, the run's totals, and each epoch's counts and spread."""
    names = ("scaler-sgd", "steps_that_are_not_finite", "epochs_without_a_step")
    for name, totals in zip(names, ((6, 2, 0), (8, 0, 6), (1, 0, 0)), strict=True):
        tracked = run_tracked(STYLES[name])
        with open(tracked.run.path, encoding="utf-8") as file:
            written = json.load(file)["extensions"]["gradient_norm"]
        assert written == {**tracked.norms, "epochs": list(tracked.norms["epochs"])}
        assert list(written) == ["meaning", "steps", "skipped_steps", "non_finite_steps", "epochs"]
        for word in ("L2 norm", "optimizers own", "accumulated", "averaged", "unscaled", "before clipping", "mean"):
            assert word in written["meaning"]
        assert (written["steps"], written["skipped_steps"], written["non_finite_steps"]) == totals
        for epoch in written["epochs"]:
            assert list(epoch) == ["epoch", "min", "median", "max", "steps", "skipped_steps", "non_finite_steps"]


@pytest.mark.parametrize(
    ("norms", "middle"), [((3, 1, 10, 2), 2.5), ((3, 1, math.nan, 10, 2, math.inf, 4), 3), ((math.nan,), None)]
)
def test_median_is_over_the_finite_steps(norms, middle):
    """The middle of the finite norms; of an even number of them, the mean of the two in the middle."""

    def train(notes, parameters):
        with notes.epoch():
            for norm in norms:
                parameters.zero_grad()
                (parameters[0] * norm).sum().backward()

    tracked = run_tracked((lambda: (nn.ParameterList([nn.Parameter(torch.ones(1))]),), train))
    assert tracked.norms["epochs"][0]["median"] == middle
    assert tracked.norms["non_finite_steps"] == sum(not math.isfinite(norm) for norm in norms)


def test_an_optimizer_that_never_steps_is_named():
    """Backwards into an optimizer's parameters that it never applies: null, and the reason says that it never did."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for batch in batches():
                model.zero_grad()
                loss_of(model, batch).backward()
                for parameter in model.parameters():
                    parameter.data.sub_(0.1 * parameter.grad)

    tracked = run_tracked((sgd, train))
    assert tracked.epochs[0].gradient_norm is None
    assert tracked.norms["steps"] == 0
    (message,) = tracked.warned_of("gradient_norm")
    assert "no backward was seen" not in message
    assert "SGD" in message
    assert "never stepped" in message


def test_many_steps_are_folded_without_loss():
    """More steps than are kept one by one make the same mean and extremes."""
    parameter = nn.Parameter(torch.zeros(1))

    def train(notes):
        with notes.epoch():
            for number in range(1500):
                parameter.grad = None
                (parameter * (number % 7)).sum().backward()
                notes.step([parameter])

    assert_norms(run_tracked((tuple, train)), run_untracked((tuple, train))[0])


# Runs beside and inside each other


def without_chance(model):
    """Threads share the random stream: what draws from it can't be foretold."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


@pytest.mark.parametrize("name", ["plain", "no_optimizer", "checkpointing-reentrant", "scaler-sgd", "lbfgs"])
def test_two_runs_in_two_threads_hear_only_their_own(name):
    """Two trainings at once, each in its thread and its run, have each their own figures."""
    _, train = STYLES[name]

    def build():
        parts = STYLES[name][0]()
        without_chance(parts[0])
        return parts

    expected = []
    pairs = []
    for seed in range(2):
        for kept in ([], pairs):
            torch.manual_seed(seed)
            kept.append(build())
            if kept is not pairs:
                expected.append(Notes())
                train(expected[-1], *kept[0])
    started = threading.Barrier(2, timeout=60)
    runs, faults = {}, []

    def work(index):
        try:
            with Tracker(f"run{index}", final_train_accuracy=False) as run:
                started.wait()
                train(Notes(run), *pairs[index])
                started.wait()
            runs[index] = run
        except BaseException as error:
            faults.append(error)
            started.abort()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    for index, notes in enumerate(expected):
        assert_norms(Tracked(runs[index], []), notes)


def test_a_thread_without_a_run_is_not_heard():
    """A training in a thread of its own is no part of the run that lives elsewhere."""
    expected, _ = run_untracked(STYLES["plain"])
    torch.manual_seed(0)
    model, optimizer = sgd()
    stranger, of_stranger = sgd()

    def elsewhere():
        for batch in batches():
            loss_of(stranger, batch).backward()
            of_stranger.step()

    with tracking() as tracked:
        notes = Notes(tracked.run)
        with notes.epoch():
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            for batch in batches():
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                notes.step(model.parameters())
                optimizer.step()
    assert_norms(tracked, notes)
    assert tracked.norms["steps"] == len(expected.epochs[0].norms)


def test_a_stranger_that_steps_during_a_backward_is_not_heard():
    """Another thread's optimizer that steps while the run's backward is under way is not taken for its own."""
    model, optimizer = sgd()
    stranger, of_stranger = sgd()
    loss_of(stranger, batches()[0]).backward()

    def elsewhere(_):
        thread = threading.Thread(target=of_stranger.step)
        thread.start()
        thread.join()

    with tracking() as tracked:
        notes = Notes(tracked.run)
        with notes.epoch():
            for batch in batches():
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.register_hook(elsewhere)
                loss.backward()
                notes.step(model.parameters())
                optimizer.step()
    assert_norms(tracked, notes)


def test_another_runs_backward_during_this_ones_is_not_counted():
    """Gradients that another run's thread brings in the middle of a backward are no part of this run's step."""
    model, (stranger, of_stranger) = net(), sgd()
    ready, go, done = (threading.Event() for _ in range(3))

    def elsewhere():
        with Tracker("elsewhere", final_train_accuracy=False) as run, run.epoch():
            ready.set()
            go.wait(timeout=60)
            loss_of(stranger, batches()[0]).backward()
            done.set()
            ended.wait(timeout=60)
            of_stranger.step()

    def let_it_train(_):
        go.set()
        done.wait(timeout=60)

    ended = threading.Event()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    ready.wait(timeout=60)
    with tracking() as tracked:
        notes = Notes(tracked.run)
        with notes.epoch():
            for batch in batches():
                model.zero_grad()
                loss = loss_of(model, batch)
                loss.register_hook(let_it_train)
                loss.backward()
                notes.step(model.parameters())
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.1 * parameter.grad
    ended.set()
    thread.join()
    assert done.is_set()
    assert_norms(tracked, notes)


def test_a_run_inside_another_ones_epoch_is_heard_alone():
    """A run inside an outer epoch has its own steps, and the outer run has none of them; both are right."""
    model, optimizer = sgd()
    inner_model, inner_optimizer = sgd()

    def steps(notes, model, optimizer):
        for batch in batches():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            notes.step(model.parameters())
            optimizer.step()

    with tracking(task="outer") as outer:
        outer_notes = Notes(outer.run)
        with outer_notes.epoch():
            steps(outer_notes, model, optimizer)
            with tracking(task="inner") as inner:
                inner_notes = Notes(inner.run)
                with inner_notes.epoch():
                    steps(inner_notes, inner_model, inner_optimizer)
            steps(outer_notes, model, optimizer)
    assert_norms(inner, inner_notes)
    assert_norms(outer, outer_notes)


def test_training_outside_the_epochs_is_not_counted():
    """What trains before, between and after the epochs is no part of any record."""
    model, optimizer = sgd()

    def step():
        optimizer.zero_grad()
        loss_of(model, batches()[0]).backward()

    with tracking() as tracked:
        notes = Notes(tracked.run)
        for _ in range(2):
            step()
            optimizer.step()
            with notes.epoch():
                step()
                notes.step(model.parameters())
                optimizer.step()
        step()
        optimizer.step()
    assert_norms(tracked, notes)


def test_an_epoch_that_raised_leaves_no_trace_in_the_next():
    """An epoch abandoned in the middle of a step is dropped whole."""
    model, optimizer = sgd()
    with tracking() as tracked:
        with pytest.raises(ArithmeticError), tracked.run.epoch():
            loss_of(model, batches()[1]).backward()
            optimizer.step()
            loss_of(model, batches()[2]).backward()
            raise ArithmeticError
        notes = Notes(tracked.run)
        with notes.epoch():
            optimizer.zero_grad()
            loss_of(model, batches()[0]).backward()
            notes.step(model.parameters())
            optimizer.step()
    assert_norms(tracked, notes)


# A record each N steps


def counted(name, every):
    """Train a style with its steps counted; give the run, and its steps' norms in groups of `every`."""
    expected, _ = run_untracked(STYLES[name])
    norms = [norm for epoch in expected.epochs for norm in epoch.norms]
    build, train = STYLES[name]
    torch.manual_seed(0)
    with tracking() as tracked, tracked.run.epochs(every=every):
        train(Notes(), *build())
    return tracked, [norms[start : start + every] for start in range(0, len(norms), every)]


@pytest.mark.parametrize("every", [1, 3, 4, 100])
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "accumulation_with_a_short_last_group",
        "two_optimizers_on_one_model",
        "optimizer_over_part_of_the_parameters",
        "gan-not_detached",
        "no_optimizer",
        "lbfgs",
        "sgd_with_closure",
        "an_optimizer_around_another",
        "scaler-sgd",
        "one_of_two_optimizers_skipped-first",
        "gradients_set_by_hand",
        "optimizers_stepped_inside_the_backward",
        "a_step_before_any_gradient",
    ],
)
def test_a_record_each_n_steps(name, every):
    """`epochs(every=N)` gives one record each N steps and a shorter last one, no step lost and none twice."""
    tracked, groups = counted(name, every)
    assert [summary["steps"] for summary in tracked.norms["epochs"]] == [len(group) for group in groups]
    for epoch, group in zip(tracked.epochs, groups, strict=True):
        assert_close(epoch.gradient_norm, math.fsum(group) / len(group))


def test_the_record_is_closed_when_the_step_is_over():
    """The record of N steps stands as soon as the last optimizer's whole step is done, and not before."""
    model = nn.Linear(5, 3)
    optimizer = Wrapped(torch.optim.SGD(model.parameters(), lr=0.1))
    evaluated = []

    def evaluate(*_):
        evaluated.append(model.weight.detach().clone())
        return 0.5

    with tracking(evaluate=evaluate, dev=[1]) as tracked, tracked.run.epochs(every=2):
        for batch in batches():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            before = len(tracked.epochs)
            optimizer.step()
            if len(tracked.epochs) > before:
                assert torch.equal(evaluated[-1], model.weight)
    assert len(tracked.epochs) == 2


# The helper can fail


@pytest.mark.parametrize(
    "damage",
    [
        lambda notes: notes.epochs[0].norms.append(1.0),
        lambda notes: notes.epochs[0].norms.__setitem__(0, notes.epochs[0].norms[0] * (1 + 1e-4)),
        lambda notes: setattr(notes.epochs[0], "skipped", 1),
        lambda notes: notes.epochs.pop(),
    ],
)
def test_the_comparison_can_fail(damage):
    """A norm off by a ten-thousandth, a step or a skip too many, an epoch too few: each is seen."""
    expected, _ = run_untracked(STYLES["plain"])
    damage(expected)
    tracked = run_tracked(STYLES["plain"])
    with pytest.raises(AssertionError):
        assert_norms(tracked, expected)
