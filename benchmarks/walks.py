"""How far a reader walks through the package: files entered and moves between files of five walks.

    python benchmarks/walks.py
    PYTHONPATH=another/checkout/src python benchmarks/walks.py

A file is entered when one of its functions is called; a move is a call from a function of one file of the package to
one of another, whatever code of others lies between. Imports count nothing: each walk is walked once before it is
counted. Threads count on their own.

The walks: a picture to its mask (``Sa2VA.segment``), a video to its mp4, an annotation to a batch, two training steps,
and one row of an evaluation to its score; with the packaged ``tiny`` on drawn data.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

import sa2va
from sa2va import Sa2VA
from sa2va.cli import main
from sa2va.data.check import open_set
from sa2va.data.collate import Collator
from sa2va.data.encode import encode_sample
from sa2va.train.presets import preset
from sa2va.train.run import prepare, train

PACKAGE = str(Path(sa2va.__file__).parent) + "/"


class Steps:
    """Counts the files that are entered and the moves between them, in all threads begun meanwhile."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.moves = 0

    def __enter__(self) -> Steps:
        threading.setprofile(self._follow)
        sys.setprofile(self._follow)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _follow(self, frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(PACKAGE) or frame.f_code.co_name == "<module>":
            return
        self.files.add(file)
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(PACKAGE):
            caller = caller.f_back
        self.moves += caller is not None and caller.f_code.co_filename != file


def drawn(folder: Path) -> tuple[Path, Path, Path]:
    """A picture, a video of eight frames, and a labelled folder of one picture; a red circle beside a blue square."""
    yy, xx = np.mgrid[:128, :128]
    frames = []
    for left in range(16, 64, 6):
        frame = np.full((128, 128, 3), (190, 195, 200), np.uint8)
        frame[78:118, 70:110] = (40, 75, 215)
        frame[(xx - left - 18) ** 2 + (yy - 38) ** 2 <= 18**2] = (215, 35, 40)
        frames.append(frame)
    picture, video, labelled = folder / "picture.png", folder / "video.mp4", folder / "labelled"
    Image.fromarray(frames[0]).save(picture)
    with av.open(str(video), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 128
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    (labelled / "images").mkdir(parents=True)
    Image.fromarray(frames[0]).save(labelled / "images" / "one.png")
    entry = {"image": "one.png", "mask": [[[70, 78, 110, 78, 110, 118, 70, 118]]], "text": ["the blue square"]}
    (labelled / "annotations.json").write_text(json.dumps([entry]))
    return picture, video, labelled


def walks(folder: Path) -> dict[str, Callable[[], Any]]:
    """What is counted, by name; each can be walked again."""
    picture, video, labelled = drawn(folder)
    model = Sa2VA.from_pretrained("tiny", device="cpu")
    tiny = f"{PACKAGE}assets/tiny"
    data = [
        f"model={tiny}",
        f"data={labelled}",
        "steps=2",
        "workers=0",
        "batch_size=1",
        "accumulation=1",
        "report_to=[]",
    ]
    outputs = (folder / f"out{number}" for number in count())

    def batch() -> None:
        source, _ = open_set(labelled, "annotations")
        assert source is not None
        Collator.of(model.processor)([encode_sample(source[0], model.processor)])

    def evaluate() -> None:
        asked = ["eval", "tiny", "synthetic/refer", "--limit", "1", "--device", "cpu", "-o", str(next(outputs))]
        assert main(asked) == 0

    def trained() -> Callable[[], Any]:
        run = prepare(preset("finetune", [*data, f"output={next(outputs)}"]))
        return lambda: train(run)

    runs = iter([trained(), trained()])
    return {
        "picture to mask (`Sa2VA.segment`)": lambda: model.segment(str(picture), "the red circle"),
        "video to mp4 (`track().save`)": lambda: model.track(str(video), "the red circle").save(f"{next(outputs)}.mp4"),
        "annotation to batch": batch,
        "two training steps": lambda: next(runs)(),
        "`sa2va eval` of one row to its score": evaluate,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"| walk | files entered | moves between files |\n|{'---|' * 3}")
    with tempfile.TemporaryDirectory() as place:
        for name, walk in walks(Path(place)).items():
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                walk()
                with Steps() as steps:
                    walk()
            print(f"| {name} | {len(steps.files)} | {steps.moves:,} |", flush=True)
