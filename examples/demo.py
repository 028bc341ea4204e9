"""The main job on real files, without a download: phrases and questions in; text, masks and overlays out.

    python examples/demo.py OUT_FOLDER

It uses ``tiny``, the checkpoint inside the package, on scenes that its training never showed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from time import perf_counter

from sa2va.cli import main
from sa2va.zoo import TINY

HERE = Path(__file__).resolve().parent
PHRASES = ("the yellow cloud", "something with wheels", "the letter Z")
QUESTION = "What color is the car?"
FOLLOWED = ("the orange hat",)


def run(*arguments: str) -> None:
    """Run one command as if typed, after showing it."""
    print(f"\n$ sa2va {shlex.join(arguments)}", flush=True)
    code = main(arguments)
    if code:
        sys.exit(code)


def demo(folder: Path) -> list[Path]:
    """Run everything into a folder. Returns the files written."""
    started = perf_counter()
    common = ["--model", "tiny", "--device", "cpu"]
    picture, clip = str(HERE / "shapes.png"), str(HERE / "shapes.mp4")
    kinds = ["--save", "overlay,masks,objects,json", "--overwrite"]
    run("segment", picture, *PHRASES, "--out", str(folder / "picture"), *kinds, *common)
    run("chat", picture, QUESTION, *common)
    kinds = ["--save", "overlay,masks,json,jsonl", "--overwrite"]
    run("track", clip, *FOLLOWED, "--out", str(folder / "clip"), *kinds, *common)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    print(f"\n{len(files)} files in {folder.resolve()}; look at picture/overlay.png and clip/overlay.mp4 first.")
    print(f"This took {perf_counter() - started:.1f} s. What tiny can do yet and what not: {TINY / 'README.md'}")
    print("For photographs take a released checkpoint: sa2va models")
    return files


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the results go; made if missing")
    demo(parser.parse_args().folder)
