"""Attention out of models as they are, against maps worked out beside them in float64."""

import copy
import pickle
import threading

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from attention_cases import (
    CASES,
    LENGTH,
    NO_ATTENTION,
    WIDTH,
    WRAPPED,
    Attends,
    Classifies,
    Head,
    Layers,
    OverFeatures,
    Windows,
    X,
    attention_like,
    encoder,
    encoder_reference,
    sharp,
    tokens,
)
from fingerprint import fingerprint
from oracle import one_thread  # noqa: F401  a fixture
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trackmetrics import TrackmetricsError, capture_attention
from trackmetrics.errors import AttentionError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning"),
]
TOLERANCE = 1e-5


@pytest.fixture(autouse=True, scope="module")
def compiler_is_there():
    """The compiler wraps `Module.__init__` when it first compiles, and never takes that back."""
    torch._dynamo.mutation_guard.install_generation_tagging_init()


def assert_maps(found, expected):
    """The same kinds in the same order, with the same weights."""
    assert [(item.kind, tuple(item.weights.shape)) for item in found] == [
        (kind, tuple(weights.shape)) for kind, weights in expected
    ]
    for item, (_, weights) in zip(found, expected, strict=True):
        torch.testing.assert_close(item.weights.double(), weights.double(), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.group}-{case.name}")
def test_maps_are_those_worked_out_beside_the_model(case):
    """Each attention in its order, with each head, of each example; nothing of the model or the streams moved."""
    if case.group == "flex_attention" and not hasattr(TorchDispatchMode, "supports_higher_order_operators"):
        pytest.skip("this torch's modes don't see flex_attention")
    model, args, kwargs = case.made()
    expected = case.expected(model, args, kwargs)
    assert any((weights.max(-1).values > 1.5 / weights.shape[-1]).any() for _, weights in expected)  # not uniform
    model.train()
    before = fingerprint(model=model, streams=torch.get_rng_state(), inputs=args)
    found = capture_attention(model, *args, **kwargs)
    assert_maps(found, expected)
    assert fingerprint(model=model, streams=torch.get_rng_state(), inputs=args) == before
    assert model.training
    if case.group == "scaled_dot_product_attention":  # by the definition, not by a second way
        assert {item.source for item in found} <= {"recomputed", "observed"}
    checks = [item.check for item in found if item.check is not None]
    assert all(check < TOLERANCE for check in checks)
    assert checks or case.group == "returned maps" or "dropout" in case.name


@pytest.mark.parametrize("use", NO_ATTENTION.values(), ids=NO_ATTENTION)
def test_other_softmaxes_are_no_attention(use):
    """Also where there are as many classes, experts or queries as tokens; beside an attention neither."""
    assert capture_attention(sharp(Classifies(use)), X) == []
    beside = nn.Sequential(Attends(F.scaled_dot_product_attention), Classifies(use))
    assert [item.name for item in capture_attention(beside, X)] == ["0"]


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_models_that_are_wrapped_or_compiled(wrap):
    """As the model itself."""
    torch.manual_seed(0)
    model = sharp(encoder())
    with torch.no_grad():
        expected = encoder_reference(model.double(), X.double())
    model.float()
    wrapped = wrap(model)
    with torch.no_grad():
        wrapped(X)
    found = capture_attention(wrapped, X)
    assert_maps(found, expected)
    if wrap not in (WRAPPED["scripted"], WRAPPED["traced"], WRAPPED["exported"]):  # what is inside has no names there
        assert [item.name for item in found] == [f"layers.{layer}.self_attn" for layer in range(3)]


def test_distributed_data_parallel():
    """What the wrapper holds is watched."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = sharp(encoder())
        found = capture_attention(nn.parallel.DistributedDataParallel(model), X)
        alone = capture_attention(model, X)
        assert [item.name for item in found] == [item.name for item in alone]
        assert all(torch.equal(one.weights, other.weights) for one, other in zip(found, alone, strict=True))
    finally:
        torch.distributed.destroy_process_group()


def test_a_block_compiled_and_a_model_compiled_in_place():
    """A compiled part of a model, and `.compile()`."""
    torch.manual_seed(0)
    model = sharp(encoder())
    expected = capture_attention(model, X)
    model.layers[1] = torch.compile(model.layers[1])
    found = capture_attention(model, X)
    assert [torch.equal(one.weights, other.weights) for one, other in zip(found, expected, strict=True)] == [True] * 3
    model.layers[0].compile()
    model(X)
    assert len(capture_attention(model, X)) == 3


def test_names_are_the_modules_paths():
    """What runs twice is numbered; heads that are modules have the name of what holds them."""
    names = [item.name for item in capture_attention(encoder(), X)]
    assert names == ["layers.0.self_attn", "layers.1.self_attn", "layers.2.self_attn"]
    assert [item.name for item in capture_attention(Layers(2), X)] == ["layers.0", "layers.1"]
    shared = [item.name for item in capture_attention(Layers(3, 1, shared=True), X)]
    assert shared == ["layers.0.0", "layers.0.0#2", "layers.0.0#3"]
    assert [item.name for item in capture_attention(OverFeatures(), X)] == ["OverFeatures"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_of_numbers(dtype):
    """Half types within what they keep; float64 stays."""
    model = sharp(Attends(F.scaled_dot_product_attention))
    expected = model.double().reference(X.to(dtype).double())
    model.to(dtype)
    (found,) = capture_attention(model, X.to(dtype))
    assert found.weights.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    bound = {torch.float64: 1e-12, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    torch.testing.assert_close(found.weights.double(), expected[0][1].detach(), atol=bound, rtol=0)


def test_under_autocast_weights_are_worked_out_in_full():
    """Queries and keys are what autocast makes of them; no further digits are lost."""

    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = sharp(Attends(self.attend))

        def attend(self, query, key, value):
            self.scores = (query.double() @ key.double().mT) / query.shape[-1] ** 0.5
            return F.scaled_dot_product_attention(query, key, value)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x)

    model = Cast()
    (found,) = capture_attention(model, X)
    with torch.no_grad():
        model(X)
    torch.testing.assert_close(found.weights.double(), model.scores.softmax(-1), atol=TOLERANCE, rtol=0)


def test_inputs_of_a_type_of_the_users_own():
    """Tensors in an object's attributes are inputs too."""

    class Batch:
        def __init__(self, x):
            self.x = x

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = Layers(1)

        def forward(self, batch):
            return self.layers(batch.x)

    assert len(capture_attention(Model(), Batch(X))) == 1


# What stays as it was, and what goes wrong


def test_nothing_is_left_behind():
    """No hook, no mode, and the model pickles, copies and compiles; a thread beside it sees nothing."""
    model = encoder()
    hooks = [(dict(module._forward_hooks), dict(module._forward_pre_hooks)) for module in model.modules()]
    capture_attention(model, X)
    assert hooks == [(dict(module._forward_hooks), dict(module._forward_pre_hooks)) for module in model.modules()]
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    assert torch.overrides._get_current_function_mode() is None
    assert torch.backends.mha.get_fastpath_enabled()
    copy.deepcopy(model), pickle.dumps(model)


def test_another_thread_is_left_alone():
    """While one thread watches, another one's modules and operators are its own."""
    model, other, seen = encoder(), Layers(1), []
    stop = threading.Event()

    def beside():
        while not stop.is_set():
            other(X)
            seen.append(torch.utils._python_dispatch._get_current_dispatch_mode())

    thread = threading.Thread(target=beside)
    thread.start()
    try:
        assert len(capture_attention(model, X)) == 3
    finally:
        stop.set()
        thread.join()
    assert seen
    assert set(seen) == {None}


def test_one_model_in_several_threads():
    """Each capture is whole."""
    model = sharp(encoder())
    expected = [(item.name, item.weights) for item in capture_attention(model, X)]
    found = []

    def capture():
        found.extend(capture_attention(model, X) for _ in range(3))

    threads = [threading.Thread(target=capture) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9
    for maps in found:
        assert [item.name for item in maps] == [name for name, _ in expected]
        assert all(torch.equal(item.weights, weights) for item, (_, weights) in zip(maps, expected, strict=True))


def test_a_scripted_model_of_ones_own():
    """Its inputs are met by operators alone."""
    torch.manual_seed(0)
    model = sharp(Head())
    (found,) = capture_attention(torch.jit.script(model), X)
    torch.testing.assert_close(found.weights[:, 0], model.weights(X), atol=TOLERANCE, rtol=0)
    assert found.kind == "self"


def test_a_nested_tensor_is_refused():
    """With what to give instead."""
    nested = torch.nested.nested_tensor([torch.randn(3, WIDTH), torch.randn(5, WIDTH)])
    with pytest.raises(AttentionError, match="give a padded one"):
        capture_attention(encoder(), nested)


def test_what_the_model_raises_comes_through():
    """With nothing left behind."""
    model = encoder()
    with pytest.raises(AssertionError, match="4-D query"):
        capture_attention(model, torch.zeros(1, 2, 3, 4))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert len(capture_attention(model, X)) == 3


def test_an_operator_without_weights_is_named():
    """Rather than left out in silence."""
    with pytest.raises(AttentionError, match=r"trackmetrics_tests::attention_like in 0"):
        capture_attention(nn.Sequential(Attends(attention_like)), X)
    assert issubclass(AttentionError, TrackmetricsError)


def test_a_model_that_answers_otherwise_when_watched():
    """A forward that draws from a stream of its own can't be watched twice."""
    count = iter(range(100))

    class Counting(nn.Module):
        def forward(self, x):
            return x + next(count)

    with pytest.raises(AttentionError, match="something else than before"):
        capture_attention(Counting(), X)


def test_inputs_that_the_forward_writes_to():
    """Both forwards get them as they were."""

    class Writing(Layers):
        def forward(self, x):
            x.mul_(2)
            return super().forward(x)

    model, inputs = Writing(1), X.clone()
    assert_maps(capture_attention(model, inputs), Layers.reference(model, 2 * X))
    assert torch.equal(inputs, X)


def test_windows_and_features_of_one_size_with_the_tokens():
    """Square, but not token by token."""
    assert [item.kind for item in capture_attention(OverFeatures(), tokens(WIDTH // 2))] == ["feature"]
    assert [item.kind for item in capture_attention(Windows(), tokens(2 * LENGTH))] == ["window"]
