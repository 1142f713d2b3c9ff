"""The evaluation pass: its accuracy is the one counted by hand, however model, data and training pair up."""

import itertools
from types import SimpleNamespace

import pytest
import torch
import toy
from data_kinds import READABLE, join_feeders
from lookup import Lookup, best, learned, share, table
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from trackmetrics import Tracker, TrackmetricsWarning
from trackmetrics.instruments.data import UnreadableError
from trackmetrics.instruments.division import total
from trackmetrics.instruments.evaluation import main_output, right_predictions
from trackmetrics.instruments.events import Listener, listening
from trackmetrics.instruments.pairing import PairingError

TABLE = table()


def accuracy(model, data, pairing):
    """The share of the set's targets that the model predicts right."""
    return right_predictions(model, data, pairing).mean


@pytest.fixture(autouse=True)
def no_feeder_left():
    """A loader's thread that is about to end is not taken for one of ours."""
    yield
    join_feeders()


def _by_hand(indices, rows=TABLE):
    """The share of the examples, whose class is their number modulo 3, that the table predicts."""
    return share((best(rows[index].tolist()), index % 3) for index in indices)


def _batch_of(count=4, classes=3):
    return learned(lambda: F.cross_entropy(torch.zeros(count, classes), torch.zeros(count, dtype=torch.long)))


# What the training showed of the shapes


def _sequences(count=6, length=5, rows=10, classes=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(rows, (count, length), generator=generator)
    return inputs, torch.randint(classes, (count, length), generator=generator)


class Transposed(Lookup):
    """Classes in dimension 1, as an image model has them."""

    def forward(self, numbers):
        return super().forward(numbers).movedim(-1, 1).contiguous()


@pytest.mark.parametrize("length", [5, 3], ids=["other length", "length is the number of classes"])
@pytest.mark.parametrize("count", [4, 3], ids=["other count", "count is the number of classes"])
@pytest.mark.parametrize("layout", ["classes last", "dimension 1", "flattened"])
def test_the_class_dimension_is_the_trainings(layout, length, count):
    """Predictions run over the dimension that the training's loss ran over, also where the shape leaves it open."""
    inputs, targets = _sequences(count, length)
    model = Transposed(TABLE) if layout == "dimension 1" else Lookup(TABLE)

    def loss():
        logits = model(inputs)
        if layout == "classes last":
            return F.cross_entropy(logits.transpose(1, 2), targets)
        if layout == "dimension 1":
            return F.cross_entropy(logits, targets)
        return F.cross_entropy(logits.reshape(-1, 3), targets.reshape(-1))

    expected = share(
        (best(TABLE[number].tolist()), target)
        for number, target in zip(inputs.flatten().tolist(), targets.flatten().tolist())
    )
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=count)
    assert accuracy(model, loader, learned(loss)) == pytest.approx(expected, abs=1e-12)


def test_images_are_judged_pixel_by_pixel():
    """Logits `[N, C, H, W]` are judged over dimension 1, each pixel once, with as many columns as classes."""
    inputs = torch.randint(10, (4, 5, 3), generator=torch.Generator().manual_seed(0))
    targets = inputs % 3
    model = Transposed(TABLE)
    pairing = learned(lambda: F.cross_entropy(model(inputs), targets))
    expected = share((best(TABLE[number].tolist()), number % 3) for number in inputs.flatten().tolist())
    assert accuracy(model, [(inputs[i], targets[i]) for i in range(4)], pairing) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ignored", [-100, 1])
def test_ignored_targets_do_not_count(ignored):
    """Targets of the training's `ignore_index` count neither as right nor as wrong."""
    inputs, targets = _sequences()
    targets[:, :2] = ignored
    targets[:, 2] = 2
    model = Lookup(TABLE)
    pairing = learned(lambda: F.cross_entropy(model(inputs).transpose(1, 2), targets, ignore_index=ignored))
    expected = share(
        (best(TABLE[number].tolist()), target)
        for number, target in zip(inputs.flatten().tolist(), targets.flatten().tolist())
        if target != ignored
    )
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=4)
    assert accuracy(model, loader, pairing) == pytest.approx(expected, abs=1e-12)


def test_a_set_without_a_target_that_counts_has_no_accuracy():
    """Where all targets are ignored, there is no share to give."""
    none = right_predictions(Lookup(TABLE), [(torch.tensor(1), torch.tensor(-100))], _batch_of())
    assert none == (0, 0)
    assert total([{"share": none}]) == {"fault": "it has no target that counts"}


@pytest.mark.parametrize("labels", [(), (1,), (4,)], ids=["[N]", "[N, 1]", "multi-label"])
@pytest.mark.parametrize("single", [True, False], ids=["dataset", "loader"])
@pytest.mark.parametrize("criterion", ["logits", "probabilities"])
def test_binary_targets_are_judged_element_by_element(labels, single, criterion):
    """Each label is right where its score is on its side of one half, in any shape of target."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(8, *labels, generator=generator)
    inputs, targets = torch.arange(8), (torch.rand(8, *labels, generator=generator) > 0.4).float()
    if criterion == "logits":
        model, loss = Lookup(scores), F.binary_cross_entropy_with_logits
    else:
        model, loss = Lookup(scores.sigmoid()), F.binary_cross_entropy
    expected = share(
        (score > 0, target == 1) for score, target in zip(scores.flatten().tolist(), targets.flatten().tolist())
    )
    data = TensorDataset(inputs, targets) if single else DataLoader(TensorDataset(inputs, targets), batch_size=3)
    pairing = learned(lambda: loss(model(inputs), targets))
    assert accuracy(model, data, pairing) == pytest.approx(expected, abs=1e-12)


# Single examples, batched or not


class OverTime(nn.Module):
    """A tagger whose answer depends on which dimension is time: sums what came before, along dimension `time`."""

    def __init__(self, time):
        super().__init__()
        self.time = time
        self.weight = nn.Parameter(torch.tensor([1.0, -1.0]))

    def forward(self, x):
        return x.float().cumsum(self.time).unsqueeze(-1) * self.weight

    def by_hand(self, sequence):
        return [best([float(sum(sequence[: at + 1])), -float(sum(sequence[: at + 1]))]) for at in range(len(sequence))]


def _ragged(lengths, seed=5):
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randint(-2, 3, (length,), generator=generator) for length in lengths]
    return [(x, torch.randint(2, (len(x),), generator=generator)) for x in draw]


@pytest.mark.parametrize("lengths", [(4, 4, 4, 4), (3, 5, 2, 6), (2, 2, 4, 8)], ids=["even", "ragged", "multiples"])
@pytest.mark.parametrize("trained", ["alone", "in batches", "in flattened batches"])
@pytest.mark.parametrize("last", range(4))
def test_single_examples_are_run_as_the_model_was_trained(lengths, trained, last):
    """Examples get a batch dimension only if the training had one, whichever of them came last in it."""
    pairs = _ragged(lengths)
    model = OverTime(0 if trained == "alone" else 1)
    x, y = pairs[last]
    logits = model(x) if trained == "alone" else model(torch.stack([x, x]))
    batch_y = y if trained == "alone" else torch.stack([y, y])
    if trained == "in batches":
        pairing = learned(lambda: F.cross_entropy(logits.transpose(1, 2), batch_y))
    else:
        pairing = learned(lambda: F.cross_entropy(logits.reshape(-1, 2), batch_y.reshape(-1)))
    expected = share(item for x, y in pairs for item in zip(model.by_hand(x.tolist()), y.tolist()))
    assert accuracy(model, pairs, pairing) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("flattened", "lengths", "expected"),
    [
        (False, (4, 4, 4, 4, 2, 4), [(3, 4), (1, 4), (1, 2), (1, 4)]),
        (True, (4, 4, 4, 4, 4), [(3, 4), (2, 4)]),
    ],
    ids=["batches", "flattened batches"],
)
def test_single_examples_are_joined_to_batches_as_large_as_the_trainings(flattened, lengths, expected):
    """Examples of one shape run in batches of the training's size; those that differ run alone."""
    sizes = []

    class Sized(OverTime):
        def forward(self, x):
            sizes.append(tuple(x.shape))
            return super().forward(x)

    output, target = ((12, 2), (12,)) if flattened else ((3, 2, 4), (3, 4))
    pairing = learned(lambda: F.cross_entropy(torch.zeros(output), torch.zeros(target, dtype=torch.long)))
    accuracy(Sized(-1), _ragged(lengths), pairing)
    assert sizes == [(1, 4), *expected]  # the first is the trial


# What models take and return


class Wrapped(nn.Module):
    """A model that returns its logits inside something."""

    def __init__(self, inner, wrap):
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, numbers):
        return self.wrap(self.inner(numbers))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: (logits, torch.zeros(1)),
        lambda logits: [logits],
        lambda logits: (logits.mean(), logits),
        lambda logits: SimpleNamespace(logits=logits, loss=None),
        lambda logits: {"loss": logits.mean(), "logits": logits},
        lambda logits: {"scores": logits},
        lambda logits: ({"log_probs": logits}, None),
    ],
    ids=["tuple", "list", "after the loss", "object", "dict", "a dict of one", "nested"],
)
def test_predictions_are_found_in_what_a_model_returns(wrap):
    """Logits alone, first in a tuple, behind the loss, or under their name."""
    make, indices = READABLE["a sequential loader"]
    found = accuracy(Wrapped(Lookup(TABLE), wrap), make(), _batch_of())
    assert found == pytest.approx(_by_hand(indices), abs=1e-12)


@pytest.mark.parametrize("output", [None, "text", {}, {"a": torch.ones(1), "b": torch.ones(1)}, ()])
def test_what_holds_no_predictions_is_refused(output):
    """Of several tensors none is guessed to be the predictions."""
    with pytest.raises(PairingError, match="no predictions"):
        main_output(output)


class Shifted(nn.Module):
    """A language model, Hugging Face style: computes its loss inside, from labels shifted by one."""

    def __init__(self, rows):
        super().__init__()
        self.lookup = Lookup(rows)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.lookup(input_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))
        return SimpleNamespace(loss=loss, logits=logits)


class Positional(Shifted):
    """The same with labels as second argument, which returns the loss last."""

    def forward(self, x, targets=None):
        output = super().forward(x, labels=targets)
        return output.logits, output.loss


SQUARE = table(10, 10, seed=4)


def _texts(count=6, length=5):
    inputs = torch.randint(10, (count, length), generator=torch.Generator().manual_seed(8))
    labels = inputs.clone()
    labels[:, -1] = -100
    return inputs, labels


def _next_tokens(inputs):
    """The share of the tokens after each token that the table predicts; the last one isn't asked for."""
    return share(
        (best(SQUARE[number].tolist()), target)
        for sequence in inputs.tolist()
        for number, target in itertools.pairwise(sequence[:-1])
    )


@pytest.fixture
def listened():
    """Criterion calls are heard, as they are in a run."""
    with listening(Listener()):
        yield


@pytest.mark.usefixtures("listened")
@pytest.mark.parametrize("form", ["dicts", "a loader of dicts", "pairs with a positional model", "data parallel"])
def test_a_model_that_computes_its_loss_inside_is_asked_for_it(form):
    """Its own shift of the labels is kept: each token is compared with the one after it."""
    inputs, labels = _texts()
    model = Positional(SQUARE) if "positional" in form else Shifted(SQUARE)
    model = nn.DataParallel(model) if form == "data parallel" else model
    dicts = [
        {"input_ids": x, "attention_mask": torch.ones_like(x), "labels": y, "length": len(x)}
        for x, y in zip(inputs, labels)
    ]
    pairing = learned(lambda: Shifted(SQUARE)(inputs, labels=labels))
    data = list(zip(inputs, labels)) if "pairs" in form else DataLoader(dicts, 4) if "loader" in form else dicts
    assert accuracy(model, data, pairing) == pytest.approx(_next_tokens(inputs), abs=1e-12)


@pytest.mark.usefixtures("listened")
def test_labels_go_by_the_name_that_forward_has():
    """A batch's `label` reaches a forward that takes `labels`; keys it doesn't take stay away."""
    inputs, labels = _texts()
    batch = [{"input_ids": x, "label": y, "id": 3} for x, y in zip(inputs, labels)]
    pairing = learned(lambda: Shifted(SQUARE)(inputs, labels=labels))
    assert accuracy(Shifted(SQUARE), batch, pairing) == pytest.approx(_next_tokens(inputs), abs=1e-12)


def test_a_dict_that_forward_takes_nothing_of_says_so():
    """A model that takes none of the batch's keys can't be called with it."""
    with pytest.raises(UnreadableError, match=r"forward\(numbers\) takes none of the batch's keys \['input_ids'\]"):
        accuracy(Lookup(TABLE), READABLE["dicts"][0](), _batch_of())


# What has no accuracy


class Inner(Lookup):
    def forward(self, numbers, labels=None):
        logits = super().forward(numbers)
        return F.cross_entropy(logits, labels), logits


@pytest.mark.usefixtures("listened")
@pytest.mark.parametrize("model", [Lookup(TABLE), Inner(TABLE)], ids=["outside", "inside"])
def test_soft_targets_are_refused(model):
    """Probabilities as targets have no accuracy, whether the loss is computed outside the model or inside."""
    soft = torch.softmax(TABLE, -1)
    loader = DataLoader(TensorDataset(torch.arange(10), soft), 4)
    pairing = learned(lambda: F.cross_entropy(TABLE, soft))
    with pytest.raises(PairingError):
        accuracy(model, loader, pairing)
    with pytest.raises(PairingError, match="probabilities"):
        accuracy(model, loader, _batch_of())


@pytest.mark.parametrize(
    ("output", "target"), [((4, 5), (4,)), ((4, 3), (5,)), ((4, 2, 3), (4,))], ids=["classes", "count", "dimensions"]
)
def test_shapes_that_do_not_pair_are_refused(output, target):
    """Where no dimension of the output can be the classes of the targets, nothing is guessed."""

    class Shaped(Lookup):
        def forward(self, numbers):
            return self.table.new_zeros(output)

    with pytest.raises(PairingError, match="no dimension of 3 classes"):
        accuracy(Shaped(TABLE), (torch.arange(target[0]), torch.zeros(target, dtype=torch.long)), _batch_of())


# In a run


def _run(train, dev, model=None, epochs=1, **options):
    model = model or toy.model()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    snapshots = []
    with Tracker("task", train=train, dev=dev, **options) as run:
        for _ in range(epochs):
            with run.epoch():
                toy.train_epoch(model, optimizer, toy.loader(seed=1))
            snapshots.append(toy.accuracy(model, toy.loader(seed=2)))
    return run.record, snapshots


quiet_about_attention = pytest.mark.filterwarnings("ignore:.*attention_weights:trackmetrics.TrackmetricsWarning")
DEV = toy.loader(seed=2)
TRAIN = toy.loader(seed=1, shuffle=True)


@quiet_about_attention
def test_a_run_evaluates_each_epoch_and_both_sets_at_the_end():
    """The dev accuracy is that after each epoch's last step; the final ones are of both sets with the last weights."""
    model = toy.model()
    record, expected = _run(TRAIN, DEV, model, epochs=3)
    assert [epoch.dev_accuracy for epoch in record.epochs] == pytest.approx(expected, abs=1e-12)
    assert record.final_results.dev_accuracy == pytest.approx(expected[-1], abs=1e-12)
    by_hand = toy.accuracy(model, toy.loader(seed=1))
    assert record.final_results.train_accuracy == pytest.approx(by_hand, abs=1e-12)


@quiet_about_attention
def test_evaluate_every_and_final_train_accuracy_save_passes():
    """Epochs between have no dev accuracy, nor the end a train accuracy, and nothing is said about it."""
    record, expected = _run(TRAIN, DEV, epochs=5, evaluate_every=2, final_train_accuracy=False)
    found = [epoch.dev_accuracy for epoch in record.epochs]
    assert found == [None, pytest.approx(expected[1]), None, pytest.approx(expected[3]), None]
    assert record.final_results.train_accuracy is None
    assert record.final_results.dev_accuracy == pytest.approx(expected[4], abs=1e-12)


@quiet_about_attention
def test_evaluate_replaces_the_pass():
    """What `evaluate=` returns stands in the record; it is handed the model in eval mode and the data themselves."""
    handed = []

    def evaluate(model, data):
        handed.append((model.training, torch.is_grad_enabled(), data))
        return 0.125 * len(handed)

    record, _ = _run(TRAIN, DEV, evaluate=evaluate)
    assert record.epochs[0].dev_accuracy == 0.125
    assert (record.final_results.train_accuracy, record.final_results.dev_accuracy) == (0.25, 0.375)
    assert handed == [(False, False, DEV), (False, False, TRAIN), (False, False, DEV)]


class FailsInEval(nn.Linear):
    def forward(self, x):
        if not self.training:
            raise ZeroDivisionError("no evaluation today")
        return super().forward(x)


def _texts_of(warned):
    return [str(item.message) for item in warned if item.category is TrackmetricsWarning]


@pytest.mark.parametrize(
    ("dev", "model", "reason"),
    [
        (DEV, FailsInEval(4, 2), "ZeroDivisionError: no evaluation today"),
        ((pair for pair in toy.examples(4)), None, "it is an iterator"),
        ([(torch.ones(4), torch.tensor([[1, 0]]))], None, "no dimension of 2 classes"),
        ([torch.ones(4)], None, "no .input, target. pair"),
        ([(torch.ones(3), torch.tensor(1))], None, "RuntimeError"),
        ([(torch.ones(4), torch.tensor([0.5, 0.5]))], None, "probabilities"),
    ],
    ids=["raises", "iterator", "unpaired", "no pair", "wrong size", "soft"],
)
def test_what_cant_be_evaluated_is_null_and_said_once(dev, model, reason):
    """The training goes on; the accuracy is null in each epoch; one warning says why and what to write."""
    with pytest.warns(TrackmetricsWarning) as warned:
        record, _ = _run(TRAIN, dev, model and model.train(), epochs=3, final_train_accuracy=False)
    assert [epoch.dev_accuracy for epoch in record.epochs] == [None] * 3
    assert record.final_results.dev_accuracy is None
    assert [epoch.epoch for epoch in record.epochs] == [1, 2, 3]
    said = [text for text in _texts_of(warned) if text.startswith("dev_accuracy is null")]
    assert len(said) == 1
    assert reason.replace(".input, target.", "(input, target)") in said[0]
    assert "give `evaluate=`" in said[0]


def test_an_evaluate_that_raises_costs_a_null():
    """An error in `evaluate=` reaches nobody but the warning."""

    def evaluate(model, data):
        raise ZeroDivisionError("mine")

    with pytest.warns(TrackmetricsWarning) as warned:
        record, _ = _run(TRAIN, DEV, evaluate=evaluate, final_train_accuracy=False)
    assert record.epochs[0].dev_accuracy is None
    assert "ZeroDivisionError: mine" in _texts_of(warned)[0]


@quiet_about_attention
def test_a_regression_has_no_accuracy_and_says_nothing():
    """Without classes there is nothing to miss."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    dev = [(torch.ones(4), torch.ones(1))]
    with Tracker("task", train=dev, dev=dev) as run, run.epoch():
        loss = F.mse_loss(model(torch.ones(2, 4)), torch.ones(2, 1))
        loss.backward()
        optimizer.step()
    assert run.record.epochs[0].dev_accuracy is None
    assert run.record.final_results.dev_accuracy is None
    assert run.record.final_inference.log_probs is None


@quiet_about_attention
def test_the_pass_counts_as_no_training():
    """The evaluation's own forwards and criterion calls change neither the training's loss nor its accuracy."""

    class LossInside(nn.Linear):
        def forward(self, x, labels=None):
            logits = super().forward(x)
            return F.cross_entropy(logits, labels), logits

    features, classes = toy.loader().dataset.tensors
    data = [{"x": x, "labels": y} for x, y in zip(features, classes)]
    model = LossInside(4, 2)
    losses = []
    with Tracker("task", train=data, dev=data) as run:
        for _ in range(2):
            with run.epoch():
                loss, _ = model(features, classes)
                losses.append(loss.item())
                loss.backward()
    assert [epoch.train_loss for epoch in run.record.epochs] == pytest.approx(losses)
    assert run.record.epochs[0].dev_accuracy == run.record.final_results.dev_accuracy
    by_hand = share(zip((best(row) for row in model(features, classes)[1].tolist()), classes.tolist()))
    assert run.record.epochs[0].dev_accuracy == pytest.approx(by_hand, abs=1e-12)
