"""The demo: its data, its figures against a computation of their own, and a training that tracking leaves alone."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from trackmetrics import Tracker, demo, load_run

ARGS = demo.Arguments(epochs=2, train_examples=600, dev_examples=100, seed=7)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One small demo training: its model and its record."""
    args = dataclasses.replace(ARGS, output_dir=tmp_path_factory.mktemp("demo"))
    model = demo.main(args)
    return model, load_run(args.output_dir / "letter_counting_training_metrics.json")


def by_hand(args):
    """The same training without trackmetrics: its model, and each epoch's loss, accuracies and mean norm."""
    train, dev = demo.make_loaders(args)
    torch.manual_seed(args.seed)
    model = demo.Transformer(len(demo.ALPHABET), demo.LENGTH, args.d_model, args.d_internal, args.layers, demo.CLASSES)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs * len(train))
    epochs = []
    for _ in range(args.epochs):
        total = right = count = 0
        norms = []
        for indices, counts in train:
            log_probs, _ = model(indices)
            loss = torch.nn.functional.nll_loss(log_probs.flatten(0, 1), counts.flatten())
            optimizer.zero_grad()
            loss.backward()
            norms.append(math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in model.parameters())))
            optimizer.step()
            scheduler.step()
            total += loss.item() * counts.numel()
            right += (log_probs.argmax(-1) == counts).sum().item()
            count += counts.numel()
        epochs.append((total / count, right / count, share_right(model, dev.dataset), sum(norms) / len(norms)))
    return model, epochs


def share_right(model, examples):
    """Accuracy example by example, counted in plain Python."""
    right = total = 0
    for example in examples:
        with torch.no_grad():
            rows = model(example.input_tensor[None])[0][0].tolist()
        right += sum(row.index(max(row)) == target for row, target in zip(rows, example.output_tensor.tolist()))
        total += len(rows)
    return right / total


def test_its_figures_are_those_of_a_training_by_hand(trained):
    """Loss, accuracies and gradient norm agree with a loop that knows nothing of trackmetrics."""
    model, record = trained
    expected_model, expected = by_hand(ARGS)
    found = [(e.train_loss, e.train_accuracy, e.dev_accuracy, e.gradient_norm) for e in record.epochs]
    np.testing.assert_allclose(found, expected, atol=5.1e-5)
    train, dev = demo.make_examples(ARGS.train_examples, ARGS.dev_examples)
    assert record.final_results.train_accuracy == pytest.approx(share_right(expected_model, train), abs=5.1e-5)
    assert record.final_results.dev_accuracy == pytest.approx(share_right(expected_model, dev), abs=5.1e-5)
    for name, value in expected_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_its_final_inference_is_the_first_dev_example(trained):
    """Input, log-probabilities and every layer's attention are those of one forward, to the last bit."""
    model, record = trained
    _, dev = demo.make_examples(ARGS.train_examples, ARGS.dev_examples)
    with torch.no_grad():
        log_probs, attention = model(dev[0].input_tensor[None])
    inference = record.final_inference
    assert inference.example_input == dev[0].input
    assert np.array_equal(inference.log_probs, log_probs[0].numpy())
    assert np.array_equal(inference.attention_weights, torch.cat(attention).numpy())
    assert inference.log_probs.dtype == np.float32


def test_undecorated_it_trains_the_same_weights(trained, monkeypatch):
    """The function under the decorator, with tracking turned off, gives bit-identical parameters."""
    monkeypatch.setenv("TRACKMETRICS_DISABLED", "1")
    with Tracker("untracked"):
        plain = demo.train_classifier.__wrapped__(ARGS, *demo.make_loaders(ARGS))
    for name, value in plain.state_dict().items():
        assert torch.equal(trained[0].state_dict()[name], value), name


def test_its_hyperparameters_are_found(trained):
    """Model and training parameters stand under the names that are fixed."""
    hyperparameters = trained[1].metadata.hyperparameters
    assert hyperparameters.model == {
        "class": "Transformer", "vocabulary_size": 27, "length": 20, "d_model": 64, "d_internal": 32, "layers": 2,
        "classes": 3, "num_parameters": 86019, "num_trainable_parameters": 86019,
    }  # fmt: skip
    training = hyperparameters.training
    assert (training["num_epochs"], training["batch_size"], training["seed"]) == (2, 32, 7)
    assert training["learning_rate"] == 3e-3
    assert training["optimizer"]["name"] == "Adam"
    assert training["scheduler"] == {"name": "CosineAnnealingLR", "T_max": 38, "eta_min": 0.0}
    assert training["criterion"] == {"name": "nll_loss", "reduction": "mean", "ignore_index": -100}


def test_its_sets_do_not_overlap():
    """No dev string is a training string, and each is 20 letters and spaces."""
    train, dev = demo.make_examples(10_000, 1_000)
    strings, held_out = {example.input for example in train}, {example.input for example in dev}
    assert (len(strings), len(held_out)) == (10_000, 1_000)
    assert not strings & held_out
    assert all(len(string) == 20 and set(string) <= set(demo.ALPHABET) for string in strings | held_out)


def test_too_many_examples_are_refused():
    """The message says how many strings there are."""
    with pytest.raises(ValueError, match=r"the text has \d+ strings"):
        demo.make_examples(10**6, 1)


def test_labels_count_earlier_occurrences():
    """Worked out by hand for one string."""
    assert demo.make_example("aab bba xyz aaaa  zz").output_tensor.tolist() == [
        0, 1, 0, 0, 1, 2, 2, 1, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 1, 2,
    ]  # fmt: skip


def test_its_file_survives_a_strict_parser(trained, tmp_path):
    """The standard library's parser, told to refuse NaN, reads what the demo writes."""
    args = dataclasses.replace(ARGS, output_dir=tmp_path, epochs=1, train_examples=32, dev_examples=8)
    demo.main(args)

    def refuse(constant):
        raise AssertionError(constant)

    text = (Path(tmp_path) / "letter_counting_training_metrics.json").read_text(encoding="utf-8")
    data = json.loads(text, parse_constant=refuse)
    assert np.shape(data["final_inference"]["attention_weights"]) == (2, 20, 20)
    assert np.shape(data["final_inference"]["log_probs"]) == (20, 3)


def test_with_torchs_own_encoder_the_file_holds_its_attention_all_the_same(tmp_path):
    """The encoder returns no maps; those in the file are its layers' own, asked for by hand, causal ones."""
    args = dataclasses.replace(ARGS, model="encoder", output_dir=tmp_path, epochs=1, train_examples=320)
    model = demo.main(args)
    inference = load_run(tmp_path / "letter_counting_training_metrics.json").final_inference
    indices = demo.make_examples(args.train_examples, args.dev_examples)[1][0].input_tensor[None]
    assert isinstance(model(indices), torch.Tensor)
    later = torch.ones(20, 20, dtype=torch.bool).triu(1)
    with torch.no_grad():
        x = model.characters(indices) + model.positions(torch.arange(20))
        for layer, found in zip(model.encoder.layers, inference.attention_weights, strict=True):
            _, weights = layer.self_attn(x, x, x, attn_mask=later)
            np.testing.assert_allclose(found, weights[0].numpy(), atol=1e-6)
            x = layer(x, src_mask=later)
    assert inference.attention_weights.shape == (2, 20, 20)


def test_heads_that_dont_fit_are_refused():
    """The encoder splits its features into heads of `d_internal`."""
    with pytest.raises(ValueError, match="64 features can't be split into heads of 30; give a divisor of 64"):
        demo.main(dataclasses.replace(ARGS, model="encoder", d_internal=30))
