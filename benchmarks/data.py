"""Training data: samples per second of each source and worker, where the time goes, and whether a step is kept fed.

    python benchmarks/data.py                                   # miniatures of 480 x 640 pixels
    python benchmarks/data.py --data ./data --sides 448 1024    # the sets in a folder, as released models see them
    python benchmarks/data.py --device cuda                     # the step on a GPU

For every source: read (annotations, and masks from run lengths or polygons), decode (pictures, or frames of a file by
seeking), encode (pixels, tokens, targets) and collate (a batch of two). For files of video, seeking beside decoding
them whole. Then a training step of the tiny model, forward, backward and update, beside what workers deliver.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sa2va.data.check import open_set, present_sets
from sa2va.data.collate import Collator
from sa2va.data.encode import Encoded, EncodeOptions, encode_sample
from sa2va.data.mixture import EncodedDataset, MixtureOrder, Part, Source
from sa2va.data.sample import Sample
from sa2va.data.synthetic import SyntheticWorld
from sa2va.processing.processor import ProcessorSettings, Sa2VAProcessor
from sa2va.processing.video import VideoFile
from sa2va.train.losses import text_loss
from sa2va.train.tiny import tiny_config, tiny_model, tiny_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from miniatures.videos import write_mevis, write_ref_sav, write_video_qa

BATCH = 2
PARTS = ("read", "decode", "encode", "collate")
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


def make_processor(tile_side: int, grounding_side: int) -> Sa2VAProcessor:
    tokenizer = tiny_tokenizer()
    settings = ProcessorSettings.of(tiny_config(tokenizer))
    tokens = (tile_side // 28) ** 2 if tile_side == 448 else settings.tokens_per_tile
    return Sa2VAProcessor(
        tokenizer, replace(settings, tile_side=tile_side, tokens_per_tile=tokens, grounding_side=grounding_side)
    )


# --- measuring --------------------------------------------------------------------------------------------------------


def fastest(run: Callable[[], Any], repeats: int = 2) -> float:
    """Seconds of the fastest of a few runs: what else the machine does only ever adds."""
    return min(_seconds(run) for _ in range(repeats))


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def time_parts(source: Source, processor: Sa2VAProcessor, options: EncodeOptions, most: int) -> dict[str, float]:
    """Seconds of one sample in each part, the mean over a few samples."""
    indices = range(min(most, len(source)))
    collate = Collator.of(processor)
    total = dict.fromkeys(PARTS, 0.0)
    for index in indices:
        total["read"] += fastest(lambda: source[index])  # noqa: B023
        total["decode"] += min(_decoding(source[index]) for _ in range(2))
        sample = source[index]
        loaded = replace(sample, frames=sample.pictures())
        total["encode"] += fastest(partial(encode_sample, loaded, processor, options))
        encoded = encode_sample(loaded, processor, options)
        total["collate"] += fastest(partial(collate, [encoded] * BATCH)) / BATCH
    return {part: seconds / len(indices) for part, seconds in total.items()}


def _decoding(sample: Sample) -> float:
    return _seconds(sample.pictures)


def print_parts(sources: dict[str, Source], processor: Sa2VAProcessor, options: EncodeOptions, most: int) -> None:
    print("| source | samples/s of a worker | read | decode | encode | collate | most time |")
    print("|---|---|---|---|---|---|---|")
    for name, source in sources.items():
        parts = time_parts(source, processor, options, most)
        whole = sum(parts.values())
        columns = " | ".join(f"{1000 * seconds:.1f} ms" for seconds in parts.values())
        slowest = max(parts, key=lambda part: parts[part])
        print(f"| {name} | {1 / whole:.1f} | {columns} | {slowest} {parts[slowest] / whole:.0%} |", flush=True)


def print_seeking(root: Path) -> None:
    """Five frames by seeking, spread over each file, against decoding all of it."""
    files = sorted(root.glob("video_datas/**/*.mp4"))[:3]
    if files:
        print("\n| file | frames | five by seeking | all of them | ratio |\n|---|---|---|---|---|")
    for path in files:
        video = VideoFile(path)
        indices = [video.frame_count * place // 5 for place in range(5)]
        seeking = fastest(lambda: VideoFile(path).read(indices))  # noqa: B023
        whole = fastest(lambda: sum(1 for _ in VideoFile(path)))  # noqa: B023
        print(f"| {path.name} | {video.frame_count} | {seeking:.3f} s | {whole:.3f} s | {whole / seeking:.1f}x |")


def step_seconds(batches: list[Any], device: str) -> float:
    """One training step of the tiny model on prepared batches, without waiting for data."""
    model = tiny_model(tiny_tokenizer()).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters())

    def step(batch: Any) -> None:
        output = model(batch, labelled_only=True)
        term = text_loss(output.logits, batch.labels)
        loss = term.total / term.count
        if output.masks is not None:
            loss = loss + output.masks.candidates.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    moved = [batch.to(device) for batch in batches]
    for batch in moved[:2]:
        step(batch)
    return min(_seconds(lambda: (step(batch), _wait(device))) for batch in moved)  # noqa: B023


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _encode(sample: Sample, _: np.random.Generator, *, processor: Sa2VAProcessor, options: EncodeOptions) -> Encoded:
    return encode_sample(sample, processor, options)


def delivered(loader: DataLoader, skip: int) -> float:
    """Samples per second that come out of a loader once its workers run."""
    batches: Iterator[Any] = iter(loader)
    for _ in range(skip):
        next(batches)
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch.sample_ids)
    return count / (time.perf_counter() - start)


def print_feeding(sources: dict[str, Source], workers: int, device: str, samples: int) -> None:
    """What workers deliver of each source, at the sizes of the tiny model, beside what its training step takes in."""
    processor, options = make_processor(128, 256), EncodeOptions()
    print(
        f"\n| source | {workers} workers deliver | the tiny model's step takes in ({device}) | fed |\n|---|---|---|---|"
    )
    for name, source in sources.items():
        dataset = EncodedDataset(
            [Part(name, source)], partial(_encode, processor=processor, options=options), seed=0, workers=workers
        )
        order = MixtureOrder(dataset.parts, batch_size=BATCH, length=samples, seed=0)
        loader = DataLoader(
            dataset, batch_size=BATCH, sampler=order, num_workers=workers, collate_fn=Collator.of(processor)
        )
        rate = delivered(loader, skip=2 * max(1, workers))
        batches = [batch for _, batch in zip(range(3), loader, strict=False)]
        wanted = BATCH / step_seconds(batches, device)
        print(f"| {name} | {rate:.1f}/s | {wanted:.1f}/s | {rate / wanted:.1f}x |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of data; miniatures when not given")
    parser.add_argument("--sides", type=int, nargs=2, default=(448, 1024), help="of a tile, and of SAM 2's picture")
    parser.add_argument("--samples", type=int, default=4, help="of each source")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="of the training step")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in a data loader worker
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.data or Path(scratch)
        if arguments.data is None:
            write_miniatures(root)
        sources = open_sources(root)
        print(f"## one worker, tiles of {arguments.sides[0]} and SAM 2's picture of {arguments.sides[1]} pixels\n")
        print_parts(sources, make_processor(*arguments.sides), EncodeOptions(), arguments.samples)
        print_seeking(root)
        print_feeding(sources, arguments.workers, arguments.device, 6 * BATCH * max(1, arguments.workers))


if __name__ == "__main__":
    main()
