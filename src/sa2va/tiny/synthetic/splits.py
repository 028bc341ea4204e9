"""Which combinations of kind, colour and texture each split may show.

A tenth of all combinations is never seen in training and belongs to validation, another tenth to the test split. What a
split asks for is therefore new as a whole though each of its words was trained. The rule is a hash, so it holds on
every machine and for every seed.
"""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

from sa2va.tiny.synthetic.paint import COLORS, TEXTURES
from sa2va.tiny.synthetic.shapes import KINDS

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Look(NamedTuple):
    """What an object is: the combination by which the splits are kept apart."""

    kind: str
    color: str
    texture: str


def textures_of(kind: str, color: str) -> tuple[str, ...]:
    """Textures that can be told apart: thin kinds have none, and checkered white is checkered black."""
    if not KINDS[kind].solid:
        return TEXTURES[:1]
    return TEXTURES[:3] if color in ("white", "black") else TEXTURES


def home_split(look: Look) -> Split:
    """The split whose targets have this look: ``train`` for about 80 %, ``val`` and ``test`` for 10 % each."""
    digest = hashlib.blake2b("/".join(look).encode(), digest_size=8).digest()
    rest = int.from_bytes(digest, "big") % 10
    return "val" if rest == 0 else "test" if rest == 1 else "train"


def _group_looks() -> dict[tuple[str, Split], list[Look]]:
    groups: dict[tuple[str, Split], list[Look]] = {(kind, split): [] for kind in KINDS for split in SPLITS}
    for kind in KINDS:
        for color in COLORS:
            for texture in textures_of(kind, color):
                look = Look(kind, color, texture)
                groups[kind, home_split(look)].append(look)
    return groups


LOOKS: dict[tuple[str, Split], list[Look]] = _group_looks()
