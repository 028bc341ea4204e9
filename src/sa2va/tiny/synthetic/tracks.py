"""How objects of a clip move: positions, scale and presence over time, one maker per motion.

Positions are in pixels, (x, y); time runs from 0 at the first frame to 1 at the last. Letter in shapes: F frames.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, cos, hypot, pi, sin

import numpy as np

SIMPLE_MOTIONS = ("still", "drift", "leave", "enter", "appear", "vanish")
MOTION_WEIGHT: dict[str, float] = {
    "still": 3,
    "drift": 3,
    "return": 1.2,
    "circle": 1,
    "bounce": 0.8,
    "leave": 1.2,
    "enter": 1.2,
    "appear": 1,
    "vanish": 1,
    "grow": 0.6,
    "shrink": 0.6,
}


@dataclass(frozen=True, eq=False)
class MotionTrack:
    """Float (F, 2) centres, float (F,) scale of the radius, bool (F,) whether the object is there."""

    xy: np.ndarray
    scale: np.ndarray
    present: np.ndarray


@dataclass(frozen=True)
class Room:
    """What a motion has to know: the picture's size (h, w), the object's reach in pixels, and the frames' number."""

    size: tuple[int, int]
    reach: float
    frames: int

    @property
    def unit(self) -> int:
        return min(self.size)

    def anywhere(self, rng: random.Random, margin: float = 0.95) -> tuple[float, float]:
        """A centre (x, y) with the object inside the picture."""
        height, width = self.size
        edge = self.reach * margin
        return rng.uniform(edge, width - edge), rng.uniform(edge, height - edge)

    def holds(self, x: float, y: float) -> bool:
        """Whether an object centred there is inside the picture."""
        height, width = self.size
        edge = self.reach * 0.95
        return edge <= x <= width - edge and edge <= y <= height - edge


def make_track(motion: str, room: Room, rng: random.Random) -> MotionTrack | None:
    """A random track of the motion, or None when it does not fit into the room this time."""
    return _MAKERS[motion](room, rng)


def pass_behind(room: Room, anchor: tuple[float, float], anchor_reach: float, rng: random.Random) -> MotionTrack | None:
    """A straight way behind a still object, in full sight on both of its sides."""
    x, y = anchor
    way = anchor_reach + room.reach + rng.uniform(0.02, 0.1) * room.unit
    dx, dy = rng.choice(((way, 0.0), (-way, 0.0), (0.0, way), (0.0, -way)))
    start, stop = (x - dx, y - dy), (x + dx, y + dy)
    if not room.holds(*start) or not room.holds(*stop):
        return None
    return _steady(_line(start, stop, _times(room)))


def _times(room: Room) -> np.ndarray:
    return np.linspace(0, 1, room.frames)


def _line(start: tuple[float, float], stop: tuple[float, float], share: np.ndarray) -> np.ndarray:
    return np.array(start) + share[:, None] * (np.array(stop) - np.array(start))


def _steady(xy: np.ndarray) -> MotionTrack:
    return MotionTrack(xy, np.ones(len(xy)), np.ones(len(xy), dtype=bool))


def _heading(rng: random.Random) -> tuple[float, float]:
    """Along an axis more often than not, so that left, right, up and down can be said."""
    if rng.random() < 0.7:
        return rng.choice(((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)))
    angle = rng.uniform(0, 2 * pi)
    return cos(angle), sin(angle)


def _stretch(room: Room, rng: random.Random, shortest: float) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Two points inside the picture at least a share of its shorter side apart."""
    for _ in range(10):
        x, y = room.anywhere(rng)
        dx, dy = _heading(rng)
        way = rng.uniform(shortest, 0.75) * room.unit
        if room.holds(x + dx * way, y + dy * way):
            return (x, y), (x + dx * way, y + dy * way)
    return None


def _still(room: Room, rng: random.Random) -> MotionTrack:
    return _steady(np.repeat([room.anywhere(rng)], room.frames, axis=0))


def _drift(room: Room, rng: random.Random) -> MotionTrack | None:
    ends = _stretch(room, rng, 0.25)
    return _steady(_line(*ends, _times(room))) if ends else None


def _return(room: Room, rng: random.Random) -> MotionTrack | None:
    ends = _stretch(room, rng, 0.35)
    return _steady(_line(*ends, 1 - abs(2 * _times(room) - 1))) if ends else None


def _circle(room: Room, rng: random.Random) -> MotionTrack | None:
    radius = rng.uniform(0.14, 0.22) * room.unit
    x, y = room.anywhere(rng)
    if not (room.holds(x - radius, y - radius) and room.holds(x + radius, y + radius)):
        return None
    angles = rng.uniform(0, 2 * pi) + rng.choice((-1, 1)) * 2 * pi * _times(room)
    return _steady(np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1))


def _bounce(room: Room, rng: random.Random) -> MotionTrack | None:
    """Slantwise to an edge and slantwise back from it."""
    height, width = room.size
    flat = rng.random() < 0.5
    length, breadth = (width, height) if flat else (height, width)
    away = rng.uniform(0.3, 0.5) * room.unit
    start = rng.uniform(room.reach, breadth - room.reach)
    slant = rng.choice((-1, 1)) * rng.uniform(0.35, 0.6) * room.unit
    if not room.reach <= start + slant <= breadth - room.reach:
        return None
    time = _times(room)
    depth = room.reach * 0.9 + away * abs(2 * time - 1)
    along = depth if rng.random() < 0.5 else length - depth
    across = start + slant * time
    return _steady(np.stack([along, across] if flat else [across, along], axis=1))


def _leave(room: Room, rng: random.Random) -> MotionTrack:
    """Out over the nearest edge or another, gone before the last frame."""
    height, width = room.size
    x, y = room.anywhere(rng)
    out = room.reach + 2
    goal = rng.choice(((-out, y), (width + out, y), (x, -out), (x, height + out)))
    share = np.minimum(_times(room) / rng.uniform(0.7, 0.9), 1.0)
    xy = _line((x, y), goal, share)
    return MotionTrack(xy, np.ones(room.frames), share < 1)


def _enter(room: Room, rng: random.Random) -> MotionTrack:
    track = _leave(room, rng)
    return MotionTrack(track.xy[::-1].copy(), track.scale, track.present[::-1].copy())


def _appear(room: Room, rng: random.Random) -> MotionTrack:
    first = max(1, min(room.frames - 1, ceil(rng.uniform(0.3, 0.65) * room.frames)))
    return MotionTrack(_still(room, rng).xy, np.ones(room.frames), np.arange(room.frames) >= first)


def _vanish(room: Room, rng: random.Random) -> MotionTrack:
    track = _appear(room, rng)
    return MotionTrack(track.xy, track.scale, track.present[::-1].copy())


def _grow(room: Room, rng: random.Random) -> MotionTrack | None:
    share = rng.uniform(0.45, 0.55)
    return MotionTrack(_still(room, rng).xy, share + (1 - share) * _times(room), np.ones(room.frames, dtype=bool))


def _shrink(room: Room, rng: random.Random) -> MotionTrack | None:
    track = _grow(room, rng)
    return MotionTrack(track.xy, track.scale[::-1].copy(), track.present) if track else None


_MAKERS: dict[str, Callable[[Room, random.Random], MotionTrack | None]] = {
    "still": _still,
    "drift": _drift,
    "return": _return,
    "circle": _circle,
    "bounce": _bounce,
    "leave": _leave,
    "enter": _enter,
    "appear": _appear,
    "vanish": _vanish,
    "grow": _grow,
    "shrink": _shrink,
}


def nearest(first: MotionTrack, second: MotionTrack) -> float:
    """The least distance of two centres over all frames in which both are there; infinite when there is none."""
    both = first.present & second.present
    gaps = [hypot(*step) for step in (first.xy - second.xy)[both]]
    return min(gaps, default=float("inf"))
