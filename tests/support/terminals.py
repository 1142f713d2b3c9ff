"""Pseudo-terminals, and what stands on them: written to as a real one, shown by a terminal emulator."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pyte

ENVIRONMENT = {"TERM": "xterm-256color", "LANG": "C.UTF-8"}
OTHERS = ("LC_ALL", "NO_COLOR", "RANK", "JPY_PARENT_PID", "COLUMNS", "LINES")
PATIENCE_SECONDS = 60


class Terminal:
    """A terminal of a size; `stream` is how a process writes to it, `written` all that it was ever told."""

    def __init__(self, columns=80, lines=24):
        self.master, self.slave = pty.openpty()
        os.set_blocking(self.master, False)
        self.screen = pyte.HistoryScreen(columns, lines, history=10_000)
        self._emulator = pyte.ByteStream(self.screen)
        self._set_size(columns, lines)
        self.stream = open(self.slave, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        self.written = b""

    def _set_size(self, columns, lines):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns, lines):
        self.look()
        self.screen.resize(lines, columns)
        self._set_size(columns, lines)

    def look(self):
        """The rows of the screen as they are now, without the empty ones at the end."""
        with contextlib.suppress(BlockingIOError, OSError):
            while told := os.read(self.master, 65536):
                self.written += told
                self._emulator.feed(told)
        return without_end([row.rstrip() for row in self.screen.display])

    @property
    def all_rows(self):
        """Those that were scrolled off the top, and those of the screen above the last one."""
        screen = [row.rstrip() for row in self.look()]
        screen += [""] * (self.screen.lines - len(screen))
        above = ["".join(row[column].data for column in range(self.screen.columns)).rstrip()
                 for row in self.screen.history.top]  # fmt: skip
        return without_end(above + screen[:-1])

    @property
    def last_row(self):
        self.look()
        return self.screen.display[-1].rstrip()

    @property
    def scrolls_whole(self):
        """Whether all of its rows scroll."""
        self.look()
        return self.screen.margins is None or self.screen.margins == (0, self.screen.lines - 1)

    def close(self):
        with contextlib.suppress(OSError):
            self.stream.close()
        for file in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(file)


def without_end(rows):
    while rows and not rows[-1]:
        rows = rows[:-1]
    return rows


class Process:
    """A script in a process of its own whose controlling terminal this is. `step` lets it go on from its `pause`s."""

    def __init__(self, terminal, script, **environment):
        self.terminal = terminal
        said, self._says = os.pipe()
        self._goes, go = os.pipe()
        self._said, self._go = open(said, buffering=1), go  # noqa: SIM115
        kept = {name: value for name, value in os.environ.items() if name not in OTHERS}
        prelude = f"""
import os
def pause(name):
    os.write({self._says}, name.encode() + b"\\n")
    if not os.read({self._goes}, 1):  # the test is over
        os._exit(1)
"""
        self.process = subprocess.Popen(
            [sys.executable, "-c", prelude + script],
            stdin=terminal.slave,
            stdout=terminal.slave,
            stderr=terminal.slave,
            env={**kept, **ENVIRONMENT, **environment},
            start_new_session=True,
            pass_fds=(self._says, self._goes),
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(self._says)

    def until(self, name):
        """Wait for a pause of that name; show the screen then."""
        assert self.until_any() == name, self.terminal.look()
        return self.terminal.look()

    def until_any(self):
        """Wait for a pause; give its name."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not select.select([self._said], [], [], 0.02)[0]:
            self.terminal.look()
            assert time.monotonic() < end, self.terminal.look()
        return self._said.readline().removesuffix("\n")

    def go(self):
        os.write(self._go, b".")

    def press(self, key):
        os.write(self.terminal.master, key)

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)

    def ended(self):
        """Wait for its end; give its exit status."""
        end = time.monotonic() + PATIENCE_SECONDS
        while self.process.poll() is None:
            self.terminal.look()
            time.sleep(0.01)
            assert time.monotonic() < end, self.terminal.look()
        self.terminal.look()
        return self.process.returncode

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._said.close()
        for file in (self._go, self._goes):
            os.close(file)
