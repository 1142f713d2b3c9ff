"""The report, made by the command as a user runs it and looked at in a real browser."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from a_valid_file import VALID, edited, text_of

from trackmetrics.metrics_file import encode_record
from trackmetrics.record import EpochRecord, FinalInference, FinalResults, Hyperparameters, Metadata, RunRecord

pytest.importorskip("plotly", reason="the report needs plotly: pip install '.[report]'")
pytest.importorskip("jinja2", reason="the report needs jinja2: pip install '.[report]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="looking at the report needs playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("looking at the report needs Chromium", allow_module_level=True)

HOSTILE = "<script>window.hit=1</script></script><img src=x onerror=window.hit=2><!-- \u2028 <b>bold</b> {{7*7}} %{y}"
SHOWN = HOSTILE.replace("\u2028", "\\u2028")  # what no line has a letter for is shown by its escape


def report(*arguments, **settings):
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "trackmetrics.cli", "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **settings)


def log_softmax(scores):
    """Log-probabilities of scores, the last dimension first summed."""
    scores = np.asarray(scores, dtype=np.float64)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def a_run(task="letters", text="ab cab", layers=2, heads=None, seed=0, **settings):
    """A whole run of three epochs, whose numbers are drawn; of its text's letters each has three classes."""
    drawn = np.random.default_rng(seed)
    length = len(text)
    weights = np.exp(log_softmax(drawn.normal(size=(layers, heads or 1, length, length)))).astype(np.float32)
    described = {"kind": "self", "shape": [1, heads or 1, length, length], "source": "observed", "check": 0.0}
    attention = {"maps": [{"name": f"layers.{layer}", **described, "layer": layer} for layer in range(layers)]}
    if heads:
        attention["heads"] = weights
    norms = [{"epoch": number, "min": 0.25 * number, "median": number, "max": 2.0 * number, "steps": 10,
              "skipped_steps": 0, "non_finite_steps": 0} for number in (1, 2, 3)]  # fmt: skip
    given = {
        "metadata": Metadata(task, "2026-01-30T22:08:22Z", "cpu", Hyperparameters({"class": "T"}, {"num_epochs": 3})),
        "epochs": tuple(
            EpochRecord(number, 1 / number, 0.5 + number / 10, 0.4 + number / 10, 0.75 * number, 1.5 * number,
                        {"f1": number / 4}) for number in (1, 2, 3)
        ),
        "final_results": FinalResults(0.875, 0.75, 4.5),
        "final_inference": FinalInference(text, log_softmax(drawn.normal(0, 3, (length, 3))), weights.mean(1)),
        "extensions": {
            "status": {"state": "completed"},
            "environment": {"python": "3.11.7"},
            "gradient_norm": {"meaning": "global L2 norm, in the file's own words", "steps": 30, "skipped_steps": 0,
                              "non_finite_steps": 0, "epochs": norms},
            "attention": attention,
            "warnings": [],
        },
    }  # fmt: skip
    return RunRecord(**{**given, **settings})


def written(run, name="run"):
    """The run's file in the test's folder."""
    path = Path(f"{name}_training_metrics.json")
    path.write_bytes(encode_record(run))
    return path


@pytest.fixture(scope="module")
def chromium():
    """One browser for all tests."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """Open the report of some files, with its curves if need be; what a page asks for or complains of is an error."""
    contexts, troubles, asked = [], [], []

    def open_page(*paths, width=1280, scheme="light", curves=False):
        done = report(*paths, "-o", "report.html")
        assert (done.returncode, done.stderr) == (0, "")
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        if not curves:  # Plotly starts when a frame was drawn; it takes longer than all else
            context.add_init_script("window.requestAnimationFrame = () => 0")
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        address = Path("report.html").absolute().as_uri()
        page.goto(address)
        if curves:
            page.wait_for_selector("html[data-ready]")
        assert asked.pop(0) == address
        return page

    open_page.troubles = troubles
    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []
    assert [url for url in asked if not url.startswith("data:")] == []


def hovered(page, canvas, row, column, grid):
    """What the large heatmap says of a cell under the pointer: the cells' place is found by looking for its edges."""
    rows, columns = grid
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    tip = canvas.locator("xpath=../following-sibling::*[contains(@class, 'tip')]")
    # The last cell ends at the canvas's lower right corner; all are of one size, and labels stand left and above.
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 2)
    cursor = canvas.locator("xpath=../*[contains(@class, 'cursor')]").bounding_box()
    page.mouse.move(
        cursor["x"] + cursor["width"] / 2 - (columns - 1 - column) * cursor["width"],
        cursor["y"] + cursor["height"] / 2 - (rows - 1 - row) * cursor["height"],
    )
    return tip.locator("strong").text_content(), tip.locator("span").text_content()


# the command


def test_the_command_says_what_it_wrote():
    """A line with the page's path, or JSON with it and the runs; without -o it is report.html; no torch."""
    path = written(a_run())
    done = report(path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"report in {Path('report.html').absolute()}\n", "")
    done = report(path, "--json", "--output", "other.html")
    told = json.loads(done.stdout)
    assert told["file"] == "other.html"
    (run,) = told["runs"]
    assert [run[key] for key in ("file", "task", "state", "epochs")] == [str(path), "letters", "completed", 3]
    assert Path("other.html").read_text(encoding="utf-8").endswith("</html>\n")


def test_the_command_needs_no_torch():
    """It is made in a process that can't import torch."""
    written(a_run())
    code = "import sys; sys.modules['torch'] = None; from trackmetrics.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "report", "run_training_metrics.json"], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert Path("report.html").exists()


@pytest.mark.parametrize("missing", ["plotly", "jinja2"])
def test_a_missing_library_is_one_line(missing):
    """It says what to install; no page is written."""
    written(a_run())
    code = f"import sys; sys.modules[{missing!r}] = None; from trackmetrics.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", "run_training_metrics.json"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.fullmatch(
        rf"trackmetrics: {missing} isn't installed; pip install 'trackmetrics\[report\]'\n",
        done.stderr,
    )
    assert not Path("report.html").exists()


def test_what_is_no_metrics_file_is_one_line():
    """Status 2, a line for each on standard error, and no page, whatever stands beside them."""
    good = written(a_run())
    Path("bad.json").write_text("[]")
    Path("page.html").write_text("<!doctype html>")
    done = report(good, "none.json", "bad.json", "page.html")
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0] == "trackmetrics: none.json can't be read: No such file or directory"
    assert [line.split(" is not a metrics file: ")[0] for line in lines[1:]] == [
        "trackmetrics: bad.json",
        "trackmetrics: page.html",
    ]
    assert not Path("report.html").exists()


def test_a_metrics_file_is_never_replaced_by_a_page():
    """An output that is one of the files, or can't be written, is a line; what is there stays."""
    path = written(a_run())
    before = path.read_bytes()
    Path("there").mkdir()
    for output, status, words in (
        (path, 2, "is one of the files; give another --output"),
        ("no/report.html", 1, "can't be written"),
        ("there", 2, "is no ordinary file"),
    ):
        done = report(path, "-o", output)
        assert done.returncode == status
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr
    assert path.read_bytes() == before
    assert sorted(os.listdir()) == ["run_training_metrics.json", "there"]


# the page


def test_the_page_stands_alone(opened):
    """Under 6 MB; it asks for nothing beside itself and complains of nothing, and could not ask if it would."""
    page = opened(written(a_run()), curves=True)
    assert Path("report.html").stat().st_size < 6_000_000
    assert page.evaluate("fetch('https://example.org/').then(() => 'had', () => 'refused')") == "refused"
    assert all("Content Security Policy" in said for said in opened.troubles)
    opened.troubles.clear()


def test_the_curves_show_the_files_numbers(opened):
    """A chart for each metric, with the gradient norm's band; the numbers under the pointer are the file's."""
    page = opened(written(a_run()), curves=True)
    assert page.locator(".chart h3").all_text_contents() == [
        "Training loss", "Accuracy", "Gradient norm", "Seconds an epoch", "f1",
    ]  # fmt: skip
    expected = ["0.5", "dev : 0.6", "1.5 (0.5 to 4)", "1.5 s", "0.5"]  # of the second of three epochs
    for place, words in enumerate(expected):
        plot = page.locator(".plot").nth(place)
        plot.scroll_into_view_if_needed()
        tick = plot.locator(".xtick text", has_text="2").bounding_box()
        page.mouse.move(tick["x"] + tick["width"] / 2, tick["y"] - 60)
        label = plot.locator(".hoverlayer .legend, .hoverlayer .hovertext")
        label.first.wait_for()
        said = label.first.text_content()
        assert said.startswith("epoch 2")
        assert words in said
        page.mouse.move(0, 0)
    assert "train : 0.7" in hover_by_key(page, 1)
    band = page.evaluate("document.querySelectorAll('.plot')[2].data[0]")
    assert (band["x"], band["y"]) == ([1, 2, 3, 3, 2, 1], [2, 4, 6, 0.75, 0.5, 0.25])


def hover_by_key(page, place):
    """What a chart shows after two presses of the right arrow."""
    plot = page.locator(".plot").nth(place)
    plot.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    plot.locator(".hoverlayer", has_text="epoch 2").wait_for()
    return plot.locator(".hoverlayer").text_content()


def test_the_log_scale_is_a_toggle(opened):
    """Pressed by a key it makes the chart's axis logarithmic, and back; the others stay."""
    page = opened(written(a_run()), curves=True)
    kinds = "[...document.querySelectorAll('.plot')].map(plot => plot._fullLayout.yaxis.type)"
    toggle = page.get_by_role("button", name="Log scale: Training loss")
    toggle.press("Enter")
    assert page.evaluate(kinds) == ["log", "linear", "linear", "linear", "linear"]
    assert toggle.get_attribute("aria-pressed") == "true"
    toggle.click()
    assert page.evaluate(kinds)[0] == "linear"


def test_values_without_a_place_on_a_line_are_said(opened):
    """NaN and infinities are crosses at the foot, and stand below the chart; a null is a gap."""
    nan, infinite = float("nan"), float("inf")
    losses = [1.0, nan, nan, infinite, None, 0.5]
    epochs = tuple(EpochRecord(number, loss, elapsed_seconds=number) for number, loss in enumerate(losses, 1))
    counts = [{"epoch": number, "non_finite_steps": count} for number, count in ((1, 0), (2, 4), (3, 3))]
    norm = {"steps": 60, "non_finite_steps": 7, "skipped_steps": 0, "epochs": counts}
    page = opened(written(a_run(epochs=epochs, extensions={"gradient_norm": norm})), curves=True)
    assert page.locator(".chart").first.locator(".note").all_text_contents() == ["NaN in epoch 2–3", "∞ in epoch 4"]
    line, crosses = page.evaluate("document.querySelector('.plot').data.map(trace => [trace.x, trace.y, trace.text])")
    assert line[:2] == [[1, 2, 3, 4, 5, 6], [1, None, None, None, None, 0.5]]
    assert (crosses[0], crosses[2]) == ([2, 3, 4], ["NaN", "NaN", "∞"])
    told = page.locator(".alert li").all_text_contents()
    assert told == ["7 of 60 steps had a gradient norm that is NaN or infinite, in epoch 2–3."]


def test_unsure_tokens_are_marked(opened):
    """Each token has its class and probability; where another class is half as probable a mark and that class."""
    shares = [[0.9, 0.05, 0.05], [0.3, 0.5, 0.2], [0.2, 0.2, 0.6]]
    inference = FinalInference("x y", np.log(shares), np.zeros((0, 0, 0)))
    page = opened(written(a_run(final_inference=inference)))
    tokens = page.locator(".token")
    parts = [
        [
            re.sub(r"\s+", " ", tokens.nth(place).locator(part).text_content())
            for part in ("b", ".class", ".probability")
        ]
        for place in range(3)
    ]
    assert parts == [["x", "0", "90.0%"], ["␣", "1?", "50.0%"], ["y", "2", "60.0%"]]
    assert page.locator(".token.unsure b").all_text_contents() == ["␣"]
    assert page.locator(".token .other").all_text_contents() == ["or 0 at 30.0%"]
    assert page.get_by_text("unsure: another class is at least half as probable (1).").is_visible()


def test_the_log_probabilities_are_the_files(opened):
    """Under the pointer and by the arrow keys a cell says the file's number, its token and its class."""
    run = a_run()
    page = opened(written(run))
    canvas = page.locator(".example canvas")
    number, pair = hovered(page, canvas, 2, 4, (3, 6))  # classes down, tokens across
    expected = run.final_inference.log_probs[4, 2]
    assert number == f"{float(expected)!r} · {100 * np.exp(expected):.1f}%"
    assert pair == "a (5): class 2"
    canvas.focus()
    for key in ("ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
    assert (
        page.locator(".example .tip strong").text_content().startswith(repr(float(run.final_inference.log_probs[3, 1])))
    )


def shortest(value):
    """A float32 as JSON has it: its own shortest decimal."""
    return str(np.float32(value)).removesuffix(".0")


def test_a_layer_opens_by_click_and_says_its_weights(opened):
    """The grid has each layer; one opens to a large heatmap whose cells say pair and weight, as the file has them."""
    run = a_run(layers=3)
    page = opened(written(run))
    assert page.locator(".tile").count() == 3
    assert page.locator(".layer h4 .about").first.text_content() == "layers.0 · self · observed · check 0"
    page.locator(".tile").nth(1).click()
    assert page.locator("#attention-title").text_content() == "Layer 1"
    weights = run.final_inference.attention_weights
    for row, column, pair in ((0, 0, "a (1) → a (1)"), (4, 2, "a (5) → ␣ (3)"), (2, 5, "␣ (3) → b (6)")):
        said = hovered(page, page.locator("dialog canvas"), row, column, (6, 6))
        assert said == (shortest(weights[1, row, column]), pair)
    page.get_by_role("button", name="Next map").click()
    assert page.locator("#attention-title").text_content() == "Layer 2"
    assert page.get_by_role("button", name="Next map").is_disabled()
    assert hovered(page, page.locator("dialog canvas"), 1, 1, (6, 6))[0] == shortest(weights[2, 1, 1])


def test_a_layer_opens_by_keyboard(opened):
    """Tab comes to it, Enter opens it, arrows go through its cells and tokens, Escape closes it and leads back."""
    run = a_run()
    page = opened(written(run))
    tile = page.get_by_role("button", name="Open Layer 0")
    tile.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.ariaLabel") == "Open Layer 1"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    canvas = dialog.locator("canvas")
    for _ in range(10):
        page.keyboard.press("Tab")
        if canvas.evaluate("canvas => canvas === document.activeElement"):
            break
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    weights = run.final_inference.attention_weights[1]
    assert dialog.locator(".tip strong").text_content() == shortest(weights[1, 2])
    assert dialog.locator(".tip span").text_content() == "b (2) → ␣ (3)"
    page.keyboard.press("Enter")
    assert dialog.locator("[aria-pressed=true]").get_attribute("aria-label") == "b (2)"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.ariaLabel") == "␣ (3)"
    assert dialog.locator("[aria-pressed=true]").get_attribute("aria-label") == "␣ (3)"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.ariaLabel") == "Open Layer 1"


def test_from_token_to_token(opened):
    """A click on a token shades the others by its row, and lists the greatest weights of it."""
    weights = np.array([[[0.5, 0.25, 0.25], [0.125, 0.125, 0.75], [0, 0, 1]]], dtype=np.float32)
    page = opened(written(a_run(final_inference=FinalInference("xyz", np.log(np.full((3, 2), 0.5)), weights))))
    page.locator(".tile").click()
    page.locator(".tokens-from button").nth(1).click()
    assert page.locator("dialog .top strong").text_content() == "y (2)"
    assert page.locator("dialog .top li").all_text_contents() == ["z (3)0.750", "x (1)0.125", "y (2)0.125"]
    shades = page.locator(".tokens-from button").evaluate_all("all => all.map(one => one.style.backgroundColor)")
    light = [sum(map(int, re.findall(r"\d+", shade))) for shade in shades]
    assert light[0] == light[1] > light[2]
    page.locator(".tokens-from button").nth(2).click()
    assert page.locator("dialog .top li").all_text_contents() == ["z (3)1.00"]


def test_heads_and_maps_beside_the_stack(opened):
    """The mean and each head of a layer; a map of its own shape, whose tokens aren't known, by numbers."""
    run = a_run(heads=2)
    beside = np.array([[0.5, 0.25, 0.25], [1, 0, np.nan]], dtype=np.float32)
    run.extensions["attention"]["maps"].append(
        {"name": "decoder.cross", "kind": "cross", "shape": [1, 2, 2, 3], "source": "observed", "weights": beside}
    )
    page = opened(written(run))
    names = page.locator(".tile").evaluate_all("all => all.map(one => one.ariaLabel)")
    assert names == [
        f"Open Layer {layer}, {name}" for layer in (0, 1) for name in ("mean", "head 0", "head 1")
    ] + ["Open decoder.cross"]  # fmt: skip
    page.get_by_role("button", name="Open Layer 1, head 0").click()
    said = hovered(page, page.locator("dialog canvas"), 3, 2, (6, 6))
    assert said == (shortest(run.extensions["attention"]["heads"][1, 0, 3, 2]), "c (4) → ␣ (3)")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Open decoder.cross").click()
    assert hovered(page, page.locator("dialog canvas"), 0, 1, (2, 3)) == ("0.25", "1 → 2")
    assert hovered(page, page.locator("dialog canvas"), 1, 2, (2, 3)) == ("NaN", "2 → 3")


@pytest.mark.parametrize(("length", "cells"), [(128, 128), (129, 65)])
def test_more_than_128_tokens_are_made_smaller_and_said_so(opened, length, cells):
    """Up to 128 a cell is a weight; of more it is the largest of a block, and the page says that."""
    weights = np.random.default_rng(1).random((1, length, length)).astype(np.float32)
    inference = FinalInference("a" * length, log_softmax(np.zeros((length, 2))), weights)
    page = opened(written(a_run(final_inference=inference, extensions=None)))
    tile = page.locator(".tile canvas")
    assert tile.evaluate("canvas => [canvas.width, canvas.height]") == [cells, cells]
    said = page.locator(".attention .shrunk")
    page.locator(".tile").click()
    number, pair = hovered(page, page.locator("dialog canvas"), cells - 2, 0, (cells, cells))
    if length == 128:
        assert said.count() == 0
        assert (number, pair) == (shortest(weights[0, 126, 0]), "a (127) → a (1)")
    else:
        assert "Maps of more than 128 tokens (129 here) are made smaller" in said.text_content()
        assert "each cell is the largest weight of a block" in said.text_content()
        assert number == f"{shortest(weights[0, 126:128, 0:2].max())}, largest of 2 × 2"
        assert pair == "a … a (127–128) → a … a (1–2)"
        assert page.locator("dialog .shrunk").text_content().startswith("129 by 129 weights, made smaller")


def hostile_run():
    """Every text of a file is markup that would run."""
    run = a_run(
        task=HOSTILE,
        text=HOSTILE.replace(" ", ""),
        metadata=Metadata(
            HOSTILE, "2026-01-30T22:08:22Z", HOSTILE, Hyperparameters({HOSTILE: HOSTILE}, {"x": HOSTILE})
        ),
        epochs=tuple(EpochRecord(number, 0.5, metrics={HOSTILE: number / 2}) for number in (1, 2)),
    )
    run.extensions["warnings"].append(HOSTILE)
    run.extensions["environment"][HOSTILE] = HOSTILE
    run.extensions["gradient_norm"]["meaning"] = HOSTILE
    run.extensions["attention"]["fault"] = HOSTILE
    for entry in run.extensions["attention"]["maps"]:
        entry.update(name=HOSTILE, kind=HOSTILE, source=HOSTILE)
    return run


def test_hostile_text_stays_text(opened):
    """No script of a file runs, no element of it is made; the text can be read where it belongs."""
    path, same = written(hostile_run(), "a<b>"), written(hostile_run(), "<img src=x onerror=window.hit=3>")
    page = opened(path, same, curves=True)
    assert page.evaluate("window.hit") is None
    assert page.locator("img, b:text('bold'), main script, iframe, object").count() == 0
    assert page.locator("h1").text_content() == SHOWN
    assert SHOWN in page.locator(".alert li").all_text_contents()
    for place in (".chart h3", ".pairs dt", ".pairs dd", ".meanings dd", "table th"):
        assert any(SHOWN[:30] in text for text in page.locator(place).all_text_contents()), place
    label = hover_by_key(page, 2)
    assert "a<b>" in label
    assert "<img src=x onerror=window.hit=3>" in label
    assert page.locator(".hoverlayer a, .hoverlayer [style*=bold]").count() == 0
    page.locator(".tile").first.click()
    page.locator(".tokens-from button").first.click()
    assert SHOWN[:30] in page.locator("dialog .about").first.text_content()
    assert page.evaluate("window.hit") is None


def test_no_text_of_a_file_ends_the_pages_script(opened):
    """In the page's source no tag stands that a file gave."""
    opened(written(hostile_run()))
    source = Path("report.html").read_text(encoding="utf-8")
    given = source.partition('id="plotly"')[0]  # what follows are the package's own scripts
    assert "<img" not in given
    assert "<!--" not in given
    assert "\u2028" not in source
    assert re.findall("<script[^>]*", given) == [
        '<script type="application/json" id="data"',
        '<script type="text/plain" ',
    ]


@pytest.mark.parametrize("width", [390, 1280])
def test_no_width_scrolls_sideways(opened, width):
    """On a phone as on a desk the page is as wide as its window, the dialog too; long words and names break."""
    text = "Donaudampfschifffahrtsgesellschaftskapitän " * 5
    inference = FinalInference(text, log_softmax(np.zeros((5, 3))), np.full((4, 5, 5), 0.2))
    run = a_run(heads=8, layers=4, final_inference=inference)
    run.extensions["attention"]["heads"] = np.full((4, 8, 5, 5), 0.2)
    run.extensions["environment"]["a_name_without_an_end_" * 4] = "value" * 40
    page = opened(written(run), written(a_run("other" * 8), "b" * 60), width=width, curves=True)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator(".tile").first.click()
    assert page.locator("dialog").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def contrast(page, selector):
    """The contrast of an element's text with the card or page below it, as WCAG 2 has it."""
    colours = page.locator(selector).first.evaluate(
        """element => {
          let below = element;
          while (getComputedStyle(below).backgroundColor === "rgba(0, 0, 0, 0)") below = below.parentElement;
          return [getComputedStyle(element).color, getComputedStyle(below).backgroundColor];
        }"""
    )
    lights = []
    for colour in colours:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_dark_and_light(opened):
    """The page has the system's scheme, follows its change, and its texts can be read in both: contrast AA."""
    run = a_run()
    run.extensions["warnings"].append("look")
    run.final_inference.log_probs[0] = np.log([0.5, 0.4, 0.1])
    page = opened(written(run), curves=True)
    tile = "document.querySelector('.tile canvas').toDataURL()"
    ink = "document.querySelector('.plot .xtick text').style.fill"
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")  # a change comes before
        found.append(
            [page.evaluate("getComputedStyle(document.body).backgroundColor"), *map(page.evaluate, (tile, ink))]
        )
        for selector in (".overline", ".about", ".alert h3", ".alert li", ".state", ".pairs dd", ".token.unsure .other",
                         ".token.unsure .probability", ".note", ".toggle", "footer"):  # fmt: skip
            assert contrast(page, selector) >= 4.5, (scheme, selector)
    assert all(light != dark for light, dark in zip(*found, strict=True))
    assert found[0][0] == "rgb(245, 246, 249)"


def test_it_prints(opened):
    """On paper all is open and light, maps have labels, and no button stands; afterwards it is as it was."""
    page = opened(written(a_run()), written(a_run(seed=1), "second"), scheme="dark", curves=True)
    assert not page.locator("#run-2 .example").is_visible()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")  # the screen is dark still: what is drawn is light
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(23, 28, 38)"
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(232, 236, 244)"
    page.emulate_media(media="print", color_scheme="dark")
    page.wait_for_selector("html.printing")
    for part in ("#run-1 .example", "#run-2 .example", "#run-2 .values table", "#run-2 .tile canvas", ".meanings"):
        assert page.locator(part).first.is_visible(), part
    assert page.locator(".toggle:visible, dialog:visible, .on-screen:visible").count() == 0
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(23, 28, 38)"
    assert page.locator(".tile canvas").first.evaluate("canvas => canvas.width") > 300  # by the pixel it has 6
    assert len(page.pdf()) > 20_000
    page.emulate_media(media="screen", color_scheme="dark")
    page.wait_for_selector("html:not(.printing)")
    assert not page.locator("#run-2 .example").is_visible()
    assert page.locator(".tile canvas").first.evaluate("canvas => canvas.width") == 6


def test_several_runs_are_overlaid(opened):
    """One line a run and chart, named by what tells the files apart; a chip takes a run out; each has its section."""
    Path("a").mkdir()
    Path("b").mkdir()
    page = opened(written(a_run(), "a/run"), written(a_run(seed=1, epochs=a_run().epochs[:2]), "b/run"), curves=True)
    lines = "document.querySelector('.plot').data.map(trace => [trace.name, trace.x.length])"
    assert page.evaluate(lines) == [["a/run", 3], ["b/run", 2]]
    page.get_by_role("button", name="a/run").press("Enter")
    assert page.evaluate(lines) == [["b/run", 2]]
    page.get_by_role("button", name="a/run").click()
    assert len(page.evaluate(lines)) == 2
    sections = page.locator("details.run")
    assert [text.strip() for text in sections.locator("summary h2").all_text_contents()] == ["a/run", "b/run"]
    assert sections.evaluate_all("all => all.map(one => one.open)") == [True, False]
    sections.nth(1).locator("summary").first.press("Enter")
    assert sections.nth(1).locator(".example canvas").is_visible()
    sections.nth(1).locator(".tile").first.click()
    assert page.locator("#attention-title").text_content() == "b/run: Layer 0"


def test_no_colour_is_that_of_two_runs(opened):
    """Of a line and of the mark beside a run's name, in light and dark, however many there are."""
    page = opened(*(written(a_run(), f"run-{number}") for number in range(12)), curves=True)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colour = "all => all.map(one => getComputedStyle(one).backgroundColor)"
        assert len(set(page.locator(".chip .swatch").evaluate_all(colour))) == 12
    traces = page.evaluate("[...document.querySelectorAll('.plot')].map(plot => plot.data)")
    assert len({trace["line"]["color"] for trace in traces[0]}) == 12
    bands = [trace["fillcolor"] for plot in traces for trace in plot if trace.get("fill") == "toself"]
    assert len(set(bands)) == 12
    assert {band[7:] for band in bands} == {"0a"}  # of 255: 0.45 / 12


def test_a_run_that_goes_on(opened):
    """With a running state, no results and no epochs yet the page says so; with extensions=False it stands too."""
    status = {"status": {"state": "running", "process": os.getpid(), "host": "elsewhere"}}
    begun = a_run(epochs=(), final_results=None, final_inference=None, extensions=status)
    bare = a_run(extensions=None)
    page = opened(written(begun, "begun"))
    assert page.get_by_text("No epoch is complete.").is_visible()
    assert page.locator(".state").first.text_content() == "running"
    assert (
        page.locator(".example .empty").text_content() == "The run goes on; it comes when the training has completed."
    )
    page = opened(written(bare, "bare"))
    assert page.locator(".state").first.text_content() == "completed"
    assert page.locator(".tile").count() == 2


def test_each_key_of_the_format_has_its_place(opened):
    """Hyperparameters, environment, meanings, warnings, faults and resumptions of the valid file can be read."""
    Path("valid.json").write_bytes(text_of(edited(VALID, {"/extensions/gradient_norm/non_finite_steps": 3})))
    page = opened("valid.json")
    text = page.locator("body").inner_text()
    for words in ("optimizer.name", "SGD", "2.13.0", "global L2 norm", "dev_accuracy is null: no dev set was found",
                  "3 of 8 steps had a gradient norm that is NaN or infinite", "Resumed after epoch 1",
                  "/training/seed was 1, is 0", "no weights can be had of layers.2", "layers.0.cross", "head 1",
                  "measured", "0.50 s"):  # fmt: skip
        assert words in text, words
    page.locator(".values summary").click()
    assert page.locator(".values tbody tr").first.locator("td").all_text_contents()[:3] == ["1", "0.7000", "0.5000"]
