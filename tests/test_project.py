"""What the project says of itself in more than one place is the same there."""

import configparser
import re
from datetime import date
from itertools import pairwise
from pathlib import Path

import pytest

import trackmetrics

ROOT = Path(__file__).parents[1]
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]  # Keep a Changelog's


def version():
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    return settings["metadata"]["version"]


def test_the_version_stands_in_one_place():
    """It is setup.cfg's; what is installed says the same, and no program or page says it a second time."""
    assert trackmetrics.__version__ == version()
    pattern = re.compile(rf"(?<![\d.])v?{re.escape(version())}(?![\d.])")
    sources = [path for folder in ("trackmetrics", "docs", ".ci") for path in (ROOT / folder).rglob("*")]
    sources += [ROOT / "README.md", ROOT / "setup.py", ROOT / "CONTRIBUTING.md"]
    texts = [path for path in sources if path.suffix in (".py", ".md", ".toml", ".json", "") and path.is_file()]
    assert len(texts) > 100
    said = [str(path) for path in texts if pattern.search(path.read_text(encoding="utf-8"))]
    assert said == []


def faults_of(changelog):
    """What isn't as Keep a Changelog has it."""
    headings = re.findall(r"^## (.*)$", changelog, re.MULTILINE)
    if headings[:1] != ["[Unreleased]"]:
        yield "the first section isn't [Unreleased]"
    released = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in headings[1:]]
    if None in released:
        yield f"a heading is no version with its date: {headings}"
        return
    order = [(tuple(map(int, match.groups()[:3])), date.fromisoformat(match[4])) for match in released]
    if any(newer[0] <= older[0] or newer[1] < older[1] for newer, older in pairwise(order)):
        yield f"the newest version isn't the first: {headings}"
    for section in re.split(r"^## .*$", changelog, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.*)$", section, re.MULTILINE)
        if kinds != [kind for kind in KINDS if kind in kinds]:
            yield f"{kinds} aren't of {KINDS}, once each, in this order"


def test_the_changelog_keeps_its_form():
    """Sections by version, the newest first; in each the kinds of changes."""
    assert list(faults_of((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))) == []


SOUND = "# Changelog\n## [Unreleased]\n### Added\n### Fixed\n## [0.2.0] - 2026-02-01\n## [0.1.0] - 2026-01-01\n"


@pytest.mark.parametrize(
    ("written", "wrong"),
    [
        ("## [Unreleased]\n", ""),
        ("### Fixed", "### Mended"),
        ("### Added\n### Fixed", "### Fixed\n### Added"),
        ("[0.1.0] - 2026-01-01", "0.1.0"),
        ("[0.1.0]", "[0.3.0]"),
        ("2026-01-01", "2026-03-01"),
    ],
)
def test_the_test_of_its_form_can_fail(written, wrong):
    """Each slip is found."""
    assert list(faults_of(SOUND)) == []
    assert written in SOUND
    assert list(faults_of(SOUND.replace(written, wrong)))
