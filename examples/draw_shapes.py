"""Draws the picture and the clip of the demo: scenes of the synthetic world's test split, which training never shows.

    python examples/draw_shapes.py OUT_FOLDER

writes ``shapes.png`` and ``shapes.mp4``, 256 x 256 pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from sa2va.tiny.synthetic import SyntheticWorld
from sa2va.writers.video_encoder import VideoEncoder

SEED, SIDE = 7, 256
PICTURE, CLIP, FRAMES, FPS = 2, 4, 24, 8


def draw(folder: Path) -> list[Path]:
    """Write both. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = SyntheticWorld("test", seed=SEED, size=SIDE, tasks={"refer": 1})[PICTURE].picture(0)
    Image.fromarray(picture).save(folder / "shapes.png", optimize=True)
    clip = SyntheticWorld("test", seed=SEED, size=SIDE, frames=FRAMES, tasks={"refer": 1})[CLIP]
    video = VideoEncoder(folder / "shapes.mp4", size=(SIDE, SIDE), fps=FPS)
    for frame in clip.pictures():
        video.write(frame)
    video.close()
    return [folder / "shapes.png", folder / "shapes.mp4"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the files go; made if missing")
    for path in draw(parser.parse_args().folder):
        print(path)
