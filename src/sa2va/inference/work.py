"""What requests wait for: one computation each, which several may share.

A request is a coroutine. It makes such a computation and awaits it; the [`Engine`][sa2va.inference.engine.Engine]
computes what waits, as many as it can of one kind together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sa2va.model.generation import Generated, GenerationOptions, Row
from sa2va.model.language import PromptCache, VisualTokens
from sa2va.model.mask_decoder import FrameFeatures, MaskPrediction
from sa2va.processing.processor import VisionInputs

T = TypeVar("T")

#: Answers one of which is tried as a draft: longer ones are seldom alike, and older ones no longer tell.
_LONGEST_DRAFT, _LATEST = 32, 8


class Work(Awaitable[T]):
    """A computation. ``await`` gives its result, or raises its error; any number of requests may.

    Attributes:
        is_done: whether it has been computed. waiting: the requests that go on then.
    """

    def __init__(self) -> None:
        self.is_done = False
        self.waiting: list[Any] = []
        self._result: Any = None
        self._error: Exception | None = None

    def finish(self, result: T) -> None:
        self._result, self.is_done = result, True

    def fail(self, error: Exception) -> None:
        self._error, self.is_done = error, True

    @property
    def result(self) -> T:
        """What was computed.

        Raises:
            Exception: that of the computation.
        """
        if self._error is not None:
            raise self._error
        return self._result

    def __await__(self) -> Generator[Work[T], None, T]:
        if not self.is_done:
            yield self
        return self.result


class Encode(Work[VisualTokens]):
    """The vision tower over the pictures of one medium."""

    def __init__(self, vision: VisionInputs):
        super().__init__()
        self.vision = vision


class EncodeFrame(Work[FrameFeatures]):
    """SAM 2's image encoder over a picture."""

    def __init__(self, image: Image.Image):
        super().__init__()
        self.image = image


class Decode(Work[MaskPrediction]):
    """Masks of one picture, from prompts (K, C)."""

    def __init__(self, features: FrameFeatures, prompts_KC: Tensor):
        super().__init__()
        self.features, self.prompts_KC = features, prompts_KC


class DecodeMarks(Work[MaskPrediction]):
    """Masks of one picture from SAM 2's own prompts, of K objects.

    Args:
        points_KP2: float32 (x, y) in pixels of the grounding image; labels_KP: int64, see [`point_tokens`].
        logits_KHW: rough masks, see [`mask_prompt`]; each gives one mask, not three candidates.
        original: decode with SAM 2's original decoder instead of the fine-tuned one.
    """

    def __init__(
        self,
        features: FrameFeatures,
        points_KP2: Tensor,
        labels_KP: Tensor,
        *,
        logits_KHW: Tensor | None = None,
        original: bool = False,
    ):
        super().__init__()
        self.features, self.points_KP2, self.labels_KP = features, points_KP2, labels_KP
        self.logits_KHW, self.original = logits_KHW, original


class Matte(Work[Tensor]):
    """VitMatte's opacity (H, W), float32, of a picture and its trimap (mode L: 0 outside, 255 inside, else unknown)."""

    def __init__(self, image: Image.Image, trimap: Image.Image, weights: str):
        super().__init__()
        self.image, self.trimap, self.weights = image, trimap, weights


class Together(Work[list[Any]]):
    """Parts of a request that go on side by side, so that what they wait for is computed together."""

    def __init__(self, steps: Sequence[Coroutine[Any, Any, Any]]):
        super().__init__()
        self.steps = steps
        self.parts: list[Any] = []  # the engine's


async def together(steps: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of several coroutines that go on side by side."""
    return await Together(steps) if steps else []


class Write(Work[list[Generated]]):
    """Answers to prompts about one medium.

    Args:
        kind: of requests whose answers are much alike, see [`EncodedMedia`].
        on_token: told (number of the prompt, token); what it raises cancels the answers.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        media: EncodedMedia,
        options: GenerationOptions,
        *,
        kind: str | None = None,
        on_token: Callable[[int, int], None] | None = None,
    ):
        super().__init__()
        self.prompts, self.media, self.options = prompts, media, options
        self.kind, self.on_token = kind, on_token
        self.rows: list[Row] = []

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its longest answer."""
        return max(map(len, self.prompts)) + self.options.max_new_tokens


class Pause(Work[None]):
    """Nothing: lets others have a turn between the frames of a clip."""


@dataclass(frozen=True)
class EncodedMedia:
    """Pictures as the language model sees them, encoded once for all questions.

    Attributes:
        vision: what the vision tower is given; None for words alone. look: its pass.
        cache: the keys and values of the last prompt about them, from which a prompt that begins alike goes on.
        answers: the latest of each kind of request, which the next is likely to repeat. They live here and not with the
            model, so that a request about media opened anew does not depend, in its last digits, on what was
            asked about others.
    """

    vision: VisionInputs | None = None
    look: Encode | None = None
    cache: PromptCache = field(default_factory=PromptCache)
    answers: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, vision: VisionInputs) -> EncodedMedia:
        """Pictures that are yet to be encoded: await ``look`` before anything else."""
        return cls(vision, Encode(vision))

    @property
    def visual(self) -> VisualTokens | None:
        """What the vision tower made of them."""
        return None if self.look is None else self.look.result

    @property
    def nbytes(self) -> int:
        """Memory of the visual tokens and the cache, bytes."""
        visual = self.visual if self.look is not None and self.look.is_done else None
        tensors = [] if visual is None else [visual.embeddings, *visual.deepstack]
        return sum(tensor.nbytes for tensor in tensors) + self.cache.nbytes

    def with_regions(self, regions: Sequence[np.ndarray]) -> EncodedMedia:
        """The same picture with marked regions, bool (cells, cells) each.

        A region is the features of the last tile, which shows the whole picture, at its cells; so nothing is encoded
        again. The prompt begins otherwise, and has a cache of its own.
        """
        if self.vision is None or self.visual is None:
            raise ValueError("words alone have no regions")
        features = self.visual.embeddings
        last_tile = features[-regions[0].size :]
        marked = [last_tile[torch.from_numpy(region.flatten()).to(features.device)] for region in regions]
        look = Encode(self.vision)
        look.finish(replace(self.visual, embeddings=torch.cat([features, *marked])))
        return EncodedMedia(self.vision, look)

    def remember(self, kind: str | None, answers: Iterable[Sequence[int]]) -> None:
        """Remember answers to requests of a kind, token ids each, the latest first."""
        if kind is not None:
            short = (tuple(answer) for answer in answers if len(answer) <= _LONGEST_DRAFT)
            self.answers[kind] = (*short, *self.answers.get(kind, ()))[:_LATEST]

    def draft(self, kind: str | None) -> Sequence[int]:
        """The commonest of the latest answers to requests of a kind, of equally common ones the latest."""
        latest = self.answers.get(kind or "", ())
        return Counter(latest).most_common(1)[0][0] if latest else ()
