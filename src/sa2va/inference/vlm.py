"""The language model's half of an answer: pictures and questions in, text and a mask prompt for each ``[SEG]`` out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sa2va.model.families import SEG_TOKEN
from sa2va.model.network import Sa2VANetwork
from sa2va.model.prompt_cache import PromptCache
from sa2va.model.sampling import GenerationOptions
from sa2va.model.types import Generated, VisualTokens
from sa2va.processing.processor import Sa2VAProcessor, VisionInputs
from sa2va.processing.requests import QUESTION_REQUEST, REFERRING_REQUEST, VIDEO_REFERRING_REQUEST
from sa2va.results.history import Turn

#: Answers that are tried as drafts: longer ones are seldom alike, and older ones no longer tell.
_LONGEST_DRAFT, _MOST_DRAFTS = 32, 4
#: A stop word is looked for in the text of this many last tokens.
_TAIL_TOKENS = 32


@dataclass(frozen=True)
class EncodedMedia:
    """Pictures as the language model sees them, computed once for all questions.

    Attributes:
        vision: what the vision tower was given; None for words alone. visual: what it made of that.
        cache: the keys and values of the last prompt about them, from which a prompt that begins alike goes on.
        drafts: the latest answers of each kind of request, which the next is likely to repeat. They live here and not
            with the model, so that a request about media opened anew does not depend, in its last digits, on what was
            asked about others.
    """

    vision: VisionInputs | None = None
    visual: VisualTokens | None = None
    cache: PromptCache = field(default_factory=PromptCache)
    drafts: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Memory of the visual tokens and the cache, bytes."""
        visual = [] if self.visual is None else [self.visual.embeddings, *self.visual.deepstack]
        return sum(tensor.nbytes for tensor in visual) + self.cache.nbytes

    def with_regions(self, regions: Sequence[np.ndarray]) -> EncodedMedia:
        """The same picture with marked regions, bool (cells, cells) each.

        A region is the features of the last tile, which shows the whole picture, at its cells; so nothing is encoded
        again. The prompt begins otherwise, and has a cache of its own.
        """
        if self.visual is None:
            raise ValueError("words alone have no regions")
        features = self.visual.embeddings
        last_tile = features[-regions[0].size :]
        marked = [last_tile[torch.from_numpy(region.flatten()).to(features.device)] for region in regions]
        return EncodedMedia(self.vision, replace(self.visual, embeddings=torch.cat([features, *marked])))


@dataclass(frozen=True)
class VLMOutput:
    """What the model wrote to one question.

    Attributes:
        question: as it was put. raw: the answer, special tokens kept.
        prompts_KC: (K, C) mask prompts of its ``[SEG]`` tokens.
    """

    question: str
    raw: str
    prompts_KC: Tensor


class VLMRunner:
    """A model and its processor: encodes pictures, and answers questions about them."""

    def __init__(self, model: Sa2VANetwork, processor: Sa2VAProcessor):
        self.model = model
        self.processor = processor

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image], *, video: bool) -> EncodedMedia:
        """Run the vision tower over a picture, or over frames of a video, once."""
        vision = self.processor.vision(images, video=video)
        return EncodedMedia(vision, self.model.encode_images(vision.pixel_values, vision.image_grid_thw))

    @torch.inference_mode()
    def generate(
        self,
        media: EncodedMedia,
        questions: Sequence[str],
        options: GenerationOptions,
        *,
        histories: Sequence[Sequence[Turn]] | None = None,
        regions: Sequence[np.ndarray] | None = None,
        at_once: int | None = None,
        kind: str | None = None,
    ) -> list[VLMOutput]:
        """Answer questions about the same media, as one batch, or as batches of at most ``at_once``.

        Args:
            histories: the turns before each question; None for none. regions: what every question is shown, bool
                (cells, cells) each.
            kind: of requests whose answers are much alike: the latest are tried as drafts.
        """
        prompts = [
            self.processor.prompt_ids(question, vision=media.vision, history=history, regions=regions)
            for question, history in zip(questions, histories or [()] * len(questions), strict=True)
        ]
        step = at_once or max(len(prompts), 1)
        written: list[Generated] = []
        for first in range(0, len(prompts), step):
            batch = self.model.generate(
                prompts[first : first + step],
                media.visual,
                options=options,
                is_finished=self.is_finished,
                cache=media.cache,
                drafts=media.drafts.get(kind or "", ()),
            )
            written += batch
            if kind is not None:
                answers = (tuple(one.token_ids) for one in batch if len(one.token_ids) <= _LONGEST_DRAFT)
                media.drafts[kind] = tuple(dict.fromkeys([*answers, *media.drafts.get(kind, ())]))[:_MOST_DRAFTS]
        return [
            VLMOutput(question, self.processor.decode(one.token_ids), self.model.projection(one.seg_states))
            for question, one in zip(questions, written, strict=True)
        ]

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


def why_nothing(output: VLMOutput, text: str, empty: int = 0) -> str:
    """Why an answer to a segmentation request gave no mask.

    Args:
        text: the answer without special tokens. empty: how many masks it gave that are empty.
    """
    if empty:
        return "the model pointed at something, but its mask is empty"
    if SEG_TOKEN in output.raw:
        return f"the answer ended right at its {SEG_TOKEN}; allow more max_new_tokens"
    return f"the model answered without pointing at anything: {text!r}"


def unfound(runner: VLMRunner, phrases: Sequence[str], outputs: Sequence[VLMOutput]) -> dict[str, str]:
    """For each phrase that gave no mask prompt, why."""
    return {
        phrase: why_nothing(output, runner.processor.clean(output.raw)[0])
        for phrase, output in zip(phrases, outputs, strict=True)
        if not len(output.prompts_KC)
    }
