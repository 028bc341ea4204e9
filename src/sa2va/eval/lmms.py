"""The entry point that lets lmms-eval find this package's models: ``lmms-eval eval --model sa2va``.

Named in the group ``lmms_eval.models`` of the package's metadata; the class itself is imported when it is asked for.
"""

from __future__ import annotations

from typing import Any

from sa2va.runtime import require_extra

MODEL_ID = "sa2va"


def manifests() -> list[Any]:
    """What lmms-eval registers: one ``ModelManifest`` for its chat interface."""
    registry = require_extra("lmms_eval.models.registry_v2", "lmms")
    return [registry.ModelManifest(model_id=MODEL_ID, chat_class_path="sa2va.eval.lmms_model.Sa2VALmms")]
