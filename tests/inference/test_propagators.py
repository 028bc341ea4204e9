"""Other models that carry masks: SAM 2.1, SAM 3's tracker and EdgeTAM, against transformers' own sessions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    Sam2VideoModel,
    Sam3TrackerVideoConfig,
    Sam3TrackerVideoModel,
)
from transformers.models.edgetam_video.modeling_edgetam_video import EdgeTamVideoInferenceSession
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoInferenceSession

from sa2va import Frame, Sa2VAModel, VideoTracker
from sa2va.checkpoint.propagators import load_propagator
from sa2va.inference import tracker as tracker_module
from sa2va.inference.propagation import propagate_video
from sa2va.inference.propagator_memory import PropagatorMemory
from sa2va.media.open import open_media
from sa2va.model.configuration import sam2_config
from sa2va.model.propagator import draw, encode_for_propagator
from sa2va.processing.processor import squashed_frames
from synthetic_checkpoint import picture

KINDS = ("sam2.1", "sam3", "edgetam")
FRAMES, HEIGHT, WIDTH = 9, 48, 64
CLIP = [picture(WIDTH, HEIGHT, seed) for seed in range(FRAMES)]
SMALL = {"memory_attention_num_layers": 1, "memory_attention_dropout": 0.0, "memory_attention_rope_dropout": 0.0}
SMALL |= {"memory_attention_hidden_size": 128, "memory_encoder_hidden_size": 128, "mask_downsampler_embed_dim": 128}
SMALL |= {"num_maskmem": 3, "max_object_pointers_in_encoder": 5}
SMALL |= {"memory_fuser_embed_dim": 128, "memory_fuser_intermediate_dim": 32}
DECODER = {"hidden_size": 128, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32}


def random_model(kind: str) -> Any:
    """A propagator of random weights, as small as its design allows."""
    hiera = sam2_config(
        image_size=64,
        embed_dim=8,
        num_heads=1,
        blocks=(1, 1, 2, 1),
        global_blocks=(3,),
        windows=(4, 2, 4, 2),
        width=128,
        memory_layers=1,
        memory_mlp=32,
        decoder_heads=2,
        decoder_mlp=32,
        version="2.1",
    )
    torch.manual_seed(0)
    if kind == "sam2.1":
        for name, value in SMALL.items():
            setattr(hiera, name, value)
        model: Any = Sam2VideoModel(hiera)
    elif kind == "edgetam":  # its own image encoder is of a package that is not here; SAM 2's has the same outputs
        model = EdgeTamVideoModel(
            EdgeTamVideoConfig(
                vision_config=hiera.vision_config,
                prompt_encoder_config={"hidden_size": 128, "image_size": 64},
                mask_decoder_config=DECODER,
                image_size=64,
                memory_attention_mlp_hidden_size=32,
                memory_attention_rope_feat_sizes=[4, 4],
                memory_attention_rope_k_sizes=[2, 2],
                perceiver_resampler_num_latents=4,
                perceiver_resampler_num_latents_2d=4,
                perceiver_resampler_mlp_intermediate_size=32,
                **SMALL,
            )
        )
    else:
        backbone = {"model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 32, "image_size": 56}
        backbone |= {"num_hidden_layers": 2, "num_attention_heads": 2, "window_size": 2, "global_attn_indexes": [1]}
        model = Sam3TrackerVideoModel(
            Sam3TrackerVideoConfig(
                vision_config={
                    "model_type": "sam3_vision_model",
                    "fpn_hidden_size": 128,
                    "backbone_config": backbone | {"pretrain_image_size": 28},
                },
                prompt_encoder_config={"hidden_size": 128},
                mask_decoder_config=DECODER,
                memory_attention_feed_forward_hidden_size=32,
                image_size=56,
                **SMALL,
            )
        )
    seed = {"sam2.1": 2, "sam3": 2, "edgetam": 4}[kind]  # with which masks depend on what is remembered
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            gain = 4 if "cross_attn_image" in name or "mask_downsampler" in name or "temporal" in name else 2
            scale = 1.0 if weight.ndim < 2 else gain * weight[0].numel() ** -0.5
            weight.data = scale * torch.randn(weight.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in found.items():
        random_model(kind).save_pretrained(folder)
    return found


@pytest.fixture(scope="module", params=KINDS)
def propagator(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Any:
    return load_propagator(folders[request.param]).eval()


@pytest.fixture(scope="module")
def base(checkpoint: Callable[[str], Path]) -> Sa2VAModel:
    return Sa2VAModel.from_pretrained(checkpoint("iv25_qwen2")).eval()


@pytest.fixture(scope="module")
def model(base: Sa2VAModel, propagator: Any) -> Sa2VAModel:
    """A checkpoint without an original decoder, whose masks the propagator carries."""
    base.attach_propagator(propagator)
    return base


@contextmanager
def seen(propagator: Any, present: bool) -> Iterator[None]:
    """Objects are always seen, or never, by so much that their scores still depend on the frame."""
    bias = propagator.mask_decoder.pred_obj_score_head.proj_out.bias
    before = bias.clone()
    bias += 100 if present else -100
    try:
        yield
    finally:
        bias.copy_(before)


def theirs(propagator: Any, masks: dict[int, Tensor], *, backward: bool) -> dict[int, tuple[Tensor, Tensor]]:
    """Logits (K, s, s) and object scores (K) of each frame from transformers' own session, as its users drive it.

    Args:
        masks: by frame, float (K, S, S).
    """
    kinds = (Sam2VideoInferenceSession, Sam3TrackerVideoInferenceSession, EdgeTamVideoInferenceSession)
    models = (Sam2VideoModel, Sam3TrackerVideoModel, EdgeTamVideoModel)
    kind: Any = next(kind for kind, model in zip(kinds, models, strict=True) if isinstance(propagator, model))
    session = kind(video=pixels_of(propagator), video_height=HEIGHT, video_width=WIDTH, dtype=torch.float32)
    for index, drawn in masks.items():
        for number, mask in enumerate(drawn):
            session.add_mask_inputs(session.obj_id_to_idx(number), index, mask[None, None])
        session.obj_with_new_inputs = list(range(len(drawn)))
        propagator(session, frame_idx=index)
    steps = propagator.propagate_in_video_iterator(session, start_frame_idx=min(masks), reverse=backward)
    return {step.frame_idx: (step.pred_masks.flatten(0, 1), step.object_score_logits.flatten()) for step in steps}


def squashed(propagator: Any) -> Tensor:
    return squashed_frames([Image.fromarray(frame) for frame in CLIP], propagator.config.image_size)


def pixels_of(propagator: Any) -> Tensor:
    """The clip as transformers' video processor of this model gives it: its statistics are in no config."""
    mean, std = (0.5, 0.5) if "sam3" in propagator.config.model_type else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    pixels = (squashed(propagator).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    return pixels.permute(0, 3, 1, 2)


def drawn_boxes(side: int, *boxes: tuple[int, int, int, int]) -> Tensor:
    """Float masks (K, S, S) of boxes (top, bottom, left, right) in 64ths of the side."""
    masks = torch.zeros(len(boxes), side, side)
    for mask, box in zip(masks, boxes, strict=True):
        top, bottom, left, right = (edge * side // 64 for edge in box)
        mask[top:bottom, left:right] = 1
    return masks


@torch.inference_mode()
@pytest.mark.parametrize(("backward", "present"), [(False, True), (False, False), (True, True)])
def test_masks_are_those_of_transformers_session(propagator: Any, backward: bool, present: bool):
    """Two objects, prompted on two frames, through more frames than are remembered."""
    side = propagator.config.image_size
    masks = {1: drawn_boxes(side, (4, 30, 8, 40), (30, 50, 20, 52))}
    masks |= {3: drawn_boxes(side, (10, 36, 8, 40), (24, 44, 4, 36))}
    if backward:
        masks = {7: masks[1]}
    memory, found = PropagatorMemory(), {}
    encoded = [encode_for_propagator(propagator, frame[None]) for frame in squashed(propagator)]
    with seen(propagator, present):
        expected = theirs(propagator, masks, backward=backward)
        for index, drawn in masks.items():
            found[index] = draw(propagator, encoded[index], drawn)
            memory = memory.prompt(propagator, encoded[index], found[index], index)
        for index in expected:
            if index not in found:
                found[index], memory = memory.track(
                    propagator, propagator.mask_decoder, encoded[index], index, backward=backward
                )
    assert len(expected) == 8
    for index, (logits, scores) in expected.items():
        torch.testing.assert_close(found[index].logits, logits, atol=1e-3, rtol=1e-3)
        assert torch.equal(found[index].logits > 0, logits > 0)
        torch.testing.assert_close(found[index].presence, scores, atol=1e-3, rtol=1e-3)
        assert bool((logits[0] > 0).any()) == (present or index in masks)
    assert any((scores[0] - scores[1]).abs() > 0.02 for index, (_, scores) in expected.items() if index not in masks)
    for one in memory.objects:  # memory does not grow with the video
        assert len(one.tracked) <= 4
        assert sum("maskmem_features" in output for output in one.tracked.values()) <= 2


def followed(model: Sa2VAModel, keys: list[int], **options: Any) -> list[Frame]:
    """Two objects of random prompts through the clip."""
    tracker = VideoTracker(model, **options)
    tracker.add_prompts(torch.randn(2, 128, generator=torch.Generator().manual_seed(0)), ["one", "other"])
    return [frame for frame, _ in propagate_video(tracker, open_media(CLIP), keys)]


def test_it_carries_the_masks_that_the_fine_tuned_decoder_made(model: Sa2VAModel, monkeypatch: pytest.MonkeyPatch):
    """From two key frames in the middle to both ends; a frame passes each encoder at most once."""
    own, others = [], []
    encode, encode_other = model.encode_frames, encode_for_propagator
    monkeypatch.setattr(model, "encode_frames", lambda frames: own.append(len(frames)) or encode(frames))
    monkeypatch.setattr(
        tracker_module, "encode_for_propagator", lambda one, x: others.append(len(x)) or encode_other(one, x)
    )
    with torch.inference_mode(), seen(model.propagator, True):
        carried = followed(model, [2, 5])
    assert (sum(own), sum(others)) == (2, FRAMES), "the checkpoint's own encoder sees key frames only"
    assert VideoTracker(model).mode == "consistent"
    assert all([segment.id for segment in frame.segments] == [1, 2] for frame in carried)
    released = followed(model, [2, 5], mode="released")
    for index in (2, 5):
        for found, drawn in zip(carried[index].segments, released[index].segments, strict=True):
            assert drawn.mask.area > 50
            assert found.mask.iou(drawn.mask) > 0.8, "the same mask, through another resolution"
            assert (found.score, found.presence) == (drawn.score, drawn.presence)


@pytest.fixture(scope="module")
def sam2(folders: dict[str, Path]) -> Any:
    return load_propagator(folders["sam2.1"]).eval()


@pytest.fixture
def by_sam2(base: Sa2VAModel, sam2: Any) -> Sa2VAModel:
    """The checkpoint with SAM 2.1 to carry its masks."""
    base.attach_propagator(sam2)
    return base


def test_released_mode_is_left_alone(by_sam2: Sa2VAModel, load: Callable[[str], Sa2VAModel]):
    assert followed(by_sam2, [0], mode="released") == followed(load("iv25_qwen2"), [0])


def test_objects_of_streams_come_and_go(by_sam2: Sa2VAModel):
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    drawn[8:32, 8:48] = True
    tracker = VideoTracker(by_sam2)
    first = tracker.add(mask=drawn)
    with torch.inference_mode(), seen(by_sam2.propagator, True):
        (found,) = tracker.step(CLIP[0])
        assert found.mask.iou(type(found.mask).from_array(drawn)) > 0.8
        second = tracker.add(box=(4, 4, 40, 30))
        assert [segment.id for segment in tracker.step(CLIP[1])] == [first, second]
        tracker.remove(first)
        assert [segment.id for segment in tracker.step(CLIP[2])] == [second]


def test_it_remembers_in_its_own_way(by_sam2: Sa2VAModel):
    with pytest.raises(ValueError, match=r"memory='near' is for the checkpoint's own SAM 2.*mode='released'"):
        VideoTracker(by_sam2, memory="near")
    assert VideoTracker(by_sam2, memory="near", mode="released").mode == "released"


def test_it_is_named_when_loading_and_is_no_part_of_the_checkpoint(
    checkpoint: Callable[[str], Path], folders: dict[str, Path], tmp_path: Path
):
    model = Sa2VAModel.from_pretrained(checkpoint("iv25_qwen2"), dtype=torch.bfloat16, propagator=folders["edgetam"])
    assert isinstance(model.propagator, EdgeTamVideoModel)
    assert model.propagator.dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as written:
        assert {name.split(".")[0] for name in written.keys()} == {"vlm", "sam2", "projection"}  # noqa: SIM118


def test_of_a_whole_sam3_the_tracker_is_taken(folders: dict[str, Path], tmp_path: Path):
    """Its image encoder is shared with the part that finds objects, which is left out."""
    weights = {
        name.removeprefix("tracker_model.") if "detector_model." in name or "tracker_neck." in name else name: tensor
        for name, tensor in load_file(folders["sam3"] / "model.safetensors").items()
    }
    assert {name.split(".")[0] for name in weights} == {"tracker_model", "detector_model", "tracker_neck"}
    weights["detector_model.text_encoder.weight"] = torch.zeros(3)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    own = json.loads((folders["sam3"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3_video", "tracker_config": own}))
    found, expected = load_propagator(tmp_path).state_dict(), load_propagator(folders["sam3"]).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_what_is_no_propagator_says_what_would_be(
    checkpoint: Callable[[str], Path], folders: dict[str, Path], tmp_path: Path
):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model_type 'bert', which carries no masks.*facebook/sam2\.1-hiera-large"):
        load_propagator(tmp_path)
    with pytest.raises(ValueError, match=r"model_type 'edgetam_video', which is no SAM 2.*propagator="):
        Sa2VAModel.from_pretrained(checkpoint("iv25_qwen2"), sam2=folders["edgetam"])
    with pytest.raises(ValueError, match=r"another size or version.*give it as propagator="):
        Sa2VAModel.from_pretrained(checkpoint("iv25_qwen2"), sam2=folders["sam2.1"])
    weights = load_file(folders["sam2.1"] / "model.safetensors")
    weights.pop("no_object_pointer")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folders["sam2.1"] / "config.json").read_text())
    with pytest.raises(ValueError, match=r"'no_object_pointer' is missing"):
        load_propagator(tmp_path)


def test_edgetams_own_encoder_needs_its_package(folders: dict[str, Path], tmp_path: Path):
    content = json.loads((folders["edgetam"] / "config.json").read_text())
    content["vision_config"] = {"model_type": "edgetam_vision_model"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    save_file(load_file(folders["edgetam"] / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(ImportError, match=r"pip install 'sa2va\[edgetam\]'"):
        load_propagator(tmp_path)
