"""What the released layout has no word for, though answers depend on it: carried in an extra key of its
``config.json``, which the reference does not read and this package does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

OWN_KEY = "sa2va"
#: Not settings, or told by the tokenizer's files and the weights themselves.
_TOLD = {
    "_name_or_path",
    "architectures",
    "dtype",
    "image_token_id",
    "original_mask_decoder",
    "seg_token_id",
    "transformers_version",
}


def difference(said: Mapping[str, Any], meant: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be laid over ``said`` to get ``meant``: nested as they are, ready for JSON."""
    said, meant = (json.loads(json.dumps(values, default=str)) for values in (said, meant))
    result: dict[str, Any] = {}
    for key in meant.keys() - _TOLD:
        ours, theirs = meant[key], said.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            if inner := difference(theirs, ours):
                result[key] = inner
        elif ours != theirs:
            result[key] = ours
    return dict(sorted(result.items()))


def overlaid(said: Mapping[str, Any], own: Any) -> dict[str, Any]:
    """The inverse of [`difference`]. Keys that ``said`` does not have are dropped.

    Raises:
        ValueError: a value stands where an object is expected.
    """
    if not isinstance(own, Mapping):
        raise ValueError(f"{OWN_KEY}: expected objects as in config.json, got {own!r}"[:300])
    result = dict(said)
    for key in own.keys() & said.keys():
        result[key] = overlaid(said[key], own[key]) if isinstance(said[key], Mapping) else own[key]
    return result


def paths_of(own: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The single settings of a [`difference`], by dotted name."""
    result: dict[str, Any] = {}
    for key, value in own.items():
        place = f"{where}.{key}" if where else key
        result |= paths_of(value, place) if isinstance(value, dict) else {place: value}
    return result
