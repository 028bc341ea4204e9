"""Peak host memory of loading a checkpoint, as a ratio to the bytes of its weights in the dtype asked for.

    python benchmarks/loading.py [--megabytes 800] [--folder KEEP_HERE]

A random checkpoint in the released layout is written (float32, sharded, its query, key and value matrices fused as the
releases have them) and loaded in a fresh process per dtype. Resident memory is sampled while the model loads and while
every weight is read once, so weights that are mapped from the file count as much as copied ones. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOAD = """
import sys, torch
sys.path.insert(0, {here!r})
from loading import measured
from sa2va import Sa2VAModel
from sa2va.checkpoint.loading import expected_shapes, open_checkpoint
expected_shapes(open_checkpoint({folder!r}).config)  # imports what loading needs; it is no part of the weights
with measured() as peak:
    model = Sa2VAModel.from_pretrained({folder!r}, dtype=getattr(torch, {dtype!r}))
    with torch.inference_mode():
        sum(float(weight.sum()) for weight in model.parameters())
weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
print(peak(), weights)
"""


def resident() -> int:
    """Bytes this process holds in memory, mapped files included; a page that is mapped twice counts once (PSS)."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1]) * 1024


@contextmanager
def measured(interval: float = 0.005) -> Iterator[Callable[[], int]]:
    """Sample resident memory meanwhile; gives a function that returns the peak above where it began, in bytes."""
    start, samples, done = resident(), [0], threading.Event()

    def sample() -> None:
        while not done.wait(interval):
            samples.append(resident())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: max(samples) - start
    finally:
        samples.append(resident())
        done.set()
        thread.join()


def write_random_checkpoint(folder: Path, megabytes: int) -> None:
    """A checkpoint of about this size in float32: a wide, shallow language model beside small towers."""
    import torch

    from sa2va.checkpoint.conversion import write_tensors
    from sa2va.checkpoint.files import LazyTensor
    from sa2va.checkpoint.loading import expected_shapes, released_rules, to_released
    from sa2va.checkpoint.released_config import config_to_released
    from sa2va.model.configuration import Sa2VAConfig, sam2_config

    width, layers = 1024, max(1, round(megabytes * 2**20 / 4 / 13.5e6))
    vision = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 2}
    text = {"model_type": "llama", "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    text |= {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 4096, "head_dim": 128}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    vlm = {"model_type": "internvl", "vision_config": vision, "text_config": text, "tie_word_embeddings": False}
    small = sam2_config(
        image_size=128,
        embed_dim=16,
        num_heads=1,
        blocks=(1, 1, 1, 1),
        global_blocks=(),
        windows=(8, 4, 4, 2),
        width=128,
    )
    config = Sa2VAConfig(vlm_config=vlm, sam2_config=small, template="internlm2_chat", seg_token_id=4091)

    def random(shape: tuple[int, ...]) -> LazyTensor:
        return LazyTensor(shape, torch.float32, lambda: torch.rand(shape).sub_(0.5).div_(max(1, shape[-1])))

    native = {name: random(shape) for name, shape in expected_shapes(config).items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_to_released(config)))
    write_tensors(folder, to_released(native, released_rules(config)), max_shard_bytes=200 * 2**20)


def measure(folder: Path, dtype: str) -> tuple[int, int]:
    """Peak bytes above the start, and bytes of the weights, of loading a folder in a process of its own."""
    script = LOAD.format(here=str(Path(__file__).parent), folder=str(folder), dtype=dtype)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    peak, weights = result.stdout.split()[-2:]
    return int(peak), int(weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=800, help="size of the weights in float32")
    parser.add_argument("--folder", type=Path, help="write the checkpoint here and keep it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch) / "checkpoint"
        write_random_checkpoint(folder, arguments.megabytes)
        for dtype in ("float32", "bfloat16"):
            peak, weights = measure(folder, dtype)
            print(f"float32 -> {dtype:8}  weights {weights / 2**20:6.0f} MiB  peak {peak / 2**20:6.0f} MiB", end="  ")
            print(f"ratio {peak / weights:.2f}")


if __name__ == "__main__":
    main()
