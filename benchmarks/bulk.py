"""Many pictures: ``sa2va batch`` against a loop over ``segment``, in the same process.

    python benchmarks/bulk.py                       # 256 pictures of 640 x 480, two threads
    python benchmarks/bulk.py --model Sa2VA-4B --device cuda --pictures 1024

Prints pictures a second and the ratio, then where the time of the batch went: what the model computes part by part, how
long it waited for media and for nothing at all, and what reading and writing took beside it. Both must find the same.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image

from sa2va import Sa2VA
from sa2va.bulk.answering import answer_shards
from sa2va.bulk.batch_folder import BatchFolder, BatchSettings
from sa2va.bulk.batch_rows import Ask
from sa2va.bulk.finishing import finish
from sa2va.bulk.sources import read_rows
from sa2va.inference.engine import Engine
from sa2va.media.open import open_media
from sa2va.model.row_batch import RowBatch
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
    parser.add_argument("--phrase", default="the red car")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sa2va = Sa2VA.from_pretrained(options.model, device=options.device)
    with tempfile.TemporaryDirectory() as scratch:
        pictures = drawn(Path(scratch) / "pictures", options.pictures)
        sa2va.segment(pictures[0], options.phrase)  # what comes only once
        alone, found_alone = looped(sa2va, pictures, options.phrase)
        with measured() as spent:
            together, found = batched(sa2va, Path(scratch), options.phrase)
        started = time.perf_counter()
        for path in pictures:
            open_media(path).close()
        decoding = time.perf_counter() - started
    count = len(pictures)
    print(f"{count} pictures, {options.model}, {options.device}, {options.threads} threads\n")
    print("| | pictures a second | ratio |\n|---|---|---|")
    print(f"| a loop over `segment` | {count / alone:.2f} | 1.0 |")
    print(f"| `sa2va batch` | {count / together:.2f} | {alone / together:.2f} |\n")
    print("| part of the batch | ms per picture | share of its time |\n|---|---|---|")
    for name, seconds in spent.most_common():
        print(f"| {name} | {1000 * seconds / count:.2f} | {seconds / together:.1%} |")
    idle = together - sum(spent.values())
    print(f"| the model waits | {1000 * idle / count:.2f} | {idle / together:.1%} |\n")
    print(f"beside it, in other threads: decoding {1000 * decoding / count:.2f} ms per picture on one core")
    differences = sum(one != other for one, other in zip(found_alone, found, strict=True))
    if differences > count // 50:  # a pixel on the threshold may fall on either side
        print(f"{differences} masks differ", file=sys.stderr)
        return 1
    return 0


def drawn(folder: Path, count: int) -> list[Path]:
    """Pictures of the drawn world as JPEG files of 640 x 480 pixels."""
    folder.mkdir()
    world = SyntheticWorld("test", size=256, tasks={"refer": 1})
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(world[number % 64].picture(0)).resize((640, 480)).save(path, quality=90)
    return paths


def looped(sa2va: Sa2VA, pictures: list[Path], phrase: str) -> tuple[float, list[list[Any]]]:
    """Seconds, and the masks found in each picture."""
    started = time.perf_counter()
    found = []
    for path in pictures:
        (answer,) = sa2va.segment(path, [phrase])  # type: ignore[misc]
        found.append([segment.mask.rle for segment in answer.segments])
    return time.perf_counter() - started, found


def batched(sa2va: Sa2VA, scratch: Path, phrase: str) -> tuple[float, list[list[Any]]]:
    """The same of the whole batch, from listing the folder to ``answers.jsonl``."""
    started = time.perf_counter()
    ask, source = Ask((phrase,)), str(scratch / "pictures")
    folder = BatchFolder.start(scratch / "out", BatchSettings(source, "model", ask, {}), read_rows(source, ask))
    for number, records in answer_shards(sa2va, folder.shards(folder.missing()), ask, {}):
        folder.write(number, records)
    answering = time.perf_counter() - started
    finish(folder, ["jsonl"], overlays=False, run={})
    return answering, [[one["masks"][0] for one in record["segments"]] for record in folder.records()]


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
