"""A run that is killed while it writes: whatever the moment, the last checkpoint loads, and the run goes on from it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sa2va import Sa2VAModel
from sa2va.train.checkpointing import last_checkpoint
from sa2va.train.config import SourceOptions, TrainConfig
from sa2va.train.losses import LossOptions
from sa2va.train.parsing import plain
from sa2va.train.run import TrainingRun, prepare, train
from sa2va.train.trainable import LoraOptions, TrainableOptions

TESTS = Path(__file__).parents[1]
STEPS, KILLS = 3, 6
#: What changes a folder, as Python reports it to audit hooks. Files that are written in Rust or C++ are not reported:
#: what lies between two events is as if the kill had come at the later one, with a file torn or not there.
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


@pytest.fixture
def settings(checkpoint: Callable[[str], Path], tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        report_to=(),
        model=str(checkpoint("iv25_qwen2")),
        output=str(tmp_path / "run"),
        data=(SourceOptions("rectangles:Rectangles", {"count": 8}),),
        trainable=TrainableOptions(lora=LoraOptions(rank=4, alpha=8, dropout=0.0)),
        loss=LossOptions(points=None),
        steps=STEPS,
        batch_size=1,
        accumulation=1,
        precision="fp32",
        checkpoint_activations=False,
        workers=0,
        save_every=1,
        keep=1,
    )


@pytest.mark.slow
def test_a_kill_at_any_moment_of_writing_leaves_a_checkpoint_that_loads(settings: TrainConfig, tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(plain(settings)))
    places = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, __file__, str(path)],
        env={**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=2400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kills = json.loads(done.stdout.splitlines()[-1])
    assert len(kills) == KILLS and {step for _, step in kills} > {1, 2}
    assert Sa2VAModel.from_pretrained(Path(settings.output)).dtype == torch.float32  # the last child was left alone


def in_a_child(run: TrainingRun, kill_at: int | None, watch: Callable[[int], None]) -> int:
    """Train in a fork that kills itself at an event of writing; returns the signal that ended it, or 0."""
    process = os.fork()
    if process:
        _, status = os.waitpid(process, 0)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    folder, count = str(run.config.output), 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        written = event in EVENTS[1:] or (event == "open" and isinstance(arguments[2], int) and arguments[2] & 3)
        if written and str(arguments[0]).startswith(folder):
            count += 1
            watch(count)
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        train(run, progress=False)
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)
    os._exit(0)


def main(path: str) -> None:
    """Kill one child after the other, and let the last one go on to the end."""
    torch.set_num_threads(1)
    run = prepare(TrainConfig.from_file(path))
    output, events = Path(run.config.output), Path(path).with_name("events")
    shown: dict[int, int] = {}

    def note(count: int) -> None:
        events.write_text(str(count))
        if last_checkpoint(output, 1) and not Path(f"{events}.first").exists():
            Path(f"{events}.first").write_text(str(count))

    assert in_a_child(run, None, note) == 0
    first, last = int(Path(f"{events}.first").read_text()), int(events.read_text())
    for number in range(KILLS):
        shutil.rmtree(output)
        moment = first + (last - first) * number // (KILLS - 1)
        assert in_a_child(run, moment, lambda _: None) == signal.SIGKILL, moment
        checkpoint = last_checkpoint(output, 1)
        assert checkpoint is not None, f"nothing is left of a run killed at event {moment} of {last}"
        Sa2VAModel.from_pretrained(checkpoint)
        shown[moment] = int(checkpoint.name.removeprefix("checkpoint-"))
    assert in_a_child(replace(run, config=replace(run.config, steps=STEPS + 1)), None, lambda _: None) == 0
    print(json.dumps(list(shown.items())))


if __name__ == "__main__":
    main(sys.argv[1])
