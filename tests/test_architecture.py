"""The house as docs/explanation/architecture.md draws it: imports point down, and importing is light."""

import ast
import re
import subprocess
import sys
from importlib.resources import files
from importlib.util import resolve_name
from pathlib import Path

import pytest

import trackmetrics

# From the ground up. A module may import from floors below its own; on one floor only what is listed.
FLOORS = [
    ["errors"],
    ["plain", "names", "json_pointer", "whole_file", "standard_error", "wording", "extras", "extensions", "palette"],
    ["array_types", "non_finite", "path_lock", "meetings"],
    ["record", "notices", "json_text", "ranks"],
    ["sidecars", "live", "environment", "norm_history", "termination", "curves", "example", "run_state"],
    ["metrics_file", "places", "plots", "frames"],
    ["resumption", "rules", "run_files"],
    ["summary"],
    ["terminal", "report", "export", "sinks"],
    ["display"],
    ["options", "validation"],
    ["instruments"],
    ["joint_evaluation", "users_inference", "users_metrics"],
    ["subject"],
    ["accuracies", "example_inference"],
    ["assessment", "surroundings"],
    ["engine"],
    ["run"],
    ["decorator", "integrations", "testing"],
    ["demo"],
    ["cli"],
]
INSTRUMENT_FLOORS = [
    ["objects", "readback", "figures", "packing", "fully_sharded"],
    [
        "compiling",
        "criteria",
        "guard",
        "reaching",
        "discovery",
        "attention_maps",
        "lineage",
        "data",
        "gradients",
        "trained_parameters",
    ],
    [
        "events",
        "pairing",
        "hyperparameters",
        "batch_check",
        "gradient_norm",
        "tally",
        "model_state",
        "random_streams",
        "attention_arranged",
        "attention_kernels",
        "returned_attention",
    ],
    ["epoch_means", "undisturbed", "outcomes", "metric_states"],
    ["metric_objects", "lent_buffers"],
    ["training_metrics", "attention_capture", "division"],
    ["steps", "said_values", "evaluation", "covering", "inference_attention"],
    ["own_evaluation"],
    ["training", "final_inference"],
]
REPORT_FLOORS = [
    ["figures", "heatmaps"],
    ["charts", "attention", "final_example", "meanings"],
    ["section"],
    ["page"],
]
SINKS_FLOORS = [
    ["sink", "attention_images", "copies"],
    ["tracker_sink"],
    ["tensorboard", "mlflow", "wandb", "attached"],
    ["choice"],
]
INTEGRATIONS_FLOORS = [
    ["followed_run"],
    ["lightning", "transformers", "accelerate"],
]
LIVE_FLOORS = [
    ["pace", "screen", "epoch_table"],
    ["status_line", "iteration"],
    ["notebook"],
    ["progress"],
]
INNER_FLOORS = {
    "instruments": INSTRUMENT_FLOORS,
    "integrations": INTEGRATIONS_FLOORS,
    "live": LIVE_FLOORS,
    "report": REPORT_FLOORS,
    "sinks": SINKS_FLOORS,
}
NAMES = [
    "FinalInference", "RunRecord", "Tracker", "TrackmetricsError", "TrackmetricsWarning", "__version__",
    "capture_attention", "load_run", "tracked_training", "tracker",
]  # fmt: skip


def modules():
    """Each module of the installed package by its dotted name below `trackmetrics`, with its tree."""
    root = files("trackmetrics")
    for folder, prefix in ((root, ""), *((root / inner, f"{inner}.") for inner in INNER_FLOORS)):
        for file in sorted(folder.iterdir(), key=lambda item: item.name):
            if file.name.endswith(".py") and file.name != "__init__.py":
                yield prefix + file.name.removesuffix(".py"), ast.parse(file.read_text(encoding="utf-8"))


def imported(name, tree):
    """The package's own modules that a module imports while it runs, below `trackmetrics`."""
    package = "trackmetrics." + name.rpartition(".")[0] if "." in name else "trackmetrics"
    for node in without_typing_blocks(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("trackmetrics")):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            below = base.removeprefix("trackmetrics").removeprefix(".")
            yield from ([below] if below else [item.name for item in node.names])
            if below in INNER_FLOORS:
                yield from (f"{below}.{item.name}" for item in node.names)


def without_typing_blocks(tree):
    """Every node but those under `if TYPE_CHECKING:`, which never run."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


def floor_of(name, floors):
    """Which floor a module is on."""
    found = [number for number, names in enumerate(floors) if name in names]
    assert found, f"{name} stands on no floor: give it one in this test and in the picture"
    return found[0]


def upward(sources):
    """Each import that doesn't point down, as 'from -> to'."""
    wrong = []
    for name, tree in sources:
        for target in imported(name, tree):
            here, there = name.partition("."), target.partition(".")
            if here[0] == there[0] and here[0] in INNER_FLOORS:
                floors = INNER_FLOORS[here[0]]
                if there[2] and floor_of(there[2], floors) >= floor_of(here[2], floors):
                    wrong.append(f"{name} -> {target}")
            elif there[0] in NAMES:
                continue  # the demo imports the root, as a user does
            elif floor_of(there[0], FLOORS) >= floor_of(here[0], FLOORS):
                wrong.append(f"{name} -> {target}")
    return wrong


def test_imports_point_down():
    """No module imports from its own floor or one above."""
    assert upward(modules()) == []


def test_every_module_stands_on_a_floor():
    """A new module is given its place before it is used."""
    for name, _ in modules():
        head, _, tail = name.partition(".")
        floor_of(head, FLOORS)
        if tail:
            floor_of(tail, INNER_FLOORS[head])


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("record", "from .run import Tracker"),
        ("instruments.criteria", "from .training import Training"),
        ("instruments.criteria", "from ..engine import Engine"),
        ("report.charts", "from .section import section"),
        ("report.charts", "from ..cli import report"),
        ("errors", "def f():\n    from .plain import to_plain"),
    ],
)
def test_the_floors_test_can_fail(name, line):
    """An import that points up is found, inside a function too."""
    assert len(upward([(name, ast.parse(line))])) == 1


def test_the_roots_names_are_pinned():
    """What a user may import, sorted; each of them is there."""
    assert trackmetrics.__all__ == NAMES == sorted(NAMES)
    for name in NAMES:
        assert getattr(trackmetrics, name) is not None
    assert set(NAMES) <= set(dir(trackmetrics))
    with pytest.raises(AttributeError, match="has no attribute 'trackd_training'"):
        trackmetrics.trackd_training  # noqa: B018


@pytest.mark.parametrize(
    ("statement", "unloaded"),
    [
        ("import trackmetrics", {"torch", "numpy", "wrapt"}),
        ("from trackmetrics import tracked_training, tracker, Tracker, TrackmetricsError", {"torch", "numpy"}),
        ("import trackmetrics; trackmetrics.tracked_training('t')(lambda train: None)", {"torch", "numpy"}),
        ("from trackmetrics import load_run", {"torch"}),
        ("import trackmetrics.testing", {"torch"}),
    ],
)
def test_importing_is_light(statement, unloaded):
    """Neither importing nor decorating loads torch, nor what takes long beside it."""
    code = f"import sys; {statement}; sys.exit(bool({unloaded} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_light_import_test_can_fail():
    """The same check sees torch when a run begins."""
    code = "import sys; from trackmetrics import Tracker; Tracker('t').__enter__(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1


def without_example(names):
    """The public names whose docstring has no example; the version needs none."""
    return [name for name in names if ">>>" not in (getattr(trackmetrics, name).__doc__ or "")]


def test_public_names_have_an_example():
    """Each of them shows how it is used; tests/test_docstrings.py runs what it shows."""
    assert without_example(NAMES) == ["__version__"]


def drawn(text):
    """The floors of each picture of a page, from the ground up, by the folder that the line above the picture names."""
    pictures = {}
    for folder, picture in re.findall(r"(?:^`(\w+)/`[^\n]*\n\n)?^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        floors = []
        for line in picture.splitlines():
            names = line[: None if folder else 50].replace("/", "").split()  # the house's have a column of words
            if line.startswith(" "):
                floors[-1] += names
            else:
                floors.append(names)
        pictures[folder] = floors[::-1]
    return pictures


def test_the_picture_has_the_floors():
    """docs/explanation/architecture.md draws each floor with all its modules, and no other."""
    page = Path(__file__).parents[1] / "docs" / "explanation" / "architecture.md"
    assert drawn(page.read_text(encoding="utf-8")) == {"": FLOORS, **INNER_FLOORS}
