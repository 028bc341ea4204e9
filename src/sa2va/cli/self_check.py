"""Self-check with a tiny random model: everything a real one does, in seconds, on the CPU, without a download."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sa2va.modeling_sa2va import Sa2VAModel

_VOCABULARY, _IMAGE_TOKEN, _SEG_TOKEN = 64, 60, 61
_SIDE, _GROUNDING_SIDE, _FRAME = 28, 64, (48, 64)


@dataclass(frozen=True)
class Result:
    """How one check went.

    Attributes:
        error: what went wrong, on one line; None when nothing did.
    """

    name: str
    seconds: float
    error: str | None


def run_checks() -> Iterator[Result]:
    """Run every check, one after the other; a failure does not keep the next from running."""
    for name, check in CHECKS.items():
        started = perf_counter()
        error = None
        try:
            check()
        except Exception as problem:
            error = f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
        yield Result(name, perf_counter() - started, error)


@cache
def _model() -> Sa2VAModel:
    import torch
    from transformers import InternVLConfig

    from sa2va.model.configuration import Sa2VAConfig, sam2_config
    from sa2va.modeling_sa2va import Sa2VAModel

    vlm = InternVLConfig(
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "image_size": [_SIDE, _SIDE],
            "patch_size": [14, 14],
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": _VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 16,
        },
        image_token_id=_IMAGE_TOKEN,
        tie_word_embeddings=False,
    )
    sam2 = sam2_config(
        image_size=_GROUNDING_SIDE,
        embed_dim=8,
        num_heads=1,
        blocks=(1, 1, 2, 1),
        global_blocks=(3,),
        windows=(8, 4, 4, 2),
        width=64,
        memory_layers=1,
        memory_mlp=32,
    )
    torch.manual_seed(0)
    return Sa2VAModel(Sa2VAConfig(vlm_config=vlm, sam2_config=sam2, seg_token_id=_SEG_TOKEN)).eval()


def _forward() -> None:
    """Text logits and mask logits of one sample."""
    import torch

    from sa2va.model.types import Batch

    ids = torch.tensor([[1, _IMAGE_TOKEN, 2, _SEG_TOKEN, 3]])
    batch = Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids).bool(),
        pixel_values=torch.randint(256, (1, _SIDE, _SIDE, 3), dtype=torch.uint8),
        grounding_pixels=torch.randint(256, (1, _GROUNDING_SIDE, _GROUNDING_SIDE, 3), dtype=torch.uint8),
        frames_per_sample=(1,),
    )
    output = _model()(batch)
    _expect(output.logits.shape == (1, 5, _VOCABULARY), f"text logits have shape {tuple(output.logits.shape)}")
    _expect(output.masks is not None and bool(output.masks.logits.isfinite().all()), "mask logits are not finite")


def _generate() -> None:
    """A few tokens, greedily."""
    from sa2va.model.generation import GenerationOptions

    options = GenerationOptions(max_new_tokens=4)
    (answer,) = _model().generate([[1, 2, _SEG_TOKEN, 3]], options=options, is_finished=lambda ids: False)
    _expect(len(answer.token_ids) == 4, f"{len(answer.token_ids)} tokens instead of 4")


def _track() -> None:
    """A mask from a box, carried to a second frame by the memory."""
    from sa2va.inference.tracker import VideoTracker

    tracker = VideoTracker(_model())
    tracker.add(box=(8, 8, 40, 40))
    frames = np.random.default_rng(0).integers(0, 256, (2, *_FRAME, 3), np.uint8)
    for pixels in frames:
        frame = tracker.step(pixels)
        _expect(len(frame.segments) == 1, f"{len(frame.segments)} objects instead of 1")
        _expect(frame.segments[0].mask.array.shape == _FRAME, "the mask has another size than the frame")


def _save_and_load() -> None:
    """Weights written as safetensors and read back, equal."""
    from sa2va.modeling_sa2va import Sa2VAModel

    model = _model()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_original_format=False)
        again = Sa2VAModel.from_pretrained(folder).state_dict()
    different = [name for name, tensor in model.state_dict().items() if not tensor.equal(again[name])]
    _expect(not different, f"{len(different)} tensors changed, first {different[:1]}")


def _video() -> None:
    """A playable file written and decoded again."""
    from sa2va.media.open import open_media
    from sa2va.writers import VideoEncoder

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.mp4"
        file = VideoEncoder(path, size=_FRAME, fps=10)
        for level in (0, 128, 255):
            file.write(np.full((*_FRAME, 3), level, np.uint8))
        file.close()
        with open_media(path) as video:
            means = [frame.pixels.mean() for frame in video]
    _expect(len(means) == 3 and means[0] < 20 < means[1] < 200 < means[2], f"frames came back as {means}")


def _expect(condition: bool, problem: str) -> None:
    if not condition:
        raise RuntimeError(problem)


CHECKS: dict[str, Callable[[], None]] = {
    "forward pass: text and masks": _forward,
    "generation": _generate,
    "tracking": _track,
    "save and load": _save_and_load,
    "video file": _video,
}
"""Every check by its name; one raises when it fails."""
