"""SAM 2's own mask decoder and memory for a checkpoint that has only the fine-tuned decoder.

The ten released checkpoints came without the decoder that SAM 2's memory was trained with, which
[`mode="consistent"`][sa2va.inference.tracker] carries masks with. Fine-tuning left everything else of SAM 2 as it was,
so the decoder can be taken from SAM 2's own file.

Source: Sa2VA-i (arXiv 2509.19082, section 3).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sa2va.checkpoint.build import open_sam2
from sa2va.checkpoint.loading import Checkpoint

_DECODER, _NATIVE = "mask_decoder.", "sam2."
#: Parts that are trained together with the decoder, and that fine-tuning leaves alone.
_MEMORY = ("memory_", "object_pointer", "no_object_pointer", "no_memory", "temporal_positional", "mask_downsample")
_MEMORY += ("occlusion_spatial",)


def with_original_decoder(checkpoint: Checkpoint, sam2: str | Path, **hub: Any) -> Checkpoint:
    """A checkpoint with the original decoder and the memory of a SAM 2 beside its own decoder.

    Args:
        sam2: what [`sa2va.checkpoint.build.load_sam2`] takes: Meta's ``.pt`` file, or a folder or hub id in
            transformers' layout.

    Raises:
        ValueError: the file is damaged, or is a SAM 2 of another size or version than the checkpoint's.
    """
    _, tensors = open_sam2(sam2, **hub)
    own = {
        name.removeprefix(_NATIVE): tensor for name, tensor in checkpoint.tensors.items() if name.startswith(_NATIVE)
    }
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    differing = sorted(
        name for name in own.keys() | shapes.keys() if name not in own or own[name].shape != shapes.get(name)
    )
    if differing:
        name = differing[0]
        have = "none" if name not in own else own[name].shape
        raise ValueError(
            f"{sam2} is a SAM 2 of another size or version than the checkpoint's: tensor {name!r} is "
            f"{shapes.get(name, 'missing')} there and {have} here; the released checkpoints hold SAM 2 Hiera-L, "
            "version 2.0: sam2='facebook/sam2-hiera-large', or Meta's sam2_hiera_large.pt. Any other SAM 2 carries "
            "masks with its own image encoder: give it as propagator= (--propagator)"
        )
    added = {f"original_{name}": tensor for name, tensor in tensors.items() if name.startswith(_DECODER)}
    memory = {f"{_NATIVE}{name}": tensor for name, tensor in tensors.items() if name.startswith(_MEMORY)}
    checkpoint.config.original_mask_decoder = True
    return replace(checkpoint, tensors={**checkpoint.tensors, **memory, **added})
