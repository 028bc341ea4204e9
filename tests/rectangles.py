"""A data source for the tests: coloured rectangles on grey, one to three per picture, and now and then only text."""

from __future__ import annotations

import numpy as np

from sa2va.data.sample import Sample
from sa2va.results.history import Turn

COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 230)}


class Rectangles:
    """Sample ``i`` is a function of ``i``.

    Args:
        count: of samples. frames: more than one makes clips in which everything moves to the right.
        text_every: every so many samples there is no picture; 0 for never.
        height, width: of the pictures.
    """

    def __init__(self, count: int = 64, frames: int = 1, text_every: int = 0, height: int = 48, width: int = 64):
        self.count, self.frames, self.text_every = count, frames, text_every
        self.height, self.width = height, width

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if self.text_every and index % self.text_every == self.text_every - 1:
            return Sample(f"text-{index}", (), (Turn(f"How much is {index}?", f"It is {index}."),), source="rectangles")
        rng = np.random.default_rng(index)
        frames = np.full((self.frames, self.height, self.width, 3), 128, np.uint8)
        names = list(COLORS)[: 1 + index % 3]
        masks = np.zeros((len(names), self.frames, self.height, self.width), bool)
        for mask, name in zip(masks, names, strict=True):
            top, left = rng.integers(0, self.height - 12), rng.integers(0, self.width - 16)
            for number in range(self.frames):
                mask[number, top : top + 12, left + number : left + number + 16] = True
                frames[number][mask[number]] = COLORS[name]
        for lower in range(len(names)):  # later ones cover earlier ones
            masks[lower] &= ~masks[lower + 1 :].any(axis=0)
        return Sample(
            id=f"rectangles-{index}",
            frames=tuple(frames),
            turns=tuple(Turn(f"Segment the {name} one.", "Sure, [SEG].") for name in names),
            masks=tuple(masks),
            video=self.frames > 1,
            source="rectangles",
        )
