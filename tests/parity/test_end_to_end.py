"""A whole ``predict_forward``, from a picture or frames to text and masks, against the released code."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sa2va import Sa2VA
from sa2va.inference.postprocess import foreground
from sa2va.model import mask_decoder
from synthetic_checkpoint import GOLDEN, picture

TEXTS = json.loads((GOLDEN / "mllm_tiny_configs.json").read_text())["text"]
MEDIA = {
    "image": {"image": Image.fromarray(picture(150, 97))},
    "video": {"video": [Image.fromarray(picture(75, 48, seed)) for seed in range(7)]},
}


@pytest.mark.parametrize("kind", MEDIA)
def test_text_masks_and_everything_between(sa2va: Sa2VA, kind: str, monkeypatch: pytest.MonkeyPatch, record_property):
    recorded = np.load(GOLDEN / f"mllm_e2e_iv25_qwen2_{kind}.npz")
    pixels: list[Tensor] = []
    prompts: list[Tensor] = []
    upsampled: list[Tensor] = []
    hooks = [
        sa2va.model.sam2.vision_encoder.backbone.register_forward_pre_hook(lambda _, args: pixels.append(args[0])),
        sa2va.model.projection.register_forward_hook(lambda _, args, output: prompts.append(output)),
    ]

    def to_picture(logits: Tensor, side: int, size: tuple[int, int], cut: float) -> tuple[np.ndarray, tuple[int, int]]:
        upsampled.append(mask_decoder.upsample_logits(logits[None], side, (side, side)))
        return foreground(logits, side, size, cut)

    monkeypatch.setattr("sa2va.inference.postprocess.foreground", to_picture)
    result = sa2va.predict_forward(text=TEXTS[kind], max_new_tokens=24, **MEDIA[kind])
    for hook in hooks:
        hook.remove()

    assert list(result) == ["prediction", "prediction_masks", "past_text"]
    assert result["prediction"] == str(recorded["text"])
    assert type(result["prediction_masks"]) is list
    assert all(type(mask) is np.ndarray and mask.dtype == bool for mask in result["prediction_masks"])

    seen = torch.cat(pixels).numpy()
    assert hashlib.sha256(seen.tobytes()).hexdigest() == str(recorded["g_pixels_sha256"])
    np.testing.assert_array_equal(seen.reshape(-1)[::997], recorded["g_sample"])

    (found,) = prompts
    record_property("seg_emb", f"{(found - torch.from_numpy(recorded['seg_emb'])).abs().max():.1e}")
    np.testing.assert_allclose(found, recorded["seg_emb"], atol=1e-5)

    count, times = recorded["masks_shape"][:2]
    logits = torch.cat(upsampled).view(times, count, *upsampled[0].shape[1:]).transpose(0, 1)[..., ::4, ::4].numpy()
    error = np.abs(logits - recorded["video_res_logits_s4"]) / recorded["video_res_logits_s4"].std()
    record_property("logits", f"{error.max():.1e}")
    assert error.max() < (1e-4 if kind == "image" else 1e-3)

    masks = np.stack(result["prediction_masks"])
    expected = np.unpackbits(recorded["masks_packed"], axis=-1)[..., : masks.shape[-1]].astype(bool)
    assert masks.shape == tuple(recorded["masks_shape"])
    record_property("pixels that differ", int((masks != expected).sum()))
    assert 0 < expected.mean() < 1
    assert (masks != expected).sum() == 0


def test_text_alone_gives_no_masks(sa2va: Sa2VA):
    recorded = np.load(GOLDEN / "mllm_iv25_qwen2.npz")
    result = sa2va.predict_forward(text=TEXTS["text"], max_new_tokens=24)
    assert (result["prediction"], result["prediction_masks"]) == (str(recorded["text/text"]), [])
    assert "[SEG]" in result["prediction"]


def test_the_image_mark_is_optional(sa2va: Sa2VA):
    """The released code raises without ``<image>``; here the picture then comes first, on a line of its own."""
    marked = sa2va.predict_forward(text="<image>\nWhere is the dog?", max_new_tokens=12, **MEDIA["image"])
    bare = sa2va.predict_forward(text="Where is the dog?", max_new_tokens=12, **MEDIA["image"])
    assert marked["prediction"] == bare["prediction"]
    assert all(map(np.array_equal, marked["prediction_masks"], bare["prediction_masks"]))


def test_a_request_needs_text(sa2va: Sa2VA):
    with pytest.raises(ValueError, match="expected text= as a string"):
        sa2va.predict_forward(**MEDIA["image"])
