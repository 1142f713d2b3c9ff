"""What an epoch's end costs as the ranks of a distributed training grow in number.

    python tests/benchmarks/ranks.py
    python tests/benchmarks/ranks.py --ranks 1 2 4 --epochs 200

Each rank trains a small model under DistributedDataParallel (gloo, on the CPU) for some epochs of one step. Measured is
leaving the epoch's block: the ranks' figures put together, the dev set evaluated in parts, the file saved. The time on
the clock includes waiting for the others, of which more run than there may be processors; CPU time doesn't. Messages
to the store and the bytes in them are counted on rank 0 and on the last rank; looks while a rank waits aren't messages
that anything needs, and stand apart.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

WAITING = ("check", "add 0")


class CountingStore:
    """A store that counts what it is asked."""

    def __init__(self, store):
        self.store = store
        self.messages, self.bytes = Counter(), 0

    def _count(self, call, *texts):
        self.messages[call] += 1
        self.bytes += sum(len(text) for text in texts)

    def set(self, key, value):
        self._count("set", key, value)
        self.store.set(key, value)

    def get(self, key):
        value = self.store.get(key)
        self._count("get", key, value)
        return value

    def multi_get(self, keys):
        values = self.store.multi_get(keys)
        self._count("multi_get", *keys, *values)
        return values

    def add(self, key, number):
        self._count("add" if number else "add 0", key if number else "")
        return self.store.add(key, number)

    def compare_set(self, key, expected, value):
        found = self.store.compare_set(key, expected, value)
        self._count("compare_set", key, expected, value, found)
        return found

    def check(self, keys):
        self._count("check")
        return self.store.check(keys)

    def delete_key(self, key):
        self._count("delete_key", key)
        return self.store.delete_key(key)


def measure(epochs):
    """One rank: what leaving each epoch's block takes, and what it says to the store."""
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from torch.nn.parallel import DistributedDataParallel

    from trackmetrics import Tracker

    torch.set_num_threads(1)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        dist.init_process_group("gloo")
    inner = torch.nn.Linear(4, 3)
    model = DistributedDataParallel(inner) if ranks > 1 else inner
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, targets = torch.randn(8, 4), torch.randint(3, (8,))
    train_set = dev_set = list(zip(inputs, targets, strict=True))
    cpu, clock, store = [], [], None
    with Tracker("ranks", train=train_set, dev=dev_set, progress=False) as run:
        for _ in range(epochs):
            if ranks > 1:
                dist.barrier()
            epoch = run.epoch()
            epoch.__enter__()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            began = time.process_time(), time.perf_counter()
            epoch.__exit__(None, None, None)
            cpu.append(time.process_time() - began[0])
            clock.append(time.perf_counter() - began[1])
            meetings = run._engine._ranks._meetings  # there is none before the first one
            if store is None and meetings is not None:
                store = meetings._store = CountingStore(meetings._store)
        counted = Counter() if store is None else Counter(store.messages), 0 if store is None else store.bytes
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()
    messages = sum(count for call, count in counted[0].items() if call not in WAITING) / (epochs - 1)
    looks = sum(counted[0][call] for call in WAITING) / (epochs - 1)
    result = [statistics.median(cpu) * 1e3, statistics.median(clock) * 1e3, messages, counted[1] / (epochs - 1), looks]
    Path(f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(result))


def measured(ranks, epochs):
    """What rank 0 and the last rank measured."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        subprocess.run(
            [sys.executable, *launcher, str(Path(__file__).absolute()), "--measure", "--epochs", str(epochs)],
            cwd=folder, check=True, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return [json.loads((Path(folder) / f"rank{rank}.json").read_text()) for rank in (0, ranks - 1)]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    options.add_argument("--epochs", type=int, default=100)
    options.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.measure:
        measure(args.epochs)
        return
    print(f"{os.cpu_count()} processors, {args.epochs} epochs, medians; messages and bytes are an epoch's\n")
    print(
        "| ranks | CPU ms, rank 0 | last | clock ms, rank 0 | messages, rank 0 | last | bytes, rank 0 | last | looks |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for ranks in args.ranks:
        first, last = measured(ranks, args.epochs)
        print(
            f"| {ranks} | {first[0]:.2f} | {last[0]:.2f} | {first[1]:.2f} | {first[2]:.1f} | {last[2]:.1f} | "
            f"{first[3]:.0f} | {last[3]:.0f} | {first[4]:.1f} |"
        )


if __name__ == "__main__":
    main()
