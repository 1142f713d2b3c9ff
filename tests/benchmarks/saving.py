"""What saving costs: the last of many epochs beside the first, and a large final inference beside `json.dump`.

    python tests/benchmarks/saving.py
    python tests/benchmarks/saving.py --epochs 1000 --layers 2 --length 256

Epochs are logged to a run, each saved as any epoch is, once with a loss that is a number and once with NaN, which the
file notes by its place; a save's time is that of leaving the epoch's block, on one thread. The final inference's array
is written by `json.dump(array.tolist(), file, indent=2)` and by the metrics file, in turn; memory is how far each
raises the peak of a process of its own above the array. CPU time counts neither waiting for the disk nor other
programs; the seconds on the clock beside it do.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

FEW = 20  # saves whose median is taken
ROUNDS = 3


def save_times(epochs, loss, folder):
    """CPU and clock seconds of each save."""
    from trackmetrics import Tracker

    warnings.simplefilter("ignore")  # there is no model
    cpu, clock = [], []
    with Tracker("saving", output_dir=folder, progress=False) as run:
        for number in range(1, epochs + 1):
            epoch = run.epoch()
            epoch.__enter__()
            epoch.log(train_loss=loss / number, train_accuracy=0.5, dev_accuracy=0.5, gradient_norm=number / 7)
            began = time.process_time(), time.perf_counter()
            epoch.__exit__(None, None, None)
            cpu.append(time.process_time() - began[0])
            clock.append(time.perf_counter() - began[1])
        path = run.path
    return cpu, clock, Path(path)


def print_save_times(epochs, loss, folder):
    cpu, clock, path = save_times(epochs, loss, folder)
    plain = json.loads(path.read_bytes())
    first, last = (statistics.median(part) for part in (cpu[1 : FEW + 1], cpu[-FEW:]))
    walls = [statistics.median(part) for part in (clock[1 : FEW + 1], clock[-FEW:])]
    dumps = [dump_time({**plain, "epochs": plain["epochs"][:FEW]}, folder), dump_time(plain, folder)]
    print(f"{epochs} epochs of loss {loss} / number, a file of {path.stat().st_size / 1e6:.1f} MB at the end\n")
    print("| a save of | CPU ms | to the first | on the clock ms | json.dump of it, CPU ms |")
    print("| --- | --- | --- | --- | --- |")
    print(f"| the first {FEW} epochs | {first * 1e3:.2f} | 1.0 | {walls[0] * 1e3:.2f} | {dumps[0] * 1e3:.1f} |")
    print(f"| the last {FEW} | {last * 1e3:.2f} | {last / first:.1f} | {walls[1] * 1e3:.2f} | {dumps[1] * 1e3:.1f} |\n")


def dump_time(plain, folder):
    began = time.process_time()
    with open(folder / "dumped.json", "w") as file:
        json.dump(plain, file, indent=2)
    return time.process_time() - began


def attention(layers, length):
    weights = np.random.default_rng(0).random((layers, length, length), dtype=np.float32)
    weights /= weights.sum(-1, keepdims=True)
    return weights


def write_by(way, array, folder):
    """Write the array as a final inference's attention weights, or as a list of lists."""
    if way == "json.dump":
        with open(folder / "dumped.json", "w") as file:
            json.dump({"attention_weights": array.tolist()}, file, indent=2)
        return
    from trackmetrics.metrics_file import MetricsFile
    from trackmetrics.record import FinalInference, Metadata, RunRecord

    record = RunRecord(Metadata("saving", "2026-01-01T00:00:00Z"), (), None, FinalInference("x", None, array), {})
    with MetricsFile(folder, "saving", max_inline_mb=0 if way == "beside the file" else 1e6) as file:
        file.write(record)


def extra_memory(way, layers, length):
    """MiB by which writing raises the peak of a process that holds the array."""
    command = [sys.executable, __file__, "--layers", str(layers), "--length", str(length), "--memory", way]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_extra_memory(way, layers, length):
    with tempfile.TemporaryDirectory() as folder:
        write_by(way, attention(1, 8), Path(folder))  # what is loaded once
        array = attention(layers, length)
        before = peak_memory(anew=True)
        write_by(way, array, Path(folder))
        print((peak_memory() - before) / 1024)


def peak_memory(anew=False):
    """KiB that the process has held at most, from now on with `anew`; as Linux tells it."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        print_extra_memory(given.memory, given.layers, given.length)
        return
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for loss in (1.0, math.nan):
            print_save_times(given.epochs, loss, folder)

        array = attention(given.layers, given.length)
        ways = ("json.dump", "in the file", "beside the file")
        times = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way in ways:
                began = time.process_time()
                write_by(way, array, folder)
                times[way].append(time.process_time() - began)
        text = (folder / "dumped.json").stat().st_size
        shape = "x".join(map(str, array.shape))
        print(f"final inference of {shape} float32, {array.nbytes / 2**20:.0f} MiB; {text / 1e6:.0f} MB by json.dump\n")
        print("| written | CPU s | times as fast as json.dump | memory above the array, MiB |")
        print("| --- | --- | --- | --- |")
        slow = statistics.median(times["json.dump"])
        for way in ways:
            seconds = statistics.median(times[way])
            memory = extra_memory(way, given.layers, given.length)
            print(f"| {way} | {seconds:.2f} | {slow / seconds:.1f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
