"""Track objects through a video, frame by frame: a loop over ``step``, for cameras and files alike.

Objects that were prompted together form a group: they share a memory bank and are one batch in the mask decoder, memory
attention and memory encoder. A frame passes SAM 2's image encoder once, whatever the number of objects and groups.

There are two ways to propagate masks (``mode``):

* ``"released"``, as the reference does: a prompted frame is decoded from the language prompt without memory, its
  prediction goes into memory, and the fine-tuned decoder tracks the object through the other frames.
* ``"consistent"``, as in Sa2VA-i (arXiv 2509.19082): a prompted frame's mask, thresholded at the frame's size, is given
  to SAM 2 as if a user had drawn it, and SAM 2's original decoder tracks it. The fine-tuned decoder is used only for
  what it was trained for. Another model may track it instead, see [`sa2va.model.propagator`].

A clip or stream may also be asked about window by window: what a new answer points at joins the objects that are
followed, see [`VideoTracker.prompt_window`].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sa2va.inference.encoded_frames import EncodedFrames
from sa2va.inference.identity import Sighting, same_objects
from sa2va.inference.memory_policies import MemoryPolicy, ObjectMemory, memory_of
from sa2va.inference.options import AskEvery, MaskPostprocessing, Mode, checked_ask_every
from sa2va.inference.point_prompts import Clicks
from sa2va.inference.postprocess import frame_segments
from sa2va.inference.propagator_memory import PropagatorMemory
from sa2va.masks.mask import Segment, Size
from sa2va.media.cuts import SHORTEST_SCENE, is_cut, scene_look
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
from sa2va.model.propagator import draw, encode_for_propagator
from sa2va.processing.conversation import check_text
from sa2va.processing.processor import squashed_frames
from sa2va.results.answer import Frame
from sa2va.visualization.colors import ObjectColors

if TYPE_CHECKING:
    from sa2va.model.propagator import PropagatorModel

#: Share of a prompt's highest object score (a logit) in a window from which it is trusted on a key frame.
SURE = 0.5
Pixels = np.ndarray  # uint8 (H, W, 3) RGB


@dataclass(eq=False)
class _Group:
    """Objects that were prompted together."""

    ids: list[int]
    phrases: list[str]
    prompt: Callable[[EncodedFrames, Size], MaskPrediction]  # decodes a prompted frame
    frames_to_prompt: int
    memory: ObjectMemory
    look: Tensor | None = None  # (K, C), see `_look`; None before the first prompted frame

    def select(self, rows: Sequence[int]) -> _Group:
        """Some of its objects, by row."""
        if len(rows) == len(self.ids):
            return self
        ids, phrases = [self.ids[row] for row in rows], [self.phrases[row] for row in rows]
        if self.look is None:
            return replace(self, ids=ids, phrases=phrases)
        pick = torch.tensor(rows, device=self.look.device)
        return replace(self, ids=ids, phrases=phrases, memory=self.memory.select(pick), look=self.look[pick])

    def add_prompted(self, carrier: Any, features: EncodedFrames, prediction: MaskPrediction, index: int) -> None:
        """Remember a frame on which its objects were prompted."""
        self.memory = self.memory.prompt(carrier, features.carried, prediction, index)
        self.look = _look(self.look, prediction, prediction.presence > 0)

    def renewed(
        self,
        carrier: Any,
        frames: Mapping[int, EncodedFrames],
        predictions: Sequence[tuple[int, MaskPrediction]],
        rows: Sequence[int],
    ) -> _Group:
        """Itself with those rows of predictions, by frame, instead of what was prompted before, but for its first
        frame."""
        group = replace(self, memory=self.memory.first_prompted())
        for index, prediction in predictions:
            pick = torch.tensor(rows, device=prediction.best.device)
            group.add_prompted(carrier, frames[index], prediction[pick], index)
        return group


def _look(before: Tensor | None, prediction: MaskPrediction, seen_K: Tensor) -> Tensor:
    """What objects look like: SAM 2's pointers (K, C) of the last frame on which they were seen."""
    return prediction.pointer if before is None else torch.where(seen_K[:, None], prediction.pointer, before)


@dataclass(frozen=True)
class _Watch:
    """What a stream remembers in order to ask again.

    Attributes:
        reserved: for each phrase that is asked for, the id of its first object until that is found.
        asked: index of the last frame that was asked about. recent: frames since then, evenly spread.
        look: of the last frame, see [`scene_look`].
    """

    reserved: dict[str, int | None] = field(default_factory=dict)
    asked: int | None = None
    recent: tuple[Pixels, ...] = ()
    look: np.ndarray | None = None


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
            SAM 2; ``"near"``, the two nearest prompted and the last tracked ones, four in all, which costs less for
            many objects; ``"local"``, these around each object, which costs least and is less exact;
            ``"distractor-aware"`` or ``"tree"``, for objects that are easily lost or mistaken.
        ask: makes mask prompts from phrases and frames, the last of which is the present one; [`Sa2VA.stream`] provides
            it.
        ask_every: ask for the phrases again after so many frames, at least 2, or at cuts (``"scene"``); None asks once.
        num_key_frames: how many of the frames since the last time are asked about then; at a cut only the present one.

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
        ask: Callable[[Sequence[str], Sequence[Pixels]], list[Tensor]] | None = None,
        ask_every: AskEvery = None,
        num_key_frames: int = 1,
    ):
        original = model.original_mask_decoder
        self.mode = propagation_mode(model, mode)
        self._memory: ObjectMemory = memory_of(memory)
        self._model = model
        self._sam2 = model.sam2
        propagator = model.propagator if self.mode == "consistent" else None
        self._propagator = cast("PropagatorModel | None", propagator)
        # Who carries masks, and with which decoder.
        self._carrier: Any = self._sam2
        self._tracking_decoder: Any = self._sam2.mask_decoder
        if self._propagator is not None:
            if memory != "recent":
                raise ValueError(
                    f"memory={memory!r} is for the checkpoint's own SAM 2, and a propagator remembers frames in its "
                    "own way: leave memory out, or carry masks without the propagator (mode='released')"
                )
            self._memory = PropagatorMemory()
            self._carrier, self._tracking_decoder = self._propagator, self._propagator.mask_decoder
        elif self.mode == "consistent" and original is not None:
            self._tracking_decoder = original
        self._side = grounding_side(self._carrier)
        self._output = output
        self._ask = ask
        self._ask_every: AskEvery = checked_ask_every(ask_every)
        if num_key_frames < 1:
            raise ValueError(f"num_key_frames is at least 1; got {num_key_frames}")
        self._num_key_frames = num_key_frames
        self._watch = _Watch()
        self._groups: list[_Group] = []
        self._away: list[_Group] = []  # of scenes before: known, but not looked for in this one
        self._phrases_to_ask: list[tuple[int, str]] = []
        self._ready: dict[int, dict[int, Segment]] = {}  # by frame and id
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
            if phrase in self._watch.reserved:
                raise ValueError(f"{phrase!r} is asked for already, again and again; what else it names gets own ids")
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
        promised = next((phrase for phrase, first in self._watch.reserved.items() if first == number), None)
        if promised is not None:
            self._forget(promised)
            return
        for groups in (self._groups, self._away):
            for place, group in enumerate(groups):
                if number in group.ids:
                    phrase = group.phrases[group.ids.index(number)]
                    rows = [row for row, other in enumerate(group.ids) if other != number]
                    if rows and group.frames_to_prompt:
                        raise ValueError(f"object {number} has not been seen yet; remove it after its first frame")
                    groups[place : place + 1] = [group.select(rows)] if rows else []
                    if not any(phrase in other.phrases for other in (*self._groups, *self._away)):
                        self._forget(phrase)
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
            size = (pixels.shape[0], pixels.shape[1])
            if self._ask_every is None:
                self._ask_phrases(pixels)
                features = self.encode([pixels])
            else:
                features = self._ask_again(self._ask_every, pixels, size)
            frame = self.step_encoded(features, size, time=time)
            return replace(frame, segments=self._colors.apply(pixels, frame.segments))

    @contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        """Everything as it was before, when the block raises. Banks and prompts are never changed in place."""
        groups, away = [replace(group) for group in self._groups], list(self._away)
        ready = dict(self._ready)
        waiting, number, index = list(self._phrases_to_ask), self._next_id, self._next_index
        watch = self._watch
        try:
            yield
        except BaseException:
            self._groups, self._phrases_to_ask, self._next_id, self._next_index = groups, waiting, number, index
            self._away, self._ready, self._watch = away, ready, watch
            raise

    def _ask_phrases(self, pixels: Pixels) -> None:
        """Look for the phrases that wait in a frame, and start to follow what is found."""
        if not self._phrases_to_ask or self._ask is None:
            return
        numbers, phrases = zip(*self._phrases_to_ask, strict=True)
        found = self._answers(phrases, [pixels])
        for number, phrase, prompts in zip(numbers, phrases, found, strict=True):
            if len(prompts):  # several [SEG] for one phrase are one object more each
                ids = [number, *range(self._next_id, self._next_id + len(prompts) - 1)]
                self._next_id += len(prompts) - 1
                self._start(ids, [phrase] * len(prompts), self._language_prompt(prompts), frames=1)
        self._phrases_to_ask = []

    def _answers(self, phrases: Sequence[str], frames: Sequence[Pixels]) -> list[Tensor]:
        """The mask prompts of phrases in frames; ValueError that says what to do about phrases that wait."""
        assert self._ask is not None
        try:
            return self._ask(phrases, frames)
        except ValueError as error:
            waiting = ", ".join(f"{number} ({phrase!r})" for number, phrase in self._phrases_to_ask)
            raise ValueError(f"{error}; these phrases wait, remove(id) takes one back: {waiting}") from error

    def _ask_again(self, every: int | Literal["scene"], pixels: Pixels, size: Size) -> EncodedFrames:
        """Ask for all phrases where it is time to, and let what is found join what is followed; the frame's features.

        The language model sees the frames since the last time, or the present one alone: at the beginning, after a cut,
        and when a phrase is new.
        """
        watch, index = self._watch, self._next_index
        reserved = watch.reserved | {phrase: number for number, phrase in self._phrases_to_ask}
        since = 0 if watch.asked is None else index - watch.asked
        look = scene_look(pixels) if every == "scene" else None
        cut = look is not None and watch.look is not None and since >= SHORTEST_SCENE and is_cut(watch.look, look)
        is_due = cut or (every != "scene" and since >= every)
        features = self.encode([pixels])
        self._watch = replace(watch, reserved=reserved, look=look)
        if reserved and (self._phrases_to_ask or is_due):
            before = () if cut or self._phrases_to_ask else watch.recent
            found = self._answers(list(reserved), [*before, pixels])
            self.prompt_window(dict(zip(reserved, found, strict=True)), {index: features}, size, scene=cut)
            self._phrases_to_ask = []
            self._watch = replace(self._watch, asked=index, recent=())
        elif every != "scene" and since % -(-every // self._num_key_frames) == 0:
            recent = (*watch.recent, pixels)[1 - self._num_key_frames :] if self._num_key_frames > 1 else ()
            self._watch = replace(self._watch, recent=recent)
        return features

    def _forget(self, phrase: str) -> None:
        """Ask for a phrase no longer."""
        self._watch = replace(self._watch, reserved={p: n for p, n in self._watch.reserved.items() if p != phrase})

    def encode(self, frames: Sequence[Pixels]) -> EncodedFrames:
        """The image features of frames, which are computed when they are read: each frame passes an encoder once."""
        if self._propagator is None:
            return self.encode_squashed(self.squash(frames))

        def find() -> FrameFeatures:
            return self._model.encode_frames(_squashed(frames, grounding_side(self._sam2)))

        return EncodedFrames(find, lambda: self._encode_to_carry(self.squash(frames)))

    def squash(self, frames: Sequence[Pixels]) -> Tensor:
        """Frames as who carries masks sees them, uint8 (F, S, S, 3). Any thread may call it, at any time."""
        return _squashed(frames, self._side)

    def encode_squashed(self, frames_FSS3: Tensor) -> EncodedFrames:
        """[`encode`] of frames that are squashed already; with a propagator, of frames that are only followed."""
        if self._propagator is None:
            return EncodedFrames(lambda: self._model.encode_frames(frames_FSS3))
        return EncodedFrames(None, lambda: self._encode_to_carry(frames_FSS3))

    def _encode_to_carry(self, frames_FSS3: Tensor) -> FrameFeatures:
        assert self._propagator is not None
        return encode_for_propagator(self._propagator, frames_FSS3)

    @torch.inference_mode()
    def step_encoded(self, features: EncodedFrames, size: Size, *, time: float | None = None) -> Frame:
        """[`step`] over a frame that is encoded already: ``features`` of exactly one frame, ``size`` its height,
        width."""
        segments: list[Segment] = []
        with self._undone_on_failure():
            index, self._next_index = self._next_index, self._next_index + 1
            ready = self._ready.pop(index, {})
            for group in self._groups:
                if group.ids[0] in ready:
                    segments += [ready[number] for number in group.ids]
                    continue
                if group.frames_to_prompt:
                    prediction = group.prompt(features, size)
                    group.frames_to_prompt -= 1
                    group.add_prompted(self._carrier, features, prediction, index)
                else:
                    prediction, group.memory = self._follow(group, features, index)
                segments += self._segments(group.ids, group.phrases, prediction, size)
        return Frame(index, time, size, tuple(segments))

    @torch.inference_mode()
    def prompt_frame(self, features: EncodedFrames, size: Size, index: int) -> None:
        """Prompt all groups on a frame that comes later (or earlier); its result is kept until its turn comes.

        Args:
            features: of exactly one frame. index: its place in the video.
        """
        segments: list[Segment] = []
        for group in self._groups:
            prediction = group.prompt(features, size)
            group.frames_to_prompt = 0
            group.add_prompted(self._carrier, features, prediction, index)
            segments += self._segments(group.ids, group.phrases, prediction, size)
        self._ready[index] = {segment.id: segment for segment in segments}

    @torch.inference_mode()
    def prompt_window(
        self, found: Mapping[str, Tensor], frames: Mapping[int, EncodedFrames], size: Size, *, scene: bool = False
    ) -> None:
        """Prompt objects anew in the window that comes next; results are kept until their turn comes.

        A prompt that shows an object that is followed under the same phrase renews it: its memory of the first prompted
        frame stays, that of later windows gives way to this one's. What has left and come back keeps its id, what is
        new gets one, and what nothing points at is followed on.

        Args:
            found: for each phrase that was asked for, its mask prompts (K, C). frames: the features of one frame each,
                on which they are decoded, by ascending place in the video.
            scene: the window shows another scene than those before. Objects of these phrases are then followed only
                where a prompt shows them, and taken for one another by what they look like alone; and key frames on
                which they are not to be seen are remembered, too, since nothing else tells where they are not.
        """
        known = [group for group in self._groups if group.look is not None and set(group.phrases) <= set(found)]
        groups = [group for group in self._groups if group not in known]
        if scene:
            self._away += [replace(group, memory=group.memory.without_tracked()) for group in known]
            self._groups, known = groups, []
        phrases = [phrase for phrase, prompts in found.items() for _ in prompts]
        if not phrases:
            return
        decode = self._language_prompt(torch.cat(list(found.values())))
        predictions = {index: decode(features, size) for index, features in frames.items()}
        trusted_PF = self._trusted(predictions.values())
        pointing = trusted_PF.any(1).nonzero()[:, 0]  # the others show nothing
        if not len(pointing):
            return
        predictions = {index: prediction[pointing] for index, prediction in predictions.items()}
        phrases, trusted_PF = [phrases[row] for row in pointing.tolist()], trusted_PF[pointing]

        owners = [(group, row) for group in (*known, *self._away) for row in range(len(group.ids))]
        same = self._same_objects(phrases, predictions, trusted_PF, known, frames)
        ids = [
            owners[same[prompt]][0].ids[owners[same[prompt]][1]] if prompt in same else self._new_id(phrase)
            for prompt, phrase in enumerate(phrases)
        ]
        absent_PF = torch.stack([prediction.presence <= 0 for prediction in predictions.values()], dim=1) & scene
        # The order in which an object is prompted on the frames: where it is seen first, as the first stays in memory.
        orders = [
            (*compress(frames, seen), *compress(frames, gone))
            for seen, gone in zip(trusted_PF.tolist(), (absent_PF & ~trusted_PF).tolist(), strict=True)
        ]
        # Objects of one memory that are prompted on the same frames stay together: (row in it, prompt) of each.
        together: dict[tuple[_Group | None, tuple[int, ...]], list[tuple[int, int]]] = {}
        for prompt, order in enumerate(orders):
            group, row = owners[same[prompt]] if prompt in same else (None, prompt)
            together.setdefault((group, order), []).append((row, prompt))
        for (group, order), pairs in together.items():
            rows, prompts = zip(*sorted(pairs), strict=True)
            if group is None:
                part = _Group([ids[row] for row in rows], [phrases[row] for row in rows], decode, 0, self._memory)
            else:
                part = group.select(rows)
            told = [(index, predictions[index]) for index in order]
            groups.append(part.renewed(self._carrier, frames, told, prompts))
        joined, away = {owners[place] for place in same.values()}, []
        for group in (*known, *self._away):
            rest = [row for row in range(len(group.ids)) if (group, row) not in joined]
            if rest:
                (groups if group in known else away).append(group.select(rest))
        self._groups, self._away = sorted(groups, key=lambda group: group.ids[0]), away
        for index, prediction in predictions.items():
            rows = [row for row, order in enumerate(orders) if index in order]
            names, shown = (
                ([ids[row] for row in rows], [phrases[row] for row in rows]),
                prediction[torch.tensor(rows).long()],
            )
            self._ready[index] = {one.id: one for one in self._segments(*names, shown, size)}

    def _trusted(self, predictions: Iterable[MaskPrediction]) -> Tensor:
        """The key frames on which a prompt is taken at its word, bool (P, F).

        A prompt is of the whole window, and is decoded on frames in which the object is not there yet, too. What is
        drawn there is something else, with a lower object score.
        """
        masks_PFss = self._masks(predictions)
        presence_PF = torch.stack([prediction.presence for prediction in predictions], dim=1)
        best = presence_PF.amax(1, keepdim=True)
        return masks_PFss.flatten(2).any(2) & ((best <= 0) | (presence_PF >= SURE * best))

    def _same_objects(
        self,
        phrases: Sequence[str],
        predictions: Mapping[int, MaskPrediction],
        trusted_PF: Tensor,
        known: Sequence[_Group],
        frames: Mapping[int, EncodedFrames],
    ) -> dict[int, int]:
        """Which prompts show which objects, see [`same_objects`]: those that are followed are where memory says, those
        of scenes before nowhere."""
        if not known and not self._away:
            return {}
        look = None
        for prediction, seen_P in zip(predictions.values(), trusted_PF.T, strict=True):
            look = _look(look, prediction, seen_P)
        assert look is not None
        new = Sighting(phrases, self._masks(predictions.values()) & trusted_PF[..., None, None], look)
        masks, looks, names = [], [], []
        for group in (*known, *self._away):
            assert group.look is not None
            looks.append(group.look)
            names += group.phrases
            if group in known:
                tracked = [self._follow(group, features, index)[0] for index, features in frames.items()]
                masks.append(self._masks(tracked))
            else:
                masks.append(new.masks.new_zeros(len(group.ids), *new.masks.shape[1:]))
        return same_objects(new, Sighting(names, torch.cat(masks), torch.cat(looks)))

    def _masks(self, predictions: Iterable[MaskPrediction]) -> Tensor:
        """bool (N, F, s, s) from those of F frames."""
        return torch.stack([prediction.logits > self._output.cut for prediction in predictions], dim=1)

    def _new_id(self, phrase: str) -> int:
        """The id of a new object: for the first of a phrase that was given an id, that one."""
        reserved = self._watch.reserved.get(phrase)
        if reserved is not None:
            self._watch = replace(self._watch, reserved={**self._watch.reserved, phrase: None})
            return reserved
        self._next_id += 1
        return self._next_id - 1

    @torch.inference_mode()
    def propagate_reverse(self, features: EncodedFrames, size: Size, index: int) -> None:
        """Follow the objects to a frame before the first prompted one; the result is kept until its turn comes."""
        segments: list[Segment] = []
        for group in self._groups:
            prediction, group.memory = self._follow(group, features, index, backward=True)
            segments += self._segments(group.ids, group.phrases, prediction, size)
        self._ready[index] = {segment.id: segment for segment in segments}
        if index == 0:
            self._reset_tracked()

    def _follow(
        self, group: _Group, features: EncodedFrames, index: int, *, backward: bool = False
    ) -> tuple[MaskPrediction, ObjectMemory]:
        """The objects of a group on one more frame, and their memory with it."""
        return group.memory.track(self._carrier, self._tracking_decoder, features.carried, index, backward=backward)

    def _reset_tracked(self) -> None:
        """Forget what was tracked backwards; forward propagation starts from the prompted frames alone."""
        for group in self._groups:
            group.memory = group.memory.without_tracked()

    def is_ready(self, index: int) -> bool:
        """Whether the result of a frame is known already, so that it need not be encoded again."""
        ready = self._ready.get(index, {})
        return all(group.ids[0] in ready for group in self._groups)

    def pop_result(self, size: Size, *, time: float | None = None) -> Frame:
        """[`step`] over a frame whose result is known already."""
        index, self._next_index = self._next_index, self._next_index + 1
        return Frame(index, time, size, tuple(self._ready.pop(index, {}).values()))

    def _start(self, ids: list[int], phrases: list[str], prompt: Callable, frames: int) -> None:
        self._groups.append(_Group(ids, phrases, prompt, frames, self._memory))

    def _language_prompt(self, prompts_KC: Tensor) -> Callable[[EncodedFrames, Size], MaskPrediction]:
        tokens = language_tokens(self._sam2, prompts_KC)

        def decode(features: EncodedFrames, size: Size) -> MaskPrediction:
            prediction = decode_masks(self._sam2, self._sam2.mask_decoder, features.found, tokens)
            if self.mode == "released":
                return prediction
            inside = upsample_logits(prediction.logits, None, size) > 0  # one step, as in Sa2VA-i
            return self._mask_as_prompt(features, inside, prediction)

        return decode

    def _mask_prompt(self, mask: np.ndarray) -> Callable[[EncodedFrames, Size], MaskPrediction]:
        if mask.dtype != np.bool_ or mask.ndim != 2:
            raise ValueError(f"a mask is a bool array (H, W); got {mask.dtype} {mask.shape}")
        inside = torch.from_numpy(mask.copy())[None].to(self._sam2.device)

        def decode(features: EncodedFrames, size: Size) -> MaskPrediction:
            if mask.shape != tuple(size):
                raise ValueError(f"the mask is {mask.shape} but the frame is {tuple(size)} (height, width)")
            return self._mask_as_prompt(features, inside)

        return decode

    def _click_prompt(
        self, box: Sequence[float] | None, points: Sequence[Sequence[float]] | None, labels: Sequence[int] | None
    ) -> Callable[[EncodedFrames, Size], MaskPrediction]:
        clicks = Clicks.of(box, points, labels)

        def decode(features: EncodedFrames, size: Size) -> MaskPrediction:
            device = self._sam2.device
            scaled, kinds = clicks.tensors(size, self._side)
            tokens = point_tokens(self._carrier, scaled.to(device), kinds.to(device))
            return decode_masks(self._carrier, self._tracking_decoder, features.carried, tokens)

        return decode

    def _mask_as_prompt(
        self, features: EncodedFrames, inside_KHW: Tensor, decoded: MaskPrediction | None = None
    ) -> MaskPrediction:
        """Masks given to who carries them as if drawn; scores stay those of the decoder that made them."""
        side = self._side
        resized = torch.nn.functional.interpolate(
            inside_KHW[:, None].float(), size=(side, side), mode="bilinear", antialias=True
        )[:, 0]
        masks = (resized >= 0.5).float()
        if self._propagator is not None:
            drawn = draw(self._propagator, features.carried, masks)
        else:
            drawn = mask_as_prediction(self._sam2, self._tracking_decoder, features.carried, masks)
        return drawn if decoded is None else replace(drawn, ious=decoded.iou[:, None], presence=decoded.presence)

    def _segments(
        self, ids: Sequence[int], phrases: Sequence[str], prediction: MaskPrediction, size: Size
    ) -> list[Segment]:
        return frame_segments(
            prediction,
            ids,
            phrases,
            side=self._side if self._propagator is None else None,
            size=(size[0], size[1]),
            output=self._output,
        )


def propagation_mode(model: Sa2VANetwork, mode: Mode | None) -> Mode:
    """How a model carries masks, by default.

    Raises:
        ValueError: there is no such mode, or the checkpoint does not have what it needs.
    """
    can_carry = model.original_mask_decoder is not None or model.propagator is not None
    if mode not in (None, "released", "consistent"):
        raise ValueError(f"mode must be 'released' or 'consistent'; got {mode!r}")
    if mode == "consistent" and not can_carry:
        raise ValueError(
            "mode='consistent' carries masks with SAM 2's original decoder, which this checkpoint lacks; load it "
            "with sam2='facebook/sam2-hiera-large' (--sam2), or Meta's sam2_hiera_large.pt"
        )
    return mode or ("consistent" if can_carry else "released")


def _squashed(frames: Sequence[Pixels], side: int) -> Tensor:
    return squashed_frames([Image.fromarray(np.ascontiguousarray(frame)) for frame in frames], side)
