"""Private parts of transformers that we use: each test fails by name when a new release moves one of them.

What to do then: read the new code, adapt the function of ours that the test names, and run ``tests/parity``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, Sam2VideoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.sam2_video.modeling_sam2_video import get_1d_sine_pe

from sa2va import Sa2VAModel
from sa2va.model import language
from sa2va.model.configuration import hiera_large_config, sam2_config
from sa2va.model.mask_decoder import (
    FrameFeatures,
    MaskPrediction,
    decode_masks,
    dense_position,
    encode_frames,
    mask_as_prediction,
    no_prompt_tokens,
    point_tokens,
)
from sa2va.model.memory import _pointer_position, encode_memory
from sa2va.model.memory_attention import QUERY_POSITION_SHARE, read_memory

SIDE, CELLS, WIDTH, MEMORY = 128, 8, 128, 64
FAMILIES = ["iv25_qwen2", "iv25_internlm2", "iv35_qwen3", "q25", "q3"]


@pytest.fixture(scope="module")
def sam2(load: Callable[[str], Sa2VAModel]) -> Sam2VideoModel:
    return load("iv25_qwen2").sam2


@pytest.fixture(scope="module")
def sam2_1() -> Sam2VideoModel:
    """A random SAM 2.1, which has two parts more."""
    torch.manual_seed(0)
    small = {"embed_dim": 16, "num_heads": 1, "blocks": (1, 1, 1, 1), "global_blocks": (), "windows": (8, 4, 4, 2)}
    model = Sam2VideoModel(sam2_config(image_size=SIDE, width=WIDTH, memory_layers=1, version="2.1", **small))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same(found: Tensor, expected: Tensor, seam: str) -> None:
    assert found.shape == expected.shape, f"{seam}: the layout changed from {found.shape} to {expected.shape}"
    torch.testing.assert_close(
        found, expected, rtol=1e-4, atol=1e-4, msg=lambda text: f"{seam} computes something else now. {text}"
    )


def features_of(sam2: Sam2VideoModel) -> FrameFeatures:
    with torch.no_grad():
        return encode_frames(sam2, random(1, 3, SIDE, SIDE))


# -- SAM 2 -------------------------------------------------------------------------------------------------------------


def test_attributes_of_sam2(sam2: Sam2VideoModel):
    expected = {
        "image_size": SIDE,
        "hidden_dim": WIDTH,
        "mem_dim": MEMORY,
        "num_maskmem": 7,
        "occlusion_spatial_embedding_parameter": None,
    }
    assert {name: getattr(sam2, name, "gone") for name in expected} == expected
    shapes = {
        "no_memory_embedding": (1, 1, WIDTH),
        "memory_temporal_positional_encoding": (7, 1, 1, MEMORY),
        "no_object_pointer": (1, WIDTH),
    }
    assert {name: tuple(getattr(sam2, name).shape) for name in shapes} == shapes
    config = sam2.config
    assert (config.sigmoid_scale_for_mem_enc, config.sigmoid_bias_for_mem_enc) == (20.0, -10.0)
    assert config.max_object_pointers_in_encoder == 16
    assert sam2.prompt_encoder.not_a_point_embed.weight.shape == (1, WIDTH)
    assert sam2.prompt_encoder.no_mask_embed.weight.shape == (1, WIDTH)


def test_the_default_config_is_sam_2_0():
    config = hiera_large_config()
    assert config.memory_attention_rope_feat_sizes == [64, 64]
    assert config.rope_parameters["rope_theta"] == 10000
    assert not config.enable_occlusion_spatial_embedding
    assert not config.enable_temporal_pos_encoding_for_object_pointers
    assert config.mask_decoder_config.hidden_size == 256


def test_the_neck_behind_encode_frames(sam2: Sam2VideoModel):
    assert sam2.config.vision_config.fpn_top_down_levels == [2, 3], "encode_frames adds up these two levels only"
    pixels = random(2, 3, SIDE, SIDE)
    with torch.no_grad():
        ours, theirs = encode_frames(sam2, pixels), sam2.vision_encoder(pixels).fpn_hidden_states
    for found, expected in zip((ours.fine, ours.middle, ours.top), theirs, strict=True):
        assert_same(found, expected, "Sam2VisionNeck")


def test_the_position_code_behind_dense_position(sam2: Sam2VideoModel):
    found = dense_position(sam2, features_of(sam2).top)
    assert_same(found, sam2.get_image_wide_positional_embeddings(), "get_image_wide_positional_embeddings")


@torch.no_grad()
def test_the_prompt_encoder_behind_point_tokens(sam2: Sam2VideoModel):
    encoder = sam2.prompt_encoder
    points, labels = torch.tensor([[[10.0, 20.0], [90.0, 64.0]]]), torch.tensor([[1, 0]])
    codes = encoder.shared_embedding(points[:, None] + 0.5, (SIDE, SIDE))[:, 0]
    expected = torch.cat([codes + encoder.point_embed(labels), encoder.not_a_point_embed.weight[None]], dim=1)
    assert_same(point_tokens(sam2, points, labels), expected, "Sam2VideoPromptEncoder._embed_points")
    box = torch.tensor([[[10.0, 20.0, 90.0, 64.0]]])
    corners = point_tokens(sam2, box.view(1, 2, 2), torch.tensor([[2, 3]]))
    assert_same(corners, encoder._embed_boxes(box)[:, 0], "Sam2VideoPromptEncoder._embed_boxes")


@torch.no_grad()
def test_what_the_mask_decoder_returns(sam2: Sam2VideoModel):
    features = features_of(sam2)
    given = {
        "image_embeddings": features.top,
        "image_positional_embeddings": dense_position(sam2, features.top),
        "sparse_prompt_embeddings": no_prompt_tokens(sam2, 1)[:, None],
        "dense_prompt_embeddings": sam2.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
        "high_resolution_features": [
            sam2.mask_decoder.conv_s0(features.fine),
            sam2.mask_decoder.conv_s1(features.middle),
        ],
    }
    several = sam2.mask_decoder(**given, multimask_output=True)
    assert [tuple(part.shape) for part in several] == [(1, 1, 3, 32, 32), (1, 1, 3), (1, 1, 3, WIDTH), (1, 1, 1)]
    single = sam2.mask_decoder(**given, multimask_output=False)
    assert [tuple(part.shape) for part in single] == [(1, 1, 1, 32, 32), (1, 1, 1), (1, 1, 1, WIDTH), (1, 1, 1)]


@torch.no_grad()
def test_the_mask_prompt_behind_mask_as_prediction(sam2: Sam2VideoModel):
    features, masks = features_of(sam2), torch.zeros(2, SIDE, SIDE)
    masks[0, 20:90, 30:100] = 1
    high = [sam2.mask_decoder.conv_s0(features.fine), sam2.mask_decoder.conv_s1(features.middle)]
    found = mask_as_prediction(sam2, sam2.mask_decoder, features, masks)
    for row in range(2):
        mask, own = masks[row : row + 1, None], slice(row, row + 1)
        expected = sam2._use_mask_as_output(features.top, high, mask)
        seam = "Sam2VideoModel._use_mask_as_output"
        assert_same(found.candidates[own], expected.pred_masks, seam)
        assert_same(found.presence[own], expected.object_score_logits.flatten(), seam)
        assert_same(found.ious[own], expected.iou_scores.to(found.ious.dtype), seam)
    # The pointer is the single mask's, as Meta has it; transformers takes the best of three masks there.
    single = sam2._single_frame_forward(
        input_masks=sam2.mask_downsample(masks[:1, None]),
        image_embeddings=[*high, features.top],
        multimask_output=False,
    )
    assert_same(found.pointer[:1], single.object_pointer[:, 0], "Sam2VideoModel._single_frame_forward")
    assert_same(found.pointer[1:], sam2.no_object_pointer, "the pointer of an absent object")


def pairs_of(sam2: Sam2VideoModel, count: int = 3) -> tuple[FrameFeatures, MaskPrediction]:
    features = features_of(sam2)
    tokens = random(count, 3, WIDTH, seed=1)
    with torch.no_grad():
        return features, decode_masks(sam2, sam2.mask_decoder, features, tokens)


@pytest.mark.parametrize("version", ["sam2", "sam2_1"])
@torch.no_grad()
def test_the_memory_encoder_behind_encode_memory(version: str, request: pytest.FixtureRequest):
    model: Sam2VideoModel = request.getfixturevalue(version)
    features, prediction = pairs_of(model)
    presence = torch.tensor([-1.0, 0.0, 2.0])
    prediction = MaskPrediction(prediction.candidates, prediction.ious, prediction.best, presence, prediction.pointer)
    found = encode_memory(model, features, prediction, 0).features
    assert found is not None and found.dtype == torch.bfloat16
    large = torch.nn.functional.interpolate(prediction.logits[:, None], size=(SIDE, SIDE), mode="bilinear")
    for row in range(3):
        expected, _ = model._encode_new_memory(
            features.top.flatten(2).permute(2, 0, 1), large[row : row + 1], presence[row].view(1, 1), False
        )
        torch.testing.assert_close(
            found[row], expected[:, 0], rtol=2**-7, atol=2**-7, msg=lambda text: f"Sam2VideoMemoryEncoder: {text}"
        )


@torch.no_grad()
def test_the_module_behind_read_memory(sam2: Sam2VideoModel):
    """Ours averages narrow memory before it is widened and shares the first self-attention; the numbers are equal."""
    attention = sam2.memory_attention
    cross = attention.layers[0].cross_attn_image
    assert cross.k_proj.in_features == cross.v_proj.in_features == sam2.mem_dim == MEMORY
    assert cross.num_attention_heads == 1, "read_memory knows one head only"
    assert cross.scaling == cross.head_dim**-0.5
    assert QUERY_POSITION_SHARE == 0.1
    pointers, cells = 4, CELLS * CELLS
    picture, position = random(cells, WIDTH), random(cells, WIDTH, seed=1)
    memory, code = random(3, 2 * cells + pointers, MEMORY, seed=2), random(2 * cells + pointers, MEMORY, seed=3)
    found = read_memory(attention, picture[None], position, memory, code, pointers, torch.zeros(3, dtype=torch.long))
    for row in range(3):
        expected = attention(
            current_vision_features=picture[:, None],
            current_vision_position_embeddings=position[:, None],
            memory=memory[row][:, None],
            memory_posision_embeddings=code[:, None],
            num_object_pointer_tokens=pointers,
        )
        assert expected.shape == (1, 1, cells, WIDTH), "Sam2VideoMemoryAttention returned [1, objects, cells, width]"
        assert_same(found[row], expected[0, 0], "Sam2VideoMemoryAttention")


@torch.no_grad()
def test_the_time_code_of_pointers_in_sam_2_1(sam2: Sam2VideoModel, sam2_1: Sam2VideoModel):
    distances, pointers = [1, 4, 9], [random(1, WIDTH)] * 3
    for model in (sam2, sam2_1):
        _, expected = model._process_object_pointers(distances, pointers, 16, 1, WIDTH, torch.device("cpu"))
        per_pointer = expected[:: WIDTH // MEMORY, 0]
        assert_same(_pointer_position(model, distances), per_pointer, "Sam2VideoModel._process_object_pointers")
    assert _pointer_position(sam2, distances).abs().max() == 0
    assert _pointer_position(sam2_1, distances).abs().max() > 0
    half_turn = get_1d_sine_pe(torch.tensor([0.0, 1.0]), dim=4)
    torch.testing.assert_close(half_turn[0], torch.tensor([0.0, 0.0, 1.0, 1.0]))


# -- language models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FAMILIES)
def test_the_last_norm_of_the_language_model(load: Callable[[str], Sa2VAModel], case: str):
    """``run_language_model`` takes the state before the norm from its input."""
    language_model = load(case).vlm.model.language_model
    seen: list[tuple[Tensor, Tensor]] = []
    hook = language_model.norm.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    embeddings = random(2, 5, language_model.config.hidden_size)
    with torch.no_grad():
        states = language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    hook.remove()
    assert len(seen) == 1, "the language model's norm no longer runs once, at the end"
    before, after = seen[0]
    assert before.shape == after.shape == embeddings.shape
    assert torch.equal(after, states), "last_hidden_state is no longer what the norm returns"


@pytest.mark.parametrize("case", FAMILIES)
def test_what_image_features_come_as(load: Callable[[str], Sa2VAModel], case: str):
    vlm, width = load(case).vlm, load(case).config.vlm_config.get_text_config().hidden_size
    with torch.no_grad():
        if case.startswith("iv"):
            features = vlm.model.get_image_features(random(3, 3, 56, 56), return_dict=True)
            assert features.pooler_output.shape == (3, 4, width)
            return
        numbers = 3 * 2 * vlm.config.vision_config.patch_size**2
        grid = torch.tensor([[1, 4, 4], [1, 8, 4]])
        features = vlm.model.get_image_features(random(48, numbers), grid, return_dict=True)
    assert [part.shape for part in features.pooler_output] == [(4, width), (8, width)]
    levels = getattr(features, "deepstack_features", None) or []
    assert len(levels) == {"q25": 0, "q3": 3}[case]
    assert all(torch.cat(list(level)).shape == (12, width) for level in levels)


@pytest.mark.parametrize("case", ["q25", "q3"])
def test_the_index_behind_positions(load: Callable[[str], Sa2VAModel], case: str):
    vlm = load(case).vlm
    names = set(inspect.signature(vlm.model.get_rope_index).parameters)
    assert {"input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask"} <= names
    ids = torch.tensor([[1, 2, *[vlm.config.image_token_id] * 4, 3]])
    found = language.positions(vlm, ids, torch.ones_like(ids).bool(), torch.tensor([[1, 4, 4]]))
    expected = torch.tensor([[0, 1, 2, 2, 2, 2, 4], [0, 1, 2, 2, 3, 3, 4], [0, 1, 2, 3, 2, 3, 4]])
    assert torch.equal(found[:, 0], expected), "get_rope_index gives other positions"


@pytest.mark.parametrize("case", ["iv3_qwen2_dyn", "iv25_internlm2_dyn"])
def test_the_memory_of_dynamic_rope(load: Callable[[str], Sa2VAModel], case: str):
    rotary = load(case).vlm.model.language_model.rotary_emb
    assert "dynamic" in rotary.rope_type
    language._reset_dynamic_rope(rotary)
    rotary(torch.zeros(1), torch.arange(100)[None])
    assert rotary.max_seq_len_cached == 100, "dynamic RoPE no longer remembers the longest text under this name"
    assert not torch.equal(rotary.inv_freq, rotary.original_inv_freq)
    language._reset_dynamic_rope(rotary)
    assert rotary.max_seq_len_cached == rotary.original_max_seq_len == 48
    assert torch.equal(rotary.inv_freq, rotary.original_inv_freq)


def test_the_cache_can_be_repeated():
    cache = DynamicCache()
    assert cache.get_seq_length() == 0
    cache.update(random(1, 2, 3, 4), random(1, 2, 3, 4, seed=1), 0)
    cache.batch_repeat_interleave(3)
    assert cache.get_seq_length() == 3
    keys, _ = cache.update(random(3, 2, 1, 4), random(3, 2, 1, 4), 0)
    assert keys.shape == (3, 2, 4, 4)
    assert torch.equal(keys[0, :, :3], keys[2, :, :3])


# -- loading and saving ------------------------------------------------------------------------------------------------


def test_where_third_party_model_types_are_kept():
    assert isinstance(CONFIG_MAPPING._extra_content, dict), "sa2va._auto replaces this dict"
    assert "sa2va" in CONFIG_MAPPING._extra_content
    assert "sa2va_chat" in CONFIG_MAPPING


def test_how_saving_is_told_to_keep_names():
    assert "save_original_format" in inspect.signature(PreTrainedModel.save_pretrained).parameters
