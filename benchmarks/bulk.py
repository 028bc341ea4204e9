"""Many pictures: ``sa2va batch`` against a loop over ``segment``, in the same process.

    python benchmarks/bulk.py                       # 256 pictures of 640 x 480, two threads
    python benchmarks/bulk.py --model Sa2VA-4B --device cuda --pictures 1024

Prints pictures a second and the ratio, then where the time of the batch went: what the model computes part by part, how
long it waited for media and for nothing at all, and what reading and writing took beside it. Both must find the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image

from sa2va import Sa2VA, zoo
from sa2va.bulk.answering import Answering, answer_shards
from sa2va.bulk.batch_folder import BatchFolder, BatchSettings
from sa2va.bulk.batch_rows import BatchRow
from sa2va.bulk.sources import read_rows
from sa2va.bulk.worker_pool import ModelSource, WorkerPool
from sa2va.inference.engine import Engine
from sa2va.media.open import open_media
from sa2va.model.generation import RowBatch
from sa2va.tiny.synthetic import SyntheticWorld

#: Methods of the engine whose time is the model's.
_PARTS = {
    "_encode": "vision tower",
    "_read": "reading prompts",
    "_encode_frames": "SAM 2's image encoder",
    "_decode": "mask decoder",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="also measure so many processes, without their start")
    parser.add_argument("--rounds", type=int, default=2, help="of both, in turn: other work on the machine hits both")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sa2va = Sa2VA.from_pretrained(options.model, device=options.device)
    alone = together = shared = 0.0
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        manifest = drawn(Path(scratch), options.pictures)
        rows = list(read_rows(str(manifest), None))
        looped(sa2va, rows[:2])  # what comes only once
        for number in range(options.rounds):
            seconds, found_alone = looped(sa2va, rows)
            alone += seconds
            with measured() as parts:
                answering = partial(answer_shards, sa2va, ask=None, options={})
                seconds, found = batched(answering, manifest, Path(scratch) / f"out-{number}")
            together += seconds
            spent += parts
            if options.workers > 1:
                source = ModelSource(str(zoo.resolve(options.model)), options.device)
                with WorkerPool(source, options.workers, None, {}) as pool:
                    shared += batched(pool.answer, manifest, Path(scratch) / f"shared-{number}")[0]
        started = time.perf_counter()
        for row in rows:
            open_media(row.source).close()
        decoding = options.rounds * (time.perf_counter() - started)
    count = options.rounds * len(rows)
    about = f"{options.model}, {options.device}, {options.threads} threads"
    print(f"{options.rounds} times {len(rows)} pictures, {about}\n")
    print("| | pictures a second | ratio |\n|---|---|---|")
    print(f"| a loop over `segment` | {count / alone:.2f} | 1.0 |")
    print(f"| `sa2va batch` | {count / together:.2f} | {alone / together:.2f} |")
    if options.workers > 1:
        print(f"| `--workers {options.workers}` | {count / shared:.2f} | {alone / shared:.2f} |")
    print()
    print("| part of the batch | ms per picture | share of its time |\n|---|---|---|")
    for name, seconds in spent.most_common():
        print(f"| {name} | {1000 * seconds / count:.2f} | {seconds / together:.1%} |")
    idle = together - sum(spent.values())
    print(f"| the model waits | {1000 * idle / count:.2f} | {idle / together:.1%} |\n")
    print(f"beside it, in other threads: decoding {1000 * decoding / count:.2f} ms per picture on one core")
    differences = sum(one != other for one, other in zip(found_alone, found, strict=True))
    if differences > len(rows) // 50:  # a pixel on the threshold may fall on either side
        print(f"{differences} masks differ", file=sys.stderr)
        return 1
    return 0


def drawn(folder: Path, count: int) -> Path:
    """A manifest of pictures of the drawn world, JPEG files of 640 x 480 pixels, each asked for one thing in it."""
    world = SyntheticWorld("test", size=256, tasks={"refer": 1})
    lines = []
    for number in range(count):
        scene = world.scene(number)
        picture = Image.fromarray(scene.frames[0]).resize((640, 480))
        picture.save(folder / f"{number:05d}.jpg", quality=90)
        look = scene.things[0].look
        lines.append({"image": f"{number:05d}.jpg", "phrase": f"the {look.color} {look.kind}"})
    manifest = folder / "pictures.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def looped(sa2va: Sa2VA, rows: list[BatchRow]) -> tuple[float, list[list[Any]]]:
    """Seconds, and the masks found in each picture."""
    started = time.perf_counter()
    found = []
    for row in rows:
        assert row.ask is not None
        (answer,) = sa2va.segment(row.source, row.ask.phrases)  # type: ignore[misc]
        found.append([segment.mask.rle for segment in answer.segments])
    return time.perf_counter() - started, found


def batched(answering: Answering, manifest: Path, out: Path) -> tuple[float, list[list[Any]]]:
    """The same of the whole batch, from reading the manifest to the last shard on disk."""
    started = time.perf_counter()
    folder = BatchFolder.start(
        out, BatchSettings(str(manifest), "model", None, {}), read_rows(str(manifest), None), rows_per_shard=16
    )
    for number, records in answering(folder.shards(folder.missing())):
        folder.write(number, records)
    seconds = time.perf_counter() - started
    return seconds, [[one["masks"][0] for one in record["segments"]] for record in folder.records()]


@contextmanager
def measured() -> Iterator[Counter[str]]:
    """Seconds by part of the model, added up while the block runs."""
    spent: Counter[str] = Counter()

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                spent[name] += time.perf_counter() - started

        return call

    with ExitStack() as stack:
        for method, name in _PARTS.items():
            stack.enter_context(patch.object(Engine, method, timed(getattr(Engine, method), name)))
        stack.enter_context(patch.object(RowBatch, "step", timed(RowBatch.step, "writing text")))
        yield spent


if __name__ == "__main__":
    sys.exit(main())
