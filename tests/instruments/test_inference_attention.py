"""The attention of a final inference in the record and in the file: the stack, and an account of all maps."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attention_cases import Attends, Classifies, OverFeatures, Windows, attention_like, sharp
from fingerprint import fingerprint
from strict_json import strict_loads
from torch import nn
from torch.utils.data import DataLoader

from trackmetrics import Tracker, TrackmetricsWarning, capture_attention, load_run

WORDS, CLASSES, WIDTH, LENGTH = 9, 3, 8, 6


def sequences(number=8):
    drawn = torch.randint(WORDS, (number, LENGTH), generator=torch.Generator().manual_seed(0))
    return [(row, row % CLASSES) for row in drawn]


class Labels(nn.Module):
    """Labels each word, after attending by `body`."""

    def __init__(self, body):
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(WORDS, WIDTH), body, nn.Linear(WIDTH, CLASSES)

    def forward(self, words):
        return self.head(self.body(self.words(words)))


def encoder():
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 3)


class WithMemory(nn.Module):
    """Attends to itself, then to a memory of another length."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, 2, 16, batch_first=True), 2)
        self.memory = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.decoder(x, self.memory(x)[:, :4])


def run(body, build=Labels, predictions=lambda output: output, **options):
    """A run of one epoch over `body`: the run, its model, and what was said."""
    torch.manual_seed(0)
    model, loader = sharp(build(body)), DataLoader(sequences(), 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Tracker("t", train=loader, dev=loader, **options) as tracker, tracker.epoch():
            for words, targets in loader:
                optimizer.zero_grad()
                F.cross_entropy(predictions(model(words)).flatten(0, 1), targets.flatten()).backward()
                optimizer.step()
    said = [str(item.message) for item in caught if item.category is TrackmetricsWarning]
    return tracker, model, said


def first_words():
    return sequences()[0][0][None]


def test_the_file_holds_every_layer_of_a_model_that_returns_none():
    """Averaged over heads, in the order they ran, and an account of each map."""
    tracker, model, said = run(encoder())
    maps = capture_attention(model, first_words())
    expected = torch.cat([item.weights.mean(1) for item in maps])
    assert said == []
    np.testing.assert_array_equal(tracker.record.final_inference.attention_weights, expected.numpy())
    loaded = load_run(tracker.path)
    np.testing.assert_array_equal(loaded.final_inference.attention_weights, expected.numpy())
    account = strict_loads(Path(tracker.path).read_bytes())["extensions"]["attention"]
    assert list(account) == ["maps"]
    assert [{key: entry[key] for key in entry if key != "check"} for entry in account["maps"]] == [
        {"name": f"body.layers.{layer}.self_attn", "kind": "self", "shape": [1, 2, LENGTH, LENGTH],
         "source": "recomputed", "layer": layer}
        for layer in range(3)
    ]  # fmt: skip
    assert all(0 <= entry["check"] < 1e-5 for entry in account["maps"])


def test_each_head_is_there_where_it_is_asked_for():
    """`[num_layers, heads, seq_len, seq_len]` in the extensions, whose mean over heads is the stack."""
    tracker, model, _ = run(encoder(), attention="heads")
    heads = load_run(tracker.path).extensions["attention"]["heads"]
    assert heads.dtype == np.float32
    expected = torch.cat([item.weights for item in capture_attention(model, first_words())])
    np.testing.assert_array_equal(heads, expected.numpy())
    np.testing.assert_allclose(heads.mean(1), tracker.record.final_inference.attention_weights, atol=1e-7)
    assert tracker.record.extensions["attention"]["heads"].shape == (3, 2, LENGTH, LENGTH)
    assert load_run(tracker.path) == load_run(tracker.path)


@pytest.mark.parametrize("detail", ["mean", "heads"])
def test_cross_attention_stands_beside_the_stack(detail):
    """Never padded into it, with its own shape."""
    tracker, model, _ = run(WithMemory(), attention=detail)
    maps = capture_attention(model, first_words())
    entries = load_run(tracker.path).extensions["attention"]["maps"]
    assert [(entry["kind"], entry.get("layer")) for entry in entries] == [
        ("self", 0), ("cross", None), ("self", 1), ("cross", None),
    ]  # fmt: skip
    for entry, item in zip(entries, maps, strict=True):
        assert entry["shape"] == list(item.weights.shape)
        if entry["kind"] == "cross":
            own = item.weights[0] if detail == "heads" else item.weights[0].mean(0)
            np.testing.assert_allclose(entry["weights"], own.numpy(), atol=1e-7)
    assert tracker.record.final_inference.attention_weights.shape == (2, LENGTH, LENGTH)


@pytest.mark.parametrize(("body", "kind", "shape"), [(Windows, "window", (2, 3, 3)), (OverFeatures, "feature", (4, 4))])
def test_windows_and_features_are_never_stacked(body, kind, shape):
    """Their weights stand in the account."""
    tracker, _, said = run(body())
    (entry,) = load_run(tracker.path).extensions["attention"]["maps"]
    assert entry["kind"] == kind
    assert entry["weights"].shape == shape
    assert tracker.record.final_inference.attention_weights.shape == (0, 0, 0)
    assert said == []


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning")
def test_a_scripted_model_is_found_evaluated_and_watched():
    """Its class has no `forward` that could be read as any other's."""
    tracker, _, said = run(encoder(), build=lambda body: torch.jit.script(Labels(body)))
    assert said == []
    assert tracker.record.final_results.dev_accuracy is not None
    assert tracker.record.final_inference.attention_weights.shape == (3, LENGTH, LENGTH)


def test_inputs_that_the_forward_writes_to_are_the_sets_own():
    """The model gets copies, in the plain forward and in the watched one."""

    class Scaling(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Attends(F.scaled_dot_product_attention)

        def forward(self, x):
            return self.body(x)

    class Writing(Labels):
        def forward(self, words):
            words += 1
            words %= WORDS
            return super().forward(words)

    data = sequences()
    tracker, _, said = run(Scaling(), build=Writing)
    assert said == []
    assert tracker.record.final_inference.attention_weights.shape == (1, LENGTH, LENGTH)
    assert all(torch.equal(words, again) for (words, _), (again, _) in zip(data, sequences(), strict=True))


def test_without_attention_there_is_no_account():
    """A model that doesn't attend has `[]`, and nothing is said."""
    tracker, _, said = run(Classifies(lambda model, hidden: hidden.relu()))
    assert tracker.record.final_inference.attention_weights.shape == (0, 0, 0)
    assert "attention" not in tracker.record.extensions
    assert said == []


def test_attention_that_nobody_wants_is_not_watched():
    """False: `[]`, also where the model attends."""
    tracker, _, said = run(encoder(), attention=False)
    assert tracker.record.final_inference.attention_weights.shape == (0, 0, 0)
    assert "attention" not in tracker.record.extensions
    assert said == []


def test_an_operator_that_hides_its_weights_is_said_and_costs_nothing_else():
    """One warning, the reason in the file, the other layers and everything else as ever."""

    def hidden(query, key, value):
        return attention_like(query.detach(), key.detach(), value.detach())

    tracker, _, said = run(nn.Sequential(Attends(F.scaled_dot_product_attention), Attends(hidden)))
    (message,) = said
    reason = "no weights can be had of trackmetrics_tests::attention_like in body.1"
    assert message.startswith(f"final_inference.attention_weights may lack layers: {reason}; give `finalize=`")
    account = strict_loads(Path(tracker.path).read_bytes())["extensions"]["attention"]
    assert account["fault"] == reason
    assert tracker.record.final_inference.attention_weights.shape == (1, LENGTH, LENGTH)
    assert tracker.record.final_results.dev_accuracy is not None


def test_a_fault_while_watching_leaves_what_the_model_returns(monkeypatch):
    """The capture failed, whatever it was: the plain forward's maps and predictions stay."""

    class Returning(nn.Module):
        def forward(self, x):
            weights = (x @ x.mT).softmax(-1)
            return weights @ x, weights

    class Both(Labels):
        def forward(self, words):
            hidden, weights = self.body(self.words(words))
            return self.head(hidden), weights

    def broken(*args, **kwargs):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("trackmetrics.instruments.attention_capture.Lineage.follow", broken)
    tracker, model, said = run(Returning(), Both, predictions=lambda output: output[0])
    (message,) = said
    assert message.startswith("final_inference.attention_weights may lack layers: ours")
    with torch.no_grad():
        predictions, weights = model(first_words())
    found = tracker.record.final_inference
    np.testing.assert_array_equal(found.attention_weights, weights.numpy())
    np.testing.assert_allclose(found.log_probs, predictions[0].log_softmax(-1).numpy(), rtol=1e-6)


def test_predictions_come_from_the_plain_forward():
    """They are those of one call of the model, to the last bit; the model is as it was."""
    tracker, model, _ = run(encoder())
    before = fingerprint(model=model)
    with torch.no_grad():
        expected = model.eval()(first_words())[0].log_softmax(-1)
    np.testing.assert_array_equal(tracker.record.final_inference.log_probs, expected.numpy())
    assert fingerprint(model=model) == before


def test_a_file_whose_account_of_arrays_is_wrong_is_refused():
    """The place is named."""
    tracker, _, _ = run(WithMemory())
    plain = json.loads(Path(tracker.path).read_text())
    plain["extensions"]["dtypes"]["/extensions/attention/maps/9/weights"] = "float32"
    Path(tracker.path).write_text(json.dumps(plain))
    with pytest.raises(Exception, match=r"/extensions/attention/maps/9/weights.*no such array"):
        load_run(tracker.path)
