"""Attention maps in what a model returns: found by what they are, heads averaged, in any of the usual shapes."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from trackmetrics.instruments.attention_maps import stackable
from trackmetrics.instruments.returned_attention import returned_maps

LAYERS, HEADS, LENGTH = 2, 4, 5


def _weights(*shape, seed=0, dtype=torch.float32):
    """Random maps: each row positive, its sum 1."""
    drawn = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    return (drawn / drawn.sum(-1, keepdim=True)).to(dtype)


def stacked(output, length=None, batch=(1,)):
    """The maps of an output as `[layers, length, length]`, heads averaged; None where there are none."""
    layers = stackable(returned_maps(output, batch), length)
    return torch.stack([layer.weights[0].mean(0) for layer in layers]) if layers else None


def _averaged(maps):
    """The mean over heads of `[layers, heads, length, length]`, entry by entry."""
    layers, heads, length, _ = maps.shape
    return [
        [
            [sum(maps[layer, head, row, column].item() for head in range(heads)) / heads for column in range(length)]
            for row in range(length)
        ]
        for layer in range(layers)
    ]


PER_HEAD = _weights(LAYERS, HEADS, LENGTH, LENGTH)
SINGLE = _weights(LAYERS, 1, LENGTH, LENGTH, seed=1)
LOGITS = torch.zeros(LENGTH, 3)

SHAPES = {
    "a list of [T, T]": (SINGLE, list(SINGLE[:, 0])),
    "a list of [H, T, T]": (PER_HEAD, list(PER_HEAD)),
    "a list of [1, H, T, T]": (PER_HEAD, [layer[None] for layer in PER_HEAD]),
    "a list of [1, T, T]": (SINGLE, list(SINGLE)),
    "a tuple of [H, T, T]": (PER_HEAD, tuple(PER_HEAD)),
    "stacked [L, T, T]": (SINGLE, SINGLE[:, 0]),
    "stacked [L, H, T, T]": (PER_HEAD, PER_HEAD),
    "stacked [L, 1, H, T, T]": (PER_HEAD, PER_HEAD[:, None]),
    "stacked [L, 1, T, T]": (SINGLE, SINGLE),
    "one layer [T, T]": (SINGLE[:1], SINGLE[0, 0]),
    "one layer [1, T, T]": (SINGLE[:1], SINGLE[0]),
    "one layer [1, H, T, T]": (PER_HEAD[:1], PER_HEAD[:1]),
}


@pytest.mark.parametrize(("maps", "returned"), SHAPES.values(), ids=SHAPES)
def test_maps_of_any_shape_become_one_square_a_layer(maps, returned):
    """`[num_layers, T, T]`, heads averaged, whatever stands in front: layers, heads, a batch of one."""
    found = stacked((LOGITS, returned))
    assert found.shape == (len(maps), LENGTH, LENGTH)
    torch.testing.assert_close(found, torch.tensor(_averaged(maps)), atol=1e-6, rtol=0)


def test_single_maps_come_back_bit_by_bit():
    """Where there is nothing to average, the very same floats come back, in double precision too."""
    for dtype in (torch.float32, torch.float64):
        weights = _weights(LAYERS, LENGTH, LENGTH, dtype=dtype)
        assert torch.equal(stacked((LOGITS, list(weights))), weights)
        assert stacked((LOGITS, list(weights))).dtype is dtype
    half = _weights(LENGTH, LENGTH, dtype=torch.bfloat16)
    assert torch.equal(stacked((LOGITS, half)), half.float()[None])


MAPS = list(SINGLE[:, 0])


@pytest.mark.parametrize(
    "output",
    [
        (LOGITS, MAPS),
        [LOGITS, MAPS],
        (LOGITS, *MAPS),
        (LOGITS, torch.zeros(1), MAPS),
        SimpleNamespace(logits=LOGITS, attentions=MAPS),
        SimpleNamespace(logits=LOGITS, attention_weights=MAPS),
        {"logits": LOGITS, "attn": MAPS},
        OrderedDict(logits=LOGITS, attentions=MAPS, cross_attentions=MAPS[:1]),
        {"encoder_attentions": MAPS[:1], "decoder_attentions": MAPS},
        (LOGITS, [*MAPS, None, _weights(LENGTH, 7)]),
    ],
    ids=str,
)
def test_maps_are_found_beside_the_predictions(output):
    """Under their name, one or all, in order; those of an encoder and cross-attention left out."""
    assert torch.equal(stacked(output), SINGLE[:, 0])


@pytest.mark.parametrize(
    ("length", "expected"), [(None, 5), (4, 4), (5, 5), (1, 5)], ids=["most", "rows 4", "rows 5", "classifier"]
)
def test_of_several_lengths_one_is_taken(length, expected):
    """Maps as long as the predictions' rows are taken; where none is, those of the commonest length."""
    short, long = list(_weights(1, 4, 4)), list(_weights(2, 5, 5))
    found = stacked((LOGITS, [*short, *long]), length)
    assert torch.equal(found, torch.stack(short if expected == 4 else long))


SQUARE_HIDDEN = torch.randn(LENGTH, LENGTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "beside",
    [
        SQUARE_HIDDEN,
        SQUARE_HIDDEN.abs(),
        [SQUARE_HIDDEN, SQUARE_HIDDEN],
        2 * SINGLE[0, 0],
        SINGLE[0, 0] - 0.2 * torch.eye(LENGTH) + 0.04,
        SQUARE_HIDDEN / SQUARE_HIDDEN.sum(-1, keepdim=True),
        torch.zeros(LENGTH, LENGTH),
        torch.ones(LENGTH, LENGTH).tril(),
        torch.eye(LENGTH, dtype=torch.bool),
        torch.eye(LENGTH, dtype=torch.long),
        torch.softmax(torch.zeros(LENGTH, 3), -1),
        torch.ones(()),
        torch.ones(LENGTH),
        torch.zeros(0, 0),
        torch.full((LENGTH, LENGTH), float("nan")),
        [],
        None,
        "maps",
        {"maps": MAPS},
    ],
    ids=range(19),
)
def test_what_is_no_map_is_not_taken_for_one(beside):
    """Hidden states that happen to be square, scores, masks, distributions over classes, empty tensors."""
    assert stacked((LOGITS, beside)) is None
    assert stacked((LOGITS[None], beside)) is None


def test_rows_without_a_key_are_part_of_a_map():
    """A row of zeros, where every key is masked, makes a map no less one."""
    weights = SINGLE[0, 0].clone()
    weights[2] = 0
    assert torch.equal(stacked((LOGITS, weights)), weights[None])


@pytest.mark.parametrize("output", [LOGITS, SINGLE[0, 0], None, (SINGLE[0, 0],), (), {"logits": SINGLE[0, 0]}])
def test_predictions_are_no_maps(output):
    """What stands where the predictions stand is never taken for attention."""
    assert stacked(output) is None


def test_each_map_has_its_kind_and_place():
    """Those of an encoder, and cross-attention, which need not be square, are told apart by their names."""
    cross = _weights(2, LENGTH, 7)[None]
    output = SimpleNamespace(
        logits=LOGITS, decoder_attentions=MAPS, encoder_attentions=MAPS[:1], cross_attentions=cross
    )
    found = [(item.name, item.kind, tuple(item.weights.shape)) for item in returned_maps(output)]
    assert found == [
        ("decoder_attentions.0", "self", (1, 1, LENGTH, LENGTH)),
        ("decoder_attentions.1", "self", (1, 1, LENGTH, LENGTH)),
        ("encoder_attentions.0", "encoder", (1, 1, LENGTH, LENGTH)),
        ("cross_attentions.0", "cross", (1, 2, LENGTH, 7)),
    ]


def test_maps_of_a_batch_keep_their_examples():
    """A first dimension of the batch's size is the batch."""
    (found,) = returned_maps((LOGITS, PER_HEAD[:, 0]), batch=(LAYERS,))
    assert torch.equal(found.weights, PER_HEAD[:, :1])
