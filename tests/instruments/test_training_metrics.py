"""Training loss and accuracy from what is observed, against sums worked out by hand over the same batches."""

import gc
import json
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from oracle import NORM_TOLERANCE, Notes, one_thread, run_tracked, run_untracked, tracking  # noqa: F401  a fixture
from torch import nn
from torch.nn.functional import cross_entropy as imported_by_name

from trackmetrics.instruments.criteria import Call
from trackmetrics.instruments.epoch_means import DeviceMean

pytestmark = [
    pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning"),
    pytest.mark.filterwarnings("ignore:reduction. .mean. divides the total loss:UserWarning"),
]

CLASSES = 3
WEIGHTS = (0.5, 2.0, 1.25)


def assert_metrics(tracked, notes):
    """Each epoch's loss is that in `notes` to a relative 1e-6, and its accuracy exactly."""
    assert len(tracked.epochs) == len(notes.epochs)
    for epoch, expected in zip(tracked.epochs, notes.epochs, strict=True):
        assert epoch.train_loss == pytest.approx(expected.loss, rel=NORM_TOLERANCE, nan_ok=True)
        assert epoch.train_accuracy == expected.accuracy


def assert_style(style):
    """A style's tracked run says what its untracked run noted; give the tracked run."""
    notes, _ = run_untracked(style)
    tracked = run_tracked(style)
    assert_metrics(tracked, notes)
    return tracked


def batches(*sizes, features=4, seed=1):
    """Inputs of the given batch sizes; by default two full batches and a short last one."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, features, generator=generator) for size in sizes or (4, 4, 2)]


def linear(outputs=CLASSES, features=4):
    def build():
        model = nn.Linear(features, outputs)
        return model, torch.optim.SGD(model.parameters(), lr=0.5)

    return build


def classes_for(inputs, seed=2):
    return torch.randint(CLASSES, (len(inputs),), generator=torch.Generator().manual_seed(seed + len(inputs)))


# What a criterion is by hand, in float64: the sum of its targets' losses, what the mean divides by, targets, right


def log_softmax_by_hand(scores):
    scores = scores.detach().double()
    return scores - scores.exp().sum(1, keepdim=True).log()


def classes_by_hand(scores, target, weights=(1.0,) * CLASSES, ignored=-100, smoothing=0.0, log_probs=None):
    """Class targets `[N]` or `[N, L]` for scores `[N, C]` or `[N, C, L]`, one target after the other."""
    log_probs = log_softmax_by_hand(scores) if log_probs is None else log_probs
    rows = log_probs.movedim(1, -1).reshape(-1, log_probs.shape[1]).tolist()
    total = divisor = targets = right = 0
    for row, wanted in zip(rows, target.flatten().tolist(), strict=True):
        if wanted == ignored:
            continue
        smooth = -math.fsum(weight * value for weight, value in zip(weights, row, strict=False)) / len(row)
        total += (1 - smoothing) * weights[wanted] * -row[wanted] + smoothing * smooth
        divisor += weights[wanted]
        targets += 1
        right += row.index(max(row)) == wanted
    return total, divisor, targets, right


def classes_style(criterion, by_hand=classes_by_hand, change_target=lambda target: target, build=None):
    """Train a linear classifier with a criterion; note the loss and accuracy that `by_hand` gives."""

    def train(notes, model, optimizer):
        for _ in range(2):
            with notes.epoch():
                for inputs in batches():
                    target = change_target(classes_for(inputs))
                    optimizer.zero_grad()
                    scores = model(inputs)
                    total, divisor, targets, right = by_hand(scores, target)
                    notes.loss(total / divisor if divisor else 0.0, targets)
                    notes.predicted(right, targets)
                    criterion(scores, target).backward()
                    optimizer.step()

    return build or linear(), train


def some_ignored(index):
    def change(target):
        target = target.clone()
        target[0] = index
        return target

    return change


def weighted(scores, target):
    return classes_by_hand(scores, target, WEIGHTS)


def ignoring_one(scores, target):
    return classes_by_hand(scores, target, ignored=1)


def ignoring_default(scores, target):
    return classes_by_hand(scores, target)


def all_at_once(scores, target):
    return classes_by_hand(scores, target, WEIGHTS, ignored=-1, smoothing=0.2)


W = torch.tensor(WEIGHTS)
CLASS_CRITERIA = {
    "mean": (F.cross_entropy,),
    "sum": (lambda scores, target: F.cross_entropy(scores, target, reduction="sum"),),
    "none": (lambda scores, target: F.cross_entropy(scores, target, reduction="none").mean(),),
    "none-summed": (lambda scores, target: F.cross_entropy(scores, target, reduction="none").sum() / 7,),
    "module": (nn.CrossEntropyLoss(),),
    "imported-by-name": (imported_by_name,),
    "keywords": (lambda scores, target: F.cross_entropy(target=target, input=scores),),
    "nll": (lambda scores, target: F.nll_loss(scores.log_softmax(1), target),),
    "nll-module-sum": (lambda scores, target: nn.NLLLoss(reduction="sum")(F.log_softmax(scores, 1), target),),
    "weight": (lambda scores, target: F.cross_entropy(scores, target, W), weighted),
    "weight-sum": (lambda scores, target: F.cross_entropy(scores, target, W, reduction="sum"), weighted),
    "weight-none": (lambda scores, target: F.cross_entropy(scores, target, W, reduction="none").mean(), weighted),
    "weight-nll": (lambda scores, target: F.nll_loss(scores.log_softmax(1), target, W), weighted),
    "ignore_index": (lambda scores, target: F.cross_entropy(scores, target, ignore_index=1), ignoring_one),
    "ignore_index-sum": (
        lambda scores, target: F.cross_entropy(scores, target, ignore_index=1, reduction="sum"),
        ignoring_one,
    ),
    "ignore_index-none": (
        lambda scores, target: F.cross_entropy(scores, target, ignore_index=1, reduction="none").sum(),
        ignoring_one,
    ),
    "ignore_index-default": (F.cross_entropy, ignoring_default, some_ignored(-100)),
    "label_smoothing": (
        lambda scores, target: F.cross_entropy(scores, target, label_smoothing=0.2),
        lambda scores, target: classes_by_hand(scores, target, smoothing=0.2),
    ),
    "label_smoothing-weight-ignore_index": (
        lambda scores, target: F.cross_entropy(scores, target, W, ignore_index=-1, label_smoothing=0.2),
        all_at_once,
        some_ignored(-1),
    ),
    "label_smoothing-weight-ignore_index-sum": (
        lambda scores, target: F.cross_entropy(
            scores, target, W, ignore_index=-1, label_smoothing=0.2, reduction="sum"
        ),
        all_at_once,
        some_ignored(-1),
    ),
    "divided": (lambda scores, target: F.cross_entropy(scores, target) / 4,),
    "with-weight-decay-by-hand": (lambda scores, target: F.cross_entropy(scores, target) + 0.1 * scores.pow(2).sum(),),
}


@pytest.mark.parametrize("case", CLASS_CRITERIA.values(), ids=CLASS_CRITERIA)
def test_class_criteria(case):
    """Whatever the reduction, the weights and the targets ignored: the loss a target, and the share predicted right."""
    tracked = assert_style(classes_style(*case))
    assert not tracked.warned_of("train_loss")
    assert not tracked.warned_of("train_accuracy")


def in_place(change):
    def criterion(scores, target):
        loss = F.cross_entropy(scores, target)
        change(loss)
        return loss

    return criterion


@pytest.mark.parametrize(
    "change",
    [
        lambda loss: loss.div_(4),
        lambda loss: loss.add_(1.5),
        lambda loss: loss.mul_(torch.tensor(3.0)),
    ],
)
def test_a_loss_changed_in_place_keeps_its_value(change):
    """`loss /= k` and `loss += penalty` write into the criterion's own result: its value is the one it returned."""
    assert_style(classes_style(in_place(change)))


def test_the_loss_tensor_overwritten_after_backward_keeps_its_value():
    """A loop that zeroes or reuses its loss after the backward changes nothing in the figure."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                target = classes_for(inputs)
                optimizer.zero_grad()
                scores = model(inputs)
                total, divisor, targets, right = classes_by_hand(scores, target)
                notes.loss(total / divisor, targets)
                notes.predicted(right, targets)
                loss = F.cross_entropy(scores, target)
                loss.backward()
                optimizer.step()
                loss.data.zero_()

    assert_style((linear(), train))


def masked_style(reduce):
    """A user's own mask over unreduced losses: what it leaves out is no target."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                target = classes_for(inputs)
                mask = torch.arange(len(inputs)) % 2 == 0
                optimizer.zero_grad()
                scores = model(inputs)
                total, divisor, targets, right = classes_by_hand(scores[mask], target[mask])
                notes.loss(total / divisor, targets)
                notes.predicted(right, targets)
                reduce(F.cross_entropy(scores, target, reduction="none"), mask).backward()
                optimizer.step()

    return linear(), train


@pytest.mark.parametrize(
    "reduce",
    [
        lambda losses, mask: (losses * mask).sum() / mask.sum(),
        lambda losses, mask: losses[mask].mean(),
        lambda losses, mask: losses.masked_fill(~mask, 0).sum(),
    ],
)
def test_a_mask_over_unreduced_losses_takes_targets_out(reduce):
    """With reduction `none`, a target that the user masks counts neither for the loss nor for the accuracy."""
    assert_style(masked_style(reduce))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_targets_of_several_dimensions(reduction):
    """`[N, C, L]` scores for `[N, L]` targets: each of the N*L targets counts, the ignored ones don't."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                target = torch.stack([classes_for(inputs, seed) for seed in (2, 3, 4, 5)], 1)
                target[0, 1:3] = -100
                optimizer.zero_grad()
                scores = model(inputs).view(-1, CLASSES, 4)
                total, divisor, targets, right = classes_by_hand(scores, target)
                notes.loss(total / divisor, targets)
                notes.predicted(right, targets)
                F.cross_entropy(scores, target, reduction=reduction).sum().backward()
                optimizer.step()

    assert_style((linear(CLASSES * 4), train))


def test_a_single_prediction_without_a_batch():
    """`nll_loss` of one row of scores `[C]` and a target without dimensions, as a loop over examples calls it."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for example in batches(6)[0]:
                target = classes_for(example[:1])[0]
                optimizer.zero_grad()
                scores = model(example)
                total, divisor, targets, right = classes_by_hand(scores[None], target[None])
                notes.loss(total / divisor, targets)
                notes.predicted(right, targets)
                F.nll_loss(scores.log_softmax(0), target).backward()
                optimizer.step()

    assert_style((linear(), train))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_batch_whose_targets_are_all_ignored_weighs_nothing(reduction):
    """Its mean is one over nothing, which torch calls NaN: it neither poisons the epoch's loss nor counts in it."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for number, inputs in enumerate(batches()):
                target = classes_for(inputs)
                optimizer.zero_grad()
                scores = model(inputs)
                if number == 1:
                    target[:] = -100
                else:
                    total, divisor, targets, right = classes_by_hand(scores, target)
                    notes.loss(total / divisor, targets)
                    notes.predicted(right, targets)
                F.cross_entropy(scores, target, reduction=reduction).sum().backward()
                optimizer.step()

    assert_style((linear(), train))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_soft_targets_have_a_loss_and_no_accuracy(reduction):
    """Probabilities as targets: a row is a target; the accuracy is null, and that is said."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                target = torch.randn(len(inputs), CLASSES).softmax(1)
                optimizer.zero_grad()
                scores = model(inputs)
                losses = -(target.double() * log_softmax_by_hand(scores)).sum(1)
                notes.loss(losses.mean(), len(losses))
                F.cross_entropy(scores, target, reduction=reduction).backward()
                optimizer.step()

    tracked = assert_style((linear(), train))
    assert tracked.warned_of("train_accuracy") == [
        "train_accuracy is null: the targets are probabilities, not classes; "
        "say it with `epoch.update(output=output, target=target)`"
    ]


# Binary targets


def binary_by_hand(probabilities, target, positive_weight=1.0, weights=None):
    total = right = 0.0
    weights = [1.0] * target.numel() if weights is None else weights.flatten().tolist()
    flat = probabilities.detach().double().flatten().tolist()
    for probability, wanted, weight in zip(flat, target.flatten().tolist(), weights, strict=True):
        total -= weight * (positive_weight * wanted * math.log(probability) + (1 - wanted) * math.log(1 - probability))
        right += (probability > 0.5) == (wanted > 0.5)
    return total, target.numel(), right


LABEL_WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25])
BINARY = {
    "bce-mean": (1, lambda scores, target: F.binary_cross_entropy(scores.sigmoid(), target), {}),
    "bce-sum": (1, lambda scores, target: F.binary_cross_entropy(scores.sigmoid(), target, reduction="sum"), {}),
    "bce-module": (5, lambda scores, target: nn.BCELoss()(scores.sigmoid(), target), {}),
    "logits-mean": (1, F.binary_cross_entropy_with_logits, {}),
    "logits-none": (
        5,
        lambda scores, target: F.binary_cross_entropy_with_logits(scores, target, reduction="none").sum(1).mean(),
        {},
    ),
    "logits-module-multi-label": (5, nn.BCEWithLogitsLoss(), {}),
    "logits-pos_weight": (
        5,
        lambda scores, target: F.binary_cross_entropy_with_logits(scores, target, pos_weight=torch.tensor(3.0)),
        {"positive_weight": 3.0},
    ),
    "logits-weight-sum": (
        5,
        lambda scores, target: F.binary_cross_entropy_with_logits(scores, target, LABEL_WEIGHTS, reduction="sum"),
        {"weights": LABEL_WEIGHTS},
    ),
    "lowest-level-by-keyword": (
        5,
        lambda scores, target: torch.binary_cross_entropy_with_logits(input=scores, target=target, reduction=2),
        {},
    ),
}


@pytest.mark.parametrize(("labels", "criterion", "settings"), BINARY.values(), ids=BINARY)
def test_binary_and_multi_label(labels, criterion, settings):
    """Each element is a target, predicted by the threshold one half."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                target = (torch.randn(len(inputs), labels) > 0).float()
                optimizer.zero_grad()
                scores = model(inputs)
                own = dict(settings)
                if "weights" in own:
                    own["weights"] = own["weights"].expand(target.shape)
                total, targets, right = binary_by_hand(scores.sigmoid(), target, **own)
                notes.loss(total / targets, targets)
                notes.predicted(right, targets)
                criterion(scores, target).backward()
                optimizer.step()

    assert_style((linear(labels), train))


def test_soft_binary_targets_have_no_accuracy():
    """Smoothed labels are no classes: null, and said; the loss is there."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                target = torch.rand(len(inputs), 1)
                scores = model(inputs)
                total, targets, _ = binary_by_hand(scores.sigmoid(), target)
                notes.loss(total / targets, targets)
                F.binary_cross_entropy_with_logits(scores, target).backward()
                optimizer.step()

    tracked = assert_style((linear(1), train))
    assert tracked.warned_of("train_accuracy")


# Regression


def huber(error, delta=1.0):
    return error**2 / 2 if abs(error) < delta else delta * (abs(error) - delta / 2)


REGRESSION = {
    "mse": (F.mse_loss, lambda output, target: (output - target) ** 2),
    "mse-module": (nn.MSELoss(), lambda output, target: (output - target) ** 2),
    "mse-sum": (
        lambda output, target: F.mse_loss(output, target, reduction="sum"),
        lambda output, target: (output - target) ** 2,
    ),
    "mse-none": (
        lambda output, target: F.mse_loss(output, target, reduction="none").sum(1).mean(),
        lambda output, target: (output - target) ** 2,
    ),
    "l1": (F.l1_loss, lambda output, target: abs(output - target)),
    "huber": (
        lambda output, target: F.huber_loss(output, target, delta=0.5),
        lambda output, target: huber(output - target, 0.5),
    ),
    "smooth_l1": (nn.SmoothL1Loss(), lambda output, target: huber(output - target)),
    "poisson_nll": (nn.PoissonNLLLoss(), lambda output, target: math.exp(output) - target * output),
    "soft_margin": (
        lambda output, target: F.soft_margin_loss(output, target.sign()),
        lambda output, target: math.log1p(math.exp(-math.copysign(1, target) * output)),
    ),
    "hinge_embedding": (
        lambda output, target: F.hinge_embedding_loss(output, target.sign(), reduction="sum"),
        lambda output, target: output if target > 0 else max(0, 1 - output),
    ),
}


@pytest.mark.parametrize(("criterion", "of_one"), REGRESSION.values(), ids=REGRESSION)
def test_regression_has_a_loss_and_quietly_no_accuracy(criterion, of_one):
    """The mean over the target's elements; no accuracy, and no warning about it."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                target = torch.randn(len(inputs), 2) + 0.01
                optimizer.zero_grad()
                output = model(inputs)
                pairs = zip(output.detach().double().flatten().tolist(), target.flatten().tolist(), strict=True)
                losses = [of_one(*pair) for pair in pairs]
                notes.loss(math.fsum(losses) / len(losses), len(losses))
                criterion(output, target).backward()
                optimizer.step()

    tracked = assert_style((linear(2), train))
    assert tracked.warned_of("train_loss") == tracked.warned_of("train_accuracy") == []


@pytest.mark.parametrize(
    ("reduction", "terms"), [("batchmean", 1), ("mean", CLASSES), ("sum", 1)], ids=["batchmean", "mean", "sum"]
)
def test_kl_divergence(reduction, terms):
    """A row is a target, its divergence the loss; reduction `mean` keeps its own value, a mean over elements."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                target = torch.randn(len(inputs), CLASSES).softmax(1)
                optimizer.zero_grad()
                log_probs = model(inputs).log_softmax(1)
                wanted = target.double()
                losses = (wanted * (wanted.log() - log_probs.detach().double())).sum(1)
                notes.loss(losses.mean() / terms, len(losses))
                F.kl_div(log_probs, target, reduction=reduction).backward()
                optimizer.step()

    tracked = assert_style((linear(), train))
    assert tracked.warned_of("train_loss") == tracked.warned_of("train_accuracy") == []


# Losses of the user's own making


def hinge(scores, target):
    return (1 - scores.gather(1, target[:, None]).squeeze(1)).clamp(min=0)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_hand_written_loss_is_the_scalar_of_the_backward(scaled):
    """No criterion is called: the backward's own value, less the gradient scaler's factor; no accuracy, and said."""

    def train(notes, model, optimizer):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1, enabled=scaled)
        with notes.epoch():
            for inputs in batches():
                optimizer.zero_grad()
                loss = hinge(model(inputs), classes_for(inputs)).mean()
                notes.loss(loss)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()

    tracked = assert_style((linear(), train))
    assert not tracked.warned_of("train_loss")
    assert tracked.warned_of("train_accuracy") == [
        "train_accuracy is null: the loss is no criterion of torch.nn.functional that has class targets; "
        "say it with `epoch.update(output=output, target=target)`"
    ]


def test_a_hand_written_loss_in_half_precision_keeps_its_digits():
    """The sum over a step's backwards is not made in the loss's own type, in which 2048 + 1 is 2048."""

    def build():
        parameter = nn.Parameter(torch.ones((), dtype=torch.float16))
        return parameter, torch.optim.SGD([parameter], lr=0.0)

    def train(notes, parameter, optimizer):
        with notes.epoch():
            for _ in range(3):
                (parameter * 2048).backward()
                (parameter * 1).backward()
                notes.loss(2049)
                optimizer.step()

    assert_style((build, train))


def test_an_auxiliary_loss_makes_the_scalar_the_loss():
    """`ce + 0.4*ce` on one target is two calls: the scalar is the loss, and the heads' accuracy is not clear."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                target = classes_for(inputs)
                optimizer.zero_grad()
                main, auxiliary = model(inputs).split(CLASSES, 1)
                loss = F.cross_entropy(main, target) + 0.4 * F.cross_entropy(auxiliary, target)
                notes.loss(loss, len(inputs))
                loss.backward()
                optimizer.step()

    tracked = assert_style((linear(2 * CLASSES), train))
    assert tracked.warned_of("train_accuracy")


def test_a_mixture_of_targets_for_one_output_makes_the_scalar_the_loss():
    """Mixup judges one output by two targets, weighted: two calls, and the scalar is the loss."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                optimizer.zero_grad()
                scores = model(inputs)
                first, second = classes_for(inputs), classes_for(inputs, seed=9)
                loss = 0.3 * F.cross_entropy(scores, first) + 0.7 * F.cross_entropy(scores, second)
                notes.loss(loss, len(inputs))
                loss.backward()
                optimizer.step()

    assert assert_style((linear(), train)).warned_of("train_accuracy")


def test_a_class_loss_beside_a_regression_keeps_its_accuracy():
    """Two criteria of different kinds: the scalar is the loss, and the one with class targets gives the accuracy."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                target = classes_for(inputs)
                optimizer.zero_grad()
                scores, rest = model(inputs).split([CLASSES, 1], 1)
                _, _, targets, right = classes_by_hand(scores, target)
                loss = F.cross_entropy(scores, target) + F.mse_loss(rest, inputs[:, :1])
                notes.loss(loss, targets)
                notes.predicted(right, targets)
                loss.backward()
                optimizer.step()

    assert_style((linear(CLASSES + 1), train))


@pytest.mark.parametrize(
    "join", [sum, lambda losses: sum(losses) / len(losses), lambda losses: torch.stack(losses).sum()]
)
def test_forwards_joined_into_one_backward_are_their_mean_by_targets(join):
    """Micro-batches of unequal sizes whose losses are added up before one backward: each by its targets."""

    def train(notes, model, optimizer):
        with notes.epoch():
            optimizer.zero_grad()
            losses = []
            for inputs in batches():
                target = classes_for(inputs)
                scores = model(inputs)
                total, divisor, targets, right = classes_by_hand(scores, target)
                notes.loss(total / divisor, targets)
                notes.predicted(right, targets)
                losses.append(F.cross_entropy(scores, target))
            join(losses).backward()
            optimizer.step()

    assert_style((linear(), train))


@pytest.mark.parametrize("criterion", ["cross_entropy", "by hand"])
@pytest.mark.parametrize("in_place", [False, True])
def test_accumulation_changes_nothing(criterion, in_place):
    """A criterion's own value counts, however the loss is divided; of a hand-written one, the micro-batches' sum."""

    def train(notes, model, optimizer):
        with notes.epoch():
            sizes = (4, 4, 2)
            for start in range(2):
                optimizer.zero_grad()
                step = 0.0
                for inputs in batches(*sizes, seed=start):
                    target = classes_for(inputs)
                    scores = model(inputs)
                    total, divisor, targets, right = classes_by_hand(scores, target)
                    if criterion == "by hand":
                        loss = hinge(scores, target).mean()
                        step += loss.item() / 3
                    else:
                        loss = F.cross_entropy(scores, target)
                        notes.loss(total / divisor, targets)
                        notes.predicted(right, targets)
                    if in_place:
                        loss /= 3
                    else:
                        loss = loss / 3
                    loss.backward()
                if criterion == "by hand":
                    notes.loss(step)
                optimizer.step()

    assert_style((linear(), train))


def test_an_auxiliary_loss_under_accumulation_weighs_by_all_its_targets():
    """Several calls in each of several backwards: the step's scalars add up, weighted by the targets of all of them."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for sizes in ((4, 2), (3, 1)):
                optimizer.zero_grad()
                step = 0.0
                for inputs in batches(*sizes):
                    target = classes_for(inputs)
                    main, auxiliary = model(inputs).split(CLASSES, 1)
                    loss = (F.cross_entropy(main, target) + 0.4 * F.cross_entropy(auxiliary, target)) / 2
                    step += loss.item()
                    loss.backward()
                notes.loss(step, sum(sizes))
                optimizer.step()

    assert_style((linear(2 * CLASSES), train))


def test_two_backwards_through_one_call_count_it_once():
    """`retain_graph` and a second backward of the same loss in a step: one batch of targets, not two."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for number, inputs in enumerate(batches()):
                target = classes_for(inputs)
                optimizer.zero_grad()
                scores = model(inputs)
                total, divisor, targets, right = classes_by_hand(scores, target)
                notes.loss(total / divisor, targets)
                notes.predicted(right, targets)
                loss = F.cross_entropy(scores, target)
                loss.backward(retain_graph=number == 0)
                if number == 0:
                    loss.backward()
                optimizer.step()

    assert_style((linear(), train))


def test_one_call_in_two_steps_counts_in_each():
    """A loss whose graph is kept and used by the next step's backward is that step's loss too."""

    def train(notes, model, optimizer):
        other = torch.optim.SGD([model.bias], lr=0.5)
        with notes.epoch():
            for inputs in batches():
                target = classes_for(inputs)
                scores = model(inputs)
                total, divisor, targets, right = classes_by_hand(scores, target)
                loss = F.cross_entropy(scores, target)
                for keep, stepping in ((True, other), (False, optimizer)):
                    notes.loss(total / divisor, targets)
                    notes.predicted(right, targets)

                    loss.backward(retain_graph=keep, inputs=[model.bias])
                    stepping.step()

    assert_style((linear(), train))


def test_a_closure_counts_its_first_evaluation():
    """LBFGS evaluates its closure several times: the loss is the one at the step's beginning."""

    def build():
        model = nn.Linear(4, CLASSES)
        return model, torch.optim.LBFGS(model.parameters(), max_iter=4)

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                target, evaluations = classes_for(inputs), []

                def closure(inputs=inputs, target=target, evaluations=evaluations):
                    optimizer.zero_grad()
                    scores = model(inputs)
                    if not evaluations:
                        total, divisor, targets, right = classes_by_hand(scores, target)
                        notes.loss(total / divisor, targets)
                        notes.predicted(right, targets)
                    evaluations.append(1)
                    loss = F.cross_entropy(scores, target)
                    loss.backward()
                    return loss

                optimizer.step(closure)

    assert_style((build, train))


@pytest.mark.parametrize("stepped_by", ["optimizer", "hand"])
def test_gradients_from_autograd_grad_have_their_criterion_observed(stepped_by):
    """Where gradients are set by hand from `torch.autograd.grad`, the criterion that it reached is the training's."""

    def train(notes, model, optimizer):
        for _ in range(2):
            with notes.epoch():
                for inputs in batches():
                    target = classes_for(inputs)
                    scores = model(inputs)
                    total, divisor, targets, right = classes_by_hand(scores, target)
                    notes.loss(total / divisor, targets)
                    notes.predicted(right, targets)
                    loss = F.cross_entropy(scores, target)
                    gradients = torch.autograd.grad(loss, list(model.parameters()))
                    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                        if stepped_by == "hand":
                            parameter.data.sub_(gradient)
                        else:
                            parameter.grad = gradient
                    if stepped_by == "optimizer":
                        optimizer.step()

    assert_style((linear(), train))


def test_a_gradient_penalty_beside_the_backward_is_no_call_of_its_own():
    """`torch.autograd.grad` of the loss, before the step's own backward, doesn't count the batch again."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                inputs = inputs.clone().requires_grad_()
                target = classes_for(inputs)
                optimizer.zero_grad()
                scores = model(inputs)
                total, divisor, targets, right = classes_by_hand(scores, target)
                notes.loss(total / divisor, targets)
                notes.predicted(right, targets)
                loss = F.cross_entropy(scores, target)
                (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
                (loss + gradient.pow(2).sum()).backward()
                optimizer.step()
                torch.autograd.grad(F.cross_entropy(model(inputs), target), inputs)  # a saliency map for a log

    assert_style((linear(), train))


@pytest.mark.parametrize("both_first", [False, True])
def test_what_autograd_grad_alone_reached_is_not_counted(both_first):
    """A loss that only shows where to push the inputs is none of the step's, wherever its call stands."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                pushed = inputs.clone().requires_grad_()
                target = classes_for(inputs)
                direction = torch.ones(())
                probe = F.cross_entropy(model(pushed), target)
                if not both_first:
                    (direction,) = torch.autograd.grad(probe, pushed)
                optimizer.zero_grad()
                scores = model(inputs + 0.5 * direction.sign())
                total, divisor, targets, right = classes_by_hand(scores, target)
                notes.loss(total / divisor, targets)
                notes.predicted(right, targets)
                loss = F.cross_entropy(scores, target)
                if both_first:
                    torch.autograd.grad(probe, pushed)
                loss.backward()
                optimizer.step()

    assert_style((linear(), train))


# What is no training


def evaluated(model, mode):
    """An evaluation on data of its own, as real code does it; its targets are all wrong."""
    inputs = batches(8)[0]
    if mode == "eval mode under no_grad":
        model.eval()
        with torch.no_grad():
            loss = F.cross_entropy(model(inputs), model(inputs).argmin(1))
        model.train()
    elif mode == "train mode under no_grad":
        with torch.no_grad():
            loss = F.cross_entropy(model(inputs), model(inputs).argmin(1))
    elif mode == "inference mode":
        with torch.inference_mode():
            loss = F.cross_entropy(model(inputs), model(inputs).argmin(1))
    elif mode == "gradients on":
        loss = F.cross_entropy(model(inputs), model(inputs).argmin(1))
    else:
        loss = F.cross_entropy(model(inputs).detach(), model(inputs).argmin(1))
    return loss


@pytest.mark.parametrize(
    "mode",
    ["eval mode under no_grad", "train mode under no_grad", "inference mode", "gradients on", "detached"],
)
def test_an_evaluation_inside_the_epoch_is_never_counted(mode):
    """A criterion call that no backward reached is no training, before, between and after the steps."""

    def train(notes, model, optimizer):
        kept = []
        with notes.epoch():
            kept.append(evaluated(model, mode))
            for inputs in batches():
                target = classes_for(inputs)
                optimizer.zero_grad()
                scores = model(inputs)
                total, divisor, targets, right = classes_by_hand(scores, target)
                notes.loss(total / divisor, targets)
                notes.predicted(right, targets)
                F.cross_entropy(scores, target).backward()
                kept.append(evaluated(model, mode))
                optimizer.step()
                kept.append(evaluated(model, mode))

    assert_style((linear(), train))


def test_a_backward_that_raised_is_not_counted():
    """The batch whose backward failed was not trained on."""

    def train(notes, model, optimizer):
        def fails(_):
            raise ArithmeticError

        with notes.epoch():
            for number, inputs in enumerate(batches()):
                target = classes_for(inputs)
                optimizer.zero_grad()
                scores = model(inputs)
                if number == 1:
                    scores.register_hook(fails)
                    with pytest.raises(ArithmeticError):
                        F.cross_entropy(scores, target).backward()
                    continue
                total, divisor, targets, right = classes_by_hand(scores, target)
                notes.loss(total / divisor, targets)
                notes.predicted(right, targets)
                F.cross_entropy(scores, target).backward()
                optimizer.step()

    assert_style((linear(), train))


def test_an_epoch_without_a_backward_has_neither():
    """Nothing trained: both null, and said once."""

    def train(notes, model, optimizer):
        for _ in range(2):
            with notes.epoch():
                F.cross_entropy(model(batches()[0]), classes_for(batches()[0]))

    tracked = run_tracked((linear(), train))
    assert [(epoch.train_loss, epoch.train_accuracy) for epoch in tracked.epochs] == [(None, None)] * 2
    assert len(tracked.warned_of("train_loss")) == 1
    assert "no backward was seen in the epoch" in tracked.warned_of("train_loss")[0]


def test_a_fault_in_one_epoch_says_nothing_of_the_next():
    """An epoch with a hand-written loss has no accuracy; the next one, with a criterion, has its own."""

    def train(notes, model, optimizer):
        with notes.epoch():
            hinge(model(batches()[0]), classes_for(batches()[0])).mean().backward()
            optimizer.step()
        with notes.epoch():
            F.cross_entropy(model(batches()[0]), classes_for(batches()[0])).backward()
            optimizer.step()

    first, second = run_tracked((linear(), train)).epochs
    assert first.train_accuracy is None
    assert second.train_accuracy is not None


def test_functional_transforms_do_no_harm():
    """`torch.func.grad` is no backward: nothing observed from it, nothing broken, and the next epoch is right."""

    def train(notes, model, optimizer):
        parameters = {name: value.detach().clone() for name, value in model.named_parameters()}

        def loss_of(values, inputs, target):
            return F.cross_entropy(torch.func.functional_call(model, values, (inputs,)), target)

        with notes.epoch():
            torch.func.grad(loss_of)(parameters, batches()[0], classes_for(batches()[0]))
            per_sample = torch.func.vmap(torch.func.grad(loss_of), (None, 0, 0))
            per_sample(parameters, batches()[0][:, None], classes_for(batches()[0])[:, None])
            inputs = batches()[0]
            total, divisor, targets, right = classes_by_hand(model(inputs), classes_for(inputs))
            notes.loss(total / divisor, targets)
            notes.predicted(right, targets)
            F.cross_entropy(model(inputs), classes_for(inputs)).backward()
            optimizer.step()

    assert_style((linear(), train))


# Buffers that are used again


@pytest.mark.parametrize("group", [1, 2])
def test_buffers_that_the_loop_fills_again(group):
    """Inputs and targets copied into the same two tensors for each batch: every batch counts as it was."""

    def train(notes, model, optimizer):
        inputs, target = torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64)
        with notes.epoch():
            for number, batch in enumerate(batches(4, 4, 4, 4)):
                inputs.copy_(batch)
                target.copy_(classes_for(batch, seed=number))
                scores = model(inputs)
                total, divisor, targets, right = classes_by_hand(scores, target)
                notes.loss(total / divisor, targets)
                notes.predicted(right, targets)
                F.cross_entropy(scores, target).backward()
                if number % group == group - 1:
                    optimizer.step()
                    optimizer.zero_grad()

    assert assert_style((linear(), train)).warned_of("train_accuracy") == []


@pytest.mark.parametrize("stepped_by", ["optimizer", "hand"])
def test_buffers_filled_again_after_autograd_grad(stepped_by):
    """An optimizer's step settles what was seen; with none, the targets are gone: null, and said, never wrong."""

    def train(notes, model, optimizer):
        target = torch.zeros(4, dtype=torch.int64)
        with notes.epoch():
            for number, inputs in enumerate(batches(4, 4, 4)):
                target.copy_(classes_for(inputs, seed=number))
                scores = model(inputs)
                total, divisor, targets, right = classes_by_hand(scores, target)
                notes.loss(total / divisor, targets)
                notes.predicted(right, targets)
                gradients = torch.autograd.grad(F.cross_entropy(scores, target), list(model.parameters()))
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    if stepped_by == "hand":
                        parameter.data.sub_(gradient)
                    parameter.grad = gradient
                if stepped_by == "optimizer":
                    optimizer.step()

    notes, _ = run_untracked((linear(), train))
    if stepped_by == "hand":
        notes.epochs[0].judged = 0
    tracked = run_tracked((linear(), train))
    assert_metrics(tracked, notes)
    assert [("overwritten" in message) for message in tracked.warned_of("train_accuracy")] == [True] * (
        stepped_by == "hand"
    )


# NaN


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_never_masked(value):
    """One NaN or infinite step makes the epoch's loss so: null in the file, with its place and name."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for number, inputs in enumerate(batches()):
                optimizer.zero_grad()
                output = model(inputs)
                F.mse_loss(output, output.detach() + (value if number == 1 else 1.0)).backward()
                for parameter in model.parameters():
                    parameter.grad.nan_to_num_(0, 0, 0)
                optimizer.step()

    tracked = run_tracked((linear(1), train))
    loss = tracked.epochs[0].train_loss
    assert math.isnan(loss) if math.isnan(value) else loss == value
    with open(tracked.run.path, encoding="utf-8") as file:
        written = json.load(file)
    assert written["epochs"][0]["train_loss"] is None
    name = "NaN" if math.isnan(value) else "Infinity"
    assert name in json.dumps(written["extensions"]["non_finite"])
    assert "/epochs/0/train_loss" in json.dumps(written["extensions"]["non_finite"])
    assert not tracked.warned_of("train_loss")


# What the user says


def test_what_is_said_wins_over_what_is_observed():
    """Logged by name before updated batch by batch before observed."""
    model, optimizer = linear()()

    def step(inputs):
        F.cross_entropy(model(inputs), classes_for(inputs)).backward()
        optimizer.step()

    with tracking() as tracked:
        with tracked.run.epoch() as epoch:
            step(batches()[0])
            epoch.update(loss=3.0)
            epoch.update(loss=torch.tensor(5.0, requires_grad=True))
        with tracked.run.epoch() as epoch:
            step(batches()[0])
            epoch.update(loss=3.0, output=torch.eye(3), target=torch.tensor([0, 1, 1]))
            epoch.log(train_loss=0.1, gradient_norm=7)
    first, second = tracked.epochs
    assert first.train_loss == 4.0
    assert first.train_accuracy is not None
    assert second.train_loss == 0.1
    assert second.train_accuracy == 2 / 3
    assert second.gradient_norm == 7.0


# Memory


def test_no_graph_is_kept():
    """When a step is over and the loop has let go of its tensors, so have we, within the epoch."""
    model, optimizer = linear()()
    gone = []
    with tracking() as tracked, tracked.run.epoch():
        for inputs in batches(4, 4, 4, 4, 4, 4):
            hidden = model(inputs)
            scores = hidden * 1
            gone.append(weakref.ref(scores))
            gone.append(weakref.ref(hidden))
            loss = F.cross_entropy(scores, classes_for(inputs))
            loss.backward()
            optimizer.step()
            del hidden, scores, loss
        gc.collect()
        assert [reference() for reference in gone] == [None] * len(gone)


def test_losses_that_the_loop_keeps_hold_nothing_of_the_batch():
    """A list of losses kept for later holds no outputs or targets on our account, nor our hooks after the run."""
    model, optimizer = linear()()
    kept = []

    def storages():
        gc.collect()
        return sum(type(item) is torch.Tensor and item.numel() == 4096 * CLASSES for item in gc.get_objects())

    def calls_alive():
        gc.collect()
        return any(isinstance(item, Call) for item in gc.get_objects())

    before = storages()
    with tracking() as tracked:
        with tracked.run.epoch():
            for inputs in batches(4096, 4096, 4096):
                loss = F.cross_entropy(model(inputs), classes_for(inputs))
                loss.backward()
                optimizer.step()
                kept.append(loss)
            kept.append(F.cross_entropy(model(inputs), classes_for(inputs)))
            assert calls_alive()
        kept.pop()
        assert storages() == before
        kept.append(F.cross_entropy(model(batches()[0]), classes_for(batches()[0])))
    assert not calls_alive()  # they hang from the hooks on the losses


def test_many_steps_are_folded_without_loss():
    """More steps than are kept one by one give the same sums."""

    def train(notes):
        parameter = nn.Parameter(torch.zeros(1, 2))
        with notes.epoch():
            for number in range(1500):
                parameter.grad = None
                target = torch.full((number % 3 + 1,), number % 2)
                scores = parameter.expand(len(target), 2) + torch.tensor([0.0, number % 5 - 2.5])
                total, divisor, targets, right = classes_by_hand(scores, target)
                notes.loss(total / divisor, targets)
                notes.predicted(right, targets)
                F.cross_entropy(scores, target).backward()

    assert_style((tuple, train))


def test_device_mean_is_exact_over_many_parts():
    """Parts are folded into float64 sums: a million counts lose nothing."""
    mean = DeviceMean()
    for number in range(3000):
        mean.add_sum(torch.tensor(number), torch.tensor(2**20 + number % 2))
    assert mean.take() == (2999 * 3000 // 2) / (3000 * 2**20 + 1500)
    assert mean.take() is None


# The helper can fail


@pytest.mark.parametrize(
    "damage",
    [
        lambda notes: notes.loss(1.0, 1),
        lambda notes: notes.predicted(0, 1),
        lambda notes: notes.epochs.pop(),
    ],
)
def test_the_comparison_can_fail(damage):
    """A target too many, a loss that is off, an epoch too few: each is seen."""
    style = classes_style(F.cross_entropy)
    notes, _ = run_untracked(style)
    damage(notes)
    tracked = run_tracked(style)
    with pytest.raises(AssertionError):
        assert_metrics(tracked, notes)
    assert isinstance(notes, Notes)
