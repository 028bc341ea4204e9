"""A step of Muon on all matrices of ``tiny``: this package's, against torch's own in the same process.

    python benchmarks/muon.py                  # two threads
    python benchmarks/muon.py --device cuda

Prints milliseconds per step and the ratio. Where the device is fast in bfloat16 both compute the same, and what is
gained comes from taking all matrices of a shape at once; elsewhere also from float32.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch import nn
from torch.optim import Muon, Optimizer

from sa2va.runtime import fast_bfloat16
from sa2va.tiny.random_model import tiny_model, tiny_tokenizer
from sa2va.train.muon import MuonWithAdamW, is_matrix

STEPS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    model = tiny_model(tiny_tokenizer()).to(device)
    matrices = [parameter for name, parameter in model.named_parameters() if is_matrix(name, parameter)]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    group = {"params": matrices, "lr": 1e-3, "weight_decay": 0.05}
    theirs = measured(Muon([dict(group)], adjust_lr_fn="match_rms_adamw"), matrices)
    ours = measured(MuonWithAdamW([dict(group)], [], (0.9, 0.98)), matrices)
    kind = "bfloat16" if fast_bfloat16(device) else "float32"
    print(f"{len(matrices)} matrices, {options.threads} threads, {device}\n")
    print("| optimizer | ms per step | ratio |\n|---|---|---|")
    print(f"| torch's Muon, bfloat16 | {1000 * theirs:.0f} | 1.0 |")
    print(f"| by shape, {kind} | {1000 * ours:.0f} | {theirs / ours:.1f} |")
    return 0


def measured(optimizer: Optimizer, matrices: list[nn.Parameter]) -> float:
    """Seconds of the fastest of a few steps."""
    best = float("inf")
    for _ in range(STEPS):
        start = time.perf_counter()
        optimizer.step()
        matrices[-1].sum().item()  # the device has finished
        best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    sys.exit(main())
