"""SAM 2's own decoder beside the fine-tuned one of a released checkpoint, from SAM 2's own weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sa2va import Mask, Sa2VAModel, VideoTracker
from sa2va.checkpoint.conversion import convert
from synthetic_checkpoint import picture

CLIP = [picture(75, 48, seed) for seed in range(6)]


@pytest.fixture(scope="module")
def both(two_decoders: Path) -> Sa2VAModel:
    """A checkpoint of Sa2VA-i's shape."""
    return Sa2VAModel.from_pretrained(two_decoders)


@pytest.fixture(scope="module")
def tuned(both: Sa2VAModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without the original decoder, and with a memory of no use."""
    native, folder = tmp_path_factory.mktemp("both") / "m", tmp_path_factory.mktemp("tuned")
    both.save_pretrained(native)
    weights = {
        name: torch.zeros_like(tensor) if name.startswith("sam2.memory_attention") else tensor
        for name, tensor in load_file(native / "model.safetensors").items()
        if not name.startswith("original_mask_decoder")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((native / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"original_mask_decoder": False}))
    return folder


def sam2_of(model: Sa2VAModel, folder: Path, **changes: Any) -> Path:
    """SAM 2 as its own repository has it: with the original decoder."""
    weights = {
        name.removeprefix("sam2."): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("sam2.") and not name.startswith("sam2.mask_decoder.")
    }
    decoder = {
        name.removeprefix("original_"): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("original_mask_decoder.")
    }
    folder.mkdir(exist_ok=True)
    save_file({**weights, **decoder}, folder / "model.safetensors", metadata={"format": "pt"})
    model.sam2.config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sam2(both: Sa2VAModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sam2_of(both, tmp_path_factory.mktemp("sam2"))


def assert_same_weights(found: Sa2VAModel, expected: Sa2VAModel) -> None:
    weights, others = found.state_dict(), expected.state_dict()
    assert weights.keys() == others.keys()
    assert not [name for name, tensor in weights.items() if not torch.equal(tensor, others[name])]


def test_it_is_a_checkpoint_of_both_decoders(both: Sa2VAModel, tuned: Path, sam2: Path):
    plain = Sa2VAModel.from_pretrained(tuned)
    assert plain.original_mask_decoder is None
    found = Sa2VAModel.from_pretrained(tuned, sam2=sam2)
    assert found.config.original_mask_decoder
    assert_same_weights(found, both)


def test_masks_are_carried_as_by_a_checkpoint_of_both(both: Sa2VAModel, checkpoint, sam2: Path):
    """The mode is consistent by itself, and every mask that of Sa2VA-i."""

    def masks(model: Sa2VAModel) -> list[list[tuple[Mask, ...]]]:
        tracker = VideoTracker(model.eval())
        assert tracker.mode == "consistent"
        prompts = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
        tracker.add_prompts(prompts, ["one", "other"])
        return [[segment.masks for segment in tracker.step(frame)] for frame in CLIP]

    expected = masks(both)
    assert len({mask for frame in expected for one in frame for mask in one}) > 3
    assert masks(Sa2VAModel.from_pretrained(checkpoint("iv25_qwen2"), sam2=sam2)) == expected


def test_convert_remembers_it(both: Sa2VAModel, checkpoint, sam2: Path, tmp_path: Path):
    assert convert(checkpoint("iv25_qwen2"), tmp_path / "native", sam2=sam2) == "native"
    assert_same_weights(Sa2VAModel.from_pretrained(tmp_path / "native"), both)
    notes: list[str] = []
    convert(tmp_path / "native", tmp_path / "released", note=notes.append)
    assert_same_weights(Sa2VAModel.from_pretrained(tmp_path / "released"), both)
    assert "only the code of Sa2VA-i reads both mask decoders" in notes


def test_a_sam2_of_another_size_is_refused(both: Sa2VAModel, tuned: Path, tmp_path: Path):
    other = sam2_of(both, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    weights = load_file(other / "model.safetensors")
    name = "memory_temporal_positional_encoding"
    weights[name] = torch.zeros(weights[name].shape[0] + 1, *weights[name].shape[1:])
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    (other / "config.json").write_text(json.dumps(config | {"num_maskmem": config["num_maskmem"] + 1}))
    with pytest.raises(ValueError, match=f"another size or version .*{name}.*sam2='facebook/sam2-hiera-large'"):
        Sa2VAModel.from_pretrained(tuned, sam2=other)


def test_a_damaged_sam2_is_named(tuned: Path, tmp_path: Path):
    (tmp_path / "sam2.pt").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"sam2\.pt is not one of Meta's SAM 2 files"):
        Sa2VAModel.from_pretrained(tuned, sam2=tmp_path / "sam2.pt")
    with pytest.raises(ValueError, match="nowhere"):
        Sa2VAModel.from_pretrained(tuned, sam2=tmp_path / "nowhere")
