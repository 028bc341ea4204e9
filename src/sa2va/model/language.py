"""The language model: tokens and image features in, hidden states out, the same for every family.

transformers' VLM classes compute everything; what is ours is taking them apart: image features are computed once and
kept, M-RoPE positions are explicit, and the state that feeds the mask prompt is taken where the family was trained.
Keys and values are kept in two ways: those of one medium's last prompt, for later prompts that begin alike
([`PromptCache`]), and those of answers that are being written together ([`RowCache`]).

Shape legend: B rows, H heads, L tokens, T tokens of the longest row, M image tokens, D hidden width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from sa2va.model.families import Family

#: Keys and values (1, heads, tokens, width) of each layer.
KeyValues = Sequence[tuple[Tensor, Tensor]]

_ONE_TEXT = threading.RLock()
#: Buffers of keys and values grow by so many tokens at a time.
_TOKENS_AT_ONCE = 64


@dataclass(frozen=True)
class VisualTokens:
    """Image features in the language model's width, in the order of the image tokens they replace.

    Attributes:
        embeddings: (M, D). deepstack: per injected layer (M, D), empty where the family has none.
        image_grid_thw: (images, 3) int64 patch grids, or None.
    """

    embeddings: Tensor
    deepstack: tuple[Tensor, ...] = ()
    image_grid_thw: Tensor | None = None

    @classmethod
    def cat(cls, parts: Sequence[VisualTokens | None]) -> VisualTokens | None:
        """The features of several media one after another, without their grids; None where there are none."""
        given = [part for part in parts if part is not None]
        if not given:
            return None
        levels = zip(*(part.deepstack for part in given), strict=True)
        return cls(torch.cat([part.embeddings for part in given]), tuple(torch.cat(level) for level in levels))

    def split(self, tokens: Sequence[int], images: Sequence[int]) -> list[VisualTokens]:
        """The features of several media that were encoded together.

        Args:
            tokens: image tokens of each. images: pictures of each, read where there are grids.
        """
        levels = [level.split(list(tokens)) for level in self.deepstack]
        grids = [None] * len(tokens) if self.image_grid_thw is None else self.image_grid_thw.split(list(images))
        return [
            VisualTokens(part, tuple(level[number] for level in levels), grids[number])
            for number, part in enumerate(self.embeddings.split(list(tokens)))
        ]


@dataclass(frozen=True)
class LanguageStates:
    """Hidden states of the last layer.

    Attributes:
        normed: (B, L, D) after the final norm: what the output head reads.
        seg: (B, L, D) what the mask projection reads; the same tensor, or the one before the norm.
    """

    normed: Tensor
    seg: Tensor


def encode_images(
    vlm: PreTrainedModel,
    pixel_values: Tensor,
    image_grid_thw: Tensor | None = None,
    *,
    tiles_per_sample: tuple[int, ...] | None = None,
    regions: tuple[Tensor | None, ...] | None = None,
) -> VisualTokens:
    """Run the vision tower and projector once.

    Args:
        pixel_values: normalised: tiles (N, 3, side, side), or patches where there is an ``image_grid_thw``.
        image_grid_thw, tiles_per_sample, regions: as in [`sa2va.model.types.Batch`]. A region repeats the features of
            the last tile (the thumbnail) at its cells, row by row, after all tiles of its picture.
    """
    if image_grid_thw is not None:
        features = vlm.model.get_image_features(pixel_values, image_grid_thw, return_dict=True)
        deepstack = getattr(features, "deepstack_features", None) or []
        return VisualTokens(
            torch.cat(features.pooler_output), tuple(torch.cat(level) for level in deepstack), image_grid_thw
        )
    tiles = vlm.model.get_image_features(pixel_values, return_dict=True).pooler_output
    if regions is None or all(region is None for region in regions):
        return VisualTokens(tiles.flatten(0, 1))
    pieces = []
    for sample_tiles, region in zip(tiles.split(list(tiles_per_sample or [len(tiles)])), regions, strict=True):
        pieces.append(sample_tiles.flatten(0, 1))
        if region is not None:
            pieces.extend(sample_tiles[-1][cells.flatten()] for cells in region.to(tiles.device))
    return VisualTokens(torch.cat(pieces))


def embed_tokens(vlm: PreTrainedModel, input_ids_BL: Tensor, visual: VisualTokens | None) -> Tensor:
    """(B, L, D) token embeddings with image features at the image tokens.

    Raises:
        ValueError: there are more or fewer image tokens than features.
    """
    embeddings = vlm.get_input_embeddings()(input_ids_BL)
    is_image = image_tokens(vlm, input_ids_BL)
    tokens, given = int(is_image.sum()), 0 if visual is None else len(visual.embeddings)
    if tokens != given:
        raise ValueError(
            f"the prompt has {tokens} image tokens, but the pictures give {given} features; "
            "build the prompt with the processor from the same pictures"
        )
    if visual is None:
        return embeddings
    return embeddings.masked_scatter(is_image[..., None], visual.embeddings.to(embeddings.dtype))


def image_tokens(vlm: PreTrainedModel, input_ids_BL: Tensor) -> Tensor:
    """(B, L) bool: where image features go."""
    return input_ids_BL == vlm.config.image_token_id


def positions(
    vlm: PreTrainedModel, input_ids_BL: Tensor, attention_mask_BL: Tensor, image_grid_thw: Tensor | None
) -> Tensor:
    """Position ids of every token: (B, L), or (3, B, L) in families with multimodal RoPE.

    Padding counts nothing. Given explicitly because transformers silently falls back to one-dimensional positions
    when a cache is in use and token types are missing.
    """
    if not hasattr(vlm.model, "get_rope_index"):
        return (attention_mask_BL.long().cumsum(-1) - 1).clamp(min=0)
    position_ids, _ = vlm.model.get_rope_index(
        input_ids_BL,
        mm_token_type_ids=image_tokens(vlm, input_ids_BL).int(),
        image_grid_thw=image_grid_thw,
        attention_mask=attention_mask_BL,
    )
    return position_ids


def run_language_model(
    vlm: PreTrainedModel,
    family: Family,
    embeddings_BLD: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor,
    *,
    cache: Cache | None = None,
    visual: VisualTokens | None = None,
    is_image_BL: Tensor | None = None,
) -> LanguageStates:
    """The language model over embedded tokens, continuing a cache where one is given.

    Args:
        attention_mask: (B, cached + L) bool.
        visual, is_image_BL: where deepstack features are added (Qwen3-VL); only needed in the pass that holds the
            images.
    """
    deepstack = {}
    if visual is not None and visual.deepstack:
        deepstack = {"visual_pos_masks": is_image_BL, "deepstack_visual_embeds": list(visual.deepstack)}
    language_model = vlm.model.language_model
    if cache is None or cache.get_seq_length() == 0:
        _reset_dynamic_rope(language_model.rotary_emb)
    with _input_of(language_model.norm) as before_norm:
        normed = language_model(
            inputs_embeds=embeddings_BLD,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
            **deepstack,
        ).last_hidden_state
    return LanguageStates(normed, before_norm[-1] if family.seg_state == "raw" else normed)


def read_back(
    vlm: PreTrainedModel,
    family: Family,
    tokens_B: Sequence[int],
    positions_B: Sequence[int],
    mask_BT: Tensor,
    cache: Cache,
) -> LanguageStates:
    """Read the token that was written last in each row, at its position.

    Embedded directly: an image token that the model itself writes is a word, not the place of a picture.

    Args:
        mask_BT: bool, what each row has read, this token included.
    """
    ids_B1 = torch.tensor([[token] for token in tokens_B], device=mask_BT.device)
    position_B1 = torch.tensor([[position] for position in positions_B], device=mask_BT.device)
    position_ids = position_B1.expand(3, -1, -1) if hasattr(vlm.model, "get_rope_index") else position_B1
    return run_language_model(vlm, family, vlm.get_input_embeddings()(ids_B1), position_ids, mask_BT, cache=cache)


@contextmanager
def whole_text(vlm: PreTrainedModel) -> Iterator[None]:
    """Held while one text is written: dynamic RoPE keeps its frequencies in the model, so threads take turns there, and
    every text starts from those of the window."""
    rotary: Any = vlm.model.language_model.rotary_emb
    with _ONE_TEXT if "dynamic" in rotary.rope_type else nullcontext():
        _reset_dynamic_rope(rotary)
        yield


def _reset_dynamic_rope(rotary: Any) -> None:
    """Forget how long earlier texts were.

    transformers' dynamic RoPE keeps the frequencies of the longest text it has seen, so the same prompt would give
    other numbers after a longer one. Every text starts from the frequencies of the window here.
    """
    if "dynamic" in rotary.rope_type and rotary.max_seq_len_cached != rotary.original_max_seq_len:
        rotary.inv_freq = rotary.original_inv_freq.to(rotary.inv_freq.device)
        rotary.max_seq_len_cached = rotary.original_max_seq_len


@contextmanager
def _input_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what this thread calls a module with; others may be running the same model."""
    seen: list[Tensor] = []
    here = threading.get_ident()

    def collect(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == here:
            seen.append(args[0])

    handle = module.register_forward_pre_hook(collect)
    try:
        yield seen
    finally:
        handle.remove()


class PromptCache:
    """The keys and values of the tokens that were read last, for later prompts that begin with the same ones.

    It belongs to one set of pictures. Tokens of a conversation stay, the answer included, so that its next turn reads
    only what is new; a request about something else reads from where it differs.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.ids: list[int] = []
        self._layers: KeyValues = ()
        self._seg_states: dict[int, Tensor] = {}  # of the [SEG] tokens, by position

    @property
    def nbytes(self) -> int:
        """Memory of the keys and values, bytes."""
        return sum(keys.nbytes + values.nbytes for keys, values in self._layers)

    def matching(self, ids: Sequence[int]) -> int:
        """How many of these tokens, from the first on, are there."""
        length = min(len(self.ids), len(ids))
        if self.ids[:length] == list(ids[:length]):
            return length
        return next(place for place, (own, other) in enumerate(zip(self.ids, ids, strict=False)) if own != other)

    def layers(self, length: int) -> KeyValues:
        """The keys and values of the first ``length`` tokens, without copying."""
        return [(keys[..., :length, :], values[..., :length, :]) for keys, values in self._layers]

    def seg_states(self, length: int) -> list[Tensor]:
        """The states (D,) at the ``[SEG]`` tokens among the first ``length``."""
        return [state for position, state in self._seg_states.items() if position < length]

    def keep(self, ids: Sequence[int], seg_states: Mapping[int, Tensor], layers: Callable[[], KeyValues]) -> None:
        """Remember tokens by their keys and values, which nobody changes afterwards; there may be more of these.

        Nothing changes where they are all there already, so that questions in between do not end a conversation's
        advantage.
        """
        if self.matching(ids) < len(ids):
            self.clear()  # before others are copied, so that a long text is never there three times
            self.ids, self._seg_states = list(ids), dict(seg_states)
            self._layers = [(keys[..., : len(ids), :], values[..., : len(ids), :]) for keys, values in layers()]


def holds_whole_text(cache: DynamicCache) -> bool:
    """Whether every layer of a cache keeps all tokens, rather than a window of the last ones."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


class RowCache(Cache):
    """Keys and values of rows of different lengths, which grow by one token a pass.

    Attributes:
        lengths: tokens of each row.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.lengths: list[int] = []
        self._layers: list[_RowLayer] = []

    def read_back(
        self, vlm: PreTrainedModel, family: Family, tokens_B: Sequence[int], positions_B: Sequence[int]
    ) -> LanguageStates:
        """[`read_back`], each row after what it has read so far; then make room for the next token."""
        device: Any = vlm.get_input_embeddings().weight.device
        longest, ends_B = max(self.lengths), torch.tensor(self.lengths, device=device)
        for layer in self._layers:
            layer.begin_pass(ends_B, longest)
        mask_BT = torch.arange(longest + 1, device=device) <= ends_B[:, None]
        with whole_text(vlm):
            states = read_back(vlm, family, tokens_B, positions_B, mask_BT, self)
        self.lengths = [length + 1 for length in self.lengths]
        for layer in self._layers:
            layer.reserve(len(self.lengths), longest + 2)
        return states

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
        tokens = max(have_tokens, -(-tokens // _TOKENS_AT_ONCE) * _TOKENS_AT_ONCE)
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
