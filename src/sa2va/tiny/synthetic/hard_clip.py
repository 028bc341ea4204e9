"""Hard clips of the synthetic world: long ones, in which objects are lost to sight, mistaken for others, or too fast.

Every kind of clip is drawn anew until it is what its name says, so that scores per kind mean something. Letters in
shapes: N objects (later ones nearer to the viewer), F frames, H height, W width.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import cos, hypot, pi, sin
from typing import Literal

import numpy as np

from sa2va.tiny.synthetic.absent import absent_description
from sa2va.tiny.synthetic.background import background, readable_colors, speckle
from sa2va.tiny.synthetic.casting import Cast, confusable
from sa2va.tiny.synthetic.drawn_scene import DrawnScene, Thing, enough_in_sight, random_radius, random_style
from sa2va.tiny.synthetic.facts import Description, Facts
from sa2va.tiny.synthetic.lexicon import KIND_NOUNS, MOTIONS
from sa2va.tiny.synthetic.paint import draw, lay, silhouettes, visible_parts
from sa2va.tiny.synthetic.phrases import definite, words
from sa2va.tiny.synthetic.shapes import KINDS
from sa2va.tiny.synthetic.splits import Look, Split, home_split, textures_of

HardKind = Literal["return", "occlusion", "look-alikes", "late", "absent", "fast", "camera", "four", "sixteen"]
_FRAMES_PER_ABSENCE = 120  # a clip of 300 frames has three
_GONE = 0.15  # share of such a period for which the object is out of sight at least
_MOST_ATTEMPTS = 200
_COVERS = ("circle", "square", "hexagon")  # solid kinds behind which nothing can be seen


@dataclass(frozen=True, eq=False)
class HardClip:
    """A drawn clip and what is asked about it.

    Attributes:
        scene: frames and truth.
        requests: phrases with the object that each means, an index into ``scene.things``; None for what is not there.
    """

    scene: DrawnScene
    requests: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True, eq=False)
class _Performer:
    """An object on its way: float (F, 2) centres in pixels of the world, which a moving camera sees a part of."""

    look: Look
    size: str
    radius: float
    xy: np.ndarray
    motion: str = "bounce"

    @property
    def reach(self) -> float:
        return self.radius * KINDS[self.look.kind].reach


@dataclass(frozen=True, eq=False)
class _Play:
    """Who is asked for, who moves behind and in front of them, and the camera.

    The camera is the int (F, 2) offset (x, y) of the picture in the world.
    """

    targets: list[_Performer]
    camera: np.ndarray
    behind: list[_Performer] = field(default_factory=list)
    before: list[_Performer] = field(default_factory=list)

    @property
    def performers(self) -> list[_Performer]:
        return [*self.behind, *self.targets, *self.before]

    @property
    def asked(self) -> list[int]:
        """The targets among all performers."""
        return [len(self.behind) + number for number in range(len(self.targets))]


def hard_clip(kind: HardKind, index: int, frames: int, *, seed: int, split: Split = "val", side: int = 128) -> HardClip:
    """Clip ``index`` of a kind: a function of its arguments and of nothing else.

    * ``"return"``: leaves the picture wholly and comes back, perhaps from another side.
    * ``"occlusion"``: rests out of sight behind something large and comes out again.
    * ``"look-alikes"``: two of one kind and colour cross, told apart by their direction or by their texture.
    * ``"late"``: enters in the second half.
    * ``"absent"``: one object that is there, and one that is not.
    * ``"fast"``: moves by more than its radius from frame to frame.
    * ``"camera"``: the picture pans and shakes.
    * ``"four"``, ``"sixteen"``: so many objects at once.

    Args:
        frames: length of the clip, at least 40. seed: of the world. side: of the square picture, pixels.
    """
    rng = random.Random(f"hard/{kind}/{split}/{seed}/{index}/{frames}")
    for _ in range(_MOST_ATTEMPTS):
        noise = np.random.default_rng(rng.getrandbits(63))
        stage = _Stage(rng, noise, split, side, frames, wide=kind == "camera")
        play = _PLAYS[kind](stage)
        scene = stage.draw(play) if play else None
        if play and scene and _well_begun(scene, play, kind) and _VERDICTS[kind](scene, play):
            requests = _requests(kind, scene, play.asked, rng)
            if requests:
                return HardClip(scene, requests)
    raise AssertionError(f"no clip of kind {kind!r} for index {index} and {frames} frames")


def _requests(
    kind: HardKind, scene: DrawnScene, targets: list[int], rng: random.Random
) -> tuple[tuple[str, int | None], ...]:
    """A phrase for each target; nothing where one cannot be told from the others."""
    facts = Facts(scene)
    if kind == "look-alikes" and len({scene.things[target].look for target in targets}) == 1:
        return tuple((_by_direction(scene, target), target) for target in targets)
    phrases = [definite(facts, target, rng) for target in targets]
    if not all(phrases):
        return ()
    requests: list[tuple[str, int | None]] = [(phrase or "", t) for phrase, t in zip(phrases, targets, strict=True)]
    if kind == "absent":
        missing = absent_description(facts, rng)
        if not missing:
            return ()
        requests.append((f"the {words(missing, rng)}", None))
    return tuple(requests)


def _by_direction(scene: DrawnScene, target: int) -> str:
    look, path = scene.things[target].look, scene.paths[target]
    direction = "right" if path[-1, 0] > path[0, 0] else "left"
    noun = Description(KIND_NOUNS[look.kind], look.color, None if look.texture == "plain" else look.texture)
    return f"the {words(noun, random.Random(0))} {MOTIONS[direction].clauses[0]}"


class _Stage:
    """The world of one clip: its background, and who may appear in it."""

    def __init__(
        self, rng: random.Random, noise: np.random.Generator, split: Split, side: int, frames: int, *, wide: bool
    ):
        self.rng, self.side, self.frames = rng, side, frames
        self.world = 2 * side if wide else side
        self._noise = noise
        self._split: Split = split
        self._canvas = background(rng, noise, (self.world, self.world))
        self._cast = Cast(rng, split, readable_colors(self._canvas), varied=True)
        self._seen: list[Look] = []

    def look(self, apart_from: Iterable[Look] = ()) -> Look | None:
        """A look of its own, that shares no colour with some others."""
        for _ in range(40):
            look = self._cast.draw()
            if all(look[:2] != other[:2] for other in self._seen) and not any(
                confusable(look, one) for one in apart_from
            ):
                self._seen.append(look)
                return look
        return None

    def other_texture(self, look: Look) -> Look:
        """The same kind and colour in another texture; the same look where there is none."""
        others = [texture for texture in textures_of(look.kind, look.color) if texture != look.texture]
        return look._replace(texture=self.rng.choice(others)) if others else look

    def radius(self, size: str) -> float:
        return random_radius(size, self.side, self.rng)

    def inside(self, reach: float) -> tuple[float, float]:
        """A point at which an object is inside the picture."""
        return self.rng.uniform(reach, self.side - reach), self.rng.uniform(reach, self.side - reach)

    def outside(self, reach: float) -> tuple[float, float]:
        """A point at which an object is wholly outside the picture."""
        along, out = self.rng.uniform(0.2, 0.8) * self.side, reach + 2
        return self.rng.choice(
            ((-out, along), (self.side + out, along), (along, -out), (along, self.side + out)),
        )

    def path(self, *stops: tuple[float, tuple[float, float]], sway: float = 0.015) -> np.ndarray:
        """Float (F, 2): straight from stop to stop, each a share of the clip and a point, swaying a little."""
        times = np.linspace(0, 1, self.frames)
        marks = [time for time, _ in stops]
        xy = np.stack([np.interp(times, marks, [point[axis] for _, point in stops]) for axis in (0, 1)], axis=1)
        turns, start = self.frames / self.rng.uniform(20, 40), self.rng.uniform(0, 2 * pi)
        swing = 2 * pi * turns * times + start
        return xy + sway * self.side * np.stack([np.sin(swing), np.cos(0.7 * swing)], axis=1)

    def wander(self, reach: float, start: tuple[float, float] | None = None) -> np.ndarray:
        """A slow way through the picture."""
        legs = max(1, self.frames // 60)
        points = [start or self.inside(reach), *(self.inside(reach) for _ in range(legs))]
        return self.path(*zip(np.linspace(0, 1, legs + 1).tolist(), points, strict=True))

    def bystanders(self, count: int, apart_from: Iterable[Look] = ()) -> list[_Performer]:
        """Others in the picture, wandering or nearly still."""
        found: list[_Performer] = []
        for _ in range(count):
            if look := self.look(apart_from):
                size = self.rng.choice(("small", "small", "medium"))
                radius = self.radius(size)
                reach = radius * KINDS[look.kind].reach
                spots = [self.inside(reach) for _ in range(12)]
                spot = max(spots, key=lambda one: min((hypot(*(other.xy[0] - one)) for other in found), default=0.0))
                still = self.rng.random() < 0.5
                xy = self.path((0, spot), (1, spot)) if still else self.wander(reach, spot)
                found.append(_Performer(look, size, radius, xy))
        return found

    def still_camera(self) -> np.ndarray:
        return np.zeros((self.frames, 2), dtype=int)

    def draw(self, play: _Play) -> DrawnScene:
        """Frames, and the exact visible part of every object in each."""
        size, performers = (self.side, self.side), play.performers
        sprites = [draw(random_style(one.look, self.rng), one.radius, self.side, (0.5, 0.5)) for one in performers]
        paths = np.stack([one.xy - play.camera for one in performers])
        spots = np.floor(paths[..., ::-1]).astype(int)  # (y, x)
        outlines = np.zeros((len(performers), self.frames, *size), dtype=bool)
        grain = self.rng.uniform(0.02, 0.08) if self.rng.random() < 0.4 else 0.0
        frames = np.empty((self.frames, *size, 3), dtype=np.uint8)
        for index, (x, y) in enumerate(play.camera):
            frames[index] = self._canvas[y : y + self.side, x : x + self.side]
            centers = [(int(row), int(column)) for row, column in spots[:, index]]
            for sprite, center in zip(sprites, centers, strict=True):
                lay(frames[index], sprite, center)
            outlines[:, index] = silhouettes(sprites, centers, size)
            if grain:
                frames[index] = speckle(frames[index][None], self._noise, grain)[0]
        things = tuple(Thing(p.look, p.size, p.radius, home_split(p.look) != "train", p.motion) for p in performers)
        return DrawnScene(frames, things, visible_parts(outlines), outlines, paths, self._split)


# -- the plays ---------------------------------------------------------------------------------------------------------


def _periods(frames: int) -> list[tuple[float, float]]:
    """Start and length, as shares of the clip, of as many equal periods with an absence as the clip has."""
    count = 1 + frames // _FRAMES_PER_ABSENCE
    return [(number / count, 1 / count) for number in range(count)]


def _play_return(stage: _Stage) -> _Play | None:
    look = stage.look()
    if look is None:
        return None
    radius = stage.radius("small")
    reach = radius * KINDS[look.kind].reach
    stops = [(0.0, stage.inside(reach))]
    for start, period in _periods(stage.frames):
        left, came = stage.outside(reach), stage.outside(reach)
        stops += [(start + 0.3 * period, stage.inside(reach)), (start + 0.4 * period, left)]
        stops += [(start + 0.55 * period, left), (start + 0.55 * period + 1e-6, came), (start + 0.68 * period, came)]
        stops += [(start + 0.8 * period, stage.inside(reach)), (start + period, stage.inside(reach))]
    target = _Performer(look, "small", radius, stage.path(*stops, sway=0))
    return _Play([target], stage.still_camera(), stage.bystanders(3))


def _play_occlusion(stage: _Stage) -> _Play | None:
    cover = next((look for _ in range(60) if (look := stage.look()) and look.kind in _COVERS), None)
    look = stage.look([cover] if cover else ())
    if cover is None or look is None:
        return None
    small, large = stage.radius("small"), stage.radius("large")
    row, column = (stage.side / 2 + stage.rng.uniform(-0.06, 0.06) * stage.side for _ in range(2))
    middle = (row, column)
    reach = small * KINDS[look.kind].reach
    way = 1.2 * large + reach  # a square cover is turned a little
    free = [np.array(middle) + way * np.array([cos(turn), sin(turn)]) for turn in (0, pi / 2, pi, 3 * pi / 2)]
    sides = [tuple(np.clip(spot, reach, stage.side - reach).tolist()) for spot in free]
    here = stage.rng.choice(sides)
    stops = [(0.0, here)]
    for start, period in _periods(stage.frames):
        there = stage.rng.choice([side for side in sides if side != here])
        stops += [(start + 0.25 * period, here), (start + 0.4 * period, middle), (start + 0.65 * period, middle)]
        stops += [(start + 0.8 * period, there), (start + period, there)]
        here = there
    target = _Performer(look, "small", small, stage.path(*stops, sway=0))
    block = _Performer(cover, "large", large, stage.path((0, middle), (1, middle), sway=0), "still")
    return _Play([target], stage.still_camera(), stage.bystanders(2), [block])


def _play_look_alikes(stage: _Stage) -> _Play | None:
    look = stage.look()
    if look is None:
        return None
    radius = stage.radius("small")
    reach = radius * KINDS[look.kind].reach
    height = stage.rng.uniform(0.3, 0.7) * stage.side
    gap = stage.rng.uniform(0.3, 1.2) * radius * stage.rng.choice((-1, 1))
    ways = [(reach, stage.side - reach, height), (stage.side - reach, reach, height + gap)]
    twins = (look, look if stage.rng.random() < 0.5 else stage.other_texture(look))
    pair = [
        _Performer(twin, "small", radius, stage.path((0, (x0, y)), (1, (x1, y)), sway=0), "drift")
        for twin, (x0, x1, y) in zip(twins, ways, strict=True)
    ]
    return _Play(pair, stage.still_camera(), stage.bystanders(2, [look]))


def _play_late(stage: _Stage) -> _Play | None:
    look = stage.look()
    if look is None:
        return None
    radius = stage.radius("small")
    reach = radius * KINDS[look.kind].reach
    door, when = stage.outside(reach), stage.rng.uniform(0.5, 0.65)
    stops = [(0, door), (when, door), (when + 0.15, stage.inside(reach)), (1, stage.inside(reach))]
    target = _Performer(look, "small", radius, stage.path(*stops, sway=0))
    return _Play([target], stage.still_camera(), stage.bystanders(3))


def _play_absent(stage: _Stage) -> _Play | None:
    others = stage.bystanders(4)
    return _Play(others[-1:], stage.still_camera(), others[:-1]) if others else None


def _play_fast(stage: _Stage) -> _Play | None:
    look = stage.look()
    if look is None:
        return None
    radius = stage.radius("small")
    reach = radius * KINDS[look.kind].reach
    pace, turn = stage.rng.uniform(1.3, 2.2) * radius, stage.rng.uniform(0, 2 * pi)
    room = stage.side - 2 * reach
    steps = np.arange(stage.frames)[:, None] * pace * np.array([[cos(turn), sin(turn)]]) + stage.inside(0)
    xy = reach + room - abs(steps % (2 * room) - room)  # there and back between the edges
    return _Play([_Performer(look, "small", radius, xy)], stage.still_camera(), stage.bystanders(3))


def _play_camera(stage: _Stage) -> _Play | None:
    look = stage.look()
    if look is None:
        return None
    radius = stage.radius("small")
    reach, room = radius * KINDS[look.kind].reach, stage.world - stage.side
    legs = 1 + stage.frames // 40
    corners = [(stage.rng.uniform(0, room), stage.rng.uniform(0, room)) for _ in range(legs + 1)]
    pan = stage.path(*zip(np.linspace(0, 1, legs + 1).tolist(), corners, strict=True), sway=0)
    shake = np.array([[stage.rng.gauss(0, 1.2), stage.rng.gauss(0, 1.2)] for _ in range(stage.frames)])
    camera = np.clip(np.rint(pan + shake), 0, room).astype(int)
    others = []
    for one in stage.bystanders(6):
        spot = (stage.rng.uniform(0, stage.world), stage.rng.uniform(0, stage.world))
        others.append(_Performer(one.look, one.size, one.radius, stage.path((0, spot), (1, spot)), one.motion))
    target = _Performer(look, "small", radius, stage.wander(reach) + pan)
    return _Play([target], camera, others)


def _play_many(count: int) -> Callable[[_Stage], _Play | None]:
    def play(stage: _Stage) -> _Play | None:
        rows = round(count**0.5)
        cell = stage.side / rows
        performers = []
        for number in range(count):
            look = stage.look()
            if look is None:
                return None
            size = "small" if rows > 2 else stage.rng.choice(("small", "medium"))
            radius = stage.radius(size)
            reach = radius * KINDS[look.kind].reach
            row, column = divmod(number, rows)
            start = ((column + 0.5) * cell, (row + 0.5) * cell)
            performers.append(_Performer(look, size, radius, stage.wander(reach, start)))
        stage.rng.shuffle(performers)
        return _Play(performers, stage.still_camera())

    return play


_PLAYS: dict[HardKind, Callable[[_Stage], _Play | None]] = {
    "return": _play_return,
    "occlusion": _play_occlusion,
    "look-alikes": _play_look_alikes,
    "late": _play_late,
    "absent": _play_absent,
    "fast": _play_fast,
    "camera": _play_camera,
    "four": _play_many(4),
    "sixteen": _play_many(16),
}


# -- whether a clip is what its kind says ------------------------------------------------------------------------------


def out_of_sight(seen_F: np.ndarray) -> list[tuple[int, int]]:
    """The absences of an object that comes back: (first frame, first frame in sight again).

    Args:
        seen_F: bool, whether the object is seen in each frame.
    """
    edges = np.diff(seen_F.astype(int))
    starts, ends = np.flatnonzero(edges == -1) + 1, np.flatnonzero(edges == 1) + 1
    return [(int(start), int(ends[ends > start][0])) for start in starts if (ends > start).any()]


def _well_begun(scene: DrawnScene, play: _Play, kind: HardKind) -> bool:
    """Whether every target is in plain sight when it is first to be found."""
    whole = scene.outlines.sum(axis=(2, 3))
    moment = -1 if kind == "late" else 0
    seen = enough_in_sight(scene.areas[play.asked, moment], whole[play.asked].max(axis=1), scene.unit)
    return bool(seen.all())


def _is_lost(scene: DrawnScene, play: _Play, mark: np.ndarray) -> bool:
    """Whether the target is lost to sight as often and as long as it should, and the truth ``mark`` (F) holds then."""
    (target,) = play.asked
    seen = scene.areas[target] > 0
    wanted = len(_periods(len(seen)))
    period = len(seen) / wanted
    losses = [(start, end) for start, end in out_of_sight(seen) if end - start >= _GONE * period]
    return len(losses) == wanted and all(mark[start:end].all() for start, end in losses) and bool(seen[-1])


def _is_return(scene: DrawnScene, play: _Play) -> bool:
    (target,) = play.asked
    return _is_lost(scene, play, ~scene.outlines[target].any(axis=(1, 2)))


def _is_occlusion(scene: DrawnScene, play: _Play) -> bool:
    (target,) = play.asked
    return _is_lost(scene, play, scene.outlines[target].any(axis=(1, 2)))


def _is_look_alikes(scene: DrawnScene, play: _Play) -> bool:
    first, second = (scene.outlines[target] for target in play.asked)
    return bool((first & second).any()) and _mostly_seen(scene, play)


def _is_late(scene: DrawnScene, play: _Play) -> bool:
    (target,) = play.asked
    seen = scene.areas[target] > 0
    half = len(seen) // 2
    return not seen[:half].any() and bool(seen[-len(seen) // 4 :].all())


def _is_fast(scene: DrawnScene, play: _Play) -> bool:
    (target,) = play.asked
    steps = np.linalg.norm(np.diff(scene.paths[target], axis=0), axis=1)
    return bool(np.median(steps) > scene.things[target].radius) and _mostly_seen(scene, play)


def _is_camera(scene: DrawnScene, play: _Play) -> bool:
    return bool(np.ptp(play.camera, axis=0).max() >= 0.4 * scene.unit) and _mostly_seen(scene, play)


def _mostly_seen(scene: DrawnScene, play: _Play) -> bool:
    """Whether every target is in sight in more than half of the frames."""
    return bool(((scene.areas[play.asked] > 0).mean(axis=1) > 0.5).all())


_VERDICTS: dict[HardKind, Callable[[DrawnScene, _Play], bool]] = {
    "return": _is_return,
    "occlusion": _is_occlusion,
    "look-alikes": _is_look_alikes,
    "late": _is_late,
    "absent": _mostly_seen,
    "fast": _is_fast,
    "camera": _is_camera,
    "four": _mostly_seen,
    "sixteen": _mostly_seen,
}
