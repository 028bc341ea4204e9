"""One model, any number of requests at once.

A request is a coroutine that awaits the model's [`Work`]: a picture to be encoded, an answer to be written, masks to be
decoded. Whatever several requests wait for is computed together. Nothing runs in the background: the thread that has
asked first drives the engine for all who wait, and hands over to another when its own answer is there. One thread with
many requests gets the same results in the same order every time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, islice
from typing import Any, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor

from sa2va.checkpoint.vitmatte import VitMatte
from sa2va.model.generation import (
    Generated,
    GenerationOptions,
    PromptReader,
    Reading,
    Row,
    RowBatch,
    fit_a_pass,
)
from sa2va.model.language import PromptCache, VisualTokens
from sa2va.model.mask_decoder import (
    FrameFeatures,
    MaskPrediction,
    decode_masks,
    language_tokens,
    mask_prompt,
    point_tokens,
)
from sa2va.model.network import Sa2VANetwork
from sa2va.processing.processor import Sa2VAProcessor, VisionInputs, squashed_frames

T = TypeVar("T")

#: Most rows that are written together (or prompts by marks decoded), and most pictures that pass an encoder together.
MAX_ROWS, MAX_PICTURES = 32, 8
#: Most tokens of all rows, at their longest.
CACHE_TOKENS = 131_072


class Work(Awaitable[T]):
    """A computation. ``await`` gives its result, or raises its error; any number of requests may.

    Attributes:
        is_done: whether it has been computed, or has failed. error: why it failed.
        computed: what came of it; None before, and where it failed.
        waiting: the requests that go on then.
    """

    def __init__(self) -> None:
        self.is_done = False
        self.error: Exception | None = None
        self.waiting: list[_Request[Any]] = []
        self.computed: T | None = None

    def finish(self, result: T) -> None:
        self.computed, self.is_done = result, True

    def fail(self, error: Exception) -> None:
        self.error, self.is_done = error, True

    @property
    def result(self) -> T:
        """What was computed.

        Raises:
            Exception: that of the computation.
        """
        if self.error is not None:
            raise self.error
        return self.computed  # pyright: ignore[reportReturnType]

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
        visual, cache: of the medium, see [`Reading`]. draft: gives an answer that may come, when the prompts are read.
        on_token: told (number of the prompt, token); what it raises cancels the answers.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        visual: VisualTokens | None,
        cache: PromptCache,
        draft: Callable[[], Sequence[int]] = tuple,
        on_token: Callable[[int, int], None] | None = None,
    ):
        super().__init__()
        self.prompts, self.options = prompts, options
        self.visual, self.cache, self.draft, self.on_token = visual, cache, draft, on_token
        self.rows: list[Row] = []

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its longest answer."""
        return max(map(len, self.prompts)) + self.options.max_new_tokens


class Pause(Work[None]):
    """Nothing: lets others have a turn between the frames of a clip."""


class _Request(Generic[T]):
    """A coroutine on its way."""

    def __init__(
        self,
        steps: Coroutine[Work[Any], None, T],
        whole: Together | None = None,
        check: Callable[[], object] | None = None,
    ):
        self.steps = steps
        self.whole = whole  # what it is a part of
        self.check = check  # raises what ends it
        self.turn = threading.Event()  # it is over, or its thread is to drive
        self.is_over = False
        self.is_cancelled = False
        self.result: T | None = None
        self.error: BaseException | None = None

    def advance(self) -> Work[Any] | None:
        """Run up to the next work that is not done, or to the end."""
        try:
            while (work := self.steps.send(None)).is_done:
                pass
            return work
        except StopIteration as stop:
            self.end(stop.value)
        except Exception as error:
            self.end(None, error)
        return None

    def end(self, result: T | None, error: BaseException | None = None) -> None:
        self.steps.close()
        self.result, self.error, self.is_over = result, error, True
        self.turn.set()

    def end_unwanted(self) -> bool:
        """End it if nobody waits for it any more, or its check raises."""
        error: Exception | None = None
        if self.check is not None:
            try:
                self.check()
            except Exception as raised:
                error = raised
        unwanted = self.whole is not None and all(other.is_over for other in self.whole.waiting)
        if self.is_cancelled or unwanted or error is not None:
            self.end(None, error)
        return self.is_over

    def outcome(self) -> T:
        if self.error is not None:
            raise self.error
        return self.result  # pyright: ignore[reportReturnType]


class Engine:
    """A model and its processor, and the requests that they work on.

    Attributes:
        max_rows: most answers that are written together. cache_tokens: most tokens in the key-value cache of all of
            them, each counted with its longest answer; who does not fit waits.
    """

    def __init__(
        self,
        model: Sa2VANetwork,
        processor: Sa2VAProcessor,
        *,
        max_rows: int = MAX_ROWS,
        cache_tokens: int = CACHE_TOKENS,
    ):
        self.model, self.processor = model, processor
        self.max_rows, self.cache_tokens = max_rows, cache_tokens
        self._vitmattes: dict[str, VitMatte] = {}
        self._of_thread = threading.local()
        self._mutex = threading.Lock()  # over the next three
        self._driver: int | None = None  # the thread that computes
        self._arrived: deque[_Request[Any]] = deque()
        self._waiting: deque[_Request[Any]] = deque()  # those whose threads may drive next
        self._reset()

    def _reset(self) -> None:
        self._open: list[_Request[Any]] = []
        kinds = (Pause, Decode, DecodeMarks, Matte, EncodeFrame, Encode, Write)
        self._work: dict[type, list[Any]] = {kind: [] for kind in kinds}
        self._written: list[Write] = []
        family = self.model.config.family
        self._reader = PromptReader(self.model.vlm, family, self.model.config.seg_token_id)
        self._rows = RowBatch(self.model.vlm, family)

    # -- requests ------------------------------------------------------------------------------------------------------

    def run(self, steps: Coroutine[Any, Any, T]) -> T:
        """Answer a request, together with those of other threads."""
        request = self._submit(steps)
        self._drive(request)
        return request.outcome()

    def map(self, requests: Iterable[Coroutine[Any, Any, T]], ahead: int) -> Iterator[T | Exception]:
        """Answer requests in order, lazily; an error takes the place of its answer.

        Args:
            ahead: how many are worked on at once.
        """
        submitted: deque[_Request[T]] = deque()
        try:
            for steps in requests:
                submitted.append(self._submit(steps))
                if len(submitted) >= ahead:
                    yield self._next(submitted)
            while submitted:
                yield self._next(submitted)
        finally:
            for request in submitted:
                request.is_cancelled = True

    def _next(self, submitted: deque[_Request[T]]) -> T | Exception:
        request = submitted[0]
        self._drive(request)
        submitted.popleft()
        if isinstance(request.error, Exception):
            return request.error
        return request.outcome()

    def _submit(self, steps: Coroutine[Any, Any, T]) -> _Request[T]:
        request = _Request(steps, check=getattr(self._of_thread, "check", None))
        with self._mutex:
            self._arrived.append(request)
        return request

    @contextmanager
    def stoppable(self, check: Callable[[], object]) -> Iterator[None]:
        """End the requests that this thread makes inside the block with what ``check`` raises, as soon as it does.

        It is called between passes of the model, by whichever thread computes, so it must be quick.
        """
        self._of_thread.check = check
        try:
            yield
        finally:
            del self._of_thread.check

    def check(self) -> None:
        """Raise what would end a request that this thread makes now, see [`stoppable`]."""
        check = getattr(self._of_thread, "check", None)
        if check is not None:
            check()

    # -- driving -------------------------------------------------------------------------------------------------------

    def _drive(self, request: _Request[Any]) -> None:
        """Return when a request is over: let another thread work for it, or work for all until it is."""
        here = threading.get_ident()
        with self._mutex:
            if self._driver == here:
                raise RuntimeError("a callback of a request cannot ask the same model; ask after the answer has come")
            drives = self._driver is None
            if drives:
                self._driver = here
            else:
                self._waiting.append(request)
        if not drives:
            request.turn.wait()  # set when it is over, or when this thread is to drive
            with self._mutex:
                if request in self._waiting:
                    self._waiting.remove(request)
                drives = not request.is_over
                if drives:
                    self._driver = here
        if not drives:
            return
        try:
            with torch.inference_mode():
                while not request.is_over:
                    self._turn()
        except BaseException as interrupt:  # such as Ctrl-C: what was half done is of no use
            self._abandon(interrupt)
            raise
        finally:
            self._hand_over()

    def _hand_over(self) -> None:
        with self._mutex:
            self._driver = None
            while self._waiting:
                other = self._waiting.popleft()
                if not other.is_over:
                    other.turn.set()
                    self._driver = -1  # that thread, as soon as it wakes
                    return

    def _abandon(self, interrupt: BaseException) -> None:
        with self._mutex:
            left = [*self._open, *self._arrived]
            self._arrived.clear()
        for request in left:
            if not request.is_over:
                error = RuntimeError(f"the thread that was computing was interrupted ({interrupt!r}); ask again")
                request.end(None, error)
        self._reset()

    def _turn(self) -> None:
        """One batch of the work that is waiting: first what ends requests, then what lets others join those that are
        being written, last a step of these."""
        with self._mutex:
            arrived = list(self._arrived)
            self._arrived.clear()
        self._open += arrived
        for request in arrived:
            self._advance(request)
        self._drop_cancelled()
        paused, self._work[Pause] = self._work[Pause], []
        for pause in paused:
            pause.finish(None)
            self._done(pause)
        if self._work[Decode]:
            self._compute(Decode, self._decode, len(self._work[Decode]))
        elif self._work[DecodeMarks]:
            self._compute(DecodeMarks, self._decode_marks, _alike(self._work[DecodeMarks]))
        elif self._work[Matte]:
            self._compute(Matte, self._matte, 1)
        elif self._work[EncodeFrame]:
            self._compute(EncodeFrame, self._encode_frames, MAX_PICTURES)
        elif self._work[Encode]:
            self._compute(Encode, self._encode, MAX_PICTURES)
        elif self._work[Write] and self._fits([self._work[Write][0]]):
            self._read(self._next_to_read())
        elif self._rows.rows and self._rows.step():
            self._collect()

    def _advance(self, request: _Request[Any]) -> None:
        work = request.advance()
        if work is None:
            self._open.remove(request)
            if request.whole is not None and all(part.is_over for part in request.whole.parts):
                self._join_parts(request.whole)
            return
        work.waiting.append(request)
        if isinstance(work, Together):
            work.parts = [_Request(steps, work) for steps in work.steps]
            self._open += work.parts
            for part in work.parts:
                self._advance(part)
        elif work not in self._work[type(work)] and work not in self._written:
            self._work[type(work)].append(work)

    def _done(self, work: Work[Any]) -> None:
        for request in work.waiting:
            if not request.is_over:  # one that was ended while others went on waiting
                self._advance(request)

    def _join_parts(self, whole: Together) -> None:
        """All parts are over: the request that waits for them goes on, or fails with the first that did."""
        failed = next((part.error for part in whole.parts if part.error is not None), None)
        if failed is None:
            whole.finish([part.result for part in whole.parts])
        else:
            whole.fail(failed)
        self._done(whole)

    def _drop_cancelled(self) -> None:
        cancelled = []
        for request in list(self._open):  # a whole stands before its parts
            if request.end_unwanted():
                self._open.remove(request)
                cancelled.append(request)
        if cancelled:
            for works in (*self._work.values(), self._written):
                works[:] = [work for work in works if not all(request.is_over for request in work.waiting)]
            wanted = {id(row) for work in self._written for row in work.rows}
            for row in [row for row in self._rows.rows if id(row) not in wanted]:
                self._rows.drop(row)

    def _compute(self, kind: type[Work[Any]], compute: Callable[[list[Any]], list[Any]], most: int) -> None:
        """Compute a batch; if it fails, each part of it alone, so that only the one at fault does."""
        works, self._work[kind] = self._work[kind][:most], self._work[kind][most:]
        try:
            for work, result in zip(works, compute(works), strict=True):
                work.finish(result)
        except Exception as error:
            for work in works:
                try:
                    if len(works) == 1:
                        raise error
                    work.finish(compute([work])[0])
                except Exception as own:
                    work.fail(own)
        for work in works:
            self._done(work)

    # -- work ----------------------------------------------------------------------------------------------------------

    def _encode(self, works: list[Encode]) -> list[VisualTokens]:
        visions = [work.vision for work in works]
        grids = [vision.image_grid_thw for vision in visions if vision.image_grid_thw is not None]
        visual = self.model.encode_images(
            torch.cat([vision.pixel_values for vision in visions]), torch.cat(grids) if grids else None
        )
        return visual.split([sum(vision.tokens_per_image) for vision in visions], [len(grid) for grid in grids])

    def _encode_frames(self, works: list[EncodeFrame]) -> list[FrameFeatures]:
        pixels = squashed_frames([work.image for work in works], self.processor.grounding_side)
        features = self.model.encode_frames(pixels)
        return [features[row] for row in range(len(works))]

    def _decode(self, works: list[Decode]) -> list[MaskPrediction]:
        sam2 = self.model.sam2
        counts = [len(work.prompts_KC) for work in works]
        tokens = language_tokens(sam2, torch.cat([work.prompts_KC for work in works]))
        features, frames = _side_by_side([work.features for work in works], counts)
        return decode_masks(sam2, sam2.mask_decoder, features, tokens, frame_of_prompt_N=frames).split(counts)

    def _decode_marks(self, works: list[DecodeMarks]) -> list[MaskPrediction]:
        sam2, first = self.model.sam2, works[0]
        counts = [len(work.labels_KP) for work in works]
        points = torch.cat([work.points_KP2 for work in works]).to(sam2.device)
        labels = torch.cat([work.labels_KP for work in works]).to(sam2.device)
        features, frames = _side_by_side([work.features for work in works], counts)
        drawn = [work.logits_KHW.to(sam2.device) for work in works if work.logits_KHW is not None]
        original = self.model.original_mask_decoder
        prediction = decode_masks(
            sam2,
            original if first.original and original is not None else sam2.mask_decoder,
            features,
            point_tokens(sam2, points, labels),
            frame_of_prompt_N=frames,
            dense_NChw=torch.cat([mask_prompt(sam2, logits) for logits in drawn]) if drawn else None,
            multimask=not drawn,
        )
        return prediction.split(counts)

    def _matte(self, works: list[Matte]) -> list[Tensor]:
        return [self._vitmatte(work.weights).alpha(work.image, work.trimap) for work in works]

    def _vitmatte(self, weights: str) -> VitMatte:
        if weights not in self._vitmattes:
            self._vitmattes[weights] = VitMatte.load(weights, self.model.sam2.device)
        return self._vitmattes[weights]

    def _fits(self, works: Sequence[Write]) -> bool:
        """Whether the rows of such requests may join."""
        rows = len(self._rows.rows) + sum(len(work.prompts) for work in works)
        longest = max([work.longest for work in works] + [row.longest for row in self._rows.rows])
        alone = not self._rows.rows and len(works) == 1
        return alone or (rows <= self.max_rows and rows * longest <= self.cache_tokens)

    def _next_to_read(self) -> list[Write]:
        """The first request that waits, and those behind it that are worth reading in one pass with it."""
        waiting, chosen = self._work[Write], [self._work[Write].pop(0)]
        if not waiting:
            return chosen
        lengths = [self._reader.unread(reading) for reading in self._readings(chosen[0])]
        while waiting and self._fits([*chosen, waiting[0]]):
            lengths += [self._reader.unread(reading) for reading in self._readings(waiting[0])]
            if not fit_a_pass(lengths):
                break
            chosen.append(waiting.pop(0))
        return chosen

    def _read(self, works: Sequence[Write]) -> None:
        """Read the prompts of requests and let their rows join those that are being written."""
        readings = [self._readings(work) for work in works]
        try:
            rows = iter(self._reader.read([reading for own in readings for reading in own]))
        except Exception as error:
            if len(works) > 1:  # each alone, so that only the one at fault fails
                for work in works:
                    self._read([work])
                return
            works[0].fail(error)
            self._done(works[0])
            return
        for work, own in zip(works, readings, strict=True):
            work.rows = list(islice(rows, len(own)))
            self._written.append(work)
            for row in work.rows:
                if not row.is_over:
                    self._rows.join(row)
        if len(self._rows.rows) < sum(len(work.rows) for work in self._written):
            self._collect()

    def _readings(self, work: Write) -> list[Reading]:
        tell, draft = work.on_token, work.draft()
        return [
            Reading(
                prompt,
                work.visual,
                work.options,
                self.processor.is_finished,
                None if tell is None else partial(tell, number),
                work.cache,
                draft,
            )
            for number, prompt in enumerate(work.prompts)
        ]

    def _collect(self) -> None:
        """End the work whose rows are all over, or one of whose rows has failed."""
        for work in list(self._written):
            failed = next((row for row in work.rows if row.error is not None), None)
            if failed is None and not all(row.is_over for row in work.rows):
                continue
            self._written.remove(work)
            if failed is None:
                work.finish([row.generated() for row in work.rows])
            else:
                assert failed.error is not None
                for row in [row for row in self._rows.rows if row in work.rows]:
                    self._rows.drop(row)
                work.fail(failed.error)
            self._done(work)


def _side_by_side(features: Sequence[FrameFeatures], counts: Sequence[int]) -> tuple[FrameFeatures, Tensor]:
    """Frames of several works as one batch, and the frame of each prompt."""
    frames = torch.arange(len(features), device=features[0].top.device)
    joined = features[0] if len(features) == 1 else FrameFeatures.cat(features)
    return joined, frames.repeat_interleave(torch.tensor(counts, device=frames.device))


def _alike(works: Sequence[DecodeMarks]) -> int:
    """How many of the first works are one batch: as many points, with masks or without, for one decoder."""
    kinds = [(work.labels_KP.shape[1], work.logits_KHW is None, work.original) for work in works]
    prompts = accumulate(len(work.labels_KP) for work in works)
    fits = [kind == kinds[0] and count <= MAX_ROWS for kind, count in zip(kinds, prompts, strict=True)]
    return max(1, fits.index(False) if False in fits else len(fits))
