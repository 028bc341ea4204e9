"""Track objects through a video, frame by frame: a loop over ``step``, for cameras and files alike.

Objects that were prompted together form a group: they share a memory bank and are one batch in the mask decoder, memory
attention and memory encoder. A frame passes SAM 2's image encoder once, whatever the number of objects and groups.

There are two ways to propagate masks (``mode``):

* ``"released"``, as the reference does: a prompted frame is decoded from the language prompt without memory, its
  prediction goes into memory, and the fine-tuned decoder tracks the object through the other frames.
* ``"consistent"``, as in Sa2VA-i (arXiv 2509.19082): a prompted frame's mask, thresholded at the frame's size, is given
  to SAM 2 as if a user had drawn it, and SAM 2's original decoder tracks it. The fine-tuned decoder is used only for
  what it was trained for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMaskDecoder

from sa2va.inference.memory_policies import MemoryPolicy, ObjectMemory, memory_of
from sa2va.inference.postprocess import MaskPostprocessing, frame_segments
from sa2va.masks.mask import Size
from sa2va.masks.segment import Segment
from sa2va.media.image import load_pixels
from sa2va.model.mask_decoder import (
    FrameFeatures,
    MaskPrediction,
    decode_masks,
    grounding_side,
    language_tokens,
    mask_as_prediction,
    point_tokens,
    upsample_logits,
)
from sa2va.model.network import Sa2VANetwork
from sa2va.processing.conversation import check_text
from sa2va.processing.image_transforms import squashed_frames
from sa2va.processing.regions import box_inside, checked_box
from sa2va.results.answer import Frame
from sa2va.visualization.colors import ObjectColors

Mode = Literal["released", "consistent"]
Pixels = np.ndarray  # uint8 (H, W, 3) RGB


@dataclass
class _Group:
    """Objects that were prompted together."""

    ids: list[int]
    phrases: list[str]
    prompt: Callable[[FrameFeatures, Size], MaskPrediction]  # decodes a prompted frame
    frames_to_prompt: int
    memory: ObjectMemory


class VideoTracker:
    """Tracks objects through frames that arrive one by one.

    Objects may be added before the first frame and at any time later. Memory use does not grow with the number of
    frames. A step that raises leaves the tracker unchanged: fix the cause, or [`remove`] the object it names, and pass
    the frame again. A tracker must not be shared between threads.

    Args:
        model: a loaded [`Sa2VAModel`].
        mode: ``"released"`` or ``"consistent"``; None means the latter if the model has SAM 2's original decoder.
        output: how logits become masks.
        memory: which frames are remembered and read, see [`sa2va.inference.memory_policies`]: ``"recent"``, as in
            SAM 2; ``"near"``, the two nearest prompted and the two last tracked ones, which costs less for many
            objects; ``"distractor-aware"`` or ``"tree"``, for objects that are easily lost or mistaken.
        ask: makes mask prompts from phrases and a frame; [`Sa2VA.stream`] provides it.

    Attributes:
        mode: the mode in use.

    Examples:
        >>> from sa2va import Sa2VA
        >>> from sa2va.media.open import open_media
        >>> model = Sa2VA.from_pretrained("tiny")
        >>> tracker = model.stream("the orange hat")
        >>> for decoded in open_media("shapes.mp4", max_frames=2):
        ...     frame = tracker.step(decoded.pixels, time=decoded.time)
        >>> frame
        Frame(1, time=0.125, segments=1)
        >>> tracker.add(box=(10, 20, 60, 70))  # from the next frame on
        2
    """

    def __init__(
        self,
        model: Sa2VANetwork,
        *,
        mode: Mode | None = None,
        output: MaskPostprocessing = MaskPostprocessing(),  # noqa: B008 -- frozen
        memory: MemoryPolicy = "recent",
        ask: Callable[[Sequence[str], Pixels], list[Tensor]] | None = None,
    ):
        original = model.original_mask_decoder
        if mode not in (None, "released", "consistent"):
            raise ValueError(f"mode must be 'released' or 'consistent'; got {mode!r}")
        self.mode: Mode = mode or ("consistent" if original is not None else "released")
        if self.mode == "consistent" and original is None:
            raise ValueError(
                "mode='consistent' carries masks with SAM 2's original decoder, which this checkpoint lacks; load it "
                "with sam2='facebook/sam2-hiera-large' (--sam2), or Meta's sam2_hiera_large.pt"
            )
        self._memory = memory_of(memory)
        self._model = model
        self._sam2 = model.sam2
        self._side = grounding_side(model.sam2)
        self._tracking_decoder: Sam2VideoMaskDecoder = (
            original if self.mode == "consistent" and original is not None else self._sam2.mask_decoder
        )
        self._output = output
        self._ask = ask
        self._groups: list[_Group] = []
        self._phrases_to_ask: list[tuple[int, str]] = []
        self._ready: dict[int, tuple[Segment, ...]] = {}
        self._colors = ObjectColors()
        self._next_id = 1
        self._next_index = 0

    @property
    def ids(self) -> list[int]:
        """Ids of the tracked objects."""
        return [number for group in self._groups for number in group.ids]

    def add(
        self,
        phrase: str = "",
        *,
        mask: np.ndarray | None = None,
        box: Sequence[float] | None = None,
        points: Sequence[Sequence[float]] | None = None,
        labels: Sequence[int] | None = None,
    ) -> int:
        """Track one more object, from the next frame on.

        Args:
            phrase: names the object. Without mask, box or points, the model looks for it in the next frame.
            mask: bool (H, W), the object in the next frame.
            box: x0, y0, x1, y1 in pixels of the next frame; it is clipped to the frame.
            points: (x, y) in pixels of the next frame.
            labels: for each point, 1 for inside (the default) or 0 for outside.

        A box and points together mark one object.

        Returns:
            the object's id in [`Frame.segments`]. A phrase that the model does not find has no segment.

        Raises:
            ValueError: not exactly one prompt, a blank phrase, or malformed coordinates. The next step raises if they
                do not fit the frame.
        """
        given = [name for name, value in (("mask", mask), ("box", box), ("points", points)) if value is not None]
        if (mask is not None and len(given) > 1) or (not given and not phrase):
            raise ValueError(
                f"an object is named by a phrase, or by a mask, or by a box or points; got {given or 'nothing'}"
            )
        if not isinstance(phrase, str) or (not given and not phrase.strip()):
            raise ValueError(f"a phrase is a non-empty text; got {phrase!r}")
        check_text(phrase, "the phrase")
        if not given:
            if self._ask is None:
                raise ValueError("this tracker cannot read phrases; make it with Sa2VA.stream(), or add by mask or box")
            self._phrases_to_ask.append((self._next_id, phrase))
        elif mask is not None:
            self._start([self._next_id], [phrase], self._mask_prompt(np.asarray(mask)), frames=1)
        else:
            self._start([self._next_id], [phrase], self._click_prompt(box, points, labels), frames=1)
        self._next_id += 1
        return self._next_id - 1

    def add_prompts(self, prompts_KC: Tensor, phrases: Sequence[str], *, frames: int = 1) -> list[int]:
        """Track K objects given by mask prompts of the model.

        Args:
            prompts_KC: the prompts.
            phrases: the name of each.
            frames: number of next frames on which they are decoded from the prompts.

        Returns:
            their ids.
        """
        ids = list(range(self._next_id, self._next_id + len(prompts_KC)))
        self._next_id += len(ids)
        if ids:
            self._start(ids, list(phrases), self._language_prompt(prompts_KC), frames)
        return ids

    def remove(self, number: int) -> None:
        """Stop tracking an object.

        Raises:
            ValueError: no object has this id.
        """
        if any(number == waiting for waiting, _ in self._phrases_to_ask):
            self._phrases_to_ask = [(other, phrase) for other, phrase in self._phrases_to_ask if other != number]
            return
        for group in self._groups:
            if number in group.ids:
                rows = [row for row, other in enumerate(group.ids) if other != number]
                if not rows:
                    self._groups.remove(group)
                    return
                if group.frames_to_prompt:
                    raise ValueError(f"object {number} has not been seen yet; remove it after its first frame")
                group.memory = group.memory.select(torch.tensor(rows, device=self._sam2.device))
                group.ids, group.phrases = [group.ids[row] for row in rows], [group.phrases[row] for row in rows]
                return
        raise ValueError(f"no object has the id {number}; there are {self.ids}")

    @torch.inference_mode()
    def step(self, picture: Pixels | Image.Image, *, time: float | None = None) -> Frame:
        """Track every object in the next frame.

        Args:
            picture: uint8 RGB (H, W, 3), or any other image.
            time: seconds, passed on to the result.

        Raises:
            ValueError: not an image, or an object added since the last frame does not fit this one.
            FloatingPointError: the model computed NaN or infinity.
        """
        pixels = load_pixels(picture)
        with self._undone_on_failure():
            self._ask_phrases(pixels)
            frame = self.step_encoded(self.encode([pixels]), pixels.shape[:2], time=time)
            return replace(frame, segments=self._colors.apply(pixels, frame.segments))

    @contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        """Everything as it was before, when the block raises. Banks and prompts are never changed in place."""
        groups = [replace(group) for group in self._groups]
        waiting, number, index = list(self._phrases_to_ask), self._next_id, self._next_index
        try:
            yield
        except BaseException:
            self._groups, self._phrases_to_ask, self._next_id, self._next_index = groups, waiting, number, index
            raise

    def _ask_phrases(self, pixels: Pixels) -> None:
        """Look for the phrases that wait in a frame, and start to follow what is found."""
        if not self._phrases_to_ask or self._ask is None:
            return
        numbers, phrases = zip(*self._phrases_to_ask, strict=True)
        try:
            found = self._ask(phrases, pixels)
        except ValueError as error:
            waiting = ", ".join(f"{number} ({phrase!r})" for number, phrase in self._phrases_to_ask)
            raise ValueError(f"{error}; these phrases wait, remove(id) takes one back: {waiting}") from error
        for number, phrase, prompts in zip(numbers, phrases, found, strict=True):
            if len(prompts):  # several [SEG] for one phrase are one object more each
                ids = [number, *range(self._next_id, self._next_id + len(prompts) - 1)]
                self._next_id += len(prompts) - 1
                self._start(ids, [phrase] * len(prompts), self._language_prompt(prompts), frames=1)
        self._phrases_to_ask = []

    @torch.inference_mode()
    def encode(self, frames: Sequence[Pixels]) -> FrameFeatures:
        """SAM 2's image features of frames: the one time each passes the image encoder."""
        images = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
        return self._model.encode_frames(squashed_frames(images, self._side))

    @torch.inference_mode()
    def step_encoded(self, features: FrameFeatures, size: Size, *, time: float | None = None) -> Frame:
        """[`step`] over a frame that is encoded already: ``features`` of exactly one frame, ``size`` its height,
        width."""
        segments: list[Segment] = []
        with self._undone_on_failure():
            index, self._next_index = self._next_index, self._next_index + 1
            for group in self._groups:
                if group.frames_to_prompt:
                    prediction = group.prompt(features, size)
                    group.frames_to_prompt -= 1
                    group.memory = group.memory.prompt(self._sam2, features, prediction, index)
                else:
                    prediction, group.memory = group.memory.track(self._sam2, self._tracking_decoder, features, index)
                segments += self._segments(group, prediction, size)
        return Frame(index, time, size, tuple(segments))

    @torch.inference_mode()
    def prompt_frame(self, features: FrameFeatures, size: Size, index: int) -> None:
        """Prompt all groups on a frame that comes later (or earlier); its result is kept until its turn comes.

        Args:
            features: of exactly one frame. index: its place in the video.
        """
        segments: list[Segment] = []
        for group in self._groups:
            prediction = group.prompt(features, size)
            group.frames_to_prompt = 0
            group.memory = group.memory.prompt(self._sam2, features, prediction, index)
            segments += self._segments(group, prediction, size)
        self._ready[index] = tuple(segments)

    @torch.inference_mode()
    def propagate_reverse(self, features: FrameFeatures, size: Size, index: int) -> None:
        """Follow the objects to a frame before the first prompted one; the result is kept until its turn comes."""
        segments: list[Segment] = []
        for group in self._groups:
            prediction, group.memory = group.memory.track(
                self._sam2, self._tracking_decoder, features, index, backward=True
            )
            segments += self._segments(group, prediction, size)
        self._ready[index] = tuple(segments)
        if index == 0:
            self._reset_tracked()

    def _reset_tracked(self) -> None:
        """Forget what was tracked backwards; forward propagation starts from the prompted frames alone."""
        for group in self._groups:
            group.memory = group.memory.without_tracked()

    def is_ready(self, index: int) -> bool:
        """Whether the result of a frame is known already, so that it need not be encoded again."""
        return index in self._ready

    def pop_result(self, size: Size, *, time: float | None = None) -> Frame:
        """[`step`] over a frame whose result is known already."""
        index, self._next_index = self._next_index, self._next_index + 1
        return Frame(index, time, size, self._ready.pop(index))

    def _start(self, ids: list[int], phrases: list[str], prompt: Callable, frames: int) -> None:
        self._groups.append(_Group(ids, phrases, prompt, frames, self._memory))

    def _language_prompt(self, prompts_KC: Tensor) -> Callable[[FrameFeatures, Size], MaskPrediction]:
        tokens = language_tokens(self._sam2, prompts_KC)

        def decode(features: FrameFeatures, size: Size) -> MaskPrediction:
            prediction = decode_masks(self._sam2, self._sam2.mask_decoder, features, tokens)
            if self.mode == "released":
                return prediction
            inside = upsample_logits(prediction.logits, None, size) > 0  # one step, as in Sa2VA-i
            return self._mask_as_prompt(features, inside, prediction)

        return decode

    def _mask_prompt(self, mask: np.ndarray) -> Callable[[FrameFeatures, Size], MaskPrediction]:
        if mask.dtype != np.bool_ or mask.ndim != 2:
            raise ValueError(f"a mask is a bool array (H, W); got {mask.dtype} {mask.shape}")
        inside = torch.from_numpy(mask.copy())[None].to(self._sam2.device)

        def decode(features: FrameFeatures, size: Size) -> MaskPrediction:
            if mask.shape != tuple(size):
                raise ValueError(f"the mask is {mask.shape} but the frame is {tuple(size)} (height, width)")
            return self._mask_as_prompt(features, inside)

        return decode

    def _click_prompt(
        self, box: Sequence[float] | None, points: Sequence[Sequence[float]] | None, labels: Sequence[int] | None
    ) -> Callable[[FrameFeatures, Size], MaskPrediction]:
        corners = None if box is None else checked_box(box)
        clicks, marks = (np.empty((0, 2), np.float32), []) if points is None else _clicks(points, labels)

        def decode(features: FrameFeatures, size: Size) -> MaskPrediction:
            if len(clicks):
                _check_points(clicks, size)
            if corners is None:
                return self._decode_clicks(features, size, clicks, marks)
            inside = np.array(box_inside(corners, size), np.float32).reshape(2, 2)
            return self._decode_clicks(features, size, np.concatenate([inside, clicks]), [*_BOX_CORNERS, *marks])

        return decode

    def _decode_clicks(
        self, features: FrameFeatures, size: Size, points: np.ndarray, labels: list[int]
    ) -> MaskPrediction:
        """One object from clicks (P, 2) in pixels of the frame."""
        scale = self._side / np.array([size[1], size[0]], np.float32)
        device = self._sam2.device
        scaled = torch.from_numpy(points * scale)[None].to(device)
        tokens = point_tokens(self._sam2, scaled, torch.tensor([labels], device=device))
        return decode_masks(self._sam2, self._tracking_decoder, features, tokens)

    def _mask_as_prompt(
        self, features: FrameFeatures, inside_KHW: Tensor, decoded: MaskPrediction | None = None
    ) -> MaskPrediction:
        """Masks given to SAM 2 as if drawn; scores stay those of the decoder that made them."""
        side = self._side
        resized = torch.nn.functional.interpolate(
            inside_KHW[:, None].float(), size=(side, side), mode="bilinear", antialias=True
        )[:, 0]
        drawn = mask_as_prediction(self._sam2, self._tracking_decoder, features, (resized >= 0.5).float())
        if decoded is None:
            return drawn
        return MaskPrediction(drawn.candidates, decoded.iou[:, None], drawn.best, decoded.presence, drawn.pointer)

    def _segments(self, group: _Group, prediction: MaskPrediction, size: Size) -> list[Segment]:
        return frame_segments(
            prediction,
            group.ids,
            group.phrases,
            side=self._side,
            size=(size[0], size[1]),
            output=self._output,
        )


#: How SAM 2 marks clicks: outside, inside, and the two corners of a box.
_OUTSIDE, _INSIDE, _BOX_CORNERS = 0, 1, [2, 3]


def _clicks(points: Sequence[Sequence[float]] | None, labels: Sequence[int] | None) -> tuple[np.ndarray, list[int]]:
    clicks: np.ndarray
    try:
        clicks = np.asarray(points, np.float32)
    except (TypeError, ValueError, OverflowError):
        clicks = np.empty(0)
    if clicks.ndim != 2 or clicks.shape[1] != 2 or not len(clicks) or not np.isfinite(clicks).all():
        raise ValueError(f"points are one or more pairs (x, y) of numbers; got {points}")
    marks = [_INSIDE] * len(clicks) if labels is None else list(labels)
    if len(marks) != len(clicks):
        raise ValueError(f"{len(clicks)} points need as many labels; got {len(marks)}")
    if not all(mark in (_OUTSIDE, _INSIDE) for mark in marks):
        raise ValueError(f"labels are 1 (inside) or 0 (outside); got {marks}")
    return clicks, [int(mark) for mark in marks]


def _check_points(points: np.ndarray, size: Size) -> None:
    """Refuse points that are not pixels of a frame."""
    height, width = size
    shown = [(float(x), float(y)) for x, y in points]
    if points.min() >= 0 and points.max() <= 1 and (points % 1).any():
        raise ValueError(
            f"the points {shown} look like shares of the frame; points are (x, y) in pixels: "
            f"multiply x by {width} and y by {height}"
        )
    if points.min() < 0 or (points >= (width, height)).any():
        raise ValueError(
            f"the points {shown} are not all inside the frame of {height} x {width} pixels (height x width)"
        )
