"""Hard clips of the synthetic world as benchmarks: what becomes of an object that is lost, mistaken, or never there.

Clips are drawn when they are asked about and again when they are scored, so that only one is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from sa2va.eval.benchmark import BenchmarkSpec, Expected, Item, Kind, Prediction, Query, Scores, require_all
from sa2va.eval.track_metrics import LEAST_ABSENCE, MATCH, TrackOutcome, track_outcome
from sa2va.masks.mask import Mask
from sa2va.tiny.synthetic.hard_clip import HardClip, HardKind, hard_clip
from sa2va.tiny.synthetic.wording import VIDEO_REQUEST

#: Seed of the clips; no other benchmark draws with it.
SEED = 2411
SIDE = 128
#: Frames of the clips of a kind where objects are lost, and of other kinds; short ones come first, for a first look.
_LONG, _SHORTER = (60, 60, 60, 90, 120, 300), (60, 60, 60, 90, 120, 180)


@dataclass(frozen=True)
class HardBenchmark:
    """One kind of hard clip.

    Attributes:
        name: as in ``Benchmark``. clips: what they are. lengths: frames of each clip.
    """

    name: str
    clips: HardKind
    lengths: tuple[int, ...]
    kind: Kind = "segment"
    submission: bool = False

    @property
    def protocol(self) -> str:
        """What is asked and how it is counted."""
        return (
            f"{len(self.lengths)} drawn clips of {min(self.lengths)} to {max(self.lengths)} frames of {SIDE} x {SIDE} "
            f"pixels (seed {SEED}): {_TITLES[self.clips].lower()}. The union of all masks of an answer against the "
            "object that is meant. J&F: as DAVIS counts, means over all frames, then over requests. J&F reappeared: "
            f"over the frames in which the object is in sight again after at least {LEAST_ABSENCE} frames out of "
            "sight. False positives: share of the frames without the object that have a mask. Swaps: how often a mask "
            f"goes over to another object (IoU of at least {MATCH} with it), per request. N-acc: share of the requests "
            "for what is never there that are answered without any mask. What a clip has no case of is left out."
        )

    def limited(self, count: int) -> HardBenchmark:
        """The first ``count`` clips."""
        return replace(self, lengths=self.lengths[:count])

    def clip(self, index: int) -> HardClip:
        """Draw one clip."""
        return hard_clip(self.clips, index, self.lengths[index], seed=SEED, side=SIDE)

    def items(self) -> Sequence[Item]:
        """One item per clip, whose frames are drawn when they are asked for."""
        return self._items

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        return tuple(self._item(index) for index in range(len(self.lengths)))

    def _item(self, index: int) -> Item:
        number = f"{self.name}/{index}"
        queries = tuple(
            Query(
                f"{number}/{place}",
                VIDEO_REQUEST.format(phrase),
                "" if target is not None else "absent",
                phrase=phrase,
            )
            for place, (phrase, target) in enumerate(self.clip(index).requests)
        )
        return Item(number, self._frames(index), video=True, size=(SIDE, SIDE), queries=queries)

    def _frames(self, index: int) -> Callable[[], list[np.ndarray]]:
        return lambda: list(self.clip(index).scene.frames)

    def score(self, predictions: Mapping[str, Prediction]) -> Scores:
        """See ``Benchmark``."""
        require_all(self.name, [query.id for item in self.items() for query in item.queries], predictions)
        outcomes: dict[str, TrackOutcome | bool] = {}
        for index, item in enumerate(self.items()):
            clip = self.clip(index)
            for query, (_, target) in zip(item.queries, clip.requests, strict=True):
                found = _union(predictions[query.id], clip.scene.frames.shape[:3])
                outcomes[query.id] = (
                    not found.any() if target is None else track_outcome(found, clip.scene.masks, target)
                )
        return Scores(
            values=_summary(list(outcomes.values())),
            groups={},
            samples={one: float(o) if isinstance(o, bool) else o.jf for one, o in outcomes.items()},
            headline="n_acc" if self.clips == "absent" else "j&f",
        )

    def pack(self, predictions: Mapping[str, Prediction], path: Path) -> Path:
        """There is no server for it: always raises ValueError."""
        raise ValueError(f"{self.name} is scored here; only server benchmarks are packed")

    def expected(self, query_id: str) -> Expected:
        """The truth of one query."""
        for index, item in enumerate(self.items()):
            for place, query in enumerate(item.queries):
                if query.id == query_id:
                    clip = self.clip(index)
                    target = clip.requests[place][1]
                    masks = () if target is None else tuple(map(Mask.from_array, clip.scene.masks[target]))
                    return Expected("", (masks,) if masks else ())
        raise ValueError(f"{self.name} has no query {query_id!r}")


def _union(prediction: Prediction, shape: tuple[int, ...]) -> np.ndarray:
    """All masks of an answer, bool (F, H, W)."""
    union = np.zeros(shape, bool)
    for masks in prediction.masks:
        if len(masks) != len(union) or any(mask.size != union.shape[1:] for mask in masks):
            raise ValueError(
                f"{prediction.id}: expected masks of {len(union)} frames of {union.shape[1:]} (h, w), got {len(masks)} "
                f"of {sorted({mask.size for mask in masks})}"
            )
        for frame, mask in zip(union, masks, strict=True):
            frame |= mask.array
    return union


def _summary(outcomes: Sequence[TrackOutcome | bool]) -> dict[str, float]:
    """Means over requests; false positives over frames. A value without a single case is left out."""
    tracks = [one for one in outcomes if not isinstance(one, bool)]
    silent = [one for one in outcomes if isinstance(one, bool)]
    values: dict[str, float] = {}
    if silent:
        values["n_acc"] = float(np.mean(silent))
    if tracks:
        j, f = (float(np.mean([getattr(one, name) for one in tracks])) for name in ("j", "f"))
        values |= {"j&f": (j + f) / 2, "j": j, "f": f}
        again = [one.reappeared for one in tracks if one.reappeared is not None]
        if again:
            values["j&f_reappeared"] = float(np.mean(again))
        if absent := sum(one.absent for one in tracks):
            values["false_positives"] = sum(one.false for one in tracks) / absent
        values["swaps"] = float(np.mean([one.swaps for one in tracks]))
    return values


_TITLES: dict[HardKind, str] = {
    "return": "Objects that leave the picture and return",
    "occlusion": "Objects that rest behind another, out of sight",
    "look-alikes": "Look-alikes that cross",
    "late": "Objects that enter late",
    "absent": "One object that is there, and one that never is",
    "fast": "Fast objects",
    "camera": "A camera that pans and shakes",
    "four": "Four objects at once",
    "sixteen": "Sixteen objects at once",
}
#: Clips of many objects cost many times more to follow, so there are fewer.
_CLIP_LENGTHS: dict[HardKind, tuple[int, ...]] = {
    **dict.fromkeys(("return", "occlusion", "look-alikes", "late"), _LONG),
    **dict.fromkeys(("absent", "fast", "camera"), _SHORTER),
    "four": (60, 60, 120),
    "sixteen": (60, 60),
}


def hard_benchmark(clips: HardKind) -> HardBenchmark:
    """A benchmark of hard clips.

    Args:
        clips: ``"return"``, ``"occlusion"``, ``"look-alikes"``, ``"late"``, ``"absent"``, ``"fast"``, ``"camera"``,
            ``"four"`` or ``"sixteen"``.

    Raises:
        ValueError: there are no such clips.
    """
    if clips not in _TITLES:
        raise ValueError(f"expected a kind of clip of {list(_TITLES)}; got {clips!r}")
    return HardBenchmark(f"synthetic-hard/{clips}", clips, _CLIP_LENGTHS[clips])


def _row(clips: HardKind) -> BenchmarkSpec:
    name = f"synthetic-hard/{clips}"
    return BenchmarkSpec(name, lambda root: hard_benchmark(clips), lambda root: {}, title=_TITLES[clips])


HARD_ROWS: dict[str, BenchmarkSpec] = {row.name: row for row in map(_row, _TITLES)}
