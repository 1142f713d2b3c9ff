"""torchmetrics' metrics over a tracked run are what a plain loop, or another library, makes of the same batches."""

import contextlib
import copy
import threading
import warnings

import pytest
import torch
import torch._dynamo
import toy
from fingerprint import differences, fingerprint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from trackmetrics import Tracker, TrackmetricsWarning, tracked_training, tracker

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics isn't installed: the extra [torchmetrics]")
from torchmetrics import classification as of_classes  # noqa: E402
from torchmetrics import regression as of_numbers  # noqa: E402

CLASSES = 3


@pytest.fixture(autouse=True, scope="module")
def compiler_is_there():
    """The compiler wraps `Module.__init__` when it first compiles, and never takes that back."""
    torch._dynamo.mutation_guard.install_generation_tagging_init()


def loader(inputs, targets, batch_size=4):
    return DataLoader(TensorDataset(inputs, targets), batch_size=batch_size)


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def loaders(make_target, count=22, features=4, batch_size=4):
    """A training and a dev set; the last batch of each is a short one."""
    sets = [torch.randn(number, features, generator=drawn(seed)) for seed, number in enumerate((count, count - 5))]
    return [loader(inputs, make_target(inputs), batch_size) for inputs in sets]


def classes(inputs):
    return torch.randint(CLASSES, (len(inputs),), generator=drawn(len(inputs)))


def net(outputs=CLASSES, features=4, scale=1.0):
    model = nn.Linear(features, outputs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=drawn(7)))
    return model


class Loop:
    """A training of two epochs by a criterion; by hand, each batch's outputs and targets are given to `show`.

    `show(outputs, targets)` gives what a metric is to be fed, by hand.
    """

    def __init__(self, sets, criterion, show, outputs=CLASSES, context=contextlib.nullcontext, accumulate=1, scale=1.0):
        self.train, self.dev = sets
        self.criterion, self.show, self.context, self.accumulate = criterion, show, context, accumulate
        self.model = net(outputs, next(iter(self.train))[0].shape[-1], scale)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.3)

    def epoch(self, seen=lambda outputs, targets: None):
        for number, (inputs, targets) in enumerate(self.train):
            with self.context():
                outputs = self.model(inputs)
                loss = self.criterion(outputs, targets) / self.accumulate
            loss.backward()
            seen(outputs.detach(), targets)
            if (number + 1) % self.accumulate == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()

    def by_hand(self, metric):
        """The metric's values of each epoch: over the training, and over the dev set."""
        values = []
        for _ in range(2):
            metric.reset()
            self.epoch(lambda outputs, targets: metric.update(*self.show(outputs, targets)))
            train = metric.compute()
            metric.reset()
            with torch.no_grad():
                for inputs, targets in self.dev:
                    metric.update(*self.show(self.model(inputs), targets))
            values.append((train, metric.compute()))
        return values

    def tracked(self, **metrics):
        """The records of the same training's epochs."""
        with Tracker("t", train=self.train, dev=self.dev, metrics=metrics, final_train_accuracy=False) as run:
            for _ in range(2):
                with run.epoch():
                    self.epoch()
        return run.record.epochs


def assert_same(build, **metrics):
    """Each metric has, in each epoch and of both sets, the very value that the same training has by hand."""
    expected = {name: build().by_hand(copy.deepcopy(metric)) for name, metric in metrics.items()}
    epochs = build().tracked(**metrics)
    for name, values in expected.items():
        for epoch, (train, dev) in zip(epochs, values, strict=True):
            for role, value in (("train", train), ("dev", dev)):
                torch.testing.assert_close(torch.tensor(epoch.metrics[f"{role}_{name}"]), value, atol=1e-7, rtol=0)
    assert len({str(value) for value in expected[name]}) == 2  # the epochs differ
    return epochs


# Kinds of training


def test_classes():
    """A multi-class training's F1, AUROC and confusion matrix, the short last batches included."""
    assert_same(
        lambda: Loop(loaders(classes), F.cross_entropy, lambda outputs, targets: (outputs.softmax(1), targets)),
        f1=of_classes.MulticlassF1Score(CLASSES),
        each=of_classes.MulticlassRecall(CLASSES, average=None),
        auroc=of_classes.MulticlassAUROC(CLASSES),
        table=of_classes.MulticlassConfusionMatrix(CLASSES),
    )


def test_against_another_library():
    """The dev set's F1 and AUROC are scikit-learn's, from the model as it is at the epoch's end."""
    scores = pytest.importorskip("sklearn.metrics", reason="scikit-learn isn't installed: the extra [test-all]")
    loop = Loop(loaders(classes), F.cross_entropy, None)
    epochs = loop.tracked(f1=of_classes.MulticlassF1Score(CLASSES), auroc=of_classes.MulticlassAUROC(CLASSES))
    inputs, targets = loop.dev.dataset.tensors
    chances = loop.model(inputs).softmax(1).detach().double().numpy()
    chances /= chances.sum(1, keepdims=True)
    f1 = scores.f1_score(targets, chances.argmax(1), average="macro")
    assert epochs[-1].metrics["dev_f1"] == pytest.approx(f1, abs=1e-6)
    auroc = scores.roc_auc_score(targets, chances, multi_class="ovr")
    assert epochs[-1].metrics["dev_auroc"] == pytest.approx(auroc, abs=1e-6)


def test_log_probabilities():
    """`nll_loss` is fed log-probabilities, the metric probabilities; a model that returns either has the same."""

    def build():
        return Loop(
            loaders(classes),
            lambda outputs, targets: F.nll_loss(outputs.log_softmax(1), targets),
            lambda outputs, targets: (outputs.softmax(1), targets),
        )

    assert_same(build, auroc=of_classes.MulticlassAUROC(CLASSES), error=of_classes.MulticlassCalibrationError(CLASSES))


class Probabilities(nn.Module):
    """Returns what `nll_loss` wants the logarithm of."""

    def __init__(self):
        super().__init__()
        self.linear = net()

    def forward(self, inputs):
        return self.linear(inputs).softmax(1)


def test_a_model_that_returns_probabilities():
    """Its dev set's values are those of its probabilities, which aren't put through a softmax once more."""

    def build():
        loop = Loop(
            loaders(classes),
            lambda outputs, targets: F.nll_loss(outputs.log(), targets),
            lambda outputs, targets: (outputs, targets),
        )
        loop.model = Probabilities()
        loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.3)
        return loop

    assert_same(build, error=of_classes.MulticlassCalibrationError(CLASSES))


def test_logits_between_nought_and_one():
    """Logits of a batch that could be probabilities are put through the softmax as those of any other are."""
    sets = loaders(classes, batch_size=1)
    assert_same(
        lambda: Loop(sets, F.cross_entropy, lambda outputs, targets: (outputs.softmax(1), targets), scale=0.3),
        error=of_classes.MulticlassCalibrationError(CLASSES),
        auroc=of_classes.MulticlassAUROC(CLASSES),
    )


def test_binary_logits_between_nought_and_one():
    """Logits that could be probabilities are no probabilities, however few a batch has of them."""
    sets = loaders(lambda inputs: (inputs.sum(1) > 0).float(), batch_size=2)

    def build():
        def criterion(outputs, targets):
            return F.binary_cross_entropy_with_logits(outputs[:, 0], targets)

        return Loop(
            sets, criterion, lambda outputs, targets: (outputs[:, 0].sigmoid(), targets.long()), outputs=1, scale=0.3
        )

    model = build().model
    logits = model(sets[0].dataset.tensors[0])
    assert ((logits > 0) & (logits < 0.5)).any()  # that torchmetrics would take for improbable
    assert_same(build, f1=of_classes.BinaryF1Score(), auroc=of_classes.BinaryAUROC())


def test_binary_probabilities():
    """`binary_cross_entropy` is fed probabilities, and so is the metric."""

    def build():
        loop = Loop(
            loaders(lambda inputs: (inputs.sum(1, keepdim=True) > 0).float()),
            F.binary_cross_entropy,
            lambda outputs, targets: (outputs, targets.long()),
        )
        loop.model = nn.Sequential(net(1), nn.Sigmoid())
        loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.3)
        return loop

    assert_same(build, f1=of_classes.BinaryF1Score(), precision=of_classes.BinaryAveragePrecision())


def test_multilabel():
    """Several labels an example: `[N, labels]` of probabilities."""

    def labels(inputs):
        return (torch.rand(len(inputs), 5, generator=drawn(len(inputs))) > 0.6).float()

    assert_same(
        lambda: Loop(
            loaders(labels),
            F.binary_cross_entropy_with_logits,
            lambda outputs, targets: (outputs.sigmoid(), targets.long()),
            outputs=5,
        ),
        f1=of_classes.MultilabelF1Score(5),
        ranking=of_classes.MultilabelRankingAveragePrecision(5),
    )


IGNORED = -7


def tokens(inputs):
    targets = torch.randint(CLASSES, inputs.shape[:2], generator=drawn(len(inputs)))
    targets[:, 4:] = torch.where(torch.rand(targets[:, 4:].shape, generator=drawn(3)) > 0.5, IGNORED, targets[:, 4:])
    return targets


@pytest.mark.parametrize("flat", [True, False], ids=["flattened", "in rows"])
def test_tokens_that_are_ignored(flat):
    """Token classification: targets of `ignore_index` are left out, a batch with none but these altogether."""
    sets = []
    for seed, count in enumerate((11, 9)):
        inputs = torch.randn(count, 6, 4, generator=drawn(seed))
        targets = tokens(inputs)
        targets[4:8] = IGNORED
        sets.append(loader(inputs, targets))

    def criterion(outputs, targets):
        if flat:
            return F.cross_entropy(outputs.reshape(-1, CLASSES), targets.reshape(-1), ignore_index=IGNORED)
        return F.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=IGNORED).nan_to_num()

    def left(outputs, targets):
        counted = targets != IGNORED
        return outputs[counted].softmax(1), targets[counted]

    class Patient(Loop):
        def by_hand(self, metric):
            update = metric.update
            metric.update = lambda outputs, targets: update(outputs, targets) if len(targets) else None
            return super().by_hand(metric)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrackmetricsWarning)
        epochs = Patient(sets, criterion, left).tracked(f1=of_classes.MulticlassF1Score(CLASSES))
    values = Patient(sets, criterion, left).by_hand(of_classes.MulticlassF1Score(CLASSES))
    for epoch, (train, dev) in zip(epochs, values, strict=True):
        assert epoch.metrics["train_f1"] == pytest.approx(train.item(), abs=1e-7)
        assert epoch.metrics["dev_f1"] == pytest.approx(dev.item(), abs=1e-7)


def test_nothing_ignored_keeps_the_shape():
    """`[N, C, T]` and `[N, T]`, of the training and of the dev set: a share a sequence needs them."""
    sets = []
    for seed, count in enumerate((11, 9)):
        inputs = torch.randn(count, 6, 4, generator=drawn(seed))
        sets.append(loader(inputs, torch.randint(CLASSES, (count, 6), generator=drawn(seed))))
    assert_same(
        lambda: Loop(
            sets,
            lambda outputs, targets: F.cross_entropy(outputs.transpose(1, 2), targets),
            lambda outputs, targets: (outputs.transpose(1, 2).softmax(1), targets),
        ),
        f1=of_classes.MulticlassF1Score(CLASSES, multidim_average="samplewise"),
    )


def test_a_mask_of_the_loops_own():
    """With `reduction="none"`, targets that got no gradient don't count, in large calls and small ones."""

    def criterion(outputs, targets):
        weights = (torch.arange(len(targets)) % 3 > 0).float()
        return (F.cross_entropy(outputs, targets, reduction="none") * weights).sum() / weights.sum()

    sets = loaders(classes)
    loop = Loop(sets, criterion, None)
    metric = of_classes.MulticlassF1Score(CLASSES)

    def seen(outputs, targets):
        entered = torch.arange(len(targets)) % 3 > 0
        metric.update(outputs[entered].softmax(1), targets[entered])

    loop.epoch(seen)
    epochs = Loop(sets, criterion, None).tracked(f1=of_classes.MulticlassF1Score(CLASSES))
    assert epochs[0].metrics["train_f1"] == pytest.approx(metric.compute().item(), abs=1e-7)


@pytest.mark.parametrize("squeezed", [True, False])
def test_regression(squeezed):
    """Outputs and targets are fed as they are; the dev set, which has no accuracy, all the same."""
    sets = loaders(lambda inputs: inputs.sum(1) if squeezed else inputs.sum(1, keepdim=True))

    def shown(outputs, targets):
        return outputs.squeeze(1) if squeezed else outputs, targets

    epochs = assert_same(
        lambda: Loop(sets, lambda outputs, targets: F.mse_loss(*shown(outputs, targets)), shown, outputs=1),
        mse=of_numbers.MeanSquaredError(),
        r2=of_numbers.R2Score(),
        pearson=of_numbers.PearsonCorrCoef(),
    )
    assert [epoch.metrics["train_mse"] for epoch in epochs] == pytest.approx([epoch.train_loss for epoch in epochs])
    assert {epoch.dev_accuracy for epoch in epochs} == {None}


def test_accumulation():
    """Each micro-batch counts once, those after the last step too."""
    assert_same(
        lambda: Loop(
            loaders(classes),
            F.cross_entropy,
            lambda outputs, targets: (outputs.softmax(1), targets),
            accumulate=4,
        ),
        auroc=of_classes.MulticlassAUROC(CLASSES),
    )


def test_mixed_precision():
    """Half types are fed in float32: the values as they are, what a metric works out in full."""
    assert_same(
        lambda: Loop(
            loaders(classes),
            F.cross_entropy,
            lambda outputs, targets: (outputs.float().softmax(1), targets),
            context=lambda: torch.autocast("cpu", torch.bfloat16),
        ),
        error=of_classes.MulticlassCalibrationError(CLASSES),
        auroc=of_classes.MulticlassAUROC(CLASSES),
    )


def test_calls_too_large_to_be_kept():
    """Outputs of more bytes than wait for the step's end."""
    sets = loaders(lambda inputs: inputs.argmax(1), count=64, features=600, batch_size=32)

    def build():
        return Loop(sets, F.cross_entropy, lambda outputs, targets: (outputs.softmax(1), targets), outputs=600)

    assert 32 * 600 * 4 > 2**16
    assert_same(build, error=of_classes.MulticlassCalibrationError(600))


# Where values come from, and where they stand


def test_entries_of_a_collection():
    """A collection, and a metric that gives a dict, have a value an entry, by its name."""
    both = torchmetrics.MetricCollection(
        {"f1": of_classes.MulticlassF1Score(CLASSES), "table": of_classes.MulticlassConfusionMatrix(CLASSES)}
    )
    epochs = Loop(loaders(classes), F.cross_entropy, None).tracked(all=both)
    alone = Loop(loaders(classes), F.cross_entropy, None).tracked(
        f1=of_classes.MulticlassF1Score(CLASSES), table=of_classes.MulticlassConfusionMatrix(CLASSES)
    )
    for epoch, other in zip(epochs, alone, strict=True):
        renamed = {name.replace("_", "_all_", 1): value for name, value in other.metrics.items()}
        assert epoch.metrics == renamed
        assert set(epoch.metrics) == {"train_all_f1", "train_all_table", "dev_all_f1", "dev_all_table"}


def test_metrics_of_one_epoch():
    """Those of an epoch come to those of the run; of one name, the epoch's counts."""
    train, dev = toy.loader(), toy.loader(10, seed=1)
    model = toy.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Tracker("t", train=train, dev=dev, metrics={"a": of_classes.MulticlassF1Score(2)}) as run:
        for metrics in (
            None,
            {"b": of_classes.MulticlassF1Score(2)},
            {"a": of_classes.MulticlassF1Score(2, average=None)},
        ):
            with run.epoch(metrics=metrics):
                toy.train_epoch(model, optimizer, train)
    first, second, third = (epoch.metrics for epoch in run.record.epochs)
    assert set(first) == {"train_a", "dev_a"}
    assert set(second) == {"train_a", "dev_a", "train_b", "dev_b"}
    assert second["train_b"] == second["train_a"]
    assert second["dev_b"] == second["dev_a"]
    assert [len(third[name]) for name in ("train_a", "dev_a")] == [2, 2]


def test_records_of_steps():
    """`epochs(every=...)`: each record has its own steps' values."""
    train, dev = toy.loader(24, batch_size=4), toy.loader(10, seed=1)
    model, plain = toy.model(), toy.model()
    metric = of_classes.MulticlassF1Score(2)
    with (
        Tracker("t", train=train, dev=dev) as run,
        run.epochs(every=2, metrics={"f1": of_classes.MulticlassF1Score(2)}),
    ):
        toy.train_epoch(model, torch.optim.SGD(model.parameters(), lr=0.1), train)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    expected = []
    for number, (features, targets) in enumerate(train):
        outputs = plain(features)
        optimizer.zero_grad()
        F.cross_entropy(outputs, targets).backward()
        optimizer.step()
        metric.update(outputs, targets)
        if number % 2:
            expected.append(metric.compute().item())
            metric.reset()
    assert [epoch.metrics["train_f1"] for epoch in run.record.epochs] == expected
    assert len(set(expected)) > 1


def run_of(metrics, body=lambda epoch, model: None, epochs=1, train=None, dev=None, **options):
    """The records of toy epochs, and what was said about metrics; `body` goes on in each epoch."""
    train, dev = train or toy.loader(), dev or toy.loader(10, seed=1, batch_size=4)
    model = toy.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrackmetricsWarning)
        with Tracker("t", train=train, dev=dev, metrics=metrics, final_train_accuracy=False, **options) as run:
            for _ in range(epochs):
                with run.epoch() as epoch:
                    toy.train_epoch(model, optimizer, train)
                    body(epoch, model)
    said = [str(item.message) for item in caught if item.category is TrackmetricsWarning]
    return run.record.epochs, [text for text in said if "f1" in text]


def f1():
    return of_classes.MulticlassF1Score(2)


def test_what_the_user_logs_wins():
    """Under the name of a metric's value, too; then the dev set isn't gone through for it."""
    passes = []

    class Counting(DataLoader):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    (epoch,), said = run_of({"f1": f1()}, lambda epoch, model: epoch.log(dev_f1=0.25, train_f1=None))
    assert epoch.metrics == {"train_f1": None, "dev_f1": 0.25}
    assert not said


def test_between_evaluations_there_is_none():
    """`evaluate_every=` saves the pass, for metrics too; their names stand in each record."""
    epochs, said = run_of({"f1": f1()}, epochs=3, evaluate_every=2)
    assert [epoch.metrics["dev_f1"] is None for epoch in epochs] == [True, False, True]
    assert not said


def test_an_evaluation_of_the_users_own():
    """It gives the accuracy, and the metrics are fed by a pass all the same."""

    def evaluate(epoch, model):
        model.eval()
        with torch.no_grad():
            for features, targets in dev:
                F.cross_entropy(model(features), targets)
        model.train()

    dev = toy.loader(10, seed=1, batch_size=4)
    (epoch,), said = run_of({"f1": f1()}, evaluate, dev=dev)
    (other,), _ = run_of({"f1": f1()}, dev=dev)
    assert epoch.metrics == other.metrics
    assert epoch.dev_accuracy == other.dev_accuracy
    assert not said


def test_a_function_of_the_users_own():
    """`evaluate=` takes the pass's place: the metrics of the dev set are null, and that is said once."""
    epochs, said = run_of({"f1": f1()}, epochs=2, evaluate=lambda model, data: 0.5)
    assert [epoch.metrics["dev_f1"] for epoch in epochs] == [None, None]
    assert all(epoch.metrics["train_f1"] is not None for epoch in epochs)
    assert len(said) == 1
    assert "evaluate=" in said[0]
    assert "epoch.log(dev_f1=...)" in said[0]


def test_examples_one_by_one():
    """A dev set of single examples, trained in batches, and trained one by one."""
    pairs = toy.examples(9, seed=3)
    features, targets = torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])
    for train in (toy.loader(), toy.examples(12)):
        model = toy.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with (
            Tracker("t", train=train, dev=pairs, metrics={"f1": f1(), "auroc": of_classes.MulticlassAUROC(2)}) as run,
            run.epoch(),
        ):
            toy.train_epoch(model, optimizer, train)
        chances = model(features).softmax(1)
        metrics = run.record.epochs[0].metrics
        assert metrics["dev_f1"] == pytest.approx(f1()(chances, targets).item(), abs=1e-7)
        assert metrics["dev_auroc"] == pytest.approx(of_classes.MulticlassAUROC(2)(chances, targets).item(), abs=1e-7)


class LossInside(nn.Module):
    """Takes its labels, shifts them, and computes its own loss."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(CLASSES, CLASSES)
        nn.init.normal_(self.table.weight, generator=drawn(5))

    def forward(self, input_ids, labels=None):
        logits = self.table(input_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].reshape(-1, CLASSES), labels[:, 1:].reshape(-1))
        return {"loss": loss, "logits": logits}


def test_a_model_that_computes_its_loss_inside():
    """What its own criterion is given is what metrics are fed, of the dev set too: a shift is its own."""
    ids = [torch.randint(CLASSES, (count, 6), generator=drawn(count)) for count in (12, 8)]
    sets = [DataLoader([{"input_ids": row, "labels": row} for row in rows], batch_size=4) for rows in ids]
    model = LossInside()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    metrics = {"f1": of_classes.MulticlassF1Score(CLASSES)}
    with Tracker("t", train=sets[0], dev=sets[1], metrics=metrics) as run, run.epoch():
        for batch in sets[0]:
            optimizer.zero_grad()
            model(**batch)["loss"].backward()
            optimizer.step()
    logits = model(ids[1])["logits"]
    expected = of_classes.MulticlassF1Score(CLASSES)(logits[:, :-1].reshape(-1, CLASSES), ids[1][:, 1:].reshape(-1))
    assert run.record.epochs[0].metrics["dev_f1"] == pytest.approx(expected.item(), abs=1e-7)


# What can't be had


def null_after(loss, sets=None, outputs=2, **metrics):
    """What is said of `train_f1` and `dev_f1` after an epoch with the loop's own loss of outputs and targets."""
    train, dev = sets or (toy.loader(), toy.loader(10, seed=1))
    model = net(outputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    metrics = metrics or {"f1": of_classes.MulticlassF1Score(2)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrackmetricsWarning)
        with Tracker("t", train=train, dev=dev, metrics=metrics) as run, run.epoch():
            for inputs, targets in train:
                optimizer.zero_grad()
                loss(model(inputs), targets).backward()
                optimizer.step()
    said = {str(item.message).partition(" ")[0]: str(item.message) for item in caught}
    values = run.record.epochs[0].metrics
    return {name: said.get(name) for name, value in values.items() if value is None}


def test_a_compiled_criterion():
    """It isn't observed, so metrics aren't fed: null, and why."""
    compiled = torch.compile(F.cross_entropy, backend="aot_eager")
    said = null_after(compiled)
    torch._dynamo.reset()
    assert set(said) == {"train_f1", "dev_f1"}
    assert "compiled" in said["train_f1"]
    assert "epoch.log(train_f1=...)" in said["train_f1"]
    assert "no criterion of torch.nn.functional was seen" in said["dev_f1"]


def test_several_heads():
    """Which of two calls has the model's outputs isn't guessed."""
    said = null_after(lambda outputs, targets: F.cross_entropy(outputs, targets) + F.cross_entropy(-outputs, targets))
    assert "several criterion calls" in said["train_f1"]
    assert set(said) == {"train_f1", "dev_f1"}


def test_an_auxiliary_loss_beside_the_criterion():
    """The call with class targets is the one that is judged, and fed."""
    assert not null_after(lambda outputs, targets: F.cross_entropy(outputs, targets) + F.mse_loss(outputs, outputs * 0))


def test_soft_targets():
    """Probabilities as targets have no classes."""

    def soft(outputs, targets):
        return F.cross_entropy(outputs, F.one_hot(targets, 2).float())

    assert "probabilities" in null_after(soft)["train_f1"]

    def smoothed(outputs, targets):
        return F.binary_cross_entropy_with_logits(outputs[:, 0], 0.1 + 0.8 * targets)

    assert "probabilities" in null_after(smoothed, f1=of_classes.BinaryF1Score())["train_f1"]


def test_overwritten_outputs():
    """Outputs that changed before the backward ended aren't what the criterion was given."""

    def loss(outputs, targets):
        scores = outputs * 1.0
        value = F.cross_entropy(scores, targets)
        with torch.no_grad():
            scores.add_(1)
        return value

    assert "overwritten" in null_after(loss)["train_f1"]


@pytest.mark.parametrize("epochs", [3, 12])
def test_targets_that_the_loop_changes(epochs):
    """Of a regression too: what the pass would feed is not what was trained on. However few the batches are."""
    sets = loaders(lambda inputs: inputs.sum(1), count=4 * epochs)
    mse = {"f1": of_numbers.MeanSquaredError()}
    said = null_after(lambda outputs, targets: F.mse_loss(outputs[:, 0], targets / 3), sets, 1, **mse)
    assert set(said) == {"dev_f1"}
    assert "targets are not those that its loader yields" in said["dev_f1"]
    assert not null_after(lambda outputs, targets: F.mse_loss(outputs[:, 0], targets), sets, 1, **mse)


def test_a_criterion_without_outputs_and_targets():
    """A triplet loss has none."""

    def loss(outputs, targets):
        return F.triplet_margin_loss(outputs, outputs.flip(0), outputs.roll(1, 0))

    assert "triplet_margin_loss has no outputs with a target each" in null_after(loss)["train_f1"]


def test_a_metric_that_fails():
    """One warning a value names it, what it was fed and the mend; the others and the training go on."""
    wrong = of_classes.MulticlassF1Score(5, validate_args=True, multidim_average="samplewise")
    epochs, said = run_of({"f1_wrong": wrong, "f1": f1()}, epochs=2)
    alone, _ = run_of({"f1": f1()}, epochs=2)
    assert [epoch.metrics["f1_wrong" and "train_f1_wrong"] for epoch in epochs] == [None, None]
    for epoch, other in zip(epochs, alone, strict=True):
        assert {name: value for name, value in epoch.metrics.items() if "wrong" not in name} == other.metrics
        assert epoch.train_loss == other.train_loss
    assert len(said) == 2
    assert "train_f1_wrong is null: its update() with shapes [8, 2], [8] raised" in said[0]
    assert "epoch.log(train_f1_wrong=...)" in said[0]
    assert said[1].startswith("dev_f1_wrong is null")


class Mean:
    """A metric of one's own, without any library: how often class 1 is expected."""

    fails = ()

    def __init__(self, *fails):
        self.fails = fails
        self.count = 0
        self.values = []

    def __deepcopy__(self, memo):
        if "copy" in self.fails:
            raise RuntimeError("no copies")
        return type(self)(*self.fails)

    def _maybe(self, name):
        if name in self.fails:
            raise RuntimeError(f"no {name}")

    def update(self, outputs, targets):
        self._maybe("update")
        self.values += targets.tolist()

    def compute(self):
        self._maybe("compute")
        return object() if "plain" in self.fails else sum(self.values) / len(self.values)

    def reset(self):
        self._maybe("reset")
        self.values = []


@pytest.mark.parametrize("fault", ["copy", "update", "compute", "reset", "plain"])
def test_each_way_to_fail(fault):
    """Wherever a metric fails, its value is null, and the others have theirs."""
    (epoch,), said = run_of({"f1": Mean(fault), "f1_mean": Mean(), "f1_real": f1()})
    (other,), _ = run_of({"f1_mean": Mean(), "f1_real": f1()})
    assert epoch.metrics == {"train_f1": None, "dev_f1": None, **other.metrics}
    assert len(said) == 2
    assert "train_f1 is null" in said[0]
    assert "dev_f1 is null" in said[1]
    assert other.metrics["train_f1_mean"] == sum(int(pair[1]) for pair in toy.examples(24)) / 24


class Careless(Mean):
    """Writes into what it is given."""

    def update(self, outputs, targets):
        super().update(outputs, targets)
        outputs.zero_(), targets.zero_()


def test_a_metric_that_overwrites():
    """Its own value is right, and so is the training's; where there are others, theirs would be wrong."""
    (careless,), said = run_of({"f1": Careless()})
    (careful,), _ = run_of({"f1": Mean()})
    assert careless.metrics == careful.metrics
    assert careless.train_accuracy == careful.train_accuracy
    assert not said
    (epoch,), said = run_of({"f1": Careless(), "f1_real": f1()})
    assert set(epoch.metrics.values()) == {None}
    assert all("'f1' overwrites what each of them is fed" in text for text in said)


def test_what_a_metric_recovers_from():
    """A metric that failed in one epoch is tried again in the next."""

    class Once(Mean):
        def __deepcopy__(self, memo):
            return self

        def update(self, outputs, targets):
            self.count += 1
            if self.count == 1:
                raise RuntimeError("once")
            super().update(outputs, targets)

    epochs, said = run_of({"f1": Once()}, epochs=2)
    assert [epoch.metrics["train_f1"] is None for epoch in epochs] == [True, False]
    assert epochs[0].metrics["dev_f1"] is not None
    assert len(said) == 1


def test_two_metrics_of_one_name():
    """A collection's entry and a metric that come to the same name: null, rather than one of them."""
    both = torchmetrics.MetricCollection({"b": f1()})
    (epoch,), said = run_of({"f1": both, "f1_b": f1()})
    assert epoch.metrics == {"train_f1_b": None, "dev_f1_b": None}
    assert "two metrics give it" in said[0]


# What it leaves alone


class Heard(torchmetrics.Metric):
    """Draws numbers, calls a criterion with gradients, steps an optimizer and prints nothing."""

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, outputs, targets):
        with torch.enable_grad():
            own = nn.Linear(outputs.shape[1], outputs.shape[1])
            own.weight.data.normal_()
            optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
            loss = F.cross_entropy(own(outputs), targets)
            loss.backward()
            optimizer.step()
        self.total += loss.detach()

    def compute(self):
        return self.total


class Noisy(nn.Module):
    """Draws in each forward, keeps a running mean."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(net(8), nn.BatchNorm1d(8), nn.Dropout(0.3), net(CLASSES, 8))

    def forward(self, inputs):
        return self.layers(inputs)


def train_noisy(train):
    torch.manual_seed(3)
    model = Noisy()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    states = []
    for _ in range(2):
        yield
        for inputs, targets in train:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        yield
        states.append(fingerprint(model=model, optimizer=optimizer))
    yield states


def test_the_training_is_the_same_to_the_last_bit():
    """Parameters, buffers, optimizer state and random streams, with metrics that draw, step and overwrite."""
    train, dev = loaders(classes)
    plain = list(train_noisy(train))[-1]
    metrics = {
        "heard": Heard(),
        "boot": torchmetrics.wrappers.BootStrapper(of_classes.MulticlassF1Score(CLASSES), num_bootstraps=3),
        "auroc": of_classes.MulticlassAUROC(CLASSES),
    }
    records = {}
    for name, chosen in {"with": metrics, "without": None}.items():
        steps = train_noisy(train)
        next(steps)
        with Tracker("t", train=train, dev=dev, metrics=chosen) as run:
            for _ in range(2):
                with run.epoch():
                    next(steps)
                states = next(steps)
        for one, other in zip(plain, states, strict=True):
            assert differences(one, other) == []
        records[name] = run.record
    for one, other in zip(records["with"].epochs, records["without"].epochs, strict=True):
        for key in ("train_loss", "train_accuracy", "dev_accuracy", "gradient_norm"):
            assert getattr(one, key) == getattr(other, key)
    assert records["with"].final_results.dev_accuracy == records["without"].final_results.dev_accuracy
    first, second = (epoch.metrics for epoch in records["with"].epochs)
    assert first["train_boot_std"] > 0
    assert first["train_heard"] > 0
    assert first != second


def test_the_users_objects_stay_as_they_are():
    """The run has copies: what an object held before, it holds afterwards, and nothing of it is in the values."""
    given = f1()
    given.update(torch.tensor([[0.9, 0.1]] * 9), torch.ones(9, dtype=torch.int64))
    before = copy.deepcopy(given)
    (epoch,), _ = run_of({"f1": given})
    (other,), _ = run_of({"f1": f1()})
    assert epoch.metrics == other.metrics
    assert given.compute() == before.compute()
    assert given._update_count == before._update_count == 1


def test_runs_side_by_side():
    """Two calls of one decorated function, in two threads: each has its own."""
    barrier = threading.Barrier(2)
    records = {}

    @tracked_training("t", part="{name}", metrics={"f1": f1()}, dev="dev")
    def train_one(name, train, dev):
        model = toy.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tracker.epoch():
            for batch in train:
                barrier.wait(30)
                toy.train_epoch(model, optimizer, [batch])
        records[name] = tracker.record.epochs[0].metrics
        return model

    sets = {"a": (toy.loader(), toy.loader(10, seed=1)), "b": (toy.loader(seed=4), toy.loader(10, seed=5))}
    threads = [threading.Thread(target=train_one, args=(name, *data)) for name, data in sets.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, (train, dev) in sets.items():
        (epoch,), _ = run_of({"f1": f1()}, train=train, dev=dev)
        assert records[name] == epoch.metrics
    assert records["a"] != records["b"]


def test_an_epoch_that_is_abandoned():
    """What an exception cut short isn't in the next epoch's values."""
    train, dev = toy.loader(), toy.loader(10, seed=1)
    model = toy.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    table = of_classes.MulticlassConfusionMatrix(2)
    with Tracker("t", train=train, dev=dev, metrics={"table": table}) as run:
        with contextlib.suppress(KeyError), run.epoch():
            toy.train_epoch(model, optimizer, train)
            raise KeyError
        with run.epoch():
            toy.train_epoch(model, optimizer, train)
    (epoch,) = run.record.epochs
    assert sum(map(sum, epoch.metrics["train_table"])) == 24
    assert sum(map(sum, epoch.metrics["dev_table"])) == 10


def test_the_file_has_the_values():
    """They stand after the record's own keys, and are read back."""
    from trackmetrics import load_run

    (epoch,), _ = run_of({"f1": of_classes.MulticlassF1Score(2, average=None)})
    assert load_run("output/t_training_metrics.json").epochs[0].metrics == epoch.metrics


def test_a_metric_built_inside_the_run():
    """A metric's own hash needs what its constructor has yet to make; and what it is built with is no model's."""
    train, dev = toy.loader(), toy.loader(10, seed=1)
    with Tracker("t", train=train, dev=dev) as run:
        model = nn.Sequential(nn.Linear(4, 2))
        with run.epoch(metrics={"f1": f1()}):
            toy.train_epoch(model, torch.optim.SGD(model.parameters(), lr=0.1), train)
    assert run.record.epochs[0].metrics["train_f1"] is not None
    assert run.record.metadata.hyperparameters.model["class"] == "Sequential"
    assert not run.record.extensions.get("warnings")
