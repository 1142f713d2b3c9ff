"""Attention out of other libraries' models, unchanged: Hugging Face transformers, x-transformers and timm."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo
from fingerprint import fingerprint
from oracle import one_thread  # noqa: F401  a fixture

from trackmetrics import capture_attention

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TOLERANCE = 1e-5
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(autouse=True, scope="module")
def compiler_is_there():
    """The compiler wraps `Module.__init__` when it first compiles, and never takes that back."""
    torch._dynamo.mutation_guard.install_generation_tagging_init()


# Hugging Face


@pytest.fixture(scope="module")
def huggingface():
    """The cases, where the library is installed (`pip install '.[test-all]'`)."""
    pytest.importorskip("transformers")
    import huggingface_cases

    return huggingface_cases


NAMES = [
    "BERT", "GPT-2", "Llama, grouped queries", "Mistral, a window", "Gemma 2", "Qwen 2", "Qwen 3",
    "Mixtral, as many experts as words", "T5", "BART", "ViT", "CLIP, words", "CLIP, images", "DistilBERT", "ModernBERT",
    "RoBERTa", "DeBERTa", "Whisper",
]  # fmt: skip


def test_every_architecture_is_listed(huggingface):
    """So that each is tried by name."""
    assert list(huggingface.MODELS) == NAMES


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("name", NAMES)
def test_maps_are_those_of_the_eager_path(huggingface, name, implementation):
    """Each kind of attention, each layer, each head; the model as it was."""
    model = huggingface.build(name, implementation)
    if model is None:
        pytest.skip(f"{name} has no {implementation} of its own")
    expected = huggingface.reference(name, model)
    before = fingerprint(model=model, streams=torch.get_rng_state())
    found = capture_attention(model, **huggingface.inputs(name))
    assert fingerprint(model=model, streams=torch.get_rng_state()) == before
    assert model.config._attn_implementation == implementation
    assert sorted({item.kind for item in found}) == sorted(expected)
    for kind, layers in expected.items():
        own = [item.weights for item in found if item.kind == kind]
        assert len(own) == len(layers)
        for one, layer in zip(own, layers, strict=True):
            assert one.shape == layer.shape
            torch.testing.assert_close(one, layer, atol=TOLERANCE, rtol=0)
            assert layer.max() > 2 / layer.shape[-1]  # far from uniform


def test_an_implementation_that_cant_be_seen_through(huggingface):
    """One that leaves torch altogether: the model's eager path is watched instead, and put back."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def in_numpy(module, query, key, value, attention_mask, scaling=None, **others):
        weights = (query @ key.mT * scaling).softmax(-1).detach().numpy()
        return torch.from_numpy(weights @ value.detach().numpy()).transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register("in_numpy", in_numpy)
    ALL_MASK_ATTENTION_FUNCTIONS.register("in_numpy", lambda *args, **kwargs: None)
    model = huggingface.build("BERT", "in_numpy")
    expected = huggingface.reference("BERT", model)["self"]
    found = capture_attention(model, **huggingface.inputs("BERT"))
    assert [item.source for item in found] == ["observed", "observed"]
    for item, layer in zip(found, expected, strict=True):
        torch.testing.assert_close(item.weights, layer, atol=TOLERANCE, rtol=0)
    assert model.config._attn_implementation == "in_numpy"


# x-transformers: its own intermediates are the reference


@pytest.mark.parametrize(
    "name",
    ["plain", "flash", "one head of keys", "ALiBi", "rotary", "normalised queries and keys", "the largest three",
     "gated values"],
)  # fmt: skip
def test_x_transformers(name):
    """The maps that the library keeps of the same weights without flash."""
    pytest.importorskip("x_transformers")
    import x_transformers_cases as cases

    found = capture_attention(cases.build(cases.DECODERS[name]), cases.WORDS)
    assert [item.kind for item in found] == ["self", "self"]
    for item, layer in zip(found, cases.reference(name), strict=True):
        torch.testing.assert_close(item.weights, layer, atol=TOLERANCE, rtol=0)
        assert layer.max() > 2 / layer.shape[-1]  # far from uniform


def test_x_transformers_encoder_and_decoder():
    """Each attention under its kind."""
    library = pytest.importorskip("x_transformers")
    parts = {"num_tokens": 20, "depth": 2, "heads": 4, "max_seq_len": 16}
    settings = {f"{side}_{key}": value for side in ("enc", "dec") for key, value in parts.items()}
    model = library.XTransformer(dim=16, **settings)
    found = capture_attention(model, torch.arange(9)[None], torch.arange(7)[None])
    assert [(item.kind, tuple(item.weights.shape[-2:])) for item in found] == [
        *[("encoder", (9, 9))] * 2, *[("self", (7, 7)), ("cross", (7, 9))] * 2,
    ]  # fmt: skip


# timm, in a process of its own: it imports torchvision, of which it gets a stand-in


def test_timm():
    """Fused and unfused attention give the same maps; windows, features and reduced keys are told apart."""
    done = subprocess.run(
        [sys.executable, SUPPORT / "timm_cases.py"], capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) >= 8
    for name, result in results.items():
        assert result["maps"] == result["expected"], name
        assert result["error"] < TOLERANCE, name


def test_a_model_without_transformers_asks_for_none():
    """Capturing imports none of these libraries."""
    code = (
        "import sys, torch; from trackmetrics import capture_attention; "
        "capture_attention(torch.nn.Linear(2, 2), torch.ones(1, 2)); "
        "sys.exit(sum(name in sys.modules for name in ('transformers', 'timm', 'x_transformers', 'einops')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
