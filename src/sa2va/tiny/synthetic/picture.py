"""Pictures of the synthetic world: objects find free places on a background and are painted with exact masks.

Letters in shapes: N objects (later ones lie nearer to the viewer), H height, W width.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import hypot

import numpy as np

from sa2va.tiny.synthetic.background import background, readable_colors, speckle
from sa2va.tiny.synthetic.casting import Cast, confusable
from sa2va.tiny.synthetic.drawn_scene import SIZES, DrawnScene, Thing, enough_in_sight, random_radius, random_style
from sa2va.tiny.synthetic.paint import Sprite, draw, lay, silhouettes, visible_parts
from sa2va.tiny.synthetic.shapes import KINDS, RING_HOLE
from sa2va.tiny.synthetic.splits import Look, Split, home_split


@dataclass(frozen=True)
class Actor:
    """An object about to be placed: ``xy`` is its centre in pixels."""

    look: Look
    size: str
    radius: float
    xy: tuple[float, float]

    @property
    def reach(self) -> float:
        return self.radius * KINDS[self.look.kind].reach


def picture_scene(
    rng: random.Random,
    noise: np.random.Generator,
    split: Split,
    size: tuple[int, int],
    crowd: bool = False,
    distant: bool = False,
) -> DrawnScene:
    """A still scene of up to eight objects on a background, or of a crowd of up to 24; frames have F = 1."""
    canvas = background(rng, noise, size)
    stage = _Stage(rng, Cast(rng, split, readable_colors(canvas), varied=crowd), size, distant)
    if crowd:
        for _ in range(rng.randint(12, 24)):
            stage.add_somewhere()
        return _paint(canvas, stage.actors, rng, noise, split)
    layout = rng.random()
    if layout < 0.2:
        stage.add_row()
    elif layout < 0.3:
        stage.add_nest()
    for _ in range(rng.choices((2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 3, 2, 2, 1))[0] - len(stage.actors)):
        stage.add_somewhere()
    return _paint(canvas, stage.actors, rng, noise, split)


class _Stage:
    """Finds free places for objects, one after another."""

    def __init__(self, rng: random.Random, cast: Cast, size: tuple[int, int], distant: bool):
        self.actors: list[Actor] = []
        self._rng, self._cast, self._size, self._distant = rng, cast, size, distant
        self._crowded = rng.random() < 0.4

    def add_somewhere(self) -> None:
        """One object where there is room; smaller when there is not, none when there is no room at all."""
        look = self._cast.draw()
        shares = (0.7, 0.2, 0.1) if self._distant else (0.34, 0.4, 0.26)
        for size in (self._rng.choices(tuple(SIZES), shares)[0], "medium", "small"):
            radius = self._radius(size)
            for _ in range(12):
                actor = Actor(look, size, radius, self._anywhere(radius * KINDS[look.kind].reach * 0.9))
                if all(self._apart(actor, other) for other in self.actors):
                    self.actors.append(actor)
                    return

    def add_row(self) -> None:
        """Three to five objects side by side or one above the other, mostly of one kind: ground for ordinals."""
        count, size = self._rng.randint(3, 5), self._rng.choice(("small", "small", "medium"))
        height, width = self._size
        flat = self._rng.random() < 0.6
        length, breadth = (width, height) if flat else (height, width)
        if size == "medium" and length < 2.9 * SIZES["medium"][1] * count * min(self._size):
            size = "small"
        kind, across = None, self._rng.uniform(0.2, 0.8) * breadth
        for index in range(count):
            look = self._cast.draw(kind if self._rng.random() < 0.85 else None)
            kind = kind or look.kind
            along = (index + 0.5) / count * length + self._rng.uniform(-0.02, 0.02) * length
            side = across + self._rng.uniform(-0.04, 0.04) * breadth
            xy = (along, side) if flat else (side, along)
            self.actors.append(Actor(look, size, self._radius(size), xy))

    def add_nest(self) -> None:
        """A large ring with a small object inside."""
        inner, ring = self._cast.draw(), self._cast.draw("ring")
        radius = self._radius("large")
        xy = self._anywhere(radius)
        self.actors.append(Actor(ring, "large", radius, xy))
        small = self._radius("small")
        if ring.kind == "ring" and small * KINDS[inner.kind].reach < radius * RING_HOLE * 0.95:
            self.actors.append(Actor(inner, "small", small, xy))

    def _radius(self, size: str) -> float:
        return random_radius(size, min(self._size), self._rng, self._distant)

    def _anywhere(self, margin: float) -> tuple[float, float]:
        height, width = self._size
        return (self._rng.uniform(margin, width - margin), self._rng.uniform(margin, height - margin))

    def _apart(self, first: Actor, second: Actor) -> bool:
        distance = hypot(first.xy[0] - second.xy[0], first.xy[1] - second.xy[1])
        if distance > first.reach + second.reach + 1:
            return True
        near = 0.62 * (first.radius + second.radius)
        return self._crowded and distance > near and not confusable(first.look, second.look)


def _paint(
    canvas: np.ndarray, actors: list[Actor], rng: random.Random, noise: np.random.Generator, split: Split
) -> DrawnScene:
    size, unit = (canvas.shape[0], canvas.shape[1]), min(canvas.shape[:2])
    spots = [(int(actor.xy[1] // 1), int(actor.xy[0] // 1)) for actor in actors]
    sprites = [
        draw(random_style(actor.look, rng), actor.radius, unit, (actor.xy[1] % 1, actor.xy[0] % 1)) for actor in actors
    ]
    outlines = silhouettes(sprites, spots, size)
    kept = _recognisable(sprites, outlines, unit)
    for index in kept:
        lay(canvas, sprites[index], spots[index])
    frames = speckle(canvas[None], noise, rng.uniform(0.02, 0.08)) if rng.random() < 0.4 else canvas[None]
    actors, outlines = [actors[index] for index in kept], outlines[kept, None]
    things = tuple(Thing(a.look, a.size, a.radius, home_split(a.look) != "train") for a in actors)
    paths = np.array([actor.xy for actor in actors]).reshape(-1, 1, 2)
    return DrawnScene(frames, things, visible_parts(outlines), outlines, paths, split)


def _recognisable(sprites: list[Sprite], outlines: np.ndarray, unit: int) -> list[int]:
    """The objects that are in sight; leaving out one that is not only brings more of the others into sight."""
    whole, kept = np.array([sprite.solid.sum() for sprite in sprites]), list(range(len(sprites)))
    while kept:
        fine = enough_in_sight(visible_parts(outlines[kept]).sum(axis=(1, 2)), whole[kept], unit)
        if fine.all():
            break
        kept = [index for index, good in zip(kept, fine.tolist(), strict=True) if good]
    return kept
