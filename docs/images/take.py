"""Take the pictures of the docs anew, of real runs: the demo's live table in a terminal and its report, the tutorial's.

pip install '.[report]' pyte playwright   # and a Chromium
python docs/images/take.py
"""

import contextlib
import fcntl
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import pyte
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
COLUMNS, ROWS = 96, 7
EPOCHS = 5


@contextlib.contextmanager
def chromium():
    """A browser without a window."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


def live_table(folder):
    """Train the demo in a terminal, and draw its screen as it was in the midst of the last epoch."""
    outside, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "trackmetrics.cli", "demo", "--epochs", str(EPOCHS), "--output-dir", folder]
    environment = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONUTF8": "1"}
    process = subprocess.Popen(
        command, stdin=inside, stdout=inside, stderr=inside, start_new_session=True, env=environment
    )
    os.close(inside)
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    taken = None
    while True:
        try:
            stream.feed(os.read(outside, 65536))
        except OSError:  # it has ended
            break
        if f"epoch {EPOCHS}/{EPOCHS}" in screen.display[-1] and "━━━━━━━━━━" in screen.display[-1]:
            taken = taken or drawn(screen)
    assert process.wait() == 0
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(taken)
    picture = re.sub("@font-face {.*?}", "", console.export_svg(title="trackmetrics demo"), flags=re.DOTALL)
    with chromium() as browser:
        view = browser.new_page(viewport={"width": 1000, "height": 600})
        view.set_content(picture)
        view.locator("svg").screenshot(path=str(HERE / "live.png"))


def drawn(screen):
    """A screen's letters with their colours."""
    text = Text()
    for row in range(screen.lines):
        for column in range(screen.columns):
            letter = screen.buffer[row][column]
            style = [letter.fg] * (letter.fg != "default") + ["bold"] * letter.bold
            text.append(letter.data, " ".join(style))
        text.append("\n")
    text.rstrip()
    return text


def tutorial(folder):
    """Run the tutorial's Python, and draw the first part of its report."""
    text = (HERE.parent / "tutorial.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    report(Path(folder) / "output", "tutorial.png", height=1120)


def report(folder, picture, height):
    """Draw the first part of the page of a folder's runs."""
    files = [str(file) for file in sorted(Path(folder).glob("*.json"))]
    page = Path(folder) / "report.html"
    subprocess.run([sys.executable, "-m", "trackmetrics.cli", "report", *files, "-o", str(page)], check=True)
    with chromium() as browser:
        view = browser.new_page(viewport={"width": 1160, "height": height}, color_scheme="light")
        view.goto(page.as_uri())
        view.wait_for_timeout(5000)  # the curves are drawn after the rest
        view.screenshot(path=str(HERE / picture))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        live_table(folder)
        report(folder, "report.png", height=1480)
    with tempfile.TemporaryDirectory() as folder:
        tutorial(folder)
