"""Answers that are written together: rows join and leave at any step (continuous batching).

On a GPU a step of the language model costs much the same for one row as for thirty. Rows have prompts of different
lengths, so each grows at an end of its own in one buffer of keys and values; what lies beyond it is masked.

Shape legend: B rows, H heads, T tokens of the longest row, V vocabulary, D hidden width.

Source: Orca (Yu et al., OSDI 2022, section 3.1) for scheduling by iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from sa2va.model import language
from sa2va.model.families import Family
from sa2va.model.finite import not_finite
from sa2va.model.prompt_cache import KeyValues, PromptCache
from sa2va.model.sampling import GenerationOptions, Sampler
from sa2va.model.types import Generated

#: Buffers grow by so many tokens at a time.
_TOKENS_AT_ONCE = 64


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
        said = [*self.prompt, *self.tokens[:-1]]
        if self._kept is not None and self.error is None and self._kept.matching(said) < len(said):
            places = [position for position, token in enumerate(said) if token == self._seg_token_id]
            states = torch.cat([self._prompt_seg_states, self._stacked()])
            self._kept.clear()  # before it is copied, so that a long text is never there three times
            self._kept.keep(layers(), said, dict(zip(places, states, strict=True)))
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
        self._cache = _RowCache()
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
        device: Any = self._vlm.get_input_embeddings().weight.device
        lengths_B = self._cache.begin_pass(device)
        mask_BT = torch.arange(max(self._cache.lengths) + 1, device=device) <= lengths_B[:, None]
        with language.whole_text(self._vlm):
            write_rows(self._vlm, self._family, self.rows, mask_BT, self._cache)
        self._cache.end_pass()
        left = [row for row in self.rows if row.is_over]
        for row in left:
            self.drop(row)
        return left

    def drop(self, row: Row) -> None:
        """Free a row at once."""
        place = self.rows.index(row)
        row.leave(lambda: self._cache.read(place))
        self._cache.leave(place)
        self.rows[place] = self.rows[-1]
        self.rows.pop()


def write_rows(vlm: PreTrainedModel, family: Family, rows: Sequence[Row], mask_BT: Tensor, cache: Cache) -> None:
    """Read the last token of every row back and choose its next one.

    Args:
        mask_BT: bool, what each row has read, this token included.
    """
    device = mask_BT.device
    tokens = torch.tensor([[row.tokens[-1]] for row in rows], device=device)
    positions = torch.tensor([row.position for row in rows], device=device)
    states = read_back(vlm, family, tokens, positions, mask_BT, cache)
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


def read_back(
    vlm: PreTrainedModel, family: Family, ids_BL: Tensor, first_position_B: Tensor, mask: Tensor, cache: Cache
) -> language.LanguageStates:
    """Read what was written, from the position after what was read before.

    Embedded directly: an image token that the model itself writes is a word, not the place of a picture.
    """
    position_BL = first_position_B[:, None] + torch.arange(ids_BL.shape[1], device=ids_BL.device)
    multimodal = hasattr(vlm.model, "get_rope_index")
    position_ids = position_BL.expand(3, -1, -1) if multimodal else position_BL
    embedded = vlm.get_input_embeddings()(ids_BL)
    return language.run_language_model(vlm, family, embedded, position_ids, mask, cache=cache)


class _RowCache(Cache):
    """Keys and values of rows of different lengths, which grow by one token a pass.

    Attributes:
        lengths: tokens of each row.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.lengths: list[int] = []
        self._layers: list[_RowLayer] = []

    def begin_pass(self, device: torch.device) -> Tensor:
        """(B,) where the token of each row goes."""
        ends_B = torch.tensor(self.lengths, device=device)
        for layer in self._layers:
            layer.begin_pass(ends_B, max(self.lengths))
        return ends_B

    def end_pass(self) -> None:
        """Count the tokens that a pass has added, and make room for the next."""
        self.lengths = [length + 1 for length in self.lengths]
        for layer in self._layers:
            layer.reserve(len(self.lengths), max(self.lengths) + 1)

    def join(self, layers: KeyValues) -> None:
        if not self._layers:
            self._layers = [_RowLayer(keys, values) for keys, values in layers]
            self.layers = [*self._layers]
        tokens = max(self.lengths, default=0), layers[0][0].shape[-2]
        for layer, (keys, values) in zip(self._layers, layers, strict=True):
            layer.reserve(len(self.lengths) + 1, max(tokens) + 1)
            layer.insert(len(self.lengths), keys, values)
        self.lengths.append(tokens[1])

    def read(self, row: int) -> KeyValues:
        """Copies of what a row has read."""
        return [layer.read(row, self.lengths[row]) for layer in self._layers]

    def leave(self, row: int) -> None:
        """Free a row; the last one takes its place."""
        last = len(self.lengths) - 1
        for layer in self._layers:
            layer.move(last, row)
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self._layers, self.layers = [], []


class _RowLayer(CacheLayerMixin):
    """One layer: buffers (rows, H, tokens, width), of which the first rows and tokens are in use."""

    is_sliding = False
    keys: Any  # a Tensor from the beginning on
    values: Any

    def __init__(self, keys_1HLD: Tensor, values_1HLD: Tensor):
        super().__init__()
        self.keys, self.values = keys_1HLD[:0, :, :0], values_1HLD[:0, :, :0]
        self.lazy_initialization(keys_1HLD, values_1HLD)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def reserve(self, rows: int, tokens: int) -> None:
        """Grow the buffers to hold so many rows and tokens. New memory is zero: a masked NaN would still be one."""
        have_rows, _, have_tokens, _ = self.keys.shape
        if rows <= have_rows and tokens <= have_tokens:
            return
        rows = have_rows if rows <= have_rows else max(rows, 2 * have_rows)
        tokens = have_tokens if tokens <= have_tokens else -(-tokens // _TOKENS_AT_ONCE) * _TOKENS_AT_ONCE
        self.keys, self.values = (_grown(buffer, rows, tokens) for buffer in (self.keys, self.values))

    def insert(self, row: int, keys_1HLD: Tensor, values_1HLD: Tensor) -> None:
        for buffer, new in ((self.keys, keys_1HLD), (self.values, values_1HLD)):
            length = new.shape[-2]
            buffer[row, :, :length] = new[0]
            buffer[row, :, length:] = 0

    def read(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[row : row + 1, :, :length].clone() for buffer in (self.keys, self.values))
        return keys, values

    def move(self, source: int, target: int) -> None:
        if source != target:
            for buffer in (self.keys, self.values):
                buffer[target] = buffer[source]

    def begin_pass(self, ends_B: Tensor, longest: int) -> None:
        self._ends_B, self._longest = ends_B.to(self.device), longest
        self._rows_B = torch.arange(len(ends_B), device=self.device)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys[self._rows_B, :, self._ends_B] = key_states[:, :, 0]
        self.values[self._rows_B, :, self._ends_B] = value_states[:, :, 0]
        rows, tokens = len(self._rows_B), self._longest + 1
        return self.keys[:rows, :, :tokens], self.values[:rows, :, :tokens]

    def get_seq_length(self) -> int:
        return self._longest

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._longest + query_length, 0

    def get_max_length(self) -> int:
        return -1


def _grown(buffer: Tensor, rows: int, tokens: int) -> Tensor:
    grown = buffer.new_zeros(rows, buffer.shape[1], tokens, buffer.shape[3])
    grown[: buffer.shape[0], :, : buffer.shape[2]] = buffer
    return grown
