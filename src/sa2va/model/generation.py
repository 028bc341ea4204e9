"""Answers: prompts are read, their tokens chosen, several at a time (continuous batching, speculative drafts).

*Reading*, up to the first token of an answer. Prompts that wait at the same time are read in one pass, whatever
pictures they are about. What was read of a medium is kept in a [`PromptCache`], from which every later prompt that
begins alike goes on; several prompts about one medium read what they share once. What the answer will probably be may
be given as a draft: it is read with the prompt and kept as far as the model would have written it itself (speculative
decoding, arXiv 2211.17192, with an earlier answer in place of a smaller model).

*Writing*. On a GPU a step of the language model costs much the same for one row as for thirty, so rows join and leave
at any step, and each grows at an end of its own (scheduling by iteration: Orca, Yu et al., OSDI 2022, section 3.1).

Shape legend: B prompts or rows, T tokens of the longest text that is kept, L tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sa2va.model import language
from sa2va.model.families import Family
from sa2va.model.finite import not_finite
from sa2va.model.language import KeyValues, PromptCache, VisualTokens, holds_whole_text

#: Most tokens of a pass, padding included, and how much of them may be padding: this share, or so few.
_TOKENS_A_PASS, _PADDING_SHARE, _LITTLE_PADDING = 4096, 0.25, 256
#: From so many tokens on, what prompts share is read once, in a pass of its own.
_WORTH_A_PASS = 64


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are written.

    Attributes:
        max_new_tokens: upper limit on the answer's tokens.
        temperature: 0 chooses the likeliest token (the released behaviour); above 0 samples.
        top_p, top_k: sample from the likeliest tokens only; 1.0 and 0 switch them off.
        repetition_penalty: above 1.0 makes tokens that already occurred less likely.
        seed: of the sampling; None takes torch's global generator.
    """

    max_new_tokens: int = 2048
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": (_is_whole(self.max_new_tokens) and self.max_new_tokens >= 1, "an integer of at least 1"),
            "temperature": (_is_finite(self.temperature) and self.temperature >= 0, "a finite number of at least 0"),
            "top_p": (_is_finite(self.top_p) and 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            "top_k": (_is_whole(self.top_k) and self.top_k >= 0, "an integer of at least 0"),
            "repetition_penalty": (
                _is_finite(self.repetition_penalty) and self.repetition_penalty > 0,
                "a finite number above 0",
            ),
            "seed": (
                self.seed is None or (_is_whole(self.seed) and -(2**63) <= self.seed < 2**64),
                "None or an integer of 64 bits",
            ),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"{name} must be {expected}; got {getattr(self, name)!r}")

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is always taken, whatever was said before."""
        return self.temperature == 0 and self.repetition_penalty == 1.0

    def processors(self) -> LogitsProcessorList:
        """transformers' own logits processors for these settings."""
        chosen = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            chosen.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature > 0:
            chosen.append(TemperatureLogitsWarper(self.temperature))
            if self.top_k:
                chosen.append(TopKLogitsWarper(self.top_k))
            if self.top_p < 1.0:
                chosen.append(TopPLogitsWarper(self.top_p))
        return chosen


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


class Sampler:
    """Chooses the tokens of one row, so that they do not depend on what else is being written."""

    def __init__(self, options: GenerationOptions, device: torch.device):
        self._options = options
        self._processors: Any = options.processors()  # typed for LongTensor, a class that no tensor has
        self._random = None if options.seed is None else torch.Generator(device).manual_seed(options.seed)

    def choose(self, logits_V: Tensor, said: Sequence[int]) -> int:
        """The next token after those of the prompt and the answer so far."""
        ids = torch.tensor([list(said)], device=logits_V.device)
        logits_1V = self._processors(ids, logits_V[None])
        if self._options.temperature == 0:
            return int(logits_1V.argmax())
        return int(torch.multinomial(logits_1V.softmax(dim=-1), 1, generator=self._random))


@dataclass(frozen=True)
class Generated:
    """One generated answer.

    Attributes:
        token_ids: new token ids, the stop token included.
        seg_states: (n, D) states at the generated ``[SEG]`` tokens; one that ends the answer was never read back and
            has none.
        prompt_seg_states: (m, D) the same for ``[SEG]`` tokens of the prompt.
    """

    token_ids: list[int]
    seg_states: Tensor
    prompt_seg_states: Tensor


class Row:
    """One answer being written.

    Attributes:
        prompt: token ids. tokens: of the answer so far; the last of them is not read back yet.
        finished: the answer is whole. error: why it was given up.
        position: of the last token. layers: what was read, until the row joins a batch.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        *,
        seg_token_id: int,
        prompt_seg_states: Tensor,
        position: int,
        is_finished: Callable[[list[int]], bool],
        on_token: Callable[[int], None] | None = None,
        kept: PromptCache | None = None,
    ):
        self.prompt = list(prompt)
        self.options = options
        self.tokens: list[int] = []
        self.finished = False
        self.error: Exception | None = None
        self.position = position
        self.layers: KeyValues = ()
        self._seg_token_id = seg_token_id
        self._prompt_seg_states = prompt_seg_states
        self._seg_states: list[Tensor] = []
        self._sampler = None if options.is_plain else Sampler(options, prompt_seg_states.device)
        self._is_finished, self._on_token, self._kept = is_finished, on_token, kept

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be written."""
        return self.finished or self.error is not None

    @property
    def longest(self) -> int:
        """Tokens of the prompt and of the longest answer."""
        return len(self.prompt) + self.options.max_new_tokens

    def write(self, logits_V: Tensor, likeliest: int) -> None:
        """Choose the next token and tell it. An error of the listener ends the row, as one that cancels does."""
        sampler = self._sampler
        self.append(likeliest if sampler is None else sampler.choose(logits_V, [*self.prompt, *self.tokens]))

    def append(self, token: int) -> None:
        """Add a token to the answer."""
        self.tokens.append(token)
        try:
            if self._on_token is not None:
                self._on_token(token)
            self.finished = self._is_finished(self.tokens) or len(self.tokens) == self.options.max_new_tokens
        except Exception as error:
            self.error = error

    def accept(self, tokens: Sequence[int], states_LD: Tensor) -> None:
        """Add tokens that were read already, as far as the answer goes, with the states at them."""
        for token, state_D in zip(tokens, states_LD, strict=False):
            self.append(token)
            if self.is_over:
                break
            self.remember(state_D)

    def remember(self, seg_state_D: Tensor) -> None:
        """Keep the state of the last token if it is ``[SEG]``."""
        if self.tokens[-1] == self._seg_token_id:
            self._seg_states.append(seg_state_D)

    def leave(self, layers: Callable[[], KeyValues]) -> None:
        """Leave what was read, the answer included, to the next turn of the conversation."""
        if self._kept is not None and self.error is None:
            said = [*self.prompt, *self.tokens[:-1]]
            places = [position for position, token in enumerate(said) if token == self._seg_token_id]
            states = torch.cat([self._prompt_seg_states, self._stacked()])
            self._kept.keep(said, dict(zip(places, states, strict=True)), layers)
        self.layers = ()

    def generated(self) -> Generated:
        """The answer.

        Raises:
            Exception: the row was given up.
        """
        if self.error is not None:
            raise self.error
        return Generated(self.tokens, self._stacked(), self._prompt_seg_states)

    def _stacked(self) -> Tensor:
        return torch.stack(self._seg_states) if self._seg_states else self._prompt_seg_states[:0]


class RowBatch:
    """Rows that are written together."""

    def __init__(self, vlm: PreTrainedModel, family: Family):
        self._vlm, self._family = vlm, family
        self._cache = language.RowCache()
        self.rows: list[Row] = []

    def write(self, rows: Sequence[Row]) -> list[Generated]:
        """Write answers to the end.

        Raises:
            FloatingPointError: the logits are NaN or infinite.
        """
        for row in rows:
            if not row.is_over:
                self.join(row)
        while self.rows:
            self.step()
        return [row.generated() for row in rows]

    def join(self, row: Row) -> None:
        """Let a row that has its first token write with the others."""
        self._cache.join(row.layers)
        self.rows.append(row)
        row.layers = ()

    def step(self) -> list[Row]:
        """Write a token of every row.

        Returns:
            the rows that have left: they are finished, or were given up.
        """
        states = self._cache.read_back(
            self._vlm, self._family, [row.tokens[-1] for row in self.rows], [row.position for row in self.rows]
        )
        _go_on(self._vlm, self.rows, states)
        left = [row for row in self.rows if row.is_over]
        for row in left:
            self.drop(row)
        return left

    def drop(self, row: Row) -> None:
        """Free a row at once."""
        place = self.rows.index(row)
        row.leave(partial(self._cache.read, place))
        self._cache.leave(place)
        self.rows[place] = self.rows[-1]
        self.rows.pop()


def _go_on(vlm: PreTrainedModel, rows: Sequence[Row], states: language.LanguageStates) -> None:
    """Choose the next token of every row from the states at its last one."""
    for number, row in enumerate(rows):
        row.position += 1
        row.remember(states.seg[number, 0])
    choose(vlm, rows, vlm.lm_head(states.normed[:, -1]))


def choose(vlm: PreTrainedModel, rows: Sequence[Row], logits_BV: Tensor) -> None:
    """Choose the next token of every row; one whose logits are not finite is given up."""
    finite_B = logits_BV.isfinite().all(dim=-1)
    # Sampling from NaN is an error of its own, which takes a CUDA device down with it.
    safe = torch.where(finite_B[:, None], logits_BV.float(), 0.0)
    likeliest = torch.where(finite_B, safe.argmax(dim=-1), -1).tolist()
    for number, row in enumerate(rows):
        if row.is_over:
            continue
        if likeliest[number] < 0:
            row.error = not_finite("the vision-language model", logits_BV.dtype, vlm)
        else:
            row.write(safe[number], likeliest[number])


@dataclass(frozen=True)
class Reading:
    """A prompt to be read.

    Attributes:
        prompt: token ids, image tokens expanded. visual: the features of its pictures.
        is_finished: told the new tokens, says whether they end the answer.
        on_token: told each token as soon as it is chosen.
        kept: what earlier prompts about these pictures have left, and where this one leaves what it reads.
        draft: token ids of a whole answer that may be the one to come. Greedy writing gives the same tokens with and
            without; sampling ignores it.
    """

    prompt: Sequence[int]
    visual: VisualTokens | None
    options: GenerationOptions
    is_finished: Callable[[list[int]], bool]
    on_token: Callable[[int], None] | None = None
    kept: PromptCache | None = None
    draft: Sequence[int] = ()


@dataclass(frozen=True)
class _Plan:
    """What is to be read of a prompt.

    Attributes:
        shares: it may be read in parts, and read and written in passes with others.
        known: tokens of it that need not be read. draft: what is read of its draft.
    """

    reading: Reading
    shares: bool
    known: int
    draft: Sequence[int]

    @property
    def text(self) -> list[int]:
        """The prompt and its draft."""
        return [*self.reading.prompt, *self.draft]


class PromptReader:
    """Reads prompts with a language model."""

    def __init__(self, vlm: PreTrainedModel, family: Family, seg_token_id: int):
        self._vlm, self._family, self._seg_token_id = vlm, family, seg_token_id
        self._text_config = vlm.config.get_text_config()
        dynamic = (self._text_config.rope_parameters or {}).get("rope_type") == "dynamic"
        self._window = self._text_config.max_position_embeddings if dynamic else None
        self._keeps_all = holds_whole_text(DynamicCache(config=self._text_config))

    def unread(self, reading: Reading) -> int | None:
        """How many tokens are to be read, those of the draft included; None for a prompt that shares no pass."""
        plan = self._plan(reading)
        return len(plan.text) - plan.known if plan.shares else None

    def read(self, readings: Sequence[Reading]) -> list[Row]:
        """A row of each prompt, with its first tokens, in order.

        Args:
            readings: in as few passes as [`fit_a_pass`] allows. Those rows that are not over then join a
                [`RowBatch`].
        """
        rows: list[Row] = []
        with language.whole_text(self._vlm):
            self._read_shared(readings)
            lengths = [self.unread(reading) for reading in readings]
            while len(rows) < len(readings):
                first = end = len(rows)
                while end < len(readings) and fit_a_pass(lengths[first : end + 1]):
                    end += 1
                rows += self._read_pass([self._plan(reading) for reading in readings[first : max(end, first + 1)]])
        return rows

    def _plan(self, reading: Reading) -> _Plan:
        """What is to be read, by what is kept now.

        Dynamic RoPE re-scales all positions by the length of a pass once that exceeds the window, so beyond it a split
        pass would compute other numbers than a whole one. A layer that keeps only a window of its tokens has none to
        share. What is known must hold all pictures. The last token of a draft need not be read to be chosen, and an
        image token that is written is a word, not the place of a picture.
        """
        most = reading.options.max_new_tokens
        if not self._keeps_all or (self._window is not None and len(reading.prompt) + most > self._window):
            return _Plan(reading, False, 0, ())
        known = 0 if reading.kept is None else reading.kept.matching(reading.prompt[:-1])
        if not self._holds_pictures([reading.prompt], known):
            known = 0
        draft = reading.draft[:most][:-1]
        follows = reading.options.is_plain and self._vlm.config.image_token_id not in draft
        return _Plan(reading, True, known, draft if follows else ())

    def _holds_pictures(self, prompts: Sequence[Sequence[int]], length: int) -> bool:
        """Whether the first ``length`` tokens of each prompt hold all of its image tokens."""
        return not any(self._vlm.config.image_token_id in prompt[length:] for prompt in prompts)

    def _read_shared(self, readings: Sequence[Reading]) -> None:
        """Read what several prompts about one medium begin with, once."""
        by_cache: dict[int, list[_Plan]] = {}
        for plan in map(self._plan, readings if len(readings) > 1 else ()):
            if plan.shares and plan.reading.kept is not None:
                by_cache.setdefault(id(plan.reading.kept), []).append(plan)
        for group in by_cache.values():
            first, prompts = group[0], [plan.reading.prompt for plan in group]
            shared = shared_prefix(prompts)
            if len(group) > 1 and shared - first.known >= _WORTH_A_PASS and self._holds_pictures(prompts, shared):
                beginning = replace(first, reading=replace(first.reading, prompt=prompts[0][:shared]), draft=())
                read = self._run([beginning])
                states = read.prompt_seg_states(0, self._seg_token_id)
                self._keep(beginning.reading, read.layers(0, 0), states)

    def _read_pass(self, plans: Sequence[_Plan]) -> list[Row]:
        """Rows of prompts that are read in one pass."""
        read = self._run(plans)
        longest_draft = max(len(plan.draft) for plan in plans)
        logits_BLV = self._vlm.lm_head(read.states.normed[:, -1 - longest_draft :])
        likeliest = logits_BLV.argmax(dim=-1).tolist() if longest_draft else [[]] * len(plans)
        caches = [id(plan.reading.kept) for plan in plans]
        rows, following = [], []
        for number, plan in enumerate(plans):
            reading, draft = plan.reading, plan.draft
            agrees = zip(draft, likeliest[number][-1 - len(draft) :], strict=False)
            accepted = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], agrees))
            leaves = reading.kept is not None and caches.count(id(reading.kept)) == 1 and plan.shares
            seg_states = read.prompt_seg_states(number, self._seg_token_id)
            row = Row(
                reading.prompt,
                reading.options,
                seg_token_id=self._seg_token_id,
                prompt_seg_states=seg_states,
                position=read.next_position(number) + accepted,
                is_finished=reading.is_finished,
                on_token=reading.on_token,
                kept=reading.kept if leaves else None,
            )
            row.layers = read.layers(number, accepted)
            if leaves:
                self._keep(reading, row.layers, seg_states)
            row.accept(draft[:accepted], read.draft_states(number))
            rows.append(row)
            following.append(logits_BLV[number, -1 - len(draft) + accepted])
        choose(self._vlm, rows, torch.stack(following))
        if not plans[0].shares:
            self._write_alone(rows[0], read.cache)
        for row in rows:
            if row.is_over:
                row.leave(lambda row=row: row.layers)
        return rows

    def _keep(self, reading: Reading, layers: KeyValues, seg_states: Tensor) -> None:
        """Leave a prompt to those that begin alike at once: they need not wait for its answer."""
        assert reading.kept is not None
        places = [place for place, token in enumerate(reading.prompt) if token == self._seg_token_id]
        reading.kept.keep(reading.prompt, dict(zip(places, seg_states, strict=True)), lambda: layers)

    def _write_alone(self, row: Row, cache: DynamicCache) -> None:
        """Write to the end what cannot share a pass with other texts: dynamic RoPE beyond its window would turn those
        by other angles, and a layer that keeps only a window of its tokens has no place for a longer row's."""
        while not row.is_over:
            read = torch.ones(1, len(row.prompt) + len(row.tokens), dtype=torch.bool, device=self._device)
            states = language.read_back(self._vlm, self._family, [row.tokens[-1]], [row.position], read, cache)
            _go_on(self._vlm, [row], states)

    def _run(self, plans: Sequence[_Plan]) -> _Pass:
        """Read what is not known of each prompt, and its draft, left-padded to one length after left-padded caches."""
        texts = [torch.tensor([plan.text], device=self._device) for plan in plans]
        places = [self._positions(plan) for plan in plans]
        new = [len(plan.text) - plan.known for plan in plans]
        before, longest = max(plan.known for plan in plans), max(new)
        ids = torch.cat([_left_pad(text[:, -count:], longest - count) for text, count in zip(texts, new, strict=True)])
        position_ids = torch.stack(
            [_left_pad(place[..., -count:], longest - count) for place, count in zip(places, new, strict=True)], -2
        )
        mask = torch.ones(len(plans), before + longest, dtype=torch.bool, device=self._device)
        for row, (plan, count) in enumerate(zip(plans, new, strict=True)):
            mask[row, : before - plan.known] = False
            mask[row, before : before + longest - count] = False
        visual = VisualTokens.cat([plan.reading.visual for plan in plans if not plan.known])
        cache = DynamicCache(config=self._text_config)
        if before:
            _fill(cache, [plan.reading.kept for plan in plans], [plan.known for plan in plans])
        states = language.run_language_model(
            self._vlm,
            self._family,
            language.embed_tokens(self._vlm, ids, visual),
            position_ids,
            mask,
            cache=cache,
            visual=visual,
            is_image_BL=language.image_tokens(self._vlm, ids),
        )
        return _Pass(cache, states, mask, ids, places, plans)

    def _positions(self, plan: _Plan) -> Tensor:
        """(L,) of every token of a prompt and its draft, or (3, L) in families with multimodal RoPE."""
        ids = torch.tensor([list(plan.reading.prompt)], device=self._device)
        grid = None if plan.reading.visual is None else plan.reading.visual.image_grid_thw
        place = language.positions(self._vlm, ids, torch.ones_like(ids, dtype=torch.bool), grid)[..., 0, :]
        after = place.max() + 1 + torch.arange(len(plan.draft), device=self._device)
        return torch.cat([place, after.expand(*place.shape[:-1], len(plan.draft))], dim=-1)

    @property
    def _device(self) -> Any:
        return self._vlm.get_input_embeddings().weight.device


@dataclass(frozen=True)
class _Pass:
    """What was read in one pass.

    Attributes:
        mask_BT: bool, the tokens of each row in the cache. ids_BL: those of the pass, left-padded.
        places: positions of each prompt and its draft.
    """

    cache: DynamicCache
    states: language.LanguageStates
    mask_BT: Tensor
    ids_BL: Tensor
    places: Sequence[Tensor]
    plans: Sequence[_Plan]

    def next_position(self, row: int) -> int:
        """Of the token after a prompt."""
        return int(self.places[row][..., -1].max()) + 1 - len(self.plans[row].draft)

    def prompt_seg_states(self, row: int, seg_token_id: int) -> Tensor:
        """(m, D) the states at the ``[SEG]`` tokens of a prompt."""
        plan = self.plans[row]
        end = self.ids_BL.shape[1] - len(plan.draft)
        start = end - (len(plan.reading.prompt) - plan.known)
        states = self.states.seg[row, start:end][self.ids_BL[row, start:end] == seg_token_id]
        before = plan.reading.kept.seg_states(plan.known) if plan.reading.kept is not None and plan.known else []
        return torch.cat([torch.stack(before), states]) if before else states

    def draft_states(self, row: int) -> Tensor:
        """(L, D) the states at the tokens of a draft."""
        return self.states.seg[row, self.ids_BL.shape[1] - len(self.plans[row].draft) :]

    def layers(self, row: int, accepted: int) -> KeyValues:
        """The keys and values of a prompt and of the first tokens of its draft; of a single row without copying."""
        end = self.mask_BT.shape[1] - len(self.plans[row].draft) + accepted
        mask_T = self.mask_BT[row, :end] if len(self.mask_BT) > 1 else None

        def own(tensor_BHTD: Tensor) -> Tensor:
            of_row = tensor_BHTD[row : row + 1, :, :end]
            return of_row if mask_T is None else of_row[:, :, mask_T.to(of_row.device)]

        layers: Any = self.cache.layers
        return [(own(layer.keys), own(layer.values)) for layer in layers]


def fit_a_pass(lengths: Sequence[int | None]) -> bool:
    """Whether prompts with so many unread tokens are worth reading together: a long one fills the device by itself, and
    beside a much longer one most of a pass is padding. None stands for one that shares no pass."""
    known = [length for length in lengths if length is not None]
    if len(known) < len(lengths):
        return False
    tokens = len(known) * max(known)
    padding = tokens - sum(known)
    return tokens <= _TOKENS_A_PASS and padding <= max(_PADDING_SHARE * sum(known), _LITTLE_PADDING)


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all prompts begin with, leaving each at least one of its own."""
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False)))
    return min(common, min(len(prompt) for prompt in prompts) - 1)


def _fill(cache: DynamicCache, kept: Sequence[PromptCache | None], lengths: Sequence[int]) -> None:
    """Fill an empty cache with the first tokens of kept texts, left-padded to one length. Padding is zero: a masked NaN
    would still be one."""
    texts = [one.layers(length) if one and length else None for one, length in zip(kept, lengths, strict=True)]
    some = next(text for text in texts if text is not None)
    layers: Any = cache.layers
    for number, layer in enumerate(layers):
        layer.lazy_initialization(*some[number])
        nothing = tuple(part[..., :0, :] for part in some[number])
        pairs = [nothing if text is None else text[number] for text in texts]
        layer.keys, layer.values = (_padded_batch(parts, max(lengths)) for parts in zip(*pairs, strict=True))


def _padded_batch(parts_1HLD: Sequence[Tensor], length: int) -> Tensor:
    if len(parts_1HLD) == 1:
        return parts_1HLD[0]
    pad = torch.nn.functional.pad
    return torch.cat([pad(part, (0, 0, length - part.shape[-2], 0)) for part in parts_1HLD])


def _left_pad(tensor: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (count, 0))
