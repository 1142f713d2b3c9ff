"""A page of the documentation as a program: its blocks of code run where they stand, from top to bottom.

The program has the page's own lines, so that what fails names the page and the line.
"""

import doctest
import re
import shutil
import subprocess
from typing import NamedTuple

from markdown_it import MarkdownIt

_MARKDOWN = MarkdownIt("commonmark")
_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    """A fenced block: what its fence says, its code, and the page's line at which the code begins."""

    language: str
    code: str
    line: int


def blocks(text):
    """The fenced blocks of a page, in lists and quotations too."""
    fences = [token for token in _MARKDOWN.parse(text) if token.type == "fence"]
    return [Block(fence.info.strip(), fence.content, fence.map[0] + 2) for fence in fences]


def links(text):
    """Where the links and pictures of a page lead, without those to other sites and within the page."""
    parts = [part for token in _MARKDOWN.parse(text) for part in token.children or []]
    targets = [part.attrGet("href") or part.attrGet("src") for part in parts if part.type in ("link_open", "image")]
    return [target.partition("#")[0] for target in targets if not target.startswith(("#", "http"))]


def commands(block):
    """Each command of a block for the shell, with its line; a line that ends in a backslash goes on in the next."""
    for match in re.finditer(r"^(?:.*\\\n)*.+$", block.code, re.MULTILINE):
        command = match[0].replace("\\\n", " ").strip()
        if not command.startswith("#"):
            yield command, block.line + block.code.count("\n", 0, match.start())


def is_run(command):
    """Whether a command is one that is run, rather than looked at."""
    return command.startswith(("trackmetrics ", "jq "))


def program(text, name):
    """The page as Python: its Python as it stands, its examples and commands as calls, in the lines of the page."""
    lines = [""] * (text.count("\n") + 1)
    for block in blocks(text):
        if block.language == "python":
            code = block.code.splitlines()
            lines[block.line - 1 : block.line - 1 + len(code)] = code
        elif block.language == "pycon":
            lines[block.line - 1] = _call("give_what_they_show", block.code, name, block.line)
        elif block.language == "sh":
            for command, line in filter(lambda item: is_run(item[0]), commands(block)):
                lines[line - 1] = _call("succeeds", command)
    return "\n".join(lines)


def _call(function, *arguments):
    given = "".join(f", {argument!r}" for argument in arguments)
    return f"__import__({__name__!r}).{function}(globals(){given})"


def succeeds(names, command):
    """A page's command, in the page's folder; jq, which no extra brings, where it is there."""
    if command.startswith("jq ") and shutil.which("jq") is None:
        print(f"jq isn't there to run {command!r}")
    else:
        subprocess.run(command, shell=True, check=True)


def give_what_they_show(names, code, page, line):
    """A page's examples, with the names that the page has by then, and to which they add."""
    test = doctest.DocTestParser().get_doctest(code, names, page, page, line - 1)
    test.globs = names
    report = []
    doctest.DocTestRunner(optionflags=_OPTIONS).run(test, out=report.append, clear_globs=False)
    assert not report, "".join(report)
