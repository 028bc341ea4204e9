"""The main job on real files, without a download: phrases in; masks, overlays and JSON out.

    python examples/demo.py OUT_FOLDER

A small checkpoint in the released layout is made up on the spot. Its weights are synthetic, so the masks mean nothing;
what is shown is that a picture and a folder of frames go through the whole program and come out as files.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from sa2va.cli import main
from synthetic_checkpoint import write_checkpoint

HERE = Path(__file__).resolve().parent
WARNING = (
    "NOTE: the weights of this demo are synthetic: nobody trained them, so its masks and scores mean nothing.\n"
    "      For masks that mean something, give --model a released checkpoint (see: sa2va models)."
)


def run(*arguments: str) -> None:
    """Run one command as if typed, after showing it."""
    print(f"\n$ sa2va {shlex.join(arguments)}", flush=True)
    code = main(arguments)
    if code:
        sys.exit(code)


def demo(folder: Path) -> list[Path]:
    """Run everything into a folder. Returns the files written."""
    started = perf_counter()
    print(WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        model = str(write_checkpoint(Path(scratch) / "synthetic-sa2va"))
        # Few tokens and a high threshold: the synthetic model points at things without end, and at nearly every pixel.
        common = ["--max-new-tokens", "6", "--threshold", "0.9", "--model", model, "--device", "cpu", "--overwrite"]
        picture, clip = str(HERE / "picture.png"), str(HERE / "clip")
        phrases = ["the red car", "the dog"]
        kinds = ["--save", "overlay,masks,objects,json"]
        run("segment", picture, *phrases, "--out", str(folder / "picture"), *kinds, *common)
        run("track", clip, *phrases, "--out", str(folder / "clip"), "--save", "overlay,masks,json,jsonl", *common)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    print(f"\n{len(files)} files in {folder.resolve()}; look at picture/overlay.png and clip/overlay.mp4 first.")
    print(f"This took {perf_counter() - started:.1f} s.")
    print(WARNING)
    return files


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the results go; made if missing")
    demo(parser.parse_args().folder)
