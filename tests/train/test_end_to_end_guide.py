"""docs/finetune.md as a newcomer would follow it: every Python block and every command, in order, in one folder."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sa2va
from sa2va.cli.commands import app

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "finetune.md"
TINY = ROOT / "src" / "sa2va" / "assets" / "tiny"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def model(checkpoint) -> str:
    """The embedded model; another one of its size where the package does not hold it yet."""
    return str(TINY if (TINY / "config.json").is_file() else checkpoint("iv25_qwen2"))


def run(command: str, model: str) -> str:
    words = [model if word == "tiny" else word for word in shlex.split(command, True)]
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception}"
    return result.output


@pytest.mark.slow
def test_the_guide_runs(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    monkeypatch.chdir(tmp_path)
    outputs, namespace = {}, {}
    for language, block in BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(block, str(GUIDE), "exec"), namespace)
            continue
        for line in block.strip().splitlines():
            outputs[line] = run(line, model)
    assert len(outputs) == 12 and namespace["answer"].text

    dry, trained, adapted = (text for line, text in outputs.items() if "train finetune" in line)
    assert "two steps went well" in dry and "Different from the recipe" in trained
    assert re.search(r"validation\W+None\W+0.2", trained) and "no LoRA:" in trained
    assert re.search(r"trainable.lora.rank\W+-\W+16", adapted)
    assert re.search(r"mask-folder\W+12\W+100\W+1\W+1,200", dry)  # pictures and views of each
    hints = [line for line in adapted.split("try it:")[1].splitlines() if line.strip().startswith("sa2va ")]
    assert [line.split()[1] for line in hints] == ["chat", "segment", "convert"] and "square" in hints[0]
    for line in hints:  # they can be copied as they are
        run(line, model)
    assert "held out for validation" in trained
    compared = outputs["sa2va eval compare scores/before scores/after"]
    assert "own/holdout-0.2" in compared and "ciou" in compared
    history = json.loads((tmp_path / "runs/mine/trainer_state.json").read_text())["log_history"]
    losses = [row["loss"] for row in history if "loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    assert (tmp_path / "preview.png").is_file() and (tmp_path / "tried" / "overlay.png").is_file()

    whole, merged, exported = (
        sa2va.Sa2VA.from_pretrained(tmp_path / name).segment("mine/images/03.png", "the red square", max_new_tokens=8)
        for name in ("runs/lora", "merged", "exported")
    )
    # A CPU run keeps float32; merging goes back to the base's own dtype, bfloat16, which rounds.
    for name, other in (("merged", merged), ("exported", exported)):
        assert other.raw_text == whole.raw_text, name
        for ours, theirs in zip(other.segments, whole.segments, strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=5e-3), name
            assert (ours.mask.array != theirs.mask.array).mean() < 1e-2
