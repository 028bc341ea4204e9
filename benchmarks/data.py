"""Training data: what a worker delivers of each source, where its time goes, and whether a step is kept fed.

    python benchmarks/data.py                   # miniatures of 480 x 640 pixels; about a minute of CPU time
    python benchmarks/data.py --data ./data     # the sets in a folder
    python benchmarks/data.py --device cuda     # the training step on a GPU

For every source: read (annotations, and masks from run lengths or polygons; or drawing a scene), decode (pictures, or
frames of a file by seeking), encode (resized pixels, tokens, targets) and collate (a batch of two), at the sizes of the
released models and at those of ``tiny``. For files of video, seeking beside decoding them whole. Then what real workers
deliver, beside a training step of ``tiny``. Times are CPU time, which other programs on the machine change little.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from sa2va.data.check import open_set, present_sets
from sa2va.data.collate import Collator
from sa2va.data.encode import Encoded, EncodeOptions, encode_sample
from sa2va.data.mixture import EncodedDataset, MixtureEntry, MixtureOrder, Source
from sa2va.data.sample import Sample
from sa2va.media.video_file import VideoFile
from sa2va.model.types import Batch
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.processing.processor_settings import ProcessorSettings
from sa2va.tiny.curriculum import tiny
from sa2va.tiny.random_model import tiny_config, tiny_model, tiny_tokenizer
from sa2va.tiny.synthetic import SyntheticWorld
from sa2va.train.config import TrainConfig
from sa2va.train.losses import text_loss
from sa2va.train.trainable import make_trainable

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from miniatures.videos import write_mevis, write_ref_sav, write_video_qa

PARTS = ("read", "decode", "encode", "collate")
#: Samples of a batch: of fine-tuning at the released sizes, and of the step of ``tiny``.
BATCH, TINY_BATCH = 2, 4
#: CPU seconds for which the workers of a source run.
FEEDING_SECONDS = 4.0
#: Of the mp4 files. ffmpeg puts 250 frames between key frames by default, and then seeking saves little in short clips.
ENCODING = {"key_every": 24, "crf": 23}


# --- data -------------------------------------------------------------------------------------------------------------


def write_miniatures(root: Path) -> None:
    """Sets in their layouts, with pictures of a usual size."""
    write_pictures(root)
    write_mevis(root, scale=10)
    write_ref_sav(root, annotated=30, scale=10, **ENCODING)
    write_video_qa(root, frames=120, scale=10, **ENCODING)


def write_pictures(root: Path) -> None:
    """Own pictures with polygons: 8 of 480 x 640, three objects each."""
    rng, entries = np.random.default_rng(0), []
    (root / "images").mkdir(parents=True)
    for number in range(8):
        coarse = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((640, 480)).save(root / "images" / f"{number}.jpg")
        turns = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        outline = np.stack([200 + 90 * np.cos(turns), 200 + 90 * np.sin(turns)], axis=1)
        polygons = [[(outline + shift).ravel().round(1).tolist()] for shift in (0, 50, 150)]
        entries.append({"image": f"{number}.jpg", "mask": polygons, "text": ["a disc", "another", "the last"]})
    (root / "annotations.json").write_text(json.dumps(entries))


def open_sources(root: Path) -> dict[str, Source]:
    sources: dict[str, Source] = {
        "synthetic picture": SyntheticWorld("train"),
        "synthetic clip": SyntheticWorld("train", frames=5),
    }
    for name in present_sets(root):
        source, problems = open_set(root, name)
        for problem in problems:
            print(f"# {problem}", file=sys.stderr)
        if source is not None:
            sources[name] = source
    return sources


def make_processor(*, released: bool) -> Sa2VAProcessor:
    """For the sizes of ``tiny``; or of the released InternVL models, up to 13 tiles, with the tokenizer of ``tiny``."""
    tokenizer = tiny_tokenizer()
    settings = ProcessorSettings.of(tiny_config(tokenizer))
    if released:
        settings = replace(settings, tile_side=448, tokens_per_tile=256, max_tiles=12, grounding_side=1024)
    return Sa2VAProcessor(tokenizer, settings)


# --- one worker -------------------------------------------------------------------------------------------------------


def seconds(run: Callable[[], Any], repeats: int = 2) -> float:
    """CPU seconds of the fastest of a few runs."""
    return min(_cpu_seconds(run) for _ in range(repeats))


def _cpu_seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def time_parts(source: Source, processor: Sa2VAProcessor, options: EncodeOptions, most: int) -> dict[str, float]:
    """CPU seconds of one sample in each part, the mean over a few samples."""
    indices = range(min(most, len(source)))
    collate = Collator.of(processor)
    total = dict.fromkeys(PARTS, 0.0)
    for index in indices:
        total["read"] += seconds(partial(source.__getitem__, index))
        total["decode"] += min(_cpu_seconds(source[index].pictures) for _ in range(2))  # a sample keeps its frames
        sample = source[index]
        loaded = replace(sample, frames=sample.pictures())
        total["encode"] += seconds(partial(encode_sample, loaded, processor, options))
        encoded = encode_sample(loaded, processor, options)
        total["collate"] += seconds(partial(collate, [encoded] * BATCH)) / BATCH
    return {part: spent / len(indices) for part, spent in total.items()}


def print_parts(sources: dict[str, Source], processor: Sa2VAProcessor, options: EncodeOptions, most: int) -> None:
    sides = f"tiles of {processor.tile_side}, SAM 2's picture of {processor.grounding_side} pixels"
    print(f"\n## One worker: {sides}\n")
    print("| source | samples/s of a worker | read | decode | encode | collate | most time |")
    print("|---|---|---|---|---|---|---|")
    for name, source in sources.items():
        parts = time_parts(source, processor, options, most)
        whole = sum(parts.values())
        columns = " | ".join(f"{1000 * spent:.1f} ms" for spent in parts.values())
        slowest = max(parts, key=lambda part: parts[part])
        print(f"| {name} | {1 / whole:.1f} | {columns} | {slowest} {parts[slowest] / whole:.0%} |", flush=True)


def print_seeking(root: Path) -> None:
    """Five frames by seeking, spread over each file, against decoding all of it."""
    files = sorted(root.glob("video_datas/**/*.mp4"))[:2]
    if files:
        print("\n## Seeking\n\n| file | frames | five by seeking | all of them | ratio |\n|---|---|---|---|---|")
    for path in files:
        video = VideoFile(path, threads=1)
        indices = [video.frame_count * place // 5 for place in range(5)]
        seeking = seconds(lambda: VideoFile(path, threads=1).read(indices))  # noqa: B023
        whole = seconds(lambda: sum(1 for _ in VideoFile(path, threads=1)))  # noqa: B023
        print(f"| {path.name} | {video.frame_count} | {seeking:.3f} s | {whole:.3f} s | {whole / seeking:.1f}x |")


# --- workers beside a step --------------------------------------------------------------------------------------------


class Delivery(NamedTuple):
    """What a loader gave: its first batch, samples per second of wall time, CPU seconds of its workers per sample."""

    batch: Batch
    rate: float
    cost: float


def deliver(source: Source, processor: Sa2VAProcessor, options: EncodeOptions, workers: int) -> Delivery:
    """Run a loader's workers for some seconds; that they had to start first counts, too."""
    expected = sum(time_parts(source, processor, options, 2).values())
    samples = TINY_BATCH * max(2 * workers, round(FEEDING_SECONDS / expected / TINY_BATCH))
    encode = partial(_encode, processor=processor, options=options)
    dataset = EncodedDataset([MixtureEntry("source", source)], encode, seed=0, workers=workers)
    order = MixtureOrder(dataset.parts, batch_size=TINY_BATCH, length=samples, seed=0)
    loader = DataLoader(
        dataset, batch_size=TINY_BATCH, sampler=order, num_workers=workers, collate_fn=Collator.of(processor)
    )
    kept, start, before = None, time.perf_counter(), _workers_cpu()
    for batch in loader:
        kept = kept or batch
    assert kept is not None
    return Delivery(kept, samples / (time.perf_counter() - start), (_workers_cpu() - before) / samples)


def _encode(sample: Sample, _: np.random.Generator, *, processor: Sa2VAProcessor, options: EncodeOptions) -> Encoded:
    return encode_sample(sample, processor, options)


def _workers_cpu() -> float:
    """CPU seconds of the processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Step:
    """A training step of ``tiny`` on one batch: forward, backward and update of what its joint stage trains."""

    def __init__(self, config: TrainConfig, device: str):
        self.device = device
        self.model = tiny_model(tiny_tokenizer()).to(device).train()
        make_trainable(self.model, config.trainable)
        self.optimizer = torch.optim.AdamW(p for p in self.model.parameters() if p.requires_grad)

    def __call__(self, batch: Batch) -> None:
        output = self.model(batch.to(self.device), labelled_only=True)
        term = text_loss(output.logits, batch.labels.to(self.device))  # type: ignore[union-attr]
        loss = term.total / term.count
        if output.masks is not None:
            loss = loss + output.masks.candidates.float().square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def operations(self, batch: Batch) -> float:
        """Floating-point operations of one sample."""
        # The fused attention of CPUs is not counted by torch.
        with FlopCounterMode(display=False) as counter, sdpa_kernel([SDPBackend.MATH]):
            self(batch)
        return counter.get_total_flops() / len(batch.input_ids)

    def cost(self, batch: Batch) -> float:
        """Seconds per sample: of a GPU, or of one CPU core."""
        if self.device == "cpu":
            return seconds(partial(self, batch)) / len(batch.input_ids)

        def run() -> float:
            start = time.perf_counter()
            self(batch)
            torch.cuda.synchronize()
            return time.perf_counter() - start

        return min(run() for _ in range(5)) / len(batch.input_ids)


def print_feeding(sources: dict[str, Source], workers: int, device: str, sustained: float) -> None:
    """What workers deliver of each source, at the sizes of ``tiny``, beside what its training step takes in.

    Args:
        device: on which the step is timed. sustained: TFLOP/s that a GPU is assumed to reach in it.
    """
    config = next(stage for stage in tiny() if stage.output.endswith("-joint"))
    processor, step = make_processor(released=False), Step(config, device)
    print(f"\n## {workers} workers beside a training step of tiny (batches of {TINY_BATCH})\n")
    print(
        f"| source | delivered now | with a free core each | step takes in ({device}) | fed | GFLOP of a sample's step "
        f"| a GPU at an assumed {sustained:g} TFLOP/s takes in | fed |\n|---|---|---|---|---|---|---|---|"
    )
    for name, source in sources.items():
        delivery = deliver(source, processor, config.encode, workers)
        free, operations = workers / delivery.cost, step.operations(delivery.batch)
        timed, assumed = 1 / step.cost(delivery.batch), sustained * 1e12 / operations
        print(
            f"| {name} | {delivery.rate:.1f}/s | {free:.1f}/s | {timed:.1f}/s | {free / timed:.1f}x "
            f"| {operations / 1e9:.1f} | {assumed:.1f}/s | {free / assumed:.2f}x |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of data; miniatures when not given")
    parser.add_argument("--samples", type=int, default=4, help="of each source, for the parts")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="on which the training step is timed")
    parser.add_argument("--tflops", type=float, default=2.0, help="that a GPU is assumed to sustain in that step")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in a data loader worker
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.data or Path(scratch)
        if arguments.data is None:
            write_miniatures(root)
        sources = open_sources(root)
        for released in (True, False):
            print_parts(sources, make_processor(released=released), EncodeOptions(), arguments.samples)
        print_seeking(root)
        print_feeding(sources, arguments.workers, arguments.device, arguments.tflops)


if __name__ == "__main__":
    main()
