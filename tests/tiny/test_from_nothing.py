"""Training that starts from random weights: the losses of ``tiny``, and its stages one after another."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rectangles import Rectangles
from sa2va import Sa2VA, Sa2VAModel
from sa2va.data.collate import Collator
from sa2va.data.encode import Encoded, EncodeOptions, encode_clicks, encode_sample
from sa2va.data.sample import Sample
from sa2va.model.types import Batch, Sa2VAOutput
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.results.history import Turn
from sa2va.tiny.attention_supervision import AttentionSupervision, TokenPlaces, checked_mentions
from sa2va.tiny.curriculum import tiny
from sa2va.tiny.grid_pretraining import CellNaming, SegPlacement
from sa2va.tiny.memory_pretraining import MemoryRecall
from sa2va.tiny.random_model import RANDOM_TINY
from sa2va.tiny.synthetic.mentions import Mention
from sa2va.train.config import TrainConfig
from sa2va.train.initial_model import load_start
from sa2va.train.run import finished, prepare, train
from sa2va.train.trainable import compile_layers

LOOKS = {"AttentionSupervision": AttentionSupervision.targets}


@cache
def _drawn(grounding_side: int | None) -> tuple[Sa2VAModel, Sa2VAProcessor]:
    return load_start(replace(tiny()[0], model=RANDOM_TINY, grounding_side=grounding_side))


def random_start(grounding_side: int | None = tiny()[0].grounding_side) -> tuple[Sa2VAModel, Sa2VAProcessor]:
    """What the first stage starts from."""
    model, processor = _drawn(grounding_side)
    return deepcopy(model).float(), processor


def quick(stage: TrainConfig, folder: Path, **changes: object) -> TrainConfig:
    base = replace(stage, model=RANDOM_TINY, output=str(folder), steps=2, batch_size=2, precision="fp32", compile=False)
    return replace(base, **changes)


def losses_of(folder: Path) -> list[dict]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [row for row in history if "loss" in row]


#: The first, which starts from nothing; the others are slow.
_ALWAYS = (0,)


@pytest.mark.parametrize(
    "number",
    [number if number in _ALWAYS else pytest.param(number, marks=pytest.mark.slow) for number in range(len(tiny()))],
)
def test_every_stage_trains_from_the_one_before_and_leaves_a_model_that_loads(
    number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    stage = quick(tiny()[number], tmp_path / "stage", log_every=1, save_every=1)
    # Batches of other tasks may hold no mask, and captions mention nothing in their questions.
    requests = tuple(source for source in stage.data if source.group.endswith("segment"))
    captions = tuple(source for source in stage.data if source.group.endswith("caption"))
    stage = replace(stage, data=requests or captions)
    assert not finished(stage)
    train(prepare(stage), progress=False)
    capfd.readouterr()
    assert finished(stage)
    given = (vars(stage.loss.weights), *(loss.weights for loss in stage.auxiliary))
    weights = {name for own in given for name, value in own.items() if value}
    assert weights <= losses_of(tmp_path / "stage")[-1].keys() | {"text"}
    model = Sa2VA.from_pretrained(tmp_path / "stage")  # strict: no head of a pretext stage is left in the file
    picture = np.zeros((48, 64, 3), np.uint8)
    assert model.segment(picture, "the star", max_new_tokens=4).size == (48, 64)


def test_stages_follow_one_another(tmp_path: Path):
    stages = tiny(str(tmp_path), scale=0.01)
    assert stages[0].model == RANDOM_TINY
    for before, after in pairwise(stages):
        assert after.model == before.output
    for full, short in zip(tiny(), stages, strict=True):
        assert short.steps == max(1, round((full.steps or 0) * 0.01))


def named(phrase: str, box: tuple[int, int, int, int]) -> Sample:
    """A picture of one thing that its caption names."""
    mask = np.zeros((1, 128, 128), bool)
    mask[0, box[1] : box[3], box[0] : box[2]] = True
    answer = f"There is <p> {phrase} </p> [SEG]."
    return Sample("one", (np.zeros((128, 128, 3), np.uint8),), (Turn("What is there?", answer),), (mask,))


def test_cells_learn_the_words_of_what_covers_them_and_where_its_middle_is():
    model, processor = random_start()
    naming = CellNaming(model, processor, {"words": 1, "middle": 1})
    batch = Collator.of(processor)(
        [encode_sample(named("a red star", (0, 0, 128, 128)), processor, EncodeOptions(targets="area"))]
    )
    words = processor.tokenizer(" a red star", add_special_tokens=False)["input_ids"]
    levels = naming.heads.levels
    for name, head in levels.items():  # heads that say the same whatever they see
        nn.init.zeros_(head.norm.weight)
        nn.init.zeros_(head.norm.bias)
        nn.init.zeros_(head.middle.bias)
        if name != "vision":
            nn.init.constant_(head.words.bias, -30.0)
            head.words.bias.data[words] = 0.0
    terms = naming.losses(model, batch, None, torch.Generator().manual_seed(0))
    # Three feature maps as sure of every word of the phrase as one softmax allows, and one that knows nothing: it names
    # with the language model's own words.
    everything = model.get_input_embeddings().weight.shape[0]
    sure = 3 * np.log(len(words)) + np.log(everything)
    assert terms["words"].mean().item() == pytest.approx(sure, rel=1e-3)
    # The noun has half of the vote, besides its share as one of the words.
    for name, head in levels.items():
        if name != "vision":
            head.words.bias.data[words[-1]] = 3.0
    words_only = naming.losses(model, batch, None, torch.Generator().manual_seed(0))["words"]
    noun = words_only.mean().item() - np.log(everything)
    missed = np.log(len(words) - 1 + np.exp(3.0))
    assert noun == pytest.approx(3 * (missed - 3.0 * (1 / 2 + 1 / (2 * len(words)))), rel=1e-3)
    # The middle is half a picture away from the origin in both directions.
    assert terms["middle"].mean().item() == pytest.approx(4 * 1.0, rel=1e-3)


def test_places_are_where_the_mask_is():
    model, processor = random_start()
    placement = SegPlacement(model, processor, {"place": 1})
    place = placement.heads.place
    nn.init.zeros_(place.weight)
    batch = Collator.of(processor)(
        [encode_sample(named("a red star", (64, 0, 128, 64)), processor, EncodeOptions(targets="area"))]
    )
    states = torch.zeros(1, model.config.get_text_config().hidden_size)
    output = Sa2VAOutput(None, None, (1,), states)
    share = torch.zeros(8, 8)
    share[:4, 4:] = 1 / 16  # rows first: the top right quarter
    place.bias.data = share.clamp(min=1e-9).log().flatten()
    assert placement.losses(model, batch, output, torch.Generator())["place"].mean().item() == pytest.approx(
        np.log(16), rel=1e-3
    )
    place.bias.data = share.flip(1).clamp(min=1e-9).log().flatten()
    assert placement.losses(model, batch, output, torch.Generator())["place"].mean().item() > 10


def test_the_attention_of_seg_is_that_of_the_language_model():
    model, processor = random_start()
    model.vlm.set_attn_implementation("eager")
    samples = [named("a red star", (64, 0, 128, 64)), named("a house", (0, 32, 48, 128))]
    options = EncodeOptions(targets="area")
    batch = Collator.of(processor)([encode_sample(sample, processor, options, extras=LOOKS) for sample in samples])
    batch = replace(batch, grounding_pixels=None)
    weights: list[torch.Tensor] = []
    attention = model.vlm.model.language_model.layers[-2].self_attn
    attention.register_forward_hook(lambda module, args, output: weights.append(output[1]))
    watch = AttentionSupervision(model, processor, {"attention": 1})
    model(batch)
    looks = weights[0][:, 0][batch.input_ids == model.config.seg_token_id]
    looks = looks[:, model.vlm.config.image_token_id == batch.input_ids[0]].view(2, 8, 8).log()
    expected = -(looks[0, :4, 4:].mean() + looks[1, 2:, :3].mean()) / 2
    losses = watch.losses(model, batch, None, torch.Generator())
    assert losses.keys() == {"attention"}
    assert losses["attention"].mean().item() == pytest.approx(expected.item(), rel=1e-4)


def test_seg_learns_where_to_look_in_the_tiles_of_a_picture():
    model, processor = random_start()
    model.vlm.set_attn_implementation("eager")
    processor = Sa2VAProcessor(processor.tokenizer, replace(processor.settings, max_tiles=4))
    mask = np.zeros((1, 256, 256), bool)
    mask[0, :128, 128:] = True  # all of the second tile, and a quarter of the thumbnail
    turns = (Turn("What is there?", "There is <p> a red star </p> [SEG]."),)
    sample = Sample("tiled", (np.zeros((256, 256, 3), np.uint8),), turns, (mask,))
    batch = Collator.of(processor)([encode_sample(sample, processor, EncodeOptions(targets="area"), extras=LOOKS)])
    batch = replace(batch, grounding_pixels=None)
    weights: list[torch.Tensor] = []
    attention = model.vlm.model.language_model.layers[-2].self_attn
    attention.register_forward_hook(lambda module, args, output: weights.append(output[1]))
    watch = AttentionSupervision(model, processor, {"attention": 1})
    model(batch)
    (looks,) = weights[0][:, 0][batch.input_ids == model.config.seg_token_id]
    looks = looks[model.vlm.config.image_token_id == batch.input_ids[0]].view(5, 8, 8).log()
    expected = -(looks[1].sum() + looks[4, :4, 4:].sum()) / (64 + 16)
    assert watch.losses(model, batch, None, torch.Generator())["attention"].mean().item() == pytest.approx(
        expected.item(), rel=1e-4
    )


def test_the_words_of_a_question_look_at_what_they_speak_of_and_at_the_first_token_for_nothing():
    model, processor = random_start()
    model.vlm.set_attn_implementation("eager")
    objects = np.zeros((2, 1, 128, 128), bool)
    objects[0, 0, :64, 64:] = True
    objects[1, 0, 96:, :16] = True
    question = "Is the star left of the house?"
    star, house = (question.index(word) + len(word) for word in ("star", "house"))
    mentions = (Mention(0, star, (0, 1)), Mention(0, house, ()))
    picture = np.zeros((128, 128, 3), np.uint8)
    sample = Sample("one", (picture,), (Turn(question, "yes"),), extras={"objects": objects, "mentions": mentions})
    batch = Collator.of(processor)([encode_sample(sample, processor, extras=LOOKS)])
    weights: list[torch.Tensor] = []
    layers = model.vlm.model.language_model.layers
    layers[len(layers) // 2 - 1].self_attn.register_forward_hook(lambda module, args, output: weights.append(output[1]))
    watch = AttentionSupervision(model, processor, {"mentions": 1})
    model(batch)
    vocabulary = processor.tokenizer.get_vocab()
    of_star, of_house = (
        weights[0][0, 0, batch.input_ids[0] == vocabulary[f"\u0120{w}"]][0].log() for w in ("star", "house")
    )
    cells = of_star[batch.input_ids[0] == model.vlm.config.image_token_id].view(8, 8)
    on_stars = (cells[:4, 4:].mean() + cells[6:, 0].mean()) / 2  # a large one counts no more than a small one
    # The first token takes part like one more star.
    expected = -((2 * on_stars + of_star[0]) / 3 + of_house[0]) / 2
    losses = watch.losses(model, batch, None, torch.Generator())
    assert losses.keys() == {"mentions"}
    assert losses["mentions"].mean().item() == pytest.approx(expected.item(), rel=1e-4)


def places_of(encoded: Encoded) -> TokenPlaces:
    return encoded.extras["AttentionSupervision"]


def test_mentions_become_tokens_and_shares_of_cells(sa2va: Sa2VA):
    processor = Sa2VAProcessor(sa2va.processor.tokenizer, replace(sa2va.processor.settings, max_tiles=1))
    sample = Rectangles()[1]
    objects = np.zeros((2, *sample.masks[0].shape), bool)
    height, width = objects.shape[-2:]
    objects[0, :, : height // 2, : width // 2] = True
    objects[1, :, :, width // 2 :] = True
    question = sample.turns[1].question
    mentions = (
        Mention(1, question.index(" "), (0,)),
        Mention(1, len(question), (0, 1)),
        Mention(1, question.index(" "), ()),
    )
    sample = replace(sample, extras={"objects": objects, "mentions": mentions})
    assert not encode_sample(sample, processor).extras, "nobody asked for places"
    encoded = encode_sample(sample, processor, extras=LOOKS)
    places = places_of(encoded)
    assert places.ends is not None and places.mentions is not None
    text = processor.tokenizer.decode(encoded.ids[: int(places.ends[0]) + 1])
    assert isinstance(text, str) and text.endswith(question[: question.index(" ")])
    first, both, nothing = places.mentions.unflatten(1, (processor.cells, processor.cells))
    half = (processor.cells or 0) // 2
    assert first[:half, :half].sum().item() == pytest.approx(1 / 2)
    assert both[:, half:].sum().item() == pytest.approx(1 / 3)
    assert both.sum().item() == pytest.approx(2 / 3)
    assert not nothing.any()


def test_places_in_a_picture_of_tiles_are_in_its_tiles_and_its_thumbnail(sa2va: Sa2VA):
    processor = sa2va.processor
    side = processor.tile_side or 0
    mask = np.zeros((1, 2 * side, 2 * side), bool)
    mask[0, : side // 2, side:] = True  # the upper half of the upper right of two by two tiles
    picture = np.zeros((2 * side, 2 * side, 3), np.uint8)
    sample = Sample("tiled", (picture,), (Turn("What is there?", "It is [SEG]."),), (mask,))
    encoded = encode_sample(sample, processor, extras=LOOKS)
    assert encoded.pixel_values is not None and len(encoded.pixel_values) == 5
    seg = places_of(encoded).seg
    assert seg is not None
    covered = torch.zeros(5, 2, 2)  # cells of each tile, row by row
    covered[1, 0] = 1
    covered[4, 0, 1] = 1 / 2
    torch.testing.assert_close(seg, (covered / covered.sum()).view(1, -1))


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"mentions": (Mention(1, 3, ()),)}, "character 3 of question 1, which does not exist"),
        ({"mentions": (Mention(0, 999, ()),)}, "character 999 of question 0"),
        ({"mentions": (Mention(0, 3, (0,)),)}, r"objects \(0,\), but there are 0"),
        ({"objects": np.zeros((1, 4, 6), bool)}, r"shape \(1, 1, 4, 6\), got bool \(1, 4, 6\)"),
        ({"objects": np.zeros((1, 1, 4, 6), np.uint8)}, "must be bool"),
    ],
)
def test_wrong_mentions_name_the_sample_and_the_trouble(extras: dict, message: str):
    sample = Sample("one", (np.zeros((4, 6, 3), np.uint8),), (Turn("What is it?", "A star."),), extras=extras)
    with pytest.raises(ValueError, match=message) as caught:
        checked_mentions(sample)
    assert "'one'" in str(caught.value)


def clip_of_squares() -> Batch:
    """A clip of three frames in which two objects stand still: the left half, and a quarter of the right one."""
    _, processor = random_start(grounding_side=64)
    masks = np.zeros((2, 3, 64, 64), bool)
    masks[0, ..., :32] = True
    masks[1, :, :32, 32:] = True
    frames = tuple(np.full((64, 64, 3), 40 * number, np.uint8) for number in range(3))
    turns = (Turn("What moves?", "Neither [SEG] nor [SEG]."),)
    sample = Sample("clip", frames, turns, tuple(masks), video=True)
    encoded = encode_clicks(sample, processor, np.random.default_rng(0), EncodeOptions(targets="area"))
    return Collator.of(processor)([encoded])


def test_recall_counts_every_cell_of_every_later_frame():
    model, processor = random_start(grounding_side=64)
    recall = MemoryRecall(model, processor, {"recall": 1})
    nn.init.zeros_(recall.here.weight)
    nn.init.zeros_(recall.here.bias)  # undecided everywhere: probability one half
    term = recall.losses(model, clip_of_squares(), None, torch.Generator())["recall"]
    dice = [1 - (2 * covered / 2 + 1) / (16 / 2 + covered + 1) for covered in (8, 4)]  # of 4 x 4 cells
    assert term.count.item() == 2 * 2
    assert term.mean().item() == pytest.approx(np.log(2) + np.mean(dice), rel=1e-4)


@pytest.mark.slow
def test_memory_learns_to_tell_objects_apart_that_look_alike():
    model, processor = random_start(grounding_side=64)
    torch.manual_seed(0)
    batch, recall = clip_of_squares(), MemoryRecall(model, processor, {"recall": 1})
    memory = [*model.sam2.memory_attention.parameters(), *model.sam2.memory_encoder.parameters()]
    optimizer, losses = torch.optim.AdamW([*memory, *recall.here.parameters()], lr=1e-3), []
    # At a constant rate AdamW leaps out of what it has found once gradients are tiny.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=50)
    for _ in range(50):
        loss = recall.losses(model, batch, None, torch.Generator())["recall"].mean()
        losses.append(loss.item())
        loss.backward()
        nn.utils.clip_grad_norm_(memory, 0.1)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    # Without memory both objects get the same answer, whose best is right for one half of the cells that differ.
    assert losses[0] > 1 and losses[-1] < 0.1


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, where it compiles
@pytest.mark.slow
def test_compiled_layers_compute_the_same_under_the_same_names():
    model, processor = random_start()
    names = list(model.state_dict())
    batch = Collator.of(processor)([encode_sample(named("a red star", (64, 0, 128, 64)), processor)])
    with torch.no_grad():
        plain = model(batch)
        compile_layers(model)
        fused = model(batch)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(fused.logits, plain.logits, atol=1e-4, rtol=1e-4)
    assert plain.masks is not None and fused.masks is not None
    torch.testing.assert_close(fused.masks.logits, plain.masks.logits, atol=1e-3, rtol=1e-3)


def test_towers_need_captions_that_name():
    model, processor = random_start()
    sample = named("a star", (0, 0, 64, 64))
    sample = replace(sample, turns=(Turn("What?", "Sure, [SEG]."),))
    batch = Collator.of(processor)([encode_sample(sample, processor)])
    with pytest.raises(ValueError, match="needs grounded captions"):
        CellNaming(model, processor, {"words": 1}).losses(model, batch, None, torch.Generator())


def test_another_grounding_side_changes_no_weight():
    same, _ = load_start(replace(tiny()[1], model=RANDOM_TINY, grounding_side=None))
    smaller, processor = load_start(replace(tiny()[0], model=RANDOM_TINY, grounding_side=128))
    assert (same.sam2.image_size, smaller.sam2.image_size, processor.grounding_side) == (256, 128, 128)
    ours, theirs = same.state_dict(), smaller.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    frame = torch.zeros(1, 128, 128, 3, dtype=torch.uint8)
    assert smaller.encode_frames(frame).fine.shape[-2:] == (32, 32)


def test_tiny_trains_in_float32_where_bfloat16_is_slow(monkeypatch):
    for fast, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("sa2va.tiny.curriculum.fast_bfloat16", lambda device, fast=fast: fast)
        assert {stage.precision for stage in tiny()} == {precision}
