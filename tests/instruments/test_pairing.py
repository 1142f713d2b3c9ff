"""How outputs pair with targets: learned from a training call, applied to whole outputs."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trackmetrics.instruments import events
from trackmetrics.instruments.criteria import Call, Made
from trackmetrics.instruments.pairing import Pairing, PairingError, are_log_probs, are_probabilities


class _Calls(events.Listener):
    def __init__(self):
        self.calls = []

    def criterion_called(self, criterion, arguments, result):
        self.calls.append(Call(Made.of(criterion, arguments, result)))


def learned(criterion, *arguments, **settings):
    """The pairing that one call of a criterion teaches."""
    heard = _Calls()
    with events.listening(heard):
        criterion(*arguments, **settings)
    (call,) = heard.calls
    return Pairing.of(call)


def judged(pairing, output, target):
    right, counted = pairing.judge(output, target)
    return int(right), int(counted)


SCORES = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.3, 0.3, 0.4], [0.9, 0.0, 0.1]])


def test_classes_are_predicted_by_the_largest_score():
    """One prediction a row, against its class index; an ignored target doesn't count."""
    pairing = learned(F.cross_entropy, SCORES, torch.tensor([1, 0, 2, 0]))
    assert judged(pairing, SCORES, torch.tensor([1, 0, 1, 0])) == (3, 4)
    assert judged(pairing, SCORES, torch.tensor([1, -100, 1, 0])) == (2, 3)
    assert judged(pairing, SCORES[:1], torch.tensor([2])) == (0, 1)


def test_the_trainings_ignore_index_is_used():
    """What the training ignored, the evaluation ignores, and nothing else."""
    pairing = learned(F.cross_entropy, SCORES, torch.tensor([1, 0, 2, 0]), ignore_index=2)
    assert judged(pairing, SCORES, torch.tensor([1, 2, 2, 1])) == (1, 2)


def test_a_target_with_a_last_dimension_of_one_is_taken():
    """Datasets that keep `[N, 1]` labels, squeezed by the training loop, are paired without it."""
    pairing = learned(F.cross_entropy, SCORES, torch.tensor([1, 0, 2, 0]))
    assert judged(pairing, SCORES, torch.tensor([[1], [0], [1], [0]])) == (3, 4)


@pytest.mark.parametrize("transposed", [True, False])
def test_classes_are_where_the_training_had_them(transposed):
    """A square output is ambiguous by its shape; whether the training transposed it, its memory tells."""
    output = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])  # [1, 3, 3]
    target = torch.tensor([[0, 0, 1]])
    scores = output.transpose(1, 2) if transposed else output
    pairing = learned(F.cross_entropy, scores, target)
    by_hand = sum(
        max(range(3), key=[scores[0, c, position].item() for c in range(3)].__getitem__) == target[0, position].item()
        for position in range(3)
    )
    assert judged(pairing, output, target) == (by_hand, 3)


def test_flattened_training_rows_judge_a_whole_output():
    """A language model trained on `view(-1, classes)` rows is judged on `[batch, length, classes]`."""
    output = SCORES.view(2, 2, 3)
    pairing = learned(F.cross_entropy, output.view(-1, 3), torch.tensor([1, 0, 2, 0]))
    assert judged(pairing, output, torch.tensor([[1, 0], [1, -100]])) == (2, 3)


@pytest.mark.parametrize(
    ("output", "target", "message"),
    [
        (torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64), "no dimension of 3 classes"),
        (torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64), "that leaves the target's shape (5,)"),
        (torch.zeros(4, 3), torch.zeros(4, 3), "the targets are probabilities, not classes"),
    ],
)
def test_shapes_that_do_not_pair_are_refused(output, target, message):
    """Where the shapes allow no pairing, the error says which shapes."""
    pairing = learned(F.cross_entropy, SCORES, torch.tensor([1, 0, 2, 0]))
    with pytest.raises(PairingError) as caught:
        pairing.judge(output, target)
    assert message in str(caught.value)


BINARY = {
    "probabilities": (F.binary_cross_entropy, torch.tensor([0.2, 0.5, 0.51, 0.9])),
    "logits": (F.binary_cross_entropy_with_logits, torch.tensor([-3.0, 0.0, 0.1, 2.0])),
}


@pytest.mark.parametrize(("criterion", "output"), BINARY.values(), ids=BINARY)
def test_binary_targets_are_predicted_by_the_threshold_one_half(criterion, output):
    """Element by element: a probability above one half, a logit above zero, says yes."""
    pairing = learned(criterion, output, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert judged(pairing, output, torch.tensor([0.0, 0.0, 1.0, 1.0])) == (4, 4)
    assert judged(pairing, output, torch.tensor([1.0, 1.0, 0.0, 0.0])) == (0, 4)
    assert judged(pairing, output.view(4, 1), torch.tensor([0, 0, 0, 1])) == (3, 4)


def test_binary_outputs_that_cannot_be_judged_are_refused():
    """Shapes of other sizes, soft targets, and logits where the training had probabilities."""
    pairing = learned(F.binary_cross_entropy, torch.tensor([0.2, 0.9]), torch.tensor([0.0, 1.0]))
    with pytest.raises(PairingError, match="an output of shape"):
        pairing.judge(torch.tensor([0.2, 0.9, 0.1]), torch.tensor([0.0, 1.0]))
    with pytest.raises(PairingError, match="the targets are probabilities"):
        pairing.judge(torch.tensor([0.2, 0.9]), torch.tensor([0.25, 1.0]))
    with pytest.raises(PairingError, match="was fed probabilities"):
        pairing.judge(torch.tensor([-2.0, 3.0]), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    "criterion",
    [
        lambda: (F.mse_loss, torch.zeros(2, 3), torch.zeros(2, 3)),
        lambda: (nn.KLDivLoss(reduction="batchmean"), torch.zeros(2, 3), torch.full((2, 3), 1 / 3)),
        lambda: (F.cross_entropy, torch.zeros(2, 3), torch.full((2, 3), 1 / 3)),
    ],
    ids=["regression", "distributions", "soft targets"],
)
def test_what_has_no_class_targets_is_not_judged(criterion):
    """Regression and distributions as targets have no accuracy to compute."""
    function, output, target = criterion()
    pairing = learned(function, output, target)
    with pytest.raises(PairingError, match="has no class targets here"):
        pairing.judge(output, target)


def test_which_kinds_have_an_accuracy():
    """Classes and binary targets have; regression and distributions haven't."""
    assert learned(nn.CrossEntropyLoss(), SCORES, torch.tensor([1, 0, 2, 0])).has_accuracy
    assert learned(nn.BCELoss(), torch.ones(1), torch.ones(1)).has_accuracy
    assert not learned(nn.MSELoss(), torch.ones(1), torch.ones(1)).has_accuracy
    assert not learned(nn.KLDivLoss(reduction="batchmean"), torch.zeros(1, 1), torch.ones(1, 1)).has_accuracy


# Log-probabilities


def rows_by_hand(scores):
    return [[value - math.log(math.fsum(map(math.exp, row))) for value in row] for row in scores.tolist()]


def test_log_probs_of_cross_entropy_go_through_log_softmax():
    """Logits become log-probabilities, one row a prediction, classes last."""
    output = SCORES.view(1, 4, 3).double()
    pairing = learned(F.cross_entropy, output.transpose(1, 2), torch.tensor([[1, 0, 2, 0]]))
    found = pairing.log_probs(output, torch.tensor([[1, 0, 2, 0]]))
    assert found.tolist() == [pytest.approx(row, rel=1e-12) for row in rows_by_hand(output[0])]


def test_log_probs_of_nll_loss_are_taken_as_they_are():
    """What `nll_loss` was fed is log-probabilities already, bit for bit; raw scores of a model are not."""
    log_probs = SCORES.log_softmax(1)
    pairing = learned(F.nll_loss, log_probs, torch.tensor([1, 0, 2, 0]))
    assert torch.equal(pairing.log_probs(log_probs, torch.tensor([1, 0, 2, 0])), log_probs)
    found = pairing.log_probs(SCORES.double(), torch.tensor([1, 0, 2, 0]))
    assert found.tolist() == [pytest.approx(row, rel=1e-12) for row in rows_by_hand(SCORES.double())]


@pytest.mark.parametrize(("criterion", "output"), BINARY.values(), ids=BINARY)
def test_log_probs_of_a_binary_criterion_are_two_columns(criterion, output):
    """log(1-p) and log p, for each element."""
    pairing = learned(criterion, output, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    found = pairing.log_probs(output.double(), None).tolist()
    logits = criterion is F.binary_cross_entropy_with_logits
    shares = [1 / (1 + math.exp(-value)) if logits else value for value in output.double().tolist()]
    assert found == [pytest.approx([math.log(1 - p), math.log(p)], rel=1e-9) for p in shares]


def test_a_regression_has_no_log_probs():
    """Nothing is made up where the output is no distribution."""
    assert learned(F.mse_loss, torch.zeros(2), torch.zeros(2)).log_probs(torch.zeros(2), None) is None


def test_distributions_are_told_from_scores():
    """Rows whose exponentials sum to 1, rows that sum to 1, and neither; half types keep few digits."""
    rows = SCORES.log_softmax(1)
    assert are_log_probs(rows)
    assert are_log_probs(rows.half())
    assert not are_log_probs(SCORES)
    assert are_probabilities(rows.exp())
    assert not are_probabilities(rows)
    assert not are_probabilities(torch.tensor([[1.5, -0.5]]))
