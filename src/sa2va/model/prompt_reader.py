"""Reading prompts, up to the first token of their answers.

Prompts that wait at the same time are read in one pass, whatever pictures they are about. What was read of a medium is
kept in a [`PromptCache`], from which every later prompt that begins alike goes on; several prompts about one medium
read what they share once. What the answer will probably be may be given as a draft: it is read with the prompt and
kept as far as the model would have written it itself (speculative decoding, arXiv 2211.17192, with an earlier answer
in place of a smaller model). Rows that are read are written together, see [`sa2va.model.row_batch`].

Shape legend: B prompts, P tokens of the longest text that is kept, L tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from sa2va.model import language
from sa2va.model.families import Family
from sa2va.model.prompt_cache import KeyValues, PromptCache, holds_whole_text
from sa2va.model.row_batch import Row, choose, write_rows
from sa2va.model.sampling import GenerationOptions
from sa2va.model.types import VisualTokens

#: Most tokens of a pass, padding included, and how much of them may be padding: this share, or so few.
_TOKENS_A_PASS, _PADDING_SHARE, _LITTLE_PADDING = 4096, 0.25, 256
#: From so many tokens on, what prompts share is read once, in a pass of its own.
_WORTH_A_PASS = 64


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


class PromptReader:
    """Reads prompts with a language model."""

    def __init__(self, vlm: PreTrainedModel, family: Family, seg_token_id: int):
        self._vlm, self._family, self._seg_token_id = vlm, family, seg_token_id
        self._text_config = vlm.config.get_text_config()
        dynamic = (self._text_config.rope_parameters or {}).get("rope_type") == "dynamic"
        self._window = self._text_config.max_position_embeddings if dynamic else None
        self._keeps_all = holds_whole_text(DynamicCache(config=self._text_config))

    def splits(self, reading: Reading) -> bool:
        """Whether a text may be read in parts, and read and written in passes with others.

        Dynamic RoPE re-scales all positions by the length of a pass once that exceeds the window, so beyond it a split
        pass would compute other numbers than a whole one. A layer that keeps only a window of its tokens has none to
        share.
        """
        longest = len(reading.prompt) + reading.options.max_new_tokens
        return self._keeps_all and (self._window is None or longest <= self._window)

    def unread(self, reading: Reading) -> int | None:
        """How many tokens are to be read, those of the draft included; None where [`splits`] is not so."""
        if not self.splits(reading):
            return None
        return len(reading.prompt) - self._known(reading) + len(self._draft(reading))

    def read(self, readings: Sequence[Reading]) -> list[Row]:
        """A row of each prompt, with its first tokens, in order.

        Args:
            readings: in as few passes as [`fit_a_pass`] allows. Those rows that are not over then join a
                [`RowBatch`][sa2va.model.row_batch.RowBatch].
        """
        rows: list[Row] = []
        with language.whole_text(self._vlm):
            self._read_shared(readings)
            lengths = [self.unread(reading) for reading in readings]
            while len(rows) < len(readings):
                first = end = len(rows)
                while end < len(readings) and fit_a_pass(lengths[first : end + 1]):
                    end += 1
                rows += self._read_pass(readings[first : max(end, first + 1)])
        return rows

    def _known(self, reading: Reading) -> int:
        """How many tokens of a prompt need not be read: all pictures must be among them."""
        if reading.kept is None or not self.splits(reading):
            return 0
        known = reading.kept.matching(reading.prompt[:-1])
        return known if self._holds_pictures([reading.prompt], known) else 0

    def _draft(self, reading: Reading) -> list[int]:
        """What is read of a draft: its last token need not be, to be chosen; an image token that is written is a word,
        not the place of a picture."""
        draft = list(reading.draft[: reading.options.max_new_tokens][:-1])
        follows = reading.options.is_plain and self._vlm.config.image_token_id not in draft and self.splits(reading)
        return draft if follows else []

    def _holds_pictures(self, prompts: Sequence[Sequence[int]], length: int) -> bool:
        """Whether the first ``length`` tokens of each prompt hold all of its image tokens."""
        return not any(self._vlm.config.image_token_id in prompt[length:] for prompt in prompts)

    def _read_shared(self, readings: Sequence[Reading]) -> None:
        """Read what several prompts about one medium begin with, once."""
        by_cache: dict[int, list[Reading]] = {}
        for reading in readings:
            if reading.kept is not None and self.splits(reading):
                by_cache.setdefault(id(reading.kept), []).append(reading)
        for group in by_cache.values():
            prompts = [reading.prompt for reading in group]
            shared = shared_prefix(prompts)
            unread = shared - self._known(group[0])
            if len(group) > 1 and unread >= _WORTH_A_PASS and self._holds_pictures(prompts, shared):
                beginning = replace(group[0], prompt=prompts[0][:shared], draft=())
                read = self._run([beginning])
                self._keep(beginning, read.layers(0, 0), read.prompt_seg_states(0, beginning, self._seg_token_id))

    def _read_pass(self, readings: Sequence[Reading]) -> list[Row]:
        """Rows of prompts that are read in one pass."""
        read = self._run(readings)
        longest_draft = max(map(len, read.drafts))
        logits_BLV = self._vlm.lm_head(read.states.normed[:, -1 - longest_draft :])
        likeliest = logits_BLV.argmax(dim=-1).tolist() if longest_draft else [[]] * len(readings)
        caches = [id(reading.kept) for reading in readings]
        rows, following = [], []
        for number, (reading, draft) in enumerate(zip(readings, read.drafts, strict=True)):
            agrees = zip(draft, likeliest[number][-1 - len(draft) :], strict=False)
            accepted = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], agrees))
            leaves = reading.kept is not None and caches.count(id(reading.kept)) == 1 and self.splits(reading)
            seg_states = read.prompt_seg_states(number, reading, self._seg_token_id)
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
        if not self.splits(readings[0]):
            self._write_alone(rows[0], read.cache)
        for row in rows:
            if row.is_over:
                row.leave(lambda row=row: row.layers)
        return rows

    def _keep(self, reading: Reading, layers: KeyValues, seg_states: Tensor) -> None:
        """Leave a prompt to those that begin alike at once: they need not wait for its answer."""
        assert reading.kept is not None
        places = [place for place, token in enumerate(reading.prompt) if token == self._seg_token_id]
        reading.kept.keep(layers, reading.prompt, dict(zip(places, seg_states, strict=True)))

    def _write_alone(self, row: Row, cache: DynamicCache) -> None:
        """Write to the end what cannot share a pass with other texts: dynamic RoPE beyond its window would turn those
        by other angles, and a layer that keeps only a window of its tokens has no place for a longer row's."""
        while not row.is_over:
            read = torch.ones(1, len(row.prompt) + len(row.tokens), dtype=torch.bool, device=self._device)
            write_rows(self._vlm, self._family, [row], read, cache)

    def _run(self, readings: Sequence[Reading]) -> _Pass:
        """Read what is not known of each prompt, and its draft, left-padded to one length after left-padded caches."""
        known = [self._known(reading) for reading in readings]
        drafts = [self._draft(reading) for reading in readings]
        both = list(zip(readings, drafts, strict=True))
        texts = [torch.tensor([[*reading.prompt, *draft]], device=self._device) for reading, draft in both]
        places = [self._positions(reading, len(draft)) for reading, draft in both]
        new = [text.shape[1] - start for text, start in zip(texts, known, strict=True)]
        before, longest = max(known), max(new)
        ids = torch.cat([_left_pad(text[:, -count:], longest - count) for text, count in zip(texts, new, strict=True)])
        position_ids = torch.stack(
            [_left_pad(place[..., -count:], longest - count) for place, count in zip(places, new, strict=True)], -2
        )
        mask = torch.ones(len(readings), before + longest, dtype=torch.bool, device=self._device)
        for row, (start, count) in enumerate(zip(known, new, strict=True)):
            mask[row, : before - start] = False
            mask[row, before : before + longest - count] = False
        visual = VisualTokens.cat([reading.visual for reading, start in zip(readings, known, strict=True) if not start])
        cache = DynamicCache(config=self._text_config)
        if before:
            _fill(cache, [reading.kept for reading in readings], known)
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
        return _Pass(cache, states, mask, ids, places, known, drafts)

    def _positions(self, reading: Reading, draft: int) -> Tensor:
        """(L,) of every token of a prompt and its draft, or (3, L) in families with multimodal RoPE."""
        ids = torch.tensor([list(reading.prompt)], device=self._device)
        grid = None if reading.visual is None else reading.visual.image_grid_thw
        place = language.positions(self._vlm, ids, torch.ones_like(ids, dtype=torch.bool), grid)[..., 0, :]
        after = place.max() + 1 + torch.arange(draft, device=self._device)
        return torch.cat([place, after.expand(*place.shape[:-1], draft)], dim=-1)

    @property
    def _device(self) -> Any:
        return self._vlm.get_input_embeddings().weight.device


@dataclass(frozen=True)
class _Pass:
    """What was read in one pass.

    Attributes:
        mask_BT: bool, the tokens of each row in the cache. ids_BL: those of the pass, left-padded.
        places: positions of each prompt and its draft. known: tokens of each that were not read. drafts: what was read
            of each.
    """

    cache: DynamicCache
    states: language.LanguageStates
    mask_BT: Tensor
    ids_BL: Tensor
    places: Sequence[Tensor]
    known: Sequence[int]
    drafts: Sequence[Sequence[int]]

    def next_position(self, row: int) -> int:
        """Of the token after a prompt."""
        return int(self.places[row][..., -1].max()) + 1 - len(self.drafts[row])

    def prompt_seg_states(self, row: int, reading: Reading, seg_token_id: int) -> Tensor:
        """(m, D) the states at the ``[SEG]`` tokens of a prompt."""
        end = self.ids_BL.shape[1] - len(self.drafts[row])
        start = end - (len(reading.prompt) - self.known[row])
        states = self.states.seg[row, start:end][self.ids_BL[row, start:end] == seg_token_id]
        before = reading.kept.seg_states(self.known[row]) if reading.kept is not None else []
        return torch.cat([torch.stack(before), states]) if before else states

    def draft_states(self, row: int) -> Tensor:
        """(L, D) the states at the tokens of a draft."""
        return self.states.seg[row, self.ids_BL.shape[1] - len(self.drafts[row]) :]

    def layers(self, row: int, accepted: int) -> KeyValues:
        """The keys and values of a prompt and of the first tokens of its draft; of a single row without copying."""
        end = self.mask_BT.shape[1] - len(self.drafts[row]) + accepted
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
