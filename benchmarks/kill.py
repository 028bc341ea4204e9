"""Kills every long command at random moments, and checks what it leaves and that the next run makes good.

    python benchmarks/kill.py                             # 40 moments of each command, half SIGKILL, half SIGINT
    python benchmarks/kill.py track-file eval --moments 10 --seed 1
    python benchmarks/kill.py --process --moments 4       # whole processes, their imports too; slower

Commands run on the packaged tiny and inputs drawn here, each in a fork of this process, so that the moments fall into
its work and not into imports. After a kill no file under a final name may be damaged; SIGINT must end the command
within ten seconds, with exit code 130 and no traceback; and the same command given again must succeed, leave no
temporary file that it does not name, and end with what an undisturbed run ends with. Exits with 1 where one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from sa2va.checkpoint.files import open_shard
from sa2va.cli import main as sa2va
from sa2va.data.datasets.interchange import write_chat
from sa2va.tiny.synthetic import SyntheticWorld
from sa2va.writers.video_encoder import VideoEncoder

SIDE, FRAMES, SAMPLES = 64, 12, 8
#: Seconds in which SIGINT ends a command, and in which any command ends by itself.
PATIENCE, LONGEST = 10, 600
#: Entries of records that differ between equal runs: times, and that a checkpoint was the last before training stopped.
TIMES = {
    "should_training_stop",
    "seconds",
    "output",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
}


@dataclass(frozen=True)
class Command:
    """A command of the CLI, run in an empty folder.

    Attributes:
        words: as typed; ``{inputs}`` is the folder of the inputs.
        again: added when it is given again over whatever a killed one left.
        first: a command that is run before, undisturbed.
        ended: what is there when a killed one had done everything, and is not done again over itself.
    """

    words: str
    again: str = ""
    first: str = ""
    ended: str = "nothing"


TRAINED = "report_to=[] steps=3 save_every=1 batch_size=1 accumulation=1 workers=0 keep=2"
COMMANDS = {
    "track-file": Command("track {inputs}/clip.mp4 star -m tiny -o out.mp4", "--overwrite"),
    "track-folder": Command("track {inputs}/clip.mp4 star -m tiny -o out --save overlay,masks,json,jsonl", "--resume"),
    "segment": Command(
        "segment {inputs}/chat_images star house -m tiny -o out --save overlay,masks,objects,json", "--overwrite"
    ),
    "eval": Command("eval tiny synthetic/refer --limit 6 -o out"),
    "report": Command("eval report out", first="eval tiny synthetic/refer --limit 3 -o out"),
    "train": Command(f"train finetune --data {{inputs}} -m tiny -o out {TRAINED}"),
    "convert": Command("convert tiny out", ended="out"),
    "preview": Command("data preview {inputs} -o sheet.png"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(COMMANDS)}; by default all")
    parser.add_argument("--moments", type=int, default=40, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--process", action="store_true", help="start whole processes instead of forks")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has its jobs in the background ignore
    start = in_a_process if options.process else in_a_fork
    if not options.process:
        warm_up()
    failures = 0
    print("| command | seconds | SIGKILL | SIGINT | ended before | longest to SIGINT, s | failures |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        inputs = draw(Path(folder) / "inputs")
        for name in options.commands or COMMANDS:
            failures += try_command(name, Path(folder), inputs, start, options.moments, random.Random(options.seed))
    return int(failures > 0)


def draw(folder: Path) -> Path:
    """A chat set and a clip."""
    folder.mkdir()
    world = SyntheticWorld("train", seed=3, size=SIDE, tasks={"refer": 1}, phrases=1, length=SAMPLES)
    write_chat((world[index] for index in range(SAMPLES)), folder / "chat.jsonl")
    video = VideoEncoder(folder / "clip.mp4", size=(SIDE, SIDE), fps=8)
    for pixels in SyntheticWorld("train", seed=3, size=SIDE, frames=FRAMES, tasks={"refer": 1})[0].pictures():
        video.write(pixels)
    video.close()
    return folder


def warm_up() -> None:
    """Import what the commands import, so that forks need not."""
    import sa2va.checkpoint.conversion
    import sa2va.cli.output
    import sa2va.data.preview
    import sa2va.eval.report
    import sa2va.eval.score
    import sa2va.predictor
    import sa2va.train.callbacks
    import sa2va.train.presets
    import sa2va.train.trainer
    import sa2va.writers  # noqa: F401


def try_command(
    name: str,
    folder: Path,
    inputs: Path,
    start: Callable[[list[str], Path], Child],
    moments: int,
    rng: random.Random,
) -> int:
    command = COMMANDS[name]
    first, words, again = (text.format(inputs=inputs).split() for text in (command.first, command.words, command.again))

    def fresh() -> Path:
        place = folder / "work"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if first and start(first, place).wait(LONGEST) != 0:
            raise SystemExit(f"{name}: the command before it failed")
        return place

    place = fresh()
    began = time.monotonic()
    child = start(words, place)
    if child.wait(LONGEST) != 0:
        raise SystemExit(f"{name} fails undisturbed: {child.output()}")
    duration, expected = time.monotonic() - began, results(place)
    counts, before, longest, failures = {signal.SIGKILL: 0, signal.SIGINT: 0}, 0, 0.0, []
    for number in range(moments):
        sent = (signal.SIGKILL, signal.SIGINT)[number % 2]
        place, moment = fresh(), rng.uniform(0, duration)
        child = start(words, place)
        time.sleep(moment)
        child.send(sent)
        began = time.monotonic()
        code = child.wait(LONGEST)
        took = time.monotonic() - began
        counts[sent] += 1
        before += code == 0
        longest = max(longest, took if sent == signal.SIGINT else 0)
        trouble = damaged(place)
        if sent == signal.SIGINT and (code not in (0, 130) or took > PATIENCE or "Traceback" in child.output()):
            trouble.append(f"exit code {code} after {took:.1f} s: {child.output()[-1500:]}")
        if not (place / command.ended).exists():
            child = start([*words, *again], place)
            if child.wait(LONGEST) != 0:
                trouble.append(f"the next run failed: {child.output()[-1500:]}")
            else:
                trouble += differences(expected, results(place))
                trouble += [f"{path} is left" for path in hidden(place) if path.name not in child.output()]
        failures += [f"{name}, {sent.name} after {moment:.2f} s of {duration:.2f}: {line}" for line in trouble]
    killed, interrupted = counts.values()
    print(
        f"| {name} | {duration:.1f} | {killed} | {interrupted} | {before} | {longest:.1f} | {len(failures)} |",
        flush=True,
    )
    for line in failures:
        print(line, file=sys.stderr, flush=True)
    return len(failures)


# -- processes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Child:
    """A running command; its output goes to a file."""

    process: int
    log: Path

    def send(self, number: int) -> None:
        os.kill(self.process, number)

    def wait(self, seconds: float) -> int:
        """Its exit code, or the negative number of the signal that ended it."""
        end = time.monotonic() + seconds
        while True:
            done, status = os.waitpid(self.process, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                os.kill(self.process, signal.SIGKILL)
                raise SystemExit(f"a command did not end in {seconds} s: {self.output()}")
            time.sleep(0.002)

    def output(self) -> str:
        return self.log.read_text(errors="replace")


def in_a_fork(words: list[str], place: Path) -> Child:
    log = place.with_name("log")
    sys.stdout.flush()
    child = os.fork()
    if child:
        return Child(child, log)
    # Whatever happens here, this copy of the script must not go on.
    try:
        handle = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.chdir(place)
        code = sa2va(words)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def in_a_process(words: list[str], place: Path) -> Child:
    log = place.with_name("log")
    with log.open("w") as out:
        started = subprocess.Popen([sys.executable, "-m", "sa2va.cli", *words], cwd=place, stdout=out, stderr=out)
    return Child(started.pid, log)


# -- results -----------------------------------------------------------------------------------------------------------


def visible(place: Path) -> list[Path]:
    paths = (path for path in sorted(place.rglob("*")) if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(place).parts)]


def hidden(place: Path) -> list[Path]:
    return [path for path in place.rglob(".*")]


def damaged(place: Path) -> list[str]:
    """Files that are not whole. Lines that end without a line break are as if they had never been."""
    found = []
    for path in visible(place):
        if path.parent.name.startswith("checkpoint-"):
            continue  # whole when its last file is there: the next run tells
        try:
            read(path)
        except Exception as error:
            found.append(f"{path.relative_to(place)} is damaged: {type(error).__name__}: {error}")
    return found


def results(place: Path) -> dict[str, object]:
    """What a run ended with, by file."""
    return {str(path.relative_to(place)): read(path) for path in visible(place)}


def read(path: Path) -> object:
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [
            timeless(json.loads(line)) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")
        ]
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    if path.suffix in (".png", ".jpg"):
        with Image.open(path) as picture:
            return np.asarray(picture)
    if path.suffix == ".safetensors":
        return {name: tensor.read().float().numpy() for name, tensor in open_shard(path).items()}
    return path.read_bytes() if path.suffix in (".md", ".html") else None


def timeless(value: object) -> object:
    if isinstance(value, dict):
        return {key: timeless(own) for key, own in value.items() if key not in TIMES}
    return [timeless(own) for own in value] if isinstance(value, list) else value


def differences(expected: dict[str, object], found: dict[str, object]) -> list[str]:
    lines = [f"{name} is missing" for name in expected.keys() - found.keys()]
    lines += [f"{name} is there" for name in found.keys() - expected.keys()]
    return lines + [
        f"{name} differs" for name in expected.keys() & found.keys() if not same(expected[name], found[name])
    ]


def same(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        # x264 with several threads does not always choose the same bits.
        close = one.ndim == 4 and one.dtype == np.uint8 and np.abs(one.astype(int) - other).mean() < 5
        return one.shape == other.shape and (np.array_equal(one, other) or bool(close))
    return one == other


if __name__ == "__main__":
    sys.exit(main())
