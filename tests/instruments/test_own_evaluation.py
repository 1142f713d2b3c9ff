"""The dev set evaluated in the epoch's body: its accuracy is used, with no second pass; what is none is ignored.

The oracle is a count over the dev examples, one by one, after the epoch. How many examples the run itself gave the
model when the epoch ended says whether it made a pass of its own.
"""

import collections
import contextlib
import copy
import gc
import itertools
import random
import weakref
from types import SimpleNamespace

import pytest
import torch
from data_kinds import join_feeders
from oracle import one_thread, state_of, tracking  # noqa: F401  a fixture
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from trackmetrics.instruments.own_evaluation import OwnEvaluation

COUNT = 60
FEW = 24  # examples that the run may give the model again to see that it is this model


@pytest.fixture(autouse=True)
def no_feeder_left():
    """A loader's thread that is about to end is not taken for one of ours; a loader whose workers stay is a cycle."""
    yield
    gc.collect()
    join_feeders()


_seen = collections.Counter()


class Seen:
    """How many examples a model was given; kept apart from it, since the run puts back all that a model holds."""

    def __init__(self):
        self.number = len(_seen)
        self.examples = 0

    @property
    def examples(self):
        return _seen[self.number]

    @examples.setter
    def examples(self, count):
        _seen[self.number] = count


class Net(nn.Module):
    """Three classes from four features, with dropout: its predictions tell the mode."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))

    def forward(self, features):
        self.seen.examples += len(features) if features.ndim > 1 else 1
        return self.layers(features)


def points(seed, count=COUNT):
    """Features and classes that can't be learned wholly."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 4, generator=generator)
    noise = torch.randn(count, generator=generator)
    return features, ((features.sum(1) + noise > 0).long() + (features[:, 0] > 0.5).long())


TRAIN, DEV, TEST = points(1), points(2), points(3)


def loader_of(columns, batch_size=20, **settings):
    return DataLoader(TensorDataset(*columns), batch_size=batch_size, **settings)


def train_on(net, optimizer, batches):
    net.train()
    for features, classes in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(features), classes).backward()
        optimizer.step()


@torch.no_grad()
def evaluate(net, batches, criterion=F.cross_entropy):
    """What users write."""
    net.eval()
    for features, classes in batches:
        criterion(net(features), classes)


def by_hand(net, columns=DEV):
    """The share of the examples that the model predicts, counted one by one, in `eval()`."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    right = 0
    with torch.no_grad():
        for features, label in zip(*columns):
            scores = net(features[None])[0].tolist()
            right += scores.index(max(scores)) == int(label)
    for module, mode in modes:
        module.training = mode
    return right / len(columns[1])


class Followed:
    """What a run said of each epoch, what it is by hand, and how many examples the run itself gave the model."""

    def __init__(self):
        self.said, self.expected, self.given, self.faults = [], [], [], []

    def assert_used(self):
        """The user's evaluation is the epoch's, and no second pass was made."""
        assert self.said == self.expected
        assert not self.faults
        assert all(0 < given <= FEW for given in self.given)

    def assert_ignored(self):
        """The run made a pass of its own, and its accuracy is the one by hand."""
        assert self.said == self.expected
        assert not self.faults
        assert all(given >= COUNT for given in self.given)


def follow(body, dev, *, net=None, train=train_on, train_data=None, count=by_hand, epochs=2, after=None, **options):
    """Train for some epochs, `body(net, dev)` at the end of each."""
    torch.manual_seed(0)
    net = Net(Seen()) if net is None else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    train_data = loader_of(TRAIN) if train_data is None else train_data
    followed = Followed()
    with tracking(dev=dev, **options) as tracked:
        for _ in range(epochs):
            with tracked.run.epoch():
                train(net, optimizer, train_data)
                body(net, dev)
                before = net.seen.examples
            followed.given.append(net.seen.examples - before)
            followed.said.append(tracked.epochs[-1].dev_accuracy)
            followed.expected.append(count(net))
            if after is not None:
                after(net)
    followed.faults = [message for message in tracked.messages if "your own evaluation" in message]
    followed.tracked = tracked
    return followed


# Used: gone through by a loader


SHARED = tuple(torch.cat(pair) for pair in zip(TRAIN, DEV))


class Stream(IterableDataset):
    """A stream with a length."""

    def __init__(self, count=COUNT):
        self.count = count

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(list(zip(*DEV)))


LOADERS = {
    "in order": lambda: loader_of(DEV),
    "shuffled": lambda: loader_of(DEV, shuffle=True),
    "shuffled by its own generator": lambda: loader_of(DEV, shuffle=True, generator=torch.Generator().manual_seed(1)),
    "with workers": lambda: loader_of(DEV, num_workers=2),
    "with workers that stay": lambda: loader_of(DEV, num_workers=1, persistent_workers=True, shuffle=True),
    "a short last batch": lambda: loader_of(DEV, 17),
    "small batches": lambda: loader_of(DEV, 7),
    "one batch": lambda: loader_of(DEV, COUNT // 3, drop_last=True),
    "a subset": lambda: DataLoader(torch.utils.data.Subset(TensorDataset(*SHARED), range(COUNT, 2 * COUNT)), 20),
    "a subset sampler": lambda: loader_of(SHARED, sampler=SubsetRandomSampler(range(COUNT, 2 * COUNT))),
    "indices": lambda: loader_of(SHARED, sampler=list(range(COUNT, 2 * COUNT))),
    "a list": lambda: DataLoader(list(zip(*DEV)), 20),
    "a sized stream": lambda: DataLoader(Stream(), 20),
    "without batches": lambda: loader_of(DEV, None),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_gone_through_once_is_used(name):
    """Whatever the loader's order and kind, its evaluation in the body is the epoch's dev accuracy."""
    follow(evaluate, LOADERS[name]()).assert_used()


def with_gradients(net, batches):
    net.eval()
    for features, classes in batches:
        F.cross_entropy(net(features), classes)


@torch.inference_mode()
def in_inference_mode(net, batches):
    net.eval()
    for features, classes in batches:
        F.cross_entropy(net(features), classes)


@torch.inference_mode()
def in_inference_mode_with_one_buffer(net, batches):
    """Its scores are overwritten after each call, which can't be seen of such tensors: they are looked at in time."""
    net.eval()
    for features, classes in batches:
        scores = net(features)
        F.cross_entropy(scores, classes)
        scores.neg_()


def by_hand_through_zip(net, batches):
    """The iterator never says that it has ended."""
    evaluate(net, (batch for _, batch in zip(range(len(batches)), batches)))


def in_whole_numbers(net, batches):
    with torch.no_grad():
        net.eval()
        for features, classes in batches:
            F.cross_entropy(net(features), classes.view(-1, 1).squeeze(1).to(torch.int64))


def with_a_loss_beside(net, batches):
    evaluate(net, batches, lambda scores, classes: F.cross_entropy(scores, classes) + F.mse_loss(scores, scores))


def then_on_all_at_once(net, batches):
    evaluate(net, batches)
    with torch.no_grad():
        F.cross_entropy(net.layers(DEV[0]), DEV[1].clone())


def after_the_training_set(net, batches):
    evaluate(net, loader_of(TRAIN))
    evaluate(net, batches)


def before_the_training_set(net, batches):
    evaluate(net, batches)
    evaluate(net, list(zip(*(column.split(20) for column in TRAIN))))


def after_one_that_is_out_of_date(net, batches):
    evaluate(net, batches)
    train_on(net, torch.optim.SGD(net.parameters(), lr=0.1), loader_of(TRAIN))
    evaluate(net, batches)


WAYS = {
    "under no_grad": evaluate,
    "gradients on": with_gradients,
    "inference mode": in_inference_mode,
    "inference mode, one buffer": in_inference_mode_with_one_buffer,
    "through zip": by_hand_through_zip,
    "targets in another shape": in_whole_numbers,
    "nll_loss": lambda net, data: evaluate(net, data, lambda scores, y: F.nll_loss(scores.log_softmax(1), y)),
    "summed": lambda net, data: evaluate(net, data, lambda scores, y: F.cross_entropy(scores, y, reduction="sum")),
    "unreduced": lambda net, data: evaluate(net, data, lambda scores, y: F.cross_entropy(scores, y, reduction="none")),
    "class weights": lambda net, data: evaluate(net, data, nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))),
    "a loss without accuracy beside it": with_a_loss_beside,
    "all at once, besides": then_on_all_at_once,
    "the training set first": after_the_training_set,
    "the training set last": before_the_training_set,
    "one before the last step": after_one_that_is_out_of_date,
}


@pytest.mark.parametrize("name", WAYS)
def test_however_it_is_written_it_is_used(name):
    """Gradients, reductions, other evaluations in the same body change nothing."""
    follow(WAYS[name], loader_of(DEV)).assert_used()


def test_autocast_is_the_evaluations_own():
    """An evaluation under autocast is compared with the model under the same autocast."""

    def in_bfloat16(net, batches):
        with torch.autocast("cpu", torch.bfloat16):
            evaluate(net, batches)

    def count(net):
        with torch.autocast("cpu", torch.bfloat16):
            return by_hand(net)

    follow(in_bfloat16, loader_of(DEV), count=count).assert_used()


def test_a_set_evaluated_through_a_loader_made_for_it_is_used():
    """The dev set is a list; the loader over it stands in no one's reach."""
    dev = list(zip(*DEV))
    follow(lambda net, dev: evaluate(net, DataLoader(dev, 20)), dev).assert_used()


def test_soft_training_targets_leave_the_evaluation_its_own():
    """Trained on mixed labels, evaluated on classes: the evaluation is what says the accuracy."""

    def train_mixed(net, optimizer, batches):
        net.train()
        for features, classes in batches:
            optimizer.zero_grad()
            F.cross_entropy(net(features), F.one_hot(classes, 3) * 0.7 + 0.1).backward()
            optimizer.step()

    followed = follow(evaluate, loader_of(DEV), train=train_mixed)
    followed.assert_used()


def test_a_loss_written_by_hand_leaves_the_evaluation_its_own():
    """No training call says how output and target pair; the evaluation's own calls do."""

    def train_by_hand(net, optimizer, batches):
        net.train()
        for features, classes in batches:
            optimizer.zero_grad()
            (-net(features).log_softmax(1).gather(1, classes[:, None])).mean().backward()
            optimizer.step()

    follow(evaluate, loader_of(DEV), train=train_by_hand).assert_used()


def test_gradients_taken_by_hand_are_training():
    """`torch.autograd.grad` reaches a call as a backward does: it is let go of, and not looked at as an evaluation."""

    def train_by_differentiation(net, optimizer, batches):
        net.train()
        for features, classes in list(batches):
            gradients = torch.autograd.grad(F.cross_entropy(net(features), classes), list(net.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(net.parameters(), gradients):
                    parameter -= 0.1 * gradient

    followed = follow(evaluate, loader_of(DEV), train=train_by_differentiation)
    assert not followed.faults


def test_some_epochs_are_evaluated_by_the_user_and_some_by_the_run():
    """What one epoch's body does says nothing of the next."""
    epochs = itertools.count()
    followed = follow(lambda net, dev: next(epochs) % 2 and evaluate(net, dev), loader_of(DEV), epochs=4)
    assert followed.said == followed.expected
    assert [given >= COUNT for given in followed.given] == [True, False, True, False]
    assert not followed.faults


# Used: known by memory


def one_by_one(net, examples):
    net.eval()
    with torch.no_grad():
        for features, label in examples:
            F.cross_entropy(net(features[None]), label[None])


def without_batch_dimension(net, examples):
    net.eval()
    with torch.no_grad():
        for features, label in examples:
            F.cross_entropy(net(features), label)


def in_random_order(net, examples):
    one_by_one(net, random.sample(list(examples), len(examples)))


def in_slices(net, columns):
    net.eval()
    features, classes = columns[:] if isinstance(columns, TensorDataset) else columns
    with torch.no_grad():
        for begin in range(0, COUNT, 20):
            F.cross_entropy(net(features[begin : begin + 20]), classes[begin : begin + 20])


def with_gradients_one_by_one(net, examples):
    net.eval()
    for features, label in examples:
        F.cross_entropy(net(features[None]), label[None])


HELD = {
    "one by one": (one_by_one, lambda: list(zip(*DEV))),
    "one by one, without a batch dimension": (without_batch_dimension, lambda: list(zip(*DEV))),
    "one by one, with gradients": (with_gradients_one_by_one, lambda: list(zip(*DEV))),
    "in random order": (in_random_order, lambda: list(zip(*DEV))),
    "copies in a list": (one_by_one, lambda: [(x.clone(), y.clone()) for x, y in zip(*DEV)]),
    "a dataset": (one_by_one, lambda: TensorDataset(*DEV)),
    "a dataset's columns": (in_slices, lambda: TensorDataset(*DEV)),
    "two columns at once": (lambda net, data: evaluate(net, [data]), lambda: tuple(column.clone() for column in DEV)),
    "ready-made batches": (evaluate, lambda: list(zip(*(column.split(20) for column in DEV)))),
}


@pytest.mark.parametrize("name", HELD)
def test_examples_held_in_memory_are_known_by_their_targets(name):
    """Without a loader, the targets' own memory tells the dev set."""
    body, make = HELD[name]
    followed = follow(body, make())
    assert followed.said == followed.expected
    if name != "two columns at once":  # where the first batch is all there is
        followed.assert_used()


def test_a_model_that_needs_a_batch_dimension_is_given_one():
    """Examples that the loop gives a batch dimension are compared with one too."""
    follow(one_by_one, list(zip(*DEV)), net=Normalised(Seen())).assert_used()


def test_the_training_list_evaluated_too_is_told_apart():
    """The same labels, in other memory: only those of the dev list count."""
    train = [(x, y.clone()) for x, y in zip(TRAIN[0], DEV[1])]
    dev = [(x.clone(), y.clone()) for x, y in zip(*DEV)]

    def both(net, dev):
        one_by_one(net, train)
        one_by_one(net, dev)
        one_by_one(net, train[:7])

    follow(both, dev).assert_used()


def test_a_language_models_examples_one_by_one():
    """Sequences of classes with objects' own names, as a tagger is trained on; each sequence is one call."""
    tokens = [torch.randint(4, (length,)) for length in (20, 20, 20, 7, 20, 5)]
    dev = [SimpleNamespace(input_tensor=F.one_hot(x, 4).float(), output_tensor=x * 2 % 3) for x in tokens]
    joined = torch.cat([e.input_tensor for e in dev]), torch.cat([e.output_tensor for e in dev])

    def tag(net, examples):
        net.eval()
        for example in examples:
            F.nll_loss(net(example.input_tensor).log_softmax(-1), example.output_tensor)

    followed = follow(tag, dev, count=lambda net: by_hand(net, joined))
    assert followed.said == followed.expected
    assert all(given == 20 for given in followed.given)  # the first example's positions


# Used: other kinds of targets


class Tagger(Net):
    """The same for each position of a sequence."""

    def forward(self, features):
        self.seen.examples += len(features)
        return self.layers(features)


def sequences(seed, count=COUNT, length=5, ignored=-100):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, length, 4, generator=generator)
    classes = (features.sum(-1) > 0).long() + (torch.rand(count, length, generator=generator) > 0.6).long()
    classes[torch.rand(count, length, generator=generator) > 0.7] = ignored
    return features, classes


@pytest.mark.parametrize("ignored", [-100, 2])
@pytest.mark.parametrize("flat", [True, False])
def test_ignored_targets_do_not_count(ignored, flat):
    """`ignore_index` targets are neither right nor wrong, whichever index it is."""
    train, dev = sequences(4, ignored=ignored), sequences(5, ignored=ignored)

    def loss(scores, classes):
        if flat:
            return F.cross_entropy(scores.reshape(-1, 3), classes.reshape(-1), ignore_index=ignored)
        return F.cross_entropy(scores.transpose(1, 2), classes, ignore_index=ignored)

    def train_on_sequences(net, optimizer, batches):
        net.train()
        for features, classes in batches:
            optimizer.zero_grad()
            loss(net(features), classes).backward()
            optimizer.step()

    def count(net):
        keep = dev[1] != ignored
        return by_hand(net, (dev[0][keep], dev[1][keep]))

    follow(
        lambda net, data: evaluate(net, data, loss),
        loader_of(dev),
        net=Tagger(Seen()),
        train=train_on_sequences,
        train_data=loader_of(train),
        count=count,
    ).assert_used()


class Binary(nn.Module):
    def __init__(self, probabilities):
        super().__init__()
        self.seen, self.probabilities = Seen(), probabilities
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, features):
        self.seen.examples += len(features)
        scores = self.layers(features)
        return scores.sigmoid() if self.probabilities else scores


@pytest.mark.parametrize("probabilities", [True, False])
def test_binary_targets_are_counted_element_by_element(probabilities):
    """Multi-label: each element is right on its side of one half."""
    criterion = F.binary_cross_entropy if probabilities else F.binary_cross_entropy_with_logits
    dev = DEV[0], (DEV[0][:, :2] + DEV[0][:, 2:] > 0).float()

    def train_binary(net, optimizer, batches):
        net.train()
        for features, _ in batches:
            optimizer.zero_grad()
            criterion(net(features), (features[:, :2] > 0).float()).backward()
            optimizer.step()

    def count(net):
        modes, right = net.training, 0
        net.eval()
        with torch.no_grad():
            for features, labels in zip(dev[0], dev[1].tolist()):
                scores = net(features[None])[0].tolist()
                right += sum((score > 0.5 * probabilities) == (label == 1) for score, label in zip(scores, labels))
        net.train(modes)
        return right / dev[1].numel()

    follow(
        lambda net, data: evaluate(net, data, criterion),
        loader_of(dev),
        net=Binary(probabilities),
        train=train_binary,
        count=count,
    ).assert_used()


class Causal(nn.Module):
    """A language model that computes its loss inside, with a shift of its own."""

    def __init__(self, pads):
        super().__init__()
        self.seen, self.pads = Seen(), pads
        self.table, self.dropout = nn.Embedding(7, 7), nn.Dropout(0.5)

    def forward(self, input_ids, labels=None):
        self.seen.examples += len(input_ids)
        logits = self.dropout(self.table(input_ids))
        loss = None
        if labels is not None and self.pads:
            shifted = F.pad(labels, (0, 1), value=-100)[..., 1:]
            loss = F.cross_entropy(logits.reshape(-1, 7), shifted.reshape(-1))
        elif labels is not None:
            loss = F.cross_entropy(logits[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1))
        return SimpleNamespace(loss=loss, logits=logits)


def texts(seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(7, (COUNT, 6), generator=generator)
    ids[:, 1::2] = (ids[:, ::2] + 1) % 7
    return [{"input_ids": row, "labels": row.clone()} for row in ids]


@pytest.mark.parametrize("pads", [True, False])
def test_a_model_that_computes_its_loss_inside_is_judged_by_its_own_shift(pads):
    """The targets are the loader's, moved by one; the model, given its labels, makes the same call again."""
    dev = texts(7)

    def train_causal(net, optimizer, batches):
        net.train()
        for batch in batches:
            optimizer.zero_grad()
            net(**batch).loss.backward()
            optimizer.step()

    @torch.no_grad()
    def perplexity(net, batches):
        net.eval()
        for batch in batches:
            net(**batch)

    def count(net):
        rows = net.table.weight.tolist()
        pairs = [pair for text in dev for pair in itertools.pairwise(text["input_ids"].tolist())]
        return sum(rows[token].index(max(rows[token])) == following for token, following in pairs) / len(pairs)

    follow(
        perplexity,
        DataLoader(dev, 20),
        net=Causal(pads),
        train=train_causal,
        train_data=DataLoader(texts(8), 20),
        count=count,
    ).assert_used()


# Ignored


def the_training_set(net, batches):
    evaluate(net, loader_of(TRAIN))


def a_test_set(net, batches):
    evaluate(net, loader_of(TEST))


def twice(net, batches):
    evaluate(net, batches)
    evaluate(net, batches)


def twice_by_two_loaders(net, batches):
    evaluate(net, batches)
    evaluate(net, DataLoader(batches.dataset, 30))


def partly(net, batches):
    evaluate(net, itertools.islice(batches, 2))


def partly_and_then_wholly(net, batches):
    evaluate(net, itertools.islice(batches, 1))
    evaluate(net, batches)


def all_but_some_of_a_batch(net, batches):
    evaluate(net, ((features[1:], classes[1:]) for features, classes in batches))


def all_but_a_batch(net, batches):
    evaluate(net, (batch for number, batch in enumerate(batches) if number != 1))


def in_train_mode(net, batches):
    net.train()
    with torch.no_grad():
        for features, classes in batches:
            F.cross_entropy(net(features), classes)


def with_targets_changed(net, batches):
    evaluate(net, ((features, (classes + 1) % 3) for features, classes in batches))


def with_targets_changed_in_place(net, batches):
    for features, classes in batches:
        classes[:3] = 0
        evaluate(net, [(features, classes)])


def with_inputs_changed(net, batches):
    evaluate(net, ((features + 0.5, classes) for features, classes in batches))


def an_average(net, batches):
    average = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.9)
    evaluate(average, batches)


def an_average_and_the_model(net, batches):
    an_average(net, batches)
    evaluate(net, batches)


def two_calls_a_batch(net, batches):
    net.eval()
    with torch.no_grad():
        for features, classes in batches:
            F.cross_entropy(net(features), classes)
            F.cross_entropy(net(features).roll(1, 1), classes)


def with_soft_targets(net, batches):
    evaluate(net, batches, lambda scores, y: F.cross_entropy(scores, F.one_hot(y, 3).float()))


def with_an_ignored_class(net, batches):
    evaluate(net, batches, lambda scores, y: F.cross_entropy(scores, y, ignore_index=1))


def one_class_against_the_rest(net, batches):
    evaluate(net, batches, lambda scores, y: F.binary_cross_entropy_with_logits(scores, F.one_hot(y, 3).float()))


def with_scores_overwritten(net, batches):
    net.eval()
    for number, (features, classes) in enumerate(batches):
        scores = net(features).detach()
        F.cross_entropy(scores, classes)
        if number > 0:
            scores.neg_()


def all_at_once_at_the_end(net, batches):
    net.eval()
    with torch.no_grad():
        pairs = [(net(features), classes) for features, classes in batches]
        F.cross_entropy(*(torch.cat(parts) for parts in zip(*pairs)))


def and_a_step_by_hand(net, batches):
    evaluate(net, batches)
    gradients = torch.autograd.grad(F.cross_entropy(net(TRAIN[0]), TRAIN[1]), list(net.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(net.parameters(), gradients):
            parameter -= gradient


def and_other_weights_loaded(net, batches):
    evaluate(net, batches)
    net.load_state_dict({name: value * 0.5 for name, value in net.state_dict().items()})


def and_more_training(net, batches):
    evaluate(net, batches)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    F.cross_entropy(net(TRAIN[0]), TRAIN[1]).backward()
    optimizer.step()


def between_training_steps(net, batches):
    """The dev set is gone through side by side with training."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    for batch, more in zip(batches, loader_of(TRAIN)):
        evaluate(net, [batch])
        train_on(net, optimizer, [more])


def nothing(net, batches):
    pass


def of_no_criterion(net, batches):
    net.eval()
    with torch.no_grad():
        for features, classes in batches:
            (net(features).argmax(1) == classes).sum()


IGNORED = [
    the_training_set,
    a_test_set,
    twice,
    twice_by_two_loaders,
    partly,
    partly_and_then_wholly,
    all_but_some_of_a_batch,
    all_but_a_batch,
    in_train_mode,
    with_targets_changed,
    with_targets_changed_in_place,
    with_inputs_changed,
    an_average,
    an_average_and_the_model,
    two_calls_a_batch,
    with_soft_targets,
    with_an_ignored_class,
    one_class_against_the_rest,
    with_scores_overwritten,
    all_at_once_at_the_end,
    and_a_step_by_hand,
    and_other_weights_loaded,
    and_more_training,
    between_training_steps,
    nothing,
    of_no_criterion,
]


@pytest.mark.parametrize("body", IGNORED, ids=lambda body: body.__name__.replace("_", " "))
def test_what_is_no_evaluation_of_the_dev_set_is_ignored(body):
    """In doubt the run makes its own pass, and its accuracy is right."""
    follow(body, loader_of(DEV)).assert_ignored()


@pytest.mark.parametrize("binary", [True, False])
def test_a_set_of_soft_targets_has_no_accuracy(binary):
    """Probabilities as targets are neither right nor wrong, whoever evaluates."""
    criterion = F.binary_cross_entropy_with_logits if binary else F.cross_entropy
    soft = [(features, torch.randn(COUNT, 3).softmax(1)) for features in (TRAIN[0], DEV[0])]

    def train_soft(net, optimizer, batches):
        net.train()
        for features, labels in batches:
            optimizer.zero_grad()
            criterion(net(features), labels).backward()
            optimizer.step()

    followed = follow(
        lambda net, data: evaluate(net, data, criterion),
        loader_of(soft[1]),
        train=train_soft,
        train_data=loader_of(soft[0]),
        count=lambda net: None,
    )
    assert followed.said == followed.expected == [None, None]


def test_an_evaluation_after_the_body_is_not_seen():
    """What follows the epoch belongs to no epoch, nor to the next one."""
    dev = loader_of(DEV)
    follow(nothing, dev, after=lambda net: evaluate(net, dev)).assert_ignored()


class Halving(Sampler):
    """A sampler of a user's own, which gives all examples, but could as well not."""

    def __len__(self):
        return COUNT

    def __iter__(self):
        return iter([*range(0, COUNT, 2), *range(1, COUNT, 2)])


class HalfInWorkers(Stream):
    """A stream that gives each of two workers the same half: as many examples as it says, not the ones it holds."""

    def __iter__(self):
        return itertools.islice(super().__iter__(), COUNT if torch.utils.data.get_worker_info() is None else COUNT // 2)


UNCERTAIN = {
    "a last batch dropped": lambda: loader_of(DEV, 17, drop_last=True),
    "drawn with replacement": lambda: loader_of(
        DEV, sampler=RandomSampler(range(COUNT), replacement=True, num_samples=COUNT)
    ),
    "some drawn": lambda: loader_of(DEV, sampler=RandomSampler(range(COUNT), num_samples=40)),
    "drawn by weight": lambda: loader_of(DEV, sampler=WeightedRandomSampler([1.0] * COUNT, COUNT)),
    "one process's share": lambda: loader_of(
        DEV, sampler=DistributedSampler(range(COUNT), num_replicas=2, rank=0, shuffle=False)
    ),
    "a sampler of one's own": lambda: loader_of(DEV, sampler=Halving()),
    "a stream in two workers": lambda: DataLoader(Stream(), 20, num_workers=2),
    "half a stream in two workers": lambda: DataLoader(HalfInWorkers(), 20, num_workers=2),
}


@pytest.mark.parametrize("name", UNCERTAIN)
def test_a_loader_that_may_leave_out_or_repeat_examples_is_ignored(name):
    """Only what certainly gives each example once is taken for the whole set."""
    follow(evaluate, UNCERTAIN[name]()).assert_ignored()


def test_a_stream_that_is_longer_than_it_says_is_ignored():
    """More was evaluated than the set is said to hold."""
    columns = tuple(column[:50] for column in DEV)
    followed = follow(evaluate, DataLoader(Stream(50), 20), count=lambda net: by_hand(net, columns))
    assert followed.said == followed.expected
    assert all(given >= 50 for given in followed.given)


def test_a_training_set_that_shares_the_dev_sets_dataset_is_told_apart():
    """Two samplers over one dataset: evaluating the training part isn't evaluating the dev part."""
    both = TensorDataset(*SHARED)
    dev = DataLoader(both, 20, sampler=SubsetRandomSampler(range(COUNT, 2 * COUNT)))
    train = DataLoader(both, 20, sampler=SubsetRandomSampler(range(COUNT)))
    follow(lambda net, dev: evaluate(net, train), dev).assert_ignored()
    follow(lambda net, dev: (evaluate(net, train), evaluate(net, dev)), dev).assert_used()


class MadeAnew(torch.utils.data.Dataset):
    """A dataset that makes its targets each time."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        if index >= COUNT:
            raise IndexError
        return DEV[0][index], DEV[1][index].clone()


def the_first_left_out(net, examples):
    one_by_one(net, examples[1:])


def one_left_out(net, examples):
    one_by_one(net, examples[:-1])


def one_twice(net, examples):
    one_by_one(net, [*examples, examples[7]])


def another_list_with_the_same_labels(net, examples):
    one_by_one(net, [(x, y.clone()) for x, y in zip(TRAIN[0], DEV[1])])


def one_by_one_in_train_mode(net, examples):
    net.train()
    with torch.no_grad():
        for features, label in examples:
            F.cross_entropy(net(features[None]), label[None])


def one_by_one_the_first_of_them_in_train_mode(net, examples):
    one_by_one_in_train_mode(net, examples[:1])
    one_by_one(net, examples[1:])


def one_by_one_by_an_average(net, examples):
    average = copy.deepcopy(net)
    with torch.no_grad():
        average.layers[3].bias[0] += 0.01
    one_by_one(average, examples)


def one_by_one_twice(net, examples):
    one_by_one(net, examples)
    one_by_one(net, examples)


def by_list_and_by_loader(net, examples):
    one_by_one(net, examples)
    evaluate(net, DataLoader(examples, 20))


def with_one_buffer(net, examples):
    """Fills one target again and again."""
    buffer = torch.zeros(1, dtype=torch.long)
    one_by_one(net, ((features, buffer.copy_(label)[0]) for features, label in examples))


def as_columns():
    """One batch, of which a call is a part: seeing to it would be a pass over all of it."""
    return tuple(column.clone() for column in DEV)


UNHELD = [
    (the_first_left_out, None),
    (one_left_out, None),
    (one_twice, None),
    (another_list_with_the_same_labels, None),
    (one_by_one_in_train_mode, None),
    (one_by_one_the_first_of_them_in_train_mode, None),
    (one_by_one_by_an_average, None),
    (one_by_one_twice, None),
    (by_list_and_by_loader, None),
    (with_one_buffer, None),
    (one_by_one, MadeAnew),
    (in_slices, as_columns),
]


@pytest.mark.parametrize(("body", "make"), UNHELD, ids=lambda value: getattr(value, "__name__", " ").replace("_", " "))
def test_examples_that_are_not_covered_once_are_ignored(body, make):
    """Some left out, some twice, other memory, another model: the run makes its own pass."""
    dev = [(x.clone(), y.clone()) for x, y in zip(*DEV)] if make is None else make()
    follow(body, dev).assert_ignored()


class Point:
    """An input that nothing joins to a batch."""

    def __init__(self, features):
        self.features = features


def test_inputs_of_the_users_own_kind_make_no_trouble():
    """Examples that can't be given a batch dimension are compared without, whether they agree or not."""

    class OfPoints(Net):
        def forward(self, point):
            return super().forward(point.features if isinstance(point, Point) else point)

    dev = [(Point(features), label) for features, label in zip(*DEV)]
    follow(without_batch_dimension, dev, net=OfPoints(Seen())).assert_used()

    def in_train_mode(net, examples):
        net.train()
        with torch.no_grad():
            for point, label in examples:
                F.cross_entropy(net(point), label)

    follow(in_train_mode, dev, net=OfPoints(Seen())).assert_ignored()


@pytest.mark.parametrize("pads", [True, False])
def test_a_loop_that_shifts_a_language_models_targets_itself_is_ignored(pads):
    """Moved targets count only inside a model that moves them: what a loop does, the run can't repeat."""
    dev = texts(7)
    columns = torch.stack([text["input_ids"] for text in dev])

    class Table(Causal):
        def forward(self, ids):
            return super().forward(ids).logits

    def loss(scores, ids):
        if pads:
            return F.cross_entropy(scores.reshape(-1, 7), F.pad(ids[:, 1:], (0, 1), value=-100).reshape(-1))
        return F.cross_entropy(scores[:, :-1].reshape(-1, 7), ids[:, 1:].reshape(-1))

    def train_shifted(net, optimizer, batches):
        net.train()
        for ids, labels in batches:
            optimizer.zero_grad()
            loss(net(ids), labels).backward()
            optimizer.step()

    net = Table(False)
    followed = follow(
        lambda net, data: evaluate(net, data, loss),
        loader_of((columns, columns)),
        net=net,
        train=train_shifted,
        train_data=loader_of((columns, columns)),
        count=lambda net: None,
    )
    assert followed.said == [None, None]
    assert followed.tracked.warned_of("dev_accuracy")


# What wins over it


def test_what_the_user_says_wins():
    """A logged value, and `evaluate=`, which says how the dev set is to be evaluated."""
    said = follow(evaluate, loader_of(DEV), evaluate=lambda model, data: 0.125, count=lambda net: 0.125)
    assert said.said == said.expected
    net = Net(Seen())
    with tracking(dev=loader_of(DEV)) as tracked, tracked.run.epoch() as epoch:
        train_on(net, torch.optim.SGD(net.parameters(), lr=0.1), loader_of(TRAIN))
        evaluate(net, loader_of(DEV))
        epoch.log(dev_accuracy=0.25)
    assert tracked.epochs[0].dev_accuracy == 0.25


def test_an_evaluation_is_used_whichever_epochs_the_run_would_evaluate():
    """`evaluate_every=` saves passes; what the user has evaluated costs none."""
    follow(evaluate, loader_of(DEV), evaluate_every=5).assert_used()


# A record each N steps


class Normalised(Net):
    """Each forward in training changes what the model predicts in `eval()`."""

    def __init__(self, seen):
        super().__init__(seen)
        self.layers.insert(0, nn.BatchNorm1d(4, momentum=0.9))


def count_steps(evaluates, batches, dev, every=2):
    """Train in a loop that counts steps, the dev set evaluated, or not, after each `every` of them."""
    torch.manual_seed(0)
    net = Normalised(Seen())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    followed, before = Followed(), 0
    with tracking(dev=dev) as tracked:
        with tracked.run.epochs(every=every):
            for step, (features, classes) in enumerate(batches):
                if len(tracked.epochs) > len(followed.given):
                    followed.given.append(net.seen.examples - before)
                train_on(net, optimizer, [(features, classes)])
                if step % every == every - 1:
                    followed.expected.append(by_hand(net))
                    if evaluates:
                        evaluate(net, dev)
                before = net.seen.examples
        followed.given.append(net.seen.examples - before)
    followed.said = [epoch.dev_accuracy for epoch in tracked.epochs]
    assert [summary["steps"] for summary in tracked.norms["epochs"]] == [every] * len(followed.expected)
    return followed


def endless(loader, count):
    """Steps over several passes of a loader."""
    return itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), count)


@pytest.mark.parametrize("steps", [6, 8])
def test_an_evaluation_after_each_n_steps_is_the_records(steps):
    """Where a loader feeds the steps, a record waits for the next batch, or the end: the evaluation is its own."""
    count_steps(True, endless(loader_of(TRAIN), steps), loader_of(DEV)).assert_used()


@pytest.mark.parametrize("evaluates", [True, False])
@pytest.mark.parametrize("listed", [True, False])
def test_a_record_of_n_steps_is_of_the_model_after_them(evaluates, listed):
    """With and without an evaluation, fed by a loader or a list: no forward of the next step comes between."""
    batches = loader_of(TRAIN, 10)
    followed = count_steps(evaluates, list(batches) if listed else batches, loader_of(DEV))
    assert followed.said == followed.expected


# What it costs


class Ops(torch.utils._python_dispatch.TorchDispatchMode):
    """Every operation that is run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_nothing_is_fetched_in_the_epoch():
    """While the body evaluates, the run asks no number of the device; two loaders do, one each, to seed workers."""
    names = []

    def counted(net, batches):
        with Ops() as ops:
            with_gradients(net, batches)
            evaluate(net, batches)
        names.extend(ops.names)

    follow(counted, loader_of(DEV, 4), epochs=1)
    assert names.count("aten::argmax") == 30  # it did follow the calls
    assert names.count("aten::_local_scalar_dense") == 2
    assert "aten::is_nonzero" not in names


def test_a_plain_training_runs_nothing_more():
    """Calls that a backward reaches are never judged, be they several to a backward, or hundreds."""

    def operations(instrument):
        names = []

        def train(net, optimizer, batches):
            with Ops() as ops:
                for features, classes in batches:
                    optimizer.zero_grad()
                    losses = [F.cross_entropy(net(features[k : k + 1]), classes[k : k + 1]) for k in range(20)]
                    sum(losses).backward()
                    optimizer.step()
            names.extend(ops.names)

        with pytest.MonkeyPatch.context() as patch:
            if not instrument:
                for name in ("batch_yielded", "batches_ended", "criterion_called", "training_goes_on"):
                    patch.setattr(OwnEvaluation, name, lambda *_: None)
            follow(nothing, loader_of(DEV), train=train, epochs=1)
        return names

    with_it, without = operations(True), operations(False)
    assert len(without) > 100
    assert sorted(with_it) == sorted([*without, "aten::clone", "aten::detach"])  # the first batch's targets


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("batches", [True, False])
def test_scores_do_not_pile_up(gradients, batches):
    """Of large outputs a few at most are kept, and none that can be no training's; no graph of any is."""
    wide = nn.Linear(1, 2**15)
    wide.seen = Seen()
    most, graphs = [], []

    def large():
        found = (item for item in gc.get_objects() if isinstance(item, torch.Tensor))
        return {item.data_ptr() for item in found if item.numel() == 2**21}

    def body(net, dev):
        with torch.set_grad_enabled(gradients):
            for features, classes in DataLoader(dev, 2) if batches else dev:
                scores = net(features.reshape(-1)[:1].expand(64, 1))
                F.cross_entropy(scores, classes.reshape(-1)[:1].expand(64))
                graphs.append(weakref.ref(scores))
                del scores
                most.append(len(large()))

    def train(net, optimizer, batches):
        F.cross_entropy(net(torch.zeros(1, 1)), torch.zeros(1, dtype=torch.long)).backward()

    dev = [(torch.randn(1), torch.tensor(0)) for _ in range(12)]
    with tracking(dev=dev, evaluate_every=9) as tracked, tracked.run.epoch():
        train(wide, None, None)
        body(wide, dev)
    assert max(most) <= (4 if gradients else 0)
    assert all(reference() is None for reference in graphs)


def test_nothing_is_disturbed():
    """Evaluating and seeing to it draws no random number and changes no buffer: bit-identical to an untracked run."""

    class Noisy(Net):
        def __init__(self, seen):
            super().__init__(seen)
            self.layers.append(nn.BatchNorm1d(3))

    def train(run, net):
        torch.manual_seed(5)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        data, dev = loader_of(TRAIN, shuffle=True), loader_of(DEV, shuffle=True)
        for _ in range(2):
            with contextlib.nullcontext() if run is None else run.epoch():
                train_on(net, optimizer, data)
                evaluate(net, dev)
        return [*state_of([net, optimizer]), torch.rand(3).tolist(), random.random()]

    def made():
        torch.manual_seed(0)
        random.seed(0)
        return Noisy(Seen())

    with tracking() as tracked:
        net = made()
        there = train(tracked.run, net)
    assert train(None, made()) == there
    assert all(epoch.dev_accuracy is not None for epoch in tracked.epochs)


def test_a_fault_of_ours_costs_a_second_pass_and_nothing_else(monkeypatch):
    """Where the instrument fails, the run evaluates by itself; what failed is said."""

    def fails(*_):
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(OwnEvaluation, "batch_yielded", fails)
    followed = follow(evaluate, loader_of(DEV))
    (fault,) = followed.faults
    assert "a fault of ours" in fault
    followed.faults = []
    followed.assert_ignored()


def test_transformed_functions_are_let_be():
    """Criteria inside `torch.func` are calls on stand-ins that can't be looked at later."""

    def per_example(net, batches):
        net.eval()
        parameters = {name: value.detach() for name, value in net.layers.named_parameters()}

        def loss(parameters, features, label):
            return F.cross_entropy(torch.func.functional_call(net.layers, parameters, (features[None],)), label[None])

        features, classes = DEV
        torch.func.vmap(loss, (None, 0, 0))(parameters, features, classes)
        torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, features, classes)
        evaluate(net, batches)

    follow(per_example, loader_of(DEV)).assert_used()
