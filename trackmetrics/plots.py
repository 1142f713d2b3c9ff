"""A run as Matplotlib figures: its curves, and the final example's attention."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import extras
from .curves import metric_names, norm_band, points, seconds_an_epoch
from .errors import ArgumentError, shown
from .example import tokens
from .extensions import part
from .palette import run_colours
from .record import RunRecord
from .wording import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by the colour-blind, too (Okabe and Ito, 2008).
_CHOSEN = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_LIGHTNESS = 0.42  # of the colours beyond those
_BAND_OPACITY = 0.15  # of up to three runs; of more, bands that lie on each other aren't to hide what is below
_LARGEST = 1e100  # of a value that is drawn; an axis of larger ones overflows
_MOST_TICKS = 64  # tokens that an axis names each of
_PANEL_INCHES = (4.2, 3.0)
_MAP_INCHES = 3.2


def curves(*runs: RunRecord, names: Sequence[str] | None = None) -> Figure:
    """Draw the metrics of one or several runs by epoch, a panel each; the two accuracies share one.

    The gradient norm has a band from each epoch's least to its greatest step, where the file says them; seconds an
    epoch come last. `names` are the runs' in the legend, their tasks if left out. Save it by `figure.savefig(path)`.
    Raises `MissingExtraError` without Matplotlib, `ArgumentError` where no run has an epoch.

    >>> from trackmetrics.record import EpochRecord, Metadata
    >>> run = RunRecord(Metadata("demo", "2026-01-01T00:00:00Z"), (EpochRecord(1, 0.5), EpochRecord(2, 0.25)))
    >>> [axes.get_title(loc="left") for axes in curves(run).axes]
    ['train_loss', 'seconds an epoch']
    """
    if not any(run.epochs for run in runs):
        raise ArgumentError("no run has an epoch yet, so there is no curve to draw; wait for the first one")
    colours = run_colours(_CHOSEN, len(runs), _LIGHTNESS)
    labels = list(names) if names is not None else [run.metadata.task for run in runs]
    panels = _panels(metric_names(*runs))
    figure, grid = _figure(len(panels) + 1, *_PANEL_INCHES)
    for axes, (title, metrics) in zip(grid, panels.items(), strict=False):
        axes.set_title(title, loc="left")
        for run, colour in zip(runs, colours, strict=True):
            for style, metric in zip(("-", "--"), metrics, strict=False):
                _draw(axes, run, metric, colour, style)
        if "gradient_norm" in metrics:
            for run, colour in zip(runs, colours, strict=True):
                _draw_norm_band(axes, run, colour, min(_BAND_OPACITY, 3 * _BAND_OPACITY / len(runs)))
        if len(metrics) > 1:
            _name_styles(axes, metrics)
    _draw_seconds(grid[len(panels)], runs, colours)
    whole = extras.load("matplotlib.ticker", extra="plot").MaxNLocator
    for axes in grid:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(whole(integer=True))
    if len(runs) > 1:
        handles = [grid[0].plot([], [], color=colour)[0] for colour in colours]
        figure.legend(handles, [_text(label) for label in labels], loc="outside upper center", ncols=min(4, len(runs)))
    else:
        figure.suptitle(_text(labels[0]))
    _find_letters(figure)
    return figure


def _panels(metrics: Sequence[str]) -> dict[str, list[str]]:
    """The metrics of each panel, by its title."""
    pair = [name for name in ("dev_accuracy", "train_accuracy") if name in metrics]
    panels: dict[str, list[str]] = {}
    for name in metrics:
        panels.setdefault("accuracy" if name in pair else _text(name), pair if name in pair else [name])
    return panels


def _text(text: str) -> str:
    """A text as Matplotlib is to show it: no mathematics between dollar signs."""
    return visible(text).replace("$", r"\$")


def _draw(axes: Axes, run: RunRecord, metric: str, colour: str, style: str) -> None:
    found = points(run, metric)
    epochs = [point.epoch for point in found]
    values = [_drawable(point.value) for point in found]
    axes.plot(epochs, values, style, color=colour, marker="o" if len(found) == 1 else None)


def _draw_norm_band(axes: Axes, run: RunRecord, colour: str, opacity: float) -> None:
    band = [row for row in norm_band(run) if all(abs(item) < _LARGEST for item in row)]
    if band:
        epochs, least, greatest = zip(*band, strict=True)
        axes.fill_between(epochs, least, greatest, color=colour, alpha=opacity, linewidth=0)


def _drawable(value: float) -> float:
    return value if abs(value) < _LARGEST else math.nan


def _name_styles(axes: Axes, metrics: Sequence[str]) -> None:
    for style, metric in zip(("-", "--"), metrics, strict=False):
        axes.plot([], [], style, color="0.4", label=metric.removesuffix("_accuracy"))
    axes.legend(frameon=False)


def _draw_seconds(axes: Axes, runs: Sequence[RunRecord], colours: Sequence[str]) -> None:
    axes.set_title("seconds an epoch", loc="left")
    for run, colour in zip(runs, colours, strict=True):
        seconds = [_drawable(value) for value in seconds_an_epoch(run)]
        epochs = [epoch.epoch for epoch in run.epochs]
        axes.plot(epochs, seconds, color=colour, marker="o" if len(seconds) == 1 else None)
    axes.set_ylim(bottom=0)


def attention(run: RunRecord, layer: int | None = None, head: int | None = None) -> Figure:
    """Draw the final example's attention weights: all layers side by side, or the one `layer`, from 0, large.

    Rows are the tokens that attend, columns those that are attended to; each row of weights sums to 1. `head`, from 0,
    takes one head instead of the mean, where the run kept them (`attention="heads"`).
    Raises `ArgumentError` where the run has no such map, `MissingExtraError` without Matplotlib.
    """
    maps = _maps(run, head)
    if layer is not None and not (isinstance(layer, int) and 0 <= layer < len(maps)):
        raise ArgumentError(f"layer is {shown(layer)}; the run has layers 0 to {len(maps) - 1}")
    chosen = range(len(maps)) if layer is None else [layer]
    assert run.final_inference is not None
    labels = tokens(run.final_inference.example_input, maps.shape[-1])
    side = _MAP_INCHES if len(chosen) > 1 else max(5.0, min(14.0, 0.22 * len(labels)))
    figure, grid = _figure(len(chosen), side * 1.1, side * 1.15)
    for axes, index in zip(grid, chosen, strict=True):
        image = axes.imshow(maps[index], cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"layer {index}" + ("" if head is None else f", head {head}"), loc="left")
        axes.set(xlabel="attended to", ylabel="attends")
        axes.grid(visible=False)
        _name_tokens(axes, labels)
    figure.colorbar(image, ax=grid, label="weight", shrink=0.8)
    _find_letters(figure)
    return figure


def _maps(run: RunRecord, head: int | None) -> npt.NDArray[Any]:
    """The weights `[layers, length, length]`, averaged over heads or of one."""
    inference = run.final_inference
    if inference is None or not inference.attention_weights.size:
        raise ArgumentError("the run has no attention weights: its model has none, or it hasn't completed yet")
    if head is None:
        return inference.attention_weights
    heads = part(run.extensions, "attention").get("heads")
    if not isinstance(heads, np.ndarray) or heads.ndim != 4:
        raise ArgumentError(f'head is {shown(head)}, but the run kept no heads; train with attention="heads"')
    if not (isinstance(head, int) and 0 <= head < heads.shape[1]):
        raise ArgumentError(f"head is {shown(head)}; the run has heads 0 to {heads.shape[1] - 1}")
    chosen: npt.NDArray[Any] = heads[:, head]
    return chosen


def _name_tokens(axes: Axes, labels: Sequence[str]) -> None:
    """Each token's text on both axes, or, of too many, their numbers."""
    if len(labels) > _MOST_TICKS:
        return
    texts = [_text(label) if label.strip() else "␣" for label in labels]
    upright = all(len(text) <= 2 for text in texts)
    axes.set_xticks(range(len(texts)), texts, rotation=0 if upright else 90, fontsize="small")
    axes.set_yticks(range(len(texts)), texts, fontsize="small")


def _find_letters(figure: Figure) -> None:
    """Where the usual font lacks letters of a text, let the first installed ones that have them draw these."""
    manager = extras.load("matplotlib.font_manager", extra="plot")
    texts = figure.findobj(extras.load("matplotlib.text", extra="plot").Text)
    usual = manager.FontProperties()
    missing = {letter for text in texts for letter in text.get_text() if letter != "\n"}
    missing -= _drawn_by(manager, manager.findfont(usual), missing)
    families = usual.get_family()
    for font in manager.fontManager.ttflist if missing else []:
        upright = font.style == "normal" and font.weight in (400, "normal", "regular")
        if upright and not font.name.startswith("Last Resort"):  # which has a box for each
            found = _drawn_by(manager, font.fname, missing)
            families, missing = families + [font.name] * bool(found), missing - found
    if families != usual.get_family():
        for text in texts:
            text.set_fontfamily(families)


def _drawn_by(manager: Any, path: str, letters: set[str]) -> set[str]:
    try:
        font = manager.get_font(path)
    except (OSError, RuntimeError):  # no longer there, or of a kind that Matplotlib can't draw
        return set()
    return {letter for letter in letters if font.get_char_index(ord(letter))}


def to_image(figure: Figure, kind: str) -> bytes:
    """Give a figure as PNG, SVG or PDF, the same bytes for the same run."""
    file = io.BytesIO()
    matplotlib = extras.load("matplotlib", extra="plot")
    with matplotlib.rc_context({"svg.hashsalt": "trackmetrics"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a text in letters that the font doesn't have
        figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def _figure(panels: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of its own, which pyplot doesn't know: nothing is left to be closed; and its panels, in rows."""
    matplotlib = extras.load("matplotlib", extra="plot")
    kind = extras.load("matplotlib.figure", extra="plot").Figure
    columns = math.ceil(math.sqrt(panels)) if panels != 3 else 3
    rows = math.ceil(panels / columns)
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                                "grid.alpha": 0.25, "font.size": 9}):  # fmt: skip
        figure = kind(figsize=(width * columns, height * rows), layout="constrained", dpi=120)
        grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in grid[panels:]:
        axes.remove()
    return figure, grid[:panels]
