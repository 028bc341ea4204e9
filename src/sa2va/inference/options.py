"""Options of a request, the same for every method."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict

from sa2va.inference.memory_policies import MemoryPolicy
from sa2va.inference.postprocess import MaskPostprocessing
from sa2va.inference.propagation import KeyFrames
from sa2va.inference.tracker import Mode
from sa2va.masks.mask_ops import Cleanup
from sa2va.model.sampling import GenerationOptions

#: Frames of a video that the language model sees.
KEY_FRAMES = 5
_MASK_FIELDS = tuple(field.name for field in fields(MaskPostprocessing))


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
            two nearest key frames and the two last ones, which is faster with many objects), ``"distractor-aware"`` or
            ``"tree"``; see [`sa2va.inference.memory_policies`].
        generation: how text is generated.
    """

    masks: MaskPostprocessing = field(default_factory=MaskPostprocessing)
    key_frames: KeyFrames | Literal["compressed"] = "uniform"
    num_key_frames: int = KEY_FRAMES
    mode: Mode | None = None
    memory: MemoryPolicy = "recent"
    generation: GenerationOptions = field(default_factory=GenerationOptions)

    @classmethod
    def of(cls, **options: Any) -> InferenceOptions:
        """Build the options from the keywords of [`Options`].

        Raises:
            TypeError: there is no such option.
            ValueError: a value is out of range.
        """
        masks = {name: options.pop(name) for name in _MASK_FIELDS if name in options}
        video = {
            name: options.pop(name) for name in ("key_frames", "num_key_frames", "mode", "memory") if name in options
        }
        return cls(MaskPostprocessing(**masks), **video, generation=GenerationOptions(**options))


class Options(TypedDict, total=False):
    """Keywords of every method of [`Sa2VA`] and [`sa2va.inference.scene.Scene`].

    Attributes:
        threshold: probability above which a pixel belongs to an object, above 0 and below 1; 0.5 if not given.
        probabilities: keep float32 probabilities in every segment.
        cleanup: postprocessing of the masks.
        key_frames, num_key_frames, mode, memory: for videos, see [`InferenceOptions`].
        max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed: see [`GenerationOptions`].
    """

    threshold: float
    probabilities: bool
    cleanup: Cleanup
    key_frames: KeyFrames | Literal["compressed"]
    num_key_frames: int
    mode: Mode | None
    memory: MemoryPolicy
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int | None
