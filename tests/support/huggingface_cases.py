"""Tiny random models of Hugging Face's, built from configurations, in each of their ways to attend.

The reference is the same model's own eager path, which returns its maps.
"""

import torch
import transformers

IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention")
COMMON = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 50,
}  # fmt: skip
GROUPED = {**COMMON, "num_key_value_heads": 2}
VISION = {key: value for key, value in COMMON.items() if key != "vocab_size"} | {"image_size": 16, "patch_size": 4}
BART = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 50,
}  # fmt: skip
WORDS = torch.arange(3, 12)[None]
IMAGE = torch.linspace(-2, 2, 3 * 16 * 16).sin().view(1, 3, 16, 16)
WORDS_ONLY = {"input_ids": WORDS}

MODELS = {
    "BERT": ("BertModel", "BertConfig", COMMON, WORDS_ONLY),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 50}, WORDS_ONLY),
    "Llama, grouped queries": ("LlamaForCausalLM", "LlamaConfig", GROUPED, WORDS_ONLY),
    "Mistral, a window": ("MistralForCausalLM", "MistralConfig", {**GROUPED, "sliding_window": 4}, WORDS_ONLY),
    "Gemma 2": ("Gemma2ForCausalLM", "Gemma2Config", {**GROUPED, "head_dim": 4, "sliding_window": 4}, WORDS_ONLY),
    "Qwen 2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED, WORDS_ONLY),
    "Qwen 3": ("Qwen3ForCausalLM", "Qwen3Config", {**GROUPED, "head_dim": 4}, WORDS_ONLY),
    "Mixtral, as many experts as words": (
        "MixtralForCausalLM", "MixtralConfig",
        {**GROUPED, "num_local_experts": WORDS.shape[1], "num_experts_per_tok": 2}, WORDS_ONLY,
    ),
    "T5": (
        "T5ForConditionalGeneration", "T5Config",
        {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 50},
        {"input_ids": WORDS, "decoder_input_ids": WORDS[:, :6]},
    ),
    "BART": ("BartForConditionalGeneration", "BartConfig", {**BART, "max_position_embeddings": 32}, WORDS_ONLY),
    "ViT": ("ViTModel", "ViTConfig", VISION, {"pixel_values": IMAGE}),
    "CLIP, words": ("CLIPTextModel", "CLIPTextConfig", {**COMMON, "max_position_embeddings": 32}, WORDS_ONLY),
    "CLIP, images": ("CLIPVisionModel", "CLIPVisionConfig", VISION, {"pixel_values": IMAGE}),
    "DistilBERT": (
        "DistilBertModel", "DistilBertConfig",
        {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32, "vocab_size": 50}, WORDS_ONLY,
    ),
    "ModernBERT": (
        "ModernBertModel", "ModernBertConfig",
        {**COMMON, "pad_token_id": 0, "local_attention": 4, "global_attn_every_n_layers": 2}, WORDS_ONLY,
    ),
    "RoBERTa": ("RobertaModel", "RobertaConfig", COMMON, WORDS_ONLY),
    "DeBERTa": (
        "DebertaV2Model", "DebertaV2Config",
        {**COMMON, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, WORDS_ONLY,
    ),
    "Whisper": (
        "WhisperModel", "WhisperConfig",
        {**BART, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
        {"input_features": torch.linspace(-1, 1, 160).view(1, 8, 20), "decoder_input_ids": WORDS[:, :6]},
    ),
}  # fmt: skip
RETURNED = {
    "attentions": "self", "decoder_attentions": "self", "encoder_attentions": "encoder", "cross_attentions": "cross",
}  # fmt: skip


def build(name, implementation):
    """A model with random weights, sharp attention; None where the architecture hasn't that implementation."""
    kind, config, settings, _ = MODELS[name]
    torch.manual_seed(0)
    try:
        model = getattr(transformers, kind)._from_config(
            getattr(transformers, config)(**settings), attn_implementation=implementation
        )
    except (ValueError, ImportError):
        return None
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.5)
    return model.eval()


def inputs(name):
    return MODELS[name][3]


def returned(model, name):
    """What the model itself returns when it is asked for its maps: kind and weights."""
    with torch.no_grad():
        output = model(output_attentions=True, **inputs(name))
    maps = {kind: getattr(output, key, None) for key, kind in RETURNED.items() if getattr(output, key, None)}
    return {kind: [layer for layer in layers if layer is not None] for kind, layers in maps.items()}


def reference(name, model):
    """The eager path's maps for the same weights."""
    eager = build(name, "eager")
    eager.load_state_dict(model.state_dict())
    return returned(eager, name)
