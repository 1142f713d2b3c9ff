"""Decoders of x-transformers, and the maps that the library keeps of the same weights without flash."""

import torch
import x_transformers

WORDS = torch.arange(9)[None]
DECODERS = {
    "plain": {},
    "flash": {"attn_flash": True},
    "one head of keys": {"attn_kv_heads": 1},
    "ALiBi": {"alibi_pos_bias": True},
    "rotary": {"rotary_pos_emb": True, "attn_dim_head": 32},
    "normalised queries and keys": {"attn_qk_norm": True},
    "the largest three": {"attn_sparse_topk": 3},
    "gated values": {"attn_gate_values": True},
}


def build(settings):
    torch.manual_seed(0)
    layers = x_transformers.Decoder(**{"dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 8, **settings})
    model = x_transformers.TransformerWrapper(num_tokens=20, max_seq_len=16, attn_layers=layers)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3)
    return model.eval()


def reference(name):
    plain = build({key: value for key, value in DECODERS[name].items() if key != "attn_flash"})
    with torch.no_grad():
        _, kept = plain(WORDS, return_attn=True)
    return [layer.reshape(1, -1, *layer.shape[-2:]) for layer in kept]
