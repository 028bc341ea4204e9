"""Training through the memory: the clips of a batch together, against one after the other in the same process.

    python benchmarks/clips.py                 # twelve clips of five frames, two threads
    python benchmarks/clips.py --device cuda

SAM 2 of ``tiny``'s size with random weights draws every object from clicks in the first frame and follows it through
the rest, forward and backward, in float32. Prints milliseconds per clip and the ratio; losses must agree.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from sa2va.data.collate import Collator
from sa2va.data.encode import Encoded, EncodeOptions, SampleRejected, encode_clicks
from sa2va.media.frames import first_indices
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.processing.processor_settings import ProcessorSettings
from sa2va.tiny.random_model import tiny_model, tiny_tokenizer
from sa2va.tiny.synthetic import SyntheticWorld

FRAMES = 5
REPEATS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer).to(options.device)
    processor = Sa2VAProcessor(tokenizer, ProcessorSettings.of(model.config))
    clips = encoded_clips(processor, options.clips)
    objects = sum(0 if clip.masks is None else len(clip.masks) for clip in clips)
    together = measured(model, processor, [clips])
    apart = measured(model, processor, [[clip] for clip in clips])
    print(f"{len(clips)} clips of {FRAMES} frames, {objects} objects, {options.threads} threads, {options.device}\n")
    print("| clips | ms per clip | ratio |\n|---|---|---|")
    print(f"| one after the other | {1000 * apart[0] / len(clips):.0f} | 1.0 |")
    print(f"| together | {1000 * together[0] / len(clips):.0f} | {apart[0] / together[0]:.2f} |")
    if not np.isclose(together[1], apart[1], rtol=1e-3):
        print(f"the losses differ: {together[1]} and {apart[1]}", file=sys.stderr)
        return 1
    return 0


def encoded_clips(processor: Sa2VAProcessor, count: int) -> list[Encoded]:
    world, found = SyntheticWorld("train", frames=FRAMES, tasks={"caption": 1.0}), []
    for sample in world:
        try:
            found.append(encode_clicks(sample, processor, np.random.default_rng(0), EncodeOptions(targets="area")))
        except SampleRejected:  # nothing of it to click on
            continue
        if len(found) == count:
            break
    return found


def measured(model: Sa2VAModel, processor: Sa2VAProcessor, batches: Sequence[Sequence[Encoded]]) -> tuple[float, float]:
    """Seconds of the fastest of a few runs over all batches, and the sum of what they drew."""
    collated = [Collator.of(processor)(batch).to(model.device) for batch in batches]
    best, drawn = float("inf"), 0.0
    for _ in range(REPEATS):
        start, drawn = time.perf_counter(), 0.0
        for batch in collated:
            masks = model(batch, prompted=partial(first_indices, n=1)).masks
            loss = masks.logits.sigmoid().sum()
            loss.backward()
            drawn += loss.item()
        best = min(best, time.perf_counter() - start)
        model.zero_grad()
    return best, drawn


if __name__ == "__main__":
    sys.exit(main())
