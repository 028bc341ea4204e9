"""What is true in a scene, in three values: yes, no, or unsure where careful readers could disagree.

A phrase may be used only when no object is unsure, so every rule here leaves a wide gap between its yes and its no.
Object numbers are indices into ``scene.things``. Positions are those of the picture, or of an object's first sight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from math import atan2, degrees, hypot

from sa2va.tiny.synthetic.drawn_scene import DrawnScene, Thing
from sa2va.tiny.synthetic.lexicon import GROUP_NOUNS, Noun
from sa2va.tiny.synthetic.shapes import RING_HOLE

Truth = bool | None  # None: unsure
_DIRECTIONS = {"right": 0.0, "below": 90.0, "left": 180.0, "above": 270.0}


@dataclass(frozen=True)
class Description:
    """A noun with the attributes that are said; what is not said is free."""

    noun: Noun = GROUP_NOUNS["thing"]
    color: str | None = None
    texture: str | None = None
    size: str | None = None

    def fits(self, thing: Thing) -> Truth:
        """Whether the description is true of the thing."""
        look = thing.look
        if self.color not in (None, look.color) or self.texture not in (None, look.texture):
            return False
        if self.size not in (None, thing.size) and thing.motion not in ("grow", "shrink"):
            return False
        sure = self.size is None or thing.motion not in ("grow", "shrink")
        return sure or None if look.kind in self.noun.yes else None if look.kind in self.noun.unsure else False


class Facts:
    """Questions that phrases ask about one scene."""

    def __init__(self, scene: DrawnScene):
        self.scene = scene
        self.things = scene.things
        self.everything = range(len(scene.things))
        self._relations: dict[tuple[str, int, int], Truth] = {}

    @cached_property
    def centers(self) -> list[tuple[float, float]]:
        """Middle (x, y) of each object's visible box, as shares of the width and height."""
        height, width = self.scene.frames.shape[1:3]
        return [(x / width, y / height) for x, y in self.scene.centers]

    def select(self, test: Callable[[int], Truth], among: Iterable[int] | None = None) -> frozenset[int] | None:
        """The objects for which the test says yes; None when it is unsure about one."""
        chosen = []
        for index in self.everything if among is None else among:
            truth = test(index)
            if truth is None:
                return None
            if truth:
                chosen.append(index)
        return frozenset(chosen)

    def matching(self, description: Description) -> frozenset[int] | None:
        """The objects that a description fits; None when unsure."""
        return self.select(lambda index: description.fits(self.things[index]))

    def related(self, relation: str, index: int, anchor: int) -> Truth:
        """Whether ``index`` stands in the relation to ``anchor``: left, right, above, below, inside, behind, front."""
        key = (relation, index, anchor)
        if key not in self._relations:
            self._relations[key] = self._relate(*key)
        return self._relations[key]

    def between(self, index: int, first: int, last: int) -> Truth:
        """Whether ``index`` lies on the way from one object to another."""
        if index in (first, last):
            return False
        (ax, ay), (bx, by), (x, y) = (self._pixels(k) for k in (first, last, index))
        length = hypot(bx - ax, by - ay)
        if length < 0.25 * self.scene.unit:
            return None
        along = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length**2
        aside = abs((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / length**2
        if 0.25 < along < 0.75 and aside < 0.22:
            return True
        return False if along < 0.05 or along > 0.95 or aside > 0.5 else None

    def in_zone(self, zone: str, index: int) -> Truth:
        """Whether an object lies on a side, in a corner or in the middle of the picture."""
        x, y = self.centers[index]
        if zone == "middle":
            off = max(abs(x - 0.5), abs(y - 0.5))
            return True if off < 0.12 else False if off > 0.25 else None
        position = {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}
        parts = [position[side] for side in zone.split()]
        if all(part < 0.38 for part in parts):
            return True
        return False if any(part > 0.54 for part in parts) else None

    def nth(self, members: Iterable[int], side: str, count: int) -> int | None:
        """The object that is number ``count`` (from 1) counted from a side; None when its neighbours are too close."""
        axis, sign = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[side]
        order = sorted((sign * self.centers[index][axis], index) for index in members)
        if count > len(order) or len(order) < 2:
            return None
        place, chosen = order.pop(count - 1)
        return chosen if all(abs(place - other) > 0.06 for other, _ in order) else None

    def largest(self, members: Iterable[int], sign: int = 1) -> int | None:
        """The largest (sign 1) or smallest (sign -1) of at least two objects; None when not clear at a glance."""
        order = sorted(members, key=lambda index: -sign * self.things[index].radius)
        if len(order) < 2:
            return None
        first, second = (self.things[index].radius for index in order[:2])
        areas = [int(self.scene.areas[index].max()) for index in order]
        by_area = all(sign * (areas[0] - 1.1**sign * area) > 0 for area in areas[1:])
        return order[0] if max(first, second) > 1.2 * min(first, second) and by_area else None

    def closest(self, members: Iterable[int], anchor: int) -> int | None:
        """The object nearest to the anchor; None when not clear."""
        x, y = self._pixels(anchor)
        found = sorted((hypot(px - x, py - y), k) for k in members if k != anchor for px, py in [self._pixels(k)])
        if len(found) < 2 or found[0][0] > 0.72 * found[1][0]:
            return None
        return found[0][1]

    def _relate(self, relation: str, index: int, anchor: int) -> Truth:
        if index == anchor:
            return False
        if relation in _DIRECTIONS:
            return self._directed(relation, index, anchor)
        if relation == "inside":
            return self._inside(index, anchor)
        return self._hidden(index, anchor) if relation == "behind" else self._hidden(anchor, index)

    def _pixels(self, index: int) -> tuple[float, float]:
        return self.scene.centers[index]

    def _directed(self, relation: str, index: int, anchor: int) -> Truth:
        (x, y), (ax, ay) = self._pixels(index), self._pixels(anchor)
        if hypot(x - ax, y - ay) < 0.12 * self.scene.unit:
            return None
        off = abs((degrees(atan2(y - ay, x - ax)) - _DIRECTIONS[relation] + 180) % 360 - 180)
        return True if off < 35 else False if off > 72 else None

    def _inside(self, index: int, anchor: int) -> Truth:
        inner, outer = self.things[index], self.things[anchor]
        (x, y), (ax, ay) = self._pixels(index), self._pixels(anchor)
        distance = hypot(x - ax, y - ay)
        if outer.look.kind == "ring" and distance < 0.2 * outer.radius and inner.radius < RING_HOLE * outer.radius:
            return True
        return False if distance > 0.8 * outer.radius else None

    def _hidden(self, index: int, cover: int) -> Truth:
        share = self.scene.hidden[index, cover] / max(1, self.scene.outlines[index].sum(axis=(1, 2)).max())
        return True if share > 0.1 else False if share == 0 else None
