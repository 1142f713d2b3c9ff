"""A loop whose inputs or targets aren't its loader's has no accuracy that an evaluation over the set could repeat."""

import warnings

import numpy as np
import pytest
import torch
import torch._dynamo.eval_frame
import toy
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate

from trackmetrics import Tracker, TrackmetricsWarning


@pytest.fixture(autouse=True)
def nothing_to_compile(monkeypatch):
    """Whatever other tests have compiled."""
    monkeypatch.setattr(torch._dynamo.eval_frame, "cached_backends", {})


def _run(loss, train, net=None):
    """The dev accuracy of an epoch over `train` with the loop's own `loss(net, inputs, targets)`, and what was said."""
    net = net or toy.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrackmetricsWarning)
        with Tracker("t", train=train, dev=train) as run, run.epoch():
            for batch in train:
                optimizer.zero_grad()
                for part in loss(net, *batch):
                    part.backward()
                optimizer.step()
    said = [str(item.message) for item in caught if "are not those that its loader yields" in str(item.message)]
    return run.record.epochs[0].dev_accuracy, said, net


CHANGING = {
    "labels turned round": lambda net, x, y: [F.cross_entropy(net(x), 1 - y)],
    "a threshold": lambda net, x, y: [F.cross_entropy(net(x), (y > 1).long())],
    "a part of the batch": lambda net, x, y: [F.cross_entropy(net(x)[1:], y[1:])],
    "turned round, binary": lambda net, x, y: [F.binary_cross_entropy_with_logits(net(x)[:, 0], 1.0 - y)],
}
KEEPING = {
    "as they are": lambda net, x, y: [F.cross_entropy(net(x), y)],
    "flattened": lambda net, x, y: [F.cross_entropy(net(x).view(-1, 2), y.view(-1))],
    "in chunks": lambda net, x, y: [F.cross_entropy(net(a), b) for a, b in zip(x.chunk(2), y.chunk(2))],
    "copied": lambda net, x, y: [F.cross_entropy(net(x + 0.0), y)],
    "joined with others": lambda net, x, y: [F.cross_entropy(net(torch.cat([x, -x])), torch.cat([y, 1 - y]))],
    "joined with others first": lambda net, x, y: [F.cross_entropy(net(torch.cat([-x, x]))[-len(y) :], y)],
}


def scaled_in_place(net, x, y):
    x.mul_(2)
    return [F.cross_entropy(net(x), y)]


CHANGING_INPUTS = {
    "normalised": lambda net, x, y: [F.cross_entropy(net((x - x.mean()) / x.std()), y)],
    "normalised in place": scaled_in_place,
    "normalised, reshaped": lambda net, x, y: [F.cross_entropy(net((x / 2).view(-1, 2, 2).flatten(1)), y)],
    "by a module": lambda net, x, y: [F.cross_entropy(net(torch.nn.LayerNorm(4, elementwise_affine=False)(x)), y)],
    "cut": lambda net, x, y: [F.cross_entropy(net(F.pad(x[:, :3], (0, 1))), y)],
}


@pytest.mark.parametrize("loss", CHANGING_INPUTS.values(), ids=CHANGING_INPUTS)
def test_changed_inputs_make_the_accuracy_null(loss):
    """The set's inputs as they are would be judged by a model that has never seen the like."""
    train = DataLoader([tuple(map(torch.clone, pair)) for pair in toy.examples(24)], 8)
    accuracy, said, _ = _run(loss, train)
    assert accuracy is None
    assert len(said) == 3  # of the epochs' dev accuracy, of the final training accuracy, and of the final inference
    assert all("the loop's inputs" in message for message in said)


def test_the_final_inference_of_changed_inputs_is_null_but_for_an_example_that_is_given():
    """Who names an example names it as the model takes it."""
    for given, expected in (({}, False), ({"example": torch.zeros(4)}, True)):
        net, train = toy.model(), toy.loader()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TrackmetricsWarning)
            with Tracker("t", train=train, dev=train, **given) as run, run.epoch():
                for x, y in train:
                    optimizer.zero_grad()
                    F.cross_entropy(net(x / 2), y).backward()
                    optimizer.step()
        assert (run.record.final_inference is not None) == expected


class Masked(torch.nn.Linear):
    """Takes a mask beside its inputs, and labels by name."""

    def forward(self, features, mask=None, labels=None):
        return super().forward(features if mask is None else features * mask)


NAMED = {
    "by name": (lambda net, batch: net(features=batch["features"]), False),
    "by place": (lambda net, batch: net(batch["features"]), False),
    "all that there is": (lambda net, batch: net(**batch), False),
    "beside a mask": (lambda net, batch: net(batch["features"], torch.ones(4)), False),
    "changed, by name": (lambda net, batch: net(features=batch["features"] * 2), True),
    "changed, by place": (lambda net, batch: net(batch["features"] * 2), True),
    "changed beside a mask, by name": (
        lambda net, batch: net(features=batch["features"] * 2, mask=batch["mask"]),
        True,
    ),
    "changed beside a mask, by place": (lambda net, batch: net(batch["features"] * 2, batch["mask"]), True),
}


@pytest.mark.parametrize(("call", "changed"), NAMED.values(), ids=NAMED)
def test_the_inputs_of_dicts_are_compared_by_name(call, changed):
    """What the model takes of a dict's values, under their names or in order."""
    pairs = toy.examples(24)
    train = DataLoader([{"mask": torch.ones(4), "features": x, "labels": y} for x, y in pairs], 8)
    net = Masked(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrackmetricsWarning)
        with Tracker("t", train=train, dev=train) as run, run.epoch():
            for batch in train:
                optimizer.zero_grad()
                F.cross_entropy(call(net, batch), batch["labels"]).backward()
                optimizer.step()
    assert (run.record.epochs[0].dev_accuracy is None) == changed


class Convolution(torch.nn.Module):
    """Reshapes its inputs before any module of its own is called."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, features):
        return self.layer(features * 2)

    def loss(self, features, classes):
        return F.cross_entropy(self.forward(features), classes)


def by_method(net, batches):
    for x, y in batches:
        yield net.loss(x, y)


def drawn_ahead(net, batches):
    for x, y in list(batches):
        yield F.cross_entropy(net(x), y)


def after_another_forward(net, batches):
    net(torch.zeros(1, 4))
    for x, y in batches:
        yield F.cross_entropy(net(x), y)


def example_by_example(net, batches):
    for x, y in batches:
        yield torch.stack([F.cross_entropy(net(row)[None], label[None]) for row, label in zip(x, y)]).mean()


def the_second_half_first(net, batches):
    for x, y in batches:
        yield F.cross_entropy(torch.cat((net(x[4:]), net(x[:4]))).roll(4, 0), y)


def after_a_transformation(net, batches):
    for x, y in batches:
        parameters = dict(net.named_parameters())
        torch.func.vmap(lambda row: torch.func.functional_call(net, parameters, (row,)))(x)  # noqa: B023
        yield F.cross_entropy(net(x), y)


def traced_first(net, batches):
    for x, y in batches:
        torch.jit.trace(net, x.clone())
        yield F.cross_entropy(net(x), y)


LOOPS = [
    by_method, drawn_ahead, after_another_forward, example_by_example, the_second_half_first, after_a_transformation,
    traced_first,
]  # fmt: skip


@pytest.mark.parametrize("changed", [False, True])
def test_another_model_that_is_given_the_inputs_says_nothing_for_this_one(changed):
    """A teacher sees the raw inputs, the student what the loop makes of them."""
    teacher, net, train = toy.model().requires_grad_(False), toy.model(), toy.loader()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Tracker("t", train=train, dev=train) as run:
        run.watch(net)
        with warnings.catch_warnings(), run.epoch():
            for x, y in train:
                optimizer.zero_grad()
                hints = teacher(x)
                scores = net(x / 2 if changed else x)
                (F.cross_entropy(scores, y) + (scores - hints).square().mean()).backward()
                optimizer.step()
        warnings.simplefilter("ignore", TrackmetricsWarning)
    assert run.record.epochs[0].dev_accuracy == (None if changed else toy.accuracy(net, train))


def test_a_backward_without_a_criterion_before_the_first_with_one():
    """A penalty of its own, say: what the model is trained on is known from the criterion."""
    penalty_first = lambda net, x, y: [net.weight.square().sum(), F.cross_entropy(net(x), 1 - y)]  # noqa: E731
    accuracy, said, _ = _run(penalty_first, toy.loader())
    assert accuracy is None
    assert said


def _accuracy_of(net, train, losses, batches):
    """The dev accuracy over `batches`, trained by the losses that a loop yields; and by hand."""
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    with Tracker("t", train=batches, dev=batches) as run:
        run.watch(net)
        with run.epoch():
            for loss in losses(net, train):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return run.record.epochs[0].dev_accuracy, toy.accuracy(net, batches)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("losses", LOOPS)
def test_inputs_that_are_not_changed_raise_no_alarm(losses):
    """However the loop comes to call the model with them."""
    loader = toy.loader(96)
    accuracy, by_hand = _accuracy_of(Convolution(), loader, losses, loader)
    assert accuracy == by_hand


def test_a_frozen_body_that_is_called_before_the_head_raises_no_alarm():
    """What the body is given are the loader's inputs; the module that is watched holds both."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 5).requires_grad_(False), torch.nn.Linear(5, 2))
    loader = toy.loader()

    def losses(net, batches):
        for x, y in batches:
            with torch.no_grad():
                features = net[0](x)
            yield F.cross_entropy(net[1](features), y)

    accuracy, by_hand = _accuracy_of(net, loader, losses, loader)
    assert accuracy == by_hand


def in_place(y):
    return y.sub_(1).abs_()


def padded_in_place(y):
    y[y == 0] = -100
    return y


@pytest.mark.parametrize("change", [in_place, padded_in_place])
@pytest.mark.parametrize("numpy", [False, True])
def test_targets_changed_in_place_are_noticed(change, numpy):
    """Whatever the loader's own batch has become meanwhile."""
    loss = lambda net, x, y: [F.cross_entropy(net(x), change(torch.as_tensor(y)))]  # noqa: E731
    examples = [(x.clone(), y.numpy() if numpy else y.clone()) for x, y in toy.examples(24)]
    collate = (lambda pairs: (torch.stack([x for x, _ in pairs]), np.stack([y for _, y in pairs]))) if numpy else None
    accuracy, said, _ = _run(loss, DataLoader(examples, 8, collate_fn=collate))
    assert accuracy is None
    assert said


def test_whole_numbers_made_of_inputs_are_others():
    """Those of a loader whose inputs are none; an embedding of whole numbers as floats is given the same."""
    for scale, changed in ((1.7, True), (1.0, False)):
        pairs = [(torch.tensor([scale * (1 + number % 5)] * 3), torch.tensor([number % 2] * 3)) for number in range(16)]
        loss = lambda net, x, y: [F.cross_entropy(net(x.long()).flatten(0, 1), y.flatten())]  # noqa: E731
        _, said, _ = _run(loss, DataLoader(pairs, 4), torch.nn.Embedding(10, 2))
        assert ("the loop's inputs" in str(said)) == changed


@pytest.mark.parametrize(
    "inputs",
    [np.array([["a"], ["b"]]), np.array([[1, 2], [3]], dtype=object), np.arange(8.0).reshape(2, 4)[:, ::-1]],
    ids=["text", "ragged", "backwards"],
)
def test_batches_that_cant_be_compared_cost_nothing(inputs):
    """The training's own figures are there; what the set can't be evaluated for is said by the evaluation."""
    net = toy.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    train = DataLoader([0, 1], 2, collate_fn=lambda _: (inputs, torch.tensor([0, 1])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrackmetricsWarning)
        with Tracker("t", train=train) as run, run.epoch():
            for _, y in train:
                optimizer.zero_grad()
                F.cross_entropy(net(torch.ones(2, 4)), y).backward()
                optimizer.step()
    assert run.record.epochs[0].train_loss is not None
    assert run.record.epochs[0].train_accuracy is not None


@pytest.mark.parametrize(
    "collate",
    [lambda pairs: (*default_collate(pairs), None), lambda pairs: dict(zip("ab", default_collate(pairs)))],
    ids=["three parts", "names unknown"],
)
def test_batches_that_cant_be_taken_apart_are_none_of_the_checks_business(collate):
    """A loop that knows its own batches, and evaluates by itself, is told nothing."""
    train, net = DataLoader(toy.examples(24), 8, collate_fn=collate), toy.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrackmetricsWarning)
        with Tracker("t", train=train, dev=train, evaluate=lambda model, data: 0.5) as run, run.epoch():
            for batch in train:
                x, y, *_ = batch.values() if isinstance(batch, dict) else batch
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimizer.step()
    assert run.record.epochs[0].dev_accuracy == 0.5
    assert not [item for item in caught if "loader's batches" in str(item.message)]


def test_batches_are_let_go_without_a_criterion_too():
    """A loss by hand is judged by no call; nothing is kept for one."""
    train, net = toy.loader(96), toy.model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrackmetricsWarning)
        with Tracker("t", train=train) as run, run.epoch():
            for x, _ in train:
                net(x).square().mean().backward()
            assert run._engine._training._check._batches is None


def test_modules_are_left_alone_where_there_is_something_to_compile(monkeypatch):
    """The compiler would meet the wrapper; then changed inputs aren't noticed."""
    monkeypatch.setattr(torch._dynamo.eval_frame, "cached_backends", {1: "a compiler"})
    train, net, own = toy.loader(), toy.model(), torch.nn.Module.__call__
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Tracker("t", train=train, dev=train) as run, run.epoch():
        for x, y in train:
            assert torch.nn.Module.__call__ is own
            optimizer.zero_grad()
            F.cross_entropy(net(x * 2), y).backward()
            optimizer.step()
    assert run.record.epochs[0].dev_accuracy == toy.accuracy(net, train)


def test_modules_are_heard_for_one_call_only():
    """From the first batch to the first call of what is trained; then torch's own `__call__` is back."""
    train, net, seen = toy.loader(), toy.model(), []
    own = torch.nn.Module.__call__
    with Tracker("t", train=train, dev=train) as run, run.epoch():
        for x, y in train:
            seen.append(torch.nn.Module.__call__ is own)
            loss = F.cross_entropy(net(x), y)
            seen.append(torch.nn.Module.__call__ is own)
            loss.backward()
    assert seen == [False, True, True, True, True, True]


@pytest.mark.parametrize("loss", CHANGING.values(), ids=CHANGING)
def test_changed_targets_make_the_accuracy_null(loss):
    """Null, with one warning that says why and what to give."""
    accuracy, said, _ = _run(loss, toy.loader())
    assert accuracy is None
    assert len(said) == 2  # of the epochs' dev accuracy, and of the final training accuracy
    assert all("give `evaluate=`" in message for message in said)


@pytest.mark.parametrize("loss", KEEPING.values(), ids=KEEPING)
def test_the_loaders_own_targets_are_evaluated(loss):
    """The loader's targets, reshaped or trained on in parts, give the accuracy that a count by hand gives."""
    accuracy, said, net = _run(loss, toy.loader())
    assert said == []
    assert accuracy == toy.accuracy(net, toy.loader())


def test_a_shift_of_a_sequence_is_noticed():
    """Next-token targets that the loop cuts from its labels are not what the set holds."""
    tokens = torch.randint(0, 5, (16, 6))
    train = DataLoader(TensorDataset(tokens, tokens), batch_size=4)

    def shifted(net, inputs, labels):
        return [F.cross_entropy(net(inputs)[:, :-1].reshape(-1, 5), labels[:, 1:].reshape(-1))]

    accuracy, said, _ = _run(shifted, train, torch.nn.Embedding(5, 5))
    assert accuracy is None
    assert said


def test_loaders_side_by_side_are_each_asked():
    """The targets of either of two loaders that are gone through together count as the loader's own."""
    train, other = toy.loader(), toy.loader(seed=9)
    net = toy.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Tracker("t", train=train, dev=train) as run, run.epoch():
        for (features, classes), _ in zip(train, other):
            optimizer.zero_grad()
            F.cross_entropy(net(features), classes).backward()
            optimizer.step()
    assert run.record.epochs[0].dev_accuracy == toy.accuracy(net, train)


def test_no_batch_is_kept_after_the_first_step():
    """What was kept for the comparison goes with it."""
    train, net = toy.loader(), toy.model()
    with Tracker("t", train=train, dev=train) as run, run.epoch():
        toy.train_epoch(net, torch.optim.SGD(net.parameters(), lr=0.1), train)
        check = run._engine._training._check
        assert check._batches is None
        assert not check.targets_changed()
        assert check._compared is None
