"""Training that starts from random weights: pretext stages, Muon, and the stages of ``tiny`` one after another."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sa2va import Sa2VA
from sa2va.data.collate import Collator
from sa2va.data.encode import EncodeOptions, encode_clicks, encode_sample
from sa2va.data.sample import Mention, Sample
from sa2va.model.types import Batch
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.results.history import Turn
from sa2va.train.config import TrainConfig
from sa2va.train.curriculum import tiny
from sa2va.train.initial_model import load_start
from sa2va.train.looking import Looking
from sa2va.train.losses import LossWeights
from sa2va.train.muon import MuonWithAdamW, is_matrix
from sa2va.train.pretext import Pretext
from sa2va.train.recall import Recall
from sa2va.train.run import finished, prepare, train
from sa2va.train.tiny import RANDOM_TINY
from sa2va.train.trainable import compile_layers


def quick(stage: TrainConfig, folder: Path, **changes: object) -> TrainConfig:
    base = replace(stage, model=RANDOM_TINY, output=str(folder), steps=2, batch_size=2, precision="fp32", compile=False)
    return replace(base, **changes)


def losses_of(folder: Path) -> list[dict]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [row for row in history if "loss" in row]


@pytest.mark.parametrize("number", range(len(tiny())))
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
    weights = {name for name, value in vars(stage.loss.weights).items() if value}
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
    config = replace(tiny()[0], model=RANDOM_TINY)
    model, processor = load_start(config)
    model.float()
    pretext = Pretext.of(model, processor)
    batch = Collator.of(processor)(
        [encode_sample(named("a red star", (0, 0, 128, 128)), processor, EncodeOptions(targets="area"))]
    )
    words = processor.tokenizer(" a red star", add_special_tokens=False)["input_ids"]
    for name, head in pretext.levels.items():  # heads that say the same whatever they see
        nn.init.zeros_(head.norm.weight)
        nn.init.zeros_(head.norm.bias)
        nn.init.zeros_(head.middle.bias)
        if name != "vision":
            nn.init.constant_(head.words.bias, -30.0)
            head.words.bias.data[words] = 0.0
    terms = pretext.losses(model, batch, torch.Generator().manual_seed(0))
    # Three feature maps as sure of every word of the phrase as one softmax allows, and one that knows nothing: it names
    # with the language model's own words.
    everything = model.get_input_embeddings().weight.shape[0]
    sure = 3 * np.log(len(words)) + np.log(everything)
    assert terms["words"].mean().item() == pytest.approx(sure, rel=1e-3)
    # The noun has half of the vote, besides its share as one of the words.
    for name, head in pretext.levels.items():
        if name != "vision":
            head.words.bias.data[words[-1]] = 3.0
    noun = pretext.losses(model, batch, torch.Generator().manual_seed(0))["words"].mean().item() - np.log(everything)
    missed = np.log(len(words) - 1 + np.exp(3.0))
    assert noun == pytest.approx(3 * (missed - 3.0 * (1 / 2 + 1 / (2 * len(words)))), rel=1e-3)
    # The middle is half a picture away from the origin in both directions.
    assert terms["middle"].mean().item() == pytest.approx(4 * 1.0, rel=1e-3)


def test_places_are_where_the_mask_is():
    model, processor = load_start(replace(tiny()[0], model=RANDOM_TINY))
    pretext = Pretext.of(model, processor)
    nn.init.zeros_(pretext.place.weight)
    batch = Collator.of(processor)(
        [encode_sample(named("a red star", (64, 0, 128, 64)), processor, EncodeOptions(targets="area"))]
    )
    states = torch.zeros(1, model.config.get_text_config().hidden_size)
    share = torch.zeros(8, 8)
    share[:4, 4:] = 1 / 16  # rows first: the top right quarter
    pretext.place.bias.data = share.clamp(min=1e-9).log().flatten()
    assert pretext.places(states, batch)["place"].mean().item() == pytest.approx(np.log(16), rel=1e-3)
    pretext.place.bias.data = share.flip(1).clamp(min=1e-9).log().flatten()
    assert pretext.places(states, batch)["place"].mean().item() > 10


def test_the_attention_of_seg_is_that_of_the_language_model():
    model, processor = load_start(replace(tiny()[0], model=RANDOM_TINY))
    model.float().vlm.set_attn_implementation("eager")
    samples = [named("a red star", (64, 0, 128, 64)), named("a house", (0, 32, 48, 128))]
    options = EncodeOptions(targets="area")
    batch = Collator.of(processor)([encode_sample(sample, processor, options, places=True) for sample in samples])
    batch = replace(batch, grounding_pixels=None)
    weights: list[torch.Tensor] = []
    attention = model.vlm.model.language_model.layers[-2].self_attn
    attention.register_forward_hook(lambda module, args, output: weights.append(output[1]))
    watch = Looking(model, processor, LossWeights(attention=1))
    model(batch)
    looks = weights[0][:, 0][batch.input_ids == model.config.seg_token_id]
    looks = looks[:, model.vlm.config.image_token_id == batch.input_ids[0]].view(2, 8, 8).log()
    expected = -(looks[0, :4, 4:].mean() + looks[1, 2:, :3].mean()) / 2
    losses = watch.losses(batch)
    assert losses.keys() == {"attention"}
    assert losses["attention"].mean().item() == pytest.approx(expected.item(), rel=1e-4)


def test_seg_learns_where_to_look_in_the_tiles_of_a_picture():
    model, processor = load_start(replace(tiny()[0], model=RANDOM_TINY))
    model.float().vlm.set_attn_implementation("eager")
    processor = Sa2VAProcessor(processor.tokenizer, replace(processor.settings, max_tiles=4))
    mask = np.zeros((1, 256, 256), bool)
    mask[0, :128, 128:] = True  # all of the second tile, and a quarter of the thumbnail
    turns = (Turn("What is there?", "There is <p> a red star </p> [SEG]."),)
    sample = Sample("tiled", (np.zeros((256, 256, 3), np.uint8),), turns, (mask,))
    batch = Collator.of(processor)([encode_sample(sample, processor, EncodeOptions(targets="area"), places=True)])
    batch = replace(batch, grounding_pixels=None)
    weights: list[torch.Tensor] = []
    attention = model.vlm.model.language_model.layers[-2].self_attn
    attention.register_forward_hook(lambda module, args, output: weights.append(output[1]))
    watch = Looking(model, processor, LossWeights(attention=1))
    model(batch)
    (looks,) = weights[0][:, 0][batch.input_ids == model.config.seg_token_id]
    looks = looks[model.vlm.config.image_token_id == batch.input_ids[0]].view(5, 8, 8).log()
    expected = -(looks[1].sum() + looks[4, :4, 4:].sum()) / (64 + 16)
    assert watch.losses(batch)["attention"].mean().item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_words_of_a_question_look_at_what_they_speak_of_and_at_the_first_token_for_nothing():
    model, processor = load_start(replace(tiny()[0], model=RANDOM_TINY))
    model.float().vlm.set_attn_implementation("eager")
    objects = np.zeros((2, 1, 128, 128), bool)
    objects[0, 0, :64, 64:] = True
    objects[1, 0, 96:, :16] = True
    question = "Is the star left of the house?"
    star, house = (question.index(word) + len(word) for word in ("star", "house"))
    mentions = (Mention(0, star, (0, 1)), Mention(0, house, ()))
    picture = np.zeros((128, 128, 3), np.uint8)
    sample = Sample("one", (picture,), (Turn(question, "yes"),), objects=objects, mentions=mentions)
    batch = Collator.of(processor)([encode_sample(sample, processor, places=True)])
    weights: list[torch.Tensor] = []
    layers = model.vlm.model.language_model.layers
    layers[len(layers) // 2 - 1].self_attn.register_forward_hook(lambda module, args, output: weights.append(output[1]))
    watch = Looking(model, processor, LossWeights(mentions=1))
    model(batch)
    vocabulary = processor.tokenizer.get_vocab()
    of_star, of_house = (
        weights[0][0, 0, batch.input_ids[0] == vocabulary[f"\u0120{w}"]][0].log() for w in ("star", "house")
    )
    cells = of_star[batch.input_ids[0] == model.vlm.config.image_token_id].view(8, 8)
    on_stars = (cells[:4, 4:].mean() + cells[6:, 0].mean()) / 2  # a large one counts no more than a small one
    # The first token takes part like one more star.
    expected = -((2 * on_stars + of_star[0]) / 3 + of_house[0]) / 2
    losses = watch.losses(batch)
    assert losses.keys() == {"mentions"}
    assert losses["mentions"].mean().item() == pytest.approx(expected.item(), rel=1e-4)


def clip_of_squares() -> Batch:
    """A clip of three frames in which two objects stand still: the left half, and a quarter of the right one."""
    _, processor = load_start(replace(tiny()[0], model=RANDOM_TINY, grounding_side=64))
    masks = np.zeros((2, 3, 64, 64), bool)
    masks[0, ..., :32] = True
    masks[1, :, :32, 32:] = True
    frames = tuple(np.full((64, 64, 3), 40 * number, np.uint8) for number in range(3))
    turns = (Turn("What moves?", "Neither [SEG] nor [SEG]."),)
    sample = Sample("clip", frames, turns, tuple(masks), video=True)
    encoded = encode_clicks(sample, processor, np.random.default_rng(0), EncodeOptions(targets="area"))
    return Collator.of(processor)([encoded])


def test_recall_counts_every_cell_of_every_later_frame():
    model, _ = load_start(replace(tiny()[0], model=RANDOM_TINY, grounding_side=64))
    recall = Recall(model.float())
    nn.init.zeros_(recall.here.weight)
    nn.init.zeros_(recall.here.bias)  # undecided everywhere: probability one half
    term = recall.losses(model, clip_of_squares(), torch.Generator())["recall"]
    dice = [1 - (2 * covered / 2 + 1) / (16 / 2 + covered + 1) for covered in (8, 4)]  # of 4 x 4 cells
    assert term.count.item() == 2 * 2
    assert term.mean().item() == pytest.approx(np.log(2) + np.mean(dice), rel=1e-4)


def test_memory_learns_to_tell_objects_apart_that_look_alike():
    model, _ = load_start(replace(tiny()[0], model=RANDOM_TINY, grounding_side=64))
    torch.manual_seed(0)
    batch, recall = clip_of_squares(), Recall(model.float())
    memory = [*model.sam2.memory_attention.parameters(), *model.sam2.memory_encoder.parameters()]
    optimizer, losses = torch.optim.AdamW([*memory, *recall.parameters()], lr=1e-3), []
    # At a constant rate AdamW leaps out of what it has found once gradients are tiny.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=50)
    for _ in range(50):
        loss = recall.losses(model, batch, torch.Generator())["recall"].mean()
        losses.append(loss.item())
        loss.backward()
        nn.utils.clip_grad_norm_(memory, 0.1)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    # Without memory both objects get the same answer, whose best is right for one half of the cells that differ.
    assert losses[0] > 1 and losses[-1] < 0.1


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, where it compiles
def test_compiled_layers_compute_the_same_under_the_same_names():
    model, processor = load_start(replace(tiny()[0], model=RANDOM_TINY))
    names = list(model.state_dict())
    batch = Collator.of(processor)([encode_sample(named("a red star", (64, 0, 128, 64)), processor)])
    with torch.no_grad():
        plain = model.float()(batch)
        compile_layers(model)
        fused = model(batch)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(fused.logits, plain.logits, atol=1e-4, rtol=1e-4)
    assert plain.masks is not None and fused.masks is not None
    torch.testing.assert_close(fused.masks.logits, plain.masks.logits, atol=1e-3, rtol=1e-3)


def test_towers_need_captions_that_name():
    model, processor = load_start(replace(tiny()[0], model=RANDOM_TINY))
    sample = named("a star", (0, 0, 64, 64))
    sample = replace(sample, turns=(Turn("What?", "Sure, [SEG]."),))
    batch = Collator.of(processor)([encode_sample(sample, processor)])
    with pytest.raises(ValueError, match="needs grounded captions"):
        Pretext.of(model, processor).losses(model, batch, torch.Generator())


def test_another_grounding_side_changes_no_weight():
    same, _ = load_start(replace(tiny()[1], model=RANDOM_TINY, grounding_side=None))
    smaller, processor = load_start(replace(tiny()[0], model=RANDOM_TINY, grounding_side=128))
    assert (same.sam2.image_size, smaller.sam2.image_size, processor.grounding_side) == (256, 128, 128)
    ours, theirs = same.state_dict(), smaller.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    frame = torch.zeros(1, 128, 128, 3, dtype=torch.uint8)
    assert smaller.encode_frames(frame).fine.shape[-2:] == (32, 32)


# -- Muon --------------------------------------------------------------------------------------------------------------


def muon(layer: nn.Module, learning_rate: float = 0.1) -> MuonWithAdamW:
    matrices, others = (
        [
            {
                "params": [
                    parameter for name, parameter in layer.named_parameters() if is_matrix(name, parameter) == kind
                ],
                "lr": learning_rate,
                "weight_decay": 0,
            }
        ]
        for kind in (True, False)
    )
    return MuonWithAdamW(matrices, others, (0.9, 0.98))


def test_muon_steps_matrices_with_orthogonal_updates_and_adamw_the_rest():
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = muon(layer)
    layer(torch.randn(8, 16)).square().sum().backward()
    optimizer.step()
    singular = torch.linalg.svdvals(before["weight"] - layer.weight.detach())
    scale = 0.1 * 0.2 * 4  # rate x 0.2 x the square root of the longer side
    assert (singular[:8] / scale).sub(1).abs().max() < 0.35  # the gradient has rank 8; the iteration is inexact
    torch.testing.assert_close((before["bias"] - layer.bias.detach()).abs(), torch.full((16,), 0.1), rtol=1e-3, atol=0)


@pytest.mark.parametrize("fast", [False, True])
def test_muon_steps_as_torchs_own_in_the_precision_that_the_device_is_fast_in(fast, monkeypatch):
    monkeypatch.setattr("sa2va.train.muon.fast_bfloat16", lambda device: fast)
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(24, 40, bias=False), nn.Linear(40, 24, bias=False), nn.Linear(24, 40, bias=False))
    theirs, before = deepcopy(ours), deepcopy(ours)
    own = MuonWithAdamW([{"params": list(ours.parameters()), "lr": 0.01, "weight_decay": 0.1}], [], (0.9, 0.98))
    reference = torch.optim.Muon(theirs.parameters(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        inputs = torch.randn(64, 24)
        for layers, optimizer in ((ours, own), (theirs, reference)):
            optimizer.zero_grad()
            layers(inputs).square().sum().backward()
            optimizer.step()
    for one, other, start in zip(ours.parameters(), theirs.parameters(), before.parameters(), strict=True):
        difference = (one - other).norm() / (other - start).norm()
        assert difference < (0.02 if fast else 0.1)  # torch's iterations are in bfloat16, and so inexact


def test_tiny_trains_in_float32_where_bfloat16_is_slow(monkeypatch):
    for fast, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("sa2va.train.curriculum.fast_bfloat16", lambda device, fast=fast: fast)
        assert {stage.precision for stage in tiny()} == {precision}


def test_muon_follows_a_schedule_and_resumes():
    def run(steps: int, optimizer: MuonWithAdamW, layer: nn.Module, start: int = 0) -> None:
        for step in range(start, start + steps):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + step)
            optimizer.zero_grad()
            layer(torch.full((2, 4), float(step + 1))).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    straight, resumed = nn.Linear(4, 4), nn.Linear(4, 4)
    resumed.load_state_dict(straight.state_dict())
    run(4, muon(straight), straight)
    first = muon(resumed)
    run(2, first, resumed)
    second = muon(resumed)
    second.load_state_dict(first.state_dict())
    run(2, second, resumed, start=2)
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
