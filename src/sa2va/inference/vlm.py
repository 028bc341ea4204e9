"""The language model's half of an answer: text about a medium, and a mask prompt for each ``[SEG]`` in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sa2va.inference.engine import Encode, Engine, Write
from sa2va.model.families import SEG_TOKEN
from sa2va.model.generation import Generated, GenerationOptions
from sa2va.model.language import PromptCache, VisualTokens
from sa2va.processing.processor import Sa2VAProcessor, VisionInputs
from sa2va.processing.requests import (
    PRESENCE_REQUEST,
    QUESTION_REQUEST,
    REFERRING_REQUEST,
    VIDEO_REFERRING_REQUEST,
)
from sa2va.results.history import Turn

#: Answers one of which is tried as a draft: longer ones are seldom alike, and older ones no longer tell.
_LONGEST_DRAFT, _LATEST = 32, 8


@dataclass(frozen=True)
class VLMOutput:
    """What the model wrote to one question.

    Attributes:
        question: as it was put. raw: the answer, special tokens kept.
        prompts_KC: (K, C) mask prompts of its ``[SEG]`` tokens.
        denied: asked whether there is such a thing, it said no; there are no prompts then.
    """

    question: str
    raw: str
    prompts_KC: Tensor
    denied: bool = False

    def as_denied(self) -> VLMOutput:
        """The same without prompts."""
        return replace(self, prompts_KC=self.prompts_KC[:0], denied=True)


@dataclass(frozen=True)
class EncodedMedia:
    """Pictures as the language model sees them, encoded once for all questions.

    Attributes:
        vision: what the vision tower is given; None for words alone. encoding: its pass.
        cache: the keys and values of the last prompt about them, from which a prompt that begins alike goes on.
        answers: the latest of each kind of request, which the next is likely to repeat. They live here and not with the
            model, so that a request about media opened anew does not depend, in its last digits, on what was
            asked about others.
    """

    vision: VisionInputs | None = None
    encoding: Encode | None = None
    cache: PromptCache = field(default_factory=PromptCache)
    answers: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, processor: Sa2VAProcessor, images: Sequence[Image.Image], *, video: bool) -> EncodedMedia:
        """A picture, or frames of a video, yet to be [`encoded`]."""
        vision = processor.vision(images, video=video)
        return cls(vision, Encode(vision))

    async def encoded(self) -> VisualTokens | None:
        """What the vision tower makes of them; None for words alone."""
        return None if self.encoding is None else await self.encoding

    @property
    def has_failed(self) -> bool:
        """Whether the vision tower has failed on them, so that they must be encoded anew."""
        return self.encoding is not None and self.encoding.error is not None

    @property
    def nbytes(self) -> int:
        """Memory of the visual tokens and the cache, bytes."""
        visual = None if self.encoding is None else self.encoding.computed
        tensors = [] if visual is None else [visual.embeddings, *visual.deepstack]
        return sum(tensor.nbytes for tensor in tensors) + self.cache.nbytes

    async def with_regions(self, regions: Sequence[np.ndarray]) -> EncodedMedia:
        """The same picture with marked regions, bool (cells, cells) each.

        A region is the features of the last tile, which shows the whole picture, at its cells; so nothing is encoded
        again. The prompt begins otherwise, and has a cache of its own.
        """
        visual = await self.encoded()
        if self.vision is None or visual is None:
            raise ValueError("words alone have no regions")
        features = visual.embeddings
        last_tile = features[-regions[0].size :]
        marked = [last_tile[torch.from_numpy(region.flatten()).to(features.device)] for region in regions]
        encoding = Encode(self.vision)
        encoding.finish(replace(visual, embeddings=torch.cat([features, *marked])))
        return EncodedMedia(self.vision, encoding)

    async def ask(
        self,
        engine: Engine,
        questions: Sequence[str],
        options: GenerationOptions,
        *,
        histories: Sequence[Sequence[Turn]] | None = None,
        regions: Sequence[np.ndarray] | None = None,
        at_once: int | None = None,
        kind: str | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> list[VLMOutput]:
        """Answers to questions about the same media, at most ``at_once`` of them at once.

        Args:
            histories: the turns before each question; None for none. regions: what every question is shown, bool
                (cells, cells) each.
            kind: of requests whose answers are much alike: the latest are tried as drafts.
            on_text: told each new piece of the answer's text, special tokens included; for one question.

        Raises:
            ValueError: a question is too long for the cache, even alone.
        """
        visual, processor = await self.encoded(), engine.processor
        prompts = [
            processor.prompt_ids(question, vision=self.vision, history=history, regions=regions)
            for question, history in zip(questions, histories or [()] * len(questions), strict=True)
        ]
        longest = max(map(len, prompts)) + options.max_new_tokens
        if longest > engine.cache_tokens:
            raise ValueError(
                f"a prompt of {longest - options.max_new_tokens} tokens and an answer of max_new_tokens="
                f"{options.max_new_tokens} take {longest} tokens of the engine's cache, which holds "
                f"{engine.cache_tokens}; ask with a lower max_new_tokens, or raise model.engine.cache_tokens"
            )
        step = min(at_once or engine.max_rows, engine.max_rows, engine.cache_tokens // longest)
        tell = None if on_text is None else _TextStream(processor.tokenizer, on_text).add
        written: list[Generated] = []
        for first in range(0, len(prompts), step):
            draft, some = partial(self._draft, kind), prompts[first : first + step]
            answers = await Write(some, options, visual=visual, cache=self.cache, draft=draft, on_token=tell)
            self._remember(kind, [answer.token_ids for answer in answers])
            written += answers
        return [
            VLMOutput(question, processor.decode(one.token_ids), engine.model.projection(one.seg_states))
            for question, one in zip(questions, written, strict=True)
        ]

    def _remember(self, kind: str | None, answers: Iterable[Sequence[int]]) -> None:
        """Remember answers to requests of a kind, token ids each, the latest first."""
        if kind is not None:
            short = (tuple(answer) for answer in answers if len(answer) <= _LONGEST_DRAFT)
            self.answers[kind] = (*short, *self.answers.get(kind, ()))[:_LATEST]

    def _draft(self, kind: str | None) -> Sequence[int]:
        """The commonest of the latest answers to requests of a kind, of equally common ones the latest."""
        latest = self.answers.get(kind or "", ())
        return Counter(latest).most_common(1)[0][0] if latest else ()


def segmentation_request(phrase: str, *, video: bool) -> str:
    """The request for one phrase; a question is asked as it is."""
    if "?" in phrase:
        return QUESTION_REQUEST.format(phrase=phrase)
    return (VIDEO_REFERRING_REQUEST if video else REFERRING_REQUEST).format(phrase=phrase)


def presence_question(phrase: str) -> str | None:
    """What asks for yes or no whether there is such a thing; None for phrases that are questions."""
    return None if "?" in phrase else PRESENCE_REQUEST.format(phrase=phrase)


def is_denial(output: VLMOutput) -> bool:
    """Whether an answer to [`presence_question`] says no; whatever is not that, is not."""
    return re.match(r"\W*no\b", output.raw, re.IGNORECASE) is not None


def why_nothing(output: VLMOutput, text: str, empty: int = 0) -> str:
    """Why an answer to a segmentation request gave no mask.

    Args:
        text: the answer without special tokens. empty: how many masks it gave that are empty.
    """
    if output.denied:
        return "asked whether there is such a thing, the model said no (check_presence)"
    if empty:
        return "the model pointed at something, but its mask is empty"
    if SEG_TOKEN in output.raw:
        return f"the answer ended right at its {SEG_TOKEN}; allow more max_new_tokens"
    return f"the model answered without pointing at anything: {text!r}"


def unfound(processor: Sa2VAProcessor, phrases: Sequence[str], outputs: Sequence[VLMOutput]) -> dict[str, str]:
    """For each phrase that gave no mask prompt, why."""
    return {
        phrase: why_nothing(output, processor.clean(output.raw)[0])
        for phrase, output in zip(phrases, outputs, strict=True)
        if not len(output.prompts_KC)
    }


class _TextStream:
    """Tells the text of each new token.

    A character may take several tokens, and a token's text may depend on the one before it (a leading space). So the
    text of a few last tokens is compared with and without the new one, and nothing is told while a character is
    incomplete.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tell: Callable[[str], None]):
        self._tokenizer, self._tell = tokenizer, tell
        self._tokens: list[int] = []
        self._start = self._told = 0  # the tokens before have been told; the text from start is context

    def add(self, _row: int, token: int) -> None:
        self._tokens.append(token)
        before = self._decode(self._tokens[self._start : self._told])
        text = self._decode(self._tokens[self._start :])
        if len(text) > len(before) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._start, self._told = self._told, len(self._tokens)
            self._tell(text[len(before) :])

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))
