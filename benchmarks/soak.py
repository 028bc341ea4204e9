"""Whether a process that works for long stays as it is: resident memory and open handles over many calls.

    python benchmarks/soak.py                          # 2,000 calls and 200 trackers of the packaged tiny
    python benchmarks/soak.py --calls 200 --trackers 20

Calls ask for a mask or chat, in turn, about small pictures; each tracker follows a phrase through ten frames and is
dropped. Exits with 1 where memory grows by more than a tenth after the first quarter, or a handle is left.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

from sa2va import Sa2VA
from sa2va.tiny.synthetic import SyntheticWorld

SIDE, FRAMES, SHOTS = 64, 10, 20
MOST_GROWTH = 1.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--trackers", type=int, default=200)
    options = parser.parse_args()
    sa2va = Sa2VA.from_pretrained(options.model)
    world = SyntheticWorld("train", seed=5, size=SIDE, length=SHOTS)
    pictures = [world[index].picture(0) for index in range(SHOTS)]
    clip = list(SyntheticWorld("train", seed=5, size=SIDE, frames=FRAMES)[0].pictures())

    def call(number: int) -> None:
        picture = pictures[number % SHOTS]
        if number % 2:
            sa2va.chat(picture, "What color is the star?", max_new_tokens=8)
        else:
            sa2va.segment(picture, ["the star", "the red house"], max_new_tokens=16)

    def track(_: int) -> None:
        tracker = sa2va.stream("the star")
        for pixels in clip:
            tracker.step(pixels)

    print("| work | done | resident, MB | open handles |\n|---|---|---|---|")
    steady = [watch("calls", options.calls, call), watch("trackers", options.trackers, track)]
    return int(not all(steady))


def watch(name: str, count: int, work: Callable[[int], None]) -> bool:
    """Do the work so often, and tell memory and handles at the start and at each quarter. Returns whether they stay."""
    rows = [tell(name, 0)]
    for number in range(count):
        work(number)
        if (number + 1) % max(1, count // 4) == 0:
            rows.append(tell(name, number + 1))
    (_, handles), (settled, _), (last, left) = rows[0], rows[1], rows[-1]
    return last <= settled * MOST_GROWTH and left <= handles


def tell(name: str, done: int) -> tuple[float, int]:
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    handles = len(os.listdir("/proc/self/fd"))
    print(f"| {name} | {done} | {resident:.0f} | {handles} |", flush=True)
    return resident, handles


if __name__ == "__main__":
    sys.exit(main())
