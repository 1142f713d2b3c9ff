"""Two processes that share a training: each one's figures are those of one process on both batches together."""

import json
import subprocess
import sys
import textwrap

import pytest

WORKER = textwrap.dedent(
    """
    import json, math, sys, warnings
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel
    from trackmetrics import Tracker

    rank, meeting = int(sys.argv[1]), sys.argv[2]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(1)

    def batch():
        return torch.randn(6, 4, generator=generator), torch.randint(3, (6,), generator=generator)

    steps = [[batch(), batch()] for _ in range(3)]

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def replicated(model):
        return DistributedDataParallel(model)

    def sharded(model):
        mesh = init_device_mesh("cpu", (2,))
        for part in (model[0], model[2], model):
            fully_shard(part, mesh=mesh)
        return model

    def train(model, part, norms=None):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in steps:
            optimizer.zero_grad()
            for number, (inputs, targets) in enumerate(step):
                model.require_backward_grad_sync = number == 1  # replicas wait with the reduction until the last
                (F.cross_entropy(model(inputs[part]), targets[part]) / 2).backward()
            if norms is not None:
                norms.append(math.sqrt(sum(p.grad.double().pow(2).sum().item() for p in model.parameters())))
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()

    expected = []
    train(build(), slice(None), expected)
    found = {}
    for parallel in (replicated, sharded):
        model = parallel(build())
        with Tracker(parallel.__name__, final_train_accuracy=False) as run, run.epoch():
            train(model, slice(3 * rank, 3 * rank + 3))
        found[parallel.__name__] = run.record.extensions["gradient_norm"]["epochs"][0]
        found[parallel.__name__]["mean"] = run.record.epochs[0].gradient_norm
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps([expected, found]))
    """
)


def test_the_norm_is_that_of_one_process_on_the_whole_batch(tmp_path):
    """Averaged over the replicas, over all the shards, accumulated over two micro-batches and before clipping."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for output, errors in said:
        assert output, errors.decode()
        expected, found = json.loads(output)
        assert list(found) == ["replicated", "sharded"]
        for summary in found.values():
            assert summary["steps"] == 3
            assert summary["mean"] == pytest.approx(sum(expected) / 3, rel=1e-6)
            assert [summary[key] for key in ("min", "median", "max")] == pytest.approx(sorted(expected), rel=1e-6)
