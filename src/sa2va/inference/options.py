"""Options of a request, the same for every method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from sa2va.inference.memory_policies import MemoryPolicy
from sa2va.masks.mask import Mask
from sa2va.masks.mask_ops import Cleanup
from sa2va.model.generation import GenerationOptions

KeyFrames = Literal["first", "uniform"] | Sequence[int] | np.ndarray | int
#: How masks are propagated through a video, see [`sa2va.inference.tracker`].
Mode = Literal["released", "consistent"]
#: After how many frames, or at cuts, the language model is asked again.
AskEvery = int | Literal["scene"] | None
#: Fewest frames between two questions.
SHORTEST_WINDOW = 2
#: Masks stay as they are.
NO_CLEANUP = Cleanup()
#: How a mask that was found in a picture is refined.
Refinement = Literal["sam", "matting"]
#: Weights of ``refine="matting"``.
MATTING = "hustvl/vitmatte-small-composition-1k"


@dataclass(frozen=True)
class MaskPostprocessing:
    """How logits become the masks of a result.

    Attributes:
        threshold: probability above which a pixel belongs to the object.
        probabilities: keep float32 probabilities next to the masks.
        cleanup: postprocessing of each mask; by default none.

    Raises:
        ValueError: the threshold is not between 0 and 1.
    """

    threshold: float = 0.5
    probabilities: bool = False
    cleanup: Cleanup = NO_CLEANUP

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, Real) or not 0 < self.threshold < 1:
            raise ValueError(f"threshold is a probability above 0 and below 1; got {self.threshold!r}")

    @property
    def cut(self) -> float:
        """The threshold as a logit."""
        return math.log(self.threshold / (1 - self.threshold))

    def mask(self, inside_HW: NDArray[np.bool_]) -> Mask:
        """Clean a bool array (H, W) up and encode it."""
        return Mask.from_array(self.cleanup.apply(inside_HW))


@dataclass(frozen=True)
class InferenceOptions:
    """How a request is answered.

    Attributes:
        masks: how logits become masks.
        key_frames: which frames of a video the language model sees: ``"uniform"`` over the video (measured better),
            ``"first"`` (the reference), frame indices (one, or a list or array), or ``"compressed"`` (SaSaSa2VA
            checkpoints, tracks only).
        num_key_frames: number of uniform or first frames.
        mode: how masks are propagated through a video, ``"released"`` or ``"consistent"``, see
            [`sa2va.inference.tracker`]; None means the one the checkpoint was made for.
        memory: which frames SAM 2 remembers and reads to carry masks on: ``"recent"`` (SAM 2's own), ``"near"`` (the
            two nearest key frames and the last ones, four in all, which is faster with many objects), ``"local"``
            (these, around the object: faster yet, less exact), ``"distractor-aware"`` or ``"tree"``; see
            [`sa2va.inference.memory_policies`].
        ask_every: when a tracked video or stream is shown to the language model again: after so many frames, at
            least 2, at cuts (``"scene"``), or never (None). Key frames are then those of each part.
        check_presence: for phrases, believe in a mask only if the model also says, asked for yes or no, that there is
            such a thing. Phrases that are questions are not checked.
        zoom: look again inside what was found in a picture, with both models; and by tiles where nothing was found in a
            large one. For phrases.
        instances: a phrase about several objects of a picture gives a segment for each of them.
        refine: ``"sam"`` gives box, a point and logits of each mask of a picture to SAM 2's original decoder;
            ``"matting"`` adds the opacity of each object's edge, ``Segment.alpha``, for cut-outs.
        matting: hub id or folder of the VitMatte weights of ``refine="matting"``.
        generation: how text is generated.

    Raises:
        ValueError: ``ask_every`` is out of range, or does not go with ``key_frames``; or there is no such refinement.
    """

    masks: MaskPostprocessing = field(default_factory=MaskPostprocessing)
    key_frames: KeyFrames | Literal["compressed"] = "uniform"
    num_key_frames: int = 5
    mode: Mode | None = None
    memory: MemoryPolicy = "recent"
    ask_every: AskEvery = None
    check_presence: bool = False
    zoom: bool = False
    instances: bool = False
    refine: Refinement | None = None
    matting: str = MATTING
    generation: GenerationOptions = field(default_factory=GenerationOptions)

    def __post_init__(self) -> None:
        if not isinstance(self.check_presence, bool):
            raise ValueError(f"check_presence is True or False; got {self.check_presence!r}")
        named = isinstance(self.key_frames, str)
        if checked_ask_every(self.ask_every) is not None and not (named and self.key_frames in ("uniform", "first")):
            raise ValueError(
                "ask_every shows the language model key frames of each part of the video, so it needs "
                f"key_frames='uniform' or 'first'; got {self.key_frames!r}. Leave one of the two out"
            )
        if self.check_presence and named and self.key_frames == "compressed":
            raise ValueError(
                "check_presence asks about key frames as they are, and key_frames='compressed' shows a hundred in "
                "small pictures; leave one of the two out"
            )
        if self.refine not in (None, "sam", "matting"):
            raise ValueError(f"refine is 'sam' or 'matting'; got {self.refine!r}")

    @property
    def looks_again(self) -> bool:
        """Whether what a phrase has found is looked at again."""
        return self.zoom or self.instances

    @property
    def first_look(self) -> InferenceOptions:
        """The same without what comes after masks are found."""
        return replace(self, zoom=False, instances=False, refine=None if self.refine == "matting" else self.refine)

    def check_looks(self, *, picture: bool, phrases: bool) -> None:
        """Refuse second looks that a request has no use for.

        Raises:
            ValueError: there is no picture to look at again, or no phrase to ask for again.
        """
        if not picture and (self.looks_again or self.refine):
            raise ValueError(
                "zoom, instances and refine look at one picture again; ask about frames of a video one by one: "
                "model.segment(frame, phrase, ...)"
            )
        if not phrases and self.looks_again:
            raise ValueError("zoom and instances ask for a phrase again; use segment(media, phrases, ...)")

    @classmethod
    def of(cls, **options: Any) -> InferenceOptions:
        """Build the options from the keywords of [`Options`].

        Raises:
            TypeError: there is no such option.
            ValueError: a value is out of range.
        """
        masks = {name: options.pop(name) for name in _MASK_FIELDS if name in options}
        own = {name: options.pop(name) for name in _OWN_FIELDS if name in options}
        return cls(MaskPostprocessing(**masks), **own, generation=GenerationOptions(**options))


_MASK_FIELDS = tuple(field.name for field in fields(MaskPostprocessing))
_OWN_FIELDS = tuple(field.name for field in fields(InferenceOptions) if field.name not in ("masks", "generation"))


class Options(TypedDict, total=False):
    """Keywords of every method of [`Sa2VA`] and [`sa2va.inference.scene.Scene`].

    Attributes:
        threshold: probability above which a pixel belongs to an object, above 0 and below 1; 0.5 if not given.
        probabilities: keep float32 probabilities in every segment.
        cleanup: postprocessing of the masks.
        key_frames, num_key_frames, mode, memory, ask_every: for videos, see [`InferenceOptions`].
        check_presence: see [`InferenceOptions`].
        zoom, instances, refine, matting: for pictures, see [`InferenceOptions`].
        max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed: see [`GenerationOptions`].
    """

    threshold: float
    probabilities: bool
    cleanup: Cleanup
    key_frames: KeyFrames | Literal["compressed"]
    num_key_frames: int
    mode: Mode | None
    memory: MemoryPolicy
    ask_every: AskEvery
    check_presence: bool
    zoom: bool
    instances: bool
    refine: Refinement | None
    matting: str
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int | None


def checked_ask_every(value: Any) -> AskEvery:
    """The same. ValueError for anything but None, ``"scene"`` or a number of at least [`SHORTEST_WINDOW`] frames."""
    if value is None or value == "scene":
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < SHORTEST_WINDOW:
        raise ValueError(
            f"ask_every is a number of frames of at least {SHORTEST_WINDOW}, 'scene' for cuts, or None; got {value!r}. "
            "To have the language model see every frame, segment them as pictures"
        )
    return value
