"""Writing an answer token by token, keeping only the states at ``[SEG]``.

Prompts about the same pictures share them: the longest common prefix of their tokens, pictures included, runs once,
its key-value cache is repeated, and the rest decodes as one batch. What was read may be kept in a [`PromptCache`], from
which a later prompt that begins alike goes on. What the answer will probably be may be given as a draft: it is read in
one pass and kept as far as the model would have written it itself (speculative decoding, arXiv 2211.17192, with an
earlier answer in place of a smaller model).

Shape legend: B prompts, P shared prefix tokens, L tokens, D hidden width.
"""

from __future__ import annotations

import copy
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
from transformers.cache_utils import DynamicLayer

from sa2va.model import language
from sa2va.model.families import Family
from sa2va.model.finite import not_finite
from sa2va.model.types import Generated, VisualTokens


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

    def processors(self, device: torch.device) -> LogitsProcessorList:
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


class PromptCache:
    """The keys and values of the tokens that were read last, for later prompts that begin with the same ones.

    It belongs to one set of pictures and is used by one request at a time. Tokens of a conversation stay, the answer
    included, so that its next turn reads only what is new; a request about something else reads from where it differs.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._layers: list[Any] = []  # of DynamicLayer, filled
        self._seg_states: dict[int, Tensor] = {}  # of the [SEG] tokens, by position

    @property
    def nbytes(self) -> int:
        """Memory of the keys and values, bytes."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._layers)

    def matching(self, ids: Sequence[int]) -> int:
        """How many of these tokens, from the first on, are there."""
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.ids, ids, strict=False)))

    def restore(self, cache: DynamicCache, length: int) -> list[Tensor]:
        """Fill an empty cache of one row with the first ``length`` tokens, without copying.

        Returns:
            the states at the ``[SEG]`` tokens among them.
        """
        cache.layers[:] = [_cut(layer, length) for layer in self._layers]
        return [state for position, state in self._seg_states.items() if position < length]

    def keep(self, cache: DynamicCache, ids: Sequence[int], seg_states: dict[int, Tensor]) -> None:
        """Remember the tokens of a cache of one row.

        Nothing changes where they are all there already, so that questions in between do not end a conversation's
        advantage, nor where a layer keeps a window only.
        """
        if self.matching(ids) == len(ids) or not all(type(layer) is DynamicLayer for layer in cache.layers):
            return
        self.ids, self._seg_states = list(ids), dict(seg_states)
        self._layers = [_cut(layer, len(ids)) for layer in cache.layers]


def _cut(layer: Any, length: int) -> Any:
    """A layer with its first ``length`` tokens. Growing replaces a layer's tensors, so that views of them are safe."""
    view = copy.copy(layer)
    view.keys, view.values = layer.keys[..., :length, :], layer.values[..., :length, :]
    return view


@dataclass(frozen=True)
class _Decoding:
    """What one batch of prompts has come to after its prefill."""

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
        prompts: token ids of each prompt, image tokens expanded.
        visual: the features of the pictures, shared by all prompts.
        is_finished: told the new tokens of a row, says whether they end the answer.
        on_token: told (row, token) as soon as it is chosen.
        kept: what earlier prompts about these pictures have left, and where these leave what they read.
        drafts: token ids of whole answers, any of which may be the one to come, the likeliest first. Greedy writing
            gives the same tokens with and without; sampling ignores them.

    Raises:
        FloatingPointError: the logits are NaN or infinite.
    """
    shared = shared_prefix(prompts)
    if len(prompts) > 1 and not _can_share(vlm, prompts, shared, options.max_new_tokens):
        answers = []
        for row, prompt in enumerate(prompts):
            tell = None if on_token is None else partial(_tell, on_token, row)
            answers += generate(
                vlm,
                family,
                seg_token_id,
                [prompt],
                visual,
                options=options,
                is_finished=is_finished,
                on_token=tell,
                kept=kept,
                drafts=drafts,
            )
        return answers
    if not _fits_window(vlm, prompts, options.max_new_tokens):
        kept, drafts = None, ()
    with language.whole_text(vlm):
        state = _prefill(vlm, family, seg_token_id, prompts, visual, shared, kept)
        answers = _decode(vlm, family, seg_token_id, prompts, state, options, is_finished, on_token, drafts)
    if kept is not None and len(prompts) == 1:
        _keep_conversation(kept, state.cache, prompts[0], answers[0], seg_token_id)
    return answers


def _keep_conversation(
    kept: PromptCache, cache: DynamicCache, prompt: Sequence[int], answer: Generated, seg_token_id: int
) -> None:
    """Remember a prompt with its answer, as far as that was read back."""
    said = [*prompt, *answer.token_ids][: cache.get_seq_length()]
    places = [position for position, token in enumerate(said) if token == seg_token_id]
    states = torch.cat([answer.prompt_seg_states, answer.seg_states])
    kept.keep(cache, said, dict(zip(places, states, strict=True)))


def _tell(on_token: Callable[[int, int], None], row: int, _: int, token: int) -> None:
    """Pass on a token of a prompt that ran alone as one of its own row."""
    on_token(row, token)


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all prompts begin with, leaving each at least one of its own."""
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False)))
    return min(common, min(len(prompt) for prompt in prompts) - 1)


def _can_share(vlm: PreTrainedModel, prompts: Sequence[Sequence[int]], shared: int, new_tokens: int) -> bool:
    """Whether prompts may run as a batch over one prefix: it must hold all image tokens of each of them."""
    return shared >= 1 and _holds_pictures(vlm, prompts, shared) and _fits_window(vlm, prompts, new_tokens)


def _holds_pictures(vlm: PreTrainedModel, prompts: Sequence[Sequence[int]], length: int) -> bool:
    """Whether the first ``length`` tokens of each prompt hold all of its image tokens."""
    return not any(vlm.config.image_token_id in prompt[length:] for prompt in prompts)


def _fits_window(vlm: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> bool:
    """Whether a text may be read in parts.

    Dynamic RoPE re-scales all positions by the length of a pass once that exceeds the window, so beyond it a split
    pass would compute other numbers than a whole one.
    """
    text = vlm.config.get_text_config()
    dynamic = (text.rope_parameters or {}).get("rope_type") == "dynamic"
    longest = max(len(prompt) for prompt in prompts) + new_tokens
    return not (dynamic and longest > text.max_position_embeddings)


def _prefill(
    vlm: PreTrainedModel,
    family: Family,
    seg_token_id: int,
    prompts: Sequence[Sequence[int]],
    visual: VisualTokens | None,
    shared: int,
    kept: PromptCache | None,
) -> _Decoding:
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
            kept.keep(cache, prompts[0][:read], dict(zip(found, prefix_states, strict=True)))
        cache.batch_repeat_interleave(len(prompts))

    longest = max(row.shape[1] for row in rows) - read
    pads = [longest - (row.shape[1] - read) for row in rows]
    ids = torch.cat([_left_pad(row[:, read:], pad) for row, pad in zip(rows, pads, strict=True)])
    position_ids = torch.stack([_left_pad(place[..., read:], pad) for place, pad in zip(places, pads, strict=True)], -2)
    mask = torch.ones(len(prompts), read + longest, dtype=torch.bool, device=device)
    for row, pad in enumerate(pads):
        mask[row, read : read + pad] = False
    states = _read(vlm, family, ids, position_ids, mask, cache, None if read else visual)
    own = (ids == seg_token_id) & mask[:, read:]
    empty = states.seg.new_zeros(0, states.seg.shape[-1])
    before = torch.stack(prefix_states) if prefix_states else empty
    return _Decoding(
        cache=cache,
        attention_mask=mask,
        next_position=torch.stack([place.max() + 1 for place in places]),
        logits=vlm.lm_head(states.normed[:, -1]),
        prompt_seg_states=[torch.cat([before, states.seg[row, own[row]]]) for row in range(len(prompts))],
    )


def _decode(
    vlm: PreTrainedModel,
    family: Family,
    seg_token_id: int,
    prompts: Sequence[Sequence[int]],
    state: _Decoding,
    options: GenerationOptions,
    is_finished: Callable[[list[int]], bool],
    on_token: Callable[[int, int], None] | None,
    drafts: Sequence[Sequence[int]],
) -> list[Generated]:
    """Choose, read back, repeat, until every row is finished."""
    device = state.logits.device
    processors = options.processors(device)
    sampler = None if options.seed is None else torch.Generator(device).manual_seed(options.seed)
    answers: list[list[int]] = [[] for _ in prompts]
    seg_states: list[list[Tensor]] = [[] for _ in prompts]
    if options.is_plain and (draft := _fitting_draft(state.logits, drafts, options.max_new_tokens)):
        state, answers, seg_states = _read_draft(vlm, family, seg_token_id, state, draft)
        if on_token is not None:
            for row, answer in enumerate(answers):
                for token in answer:
                    on_token(row, token)
    running = set(range(len(prompts)))
    logits, mask, position = state.logits, state.attention_mask, state.next_position

    while True:
        finite_B = logits.isfinite().all(dim=-1)
        # Sampling from NaN is an error of its own, which takes a CUDA device down with it.
        safe = torch.where(finite_B[:, None], logits.float(), 0.0)
        tokens = _choose(safe, prompts, answers, processors, options, sampler)
        chosen = torch.where(finite_B, tokens, -1).tolist()
        for row in sorted(running):
            token = chosen[row]
            if token < 0:
                raise not_finite("the vision-language model", logits.dtype, vlm)
            answers[row].append(token)
            if on_token is not None:
                on_token(row, token)
            if is_finished(answers[row]) or len(answers[row]) == options.max_new_tokens:
                running.discard(row)
        if not running:
            break
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        states = _read_back(vlm, family, tokens[:, None], position, mask, state.cache)
        for row in running:
            if answers[row][-1] == seg_token_id:
                seg_states[row].append(states.seg[row, 0])
        logits, position = vlm.lm_head(states.normed[:, -1]), position + 1

    empty = state.logits.new_zeros(0, vlm.config.get_text_config().hidden_size)
    return [
        Generated(answer, torch.stack(kept) if kept else empty, before)
        for answer, kept, before in zip(answers, seg_states, state.prompt_seg_states, strict=True)
    ]


def _fitting_draft(logits_BV: Tensor, drafts: Sequence[Sequence[int]], longest: int) -> list[int] | None:
    """The first draft of at least two tokens that begins as some row does, cut to the longest answer."""
    begins = set(logits_BV.argmax(dim=-1).tolist())
    return next((list(draft[:longest]) for draft in drafts if draft[0] in begins and len(draft[:longest]) > 1), None)


def _read_draft(
    vlm: PreTrainedModel, family: Family, seg_token_id: int, state: _Decoding, draft: list[int]
) -> tuple[_Decoding, list[list[int]], list[list[Tensor]]]:
    """Read all of a draft but its last token in one pass; each row keeps what it would have written itself.

    Returns:
        where every row goes on, the tokens it has kept, and the states at the ``[SEG]`` tokens among them.
    """
    batch, device = len(state.logits), state.logits.device
    ids = torch.tensor(draft, device=device)
    length = len(draft) - 1
    mask = torch.cat([state.attention_mask, state.attention_mask.new_ones(batch, length)], dim=1)
    states = _read_back(vlm, family, ids[:-1].expand(batch, -1), state.next_position, mask, state.cache)
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
    kept = [draft[:count] for count in counts]
    seg_states = [
        [states.seg[row, place] for place, token in enumerate(answer) if token == seg_token_id]
        for row, answer in enumerate(kept)
    ]
    return following, kept, seg_states


def _read_back(
    vlm: PreTrainedModel, family: Family, ids_BL: Tensor, first_position_B: Tensor, mask: Tensor, cache: DynamicCache
) -> language.LanguageStates:
    """Read what was written, from the position after what was read before.

    Embedded directly: an image token that the model itself writes is a word, not the place of a picture.
    """
    position_BL = first_position_B[:, None] + torch.arange(ids_BL.shape[1], device=ids_BL.device)
    multimodal = hasattr(vlm.model, "get_rope_index")
    position_ids = position_BL.expand(3, -1, -1) if multimodal else position_BL
    embedded = vlm.get_input_embeddings()(ids_BL)
    return language.run_language_model(vlm, family, embedded, position_ids, mask, cache=cache)


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


def _choose(
    logits_BV: Tensor,
    prompts: Sequence[Sequence[int]],
    answers: list[list[int]],
    processors: LogitsProcessorList,
    options: GenerationOptions,
    sampler: torch.Generator | None,
) -> Tensor:
    """(B,) next tokens; rows are processed one by one only where a processor reads what was said before."""
    process: Any = processors  # typed for LongTensor, a class that no tensor has
    if options.repetition_penalty != 1.0:
        said = [
            torch.tensor([[*prompt, *answer]], device=logits_BV.device)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        logits_BV = torch.cat([process(ids, row[None]) for ids, row in zip(said, logits_BV, strict=True)])
    else:
        logits_BV = process(torch.empty(len(prompts), 0, dtype=torch.long, device=logits_BV.device), logits_BV)
    if options.temperature == 0:
        return logits_BV.argmax(dim=-1)
    return torch.multinomial(logits_BV.softmax(dim=-1), 1, generator=sampler)[:, 0]


def _left_pad(tensor: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (count, 0))
