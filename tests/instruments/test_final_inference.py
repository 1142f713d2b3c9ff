"""The final inference: the first dev example through the trained model, every number as an own computation has it."""

import math
from collections import UserList
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy
from data_kinds import Labelled, Numbered
from lookup import Lookup, learned, table
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

from trackmetrics import FinalInference, Tracker, TrackmetricsError, TrackmetricsWarning, load_run
from trackmetrics.instruments.data import UnreadableError
from trackmetrics.instruments.events import Listener, listening
from trackmetrics.instruments.final_inference import describe_example, first_example, infer, named_example
from trackmetrics.instruments.pairing import PairingError

TABLE = table()
ROWS = TABLE.double().numpy()


def _log_softmax(row):
    """In double precision, term by term."""
    total = sum(math.exp(score) for score in row)
    return [score - math.log(total) for score in row]


def _sequence_pairing(function=F.cross_entropy, count=5):
    return learned(lambda: function(torch.zeros(count, 3), torch.zeros(count, dtype=torch.long)))


def _inference(model, data, pairing, **options):
    return infer(model, first_example(model, data, pairing), pairing, **options)[0]


# log_probs


SEQUENCE = torch.tensor([3, 1, 4, 1, 5])
TARGET = torch.tensor([0, 1, 2, 0, 1])


def test_cross_entropy_logits_go_through_log_softmax():
    """`[seq_len, num_classes]`, classes last, as the double-precision formula gives it, in float32."""
    found = _inference(Lookup(TABLE), [(SEQUENCE, TARGET)], _sequence_pairing()).log_probs
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [_log_softmax(ROWS[number]) for number in SEQUENCE.tolist()], rtol=1e-6)


def test_nll_log_probs_are_taken_bit_by_bit():
    """What `nll_loss` was trained on stands in the record as the model returned it."""
    rows = F.log_softmax(TABLE, -1)
    found = _inference(Lookup(rows), [(SEQUENCE, TARGET)], _sequence_pairing(F.nll_loss)).log_probs
    assert np.array_equal(found, rows[SEQUENCE].numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_kept_whole(dtype):
    """Half types are widened to float32 exactly; double stays double."""
    rows = F.log_softmax(TABLE.double(), -1).to(dtype)
    model = Lookup(rows).to(dtype)
    model.table.data = rows
    found = _inference(model, [(SEQUENCE, TARGET)], _sequence_pairing(F.nll_loss)).log_probs
    assert found.dtype == (np.float64 if dtype is torch.float64 else np.float32)
    assert np.array_equal(found.astype(np.float64), rows[SEQUENCE].double().numpy())


@pytest.mark.parametrize("layout", ["classes last", "dimension 1"])
def test_classes_stand_last_whatever_the_models_layout(layout):
    """A batched model with its classes in dimension 1 or last gives the same rows, also where T equals C."""
    sequence, target = SEQUENCE[:3], TARGET[:3]

    class Model(Lookup):
        def forward(self, numbers):
            logits = super().forward(numbers)
            return logits.transpose(1, 2).contiguous() if layout == "dimension 1" else logits

    model = Model(TABLE)
    batch, targets = torch.stack([sequence, sequence]), torch.stack([target, target])

    def loss():
        logits = model(batch)
        return F.cross_entropy(logits if layout == "dimension 1" else logits.transpose(1, 2), targets)

    found = _inference(model, [(sequence, target)], learned(loss)).log_probs
    np.testing.assert_allclose(found, [_log_softmax(ROWS[number]) for number in sequence.tolist()], rtol=1e-6)


def test_a_classifier_has_one_row():
    """One prediction an example: `[1, num_classes]`, with or without a batch dimension."""
    for count, shape in ((4, (4,)), (1, ())):
        loss_shape = (count, 3) if shape else (3,)
        pairing = learned(
            lambda a=loss_shape, b=shape: F.cross_entropy(torch.zeros(a), torch.zeros(b, dtype=torch.long))
        )
        found = _inference(Lookup(TABLE), [(torch.tensor(7), torch.tensor(1))], pairing).log_probs
        np.testing.assert_allclose(found, [_log_softmax(ROWS[7])], rtol=1e-6)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_binary_outputs_become_two_columns(kind):
    """log(1-p) and log p for each label."""
    scores = torch.tensor([[0.5, -2.0, 4.0]])
    rows, loss = (scores, F.binary_cross_entropy_with_logits)
    if kind == "probabilities":
        rows, loss = scores.sigmoid(), F.binary_cross_entropy
    pairing = learned(lambda: loss(rows.expand(4, 3), torch.ones(4, 3)))
    found = _inference(Lookup(rows), [(torch.tensor(0), torch.ones(3))], pairing).log_probs
    shares = [1 / (1 + math.exp(-score)) for score in (0.5, -2.0, 4.0)]
    np.testing.assert_allclose(found, [[math.log(1 - p), math.log(p)] for p in shares], rtol=1e-5)


def test_a_regression_has_no_log_probs():
    """A number is no distribution: null."""
    pairing = learned(lambda: F.mse_loss(torch.zeros(4, 1), torch.zeros(4, 1)))
    found = _inference(Lookup([[2.0]]), [(torch.tensor(0), torch.ones(1))], pairing)
    assert found.log_probs is None
    assert found.example_input == "0"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (F.log_softmax(TABLE, -1), [_log_softmax(row) for row in ROWS]),
        (torch.softmax(TABLE, -1), [_log_softmax(row) for row in ROWS]),
        (TABLE, [_log_softmax(row) for row in ROWS]),
    ],
    ids=["log-probabilities", "probabilities", "logits"],
)
def test_without_a_criterion_the_rows_say_what_they_are(rows, expected):
    """Log-probabilities stay, probabilities go through the logarithm, all else through log_softmax."""
    found = _inference(Lookup(rows), [(SEQUENCE, TARGET)], None).log_probs
    np.testing.assert_allclose(found, [expected[number] for number in SEQUENCE.tolist()], rtol=1e-5)


def test_an_output_without_predictions_is_refused():
    """Class indices are no scores."""

    class Decided(Lookup):
        def forward(self, numbers):
            return super().forward(numbers).argmax(-1)

    with pytest.raises(PairingError, match="has no classes"):
        _inference(Decided(TABLE), [(SEQUENCE, TARGET)], None)


def test_an_output_that_does_not_fit_its_target_is_refused():
    """A shape that the training's pairing doesn't explain is not guessed at, labels or none."""
    with pytest.raises(PairingError, match="no dimension of 3 classes"):
        infer(
            Lookup(table(classes=4)),
            first_example(Lookup(TABLE), [(SEQUENCE, TARGET)], _sequence_pairing()),
            _sequence_pairing(),
        )


class LossOnly(Lookup):
    """Returns its loss where it is given labels, else its logits."""

    def forward(self, numbers, labels=None):
        logits = super().forward(numbers)
        return logits if labels is None else F.cross_entropy(logits, labels)


def test_a_model_that_answers_labels_with_its_loss_is_asked_without():
    """The predictions are had from a second forward, without the labels."""
    with listening(Listener()):  # as in a run
        found = _inference(LossOnly(TABLE), [(SEQUENCE, TARGET)], _sequence_pairing()).log_probs
    np.testing.assert_allclose(found, [_log_softmax(ROWS[number]) for number in SEQUENCE.tolist()], rtol=1e-6)


# The first example


class Recording(Lookup):
    """Keeps the shapes that it is given, in a list that isn't put back after the forward."""

    def __init__(self, rows):
        super().__init__(rows)
        self.given = UserList()

    def forward(self, numbers):
        self.given.append((tuple(numbers.shape), self.training, torch.is_grad_enabled()))
        return super().forward(numbers)


FIRST = {
    "a shuffled loader": (lambda: DataLoader(Numbered(), 4, shuffle=True), "0"),
    "a subset sampler": (lambda: DataLoader(Numbered(), 4, sampler=SubsetRandomSampler([6, 2, 9])), "6"),
    "a dataset": (Numbered, "0"),
    "columns": (lambda: (torch.tensor([8, 9]), torch.tensor([1, 2])), "8"),
}


@pytest.mark.parametrize(("make", "expected"), FIRST.values(), ids=FIRST)
def test_the_first_example_is_run_alone(make, expected):
    """The first index's example goes through the model alone, with the batch dimension that it was trained with."""
    model = Recording(TABLE)
    inference = _inference(model, make(), _sequence_pairing())
    assert inference.example_input == expected
    np.testing.assert_allclose(inference.log_probs, [_log_softmax(ROWS[int(expected)])], rtol=1e-6)
    assert model.given[-1] == ((1,), False, False)
    assert model.training


def test_a_collate_function_of_the_users_makes_the_batch_of_one():
    """The example is collated alone, by the loader's own function."""

    def collate(pairs):
        return torch.stack([x for x, _ in pairs]) + 1, torch.stack([y for _, y in pairs])

    inference = _inference(Lookup(TABLE), DataLoader(Numbered(), 4, collate_fn=collate), _sequence_pairing())
    np.testing.assert_allclose(inference.log_probs, [_log_softmax(ROWS[1])], rtol=1e-6)
    assert inference.example_input == "0"


@pytest.mark.parametrize("trained", [(5,), (4, 5)], ids=["alone", "in batches"])
def test_a_batch_dimension_is_added_only_where_trained_with_one(trained):
    """A sequence goes in as `[T]` or as `[1, T]`."""
    model = Recording(TABLE)

    def loss():
        logits = TABLE[torch.zeros(trained, dtype=torch.long)]
        return F.cross_entropy(logits.movedim(-1, 1) if len(trained) > 1 else logits, torch.zeros(trained).long())

    found = _inference(model, [(SEQUENCE, TARGET)], learned(loss))
    assert model.given[-1][0] == ((5,) if trained == (5,) else (1, 5))
    assert found.log_probs.shape == (5, 3)


def test_without_a_criterion_a_batch_dimension_is_tried_second():
    """Where the training says nothing, the example is run as it is, and with a batch dimension if that fails."""

    class NeedsBatch(Recording):
        def forward(self, numbers):
            _, _ = numbers.shape
            return super().forward(numbers)

    assert _inference(Recording(TABLE), [(SEQUENCE, TARGET)], None).log_probs.shape == (5, 3)
    model = NeedsBatch(TABLE)
    assert _inference(model, [(SEQUENCE, TARGET)], None).log_probs.shape == (5, 3)
    assert model.given == [((1, 5), False, False)] * len(model.given)


# An example by name


@pytest.mark.parametrize(
    ("example", "text"),
    [
        (SEQUENCE, "3 1 4 1 5"),
        ([3, 1, 4, 1, 5], "3 1 4 1 5"),
        ((SEQUENCE, TARGET), "3 1 4 1 5"),
        (Labelled(SEQUENCE, TARGET, "hello"), "hello"),
    ],
    ids=["a tensor", "numbers", "a pair", "an object"],
)
@pytest.mark.parametrize("trained", ["alone", "in batches"])
def test_a_named_example_needs_no_target(example, text, trained):
    """A bare input, a pair or an object: run as the model was trained."""
    model = Recording(TABLE)

    def loss():
        logits = TABLE[SEQUENCE]
        if trained == "alone":
            return F.cross_entropy(logits, TARGET)
        return F.cross_entropy(torch.stack([logits, logits]).transpose(1, 2), torch.stack([TARGET, TARGET]))

    pairing = learned(loss)
    inference, _ = infer(model, named_example(model, example, pairing), pairing)
    assert inference.example_input == text
    np.testing.assert_allclose(inference.log_probs, [_log_softmax(ROWS[number]) for number in SEQUENCE], rtol=1e-6)
    assert model.given[-1][0] == ((5,) if trained == "alone" else (1, 5))


def test_a_named_example_may_be_the_models_keywords_or_text():
    """A dict without labels calls the model with keywords; a model that reads text is given text."""

    class Reads(Lookup):
        def forward(self, text=None, ids=None):
            return super().forward(torch.tensor([ord(letter) - ord("a") for letter in text]) if text else ids)

    model, pairing = Reads(TABLE), _sequence_pairing()
    for example, text, rows in (("abc", "abc", [0, 1, 2]), ({"ids": [4, 5]}, "4 5", [4, 5])):
        inference, _ = infer(model, named_example(model, example, pairing), pairing)
        assert inference.example_input == text
        np.testing.assert_allclose(inference.log_probs, [_log_softmax(ROWS[row]) for row in rows], rtol=1e-6)


def test_a_named_example_that_cant_be_run_says_what_the_model_said():
    """The first error of the model comes through."""
    with pytest.raises(IndexError):
        named_example(Lookup(TABLE), torch.tensor([99]), _sequence_pairing())


# Its text


@dataclass
class Spoken:
    input: str


@pytest.mark.parametrize(
    ("example", "text"),
    [
        ("plain text", "plain text"),
        ({"input": "from the field", "labels": 1, "ids": [1]}, "from the field"),
        (Spoken("from the attribute"), "from the attribute"),
        (("a pair's text", 1), "a pair's text"),
        ({"text": "a dict's text", "labels": 1}, "a dict's text"),
        ((torch.tensor([1, 20, 3]), 1), "1 20 3"),
        ((torch.tensor([[1, 2], [3, 4]]), 1), "1 2 3 4"),
        ((np.array([0.5, 1.5]), 1), "0.5 1.5"),
        (([7, 8], 1), "7 8"),
        (([[1, 2], [3, 4]], 1), "1 2 3 4"),
        ([5, 6, 7], "5 6 7"),
        ({}, ""),
        ({"input_ids": torch.tensor([5, 6]), "labels": 1}, "5 6"),
        (Labelled(torch.tensor([9, 8]), TARGET), ""),
        ((torch.tensor(4), 1), "4"),
        (((torch.tensor([1, 2]), torch.tensor([3])), 1), "1 2"),
    ],
)
def test_an_example_is_described_by_its_text_or_values(example, text):
    """Its `input` where that is text, itself where it is text, else its input's values with spaces between."""
    assert describe_example(example) == text


def test_describe_says_the_text():
    """`describe=` is handed the example as the set holds it."""
    dataset = Numbered()
    inference = _inference(Lookup(TABLE), dataset, _sequence_pairing(), describe=lambda example: f"<{len(example)}>")
    assert inference.example_input == "<2>"


def test_describe_must_say_text():
    """What is no string is refused."""
    with pytest.raises(TrackmetricsError, match="describe returned a int; return a string"):
        _inference(Lookup(TABLE), Numbered(), _sequence_pairing(), describe=lambda example: 3)


# In a run


class Attending(nn.Module):
    """A tagger that returns its logits and, for each of two layers, its maps of three heads."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.layers = nn.ModuleList(nn.MultiheadAttention(6, 3, batch_first=True) for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, numbers):
        x, maps = self.embedding(numbers), []
        for layer in self.layers:
            x, weights = layer(x, x, x, average_attn_weights=False)
            maps.append(weights)
        return self.head(x), maps


class Texts(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(10, (5,), generator=generator)
        return {"input": f"text {index}", "numbers": ids, "labels": ids % 3}


def _run_attending(**options):
    model = Attending()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    train = DataLoader([Texts()[index] for index in range(6)], 3)
    with Tracker("task", **{"train": [], "dev": Texts(), "final_train_accuracy": False, **options}) as run, run.epoch():
        for batch in train:
            logits, _ = model(batch["numbers"])
            optimizer.zero_grad()
            F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()).backward()
            optimizer.step()
    return model.eval(), run


def _expect_first(model, inference, ids):
    with torch.no_grad():
        logits, maps = model(ids[None])
    np.testing.assert_allclose(inference.log_probs, logits[0].log_softmax(-1), rtol=1e-5)
    np.testing.assert_allclose(inference.attention_weights, [layer[0].mean(0).tolist() for layer in maps], rtol=1e-5)
    assert inference.attention_weights.shape == (2, 5, 5)


@pytest.mark.parametrize("dev", [Texts(), DataLoader(Texts(), 4, shuffle=True)], ids=["dataset", "loader"])
def test_a_run_ends_with_the_first_dev_example(dev):
    """Text, log-probabilities and averaged maps of the first dev example; the file holds the very same floats."""
    model, run = _run_attending(dev=dev)
    _expect_first(model, run.record.final_inference, Texts()[0]["numbers"])
    assert run.record.final_inference.example_input == "text 0"
    assert load_run(run.path).final_inference == run.record.final_inference


def test_example_replaces_the_first_dev_example():
    """`example=` is run where the dev set gives no first example; its text is what `describe=` makes of it."""
    ids = torch.tensor([1, 1, 2, 3, 5])
    with pytest.warns(TrackmetricsWarning, match="dev_accuracy is null"):
        model, run = _run_attending(
            dev=iter([]), example=ids, describe=lambda example: "-".join(map(str, example.tolist()))
        )
    _expect_first(model, run.record.final_inference, ids)
    assert run.record.final_inference.example_input == "1-1-2-3-5"


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.ones(4), torch.tensor(1)


@pytest.mark.parametrize("dev", [Endless(), DataLoader(Endless(), 4)], ids=["stream", "loader"])
def test_a_stream_has_no_first_example(dev):
    """It is null; one warning names `example=` and `finalize=`."""
    with pytest.warns(TrackmetricsWarning) as warned:
        _, run = _run_attending(dev=dev)
    assert run.record.final_inference is None
    said = [str(item.message) for item in warned if "final_inference is null" in str(item.message)]
    assert len(said) == 1
    assert "stream without a length" in said[0]
    assert "give `example=`, or `finalize=`" in said[0]
    with pytest.raises(UnreadableError):
        first_example(Lookup(TABLE), dev, None)


ANSWER = {"example_input": "mine", "log_probs": [[-0.5, -1.0]], "attention_weights": [[[0.25]]]}


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        FinalInference("mine", np.array([[-0.5, -1.0]]), np.array([[[0.25]]])),
        {**ANSWER, "log_probs": torch.tensor([[-0.5, -1.0]]), "attention_weights": [torch.tensor([[0.25]])]},
    ],
    ids=["dict", "FinalInference", "tensors"],
)
def test_finalize_replaces_the_inference(answer):
    """What `finalize=` returns stands in the record; it was handed the model in eval mode and the raw first example."""
    handed = []

    def finalize(model, example):
        handed.append((type(model), model.training, torch.is_grad_enabled(), example["input"]))
        return answer

    _, run = _run_attending(finalize=finalize)
    assert handed == [(Attending, False, False, "text 0")]
    found = run.record.final_inference
    assert (found.example_input, found.log_probs.tolist(), found.attention_weights.tolist()) == (
        "mine",
        [[-0.5, -1.0]],
        [[[0.25]]],
    )


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "text",
        {"log_probs": []},
        {**ANSWER, "example_input": 3},
        {**ANSWER, "log_probs": [1.0]},
        {**ANSWER, "attention_weights": [[0.5]]},
        ZeroDivisionError("mine"),
    ],
    ids=["none", "text", "missing keys", "no text", "one dimension", "two dimensions", "raises"],
)
def test_a_finalize_that_goes_wrong_costs_a_null(answer):
    """A wrong return or an error is said once, and the rest of the run stands."""

    def finalize(model, example):
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.warns(TrackmetricsWarning) as warned:
        _, run = _run_attending(finalize=finalize)
    said = [str(item.message) for item in warned]
    assert len(said) == 1
    assert said[0].startswith("final_inference is null")
    assert ("finalize" in said[0]) or ("ZeroDivisionError: mine" in said[0])
    assert run.record.final_inference is None
    assert run.record.final_results.dev_accuracy is not None


def test_a_model_without_attention_has_no_maps():
    """`[]`, and nothing to say of it."""
    model = toy.model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Tracker("task", train=toy.loader(), dev=toy.examples(5)) as run, run.epoch():
        toy.train_epoch(model, optimizer, toy.loader())
    assert "attention" not in run.record.extensions
    assert run.record.final_inference.attention_weights.shape == (0, 0, 0)
    features = toy.examples(5)[0][0]
    with torch.no_grad():
        expected = model(features[None]).log_softmax(-1)
    assert np.array_equal(run.record.final_inference.log_probs, expected.numpy())
    assert run.record.final_inference.example_input == " ".join(map(str, features.tolist()))


def test_a_tensor_dataset_of_a_models_own_object_output():
    """An output object's logits and maps are both found."""

    class Model(Lookup):
        def forward(self, numbers):
            maps = torch.eye(numbers.shape[-1]).expand(numbers.shape[0], 2, -1, -1)
            return SimpleNamespace(logits=super().forward(numbers), attentions=(maps,))

    pairing = learned(lambda: F.cross_entropy(torch.zeros(2, 3, 5), torch.zeros(2, 5, dtype=torch.long)))
    data = DataLoader(TensorDataset(SEQUENCE[None].repeat(3, 1), TARGET[None].repeat(3, 1)), 2)
    found = _inference(Model(TABLE), data, pairing)
    assert np.array_equal(found.attention_weights, np.eye(5, dtype=np.float32)[None])
    assert found.log_probs.shape == (5, 3)
