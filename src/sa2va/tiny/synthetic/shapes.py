"""The kinds of objects of the synthetic world: shapes, things and letters, as polygons.

``KINDS[name]`` says how a kind is drawn and what may happen to it. Outlines were chosen to stay apart from one another
at twenty pixels: no pentagon beside the hexagon, no letter O beside the ring.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sa2va.tiny.synthetic.geometry import HOLE, ShapePart, arc, band, ellipse, fit, polygon, radial, rectangle, stroke

RING_HOLE = 0.6  # radius of the ring's hole, as a share of the ring's own


@dataclass(frozen=True, eq=False)
class Kind:
    """How one kind of object looks.

    Attributes:
        name: e.g. ``"house"``; letters are ``"A"`` .. ``"Z"``.
        group: ``"shape"``, ``"thing"`` or ``"letter"``.
        parts: polygons in drawing order, fitted into [-1, 1].
        solid: broad enough to show a texture.
        turn: largest rotation in degrees to either side that keeps the kind what it is.
        mirror: may be drawn mirrored.
    """

    name: str
    group: str
    parts: tuple[ShapePart, ...]
    solid: bool = True
    turn: float = 12.0
    mirror: bool = False

    @cached_property
    def reach(self) -> float:
        """Radius of the circle about the centre that holds the object in any rotation (1.41 for a square)."""
        return max(float(np.hypot(*part.points.T).max()) for part in self.parts if part.tone != HOLE)


def _heart() -> ShapePart:
    t = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return ShapePart(np.stack([16 * np.sin(t) ** 3, -y], axis=1) / 16)


def _crescent() -> ShapePart:
    # A disc minus a disc of 0.85 shifted by 0.5: the outlines meet at 58 degrees, seen from the bite at 88 degrees.
    return ShapePart(np.concatenate([arc(0, 0, 1, 1, 58, 302, 28), arc(0.5, 0, 0.85, 0.85, 272, 88, 24)]))


def _shapes() -> list[Kind]:
    cross = rectangle(-0.32, -1, 0.32, 1), rectangle(-1, -0.32, 1, 0.32)
    arrow = polygon((-1, -0.28), (0.1, -0.28), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.28), (-1, 0.28))
    ring = ellipse(0, 0, 1, 1), ellipse(0, 0, RING_HOLE, RING_HOLE, HOLE)

    def shape(name: str, *parts: ShapePart, turn: float = 12.0, solid: bool = True, mirror: bool = False) -> Kind:
        return Kind(name, "shape", fit(parts), solid, turn, mirror)

    return [
        shape("circle", ellipse(0, 0, 1, 1), turn=180),
        shape("oval", ellipse(0, 0, 1, 0.58), turn=180),
        shape("square", rectangle(-1, -1, 1, 1)),
        shape("triangle", radial(3), turn=180),
        shape("star", radial(5, 1, 0.42), turn=180),
        shape("ring", *ring),
        shape("cross", *cross),
        shape("heart", _heart(), turn=20),
        shape("crescent", _crescent(), turn=40, solid=False, mirror=True),
        shape("diamond", polygon((0, -1), (0.6, 0), (0, 1), (-0.6, 0))),
        shape("hexagon", radial(6, start=0), turn=180),
        shape("arrow", arrow, turn=180),
    ]


def _buildings_and_vehicles() -> dict[str, tuple[ShapePart, ...]]:
    return {
        "house": (
            rectangle(-0.75, -0.1, 0.75, 1),
            polygon((-1, -0.1), (0, -1), (1, -0.1), tone=72),
            rectangle(-0.5, 0.3, -0.05, 1, tone=30),
            rectangle(0.2, 0.2, 0.58, 0.58, tone=240),
        ),
        "car": (
            polygon((-0.55, 0), (-0.35, -0.5), (0.3, -0.5), (0.6, 0)),
            polygon((-1, 0), (0.85, -0.02), (1, 0.15), (1, 0.45), (-1, 0.45)),
            polygon((-0.4, -0.03), (-0.25, -0.38), (-0.02, -0.38), (-0.02, -0.03), tone=235),
            polygon((0.08, -0.03), (0.08, -0.38), (0.24, -0.38), (0.44, -0.03), tone=235),
            ellipse(-0.52, 0.45, 0.24, 0.24, tone=14),
            ellipse(0.52, 0.45, 0.24, 0.24, tone=14),
        ),
        "boat": (
            polygon((-1, 0.35), (1, 0.35), (0.65, 0.9), (-0.65, 0.9), tone=110),
            rectangle(-0.09, -1, 0.03, 0.35, tone=40),
            polygon((0.08, -0.9), (0.8, 0.2), (0.08, 0.2)),
            polygon((-0.14, -0.7), (-0.14, 0.2), (-0.7, 0.2), tone=200),
        ),
        "rocket": (
            polygon((-0.35, 0.35), (-0.75, 0.95), (-0.3, 0.8), tone=60),
            polygon((0.35, 0.35), (0.75, 0.95), (0.3, 0.8), tone=60),
            polygon((0, -1), (0.3, -0.6), (0.38, 0), (0.35, 0.8), (-0.35, 0.8), (-0.38, 0), (-0.3, -0.6)),
            ellipse(0, -0.25, 0.18, 0.18, tone=240),
        ),
    }


def _wings(side: float) -> tuple[ShapePart, ShapePart]:
    upper = ((0.0, -0.05), (0.35, -0.75), (0.75, -0.95), (1.0, -0.8), (0.98, -0.4), (0.65, 0.0), (0.0, 0.12))
    lower = ((0.0, 0.0), (0.6, 0.1), (0.78, 0.4), (0.6, 0.85), (0.3, 0.8), (0.0, 0.3))
    return polygon(*((side * x, y) for x, y in upper)), polygon(*((side * x, y) for x, y in lower))


def _living() -> dict[str, tuple[ShapePart, ...]]:
    petals = tuple(ellipse(0.62 * np.cos(a), 0.62 * np.sin(a), 0.4, 0.4) for a in np.radians(np.arange(0, 360, 60)))
    return {
        "tree": (
            rectangle(-0.16, 0.2, 0.16, 1, tone=45),
            ellipse(-0.4, 0.0, 0.42, 0.42),
            ellipse(0.4, 0.0, 0.42, 0.42),
            ellipse(0, -0.45, 0.55, 0.55),
            ellipse(0, 0.0, 0.4, 0.4),
        ),
        "flower": (*petals, ellipse(0, 0, 0.38, 0.38, tone=50)),
        "mushroom": (
            polygon((-0.26, 0), (0.26, 0), (0.36, 1), (-0.36, 1), tone=215),
            ShapePart(arc(0, 0.1, 1, 1.1, 180, 360)),
            ellipse(-0.42, -0.3, 0.17, 0.17, tone=235),
            ellipse(0.4, -0.25, 0.19, 0.19, tone=235),
            ellipse(0.02, -0.66, 0.15, 0.15, tone=235),
        ),
        "fish": (
            polygon((0.45, 0), (1, -0.5), (1, 0.5), tone=90),
            ellipse(-0.2, 0, 0.8, 0.48),
            ellipse(-0.62, -0.12, 0.11, 0.11, tone=8),
        ),
        "cat": (
            polygon((-0.9, -1), (-0.2, -0.62), (-0.85, -0.05)),
            polygon((0.9, -1), (0.2, -0.62), (0.85, -0.05)),
            ellipse(0, 0.1, 0.95, 0.8),
            ellipse(-0.38, -0.05, 0.15, 0.19, tone=8),
            ellipse(0.38, -0.05, 0.15, 0.19, tone=8),
            polygon((-0.16, 0.28), (0.16, 0.28), (0, 0.46), tone=8),
        ),
        "butterfly": (*_wings(1.0), *_wings(-1.0), ellipse(0, -0.05, 0.11, 0.7, tone=25)),
        "face": (
            ellipse(0, 0, 1, 1),
            ellipse(-0.36, -0.28, 0.14, 0.2, tone=8),
            ellipse(0.36, -0.28, 0.14, 0.2, tone=8),
            band(0, 0.1, 0.52, 0.46, 20, 160, 0.16, tone=8),
        ),
        "apple": (
            rectangle(-0.07, -1, 0.07, -0.45, tone=25),
            polygon((0.05, -0.7), (0.5, -1), (0.45, -0.68), tone=60),
            ellipse(-0.36, 0.2, 0.58, 0.72),
            ellipse(0.36, 0.2, 0.58, 0.72),
        ),
    }


def _belongings() -> dict[str, tuple[ShapePart, ...]]:
    rays = tuple(
        ShapePart(np.stack([arc(0, 0, r, r, a - d, a - d, 1)[0] for r, d in ((0.62, 13), (1, 0), (0.62, -13))]))
        for a in range(0, 360, 36)
    )
    return {
        "umbrella": (
            rectangle(-0.07, -0.1, 0.07, 0.72, tone=30),
            band(0.21, 0.72, 0.21, 0.21, 0, 180, 0.14, tone=30),
            ShapePart(arc(0, 0, 1, 0.95, 180, 360)),
            polygon((-0.33, 0), (0, -0.95), (0.33, 0), tone=185),
        ),
        "cup": (
            band(0.6, -0.05, 0.34, 0.38, -90, 90, 0.2, tone=100),
            polygon((-0.85, -0.75), (0.65, -0.75), (0.5, 0.75), (-0.7, 0.75)),
            rectangle(-0.85, -0.75, 0.65, -0.5, tone=60),
        ),
        "key": (
            ellipse(-0.6, 0, 0.42, 0.42),
            ellipse(-0.6, 0, 0.18, 0.18, HOLE),
            rectangle(-0.25, -0.13, 1, 0.13),
            rectangle(0.5, 0, 0.68, 0.42),
            rectangle(0.82, 0, 1, 0.5),
        ),
        "hat": (
            polygon((-0.5, -0.75), (0.5, -0.75), (0.55, 0.45), (-0.55, 0.45)),
            rectangle(-0.55, 0.1, 0.55, 0.42, tone=30),
            ellipse(0, 0.5, 1, 0.2),
        ),
        "crown": (
            polygon((-0.85, 0.7), (-1, -0.5), (-0.45, 0.1), (0, -0.7), (0.45, 0.1), (1, -0.5), (0.85, 0.7)),
            rectangle(-0.85, 0.42, 0.85, 0.7, tone=60),
        ),
        "chair": (
            rectangle(-0.62, -1, -0.38, 1),
            rectangle(0.38, -1, 0.62, 1),
            rectangle(-0.62, -1, 0.62, -0.72),
            rectangle(-0.62, -0.5, 0.62, -0.26),
            rectangle(-0.78, 0.02, 0.78, 0.36, tone=80),
        ),
        "bell": (
            ellipse(0, 0.72, 0.22, 0.22, tone=30),
            ShapePart(
                np.concatenate([arc(0, -0.3, 0.5, 0.7, 180, 360), np.array([[0.62, 0.4], [1, 0.68], [-1, 0.68]])])
            ),
            rectangle(-0.72, 0.3, 0.72, 0.46, tone=60),
        ),
        "sun": (*rays, ellipse(0, 0, 0.62, 0.62)),
        "cloud": (
            ellipse(-0.55, 0.15, 0.45, 0.38),
            ellipse(0.58, 0.18, 0.42, 0.36),
            ellipse(-0.12, -0.15, 0.48, 0.48),
            ellipse(0.32, -0.02, 0.4, 0.42),
            rectangle(-0.5, 0.1, 0.55, 0.52),
        ),
    }


def _letters() -> dict[str, tuple[ShapePart, ...]]:
    stem = rectangle(-0.7, -1, -0.3, 1)
    right_stem = rectangle(0.3, -1, 0.7, 1)
    top, foot = rectangle(-0.7, -1, 0.65, -0.62), rectangle(-0.7, 0.62, 0.65, 1)
    bowl = band(-0.05, -0.42, 0.5, 0.4, -90, 90, 0.36)
    joins = rectangle(-0.5, -1, -0.03, -0.64), rectangle(-0.5, -0.2, -0.03, 0.16)
    belly = (
        band(-0.05, 0.42, 0.55, 0.4, -90, 90, 0.36),
        rectangle(-0.5, 0.64, -0.03, 1),
        rectangle(-0.5, -0.16, -0.03, 0.2),
    )
    return {
        "A": (stroke(-0.65, 1, -0.05, -1), stroke(0.65, 1, 0.05, -1), rectangle(-0.45, 0.2, 0.45, 0.52)),
        "B": (stem, bowl, *joins, *belly),
        "E": (stem, top, foot, rectangle(-0.7, -0.18, 0.5, 0.18)),
        "F": (stem, top, rectangle(-0.7, -0.18, 0.5, 0.18)),
        "H": (stem, right_stem, rectangle(-0.6, -0.19, 0.6, 0.19)),
        "K": (stem, stroke(-0.45, 0.2, 0.6, -1), stroke(-0.3, -0.1, 0.65, 1)),
        "L": (stem, foot),
        "M": (
            rectangle(-0.95, -1, -0.58, 1),
            rectangle(0.58, -1, 0.95, 1),
            stroke(-0.75, -0.9, 0, 0.5, 0.36),
            stroke(0.75, -0.9, 0, 0.5, 0.36),
        ),
        "P": (stem, bowl, *joins),
        "S": (
            band(0.05, -0.43, 0.5, 0.38, 90, 330, 0.36),
            band(-0.05, 0.43, 0.5, 0.38, -90, 150, 0.36),
            rectangle(-0.06, -0.23, 0.06, 0.23),
        ),
        "T": (rectangle(-0.8, -1, 0.8, -0.6), rectangle(-0.2, -1, 0.2, 1)),
        "Z": (
            rectangle(-0.75, -1, 0.75, -0.64),
            rectangle(-0.75, 0.64, 0.75, 1),
            polygon((0.2, -0.7), (0.75, -0.7), (-0.2, 0.7), (-0.75, 0.7)),
        ),
    }


def _all_kinds() -> dict[str, Kind]:
    kinds = _shapes()
    thin, sided = {"key", "chair"}, {"car", "boat", "fish", "cup", "key", "house", "apple", "cloud"}
    for name, parts in (_buildings_and_vehicles() | _living() | _belongings()).items():
        kinds.append(Kind(name, "thing", fit(parts), solid=name not in thin, mirror=name in sided))
    kinds += [Kind(name, "letter", fit(parts), solid=False, turn=10.0) for name, parts in _letters().items()]
    return {kind.name: kind for kind in kinds}


KINDS: dict[str, Kind] = _all_kinds()
