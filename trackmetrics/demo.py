"""Letter counting, trained and tracked: an ordinary PyTorch training, with three lines of trackmetrics in it.

The task: for each character of a 20-character string of English, say whether it has occurred before in the string
not at all, once, or twice and more often.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from trackmetrics import tracked_training, tracker

ALPHABET = "abcdefghijklmnopqrstuvwxyz "
LENGTH = 20
CLASSES = 3


# The task


@dataclass(frozen=True)
class Example:
    """One string, its characters as indices `[20]`, and the class of each `[20]`."""

    input: str
    input_tensor: torch.Tensor
    output_tensor: torch.Tensor


def make_example(text: str) -> Example:
    """Index the characters and count the earlier occurrences of each, capped at 2.

    >>> make_example("to be or not to be x").output_tensor.tolist()
    [0, 0, 0, 0, 0, 1, 1, 0, 2, 0, 2, 1, 2, 2, 2, 2, 1, 1, 2, 0]
    """
    counts = [min(text[:place].count(character), CLASSES - 1) for place, character in enumerate(text)]
    indices = [ALPHABET.index(character) for character in text]
    return Example(text, torch.tensor(indices), torch.tensor(counts))


def english_text() -> str:
    """The documentation that every Python has on board, as lower-case letters and single spaces."""
    from pydoc_data.topics import topics

    words = " ".join(topics[name] for name in sorted(topics)).lower()
    return re.sub("[^a-z]+", " ", words)


def make_examples(num_train: int, num_dev: int) -> tuple[list[Example], list[Example]]:
    """Cut the text into strings, and split them so that no string is in both sets; dev comes from the text's end.

    Raises `ValueError` where the text has fewer strings than that.
    """
    text = english_text()
    strings = list(dict.fromkeys(text[start : start + LENGTH] for start in range(0, len(text) - LENGTH, LENGTH)))
    if num_train < 1 or num_dev < 1 or num_train + num_dev > len(strings):
        raise ValueError(
            f"{num_train} training and {num_dev} dev examples were asked for; "
            f"the text has {len(strings)} strings, and each set needs at least one"
        )
    return (
        [make_example(string) for string in strings[:num_train]],
        [make_example(string) for string in strings[-num_dev:]],
    )


def stack(examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Join examples into a batch: inputs `[batch, 20]`, targets `[batch, 20]`."""
    return (
        torch.stack([example.input_tensor for example in examples]),
        torch.stack([example.output_tensor for example in examples]),
    )


# The model


class TransformerLayer(nn.Module):
    """Causal self-attention with one head, then a feed-forward network, each added to its input."""

    def __init__(self, d_model: int, d_internal: int) -> None:
        super().__init__()
        self.query = nn.Linear(d_model, d_internal)
        self.key = nn.Linear(d_model, d_internal)
        self.value = nn.Linear(d_model, d_model)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.ReLU(), nn.Linear(4 * d_model, d_model))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map `[batch, length, d_model]` to the same shape, and give the weights `[batch, length, length]`."""
        scores = self.query(x) @ self.key(x).transpose(-1, -2) / math.sqrt(self.query.out_features)
        later = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        x = x + weights @ self.value(x)
        return x + self.feed_forward(x), weights


class Transformer(nn.Module):
    """A small Transformer that labels each character."""

    def __init__(self, vocabulary_size: int, length: int, d_model: int, d_internal: int, layers: int, classes: int):
        super().__init__()
        self.characters = nn.Embedding(vocabulary_size, d_model)
        self.positions = nn.Embedding(length, d_model)
        self.layers = nn.ModuleList(TransformerLayer(d_model, d_internal) for _ in range(layers))
        self.output = nn.Linear(d_model, classes)

    def forward(self, indices: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Map `[batch, length]` to log-probabilities `[batch, length, classes]` and one attention map a layer."""
        x = self.characters(indices) + self.positions(torch.arange(indices.shape[-1], device=indices.device))
        attention = []
        for layer in self.layers:
            x, weights = layer(x)
            attention.append(weights)
        return self.output(x).log_softmax(-1), attention


class EncoderTransformer(nn.Module):
    """The same task with torch's own encoder, which returns no attention maps."""

    def __init__(self, vocabulary_size: int, length: int, d_model: int, d_internal: int, layers: int, classes: int):
        super().__init__()
        if d_model % d_internal:
            raise ValueError(
                f"{d_model} features can't be split into heads of {d_internal}; give a divisor of {d_model}"
            )
        self.characters = nn.Embedding(vocabulary_size, d_model)
        self.positions = nn.Embedding(length, d_model)
        layer = nn.TransformerEncoderLayer(d_model, d_model // d_internal, 4 * d_model, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.output = nn.Linear(d_model, classes)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Map `[batch, length]` to log-probabilities `[batch, length, classes]`."""
        x = self.characters(indices) + self.positions(torch.arange(indices.shape[-1], device=indices.device))
        later = nn.Transformer.generate_square_subsequent_mask(indices.shape[-1], device=indices.device)
        scores: torch.Tensor = self.output(self.encoder(x, mask=later, is_causal=True))
        return scores.log_softmax(-1)


MODELS: dict[str, type[Transformer | EncoderTransformer]] = {"by-hand": Transformer, "encoder": EncoderTransformer}


# The training


@dataclass(frozen=True)
class Arguments:
    """What the command line gives."""

    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 3e-3
    d_model: int = 64
    d_internal: int = 32
    layers: int = 2
    model: str = "by-hand"
    train_examples: int = 10_000
    dev_examples: int = 1_000
    seed: int = 0
    device: str = "cpu"
    output_dir: Path = Path("output")


@tracked_training(task="letter_counting", output_dir=lambda args, train, dev: args.output_dir, progress=True)
def train_classifier(args: Arguments, train: DataLoader[Example], dev: DataLoader[Example]) -> nn.Module:
    """Train a Transformer on letter counting."""
    torch.manual_seed(args.seed)
    build = MODELS[args.model]
    model = build(len(ALPHABET), LENGTH, args.d_model, args.d_internal, args.layers, CLASSES).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs * len(train))
    for _ in range(args.epochs):
        with tracker.epoch():
            for indices, counts in train:
                output = model(indices.to(args.device))
                log_probs = output[0] if isinstance(output, tuple) else output
                loss = F.nll_loss(log_probs.flatten(0, 1), counts.to(args.device).flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
    return model


def make_loaders(args: Arguments) -> tuple[DataLoader[Example], DataLoader[Example]]:
    """The training set, shuffled by the seed, and the dev set."""
    train, dev = make_examples(args.train_examples, args.dev_examples)
    shuffle = torch.Generator().manual_seed(args.seed)
    return (
        DataLoader(train, batch_size=args.batch_size, shuffle=True, generator=shuffle, collate_fn=stack),  # type: ignore[arg-type]
        DataLoader(dev, batch_size=args.batch_size, collate_fn=stack),  # type: ignore[arg-type]
    )


def main(args: Arguments) -> nn.Module:
    """Train with `args`; the file is `letter_counting_training_metrics.json` in `args.output_dir`."""
    train, dev = make_loaders(args)
    return train_classifier(args, train, dev)
