"""Draws the picture of the README: the demo's scene and three frames of its clip, and below them what was found.

python examples/draw_demo.py docs/images/demo.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from demo import FOLLOWED, HERE, PHRASES
from sa2va import Answer, Sa2VA
from sa2va.visualization.overlay import ClipOverlay, contact_sheet

FRAMES = (2, 12, 20)


def draw(path: Path) -> None:
    """Ask ``tiny`` what the demo asks, and write one sheet."""
    model = Sa2VA.from_pretrained("tiny", device="cpu")
    picture = Image.open(HERE / "shapes.png").convert("RGB")
    answers = model.segment(picture, PHRASES)
    found = Answer("", "", tuple(segment for answer in answers for segment in answer.segments))
    plain, marked = [np.asarray(picture)], [np.asarray(found.draw(picture))]
    clip = ClipOverlay()
    with model.track(HERE / "shapes.mp4", FOLLOWED) as track:
        for frame, pixels in track.pairs():
            assert pixels is not None
            shown = clip.draw(pixels, frame.segments)
            if frame.index in FRAMES:
                plain.append(pixels)
                marked.append(np.asarray(shown))
    contact_sheet([*plain, *marked], columns=len(plain)).save(path, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("path", type=Path, help="the PNG to write")
    draw(parser.parse_args().path)
