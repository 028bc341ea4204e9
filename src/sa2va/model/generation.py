"""Reading prompts, and writing their answers token by token.

Prompts about the same pictures share them: the longest common prefix of their tokens, pictures included, runs once,
its key-value cache is repeated, and the rest is read as one batch. What was read may be kept in a [`PromptCache`], from
which a later prompt that begins alike goes on. What the answer will probably be may be given as a draft: it is read in
one pass and kept as far as the model would have written it itself (speculative decoding, arXiv 2211.17192, with an
earlier answer in place of a smaller model). Rows that are read are written together, see [`sa2va.model.row_batch`].

Shape legend: B prompts, P shared prefix tokens, L tokens, D hidden width.
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
from sa2va.model.prompt_cache import PromptCache, holds_whole_text
from sa2va.model.row_batch import Row, RowBatch, choose, layers_of, read_back, write_rows
from sa2va.model.sampling import GenerationOptions
from sa2va.model.types import Generated, VisualTokens


@dataclass(frozen=True)
class _Prompted:
    """What one batch of prompts has come to when it is read."""

    cache: DynamicCache
    attention_mask: Tensor  # (B, tokens so far) bool
    next_position: Tensor  # (B,) int64
    logits: Tensor  # (B, V) of the next token
    prompt_seg_states: list[Tensor]  # per row (m, D)


def generate(
    vlm: PreTrainedModel,
    family: Family,
    seg_token_id: int,
    prompts: Sequence[Sequence[int]],
    visual: VisualTokens | None,
    *,
    options: GenerationOptions,
    is_finished: Callable[[list[int]], bool],
    on_token: Callable[[int, int], None] | None = None,
    kept: PromptCache | None = None,
    drafts: Sequence[Sequence[int]] = (),
) -> list[Generated]:
    """Answer prompts that all look at the same pictures.

    Args:
        as in [`read_prompts`].

    Raises:
        FloatingPointError: the logits are NaN or infinite.
    """
    rows = read_prompts(
        vlm,
        family,
        seg_token_id,
        prompts,
        visual,
        options=options,
        is_finished=is_finished,
        on_token=on_token,
        kept=kept,
        drafts=drafts,
    )
    batch = RowBatch(vlm, family)
    for row in rows:
        if not row.is_over:
            batch.join(row)
    while batch.rows:
        batch.step()
    return [row.generated() for row in rows]


def read_prompts(
    vlm: PreTrainedModel,
    family: Family,
    seg_token_id: int,
    prompts: Sequence[Sequence[int]],
    visual: VisualTokens | None,
    *,
    options: GenerationOptions,
    is_finished: Callable[[list[int]], bool],
    on_token: Callable[[int, int], None] | None = None,
    kept: PromptCache | None = None,
    drafts: Sequence[Sequence[int]] = (),
) -> list[Row]:
    """Read prompts that all look at the same pictures, and what comes true of a draft.

    Args:
        prompts: token ids of each prompt, image tokens expanded.
        visual: the features of the pictures, shared by all prompts.
        is_finished: told the new tokens of a row, says whether they end the answer.
        on_token: told (row, token) as soon as it is chosen.
        kept: what earlier prompts about these pictures have left, and where these leave what they read.
        drafts: token ids of whole answers, any of which may be the one to come, the likeliest first. Greedy writing
            gives the same tokens with and without; sampling ignores them.

    Returns:
        a row per prompt with its first tokens. Those that are not finished join a [`RowBatch`].
    """
    together = len(prompts) > 1 and _can_share(vlm, prompts, shared_prefix(prompts), options.max_new_tokens)
    numbers = range(len(prompts))
    rows: list[Row] = []
    for group in [numbers] if together else [numbers[number : number + 1] for number in numbers]:
        own = [prompts[number] for number in group]
        splits = _splits(vlm, own, options.max_new_tokens)
        cache = kept if splits else None
        with language.whole_text(vlm):
            state = _prefill(vlm, family, seg_token_id, own, visual, shared_prefix(own), cache)
            accepted: Sequence[tuple[Sequence[int], Tensor]] = [((), state.logits)] * len(own)
            if splits and options.is_plain and (draft := _fitting_draft(state.logits, drafts, options.max_new_tokens)):
                state, accepted = _read_draft(vlm, family, state, draft)
            read = [
                Row(
                    prompts[number],
                    options,
                    seg_token_id=seg_token_id,
                    prompt_seg_states=state.prompt_seg_states[place],
                    position=int(state.next_position[place]),
                    is_finished=is_finished,
                    on_token=None if on_token is None else _of_row(on_token, number),
                    kept=cache if len(own) == 1 else None,
                )
                for place, number in enumerate(group)
            ]
            for row, (tokens, states_LD) in zip(read, accepted, strict=True):
                row.accept(tokens, states_LD)
            choose(vlm, read, state.logits)
            if not splits:
                _write_alone(vlm, family, read[0], state)
        _take_layers(read, state)
        rows += read
    return rows


@dataclass(frozen=True)
class Reading:
    """A prompt about pictures of its own; see [`read_prompts`]."""

    prompt: Sequence[int]
    visual: VisualTokens | None
    options: GenerationOptions
    is_finished: Callable[[list[int]], bool]
    on_token: Callable[[int], None] | None = None
    kept: PromptCache | None = None


def can_read_apart(vlm: PreTrainedModel, prompt: Sequence[int], new_tokens: int) -> bool:
    """Whether a prompt may be read in a pass with prompts about other pictures."""
    return _splits(vlm, [prompt], new_tokens)


def read_apart(vlm: PreTrainedModel, family: Family, seg_token_id: int, readings: Sequence[Reading]) -> list[Row]:
    """Read prompts about different pictures as one batch, from their first tokens on.

    Args:
        readings: all of which [`can_read_apart`].

    Returns:
        a row of each with its first token, as of [`read_prompts`].
    """
    device: Any = vlm.get_input_embeddings().weight.device
    ids = [torch.tensor([list(reading.prompt)], device=device) for reading in readings]
    grids = [None if reading.visual is None else reading.visual.image_grid_thw for reading in readings]
    places = [
        language.positions(vlm, row, torch.ones_like(row, dtype=torch.bool), grid)[..., 0, :]
        for row, grid in zip(ids, grids, strict=True)
    ]
    visual = VisualTokens.cat([reading.visual for reading in readings])
    cache = DynamicCache(config=vlm.config.get_text_config())
    with language.whole_text(vlm):
        state = _read_padded(vlm, family, seg_token_id, ids, places, 0, visual, cache, ())
    rows = [
        Row(
            reading.prompt,
            reading.options,
            seg_token_id=seg_token_id,
            prompt_seg_states=state.prompt_seg_states[place],
            position=int(state.next_position[place]),
            is_finished=reading.is_finished,
            on_token=reading.on_token,
            kept=reading.kept,
        )
        for place, reading in enumerate(readings)
    ]
    choose(vlm, rows, state.logits)
    _take_layers(rows, state)
    return rows


def _take_layers(rows: Sequence[Row], state: _Prompted) -> None:
    """Give each row what was read of it; what is over already leaves."""
    for place, row in enumerate(rows):
        row.layers = layers_of(state.cache, place, state.attention_mask[place] if len(rows) > 1 else None)
        if row.is_over:
            row.leave(lambda row=row: row.layers)


def _of_row(on_token: Callable[[int, int], None], row: int) -> Callable[[int], None]:
    return lambda token: on_token(row, token)


def _write_alone(vlm: PreTrainedModel, family: Family, row: Row, state: _Prompted) -> None:
    """Write to the end what cannot share a pass with other texts: dynamic RoPE beyond its window would turn those by
    other angles, and a layer that keeps only a window of its tokens has no place for a longer row's."""
    mask = state.attention_mask
    while not row.is_over:
        mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
        write_rows(vlm, family, [row], mask, state.cache)


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all prompts begin with, leaving each at least one of its own."""
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False)))
    return min(common, min(len(prompt) for prompt in prompts) - 1)


def _can_share(vlm: PreTrainedModel, prompts: Sequence[Sequence[int]], shared: int, new_tokens: int) -> bool:
    """Whether prompts may run as a batch over one prefix: it must hold all image tokens of each of them."""
    return shared >= 1 and _holds_pictures(vlm, prompts, shared) and _splits(vlm, prompts, new_tokens)


def _holds_pictures(vlm: PreTrainedModel, prompts: Sequence[Sequence[int]], length: int) -> bool:
    """Whether the first ``length`` tokens of each prompt hold all of its image tokens."""
    return not any(vlm.config.image_token_id in prompt[length:] for prompt in prompts)


def _splits(vlm: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> bool:
    """Whether texts may be read in parts, and written in passes with others.

    Dynamic RoPE re-scales all positions by the length of a pass once that exceeds the window, so beyond it a split
    pass would compute other numbers than a whole one. A layer that keeps only a window of its tokens has none to share.
    """
    text = vlm.config.get_text_config()
    dynamic = (text.rope_parameters or {}).get("rope_type") == "dynamic"
    longest = max(len(prompt) for prompt in prompts) + new_tokens
    if dynamic and longest > text.max_position_embeddings:
        return False
    return holds_whole_text(DynamicCache(config=text))


def _prefill(
    vlm: PreTrainedModel,
    family: Family,
    seg_token_id: int,
    prompts: Sequence[Sequence[int]],
    visual: VisualTokens | None,
    shared: int,
    kept: PromptCache | None,
) -> _Prompted:
    """Read the prompts: what no earlier prompt has left of the prefix they share once, then the rest of each,
    left-padded to one length."""
    device: Any = vlm.get_input_embeddings().weight.device
    cache = DynamicCache(config=vlm.config.get_text_config())
    rows = [torch.tensor([list(prompt)], device=device) for prompt in prompts]
    grid = None if visual is None else visual.image_grid_thw
    places = [language.positions(vlm, row, torch.ones_like(row, dtype=torch.bool), grid)[..., 0, :] for row in rows]
    prefix_states: list[Tensor] = []

    read = 0 if kept is None else kept.matching(prompts[0][:shared])
    if kept is not None and read and _holds_pictures(vlm, prompts, read):
        prefix_states = kept.restore(cache, read)
    else:
        read = 0
    if len(prompts) > 1 and read < shared:
        ids = rows[0][:, read:shared]
        mask = torch.ones(1, shared, dtype=torch.bool, device=device)
        states = _read(vlm, family, ids, places[0][..., None, read:shared], mask, cache, None if read else visual)
        prefix_states += states.seg[0, ids[0] == seg_token_id]
        read = shared
    if len(prompts) > 1:
        if kept is not None:
            found = [position for position, token in enumerate(prompts[0][:read]) if token == seg_token_id]
            kept.keep(layers_of(cache), prompts[0][:read], dict(zip(found, prefix_states, strict=True)))
        cache.batch_repeat_interleave(len(prompts))

    return _read_padded(vlm, family, seg_token_id, rows, places, read, None if read else visual, cache, prefix_states)


def _read_padded(
    vlm: PreTrainedModel,
    family: Family,
    seg_token_id: int,
    rows: Sequence[Tensor],
    places: Sequence[Tensor],
    read: int,
    visual: VisualTokens | None,
    cache: DynamicCache,
    prefix_states: Sequence[Tensor],
) -> _Prompted:
    """Read what is left of each row (1, L) after so many tokens as one batch, left-padded to one length.

    Args:
        places: positions of each row's tokens. visual: of all rows, where it is still to be read.
        prefix_states: at the ``[SEG]`` tokens before.
    """
    device = rows[0].device
    longest = max(row.shape[1] for row in rows) - read
    pads = [longest - (row.shape[1] - read) for row in rows]
    ids = torch.cat([_left_pad(row[:, read:], pad) for row, pad in zip(rows, pads, strict=True)])
    position_ids = torch.stack([_left_pad(place[..., read:], pad) for place, pad in zip(places, pads, strict=True)], -2)
    mask = torch.ones(len(rows), read + longest, dtype=torch.bool, device=device)
    for row, pad in enumerate(pads):
        mask[row, read : read + pad] = False
    states = _read(vlm, family, ids, position_ids, mask, cache, visual)
    own = (ids == seg_token_id) & mask[:, read:]
    empty = states.seg.new_zeros(0, states.seg.shape[-1])
    before = torch.stack(list(prefix_states)) if prefix_states else empty
    return _Prompted(
        cache=cache,
        attention_mask=mask,
        next_position=torch.stack([place.max() + 1 for place in places]),
        logits=vlm.lm_head(states.normed[:, -1]),
        prompt_seg_states=[torch.cat([before, states.seg[row, own[row]]]) for row in range(len(rows))],
    )


def _fitting_draft(logits_BV: Tensor, drafts: Sequence[Sequence[int]], longest: int) -> list[int] | None:
    """The first draft of at least two tokens that begins as some row does, cut to the longest answer."""
    begins = set(logits_BV.argmax(dim=-1).tolist())
    return next((list(draft[:longest]) for draft in drafts if draft[0] in begins and len(draft[:longest]) > 1), None)


def _read_draft(
    vlm: PreTrainedModel, family: Family, state: _Prompted, draft: list[int]
) -> tuple[_Prompted, list[tuple[Sequence[int], Tensor]]]:
    """Read all of a draft but its last token in one pass; each row keeps what it would have written itself.

    Returns:
        where every row goes on; and for each the tokens it has kept, and the states at them, (tokens, D).
    """
    batch, device = len(state.logits), state.logits.device
    ids = torch.tensor(draft, device=device)
    length = len(draft) - 1
    mask = torch.cat([state.attention_mask, state.attention_mask.new_ones(batch, length)], dim=1)
    states = read_back(vlm, family, ids[:-1].expand(batch, -1), state.next_position, mask, state.cache)
    logits_BLV = torch.cat([state.logits[:, None], vlm.lm_head(states.normed)], dim=1)
    agrees_BL = logits_BLV[:, :-1].argmax(dim=-1) == ids[:-1]
    accepted = agrees_BL.long().cumprod(dim=1).sum(dim=1)
    counts = accepted.tolist()
    if batch == 1:  # what was not kept goes, so that the cache is that of a text
        state.cache.crop(counts[0] - length)
        mask = mask[:, : mask.shape[1] - (length - counts[0])]
    else:
        mask[:, -length:] &= torch.arange(length, device=device) < accepted[:, None]
    rows = torch.arange(batch, device=device)
    following = replace(
        state,
        attention_mask=mask,
        next_position=state.next_position + accepted,
        logits=logits_BLV[rows, accepted],
    )
    return following, [(draft[:count], states.seg[row, :count]) for row, count in enumerate(counts)]


def _read(
    vlm: PreTrainedModel,
    family: Family,
    input_ids: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor,
    cache: DynamicCache,
    visual: VisualTokens | None,
) -> language.LanguageStates:
    return language.run_language_model(
        vlm,
        family,
        language.embed_tokens(vlm, input_ids, visual),
        position_ids,
        attention_mask,
        cache=cache,
        visual=visual,
        is_image_BL=language.image_tokens(vlm, input_ids),
    )


def _left_pad(tensor: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (count, 0))
