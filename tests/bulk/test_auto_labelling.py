"""docs/bulk.md, from pictures to a trained model: every block and every command of the section, in order."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sa2va.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "bulk.md"
BLOCK = re.compile(r"^```(python|py|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_walk_through_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    section = PAGE.read_text(encoding="utf-8").split("## From pictures to a trained model")[1].split("\n## ")[0]
    space: dict[str, Any] = {}
    commands = 0
    for language, block in BLOCK.findall(section):
        if language == "bash":
            for line in block.strip().splitlines():
                assert main(shlex.split(line)[1:]) == 0, line
                commands += 1
        else:
            exec(compile(block, str(PAGE), "exec"), space)
    assert commands == 6

    # What was found is what was drawn, and three readers agree on it.
    truth, dataset = space["truth"], space["dataset"]
    assert len(truth.anns) > 15 and len(truth.imgs) == 12
    assert sum(len(found) for _, _, found in dataset) == len(truth.anns)
    for annotation in truth.anns.values():
        name = truth.imgs[annotation["image_id"]]["file_name"]
        picture = Image.open(Path("labelled/coco/images") / name).convert("RGB")
        color = space["COLORS"][annotation["phrase"].split()[1]]
        drawn = [value == color for value in picture.get_flattened_data()]
        mask = truth.annToMask(annotation).ravel()
        both = sum(here and there for here, there in zip(drawn, mask.tolist(), strict=True))
        assert both / (sum(drawn) + mask.sum() - both) > 0.8

    scores = {}
    for run in ("before", "after"):
        (path,) = Path("scores", run).rglob("scores.json")
        scores[run] = json.loads(path.read_text())["values"]["ciou"]
    assert scores["before"] > 0.99  # the teacher agrees with itself
    assert 0.5 < scores["after"] < scores["before"]
