"""Choosing which objects appear together: looks that share kinds and colours, so that phrases have to be precise."""

from __future__ import annotations

import random

from sa2va.tiny.synthetic.paint import COLORS, TEXTURES, second_color
from sa2va.tiny.synthetic.shapes import KINDS
from sa2va.tiny.synthetic.splits import LOOKS, Look, Split, textures_of

_GROUP_WEIGHT = {"shape": 0.5, "thing": 0.38, "letter": 0.12}
_TEXTURE_WEIGHT: dict[str, float] = dict(zip(TEXTURES, (0.55, 0.17, 0.14, 0.14), strict=True))
_GROUPS = {group: [kind.name for kind in KINDS.values() if kind.group == group] for group in _GROUP_WEIGHT}
_CLOSE = 112.0  # RGB distance under which two colours that touch are hard to part
_HELD_SHARE = 0.5  # of the objects of a validation or test picture, besides the first


def any_kind(rng: random.Random) -> str:
    """A random kind."""
    group = rng.choices(list(_GROUP_WEIGHT), list(_GROUP_WEIGHT.values()))[0]
    return rng.choice(_GROUPS[group])


class Cast:
    """Draws looks for one picture: a few kinds and colours return, others come once.

    Args:
        rng: every choice comes from it. split: whose looks may be drawn. colors: that the background lets stand out.
        varied: a dozen kinds return in any colour, as a crowd needs.
    """

    def __init__(self, rng: random.Random, split: Split, colors: list[str], varied: bool = False):
        self._rng, self._colors = rng, colors
        self._split: Split = split
        self._kinds = [any_kind(rng) for _ in range(12 if varied else rng.randint(1, 4))]
        self._favourites = colors if varied else rng.sample(colors, min(len(colors), rng.randint(2, 4)))
        self._drawn = 0

    def draw(self, kind: str | None = None) -> Look:
        """The next look. In validation and test the first is one held out from training, and so are half the others."""
        held = self._split != "train" and (self._drawn == 0 or self._rng.random() < _HELD_SHARE)
        self._drawn += 1
        for _ in range(8):
            chosen = kind or (self._rng.choice(self._kinds) if self._rng.random() < 0.7 else any_kind(self._rng))
            look = self._held_out(chosen) if held else self._trained(chosen)
            if look:
                return look
            kind = None
        return self._draw_any(held)

    def _trained(self, kind: str) -> Look | None:
        for _ in range(6):
            color = self._rng.choice(self._favourites if self._rng.random() < 0.7 else self._colors)
            textures = textures_of(kind, color)
            weights = [_TEXTURE_WEIGHT[texture] for texture in textures]
            look = Look(kind, color, self._rng.choices(textures, weights)[0])
            if look in _TRAINED and self._readable(look):
                return look
        return None

    def _held_out(self, kind: str) -> Look | None:
        looks = [look for look in LOOKS[kind, self._split] if self._readable(look)]
        weights = [_TEXTURE_WEIGHT[look.texture] for look in looks]
        return self._rng.choices(looks, weights)[0] if looks else None

    def _draw_any(self, held: bool) -> Look:
        split: Split = self._split if held else "train"
        return self._rng.choice([look for kind in KINDS for look in LOOKS[kind, split] if self._readable(look)])

    def _readable(self, look: Look) -> bool:
        """Both the colour and its texture's second colour stand out from the background."""
        return look.color in self._colors and (look.texture == "plain" or second_color(look.color) in self._colors)


_TRAINED = {look for (_, split), looks in LOOKS.items() if split == "train" for look in looks}


def confusable(first: Look, second: Look) -> bool:
    """Whether the edge between two overlapping objects could be lost because they share a colour."""
    return any(_distance(a, b) < _CLOSE for a in _shown(first) for b in _shown(second))


def _shown(look: Look) -> list[tuple[int, int, int]]:
    color = COLORS[look.color]
    if look.texture == "plain":
        return [color]
    return [color, COLORS[second_color(look.color)]]


def _distance(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    return sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5
