"""The code in docs/ runs as it stands, page by page, from top to bottom; and no block goes unnoticed."""

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from importlib.metadata import metadata
from pathlib import Path

import pytest
from pages import blocks, commands, is_run, links, program
from torch.distributed.run import get_args_parser

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
SHOWN = {"text"}  # output and pictures
OF_THE_SITE = {"{eval-rst}", "{include}", "{toctree}"}  # building the site checks these
RUN = {"python", "pycon", "sh"}
OPTIONAL = "accelerate|lightning|mlflow|pandas|polars|pytorch_lightning|tensorboard|torchmetrics|transformers|wandb"
NOT_INSTALLED = rf"No module named '({OPTIONAL})'|.* installed; pip install 'trackmetrics\[\w+\]'"


def of_docs(page):
    """A page's name as messages have it."""
    return str(page.relative_to(ROOT))


def to_run(page):
    """What of a page runs: its blocks of Python, and the commands among those for the shell."""
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language in ("python", "pycon"):
            yield block.code
        elif block.language == "sh":
            yield from (command for command, _ in commands(block) if is_run(command))


def in_page(program_file, folder):
    """Run a page's program in a process of its own, which sees neither the source nor another page's files."""
    paths = [str(ROOT / "tests" / "support"), *filter(None, [os.environ.get("PYTHONPATH")])]
    scripts = sysconfig.get_path("scripts")  # where the command `trackmetrics` stands
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
    }
    return subprocess.run(
        [sys.executable, program_file], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="session")
def a_run(tmp_path_factory):
    """A folder with a run to look at, for pages that begin with a command."""
    folder = tmp_path_factory.mktemp("a_run")
    sizes = ["--epochs", "2", "--train-examples", "64", "--dev-examples", "16", "--d-model", "16", "--d-internal", "8"]
    command = [sys.executable, "-m", "trackmetrics.cli", "demo", *sizes]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("page", [page for page in DOCS if any(to_run(page))], ids=of_docs)
def test_the_code_of_a_page_runs(page, tmp_path, request):
    """All of a page's blocks, one after the other, in a process of their own; nothing is warned of."""
    if is_run(next(to_run(page))):
        (tmp_path / "output").symlink_to(request.getfixturevalue("a_run") / "output")
    file = tmp_path / of_docs(page)
    file.parent.mkdir(parents=True)
    file.write_text(program(page.read_text(encoding="utf-8"), of_docs(page)), encoding="utf-8")
    done = in_page(of_docs(page), tmp_path)
    missing = re.search(NOT_INSTALLED, done.stderr)
    if done.returncode and missing:
        pytest.skip(f"{of_docs(page)}: {missing[0]}")
    assert done.returncode == 0, done.stderr
    warned = re.findall(r"TrackmetricsWarning: (.*)", done.stderr)
    assert all(re.match("final_results.train_accuracy", text) for text in warned), warned


def test_a_failing_block_names_page_and_line(tmp_path):
    """Whichever way a block fails, what is said holds the page and the line in it."""
    for block, line in (
        ("```python\nright = 1\nassert right == 2\n```\n", 7),
        ("```pycon\n>>> 1\n1\n>>> 1 + 1\n3\n```\n", 8),
        ("```sh\n# a run\ntrackmetrics show nowhere.json\n```\n", 7),
    ):
        text = f"# A page\n\nWords.\n\n{block}"
        (tmp_path / "page.md").write_text(program(text, "page.md"))
        done = in_page("page.md", tmp_path)
        assert done.returncode != 0
        assert re.search(rf'page\.md", line {line}\b', done.stderr), done.stderr


@pytest.mark.parametrize("page", DOCS, ids=of_docs)
def test_no_block_goes_unnoticed(page):
    """Each block runs, is checked, or is known to be shown alone."""
    for block in blocks(page.read_text(encoding="utf-8")):
        where = f"{of_docs(page)}:{block.line}"
        if block.language == "json":
            assert is_strict_json(block.code), where
        elif block.language == "sh":
            for command, line in commands(block):
                check(command, f"{of_docs(page)}:{line}")
        else:
            assert block.language.split(" ")[0] in RUN | SHOWN | OF_THE_SITE, where


def is_strict_json(text):
    """Whether it is JSON, and no NaN or infinity in it."""
    constants = []
    try:
        json.loads(text, parse_constant=constants.append)
    except ValueError:
        return False
    return not constants


def check(command, where):
    """A command that isn't run is one that can be: an extra there is, a script with options that it takes."""
    for part in command.split("&&"):
        words = shlex.split(part, comments=True)
        if words[:2] == ["pip", "install"]:
            asked = re.findall(r"(?:trackmetrics|\.)\[(.*?)\]", part)
            extras = {extra.strip() for names in asked for extra in names.split(",")}
            unknown = extras - set(metadata("trackmetrics").get_all("Provides-Extra"))
            assert not unknown, f"{where}: there is no extra {unknown}"
        elif words[0] == "python" and words[1].startswith("tests/benchmarks/"):
            assert (ROOT / words[1]).is_file(), where
        elif words[0] == "torchrun":
            get_args_parser().parse_args(words[1:])  # exits where an option is none of its
        else:
            assert is_run(command), f"{where}: {command!r} is no command that is run or checked"


def test_scripts_take_the_options_that_pages_give_them():
    """A script's own `--help` knows each option of a page's command, and takes the values before it helps."""
    for page in DOCS:
        for block in filter(lambda block: block.language == "sh", blocks(page.read_text(encoding="utf-8"))):
            for command, line in commands(block):
                first, *rest = shlex.split(command, comments=True)
                if first != "python" or not (given := rest[1:]):
                    continue
                called = [sys.executable, ROOT / rest[0], *given, "--help"]
                helped = subprocess.run(called, capture_output=True, text=True, timeout=60)
                where = f"{of_docs(page)}:{line}"
                assert helped.returncode == 0, f"{where}: {helped.stderr}"
                for option in filter(lambda word: word.startswith("--"), given):
                    assert option in helped.stdout, where


@pytest.mark.parametrize("page", DOCS, ids=of_docs)
def test_every_link_leads_somewhere(page):
    """No link to a page that isn't there."""
    for target in links(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
