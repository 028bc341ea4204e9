"""Questions put to the language model about pictures, and its replies: text, and a mask prompt for each ``[SEG]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sa2va.media.frames import FrameSource
from sa2va.model.families import SEG_TOKEN
from sa2va.model.generation import GenerationOptions
from sa2va.model.network import Sa2VANetwork
from sa2va.model.types import Generated, VisualTokens
from sa2va.processing.processor import Sa2VAProcessor, VisionInputs
from sa2va.processing.requests import QUESTION_REQUEST, REFERRING_REQUEST, VIDEO_REFERRING_REQUEST
from sa2va.results.history import Turn

#: A stop word is looked for in the text of this many last tokens.
_TAIL_TOKENS = 32


@dataclass(frozen=True)
class View:
    """Pictures as the language model sees them, computed once for all questions; both None for words alone."""

    vision: VisionInputs | None = None
    visual: VisualTokens | None = None

    def with_region(self, cells: Sequence[int], number: int) -> View:
        """What remains when the picture was looked at with regions and only one of them is shown.

        Args:
            cells: cells of each region the picture was looked at with. number: of the region that stays, from 0.
        """
        if self.visual is None:
            raise ValueError("words alone have no regions")
        features = self.visual.embeddings
        picture, *parts = features.split([len(features) - sum(cells), *cells])
        return View(self.vision, replace(self.visual, embeddings=torch.cat([picture, parts[number]])))


@dataclass(frozen=True)
class Reply:
    """What the model wrote to one question.

    Attributes:
        question: as it was put. raw: the answer, special tokens kept.
        prompts_KC: (K, C) mask prompts of its ``[SEG]`` tokens.
    """

    question: str
    raw: str
    prompts_KC: Tensor


class Asker:
    """A model and its processor, put to questions."""

    def __init__(self, model: Sa2VANetwork, processor: Sa2VAProcessor):
        self.model = model
        self.processor = processor

    @torch.inference_mode()
    def look(self, images: Sequence[Image.Image], *, video: bool, regions: Sequence[np.ndarray] | None = None) -> View:
        """Run the vision tower over a picture, or over frames of a video, once.

        Args:
            regions: bool (cells, cells) grids of visual prompts.
        """
        vision = self.processor.vision(images, video=video)
        layout = {"regions": (torch.from_numpy(np.stack(regions)),)} if regions else {}
        return View(vision, self.model.encode_images(vision.pixel_values, vision.image_grid_thw, **layout))

    def look_at_frames(self, source: FrameSource, keys: Sequence[int]) -> View:
        """The key frames of a video."""
        return self.look([Image.fromarray(frame) for frame in source.read(keys)], video=True)

    @torch.inference_mode()
    def ask(
        self,
        view: View,
        questions: Sequence[str],
        options: GenerationOptions,
        *,
        histories: Sequence[Sequence[Turn]] | None = None,
        regions: Sequence[np.ndarray] | None = None,
        at_once: int | None = None,
    ) -> list[Reply]:
        """Put questions about one view to the model, as one batch, or as batches of at most ``at_once``.

        Args:
            histories: the turns before each question; None for none. regions: what every question is shown.
        """
        prompts = [
            self.processor.prompt_ids(question, vision=view.vision, history=history, regions=regions)
            for question, history in zip(questions, histories or [()] * len(questions), strict=True)
        ]
        step = at_once or max(len(prompts), 1)
        written: list[Generated] = []
        for first in range(0, len(prompts), step):
            batch = prompts[first : first + step]
            written += self.model.generate(batch, view.visual, options=options, is_finished=self.is_finished)
        return [
            Reply(question, self.processor.decode(one.token_ids), self.model.projection(one.seg_states))
            for question, one in zip(questions, written, strict=True)
        ]

    def ask_by_region(
        self,
        image: Image.Image,
        questions: Sequence[str],
        regions: Sequence[np.ndarray],
        options: GenerationOptions,
        *,
        histories: Sequence[Sequence[Turn]],
    ) -> list[Reply]:
        """Put each question with a region of its own, which is its region1; the picture is looked at once.

        Args:
            regions: per question, a bool (cells, cells) grid. histories: per question, the turns before it.
        """
        view = self.look([image], video=False, regions=regions)
        cells = [int(region.sum()) for region in regions]
        replies: list[Reply] = []
        for number, (question, history, region) in enumerate(zip(questions, histories, regions, strict=True)):
            own = view.with_region(cells, number)
            replies += self.ask(own, [question], options, histories=[history], regions=[region])
        return replies

    def is_finished(self, ids: list[int]) -> bool:
        """Whether new tokens end an answer: at an end token, or when their text ends in a stop word."""
        if ids[-1] in self.processor.eos_ids:
            return True
        if not self.processor.stop_words:
            return False
        tail = str(self.processor.tokenizer.decode(ids[-_TAIL_TOKENS:], skip_special_tokens=False))
        return tail.replace("\r", "").replace("\n", "").endswith(tuple(self.processor.stop_words))


def segmentation_request(phrase: str, *, video: bool) -> str:
    """The request for one phrase; a question is asked as it is."""
    if "?" in phrase:
        return QUESTION_REQUEST.format(phrase=phrase)
    return (VIDEO_REFERRING_REQUEST if video else REFERRING_REQUEST).format(phrase=phrase)


def why_nothing(reply: Reply, text: str, empty: int = 0) -> str:
    """Why a reply to a segmentation request gave no mask.

    Args:
        text: the reply without special tokens. empty: how many masks it gave that are empty.
    """
    if empty:
        return "the model pointed at something, but its mask is empty"
    if SEG_TOKEN in reply.raw:
        return f"the answer ended right at its {SEG_TOKEN}; allow more max_new_tokens"
    return f"the model answered without pointing at anything: {text!r}"


def unfound(asker: Asker, phrases: Sequence[str], replies: Sequence[Reply]) -> dict[str, str]:
    """For each phrase that gave no mask prompt, why."""
    return {
        phrase: why_nothing(reply, asker.processor.clean(reply.raw)[0])
        for phrase, reply in zip(phrases, replies, strict=True)
        if not len(reply.prompts_KC)
    }
