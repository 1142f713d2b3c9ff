"""Attention out of timm's models with fused attention, against the maps of the same weights without it.

Run as a script: writes JSON to standard output; ends with status 3, and the reason, where timm isn't installed. timm
imports torchvision, which would bring a torch of its own; none of it is needed to run a model, so a stand-in is put
in its place.
"""

import collections
import importlib.machinery
import json
import sys
import types

import torch

MODELS = {
    "vit_tiny_patch16_224": ({"img_size": 64}, {"self": 12}),
    "deit_tiny_distilled_patch16_224": ({"img_size": 64}, {"self": 12}),
    "beit_base_patch16_224": ({"img_size": 64, "depth": 2}, {"self": 2}),
    "eva02_tiny_patch14_224": ({"img_size": 56}, {"self": 12}),
    "vit_small_patch16_rope_224": ({"img_size": 64, "depth": 2}, {"self": 2}),
    "pvt_v2_b0": ({}, {"self": 2, "cross": 6}),  # to fewer tokens, pooled
    "levit_128s": ({}, {"self": 11}),
    "coatnet_0_224": ({"img_size": 64}, {"self": 7}),
    "xcit_nano_12_p16_224": ({"img_size": 64}, {"feature": 12, "self": 2}),
    "swin_tiny_patch4_window7_224": ({"img_size": 56}, {"window": 2, "self": 10}),
    "swinv2_tiny_window8_256": ({"img_size": 64}, {"window": 2, "self": 10}),
    "maxvit_tiny_tf_224": ({}, {"window": 18, "self": 4}),
    "tnt_s_patch16_224": ({}, {"window": 12, "self": 12}),
    "cait_xxs24_224": ({"img_size": 64}, {"self": 26}),
    "mixer_s16_224": ({}, {}),
    "resnet18": ({}, {}),
}


class Anything(types.ModuleType):
    """A module that has whatever it is asked for."""

    __path__: list = []
    __version__ = "0"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or INTERPOLATION.get(name) or type(name, (), {})


NAMES = ("NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")
INTERPOLATION = {"InterpolationMode": type("InterpolationMode", (), {name: name for name in NAMES})}


class StandIn:
    """Finds torchvision, and all in it, where there is none."""

    def find_spec(self, name, path=None, target=None):
        ours = name.split(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec):
        return Anything(spec.name)

    def exec_module(self, module):
        pass


def maps_without_fusing(timm, model, name, options, image):
    """What the softmaxes of the same weights give, heard at the dropout behind each."""
    timm.layers.set_fused_attn(False)
    plain = timm.create_model(name, **options).eval()
    plain.load_state_dict(model.state_dict())
    heard = []
    for path, module in plain.named_modules():
        if path.rpartition(".")[2] == "attn_drop":
            module.register_forward_hook(lambda module, inputs, output: heard.append(inputs[0]))
    with torch.no_grad():
        plain(image)
    timm.layers.set_fused_attn(True)
    return heard


def extracted_by_timm(timm, model, image):
    """How many maps timm's own extractor gives of the very same model."""
    from timm.utils.attention_extract import AttentionExtract

    try:
        with torch.no_grad():
            return len(AttentionExtract(model, method="hook")(image))
    except Exception as error:
        return type(error).__name__


def result(timm, name, options, kinds):
    from trackmetrics import capture_attention

    torch.manual_seed(0)
    timm.layers.set_fused_attn(True)
    model = timm.create_model(name, **options).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(2)  # as it is built, attention is all but uniform
    size = options.get("img_size", model.default_cfg["input_size"][1])
    image = torch.randn(1, 3, size, size)
    found = capture_attention(model, image)
    heard = maps_without_fusing(timm, model, name, options, image)
    errors = [
        (one.weights - other.reshape(one.weights.shape)).abs().max().item()
        for one, other in zip(found, heard)
        if other.numel() == one.weights.numel()
    ]
    compared = len(heard) in (0, len(found)) and len(errors) == len(heard)
    extracted = extracted_by_timm(timm, model, image) if "--extract" in sys.argv else None
    return {
        "extracted": extracted,
        "maps": dict(collections.Counter(item.kind for item in found)),
        "expected": kinds,
        "compared": len(errors),
        "sources": sorted({item.source for item in found}),
        "error": max(errors, default=0.0) if compared else float("inf"),
    }


def main():
    if importlib.machinery.PathFinder.find_spec("torchvision") is None:
        sys.meta_path.append(StandIn())
    try:
        import timm
        import timm.layers
    except Exception as error:
        print(f"timm can't be imported here: {error!r}", file=sys.stderr)
        sys.exit(3)
    torch.set_num_threads(1)
    print(json.dumps({name: result(timm, name, *case) for name, case in MODELS.items()}))


if __name__ == "__main__":
    main()
