"""Reading prompts and writing answers: one batch says what each prompt alone says, whatever its length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from sa2va import Sa2VA
from sa2va.model import language
from sa2va.model.generation import Generated, GenerationOptions, fit_a_pass, shared_prefix
from sa2va.model.language import PromptCache, RowCache, VisualTokens
from synthetic_checkpoint import picture

FAMILIES = ["iv25_qwen2", "iv25_internlm2", "iv35_qwen3", "q25", "q3"]
QUESTIONS = [
    "Please segment the dog in this image.",
    "cat?",
    "Please segment, in this image, everything that a person who has never seen the sea would not know the name of.",
    "Please segment the dog's left ear.",
]


def never(new_tokens: list[int]) -> bool:
    return False


class Prompts:
    """Prompts about one small picture, or about nothing."""

    def __init__(self, sa2va: Sa2VA, questions: Sequence[str], image: bool = True):
        vision = sa2va.processor.vision([Image.fromarray(picture(64, 60))]) if image else None
        self.visual: VisualTokens | None = None
        if vision is not None:
            with torch.no_grad():
                self.visual = sa2va.model.encode_images(vision.pixel_values, vision.image_grid_thw)
        self.ids = [sa2va.processor.prompt_ids(question, vision=vision) for question in questions]


def together(sa2va: Sa2VA, prompts: Prompts, finished: Callable = never, **options) -> list[Generated]:
    settings = GenerationOptions(**{"max_new_tokens": 12, **options})
    return sa2va.model.generate(prompts.ids, prompts.visual, options=settings, is_finished=finished)


def one_by_one(sa2va: Sa2VA, prompts: Prompts, finished: Callable = never, **options) -> list[Generated]:
    settings = GenerationOptions(**{"max_new_tokens": 12, **options})
    return [
        sa2va.model.generate([ids], prompts.visual, options=settings, is_finished=finished)[0] for ids in prompts.ids
    ]


def assert_same(found: Sequence[Generated], expected: Sequence[Generated]) -> None:
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]
    for one, other in zip(found, expected, strict=True):
        for key in ("seg_states", "prompt_seg_states"):
            torch.testing.assert_close(getattr(one, key), getattr(other, key), rtol=0, atol=2e-4)


# -- a batch over a shared prefix --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FAMILIES)
def test_a_batch_says_what_each_prompt_alone_says(open_sa2va: Callable[[str], Sa2VA], case: str):
    """Prompts of very different lengths: the shorter ones are padded on the left."""
    sa2va = open_sa2va(case)
    prompts = Prompts(sa2va, QUESTIONS)
    lengths = [len(ids) for ids in prompts.ids]
    assert max(lengths) - min(lengths) > 20
    assert shared_prefix(prompts.ids) > prompts.ids[0].index(sa2va.processor.image_token_id)
    with counted_rows(sa2va) as rows:
        found = together(sa2va, prompts, new_tokens_end(sa2va))
    assert max(rows) == len(QUESTIONS)
    expected = one_by_one(sa2va, prompts, new_tokens_end(sa2va))
    assert_same(found, expected)
    assert len({tuple(answer.token_ids) for answer in found}) > 1


def new_tokens_end(sa2va: Sa2VA) -> Callable[[list[int]], bool]:
    return sa2va.processor.is_finished


class counted_rows:
    """Batch sizes of the language model's passes."""

    def __init__(self, sa2va: Sa2VA):
        self.module, self.rows = sa2va.model.vlm.model.language_model, list[int]()

    def __enter__(self) -> list[int]:
        self.handle = self.module.register_forward_pre_hook(
            lambda _, args, kwargs: self.rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
        )
        return self.rows

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


@pytest.mark.parametrize("case", ["iv25_qwen2", "q3"])
def test_seg_tokens_of_the_prompt_keep_their_states(open_sa2va: Callable[[str], Sa2VA], case: str):
    """In the part all prompts share, and in each prompt's own."""
    sa2va = open_sa2va(case)
    prompts = Prompts(sa2va, ["Is [SEG] here?", "Is [SEG] or [SEG] here, or is it there?"])
    found, expected = together(sa2va, prompts), one_by_one(sa2va, prompts)
    assert [len(answer.prompt_seg_states) for answer in found] == [1, 2]
    assert_same(found, expected)
    torch.testing.assert_close(found[0].prompt_seg_states[0], found[1].prompt_seg_states[0])


@pytest.mark.parametrize("case", ["iv25_qwen2", "q25"])
def test_words_alone_are_a_batch_too(open_sa2va: Callable[[str], Sa2VA], case: str):
    sa2va = open_sa2va(case)
    prompts = Prompts(sa2va, QUESTIONS, image=False)
    assert prompts.visual is None
    assert_same(together(sa2va, prompts), one_by_one(sa2va, prompts))


def test_prompts_that_share_nothing_are_one_batch_too(sa2va: Sa2VA):
    prompts = Prompts(sa2va, QUESTIONS[:2], image=False)
    prompts.ids = [ids[number:] for number, ids in enumerate(prompts.ids)]
    assert shared_prefix(prompts.ids) == 0
    with counted_rows(sa2va) as rows:
        found = together(sa2va, prompts)
    assert rows == [2] * 12
    assert_same(found, one_by_one(sa2va, prompts))


def test_a_prompt_that_begins_another_keeps_a_token_of_its_own(sa2va: Sa2VA):
    prompts = Prompts(sa2va, QUESTIONS[:1])
    prompts.ids = [prompts.ids[0], prompts.ids[0][:-1], prompts.ids[0]]
    assert shared_prefix(prompts.ids) == len(prompts.ids[1]) - 1
    assert_same(together(sa2va, prompts), one_by_one(sa2va, prompts))


@pytest.mark.parametrize(
    ("lengths", "share"),
    [([9000], False), ([9, 90], True), ([600] * 4, True), ([2000, 10], False), ([4000] * 2, False), ([5, None], False)],
)
def test_prompts_share_a_pass_where_little_of_it_is_padding(lengths: list[int | None], share: bool):
    assert fit_a_pass(lengths) == share


def test_a_question_in_between_leaves_what_is_kept_of_a_conversation():
    conversation, kept = [1, 2, 3, 4, 5], PromptCache()
    kept.keep(conversation, {}, lambda: [(torch.rand(1, 2, 5, 4), torch.rand(1, 2, 5, 4))])
    kept.keep(conversation[:3], {}, lambda: [(torch.rand(1, 2, 3, 4), torch.rand(1, 2, 3, 4))])
    assert kept.matching([*conversation, 6]) == 5


def test_a_text_that_grows_takes_the_memory_of_one():
    text, rows = torch.rand(2, 1, 2, 60, 4), RowCache()
    rows.join([(text[0], text[1])])
    (layer,) = rows.layers
    layer.reserve(1, 100)
    assert len(layer.keys) == 1 and 100 <= layer.keys.shape[2] < 200
    assert torch.equal(torch.stack(rows.read(0)[0]), text)


@pytest.mark.parametrize("case", ["iv3_qwen2_dyn", "iv25_internlm2_dyn"])
def test_beyond_the_window_of_dynamic_rope_nothing_is_split(open_sa2va: Callable[[str], Sa2VA], case: str):
    """There, every angle depends on the length of the pass: only a whole one gives a whole one's numbers."""
    sa2va = open_sa2va(case)
    prompts = Prompts(sa2va, [QUESTIONS[2] * 2, QUESTIONS[2]])
    window = sa2va.model.config.vlm_config.get_text_config().max_position_embeddings
    assert min(map(len, prompts.ids)) > window
    with counted_rows(sa2va) as rows:
        found = together(sa2va, prompts)
    assert rows == [1] * 2 * 12
    assert_same(found, one_by_one(sa2va, prompts))


@pytest.mark.parametrize(("beyond", "together_in_a_pass"), [(0, 2), (1, 1)])
def test_within_the_window_of_dynamic_rope_prompts_are_a_batch(
    open_sa2va: Callable[[str], Sa2VA], beyond: int, together_in_a_pass: int
):
    """Prompts whose longest answers end at the window, or a token later."""
    sa2va = open_sa2va("iv3_qwen2_dyn")
    prompts = Prompts(sa2va, ["a dog", "a cat"], image=False)
    window = sa2va.model.config.vlm_config.get_text_config().max_position_embeddings
    most = window - max(map(len, prompts.ids)) + beyond
    with counted_rows(sa2va) as rows:
        found = together(sa2va, prompts, max_new_tokens=most)
    assert max(rows) == together_in_a_pass
    assert_same(found, one_by_one(sa2va, prompts, max_new_tokens=most))


def test_a_longer_text_before_changes_nothing(open_sa2va: Callable[[str], Sa2VA]):
    """transformers' dynamic RoPE would remember the longest text it has seen, and give a shorter one its angles."""
    sa2va = open_sa2va("iv25_internlm2_dyn")
    short, long = Prompts(sa2va, QUESTIONS[2:3]), Prompts(sa2va, [QUESTIONS[2] * 3])
    window = sa2va.model.config.vlm_config.get_text_config().max_position_embeddings
    assert window < len(short.ids[0]) < len(long.ids[0])
    before = together(sa2va, short)
    together(sa2va, long)
    assert_same(together(sa2va, short), before)


def test_a_row_that_ends_on_seg_has_no_state_while_others_go_on(sa2va: Sa2VA):
    prompts, seg = Prompts(sa2va, QUESTIONS), sa2va.model.config.seg_token_id
    limits = iter(range(100))

    def ends_the_first_row(new_tokens: list[int]) -> bool:
        return next(limits) == 0  # asked for the rows of each step in turn

    hook = always(sa2va, seg)
    found = together(sa2va, prompts, ends_the_first_row, max_new_tokens=4)
    hook.remove()
    assert [answer.token_ids for answer in found] == [[seg], *[[seg] * 4] * 3]
    assert [len(answer.seg_states) for answer in found] == [0, 3, 3, 3]


def test_finished_rows_leave_the_others_alone(sa2va: Sa2VA):
    prompts = Prompts(sa2va, QUESTIONS)
    whole = [answer.token_ids for answer in together(sa2va, prompts)]
    endings = {tuple(ids[: 3 + 2 * row]) for row, ids in enumerate(whole)}
    found = [answer.token_ids for answer in together(sa2va, prompts, lambda new_tokens: tuple(new_tokens) in endings)]
    expected = [next(ids[:n] for n in range(len(ids) + 1) if tuple(ids[:n]) in endings) for ids in whole]
    assert len({len(ids) for ids in expected}) > 1
    assert found == expected


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FAMILIES)
def test_one_pass_over_the_whole_text_gives_the_same_states(open_sa2va: Callable[[str], Sa2VA], case: str):
    sa2va = open_sa2va(case)
    vlm, family, seg = sa2va.model.vlm, sa2va.model.config.family, sa2va.model.config.seg_token_id
    prompts = Prompts(sa2va, QUESTIONS[:1])
    logits: list[Tensor] = []
    hook = vlm.lm_head.register_forward_hook(lambda _, args, output: logits.append(output.flatten(0, -2)))
    (answer,) = together(sa2va, prompts, max_new_tokens=16)
    hook.remove()

    row = torch.tensor([prompts.ids[0] + answer.token_ids[:-1]])
    everything = torch.ones_like(row, dtype=torch.bool)
    grid = prompts.visual.image_grid_thw if prompts.visual else None
    with torch.inference_mode():
        states = language.run_language_model(
            vlm,
            family,
            language.embed_tokens(vlm, row, prompts.visual),
            language.positions(vlm, row, everything, grid),
            everything,
            visual=prompts.visual,
            is_image_BL=language.image_tokens(vlm, row),
        )
        whole = vlm.lm_head(states.normed[0, len(prompts.ids[0]) - 1 :])
    torch.testing.assert_close(torch.cat(logits), whole, rtol=0, atol=2e-4)
    is_seg = (row[0] == seg) & (torch.arange(row.shape[1]) >= len(prompts.ids[0]))
    assert len(answer.seg_states) == int(is_seg.sum())
    torch.testing.assert_close(answer.seg_states, states.seg[0, is_seg], rtol=0, atol=2e-4)


# -- length ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_an_answer_is_as_long_as_allowed(sa2va: Sa2VA, limit: int):
    prompts = Prompts(sa2va, QUESTIONS)
    assert {len(answer.token_ids) for answer in together(sa2va, prompts, max_new_tokens=limit)} == {limit}


def test_an_answer_ends_where_it_is_told(sa2va: Sa2VA):
    asked: list[list[int]] = []

    def after_three(new_tokens: list[int]) -> bool:
        asked.append(list(new_tokens))
        return len(new_tokens) == 3

    (answer,) = together(sa2va, Prompts(sa2va, QUESTIONS[:1]), after_three)
    assert len(answer.token_ids) == 3
    assert asked == [answer.token_ids[:count] for count in (1, 2, 3)]


def always(sa2va: Sa2VA, token: int):
    """Make the model choose one token only; remove the handle afterwards."""
    return sa2va.model.vlm.lm_head.register_forward_hook(
        lambda _, args, output: output.index_fill(-1, torch.tensor([token]), 1e4)
    )


@pytest.mark.parametrize(("limit", "states"), [(1, 0), (2, 1), (5, 4)])
def test_a_seg_token_counts_once_it_was_read_back(sa2va: Sa2VA, limit: int, states: int):
    hook = always(sa2va, sa2va.model.config.seg_token_id)
    (answer,) = together(sa2va, Prompts(sa2va, QUESTIONS[:1]), max_new_tokens=limit)
    hook.remove()
    assert answer.seg_states.shape == (states, 64)
    assert answer.prompt_seg_states.shape == (0, 64)


@pytest.mark.parametrize("case", ["iv25_qwen2", "q3"])
def test_an_image_token_may_be_written(open_sa2va: Callable[[str], Sa2VA], case: str):
    """A half-trained model writes anything; in the prompt alone does the token stand for a picture."""
    sa2va = open_sa2va(case)
    hook = always(sa2va, sa2va.processor.image_token_id)
    try:
        (answer,) = together(sa2va, Prompts(sa2va, QUESTIONS[:1]), max_new_tokens=4)
    finally:
        hook.remove()
    assert answer.token_ids == [sa2va.processor.image_token_id] * 4


# -- while it is written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False], ids=["one batch", "one by one"])
def test_tokens_are_told_as_they_are_written(sa2va: Sa2VA, shared: bool):
    prompts, told = Prompts(sa2va, QUESTIONS[:3], image=shared), list[tuple[int, int]]()
    if not shared:
        prompts.ids = [ids[number:] for number, ids in enumerate(prompts.ids)]
    ending = together(sa2va, prompts, max_new_tokens=2)[1].token_ids
    answers = sa2va.model.generate(
        prompts.ids,
        prompts.visual,
        options=GenerationOptions(max_new_tokens=4),
        is_finished=lambda new_tokens: new_tokens == ending,
        on_token=lambda row, token: told.append((row, token)),
    )
    lengths = [len(answer.token_ids) for answer in answers]
    assert set(lengths) == {2, 4}
    for row, answer in enumerate(answers):
        assert [token for of, token in told if of == row] == answer.token_ids
    if shared:
        assert [row for row, _ in told] == [row for step in range(4) for row in range(3) if lengths[row] > step]


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1; got 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer of at least 1; got 2.5"),
        ({"temperature": -0.1}, "temperature must be a finite number of at least 0; got -0.1"),
        ({"temperature": float("nan")}, "temperature must be a finite number of at least 0; got nan"),
        ({"top_p": 0.0}, "top_p must be a number above 0 and at most 1; got 0.0"),
        ({"top_p": 1.5}, "top_p must be a number above 0 and at most 1; got 1.5"),
        ({"top_k": -1}, "top_k must be .*at least 0; got -1"),
        ({"top_k": True}, "top_k must be .*at least 0; got True"),
        ({"temperature": True}, "temperature must be .*; got True"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a finite number above 0; got 0.0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty must be a finite number above 0; got inf"),
        ({"seed": 2**64}, "seed must be None or an integer of 64 bits"),
        ({"seed": -(2**63) - 1}, "seed must be None or an integer of 64 bits"),
        ({"seed": 1.0}, "seed must be None or an integer of 64 bits"),
    ],
)
def test_options_are_checked(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        GenerationOptions(**options)


def test_options_hold_at_their_bounds():
    released = GenerationOptions(2048, temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=1.0, seed=None)
    assert GenerationOptions() == released and released.is_plain and not released.processors()
    for options in ({"max_new_tokens": 1}, {"top_k": 1}, {"seed": 2**64 - 1}, {"seed": -(2**63)}, {"top_p": 1}):
        assert GenerationOptions(**options).is_plain
    assert not GenerationOptions(temperature=1).is_plain and not GenerationOptions(repetition_penalty=0.5).is_plain


def test_the_same_seed_says_the_same(sa2va: Sa2VA):
    prompts = Prompts(sa2va, QUESTIONS[:2])
    said = [[a.token_ids for a in together(sa2va, prompts, temperature=2.0, seed=seed)] for seed in (1, 1, 2)]
    assert said[0] == said[1]
    assert said[0] != said[2]
    assert said[0] != [answer.token_ids for answer in together(sa2va, prompts)]


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.9}, {"repetition_penalty": 1.2}])
def test_a_seeded_row_does_not_depend_on_its_neighbours(sa2va: Sa2VA, options: dict):
    prompts = Prompts(sa2va, QUESTIONS)
    options = {"temperature": 1.5, "seed": 7, **options}
    assert_same(together(sa2va, prompts, **options), one_by_one(sa2va, prompts, **options))


def test_without_a_seed_torchs_own_decides(sa2va: Sa2VA):
    prompts, said = Prompts(sa2va, QUESTIONS[:1]), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        said.append(together(sa2va, prompts, temperature=2.0)[0].token_ids)
    assert said[0] == said[1]
    assert said[0] != said[2]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}])
def test_sampling_from_the_likeliest_alone_is_greedy(sa2va: Sa2VA, options: dict):
    prompts = Prompts(sa2va, QUESTIONS[:2])
    found = together(sa2va, prompts, **{"temperature": 1.0, "seed": 0, **options})
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in together(sa2va, prompts)]


def test_sampling_follows_the_probabilities(sa2va: Sa2VA):
    """First tokens of many seeds occur as often as the softmax of the logits says."""
    prompts, logits = Prompts(sa2va, QUESTIONS[:1]), list[Tensor]()
    hook = sa2va.model.vlm.lm_head.register_forward_hook(lambda _, args, output: logits.append(output.flatten(0, -2)))
    together(sa2va, prompts, max_new_tokens=1)
    hook.remove()
    torch.manual_seed(0)
    sampled = sa2va.model.generate(
        prompts.ids * 400,
        prompts.visual,
        options=GenerationOptions(max_new_tokens=1, temperature=0.7),
        is_finished=never,
    )
    counts = torch.bincount(torch.tensor([a.token_ids[0] for a in sampled]), minlength=logits[0].shape[-1]) / 400
    assert (counts - (logits[0][0] / 0.7).softmax(-1)).abs().max() < 0.08


def test_repetition_is_penalised(sa2va: Sa2VA):
    prompts = Prompts(sa2va, QUESTIONS[:2])
    plain, strict = together(sa2va, prompts), together(sa2va, prompts, repetition_penalty=50.0)
    assert any(len(set(answer.token_ids)) < len(answer.token_ids) for answer in plain)
    for ids, answer in zip(prompts.ids, strict, strict=True):
        assert len(set(answer.token_ids)) == len(answer.token_ids)
        assert not set(answer.token_ids) & set(ids)
    assert_same(strict, one_by_one(sa2va, prompts, repetition_penalty=50.0))


# -- positions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FAMILIES)
def test_padding_takes_no_position(open_sa2va: Callable[[str], Sa2VA], case: str):
    sa2va = open_sa2va(case)
    prompts = Prompts(sa2va, QUESTIONS[:1])
    row = torch.tensor(prompts.ids)
    padded, mask = torch.nn.functional.pad(row, (0, 5)), torch.nn.functional.pad(torch.ones_like(row), (0, 5)).bool()
    grid = prompts.visual.image_grid_thw if prompts.visual else None
    alone = language.positions(sa2va.model.vlm, row, torch.ones_like(row).bool(), grid)
    found = language.positions(sa2va.model.vlm, padded, mask, grid)
    assert alone.shape == ((3, *row.shape) if case in ("q25", "q3") else row.shape)
    assert torch.equal(found[..., : row.shape[1]], alone)


def drafted(sa2va: Sa2VA, prompts: Prompts, draft: Sequence[int], finished: Callable = never, **options):
    """Answers with a draft, and the lengths of the passes of the language model."""
    lengths: list[int] = []
    note = lambda _module, _args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1])  # noqa: E731
    hook = sa2va.model.vlm.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    settings = GenerationOptions(**{"max_new_tokens": 12, **options})
    try:
        found = sa2va.model.generate(prompts.ids, prompts.visual, options=settings, is_finished=finished, draft=draft)
    finally:
        hook.remove()
    return found, lengths


@pytest.mark.parametrize("case", FAMILIES)
@pytest.mark.parametrize("rows", [1, 4])
def test_drafts_change_no_token_and_no_state(open_sa2va, case, rows):
    sa2va = open_sa2va(case)
    prompts = Prompts(sa2va, QUESTIONS[:rows])
    expected = together(sa2va, prompts)
    answer = expected[-1].token_ids
    for draft in (answer, answer[:5], [*answer[:3], answer[0], answer[1]], answer[:1], [*answer, *answer]):
        found, _ = drafted(sa2va, prompts, draft)
        assert_same(found, expected)


def test_a_right_draft_is_read_with_the_prompt(sa2va):
    prompts = Prompts(sa2va, QUESTIONS[:1])
    expected = together(sa2va, prompts)
    found, lengths = drafted(sa2va, prompts, expected[0].token_ids)
    assert_same(found, expected)
    assert lengths == [len(prompts.ids[0]) + 11]
    found, lengths = drafted(sa2va, prompts, expected[0].token_ids[:4] + [1] * 4)
    assert_same(found, expected)
    assert lengths == [len(prompts.ids[0]) + 7] + [1] * 7  # of the draft four tokens are right


def test_a_wrong_draft_costs_no_pass(sa2va):
    prompts = Prompts(sa2va, QUESTIONS[:1])
    first = together(sa2va, prompts)[0].token_ids[0]
    _, lengths = drafted(sa2va, prompts, [first + 1, 5, 6])
    assert lengths == [len(prompts.ids[0]) + 2] + [1] * 11


def test_sampling_reads_no_draft(sa2va):
    prompts = Prompts(sa2va, QUESTIONS[:1])
    answer = together(sa2va, prompts)[0].token_ids
    for options in ({"temperature": 0.7, "seed": 1}, {"repetition_penalty": 1.3}):
        expected = together(sa2va, prompts, **options)
        found, lengths = drafted(sa2va, prompts, answer, **options)
        assert_same(found, expected)
        assert max(lengths[1:]) == 1


def test_tokens_of_a_draft_are_told_as_they_come(sa2va):
    prompts = Prompts(sa2va, QUESTIONS[:2])
    expected = together(sa2va, prompts)
    told: list[list[int]] = [[], []]
    sa2va.model.generate(
        prompts.ids,
        prompts.visual,
        options=GenerationOptions(max_new_tokens=12),
        is_finished=never,
        on_token=lambda row, token: told[row].append(token),
        draft=expected[0].token_ids,
    )
    assert told == [answer.token_ids for answer in expected]
