"""The training sample: every data source yields it, and everything downstream reads it.

A sample has frames (none, one image, or a clip), turns of question and answer, one mask per ``[SEG]`` and, for
questions about marked regions, the regions. Frames may be loaded lazily, so that a source can list and group thousands
of samples without decoding an image. Shapes: F frames, H height, W width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sa2va.model.families import SEG_TOKEN as SEG
from sa2va.results.history import Turn

_REGION = re.compile(r"\bregion(\d+)\b")


@dataclass(frozen=True)
class LazyFrame:
    """An image that is decoded on demand.

    Attributes:
        load: a picklable callable without arguments that returns uint8 RGB (H, W, 3), e.g. a ``functools.partial``.
        size: (height, width) in pixels, known without decoding.
    """

    load: Callable[[], np.ndarray]
    size: tuple[int, int]


FrameLike = np.ndarray | LazyFrame


@dataclass(frozen=True, eq=False)
class Sample:
    """One conversation about an image, a clip, or nothing but text.

    Attributes:
        id: unique within the source; every error about the sample names it.
        frames: uint8 RGB arrays (H, W, 3) or [`LazyFrame`], all of one size. None for text only, one for an image.
        turns: questions and answers in order. Questions contain no ``<image>``.
        masks: bool arrays (F, H, W). ``masks[k]`` belongs to the k-th ``[SEG]``, counted over all answers; in frames
            without the object it is all False.
        video: whether the frames are a clip in time order (it may have only one).
        regions: bool arrays (H, W), which questions call ``region1``, ``region2``, ...; images only.
        source: name of the data source, e.g. ``"refcoco"``.
        tags: one short label per turn for scores by kind of turn, or nothing.
        annotated: bool (masks, F), which frames of which masks are annotated; None if all are. Masks are ignored in
            the other frames.
        extras: inputs of auxiliary losses, each under a name of its own (see [`sa2va.train.auxiliary`]).

    Examples:
        >>> import numpy as np
        >>> from sa2va.data.sample import Sample
        >>> from sa2va.results.history import Turn
        >>> sample = Sample(
        ...     id="dog",
        ...     frames=(np.zeros((4, 6, 3), np.uint8),),
        ...     turns=(Turn("Please segment the dog.", "It is [SEG]."),),
        ...     masks=(np.ones((1, 4, 6), bool),),
        ... )
        >>> sample.validate().seg_count
        1
    """

    id: str
    frames: tuple[FrameLike, ...]
    turns: tuple[Turn, ...]
    masks: tuple[np.ndarray, ...] = ()
    video: bool = False
    regions: tuple[np.ndarray, ...] = ()
    source: str = ""
    tags: tuple[str, ...] = ()
    annotated: np.ndarray | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the frames, known without decoding; None for text only."""
        return frame_size(self.frames[0]) if self.frames else None

    def pictures(self) -> tuple[np.ndarray, ...]:
        """Decode all frames: uint8 (H, W, 3) each. Raises ValueError if a lazy frame is not what it promised to be."""
        return tuple(self.picture(index) for index in range(len(self.frames)))

    def picture(self, index: int) -> np.ndarray:
        """Decode one frame: uint8 (H, W, 3)."""
        frame = self.frames[index]
        if isinstance(frame, LazyFrame):
            picture = frame.load()
            self._expect_picture(picture, f"frame {index}", frame.size)
            return picture
        return frame

    @property
    def seg_count(self) -> int:
        """Number of ``[SEG]`` in all answers."""
        return sum(turn.answer.count(SEG) for turn in self.turns)

    def validate(self) -> Sample:
        """Check the sample without decoding lazy frames and return it.

        Raises:
            ValueError: it is inconsistent; the message names the sample, what was expected and what came.
        """
        if not self.id:
            raise ValueError(f"a sample of source {self.source!r} has an empty id; give every sample a unique name")
        self._check_frames()
        self._check_turns()
        self._check_masks()
        self._check_regions()
        return self

    def _check_frames(self) -> None:
        if not self.video and len(self.frames) > 1:
            self._fail(f"{len(self.frames)} frames but video=False; set video=True or give one frame")
        if self.video and not self.frames:
            self._fail("video=True without frames")
        for index, frame in enumerate(self.frames):
            if isinstance(frame, LazyFrame):
                if frame.size != self.size:
                    self._fail(f"frame {index} has size {frame.size}, frame 0 has {self.size}; sizes must agree")
            else:
                self._expect_picture(frame, f"frame {index}", self.size)

    def _check_turns(self) -> None:
        if not self.turns:
            self._fail("no turns; a sample needs at least one question with its answer")
        for index, turn in enumerate(self.turns):
            if not turn.question.strip() or not turn.answer.strip():
                self._fail(f"turn {index} has an empty question or answer")
            if SEG in turn.question:
                self._fail(f"turn {index} has {SEG} in its question; only answers may carry it")
            if turn.answer.count("<p>") != turn.answer.count("</p>"):
                self._fail(f"turn {index} opens and closes <p> unequally often: {turn.answer!r}")
        if self.tags and len(self.tags) != len(self.turns):
            self._fail(f"{len(self.tags)} tags for {len(self.turns)} turns; give one per turn or none")

    def _check_masks(self) -> None:
        if self.seg_count != len(self.masks):
            self._fail(f"{self.seg_count} {SEG} in the answers but {len(self.masks)} masks; they must pair one to one")
        for index, mask in enumerate(self.masks):
            self._expect_bool(mask, f"mask {index}", (len(self.frames), *(self.size or ())))
        if self.annotated is not None:
            self._expect_bool(self.annotated, "annotated", (len(self.masks), len(self.frames)))
            unknown = np.flatnonzero(~self.annotated.any(axis=1)).tolist()
            if unknown:
                self._fail(f"masks {unknown} are not known in any frame; leave their {SEG} out")

    def _check_regions(self) -> None:
        if not self.regions:
            return
        if self.video or not self.frames:
            self._fail("regions need exactly one picture, and not a clip")
        for index, region in enumerate(self.regions):
            self._expect_bool(region, f"region {index + 1}", self.size or ())
            if not region.any():
                self._fail(f"region {index + 1} is empty; a region must cover at least one pixel")
        if not any("region" in turn.question for turn in self.turns):
            self._fail(f"{len(self.regions)} regions but no question that speaks of a region (region1, region2, ...)")
        for turn in self.turns:
            for number in map(int, _REGION.findall(turn.question)):
                if not 1 <= number <= len(self.regions):
                    self._fail(f"a question names region{number} but there are {len(self.regions)} regions")

    def _expect_picture(self, picture: np.ndarray, name: str, size: tuple[int, int] | None) -> None:
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            self._fail(f"{name} must be uint8 RGB (H, W, 3), got {picture.dtype} {picture.shape}")
        if picture.shape[:2] != size:
            self._fail(f"{name} has size {picture.shape[:2]}, expected {size}; sizes must agree")

    def _expect_bool(self, mask: np.ndarray, name: str, shape: tuple[int, ...]) -> None:
        if mask.dtype != np.bool_:
            self._fail(f"{name} must be bool, got {mask.dtype}; use mask > 0.5 or mask.astype(bool)")
        if mask.shape != shape:
            self._fail(f"{name} has shape {mask.shape}, expected {shape}")

    def _fail(self, problem: str) -> None:
        raise ValueError(f"sample {self.id!r} of source {self.source!r}: {problem}")


def frame_size(frame: FrameLike) -> tuple[int, int]:
    """(height, width) of a frame, known without decoding it."""
    return frame.size if isinstance(frame, LazyFrame) else (frame.shape[0], frame.shape[1])
