"""Runs as the terminal shows them: one run, several side by side, a folder of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .curves import Point, best, better, last, metric_names, recorded, values
from .example import Prediction, predictions
from .extensions import part
from .plain import is_number
from .record import EpochRecord, FinalInference, FinalResults, RunRecord
from .run_files import RunFile
from .summary import differing_hyperparameters, hyperparameters
from .wording import HEADINGS, duration, moment, number, trend, visible

_COLOURS = {"running": "cyan", "completed": "green", "failed": "red", "died": "red", "interrupted": "yellow"}
_TREND, _LONGEST = 12, 24  # columns of a trend, letters of a name or a logged text
_LONGEST_LABEL = 40  # columns of what a row of a comparison is about
_BESIDE = 7 + 14  # columns of the epoch's number and time
_GAP = 2  # columns between two
_FRAME = 5  # lines around the epochs of a run that is followed
_NARROW = 2  # cells: tokens up to here stand in strips, longer ones in a table


def plain_console(**settings: Any) -> Console:
    """A console that takes nothing in a text for markup."""
    return Console(markup=False, emoji=False, highlight=False, **settings)


def shown_run(item: RunFile, rows: int, width: int) -> RenderableType:
    """One run: what became of it, its file, and its record."""
    return Group(_title(item), _record(item.run, {"file": str(item.path)}, rows, width))


def shown_record(run: RunRecord, rows: int, width: int) -> RenderableType:
    """One run of which only the record is at hand."""
    return _record(run, {"task": run.metadata.task}, rows, width)


def _record(run: RunRecord, known: Mapping[str, str], rows: int, width: int) -> RenderableType:
    """What is `known`, where it ran, its epochs (`rows` of them, 0 for all), results, the example, warnings."""
    parts: list[RenderableType] = [_grid(_facts(run, known))]
    given = hyperparameters(run)
    if given:
        parts.append(_section("hyperparameters", _hyperparameters(given)))
    if run.epochs:
        parts.append(_section("epochs", epochs_table(run, rows, width - 2)))
    if run.final_results is not None:
        parts.append(_section("final results", _results(run.final_results)))
    if run.final_inference is not None:
        parts.append(_section("first dev example", _example(run.final_inference, width)))
    told = (run.extensions or {}).get("warnings")
    if isinstance(told, list) and told:
        parts.append(_section("warnings", Group(*(Text(f"• {visible(item)}", style="yellow") for item in told))))
    return Group(*parts)


def followed_runs(found: Mapping[Path, RunFile | None], width: int, height: int) -> RenderableType:
    """Runs while they go on, None for a file that isn't there yet: as many epochs as there is room for."""
    rows = max(1, height // len(found) - _FRAME)
    parts: list[RenderableType] = []
    for path, item in found.items():
        if item is None:
            parts.append(Text(visible(f"waiting for {path}"), style="dim"))
        else:
            parts += [_title(item), epochs_table(item.run, rows, width)]
    return Group(*parts)


def _title(item: RunFile) -> Text:
    state = Text(visible(str(item.state)), _COLOURS.get(item.state.name, ""))
    return Text.assemble((visible(item.run.metadata.task), "bold"), "  ", state, overflow="fold")


def _section(heading: str, body: RenderableType) -> RenderableType:
    return Group(Text(""), Text(heading, style="bold"), Padding(body, (0, 0, 0, 2)))


def _facts(run: RunRecord, known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    versions = part(run.extensions, "environment")
    on = [
        versions.get("device_name"),
        *(f"{name} {versions[name]}" for name in ("torch", "python") if name in versions),
    ]
    facts = {
        **known,
        "began": moment(run.metadata.timestamp),
        "device": ", ".join(visible(item) for item in (run.metadata.device, *on) if item),
        "steps": _steps(run),
    }
    return ((name, visible(value)) for name, value in facts.items() if value)


def _steps(run: RunRecord) -> str:
    """How many training steps, and of how many there is no norm."""
    norms = part(run.extensions, "gradient_norm")
    if not norms.get("steps"):
        return ""
    apart = {"skipped by the gradient scaler": "skipped_steps", "with a gradient that isn't finite": "non_finite_steps"}
    parts = [f"{visible(norms[key])} {words}" for words, key in apart.items() if norms.get(key)]
    return ", ".join([visible(norms["steps"]), *parts])


def _grid(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", overflow="fold")
    table.add_column(overflow="fold", min_width=8)
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def _hyperparameters(given: Mapping[str, Any]) -> RenderableType:
    sections = []
    for name in ("model", "training"):
        rows = [(visible(key.removeprefix(f"{name}.")), visible(given[key])) for key in given if key.startswith(name)]
        sections += [Group(Text(name, style="underline"), _grid(rows))] if rows else []
    return Columns(sections, padding=(0, 6))


def epochs_table(run: RunRecord, rows: int, width: int) -> RenderableType:
    """The epochs, the best value of each metric marked, and how each went; metrics that have no room stand below.

    Of more than `rows` the first quarter and the last ones, and those with a best value; 0 for all.
    """
    names = metric_names(run)
    marked = {name: point.epoch for name in names if (point := best(run, name)) is not None}
    epochs = _epochs_shown(run.epochs, rows, set(marked.values()))
    known = [epoch for epoch in epochs if epoch is not None]
    return Group(*(_epochs(run, epochs, group, marked) for group in _groups(known, names, width)))


def _epochs_shown(epochs: Sequence[EpochRecord], rows: int, best_ones: set[int]) -> list[EpochRecord | None]:
    """The epochs to show, None where some are left out."""
    kept = rows if 0 < rows < len(epochs) else len(epochs)
    places = {*range(kept // 4), *range(len(epochs) - kept + kept // 4, len(epochs))}
    places |= {place for place, epoch in enumerate(epochs) if epoch.epoch in best_ones}
    found: list[EpochRecord | None] = []
    for place in sorted(places):
        gap = place > 0 and place - 1 not in places
        found += [None, epochs[place]] if gap else [epochs[place]]
    return found


def _groups(epochs: Sequence[EpochRecord], names: Sequence[str], width: int) -> list[list[str]]:
    """The metrics whose columns have room beside each other; a number is never cut."""
    widths = []
    for name in names:
        cells = [HEADINGS.get(name, visible(name, _LONGEST)), *(_figure(recorded(epoch, name)) for epoch in epochs)]
        widths.append(max(_TREND, *map(cell_len, cells)))
    return [[names[place] for place in places] for places in _abreast(widths, width - _BESIDE)] or [[]]


def _abreast(widths: Sequence[int], room: int) -> list[list[int]]:
    """The places of columns, in groups that have room side by side; at least one a group."""
    groups: list[list[int]] = []
    for place, width in enumerate(widths):
        taken = sum(widths[other] + _GAP for other in groups[-1]) if groups else 0
        if groups and taken + width + _GAP <= room:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _epochs(
    run: RunRecord, epochs: Sequence[EpochRecord | None], names: Sequence[str], marked: Mapping[str, int]
) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_footer=len(run.epochs) > 2)
    table.add_column("epoch", justify="right", footer=Text("trend", style="dim"), no_wrap=True)
    for name in names:
        heading = Text(HEADINGS.get(name, visible(name, _LONGEST)))
        table.add_column(heading, justify="right", footer=Text(trend(values(run, name), _TREND), "cyan"), no_wrap=True)
    table.add_column("elapsed", justify="right", no_wrap=True)
    for epoch in epochs:
        table.add_row(*(Text("⋮", style="dim") for _ in table.columns) if epoch is None else _row(epoch, names, marked))
    return table


def _row(epoch: EpochRecord, names: Sequence[str], marked: Mapping[str, int]) -> list[Text]:
    cells = [Text(str(epoch.epoch))]
    for name in names:
        style = "bold green" if marked.get(name) == epoch.epoch else ""
        cells.append(Text(_figure(recorded(epoch, name)), style))
    return [*cells, Text(duration(epoch.elapsed_seconds))]


def _figure(value: Any) -> str:
    return number(value) if value is None or is_number(value) else visible(value, _LONGEST)


def _results(results: FinalResults) -> RenderableType:
    return _grid(
        [
            ("train accuracy", number(results.train_accuracy)),
            ("dev accuracy", number(results.dev_accuracy)),
            ("time", duration(results.total_time_seconds)),
        ]
    )


def _example(inference: FinalInference, width: int) -> RenderableType:
    parts: list[RenderableType] = []
    found = predictions(inference)
    if found and all(cell_len(visible(item.token)) <= _NARROW for item in found) and len(found) > 1:
        parts += _strips(found, width)
    else:
        parts.append(_grid([("input", visible(inference.example_input))]))
        if found:
            parts.append(_predictions_table(found))
    layers, length = inference.attention_weights.shape[:2]
    attention = f"{layers} layers, {length} by {length}" if layers else "none"
    return Group(*parts, _grid([("attention", attention)]))


def _strips(found: Sequence[Prediction], width: int) -> list[RenderableType]:
    """Tokens above what is predicted of them, as many as fit side by side."""
    cells = max(_NARROW, *(len(str(item.predicted)) for item in found)) + 1
    fit = max(1, (width - 14) // cells)
    strips: list[RenderableType] = []
    for start in range(0, len(found), fit):
        part = found[start : start + fit]
        table = Table.grid()
        table.add_column(style="dim", width=11)
        for _ in part:
            table.add_column(width=cells, no_wrap=True)
        table.add_row("input", *(Text(visible(item.token), style="bold") for item in part))
        table.add_row("predicted", *(_predicted(item) for item in part))
        strips.append(table)
    if any(item.unsure for item in found):
        strips.append(Text("? another class is at least half as probable", style="dim"))
    return strips


def _predicted(item: Prediction) -> Text:
    text = "-" if item.predicted is None else str(item.predicted)
    return Text(text + "?", style="yellow") if item.unsure else Text(text)


def _predictions_table(found: Sequence[Prediction], rows: int = 30) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("token", "predicted", "probability"):
        table.add_column(heading, justify="left" if heading == "token" else "right", overflow="fold")
    for item in found[:rows]:
        table.add_row(Text(visible(item.token)), _predicted(item), number(item.probability))
    if len(found) > rows:
        table.add_row(Text(f"{len(found) - rows} more", style="dim"))
    return table


def compared_runs(found: Sequence[tuple[str, RunFile]], width: int) -> RenderableType:
    """Runs side by side, each with its name: hyperparameters that differ, best and last of each metric, time.

    Those that have no room beside the others stand below them.
    """
    rows = list(_compared([item for _, item in found]))
    names = [Text(visible(name), style="bold") for name, _ in found]
    labels = min(_LONGEST_LABEL, max(cell_len(label.plain) for label, _ in rows))
    columns = zip(names, *(cells for _, cells in rows if cells), strict=True)
    widths = [max(cell_len(cell.plain) for cell in column) for column in columns]
    tables: list[RenderableType] = []
    for places in _abreast(widths, width - labels - _GAP):
        table = Table(box=None, padding=(0, _GAP, 0, 0))
        table.add_column(min_width=labels, max_width=labels, overflow="fold")
        for place in places:
            table.add_column(names[place], justify="right", overflow="fold")
        for label, cells in rows:
            table.add_row(label, *(cells[place] for place in places if cells))
        tables += ["", table] if tables else [table]
    return Group(*tables)


def _compared(found: Sequence[RunFile]) -> Iterator[tuple[Text, list[Text]]]:
    """The rows of a comparison: what it is, and that of each run; without those a heading, or a gap."""
    runs = [item.run for item in found]
    gap: tuple[Text, list[Text]] = (Text(), [])
    yield Text("state"), [_state(item) for item in found]
    yield Text("epochs"), [Text(str(len(run.epochs))) for run in runs]
    differing = differing_hyperparameters(*runs)
    if differing:
        yield gap
        yield Text("hyperparameters that differ", "bold"), []
    for name, given in differing.items():
        yield Text(visible(name)), [Text("-" if value is None else visible(value)) for value in given]
    for metric in metric_names(*runs):
        yield gap
        yield Text(visible(metric), "bold"), []
        if better(metric) is not None:
            yield Text("best"), _best_marked(runs, metric)
        yield Text("last"), [Text(_point(last(run, metric))) for run in runs]
    yield gap
    yield Text("time", "bold"), [Text(_time(run)) for run in runs]


def _state(item: RunFile) -> Text:
    return Text(item.state.name, _COLOURS.get(item.state.name, ""))


def _best_marked(runs: Sequence[RunRecord], metric: str) -> list[Text]:
    """Each run's best value; the best of all stands out."""
    found = [best(run, metric) for run in runs]
    numbers = [point.value for point in found if point is not None]
    top = (max if better(metric) == "higher" else min)(numbers, default=None)
    alone = len(runs) > 1
    return [
        Text(_point(point), style="bold green" if alone and point is not None and point.value == top else "")
        for point in found
    ]


def _point(point: Point | None) -> str:
    return "-" if point is None else f"{number(point.value)} (epoch {point.epoch})"


def _time(run: RunRecord) -> str:
    return duration(run.epochs[-1].elapsed_seconds) if run.epochs else "-"


def listed_runs(found: Sequence[tuple[str, RunFile | str]]) -> Table:
    """A row for each file, with its name: its run, or why it can't be read."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("file", "state", "began"):
        table.add_column(heading, overflow="fold")
    for heading in ("epochs", "loss", "dev acc.", "time"):
        table.add_column(heading, justify="right")
    for name, item in found:
        if isinstance(item, str):
            table.add_row(Text(visible(name)), Text("unreadable", style="red"), Text(visible(item)))
            continue
        run, ends = item.run, (last(item.run, "train_loss"), last(item.run, "dev_accuracy"))
        table.add_row(
            Text(visible(name)),
            _state(item),
            Text(visible(run.metadata.timestamp.replace("T", " ").removesuffix("Z"))),
            str(len(run.epochs)),
            *(number(point.value) if point else "-" for point in ends),
            _time(run),
        )
    return table
