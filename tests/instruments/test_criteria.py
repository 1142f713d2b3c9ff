"""Each criterion and each way to call it, against its definition worked out by hand, target by target."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from metrics_by_hand import (
    CLASSES,
    WEIGHTS,
    assert_style,
    batches,
    classes_for,
    in_rows,
    linear,
    note_classes,
    training,
)
from oracle import (
    assert_close,
    one_thread,  # noqa: F401  a fixture
    tracking,
)
from torch import nn
from torch.nn.functional import cross_entropy as imported_by_name

pytestmark = [
    pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning"),
    pytest.mark.filterwarnings("ignore:reduction. .mean. divides the total loss:UserWarning"),
]

REDUCTIONS = ("mean", "sum", "none")
CLASS_WEIGHTS = torch.tensor(WEIGHTS)


def reduced(losses):
    """What a loop makes of unreduced losses; what the criterion gave is one number already where it was reduced."""
    return losses.mean()


# Classes

FORMS = {"[N]": (), "[N, H, W]": (2, 2)}
IGNORED = {"": None, "ignore_index": 1, "ignore_index by default": -100}


def class_ways():
    """Each reduction, class weights, ignored targets, smoothing, hard and soft targets of one and more dimensions."""
    kinds = [("cross_entropy", 0.0, False), ("cross_entropy", 0.2, False), ("nll_loss", 0.0, False)]
    kinds += [("cross_entropy", 0.0, True), ("cross_entropy", 0.2, True)]
    ways = itertools.product(kinds, REDUCTIONS, (False, True), IGNORED, FORMS)
    for (function, smoothing, soft), reduction, weighted, ignoring, form in ways:
        if soft and ignoring:
            continue  # torch has no ignored targets among probabilities
        named = [function, reduction, form, "weight" * weighted, ignoring]
        named += ["label_smoothing" * bool(smoothing), "soft" * soft]
        yield pytest.param(
            function, reduction, weighted, IGNORED[ignoring], smoothing, soft, FORMS[form],
            id="-".join(filter(None, named)),
        )  # fmt: skip


@pytest.mark.parametrize(("function", "reduction", "weighted", "ignored", "smoothing", "soft", "form"), [*class_ways()])
def test_class_targets(function, reduction, weighted, ignored, smoothing, soft, form):
    """The loss a target, as a mean would give it, and the share predicted right, however the criterion is called."""
    positions = math.prod(form)
    settings = {"weight": CLASS_WEIGHTS if weighted else None, "reduction": reduction}
    by_hand = {"weights": WEIGHTS} if weighted else {}
    if smoothing:
        settings["label_smoothing"] = by_hand["smoothing"] = smoothing
    if ignored == 1:
        settings["ignore_index"] = by_hand["ignored"] = ignored

    def target_for(inputs):
        if soft:
            return torch.randn(len(inputs), CLASSES, *form).softmax(1)
        target = torch.stack([classes_for(inputs, seed) for seed in range(2, 2 + positions)], 1)
        if ignored is not None:
            target[0, -1] = ignored
        return target.reshape(len(inputs), *form)

    def step(notes, output, inputs):
        scores = output.view(len(inputs), CLASSES, *form)
        target = target_for(inputs)
        if function == "nll_loss":
            scores = scores.log_softmax(1)
        note_classes(notes, scores, target, log_probs=function == "nll_loss", **by_hand)
        return reduced(getattr(F, function)(scores, target, **settings))

    tracked = assert_style(training(step, linear(CLASSES * positions)))
    assert not tracked.warned_of("train_loss")
    assert tracked.warned_of("train_accuracy") == soft * [
        "train_accuracy is null: the targets are probabilities, not classes; "
        "say it with `epoch.update(output=output, target=target)`"
    ]


OTHER_WAYS = {
    "module": nn.CrossEntropyLoss(),
    "module, functional base class": lambda scores, target: nn.NLLLoss()(nn.LogSoftmax(1)(scores), target),
    "imported by name": imported_by_name,
    "by keyword": lambda scores, target: F.cross_entropy(target=target, input=scores),
    "divided": lambda scores, target: F.cross_entropy(scores, target) / 4,
    "unreduced, summed": lambda scores, target: F.cross_entropy(scores, target, reduction="none").sum() / 7,
    "with a penalty by hand": lambda scores, target: F.cross_entropy(scores, target) + 0.1 * scores.pow(2).sum(),
    "used twice": lambda scores, target: (lambda loss: loss + loss.exp())(F.cross_entropy(scores, target)),
    "deprecated arguments": lambda scores, target: F.cross_entropy(scores, target, None, True, -100, True),
}


@pytest.mark.filterwarnings("ignore:size_average and reduce:UserWarning")
@pytest.mark.parametrize("criterion", OTHER_WAYS.values(), ids=OTHER_WAYS)
def test_the_criterions_own_value_counts(criterion):
    """However it is called and whatever the loop makes of its result: its value, and its predictions."""

    def step(notes, scores, inputs):
        target = classes_for(inputs)
        note_classes(notes, scores, target)
        return criterion(scores, target)

    assert_style(training(step))


@pytest.mark.parametrize(
    "backward",
    [
        lambda losses: losses.backward(torch.full_like(losses, 0.25)),
        lambda losses: torch.autograd.backward([losses], [torch.ones_like(losses)]),
    ],
    ids=["method", "function"],
)
def test_unreduced_losses_that_backward_is_called_on(backward):
    """A backward from many losses at once, with the factors it is handed: their mean is the loss."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                optimizer.zero_grad()
                scores, target = model(inputs), classes_for(inputs)
                note_classes(notes, scores, target)
                backward(F.cross_entropy(scores, target, reduction="none"))
                optimizer.step()

    assert_style((linear(), train))


def test_unreduced_losses_whose_backward_is_handed_a_mask():
    """A target whose factor is nought is masked, as one that the loop takes out."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                optimizer.zero_grad()
                scores, target = model(inputs), classes_for(inputs)
                mask = torch.arange(len(inputs)) % 2 == 0
                note_classes(notes, scores[mask], target[mask])
                F.cross_entropy(scores, target, reduction="none").backward(mask.float())
                optimizer.step()

    assert_style((linear(), train))


PARTS = {
    "target by target": lambda losses: [loss / len(losses) for loss in losses],
    "in halves": lambda losses: [half.sum() / len(losses) for half in losses.chunk(2)],
    "masked halves": lambda losses: [half[::2].sum() / len(losses[::2]) for half in losses.chunk(2)],
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_unreduced_losses_differentiated_in_parts(parts):
    """Several backwards, each through a part of the losses, are one mean over all that they reached."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches(8, 8, 4):
                optimizer.zero_grad()
                scores, target = model(inputs), classes_for(inputs)
                step = 2 if parts is PARTS["masked halves"] else 1
                note_classes(notes, scores[::step], target[::step])
                for part in parts(F.cross_entropy(scores, target, reduction="none")):
                    part.backward(retain_graph=True)
                optimizer.step()

    assert_style((linear(), train))


def test_large_unreduced_losses_differentiated_in_parts_are_null():
    """They were counted when the first backward was over, before the others told which targets count."""
    targets, scores = torch.zeros(64, dtype=torch.long), torch.nn.Parameter(torch.zeros(64, 300))
    optimizer = torch.optim.SGD([scores], lr=0.1)
    with tracking() as tracked, tracked.run.epoch():
        for part in F.cross_entropy(scores, targets, reduction="none").chunk(2):
            part.sum().backward(retain_graph=True)
        optimizer.step()
    assert tracked.epochs[0].train_loss is None
    assert tracked.epochs[0].train_accuracy is None
    for key in ("train_loss", "train_accuracy"):
        (message,) = tracked.warned_of(key)
        assert "each through a part of it" in message


def test_a_penalty_on_the_gradient_of_a_large_unreduced_loss_counts_it_once():
    """What `torch.autograd.grad` went through before is no part of the step's backward."""
    targets, scores = torch.arange(64) % 3, torch.nn.Parameter(torch.randn(64, 300))
    optimizer = torch.optim.SGD([scores], lr=0.1)
    with tracking() as tracked, tracked.run.epoch():
        losses = F.cross_entropy(scores, targets, reduction="none")
        mean = losses.mean().item()
        (gradient,) = torch.autograd.grad(losses.sum(), scores, create_graph=True)
        F.mse_loss(gradient, gradient.detach())
        (losses.mean() + 0 * gradient.square().sum()).backward()
        optimizer.step()
    assert_close(tracked.epochs[0].train_loss, mean)


def test_a_single_prediction_without_a_batch():
    """`nll_loss` of one row of scores `[C]` and a target without dimensions, as a loop over examples calls it."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for example in batches(6)[0]:
                target = classes_for(example[:1])[0]
                optimizer.zero_grad()
                scores = model(example)
                note_classes(notes, scores[None], target[None])
                F.nll_loss(scores.log_softmax(0), target).backward()
                optimizer.step()

    assert_style((linear(), train))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_batch_whose_targets_are_all_ignored_weighs_nothing(reduction):
    """Its mean is one over nothing, which torch calls NaN: it neither poisons the epoch's loss nor counts in it."""
    seen = itertools.count()

    def step(notes, scores, inputs):
        target = classes_for(inputs)
        if next(seen) % 3 == 1:
            target[:] = -100
        else:
            note_classes(notes, scores, target)
        return F.cross_entropy(scores, target, reduction=reduction).sum()

    assert_style(training(step))


MASKS = {
    "multiplied": lambda losses, mask: (losses * mask).sum() / mask.sum(),
    "picked": lambda losses, mask: losses[mask].mean(),
    "filled": lambda losses, mask: losses.masked_fill(~mask, 0).sum(),
    "multiplied in place": lambda losses, mask: losses.mul_(mask).sum() / mask.sum(),
    "filled in place": lambda losses, mask: losses.masked_fill_(~mask, 0).sum() / mask.sum(),
}


@pytest.mark.parametrize("reduce", MASKS.values(), ids=MASKS)
def test_a_mask_over_unreduced_losses_takes_targets_out(reduce):
    """With reduction `none`, a target that the user masks counts neither for the loss nor for the accuracy."""

    def step(notes, scores, inputs):
        target = classes_for(inputs)
        mask = torch.arange(len(inputs)) % 2 == 0
        note_classes(notes, scores[mask], target[mask])
        return reduce(F.cross_entropy(scores, target, reduction="none"), mask)

    assert_style(training(step))


# Binary targets


LABEL_WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25])
POSITIVE_WEIGHTS = torch.tensor([3.0, 0.5, 1.0, 2.0, 4.0])
LABELS = {"[N, 1]": (1,), "[N]": (), "multi-label": (5,), "[N, H, W]": (2, 2)}


def binary_by_hand(probabilities, target, weights, positive_weights):
    """The mean over the targets of their losses, how many targets, how many on the right side of one half."""
    total = right = 0.0
    parts = (values.double().flatten().tolist() for values in (probabilities, target, weights, positive_weights))
    for probability, wanted, weight, positive_weight in zip(*parts, strict=True):
        total -= weight * (positive_weight * wanted * math.log(probability) + (1 - wanted) * math.log(1 - probability))
        right += (probability > 0.5) == (wanted > 0.5)
    return total / target.numel(), target.numel(), right


def binary_ways():
    """Each binary criterion, reduction, weights of labels and of positives, and form of the targets."""
    for with_logits, reduction, weighted, positive, form in itertools.product(
        (True, False), REDUCTIONS, (False, True), (False, True), LABELS
    ):
        if (positive and not with_logits) or ((weighted or positive) and form != "multi-label"):
            continue
        named = ["logits" if with_logits else "probabilities", reduction, form]
        named += ["weight" * weighted, "pos_weight" * positive]
        ident = "-".join(filter(None, named))
        yield pytest.param(with_logits, reduction, weighted, positive, LABELS[form], id=ident)


@pytest.mark.parametrize(("with_logits", "reduction", "weighted", "positive", "form"), [*binary_ways()])
def test_binary_and_multi_label_targets(with_logits, reduction, weighted, positive, form):
    """Each element is a target, predicted by the threshold one half."""
    settings = {"reduction": reduction} | ({"weight": LABEL_WEIGHTS} if weighted else {})
    settings |= {"pos_weight": POSITIVE_WEIGHTS} if positive else {}

    def step(notes, output, inputs):
        scores = output.view(len(inputs), *form)
        target = (torch.randn(scores.shape) > 0).float()
        weights = (LABEL_WEIGHTS if weighted else torch.ones(())).expand(target.shape)
        positive_weights = (POSITIVE_WEIGHTS if positive else torch.ones(())).expand(target.shape)
        probabilities = scores.detach().double().sigmoid() if with_logits else scores.detach().sigmoid()
        loss, targets, right = binary_by_hand(probabilities, target, weights, positive_weights)
        notes.loss(loss, targets)
        notes.predicted(right, targets)
        if with_logits:
            return reduced(F.binary_cross_entropy_with_logits(scores, target, **settings))
        return reduced(F.binary_cross_entropy(scores.sigmoid(), target, **settings))

    assert_style(training(step, linear(math.prod(form))))


BINARY_MODULES = {
    "BCELoss": lambda scores, target: nn.BCELoss()(scores.sigmoid(), target),
    "BCEWithLogitsLoss": nn.BCEWithLogitsLoss(),
    "lowest level by keyword": lambda scores, target: torch.binary_cross_entropy_with_logits(
        input=scores, target=target, reduction=2
    ),
}


@pytest.mark.parametrize("criterion", BINARY_MODULES.values(), ids=BINARY_MODULES)
def test_binary_criteria_called_otherwise(criterion):
    """As a module, and past `torch.nn.functional`."""

    def step(notes, scores, inputs):
        target = (inputs.sum(1, keepdim=True) > 0).float()
        ones = torch.ones_like(target)
        loss, targets, right = binary_by_hand(scores.detach().sigmoid(), target, ones, ones)
        notes.loss(loss, targets)
        notes.predicted(right, targets)
        return criterion(scores, target)

    assert_style(training(step, linear(1)))


def test_soft_binary_targets_have_no_accuracy():
    """Smoothed labels are no classes: null, and said; the loss is there."""

    def step(notes, scores, inputs):
        target = torch.rand(len(inputs), 1)
        ones = torch.ones_like(target)
        loss, targets, _ = binary_by_hand(scores.detach().sigmoid(), target, ones, ones)
        notes.loss(loss, targets)
        return F.binary_cross_entropy_with_logits(scores, target)

    assert assert_style(training(step, linear(1))).warned_of("train_accuracy")


# Regression


def huber(error, delta=1.0):
    return error**2 / 2 if abs(error) < delta else delta * (abs(error) - delta / 2)


REGRESSION = {
    "mse_loss": ({}, lambda output, target: (output - target) ** 2),
    "l1_loss": ({}, lambda output, target: abs(output - target)),
    "huber_loss": ({"delta": 0.5}, lambda output, target: huber(output - target, 0.5)),
    "smooth_l1_loss": ({}, lambda output, target: huber(output - target)),
    "poisson_nll_loss": ({}, lambda output, target: math.exp(output) - target * output),
    "soft_margin_loss": ({}, lambda output, target: math.log1p(math.exp(-math.copysign(1, target) * output))),
    "hinge_embedding_loss": ({}, lambda output, target: output if target > 0 else max(0, 1 - output)),
}
OF_SIGNS = ("soft_margin_loss", "hinge_embedding_loss")


def regression_training(criterion, of_one, signs=False, weights=None):
    """Two outputs an example, each a target; `of_one` is the loss of one by hand."""

    def step(notes, output, inputs):
        target = torch.randn(len(inputs), 2) + 0.01
        pairs = zip(output.detach().double().flatten().tolist(), target.flatten().tolist(), strict=True)
        losses = [of_one(*pair) for pair in pairs]
        if weights is not None:
            losses = [loss * weight for loss, weight in zip(losses, weights.repeat(len(inputs)).tolist())]
        notes.loss(math.fsum(losses) / len(losses), len(losses))
        return reduced(criterion(output, target.sign() if signs else target))

    return training(step, linear(2))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", REGRESSION)
def test_regression_has_a_loss_and_quietly_no_accuracy(name, reduction):
    """The mean over the target's elements; no accuracy, and no warning about it."""
    settings, of_one = REGRESSION[name]

    def criterion(output, target):
        return getattr(F, name)(output, target, reduction=reduction, **settings)

    tracked = assert_style(regression_training(criterion, of_one, name in OF_SIGNS))
    assert tracked.warned_of("train_loss") == tracked.warned_of("train_accuracy") == []


@pytest.mark.parametrize("module", [nn.MSELoss(), nn.SmoothL1Loss(), nn.PoissonNLLLoss()])
def test_regression_by_module(module):
    """The modules go through the same functions."""
    functions = {"MSELoss": "mse_loss", "SmoothL1Loss": "smooth_l1_loss", "PoissonNLLLoss": "poisson_nll_loss"}
    assert_style(regression_training(module, REGRESSION[functions[type(module).__name__]][1]))


def test_a_regressions_own_weights_are_in_its_value():
    """`huber_loss(weight=)` is a weighted mean, and that is the loss."""
    weights = torch.tensor([0.5, 4.0])

    def criterion(output, target):
        return F.huber_loss(output, target, weight=weights.expand(target.shape))

    assert_style(regression_training(criterion, REGRESSION["smooth_l1_loss"][1], weights=weights))


# Distributions


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize(("reduction", "terms"), [("batchmean", 1), ("mean", CLASSES), ("sum", 1), ("none", CLASSES)])
def test_kl_divergence(reduction, terms, log_target):
    """A row is a target, its divergence the loss; reduction `mean` keeps its own value, a mean over elements."""

    def step(notes, output, inputs):
        target = torch.randn(len(inputs), CLASSES).softmax(1)
        log_probs = output.log_softmax(1)
        losses = [
            math.fsum(share * (math.log(share) - value) for share, value in zip(shares, row))
            for shares, row in zip(in_rows(target), in_rows(log_probs))
        ]
        notes.loss(math.fsum(losses) / len(losses) / terms, len(losses))
        given = target.log() if log_target else target
        return reduced(F.kl_div(log_probs, given, reduction=reduction, log_target=log_target))

    tracked = assert_style(training(step))
    assert tracked.warned_of("train_loss") == tracked.warned_of("train_accuracy") == []


# Criteria of several inputs


def distance(one, other):
    return math.sqrt(math.fsum((a - b + 1e-6) ** 2 for a, b in zip(one, other)))


def cosine(one, other):
    dot = math.fsum(a * b for a, b in zip(one, other))
    return dot / math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in other))


def of_classes(scores):
    """Class targets for multi-margin: a hinge against every other class, over the number of classes."""
    target = classes_for(scores)
    losses = [
        math.fsum(max(0, 1 - row[wanted] + value) for index, value in enumerate(row) if index != wanted) / len(row)
        for row, wanted in zip(in_rows(scores), target.tolist())
    ]
    return F.multi_margin_loss, (scores, target), losses


def of_label_sets(scores):
    """One label a row for multi-label margin, the rest of the row filled with -1: a hinge as above."""
    target = torch.full(scores.shape, -1)
    target[:, 0] = classes_for(scores)
    return F.multilabel_margin_loss, (scores, target), of_classes(scores)[2]


def of_soft_label_sets(scores):
    target = F.one_hot(classes_for(scores), CLASSES).float()
    losses = [
        math.fsum(math.log1p(math.exp(-value if wanted else value)) for value, wanted in zip(row, labels)) / len(row)
        for row, labels in zip(in_rows(scores), in_rows(target))
    ]
    return F.multilabel_soft_margin_loss, (scores, target), losses


def of_triplets(scores):
    others = scores.detach().roll(1, 1) / 2, scores.detach().roll(2, 1)
    rows = zip(*map(in_rows, (scores, *others)))
    losses = [
        max(0, distance(anchor, positive) - distance(anchor, negative) + 1) for anchor, positive, negative in rows
    ]
    return F.triplet_margin_loss, (scores, *others), losses


def of_pairs(scores):
    other, target = scores.detach().roll(1, 1), (classes_for(scores) - 1).sign() * 2 + 1
    losses = [
        1 - cosine(one, two) if wanted > 0 else max(0, cosine(one, two))
        for one, two, wanted in zip(in_rows(scores), in_rows(other), target.sign().tolist())
    ]
    return F.cosine_embedding_loss, (scores, other, target.sign()), losses


def of_rankings(scores):
    target = (classes_for(scores) - 1).sign() * 2 + 1
    losses = [max(0, -wanted * (row[0] - row[1])) for row, wanted in zip(in_rows(scores), target.sign().tolist())]
    return F.margin_ranking_loss, (scores[:, 0], scores[:, 1], target.sign()), losses


def of_variances(scores):
    mean, variance, target = scores[:, 0], scores[:, 1].exp(), scores.detach()[:, 2]
    rows = zip(mean.tolist(), variance.tolist(), target.tolist())
    losses = [(math.log(spread) + (wanted - middle) ** 2 / spread) / 2 for middle, spread, wanted in rows]
    return F.gaussian_nll_loss, (mean, target, variance), losses


def of_transcripts(scores):
    """One label in two frames for CTC: label-label, label-blank or blank-label."""
    log_probs = scores.log_softmax(1).expand(2, *scores.shape)
    target = classes_for(scores) % 2 + 1
    losses = []
    for row, wanted in zip(in_rows(log_probs[0]), target.tolist()):
        blank, label = math.exp(row[0]), math.exp(row[wanted])
        losses.append(-math.log(label * label + 2 * label * blank))
    lengths = torch.full((len(scores),), 2), torch.ones(len(scores), dtype=torch.int64)
    return F.ctc_loss, (log_probs, target[:, None], *lengths), losses


SEVERAL = {
    "multi_margin_loss": of_classes,
    "multilabel_margin_loss": of_label_sets,
    "multilabel_soft_margin_loss": of_soft_label_sets,
    "triplet_margin_loss": of_triplets,
    "cosine_embedding_loss": of_pairs,
    "margin_ranking_loss": of_rankings,
    "gaussian_nll_loss": of_variances,
    "ctc_loss": of_transcripts,
}


# Two are composed in Python of other functions, with no lowest level that could be heard: they weigh each step alike.
COMPOSED = ("multilabel_soft_margin_loss", "gaussian_nll_loss")


@pytest.mark.parametrize("name", [name for name in SEVERAL if name not in COMPOSED])
def test_other_criteria_weigh_by_their_rows(name):
    """What compares or ranks whole rows: each row is a target, and a short last batch weighs less."""

    def step(notes, scores, inputs):
        criterion, arguments, losses = SEVERAL[name](scores)
        notes.loss(math.fsum(losses) / len(losses), len(losses))
        return criterion(*arguments)

    assert_style(training(step))


@pytest.mark.parametrize("name", SEVERAL)
def test_other_criteria_in_batches_of_one_size(name):
    """Where all steps have as many rows, the loss is their mean, whichever way they are weighted."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches(4, 4, 4):
                optimizer.zero_grad()
                criterion, arguments, losses = SEVERAL[name](model(inputs))
                notes.loss(math.fsum(losses) / len(losses))
                criterion(*arguments).backward()
                optimizer.step()

    assert_style((linear(), train))
