"""Figures of a run: what is drawn is what the record holds."""

import dataclasses
import io
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from a_run_to_look_at import ATTENTION, a_run
from any_record import records
from hypothesis import given, settings

from trackmetrics import extras, plots
from trackmetrics.errors import ArgumentError, MissingExtraError
from trackmetrics.record import EpochRecord, FinalInference, Metadata, RunRecord

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # a text in letters that the font doesn't have


def panels(figure):
    """Each panel by its title."""
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def lines(axes):
    """The points of each line in a panel, without those of the legend, rounded to what can be compared."""
    drawn = ((line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines if len(line.get_xdata()))
    return [list(zip(*points)) for points in drawn]


def test_each_metric_is_drawn_as_it_is():
    """A panel each, the accuracies in one; every point at its epoch with its value."""
    found = panels(plots.curves(a_run()))
    assert list(found) == ["train_loss", "accuracy", "gradient_norm", "perplexity", "seconds an epoch"]
    assert lines(found["train_loss"]) == [[(1, 0.8), (2, 0.4), (3, 0.2)]]
    dev, train = lines(found["accuracy"])
    assert dev == [(1, 0.25), (2, 0.375), (3, 0.5)]
    assert train == [(1, 0.125), (2, 0.25), (3, 0.375)]
    assert [text.get_text() for text in found["accuracy"].get_legend().get_texts()] == ["dev", "train"]
    assert lines(found["seconds an epoch"]) == [[(1, 1.5), (2, 1.5), (3, 1.5)]]


def test_the_norm_has_a_band_from_its_least_to_its_greatest_step():
    """As the extensions say it; none without them."""
    (band,) = panels(plots.curves(a_run()))["gradient_norm"].collections
    corners = band.get_paths()[0].vertices
    assert corners.min(axis=0).tolist() == [1, 0.5]
    assert corners.max(axis=0).tolist() == [3, 3.0]
    without = plots.curves(dataclasses.replace(a_run(), extensions=None))
    assert not panels(without)["gradient_norm"].collections


def test_what_is_no_number_leaves_a_gap_and_null_leaves_its_epoch_out():
    """NaN breaks the line; one point alone has a mark."""
    values = (0.5, math.nan, None, 0.25)
    run = RunRecord(Metadata("t", ""), tuple(EpochRecord(number, value) for number, value in enumerate(values, 1)))
    (line,) = panels(plots.curves(run))["train_loss"].lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 4])
    np.testing.assert_array_equal(line.get_ydata(), [0.5, math.nan, 0.25])
    (alone,) = panels(plots.curves(a_run(losses=(1.0,))))["train_loss"].lines
    assert alone.get_marker() == "o"


def test_runs_are_told_apart_by_colour():
    """The same colour in each panel, named in one legend; one run is named in the title."""
    figure = plots.curves(a_run(), a_run(losses=(1.0, 0.5)), names=["fast", "slow"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fast", "slow"]
    shown = [handle.get_color() for handle in figure.legends[0].legend_handles]
    assert len(set(shown)) == 2
    for title, axes in panels(figure).items():
        colours = [line.get_color() for line in axes.lines if len(line.get_xdata())]
        assert list(dict.fromkeys(colours)) == shown, title
    assert plots.curves(a_run()).get_suptitle() == "counting"


@pytest.mark.parametrize("count", [7, 8, 30])
def test_no_colour_is_that_of_two_runs(count):
    """However many there are; the more bands, the fainter each."""
    figure = plots.curves(*[a_run()] * count)
    assert len({handle.get_color() for handle in figure.legends[0].legend_handles}) == count
    bands = panels(figure)["gradient_norm"].collections
    assert len(bands) == count
    assert [band.get_alpha() for band in bands] == [pytest.approx(0.45 / count)] * count


def test_letters_are_drawn_by_a_font_that_has_them():
    """The usual one for what it has, the first installed one for the rest; what none has is left."""
    letter = "\N{LATIN SMALL LETTER D WITH PALATAL HOOK}"  # of the fonts that Matplotlib brings, STIX's alone has it
    figure = plots.curves(a_run(task=f"task {letter}"))
    assert [text.get_fontfamily() for text in figure.texts] == [["sans-serif", "STIXGeneral"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO())
    assert plots.curves(a_run(task="é")).texts[0].get_fontfamily() == ["sans-serif"]
    assert plots.curves(a_run(task="\U00017000")).texts[0].get_fontfamily() == ["sans-serif"]
    inference = FinalInference(f"{letter}bca", np.zeros((4, 3)), ATTENTION)
    run = dataclasses.replace(a_run(), final_inference=inference)
    assert "STIXGeneral" in plots.attention(run).axes[0].get_xticklabels()[0].get_fontfamily()


def test_attention_is_drawn_as_it_is():
    """A panel a layer, or one layer large: the very weights, from 0 to 1, the tokens on both axes."""
    figure = plots.attention(a_run())
    maps = {title: axes for title, axes in panels(figure).items() if title}
    assert list(maps) == ["layer 0", "layer 1"]
    for index, axes in enumerate(maps.values()):
        (image,) = axes.images
        np.testing.assert_array_equal(image.get_array(), ATTENTION[index])
        assert image.get_clim() == (0, 1)
        assert [label.get_text() for label in axes.get_xticklabels()] == list("abca")
        assert [label.get_text() for label in axes.get_yticklabels()] == list("abca")
    (one,) = [axes for title, axes in panels(plots.attention(a_run(), layer=1)).items() if title]
    np.testing.assert_array_equal(one.images[0].get_array(), ATTENTION[1])
    faint = dataclasses.replace(a_run(), final_inference=FinalInference("abca", None, ATTENTION / 4))
    assert plots.attention(faint).axes[0].images[0].get_clim() == (0, 1)


def test_a_head_is_drawn_where_it_was_kept():
    """Of the file's heads `[layers, heads, length, length]`."""
    heads = np.random.default_rng(0).random((2, 3, 4, 4), dtype=np.float32)
    run = dataclasses.replace(a_run(), extensions={"attention": {"heads": heads}})
    axes = panels(plots.attention(run, layer=1, head=2))["layer 1, head 2"]
    np.testing.assert_array_equal(axes.images[0].get_array(), heads[1, 2])


@pytest.mark.parametrize(
    ("run", "how", "message"),
    [
        (a_run(), {"layer": 2}, "layer is 2; the run has layers 0 to 1"),
        (a_run(), {"layer": -1}, "layer is -1; the run has layers 0 to 1"),
        (a_run(), {"layer": "a"}, "layer is 'a'; the run has layers 0 to 1"),
        (a_run(), {"head": 0}, 'head is 0, but the run kept no heads; train with attention="heads"'),
        (
            dataclasses.replace(a_run(), extensions={"attention": {"heads": np.zeros((2, 3, 4, 4))}}),
            {"head": 3},
            "head is 3; the run has heads 0 to 2",
        ),
        (
            a_run(state="running"),
            {},
            "the run has no attention weights: its model has none, or it hasn't completed yet",
        ),
    ],
)
def test_a_map_that_is_not_there_is_an_error(run, how, message):
    """It says which there are."""
    with pytest.raises(ArgumentError) as caught:
        plots.attention(run, **how)
    assert str(caught.value) == message


def test_no_epoch_is_an_error():
    """There is nothing to draw yet."""
    with pytest.raises(ArgumentError, match="no run has an epoch yet"):
        plots.curves(a_run(losses=(), state="running"))


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_figure_is_saved(kind):
    """As an image of its kind, not an empty one."""
    image = plots.to_image(plots.curves(a_run()), kind)
    assert image.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
    assert len(image) > 5_000


def test_the_same_run_gives_the_same_svg():
    """No date, no random names: pictures can be kept under version control."""
    assert plots.to_image(plots.curves(a_run()), "svg") == plots.to_image(plots.curves(a_run()), "svg")


def test_texts_from_the_file_stay_texts():
    """Neither mathematics nor control characters, in names, tasks and tokens."""
    evil = "$\\frac{$\x1b[2J"
    run = dataclasses.replace(
        a_run(task=evil),
        epochs=(EpochRecord(1, metrics={evil: 1.0}), EpochRecord(2, metrics={evil: 2.0})),
        final_inference=FinalInference("$\x1b$ ", None, ATTENTION),
    )
    for figure in (plots.curves(run), plots.curves(run, run), plots.attention(run)):
        assert plots.to_image(figure, "png")
    assert "\x1b" not in plots.curves(run).get_suptitle()


@settings(deadline=None, max_examples=15)
@given(records)
def test_any_record_can_be_drawn(record):
    """Whatever stands in a file that loads is drawn, or refused in words."""
    for draw in (plots.curves, plots.attention):
        try:
            figure = draw(record)
        except ArgumentError:
            continue
        assert plots.to_image(figure, "svg")


def test_drawing_leaves_pyplot_alone():
    """A figure is the caller's: none is kept open, pyplot isn't even loaded, and no setting changes."""
    code = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy()\n"
        "from a_run_to_look_at import a_run\nfrom trackmetrics import plots\n"
        "plots.to_image(plots.curves(a_run()), 'png')\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "assert not {'torch', 'matplotlib.pyplot'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False)
    assert done.returncode == 0


def test_matplotlib_missing_is_said(monkeypatch):
    """With the line that installs it."""
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        plots.curves(a_run())
    assert str(caught.value) == "matplotlib isn't installed; pip install 'trackmetrics[plot]'"
