"""What importing trackmetrics takes: CPU time, where torch isn't loaded yet and where it is.

    python tests/benchmarks/import_time.py

Each import is timed inside of a fresh interpreter, so that only it is counted. The names at the package's root are
loaded when they are first used; so what is timed is the line that a user writes: `import trackmetrics` alone takes
less. What the first run then loads is shown beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field

LINE = "from trackmetrics import tracked_training, tracker"


@dataclass
class Import:
    """What is loaded before, what is timed, how long it may take, and how long it took (milliseconds)."""

    name: str
    before: str
    timed: str
    limit: str
    took: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Time it once more."""
        code = f"{self.before}\nfrom time import process_time\nbegan = process_time()\n{self.timed}\n"
        code += "print(1000 * (process_time() - began))"
        # As pip leaves an installed package: compiled.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
        self.took.append(float(done.stdout))


def main() -> None:
    """Time each import in turn, and print a table."""
    parser = argparse.ArgumentParser(description="CPU time of importing trackmetrics.")
    parser.add_argument("--rounds", type=int, default=15, help="how often each import is timed (default 15)")
    rounds = parser.parse_args().rounds
    imports = [
        Import("imported before torch", "", LINE, "150 ms"),
        Import("imported after torch", "import torch", LINE, "50 ms"),
        Import("the first run, after both", f"import torch\n{LINE}", "from trackmetrics.engine import Engine", ""),
    ]
    for _ in range(rounds):
        for item in imports:
            item.measure()
    print(f"Python {sys.version.split()[0]}, {rounds} rounds, CPU time of `{LINE}`\n")
    print("| trackmetrics | median | middle half | at most |\n| --- | --- | --- | --- |")
    for item in imports:
        took = item.took
        low, median, high = statistics.quantiles(took, n=4, method="inclusive") if len(took) > 1 else took * 3
        print(f"| {item.name} | {median:.0f} ms | {low:.0f} to {high:.0f} ms | {item.limit} |")


if __name__ == "__main__":
    main()
