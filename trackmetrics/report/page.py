"""The page: the runs' parts put into one file, which asks for nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.resources import files
from typing import Any

from .. import extras
from ..palette import run_colours
from ..run_files import RunFile, short_names
from ..summary import differing_hyperparameters
from ..wording import visible
from .charts import charts
from .heatmaps import Gallery
from .meanings import meanings
from .section import section

_SCRIPTS = ("heatmap.js", "attention.js", "curves.js", "page.js")
_ON_LIGHT = ("#1f6fc0", "#c7500a", "#008560", "#b23f86", "#6a51c9", "#8a6a00", "#00809a", "#5f6675")
_ON_DARK = ("#67b1ff", "#ff9d5c", "#3ecf9e", "#f08ac6", "#b3a1ff", "#e3c34f", "#4fd0e6", "#b2b9c6")
_NAMED = 2  # tasks in the title


def render(items: Sequence[RunFile]) -> str:
    """Give the page of runs, each with the file that it stands in.

    Raises `MissingExtraError` where what the page is made with isn't installed.
    """
    jinja2 = extras.load("jinja2", extra="report")
    plotly_js = extras.load("plotly.offline", extra="report").get_plotlyjs()
    records = [item.run for item in items]
    names, gallery = short_names([item.path for item in items]), Gallery()
    sections = [section(item, names[place], place, gallery) for place, item in enumerate(items)]
    drawn = charts(records, names)
    plotly, script = _script(plotly_js), _script("".join(_part(name) for name in _SCRIPTS))
    template = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    ).from_string(_part("page.html"))
    return str(template.render(
        title=_title(list(dict.fromkeys(item.task for item in sections))),
        sections=sections,
        charts=drawn,
        compared=list(dict.fromkeys(figure.name for item in sections for figure in item.figures)),
        differing={visible(name): ["–" if value is None else visible(value, 60) for value in given]
                   for name, given in differing_hyperparameters(*records).items()},
        meanings=meanings(records),
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        data=_data({"runs": names, "charts": drawn, "axes": gallery.axes, "heatmaps": gallery.heatmaps}),
        style=_part("page.css") + _colours(len(items)),
        plotly=plotly,
        script=script,
        policy=_policy(plotly, script),
    ))  # fmt: skip


def _title(tasks: Sequence[str]) -> str:
    return ", ".join(tasks) if len(tasks) <= _NAMED else f"{', '.join(tasks[:_NAMED])} and {len(tasks) - _NAMED} more"


def _colours(runs: int) -> str:
    """The runs' colours as the page's variables, on light and on dark ground."""
    light, dark = (
        "".join(f"--run-{place}:{colour};" for place, colour in enumerate(run_colours(chosen, runs, lightness)))
        for chosen, lightness in ((_ON_LIGHT, 0.36), (_ON_DARK, 0.7))
    )
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root:not(.printing){{{dark}}}}}\n"


def _part(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _data(value: Any) -> str:
    """JSON that can stand in a page: nothing in it begins a tag, and all but ASCII is escaped."""
    return json.dumps(value, default=vars, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _script(text: str) -> str:
    """A script of a package that can stand in a page, with line ends as a browser reads them."""
    return text.replace("</script", "<\\/script").replace("\r\n", "\n")


def _policy(*scripts: str) -> str:
    """What the page may do: run these scripts and no other, and load nothing."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
