"""Worker processes: the same answers, whoever gives them and whoever dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from stand_in import StandInSource

from sa2va.bulk.worker_pool import ModelSource
from sa2va.cli import main
from synthetic_checkpoint import picture

ROWS = 300


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pictures, and one that is broken; models are stand-ins, which tests/bulk must be importable for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sa2va.bulk.worker_pool.ModelSource", StandInSource)
    Path("pics").mkdir()
    for number in range(ROWS - 1):
        Image.fromarray(picture(24, 16, number)).save(f"pics/{number:03d}.png")
    Path("pics/broken.png").write_text("no picture")


def batch(*words: str) -> int:
    return main(["batch", "pics", "the dog", "-o", "out", "-m", os.path.abspath("asked"), "--workers", "2", *words])


def noted() -> list[list[str]]:
    return [line.split() for line in Path("asked").read_text().splitlines()] if Path("asked").exists() else []


@pytest.mark.slow
def test_a_worker_that_dies_leaves_its_rows_to_the_other(pictures, capsys):
    def kill() -> None:
        while len(noted()) < 40:
            time.sleep(0.01)
        os.kill(int(noted()[-1][1]), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert batch() == 0
    assert not killer.is_alive() and "a worker died (exit code -9)" in capsys.readouterr().err
    rows = [json.loads(line) for line in Path("out/answers.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(ROWS))
    assert Counter(row["error"] is None for row in rows) == {True: ROWS - 1, False: 1}
    assert len({line[1] for line in noted()}) == 2  # both worked


@pytest.mark.slow
def test_when_all_die_what_is_answered_is_kept(pictures, capsys):
    def kill() -> None:
        killed: set[str] = set()
        while len(killed) < 2:
            for line in noted()[-20:]:
                if len(noted()) > 150 and line[1] not in killed:
                    killed.add(line[1])
                    os.kill(int(line[1]), signal.SIGKILL)
            time.sleep(0.01)

    threading.Thread(target=kill, daemon=True).start()
    assert batch() == 1
    assert "every worker died" in capsys.readouterr().err
    before = len(noted())
    assert batch("--resume") == 0
    assert len(Path("out/answers.jsonl").read_text().splitlines()) == ROWS
    assert len(noted()) - before < ROWS


@pytest.mark.slow
def test_a_model_that_does_not_load_is_told(pictures, monkeypatch, capsys):
    monkeypatch.setattr("sa2va.bulk.worker_pool.ModelSource", ModelSource)
    assert main(["batch", "pics", "the dog", "-o", "out", "-m", "no-such-model", "--workers", "2"]) == 2
    assert "no-such-model" in capsys.readouterr().err
