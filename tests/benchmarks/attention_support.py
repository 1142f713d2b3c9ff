"""What attention is had from which model, and how exactly: the table of docs/reference/attention.md.

    python tests/benchmarks/attention_support.py own wrapped

With all libraries:

    pip install '.[test-all]' && pip install --no-deps timm
    python tests/benchmarks/attention_support.py

Each line is a way to attend: the maps that `capture_attention` gives, their largest error against a reference of their
own (float64, or the model's own eager path), and beside it what other tools give of the same model.
"""

import json
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch

SUPPORT = Path(__file__).parents[1] / "support"
sys.path.insert(0, str(SUPPORT))


def counted(kinds):
    """How many maps of which kind."""
    return " + ".join(f"{number} {kind}" for kind, number in Counter(kinds).items()) or "none"


def described(kinds, sources):
    """How many maps of which kind, and how they were had."""
    return f"{counted(kinds)} ({', '.join(sorted(set(sources)))})" if kinds else "none"


def error_of(found, expected):
    return max((one.double() - other.double()).abs().max().item() for one, other in zip(found, expected, strict=True))


def row(*cells):
    print("| " + " | ".join(cells) + " |")


def header(*cells):
    print()
    row(*cells)
    row(*["---"] * len(cells))


def own_models():
    from attention_cases import CASES

    from trackmetrics import capture_attention

    header("model", "variants", "captured", "largest error")
    groups = {}
    for case in CASES:
        groups.setdefault(case.group, []).append(case)
    for group, cases in groups.items():
        kinds, sources, errors = [], [], []
        for case in cases:
            model, args, kwargs = case.made()
            expected = case.expected(model, args, kwargs)
            found = capture_attention(model, *args, **kwargs)
            assert [item.kind for item in found] == [kind for kind, _ in expected], case
            errors.append(error_of([item.weights for item in found], [weights for _, weights in expected]))
            kinds += [item.kind for item in found]
            sources += [item.source for item in found]
        variants = "; ".join(case.name for case in cases if not case.name.endswith("weights not asked for"))
        row(group, variants, described(kinds, sources), f"{max(errors):.0e}")


def wrapped_models():
    from attention_cases import WRAPPED, X, encoder, encoder_reference, sharp

    from trackmetrics import capture_attention

    header("nn.TransformerEncoder", "captured", "largest error")
    for name, wrap in WRAPPED.items():
        torch.manual_seed(0)
        model = sharp(encoder())
        with torch.no_grad():
            expected = [weights for _, weights in encoder_reference(model.double(), X.double())]
        found = capture_attention(wrap(model.float()), X)
        error = error_of([item.weights for item in found], expected)
        row(name, described([item.kind for item in found], [item.source for item in found]), f"{error:.0e}")


def x_transformers():
    import x_transformers_cases as cases

    from trackmetrics import capture_attention

    header("x-transformers decoder", "captured", "largest error")
    for name, settings in cases.DECODERS.items():
        found = capture_attention(cases.build(settings), cases.WORDS)
        error = error_of([item.weights for item in found], cases.reference(name))
        row(name, described([item.kind for item in found], [item.source for item in found]), f"{error:.0e}")


def huggingface():
    import huggingface_cases as cases
    import transformers

    from trackmetrics import capture_attention

    transformers.logging.set_verbosity_error()
    header("Hugging Face model", "captured", "largest error", "`output_attentions=True` gives")
    for name in cases.MODELS:
        captured, errors, given = set(), [], []
        for implementation in cases.IMPLEMENTATIONS:
            model = cases.build(name, implementation)
            if model is None:
                continue
            expected = cases.reference(name, model)
            found = capture_attention(model, **cases.inputs(name))
            error = max(
                error_of([item.weights for item in found if item.kind == kind], layers)
                for kind, layers in expected.items()
            )
            captured.add(counted([item.kind for item in found]))
            errors.append(f"{implementation} {error:.0e}")
            given.append(f"{implementation} {asked(cases, model, name)}")
        row(name, " or ".join(captured), ", ".join(errors), ", ".join(given))


def asked(cases, model, name):
    """What the library gives when it is asked for its maps."""
    try:
        maps = cases.returned(model, name)
    except Exception as error:
        return type(error).__name__
    return str(sum(map(len, maps.values())) or "none")


def timm():
    done = subprocess.run(
        [sys.executable, SUPPORT / "timm_cases.py", "--extract"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"\n{done.stderr.strip()}")
        return
    header("timm model, fused attention on", "captured", "largest error", "timm's `AttentionExtract` gives")
    for name, result in json.loads(done.stdout).items():
        kinds = [kind for kind, number in result["maps"].items() for _ in range(number)]
        error = f"{result['error']:.0e}" if result["compared"] else ("" if not kinds else "no reference")
        row(name, described(kinds, result["sources"]), error, str(result["extracted"]))


TABLES = {
    "own": own_models, "wrapped": wrapped_models, "huggingface": huggingface, "x-transformers": x_transformers,
    "timm": timm,
}  # fmt: skip


def main(asked_for):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if unknown := set(asked_for) - set(TABLES):
        sys.exit(
            f"of all that is asked for, {', '.join(sorted(unknown))} is no table; the tables are {', '.join(TABLES)}"
        )
    for name in asked_for or TABLES:
        try:
            TABLES[name]()
        except ImportError as error:
            print(f"\n{name} is left out: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
