"""``run.json`` of a video run: its request and progress, stored next to its results, so that it can be resumed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sa2va.atomic import RUN_RECORD
from sa2va.untrusted import STUMBLES, parse_json
from sa2va.writers.picture_files import write_json

#: Entries that must agree for the old frames and the new ones to belong together.
_SAME = ("source", "frames_total", "size", "model", "phrases", "settings")


@dataclass
class RunRecord:
    """A video run as JSON-ready values.

    Attributes:
        source, model, phrases, settings: what was asked.
        size: (height, width). frames_total: frames of the video, as sampled.
        frames: frames written. complete: whether that is all. seconds: of the last run.
        reasons: for each phrase that nothing is followed for, why.
        objects: ``{"id", "phrase", "frames": frames it is seen in, "score": mean over the frames it was tracked in,
            "color": [r, g, b] of its overlay}``.
        outputs: names of the results.
    """

    sa2va: str
    source: str
    model: str
    phrases: list[str]
    settings: dict[str, Any]
    size: list[int]
    frames_total: int | None
    frames: int = 0
    complete: bool = False
    seconds: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)
    objects: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    @property
    def found_anything(self) -> bool:
        """Whether an object was seen in any frame."""
        return any(row["frames"] for row in self.objects)

    def write(self, folder: Path) -> None:
        """Put the record into a folder."""
        write_json(folder / RUN_RECORD, vars(self))

    def earlier(self, folder: Path) -> RunRecord | None:
        """The record of the run to resume; None where there is nothing to go on with.

        Raises:
            ValueError: the folder holds something else, or a run that was asked something else.
        """
        path = folder / RUN_RECORD
        if not path.exists():
            if folder.exists() and any(folder.iterdir()):
                raise ValueError(f"{folder} holds no run to resume ({RUN_RECORD} is missing); choose another folder")
            return None
        try:
            found = RunRecord(**parse_json(path.read_bytes()))
        except STUMBLES as error:
            raise ValueError(f"{path} is not the record of a run: {error}") from error
        ours, theirs = json.loads(json.dumps(vars(self))), vars(found)
        for name in _SAME:
            if ours[name] != theirs[name]:
                raise ValueError(
                    f"{folder} is the result of another run: {name} was {theirs[name]}, now it is {ours[name]}; "
                    "give the same options to resume, or start over with --overwrite"
                )
        return found
