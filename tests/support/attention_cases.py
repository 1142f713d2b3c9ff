"""Models that attend, each with the maps worked out beside it in float64, and models that don't.

A case is a model, its inputs, and a reference: the kinds and weights of its attentions, in the order they run.
"""

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

BATCH, LENGTH, OTHER, WIDTH, HEADS = 2, 5, 7, 8, 2
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
PADDING = torch.tensor([[False, False, False, True, True], [False] * LENGTH])


@dataclasses.dataclass(frozen=True)
class Case:
    """`build()` gives a model and its inputs; `reference(model, *inputs)` pairs of kind and weights."""

    group: str
    name: str
    build: Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]
    reference: Callable[..., list[tuple[str, torch.Tensor]]]

    def made(self):
        """Model and inputs, the same at each call, with weights so large that attention is far from uniform."""
        torch.manual_seed(0)
        model, args, kwargs = self.build()
        return sharp(model), args, kwargs

    def expected(self, model, args, kwargs):
        """The reference's maps, in float64."""
        double = copy.deepcopy(model).double()
        wide_args, wide_kwargs = (
            torch.utils._pytree.tree_map_only(
                torch.Tensor, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, values
            )
            for values in (args, kwargs)
        )
        with torch.no_grad():
            return self.reference(double, *wide_args, **wide_kwargs)


CASES: list[Case] = []


def case(group, name, reference):
    """Register what builds a case."""

    def register(build):
        CASES.append(Case(group, name, build, reference))
        return build

    return register


def sharp(model):
    """Weights three times as large, in `eval()`."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3)
    return model.eval()


def tokens(length=LENGTH, batch=BATCH, seed=1):
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(seed))


# nn.MultiheadAttention: its own weights, asked for in float64


def own_weights(model, query, key, value, need_weights=True, average_attn_weights=True, **masks):
    weights = model(query, key, value, need_weights=True, average_attn_weights=False, **masks)[1]
    kind = "self" if torch.equal(query, key) else "cross"
    return [(kind, weights if weights.ndim == 4 else weights[None])]


def multihead(name, inputs, options=None, asked=None):
    options, asked = options or {}, asked or {}

    @case("nn.MultiheadAttention", name, own_weights)
    def build():
        return nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **options}), inputs, asked


X, Y = tokens(), tokens(OTHER, seed=2)
for asked in (True, False):
    wanted = {"need_weights": asked}
    said = "" if asked else ", weights not asked for"
    multihead(f"self{said}", (X, X, X), asked=wanted)
    multihead(f"cross{said}", (X, Y, Y), asked=wanted)
    multihead(f"length first{said}", (X.mT.permute(2, 0, 1).contiguous(),) * 3, {"batch_first": False}, wanted)
    multihead(f"without a batch{said}", (X[0], X[0], X[0]), asked=wanted)
    multihead(f"padding mask{said}", (X, X, X), asked={**wanted, "key_padding_mask": PADDING})
    multihead(f"causal mask{said}", (X, X, X), asked={**wanted, "attn_mask": CAUSAL})
    multihead(f"causal, said so{said}", (X, X, X), asked={**wanted, "attn_mask": CAUSAL, "is_causal": True})
    multihead(f"both masks{said}", (X, X, X), asked={**wanted, "attn_mask": CAUSAL, "key_padding_mask": PADDING})
    multihead(f"float mask{said}", (X, X, X), asked={**wanted, "attn_mask": torch.eye(LENGTH)})
    narrow = (X, torch.randn(BATCH, OTHER, 6), torch.randn(BATCH, OTHER, 7))
    multihead(f"kdim, vdim{said}", narrow, {"kdim": 6, "vdim": 7}, wanted)
    multihead(f"bias and zero attention{said}", (X, Y, Y), {"add_bias_kv": True, "add_zero_attn": True}, wanted)
multihead("not averaged", (X, X, X), asked={"average_attn_weights": False})


# Torch's encoders and decoders: gone through layer by layer


def of_encoder(layers, x, kind, **masks):
    maps = []
    for layer in layers:
        inner = layer.norm1(x) if layer.norm_first else x
        given = {"key_padding_mask": masks.get("src_key_padding_mask"), "attn_mask": masks.get("src_mask")}
        maps.append((kind, layer.self_attn(inner, inner, inner, average_attn_weights=False, **given)[1]))
        x = layer(x, **masks)
    return maps, x


def encoder_reference(model, x, mask=None, is_causal=None, src_key_padding_mask=None):
    return of_encoder(model.layers, x, "self", src_mask=mask, src_key_padding_mask=src_key_padding_mask)[0]


def of_decoder(layers, x, memory, mask=None):
    maps = []
    for layer in layers:
        maps.append(("self", layer.self_attn(x, x, x, attn_mask=mask, average_attn_weights=False)[1]))
        inner = layer.norm1(x + layer._sa_block(x, mask, None))
        maps.append(("cross", layer.multihead_attn(inner, memory, memory, average_attn_weights=False)[1]))
        x = layer(x, memory, tgt_mask=mask)
    return maps


def transformer_reference(model, source, target, tgt_mask=None):
    maps, memory = of_encoder(model.encoder.layers, source, "encoder")
    return maps + of_decoder(model.decoder.layers, target, model.encoder.norm(memory), tgt_mask)


def encoder(**options):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, **{"batch_first": True, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no fast path is possible with norm_first
        return nn.TransformerEncoder(layer, 3)


CASES += [
    Case("nn.TransformerEncoder", "fast path", lambda: (encoder(), (X,), {}), encoder_reference),
    Case("nn.TransformerEncoder", "norm first", lambda: (encoder(norm_first=True), (X,), {}), encoder_reference),
    Case(
        "nn.TransformerEncoder", "padding, nested inside",
        lambda: (encoder(), (X,), {"src_key_padding_mask": PADDING}), encoder_reference,
    ),
    Case(
        "nn.TransformerEncoder", "causal",
        lambda: (encoder(), (X,), {"mask": CAUSAL.float() * -1e30, "is_causal": True}), encoder_reference,
    ),
    Case(
        "nn.TransformerDecoder", "with a memory",
        lambda: (nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 16, batch_first=True), 2), (X, Y), {}),
        lambda model, x, memory: of_decoder(model.layers, x, memory),
    ),
    Case(
        "nn.TransformerDecoder", "its own input as memory",
        lambda: (nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 16, batch_first=True), 2), (X, X), {}),
        lambda model, x, memory: of_decoder(model.layers, x, memory),
    ),
    Case(
        "nn.Transformer", "encoder and decoder",
        lambda: (nn.Transformer(WIDTH, HEADS, 2, 2, 16, batch_first=True), (Y, X), {}), transformer_reference,
    ),
    Case(
        "nn.Transformer", "causal decoder",
        lambda: (nn.Transformer(WIDTH, HEADS, 2, 2, 16, batch_first=True), (Y, X), {"tgt_mask": CAUSAL}),
        transformer_reference,
    ),
    Case(
        "nn.Transformer", "one input for both",
        lambda: (nn.Transformer(WIDTH, HEADS, 2, 2, 16, batch_first=True), (X, X), {}), transformer_reference,
    ),
]  # fmt: skip


# One function: queries, keys and values in, `[batch, heads, length, width]`


class Attends(nn.Module):
    """An attention around a function of its own, and what scores that function masks or biases by."""

    def __init__(self, attend, scores=lambda scores: scores, groups=HEADS):
        super().__init__()
        width = WIDTH // HEADS
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key, self.value = nn.Linear(WIDTH, groups * width), nn.Linear(WIDTH, groups * width)
        self.attend, self.scores, self.groups = attend, scores, groups

    def split(self, x, heads):
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)

    def forward(self, x, memory=None):
        memory = x if memory is None else memory
        query, key, value = self.query(x), self.key(memory), self.value(memory)
        out = self.attend(self.split(query, HEADS), self.split(key, self.groups), self.split(value, self.groups))
        return self.out(out.transpose(1, 2).reshape(x.shape))

    def reference(self, x, memory=None):
        kind = "self" if memory is None else "cross"
        query = self.split(self.query(x), HEADS)
        key = self.split(self.key(x if memory is None else memory), self.groups)
        key = key.repeat_interleave(HEADS // self.groups, 1)
        scores = self.scores(query @ key.mT / math.sqrt(query.shape[-1]))
        return [(kind, scores.softmax(-1).nan_to_num(0.0))]


def attends(group, name, attend, scores=lambda scores: scores, inputs=(X,), groups=HEADS):
    CASES.append(Case(group, name, lambda: (Attends(attend, scores, groups), inputs, {}), Attends.reference))


def masked(mask):
    return lambda scores: scores.masked_fill(mask, -math.inf)


SDPA = F.scaled_dot_product_attention
BIAS = torch.randn(LENGTH, LENGTH, generator=torch.Generator().manual_seed(3))
ROWS = torch.zeros(LENGTH, LENGTH, dtype=torch.bool).index_fill(0, torch.tensor([1, 3]), True)
LATER = torch.ones(LENGTH, OTHER, dtype=torch.bool).triu(1)
DISTANCE = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)

for name, options, scores in [
    ("plain", {}, lambda scores: scores),
    ("causal", {"is_causal": True}, masked(CAUSAL)),
    ("boolean mask", {"attn_mask": ~CAUSAL}, masked(CAUSAL)),
    ("float mask", {"attn_mask": BIAS}, lambda scores: scores + BIAS),
    ("rows wholly masked", {"attn_mask": ~ROWS}, masked(ROWS)),
    ("scale", {"scale": 1.7}, lambda scores: scores * 1.7 * math.sqrt(WIDTH // HEADS)),
    ("dropout set", {"dropout_p": 0.4}, lambda scores: scores),
]:
    attends("scaled_dot_product_attention", name, lambda q, k, v, o=options: SDPA(q, k, v, **o), scores)
attends("scaled_dot_product_attention", "grouped queries", lambda q, k, v: SDPA(q, k, v, enable_gqa=True), groups=1)
attends("scaled_dot_product_attention", "lengths that differ", SDPA, inputs=(X, Y))
attends(
    "scaled_dot_product_attention", "lengths that differ, causal",
    lambda q, k, v: SDPA(q, k, v, is_causal=True), masked(LATER), (X, Y),
)  # fmt: skip


@torch.inference_mode()
def in_inference_mode(q, k, v):
    return SDPA(q, k, v)


attends("scaled_dot_product_attention", "under inference mode", in_inference_mode)


def tilted(score, batch, head, query, key):
    return score + 0.3 * (query - key)


def causally(q, k, v):
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, LENGTH, LENGTH, device="cpu")
    return flex_attention(q, k, v, block_mask=mask)


compiled_flex = torch.compile(flex_attention)
attends("flex_attention", "plain", flex_attention)
attends("flex_attention", "score modification", lambda q, k, v: flex_attention(q, k, v, score_mod=tilted),
        lambda scores: scores + 0.3 * DISTANCE)  # fmt: skip
attends("flex_attention", "block mask", causally, masked(CAUSAL))
attends("flex_attention", "grouped queries", lambda q, k, v: flex_attention(q, k, v, enable_gqa=True), groups=1)
attends("flex_attention", "compiled", lambda q, k, v: compiled_flex(q, k, v, score_mod=tilted),
        lambda scores: scores + 0.3 * DISTANCE)  # fmt: skip


@torch.library.custom_op("trackmetrics_tests::opaque_attention", mutates_args=())
def opaque(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Looks at nothing that could be watched: NumPy works it out, with a slope for each head."""
    slopes = torch.arange(1, query.shape[1] + 1)[:, None, None] * DISTANCE
    weights = (query @ key.mT / math.sqrt(query.shape[-1]) - 0.1 * slopes).softmax(-1).numpy()
    return torch.from_numpy(weights @ value.numpy())


@torch.library.custom_op("trackmetrics_tests::flash_tokens_first", mutates_args=())
def tokens_first(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """`[batch, length, heads, width]`, no wider values than keys, nothing named."""
    assert c.shape == b.shape
    query, key, value = (part.transpose(1, 2) for part in (a, b, c))
    return SDPA(query, key, value).transpose(1, 2).contiguous()


def with_length_first(q, k, v):
    return tokens_first(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def sloping(scores):
    return scores - 0.1 * torch.arange(1, HEADS + 1)[:, None, None] * DISTANCE


attends("opaque kernels", "a slope for each head", lambda q, k, v: opaque(q, k, v), sloping)
attends("opaque kernels", "length before heads", with_length_first)


# Softmax by hand


def by_hand(softmax=lambda scores: scores.softmax(-1), scores=lambda scores: scores):
    return lambda q, k, v: softmax(scores(q @ k.mT / math.sqrt(q.shape[-1]))) @ v


def shifted(scores):
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


for name, softmax in {
    "F.softmax": lambda scores: F.softmax(scores, -1),
    "torch.softmax": lambda scores: torch.softmax(scores, -1),
    "the method": lambda scores: scores.softmax(-1),
    "nn.Softmax": nn.Softmax(-1),
    "exponentials over their sum": shifted,
    "log_softmax and exp": lambda scores: scores.log_softmax(-1).exp(),
    "masked afterwards": lambda scores: F.normalize(scores.softmax(-1) * ~CAUSAL, 1, -1),
    "dropout that stays on": lambda scores: F.dropout(scores.softmax(-1), 0.4, training=True),
    "in place": lambda scores: scores.sub_(1.0).softmax(-1).mul_(1.0),
}.items():
    attends("softmax by hand", name, by_hand(softmax), masked(CAUSAL) if "masked" in name else lambda scores: scores)


def with_einsum(q, k, v):
    weights = torch.einsum("bhqd,bhkd->bhqk", q, k).div(math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def with_heads_last(q, k, v):
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    weights = torch.einsum("bqhd,bkhd->bqkh", q, k).div(math.sqrt(q.shape[-1])).softmax(2)
    return torch.einsum("bqkh,bkhd->bhqd", weights, v)


def with_baddbmm(q, k, v):
    batch, heads, length, width = q.shape
    q, k, v = (part.reshape(batch * heads, length, width) for part in (q, k, v))
    empty = torch.empty(batch * heads, length, length, dtype=q.dtype)
    weights = torch.baddbmm(empty, q, k.mT, beta=0, alpha=1 / math.sqrt(width)).softmax(-1)
    return torch.bmm(weights, v).view(batch, heads, length, width)


def with_a_loop_over_heads(q, k, v):
    return torch.stack([by_hand()(q[:, head], k[:, head], v[:, head]) for head in range(q.shape[1])], 1)


def with_a_buffer_filled(q, k, v):
    weights = torch.empty(*q.shape[:3], k.shape[2], dtype=q.dtype)
    for head in range(q.shape[1]):
        weights[:, head] = (q[:, head] @ k[:, head].mT / math.sqrt(q.shape[-1])).softmax(-1)
    return weights @ v


def turned_round(q, k, v):
    return (v.mT @ (k @ q.mT / math.sqrt(q.shape[-1])).softmax(-2)).mT


def one_key_head(q, k, v):
    weights = torch.einsum("bhqd,bkd->bhqk", q, k[:, 0]).div(math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("bhqk,bkd->bhqd", weights, v[:, 0])


class TalkingHeads(nn.Module):
    """A layer over heads before the softmax, and one after it, as a linear layer or as a convolution."""

    def __init__(self, convolution):
        super().__init__()
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.before, self.after = (
            nn.Conv2d(HEADS, HEADS, 1) if convolution else nn.Linear(HEADS, HEADS) for _ in range(2)
        )

    def talk(self, layer, maps):
        return layer(maps) if isinstance(layer, nn.Conv2d) else layer(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def parts(self, x):
        query, key, value = self.mix(x).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        return self.talk(self.after, self.talk(self.before, query @ key.mT).softmax(-1)), value

    def forward(self, x):
        weights, value = self.parts(x)
        return self.out((weights @ value).transpose(1, 2).reshape(x.shape))

    def reference(self, x):
        return [("self", self.parts(x)[0])]


class Difference(nn.Module):
    """The difference of two softmaxes, as differential attention has it."""

    def __init__(self):
        super().__init__()
        self.mix, self.value = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def weights(self, x):
        query, key = self.mix(x).view(*x.shape[:2], 2, 2 * HEADS, -1).permute(2, 0, 3, 1, 4)
        maps = (query @ key.mT).softmax(-1).unflatten(1, (HEADS, 2))
        return maps[:, :, 0] - 0.4 * maps[:, :, 1]

    def forward(self, x):
        value = self.value(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2)
        return (self.weights(x) @ value).transpose(1, 2).reshape(x.shape)

    def reference(self, x):
        return [("self", self.weights(x))]


CASES += [
    Case("softmax by hand", "talking heads", lambda: (TalkingHeads(False), (X,), {}), TalkingHeads.reference),
    Case("softmax by hand", "talking heads, convolved", lambda: (TalkingHeads(True), (X,), {}), TalkingHeads.reference),
    Case("softmax by hand", "a difference of two", lambda: (Difference(), (X,), {}), Difference.reference),
]
for name, attend in {
    "einsum": with_einsum,
    "einsum, heads last": with_heads_last,
    "baddbmm": with_baddbmm,
    "a loop over heads": with_a_loop_over_heads,
    "a buffer that is filled": with_a_buffer_filled,
    "keys first": turned_round,
}.items():
    attends("softmax by hand", name, attend)
attends("softmax by hand", "one head of keys", one_key_head, groups=1)
attends("softmax by hand", "a batch of one", with_a_loop_over_heads, inputs=(X[:1],))
attends("softmax by hand", "einsum, a batch of one", with_einsum, inputs=(X[:1],))
attends("softmax by hand", "causal", by_hand(scores=masked(CAUSAL)), masked(CAUSAL))
attends("softmax by hand", "lengths that differ", by_hand(), inputs=(X, Y))


class Head(nn.Module):
    """One head, in modules of its own."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH // HEADS) for _ in range(3))

    def weights(self, x):
        return (self.query(x) @ self.key(x).mT / self.query.weight.shape[0] ** 0.5).softmax(-1)

    def forward(self, x):
        return self.weights(x) @ self.value(x)


class Layers(nn.Module):
    """Layers of heads that are modules, added to their inputs."""

    def __init__(self, layers, heads=HEADS, shared=False):
        super().__init__()
        first = nn.ModuleList(Head() for _ in range(heads))
        self.layers = nn.ModuleList(
            first if shared or not layer else nn.ModuleList(Head() for _ in range(heads)) for layer in range(layers)
        )

    def forward(self, x):
        for layer in self.layers:
            x = x + torch.cat([head(x) for head in layer] * (HEADS // len(layer)), -1)
        return x

    def reference(self, x):
        maps = []
        for layer in self.layers:
            maps.append(("self", torch.stack([head.weights(x) for head in layer], 1)))
            x = x + torch.cat([head(x) for head in layer] * (HEADS // len(layer)), -1)
        return maps


CASES += [
    Case("softmax by hand", "heads that are modules", lambda: (Layers(3), (X,), {}), Layers.reference),
    Case("softmax by hand", "layers of one head", lambda: (Layers(3, 1), (X,), {}), Layers.reference),
    Case("softmax by hand", "a shared layer", lambda: (Layers(3, 1, shared=True), (X,), {}), Layers.reference),
    Case("softmax by hand", "without a batch", lambda: (Layers(2), (X[0],), {}),
         lambda model, x: Layers.reference(model, x[None])),
]  # fmt: skip


# Maps that the model returns


class Additive(nn.Module):
    """Scores by a layer over pairs, which is no product; the maps are returned."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.score = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4), nn.Linear(4, 1)

    def forward(self, x):
        pairs = self.left(x)[:, :, None] + self.right(x)[:, None]
        weights = self.score(pairs.tanh()).squeeze(-1).softmax(-1)
        return weights @ x, weights

    def reference(self, x):
        return [("self", self.forward(x)[1][:, None])]


class Returning(Layers):
    """Returns its maps beside its output."""

    def forward(self, x):
        maps = []
        for layer in self.layers:
            weights = [head.weights(x) for head in layer]
            x = x + torch.cat([own @ head.value(x) for own, head in zip(weights, layer, strict=True)], -1)
            maps.append(torch.stack(weights, 1))
        return x, maps


CASES += [
    Case("returned maps", "additive attention", lambda: (Additive(), (X,), {}), Additive.reference),
    Case("returned maps", "beside the output", lambda: (Returning(2), (X,), {}), Layers.reference),
]


# Attention over parts of the tokens, or over features


class Windows(nn.Module):
    """Attention within halves of the tokens."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x):
        halves = x.reshape(x.shape[0] * 2, -1, WIDTH)
        return self.attention(halves, halves, halves, need_weights=False)[0].reshape(x.shape)

    def reference(self, x):
        halves = x.reshape(x.shape[0] * 2, -1, WIDTH)
        return [("window", self.attention(halves, halves, halves, average_attn_weights=False)[1])]


class OverFeatures(nn.Module):
    """Cross-covariance attention: features attend to features."""

    def __init__(self):
        super().__init__()
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def parts(self, x):
        query, key, value = self.mix(x).reshape(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 4, 1)
        return (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT).softmax(-1), value

    def forward(self, x):
        weights, value = self.parts(x)
        return self.out((weights @ value).permute(0, 3, 1, 2).reshape(x.shape))

    def reference(self, x):
        return [("feature", self.parts(x)[0])]


class NonLocal(nn.Module):
    """Attention over the places of an image, by convolutions."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(4, 4, 1) for _ in range(3))

    def weights(self, image):
        return (self.query(image).flatten(2).mT @ self.key(image).flatten(2)).softmax(-1)

    def forward(self, image):
        return image + (self.value(image).flatten(2) @ self.weights(image).mT).view(image.shape)

    def reference(self, image):
        return [("self", self.weights(image)[:, None])]


CASES += [
    Case("not token by token", "windows", lambda: (Windows(), (tokens(8),), {}), Windows.reference),
    Case("not token by token", "windows, a batch of one", lambda: (Windows(), (tokens(8, 1),), {}), Windows.reference),
    Case("not token by token", "features", lambda: (OverFeatures(), (X,), {}), OverFeatures.reference),
    Case("not token by token", "as many features as tokens", lambda: (OverFeatures(), (tokens(WIDTH // HEADS),), {}),
         OverFeatures.reference),
    Case("images", "a non-local block", lambda: (NonLocal(), (torch.randn(2, 4, 3, 3),), {}), NonLocal.reference),
]  # fmt: skip


# Torch's encoder, wrapped or compiled

WRAPPED = {
    "torch.compile": torch.compile,
    "torch.compile, fullgraph": lambda model: torch.compile(model, fullgraph=True),
    "scripted": torch.jit.script,
    "traced": lambda model: torch.jit.trace(model, X, check_trace=False),
    "exported": lambda model: torch.export.export(model, (X,)).module(),
    "DataParallel": nn.DataParallel,
}


# What a look at many people's models turned up


class Hand(nn.Module):
    """One layer of attention by a method of its own: what is multiplied by the values comes out beside the output."""

    def __init__(self, attend, heads=HEADS, kind="self"):
        super().__init__()
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.attend, self.heads, self.kind = attend, heads, kind

    def parts(self, x):
        query, key, value = self.mix(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.attend(query, key, value)

    def forward(self, x):
        return self.out(self.parts(x)[0].reshape(x.shape))

    def reference(self, x):
        return [(self.kind, self.parts(x)[1])]


def by_a_mask_afterwards(q, k, v):
    weights = (q @ k.mT).softmax(-1) * ~CAUSAL
    return weights @ v, weights


def beside_a_sink(q, k, v):
    scores = q @ k.mT
    weights = torch.cat([scores, torch.zeros_like(scores[..., :1])], -1).softmax(-1)[..., :-1]
    return weights @ v, weights


def grouped_by_einsum(q, k, v):
    q = q.unflatten(1, (2, 2)).permute(0, 3, 1, 2, 4)  # batch, length, groups, heads in each, width
    k, v = (part[:, ::2].transpose(1, 2) for part in (k, v))
    weights = torch.einsum("blgrd,bmgd->bgrlm", q, k).softmax(-1)
    return torch.einsum("bgrlm,bmgd->blgrd", weights, v), weights.flatten(1, 2)


def heads_before_the_batch(q, k, v):
    q, k, v = (torch.cat(part.unbind(1), 0) for part in (q, k, v))
    weights = (q @ k.mT).softmax(-1)
    return torch.cat((weights @ v).chunk(HEADS, 0), -1), weights.unflatten(0, (HEADS, -1)).transpose(0, 1)


def query_by_query(q, k, v):
    parts = [(part @ k.mT).softmax(-1) for part in q.split(1, 2)]
    return torch.cat([part @ v for part in parts], 2), torch.cat(parts, 2)


def with_values_of_distances(q, k, v):
    weights = (q @ k.mT).softmax(-1)
    distances = v[0, 0].mean() * torch.ones(LENGTH, LENGTH, v.shape[-1], dtype=v.dtype)
    return weights @ v + torch.einsum("bhij,ijd->bhid", weights, distances), weights


def with_penalties(q, k, v):
    weights = (q @ k.mT).softmax(-1)
    rolled = weights @ (weights @ v) + (torch.eye(LENGTH, dtype=v.dtype) - weights) @ v
    return weights @ v + rolled + (weights @ weights.mT).mean() + ((weights @ weights) @ v), weights


def with_its_own_gradient(q, k, v):
    with torch.enable_grad():
        q = q.detach().requires_grad_()
        weights = (q @ k.mT).softmax(-1)
        out = weights @ v
        (slope,) = torch.autograd.grad(out.sum(), q)
    return out.detach() + slope, weights.detach()


def in_blocks(q, k, v):
    q, k, v = (part[:, 0].unflatten(1, (2, -1)) for part in (q, k, v))
    weights = (q @ k.mT).softmax(-1)
    return (weights @ v).flatten(1, 2), weights.flatten(0, 1)[:, None]


class Halves(nn.Module):
    """Each half of the tokens attends to the other one."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.embed = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        one, other = self.embed(x).chunk(2, 1)
        return self.attention(one, other, other)[0]

    def reference(self, x):
        one, other = self.embed(x).chunk(2, 1)
        return [("cross", self.attention(one, other, other, average_attn_weights=False)[1])]


class Chunks(Halves):
    """Each half of the tokens attends to itself, in a loop."""

    def forward(self, x):
        return torch.cat([self.attention(part, part, part)[0] for part in self.embed(x).chunk(2, 1)], 1)

    def reference(self, x):
        parts = self.embed(x).chunk(2, 1)
        return [("window", self.attention(part, part, part, average_attn_weights=False)[1]) for part in parts]


class PooledFeatures(nn.Module):
    """Features attend to features, behind a pooling."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(WIDTH, 6, 1)

    def forward(self, x):
        features = F.max_pool1d(self.convolution(x.mT), 2)
        return self.weights(x) @ features

    def weights(self, x):
        features = F.max_pool1d(self.convolution(x.mT), 2)
        return (features @ features.mT).softmax(-1)

    def reference(self, x):
        return [("feature", self.weights(x)[:, None])]


class Latents(nn.Module):
    """Learned queries attend to the tokens, then to each other."""

    def __init__(self):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, 3, WIDTH))
        self.cross = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.own = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x):
        latents = self.cross(self.latents.expand(len(x), -1, -1), x, x)[0]
        return self.own(latents, latents, latents)[0]

    def reference(self, x):
        latents, first = self.cross(self.latents.expand(len(x), -1, -1), x, x, average_attn_weights=False)
        return [("cross", first), ("self", self.own(latents, latents, latents, average_attn_weights=False)[1])]


class Parser(Layers):
    """Returns arcs between tokens, whose rows sum to 1 as a map's do."""

    def forward(self, x):
        hidden = super().forward(x)
        return hidden, (hidden @ hidden.mT).softmax(-1)


for name, attend, options in [
    ("masked and not normalised again", by_a_mask_afterwards, {}),
    ("a sink that is cut off", beside_a_sink, {}),
    ("groups of heads by einsum", grouped_by_einsum, {"heads": 4}),
    ("heads before the batch", heads_before_the_batch, {}),
    ("query by query", query_by_query, {}),
    ("values of distances", with_values_of_distances, {}),
    ("penalties and rollouts of the weights", with_penalties, {}),
    ("the gradient of its output", with_its_own_gradient, {}),
]:
    CASES.append(Case("softmax by hand", name, lambda a=attend, o=options: (Hand(a, **o), (X,), {}), Hand.reference))
CASES += [
    Case("not token by token", "blocks of one head", lambda: (Hand(in_blocks, 1, "window"), (tokens(6),), {}),
         Hand.reference),
    Case("not token by token", "a loop over parts", lambda: (Chunks(), (tokens(6),), {}), Chunks.reference),
    Case("not token by token", "pooled features", lambda: (PooledFeatures(), (X,), {}), PooledFeatures.reference),
    Case("nn.MultiheadAttention", "halves of one input", lambda: (Halves(), (tokens(6),), {}), Halves.reference),
    Case("nn.MultiheadAttention", "learned queries", lambda: (Latents(), (X,), {}), Latents.reference),
    Case("returned maps", "arcs that look like one", lambda: (Parser(2), (X,), {}), Layers.reference),
]  # fmt: skip


# Softmaxes that are no attention


class Classifies(nn.Module):
    """As many classes, experts and queries as there are tokens."""

    def __init__(self, use):
        super().__init__()
        self.use = use
        self.hidden, self.classes, self.score = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, LENGTH), nn.Linear(WIDTH, 1)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LENGTH))
        self.names = nn.Parameter(torch.randn(LENGTH, WIDTH))

    def forward(self, x):
        return self.use(self, self.hidden(x))


def routed(model, gates, hidden):
    return torch.einsum("ble,bled->bld", gates, torch.stack([expert(hidden) for expert in model.experts], 2))


NO_ATTENTION = {
    "a classifier": lambda model, h: model.classes(h).softmax(-1),
    "a classifier that shares its names": lambda model, h: (h @ model.names.mT).softmax(-1),
    "an expected embedding": lambda model, h: model.classes(h).softmax(-1) @ model.names,
    "a router": lambda model, h: routed(model, model.classes(h).softmax(-1), h),
    "a router that shares its names": lambda model, h: routed(model, (h @ model.names.mT).softmax(-1), h),
    "pooling": lambda model, h: model.score(h).softmax(1).mT @ h,
    "pooling, a row for each class": lambda model, h: model.classes(h).softmax(1).mT @ h,
    "pooling by learned queries": lambda model, h: (model.names @ h.mT).softmax(-1) @ h,
    "contrasted examples": lambda model, h: (h.mean(1) @ h.mean(1).mT).softmax(-1),
    "a product of two hidden states": lambda model, h: h @ h.mT,
    "a gate": lambda model, h: h.sigmoid() * h,
    "two steps along a graph": lambda model, h: F.normalize(h.abs() @ h.abs().mT, 1, -1) @ h,
}


# An operator that no weights could give


@torch.library.custom_op("trackmetrics_tests::attention_like", mutates_args=())
def attention_like(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Not linear in its values: no weights could give the same."""
    return (query * key).tanh() * value.exp()
