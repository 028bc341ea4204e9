"""From questions about one picture, one short video, or nothing at all to answers: who is asked, and what is drawn.

A request reads its media once. Several questions share the vision tower, the prompt's prefix in the key-value cache and
SAM 2's image features; the prompts decode as one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from sa2va.inference.postprocess import MaskOutput, clip_segments, frame_segments
from sa2va.inference.propagation import KeyFrames, follow, frame_count, key_frame_indices
from sa2va.inference.tracker import Mode, VideoTracker
from sa2va.inference.vlm import Asker, Reply, View, why_nothing
from sa2va.masks.segment import Segment
from sa2va.media.frames import FrameSource
from sa2va.media.open import is_video, load_image, open_media
from sa2va.model.generation import GenerationOptions
from sa2va.model.mask_decoder import decode_masks, grounding_side, language_tokens
from sa2va.processing.conversation import check_text
from sa2va.processing.image_transforms import squashed_frames
from sa2va.processing.regions import region_cells
from sa2va.results.answer import Answer
from sa2va.results.history import History, Turn, turns_of
from sa2va.visualization.colors import ObjectColors

Media = Any  # what load_image and open_media take
Region = np.ndarray | Sequence[float]  # bool mask (H, W), or box x0, y0, x1, y1


@dataclass(frozen=True)
class MaskSettings:
    """How masks are made of mask prompts; see [`Sa2VA.track`]."""

    output: MaskOutput
    key_frames: KeyFrames
    num_key_frames: int
    mode: Mode | None
    keep_empty: bool = False


class Answerer:
    """Answers questions with masks.

    Args:
        asker: puts the questions to the language model.
    """

    def __init__(self, asker: Asker):
        self._asker = asker

    def answer(
        self,
        media: Media | None,
        questions: Sequence[str],
        options: GenerationOptions,
        settings: MaskSettings,
        *,
        names: Sequence[str | None],
        histories: Sequence[History] | None = None,
        regions: Sequence[Region] | None = None,
        at_once: int | None = None,
    ) -> list[Answer]:
        """Answer questions about one picture, one short video, or nothing at all. ValueError for a blank question."""
        for question in questions:
            if not isinstance(question, str) or not question.strip():
                raise ValueError(f"a question is a non-empty text; got {question!r}")
            check_text(question, "the question")
        turns = [turns_of(history) for history in ([()] * len(questions) if histories is None else histories)]
        segments: list[Segment] = []
        size: tuple[int, int] | None = None
        if media is None:
            replies = self._asker.ask(View(), questions, options, histories=turns, at_once=at_once)
        elif is_video(media):
            source = open_media(media)
            keys = key_frame_indices(settings.key_frames, settings.num_key_frames, frame_count(source))
            view = self._asker.look_at_frames(source, keys)
            replies = self._asker.ask(view, questions, options, histories=turns, at_once=at_once)
            segments, size = self._clip_segments(source, keys, replies, settings), source.size
        else:
            image = load_image(media)
            if regions is None:
                view = self._asker.look([image], video=False)
                replies = self._asker.ask(view, questions, options, histories=turns, at_once=at_once)
            else:
                grids = self.region_grids(image, regions)
                replies = self._asker.ask_by_region(image, questions, grids, options, histories=turns)
            segments, size = self._picture_segments(image, replies, settings), (image.height, image.width)
        answers = []
        for reply, history, name in zip(replies, turns, names, strict=True):
            own, segments = segments[: len(reply.prompts_KC)], segments[len(reply.prompts_KC) :]
            answers.append(self._assemble(reply, history, own, size, name, keep_empty=settings.keep_empty))
        return answers

    def region_grids(self, image: Image.Image, regions: Sequence[Region]) -> list[np.ndarray]:
        """The cells of each region, bool (cells, cells). ValueError where the family reads none, or one is no part."""
        if not self._asker.processor.family.visual_prompts or self._asker.processor.cells is None:
            raise ValueError(
                f"{self._asker.processor.family.name} checkpoints cannot describe regions; use an InternVL-based one "
                "(Sa2VA-1B, -4B, -8B, -26B or Sa2VA-InternVL3-*)"
            )
        return [region_cells(region, (image.height, image.width), self._asker.processor.cells) for region in regions]

    @torch.inference_mode()
    def _picture_segments(self, image: Image.Image, replies: Sequence[Reply], settings: MaskSettings) -> list[Segment]:
        """The masks of all replies, decoded together from one encoding of the picture."""
        prompts = torch.cat([reply.prompts_KC for reply in replies])
        if not len(prompts):
            return []
        sam2 = self._asker.model.sam2
        features = self._asker.model.encode_frames(squashed_frames([image], grounding_side(sam2)))
        prediction = decode_masks(sam2, sam2.mask_decoder, features, language_tokens(sam2, prompts))
        segments = frame_segments(
            prediction,
            range(1, len(prompts) + 1),
            [""] * len(prompts),
            side=grounding_side(sam2),
            size=(image.height, image.width),
            output=settings.output,
        )
        return [*ObjectColors().apply(np.asarray(image), segments)]

    def _clip_segments(
        self, source: FrameSource, keys: Sequence[int], replies: Sequence[Reply], settings: MaskSettings
    ) -> list[Segment]:
        prompts = torch.cat([reply.prompts_KC for reply in replies])
        if not len(prompts):
            return []
        tracker = VideoTracker(self._asker.model, mode=settings.mode, output=settings.output)
        tracker.add_prompts(prompts, [""] * len(prompts))
        colors = ObjectColors()
        return clip_segments(
            replace(frame, segments=colors.apply(pixels, frame.segments))
            for frame, pixels in follow(tracker, source, keys)
        )

    def _assemble(
        self,
        reply: Reply,
        history: Sequence[Turn],
        segments: Sequence[Segment],
        size: tuple[int, int] | None,
        name: str | None,
        *,
        keep_empty: bool = False,
    ) -> Answer:
        """An answer with phrases put to its masks; empty masks are left out and accounted for, or kept.

        Args:
            name: what was asked for, when a mask was; None in free conversation.
        """
        text, phrases = self._asker.processor.clean(reply.raw)
        shown = []
        for segment, found in zip(segments, phrases, strict=False):
            phrase, span = found or (name or "", None)
            if keep_empty or any(mask.area for mask in segment.masks):
                shown.append(replace(segment, phrase=name or phrase, span=span))
        return Answer(
            text=text,
            raw_text=reply.raw,
            segments=tuple(shown),
            reason=None if shown or name is None else why_nothing(reply, text, len(segments)),
            size=size,
            history=(*history, Turn(reply.question, reply.raw)),
        )
