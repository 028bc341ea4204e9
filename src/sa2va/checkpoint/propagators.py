"""Loading models that only carry masks, see [`sa2va.model.propagator`]: what a file or folder holds is read from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sa2va.checkpoint.build import SAM2_TYPES, fill, load_sam2
from sa2va.checkpoint.configs import build_config, check_counts
from sa2va.checkpoint.files import LazyTensor, open_tensors, read_config
from sa2va.checkpoint.loading import layers_in
from sa2va.hub import resolve_folder
from sa2va.runtime import require_extra

if TYPE_CHECKING:
    from sa2va.model.propagator import PropagatorModel

#: A whole SAM 3 finds objects too. Of that its tracker uses the image encoder, with a neck of its own.
_SAM3_SHARED = {
    "detector_model.vision_encoder.backbone.": "vision_encoder.backbone.",
    "tracker_neck.": "vision_encoder.neck.",
}
_SAM3_TRACKER, _SAM3_REST = "tracker_model.", "detector_model."


def load_propagator(source: str | Path, **hub: Any) -> PropagatorModel:
    """A model that carries masks.

    Args:
        source: folder or hub id in transformers' layout, of SAM 2 or 2.1 (any size), SAM 3 or its tracker alone, or
            EdgeTAM; or Meta's ``.pt`` file of SAM 2 or 2.1.
        hub: options for the download.

    Raises:
        ValueError: the files are of another model, damaged or incomplete.
        ImportError: EdgeTAM's image encoder is of the package timm, which is not installed.
    """
    # transformers' classes are imported where they are needed: hardly anyone needs them, and they take a while.
    from transformers import (
        EdgeTamVideoConfig,
        EdgeTamVideoModel,
        Sam3TrackerVideoConfig,
        Sam3TrackerVideoModel,
    )

    where = str(source)
    if Path(source).suffix == ".pt":
        return load_sam2(source)
    folder = resolve_folder(source, **hub)
    content = read_config(folder)
    kind = content.get("model_type")
    if kind in SAM2_TYPES:
        return load_sam2(folder)
    tensors: Mapping[str, LazyTensor] = open_tensors(folder)
    check_counts(content, layers_in(tensors), "")
    if kind in ("sam3_video", "sam3_tracker_video"):
        own = content.get("tracker_config") if kind == "sam3_video" else content
        values: Mapping[str, Any] = own if isinstance(own, Mapping) else {}
        config: Any = build_config(Sam3TrackerVideoConfig, values, "config.json")
        if isinstance(values.get("image_size"), int):  # a property, which counts for all parts
            config.image_size = values["image_size"]
        return fill(Sam3TrackerVideoModel, config, _of_tracker(tensors), where=where)
    if kind == "edgetam_video":
        config = build_config(EdgeTamVideoConfig, content, "config.json")
        backbone = getattr(config.vision_config, "backbone_config", None)
        if getattr(backbone, "model_type", None) == "timm_wrapper":
            require_extra("timm", "edgetam")
        return fill(EdgeTamVideoModel, config, tensors, where=where)
    raise ValueError(
        f"{where} has model_type {kind!r}, which carries no masks; propagator= takes a folder or hub id of SAM 2 or "
        "2.1 (facebook/sam2.1-hiera-large), SAM 3 (facebook/sam3) or EdgeTAM (yonigozlan/EdgeTAM-hf), or Meta's .pt "
        "file of SAM 2 or 2.1"
    )


def _of_tracker(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors of SAM 3's tracker under its own names, from those of the whole model, or of the tracker as
    transformers saves it: with the whole model's names after ``tracker_model.``."""
    found = {}
    for full, tensor in tensors.items():
        name = full.removeprefix(_SAM3_TRACKER)
        shared = next((prefix for prefix in _SAM3_SHARED if name.startswith(prefix)), "")
        if shared or not name.startswith(_SAM3_REST):
            found[_SAM3_SHARED.get(shared, "") + name.removeprefix(shared)] = tensor
    return found
