"""What watching attention costs: CPU time as a ratio to the plain forward, and memory beside it.

    python tests/benchmarks/attention_cost.py

Torch's encoder of 12 layers, width 768, 12 heads, on 512 tokens, on one thread, fused and written by hand; medians of
interleaved forwards. Memory is how far the peak of a final inference is above the plain forward's, in a process each.
"""

import math
import resource
import statistics
import subprocess
import sys
import time
import warnings

import torch
from torch import nn

LAYERS, WIDTH, HEADS, LENGTH = 12, 768, 12, 512
ONE_LAYER = HEADS * LENGTH**2 * 4 / 2**20


class ByHand(nn.Module):
    """Attention as many write it."""

    def __init__(self):
        super().__init__()
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        q, k, v = self.mix(x).view(1, LENGTH, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(x.shape))
        return x + self.feed_forward(x)


def fused():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True), LAYERS)


def by_hand():
    return nn.Sequential(*(ByHand() for _ in range(LAYERS)))


def seconds(work):
    began = time.process_time()
    work()
    return time.process_time() - began


def ratio(model, x, rounds):
    from trackmetrics import capture_attention

    def plain():
        with torch.no_grad():
            model(x)

    plain()
    capture_attention(model, x)
    return statistics.median(seconds(lambda: capture_attention(model, x)) / seconds(plain) for _ in range(rounds))


def peak(build, watched):
    """The process's peak memory in MiB after a plain forward, or after watching one as a run does."""
    from trackmetrics.instruments.inference_attention import attention_of
    from trackmetrics.instruments.undisturbed import undisturbed

    model, x = build().eval(), torch.randn(1, LENGTH, WIDTH)
    with undisturbed(model):
        plain = model(x)
    if watched:
        attention = attention_of(model, model, x, plain, None, "mean")
        assert attention.weights.shape == (LAYERS, LENGTH, LENGTH), attention.fault
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def peak_in_a_process(build, watched):
    done = subprocess.run([sys.executable, __file__, build.__name__, str(watched)], capture_output=True, check=True)
    return float(done.stdout)


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if len(sys.argv) == 3:
        peak({"fused": fused, "by_hand": by_hand}[sys.argv[1]], sys.argv[2] == "True")
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    print(f"{LAYERS} layers, width {WIDTH}, {LENGTH} tokens; all heads of one layer are {ONE_LAYER:.0f} MiB")
    print("| attention | time to the plain forward's | memory above the plain forward's, MiB |")
    print("| --- | --- | --- |")
    for build in (fused, by_hand):
        model, x = build().eval(), torch.randn(1, LENGTH, WIDTH)
        memory = peak_in_a_process(build, True) - peak_in_a_process(build, False)
        print(f"| {build.__name__.replace('_', ' ')} | {ratio(model, x, rounds):.2f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
