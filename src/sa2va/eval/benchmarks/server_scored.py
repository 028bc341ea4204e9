"""Benchmarks scored by a server: a zip of black-and-white PNGs per video, expression and frame."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from sa2va.atomic import replacing
from sa2va.data.annotations.referring_video import RvosExpression, RvosVideo
from sa2va.eval.benchmark import Expected, Prediction, Scores
from sa2va.eval.benchmarks.file_benchmark import empty_mask, first_mask
from sa2va.eval.benchmarks.video_segmentation import ReferringVideos
from sa2va.masks.mask import Mask, Size


class ServerVideos(ReferringVideos):
    """Expressions about videos that only a server can score.

    Args:
        folder: what the zip's paths start with, e.g. ``"Annotations/"``; "" for none. server: where it is handed in.
    """

    submission = True

    def __init__(self, name: str, protocol: str, videos: Sequence[RvosVideo], folder: str, server: str):
        super().__init__(name, protocol, "segment", videos)
        self.folder, self.server = folder, server

    def score(self, predictions: Mapping[str, Prediction]) -> Scores:
        """Not possible here: always ValueError."""
        raise ValueError(f"{self.name} has no public masks: pack the predictions and hand the zip in at {self.server}")

    def count(self, predictions: Mapping[str, Prediction]) -> Scores:
        """As ``score``."""
        return self.score(predictions)

    def expected(self, query_id: str) -> Expected:
        """Nothing is known. ValueError for an unknown query."""
        self.find(query_id)
        return Expected()

    def pack(self, predictions: Mapping[str, Prediction], path: Path) -> Path:
        """Write the zip whole or not at all, and check it against the expressions.

        The same predictions give the same bytes.

        Raises:
            ValueError: predictions are missing, or were made with other frames.
        """
        self.require(predictions)
        with replacing(Path(path)) as temporary:
            with zipfile.ZipFile(temporary, "w") as archive, ThreadPoolExecutor() as pool:
                for video, expression in _asked(self.entries):
                    prediction = predictions[f"{self.name}/{video.id}/{expression.id}"]
                    count = len(video.frames)
                    masks = first_mask(prediction, video.size, count) or (empty_mask(video.size),) * count
                    names = _names(self.folder, video, expression)
                    for name, content in zip(names, pool.map(_png, masks), strict=True):
                        archive.writestr(zipfile.ZipInfo(name), content)
            check_submission(temporary, self.entries, self.folder)
        return Path(path)


def check_submission(path: Path, videos: Sequence[RvosVideo], folder: str) -> None:
    """Check a zip as the server will read it.

    Every frame of every expression of every video must be there and nothing else, an 8-bit grey PNG of the video's size
    that holds 0 and 255 only.

    Args:
        videos: of the expression file. folder: what paths start with.

    Raises:
        ValueError: the zip is damaged, lacks a file, has one too many, or one is not as it must be; it is named.
    """
    expected = {name: video.size for video, expression in _asked(videos) for name in _names(folder, video, expression)}
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            wrong = sorted(set(expected).symmetric_difference(names))
            if wrong or len(names) != len(expected):
                raise ValueError(f"it has {len(names)} files for {len(expected)} frames, see {wrong[:3] or names[-1]}")
            for name, size in expected.items():
                _check_png(name, archive.read(name), size)
    except (zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{path} is no valid submission: {error}") from error


def _asked(videos: Sequence[RvosVideo]) -> Iterator[tuple[RvosVideo, RvosExpression]]:
    return ((video, expression) for video in videos for expression in video.expressions)


def _names(folder: str, video: RvosVideo, expression: RvosExpression) -> list[str]:
    return [f"{folder}{video.id}/{expression.id}/{frame.stem}.png" for frame in video.frames]


@lru_cache(maxsize=16)  # Objects come and go: many masks of a submission are the same, empty one.
def _png(mask: Mask) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask.array.astype(np.uint8) * 255).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _check_png(name: str, content: bytes, size: Size) -> None:
    try:
        with Image.open(io.BytesIO(content)) as image:
            kind, values = (image.format, image.mode, (image.height, image.width)), image.getcolors()
    except OSError as error:
        raise ValueError(f"{name} is not a picture: {error}") from error
    if kind != ("PNG", "L", size) or not {value for _, value in values or ()} <= {0, 255}:
        raise ValueError(f"{name} must be an 8-bit grey PNG of {size} (h, w) with 0 and 255 only, got {kind}")
