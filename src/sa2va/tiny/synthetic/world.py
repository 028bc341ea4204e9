"""The synthetic world as a data source: sample ``i`` is a function of split, seed and ``i``, and of nothing else."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sa2va.data.sample import Sample
from sa2va.tiny.synthetic.clip import clip_scene
from sa2va.tiny.synthetic.dialogs import CLIP_MIX, PICTURE_MIX, TASKS, Answers, Dialog, Writer
from sa2va.tiny.synthetic.drawn_scene import DrawnScene
from sa2va.tiny.synthetic.facts import Facts
from sa2va.tiny.synthetic.mentions import mentions
from sa2va.tiny.synthetic.picture import picture_scene
from sa2va.tiny.synthetic.splits import SPLITS, Split

_PICTURE_ONLY = ("region", "text")
_MOST_ATTEMPTS = 200  # a scene that allows no turn of its task is drawn anew; in practice a few times at most


@dataclass(frozen=True)
class SyntheticWorld:
    """An endless supply of pictures or clips with conversations, by random access.

    Targets of ``val`` and ``test`` show combinations of kind, colour and texture that training never does, and what is
    hard to find or to answer is asked for more often in ``train``.

    Attributes:
        split: ``"train"``, ``"val"`` or ``"test"``.
        seed: another seed is another world with the same rules.
        size: side in pixels, or (height, width).
        frames: 1 for pictures, more for clips; from 5 on, objects also turn, circle, bounce, grow and hide.
        tasks: weight of each task, see ``dialogs.TASKS``; empty for the default mix of pictures or clips.
        phrases: most turns in a conversation of one kind of request.
        answers: ``"fixed"``: always "Sure, [SEG].", ``"pool"``: all released forms.
        crowd: pictures hold a dozen objects and more, as many as find room: many names and masks for one picture.
        distant: most objects of pictures are small, down to half as large as otherwise: for pictures cut into tiles.
        length: number of samples.

    Raises:
        ValueError: an argument is out of its range.
    """

    split: Split
    seed: int = 0
    size: int | tuple[int, int] = 128
    frames: int = 1
    tasks: Mapping[str, float] = field(default_factory=dict)
    phrases: int = 6
    answers: Answers = "fixed"
    crowd: bool = False
    distant: bool = False
    length: int = 1_000_000

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {self.split!r}")
        if min(self.shape) < 32:
            raise ValueError(f"size must be at least 32 pixels, got {self.size}")
        if self.frames < 1 or self.phrases < 1 or self.length < 1:
            raise ValueError(
                f"frames, phrases and length must be at least 1, got {self.frames}, {self.phrases}, {self.length}"
            )
        if self.answers not in ("fixed", "pool"):
            raise ValueError(f'answers must be "fixed" or "pool", got {self.answers!r}')
        if (self.crowd or self.distant) and self.frames > 1:
            raise ValueError(f"only pictures can be crowded or distant, got frames={self.frames}")
        allowed = [task for task in TASKS if self.frames == 1 or task not in _PICTURE_ONLY]
        wrong = [task for task, weight in self.tasks.items() if task not in allowed or weight < 0]
        if wrong or (self.tasks and not sum(self.tasks.values())):
            raise ValueError(f"tasks must give weights to some of {allowed}, got {dict(self.tasks)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the frames."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return height, width

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, the same whenever and wherever it is asked for; IndexError beyond the length."""
        return self.pair(index)[0]

    def scene(self, index: int) -> DrawnScene:
        """The scene behind sample ``index``: every object with its look, place, motion and masks."""
        return self.pair(index)[1]

    def pair(self, index: int) -> tuple[Sample, DrawnScene]:
        """Sample and scene at once."""
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is outside of 0..{self.length - 1}")
        weights = self.tasks or (PICTURE_MIX if self.frames == 1 else CLIP_MIX)
        rng = random.Random(f"{self.split}/{self.seed}/{index}")
        task = rng.choices(list(weights), list(weights.values()))[0]
        for _ in range(_MOST_ATTEMPTS):
            scene = self._scene(rng)
            facts = Facts(scene)
            dialog = Writer(facts, rng, self.phrases, self.answers).write(task) if scene.things else Dialog()
            if dialog.turns:
                return self._sample(index, task, facts, dialog), scene
        raise AssertionError(f"no scene allows task {task!r} for sample {index} of {self}")

    def _scene(self, rng: random.Random) -> DrawnScene:
        noise = np.random.default_rng(rng.getrandbits(63))
        if self.frames == 1:
            return picture_scene(rng, noise, self.split, self.shape, self.crowd, self.distant)
        return clip_scene(rng, noise, self.split, self.shape, self.frames)

    def _sample(self, index: int, task: str, facts: Facts, dialog: Dialog) -> Sample:
        scene, seen = facts.scene, task != "text"
        return Sample(
            id=f"{self.split}-{self.seed}-{index}",
            frames=tuple(scene.frames) if seen else (),
            turns=tuple(dialog.turns),
            masks=tuple(dialog.masks),
            video=self.frames > 1,
            regions=tuple(dialog.regions),
            source=f"synthetic/{task}",
            tags=tuple(dialog.tags),
            extras={"objects": scene.masks, "mentions": mentions(facts, dialog.turns)} if seen else {},
        )
