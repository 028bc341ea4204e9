"""Clips of the synthetic world: still and moving objects that cross, come, go and hide, with exact masks per frame.

Letters in shapes: N objects (later ones nearer to the viewer), F frames, H height, W width.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from sa2va.tiny.synthetic.background import background, readable_colors, speckle
from sa2va.tiny.synthetic.casting import Cast, confusable
from sa2va.tiny.synthetic.drawn_scene import DrawnScene, Thing, enough_in_sight, random_radius, random_style
from sa2va.tiny.synthetic.paint import Sprite, draw, lay, silhouettes, visible_parts
from sa2va.tiny.synthetic.shapes import KINDS
from sa2va.tiny.synthetic.splits import Look, Split, home_split
from sa2va.tiny.synthetic.tracks import (
    MOTION_WEIGHT,
    SIMPLE_MOTIONS,
    MotionTrack,
    Room,
    make_track,
    nearest,
    pass_behind,
)

_FEWEST_FOR_MOTION = 5  # frames from which turning, circling and bouncing can be seen


@dataclass(frozen=True, eq=False)
class _Mover:
    look: Look
    size: str
    radius: float
    motion: str
    track: MotionTrack

    @property
    def reach(self) -> float:
        return self.radius * KINDS[self.look.kind].reach


def clip_scene(
    rng: random.Random, noise: np.random.Generator, split: Split, size: tuple[int, int], frames: int
) -> DrawnScene:
    """A scene of up to five objects over ``frames`` frames before a still background."""
    canvas = background(rng, noise, size)
    cast = Cast(rng, split, readable_colors(canvas))
    movers: list[_Mover] = []
    if frames >= _FEWEST_FOR_MOTION and rng.random() < 0.3:
        movers += _hider(rng, cast, size, frames)
    for _ in range(rng.choices((2, 3, 4, 5), (2, 3, 3, 2))[0] - len(movers)):
        mover = _mover(rng, cast, size, frames, movers)
        movers += [mover] if mover else []
    return _paint_clip(canvas, movers, rng, noise, frames, split)


def _mover(rng: random.Random, cast: Cast, size: tuple[int, int], frames: int, others: list[_Mover]) -> _Mover | None:
    look = cast.draw()
    names = list(MOTION_WEIGHT) if frames >= _FEWEST_FOR_MOTION else list(SIMPLE_MOTIONS)
    motion = rng.choices(names, [MOTION_WEIGHT[name] for name in names])[0]
    for _ in range(12):
        sized = "large" if motion in ("grow", "shrink") else rng.choices(("small", "medium", "large"), (4, 5, 1))[0]
        radius = random_radius(sized, min(size), rng)
        track = make_track(motion, Room(size, radius * KINDS[look.kind].reach, frames), rng)
        mover = _Mover(look, sized, radius, motion, track) if track else None
        if mover and all(_compatible(mover, other) for other in others):
            return mover
    return None


def _hider(rng: random.Random, cast: Cast, size: tuple[int, int], frames: int) -> list[_Mover]:
    """A small object that passes behind a larger one that stands still."""
    look, cover = cast.draw(), cast.draw()
    if confusable(look, cover):
        return []
    sized = rng.choice(("medium", "large"))
    radius, small = random_radius(sized, min(size), rng), random_radius("small", min(size), rng)
    anchor = make_track("still", Room(size, radius * KINDS[cover.kind].reach, frames), rng)
    for _ in range(8):
        if anchor:
            xy, reach = (float(anchor.xy[0, 0]), float(anchor.xy[0, 1])), radius * KINDS[cover.kind].reach
            track = pass_behind(Room(size, small * KINDS[look.kind].reach, frames), xy, reach, rng)
            if track:
                mover = _Mover(look, "small", small, "hide", track)
                return [mover, _Mover(cover, sized, radius, "still", anchor)]
        anchor = make_track("still", Room(size, radius * KINDS[cover.kind].reach, frames), rng)
    return []


def _compatible(mover: _Mover, other: _Mover) -> bool:
    """Objects of unlike colours may cross; two that stand still keep apart, and so do objects that look alike."""
    gap = nearest(mover.track, other.track)
    if gap > mover.reach + other.reach + 2:
        return True
    moving = {"drift", "return", "circle", "bounce", "hide", "enter", "leave"}
    return bool({mover.motion, other.motion} & moving) and not confusable(mover.look, other.look)


def _paint_clip(
    canvas: np.ndarray, movers: list[_Mover], rng: random.Random, noise: np.random.Generator, frames: int, split: Split
) -> DrawnScene:
    size = (canvas.shape[0], canvas.shape[1])
    sprites = [_sprites(mover, min(size), rng) for mover in movers]
    spots = [[(int(y // 1), int(x // 1)) for x, y in mover.track.xy] for mover in movers]
    outlines = np.zeros((len(movers), frames, *size), dtype=bool)
    for frame in range(frames):
        outlines[:, frame] = silhouettes([own[frame] for own in sprites], [own[frame] for own in spots], size)
    kept = _recognisable(movers, sprites, outlines, min(size))
    pictures = np.repeat(canvas[None], frames, axis=0)
    for index in kept:
        for picture, sprite, spot in zip(pictures, sprites[index], spots[index], strict=True):
            if sprite:
                lay(picture, sprite, spot)
    movers, outlines = [movers[index] for index in kept], outlines[kept]
    if rng.random() < 0.4:
        pictures = speckle(pictures, noise, rng.uniform(0.02, 0.08))
    things = tuple(Thing(m.look, m.size, m.radius, home_split(m.look) != "train", m.motion) for m in movers)
    paths = np.array([mover.track.xy for mover in movers]).reshape(-1, frames, 2)
    return DrawnScene(pictures, things, visible_parts(outlines), outlines, paths, split)


def _sprites(mover: _Mover, unit: int, rng: random.Random) -> list[Sprite | None]:
    """One sprite per frame, drawn once where the size stays; None where the object is not there."""
    style = random_style(mover.look, rng)
    drawn = {scale: draw(style, mover.radius * scale, unit, (0.5, 0.5)) for scale in set(mover.track.scale.tolist())}
    pairs = zip(mover.track.scale.tolist(), mover.track.present, strict=True)
    return [drawn[scale] if present else None for scale, present in pairs]


def _recognisable(
    movers: list[_Mover], sprites: list[list[Sprite | None]], outlines: np.ndarray, unit: int
) -> list[int]:
    """The objects that can be seen well where their motion needs it: at the start, at the end, and mostly between."""
    whole = np.array([[sprite.solid.sum() if sprite else 0 for sprite in own] for own in sprites])
    kept = list(range(len(movers)))
    while kept:
        visible = visible_parts(outlines[kept]).sum(axis=(2, 3))
        fine = [
            _well_seen(movers[k].motion, enough_in_sight(seen, whole[k], unit))
            for k, seen in zip(kept, visible, strict=True)
        ]
        if all(fine):
            break
        kept = [k for k, good in zip(kept, fine, strict=True) if good]
    return kept


def _well_seen(motion: str, seen: np.ndarray) -> bool:
    starts, ends = bool(seen[0]), bool(seen[-1])
    if motion in ("leave", "vanish"):
        return starts
    if motion in ("enter", "appear"):
        return ends
    return starts and ends and bool(seen.mean() >= (0.4 if motion == "hide" else 0.6))
