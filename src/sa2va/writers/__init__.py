"""Write a track to files while it is computed: one writer per kind of output, all with the same three calls.

A writer is a context manager with ``write(frame, pixels)``. Outputs that are one file appear whole at the end
(``close``) or not at all (``abort``); folders and JSON lines grow in place by whole frames, and can be resumed. Leaving
the block by Ctrl-C closes with ``partial=True``: what was written so far is kept and valid. An error aborts.

To resume, make the writer with ``resume=True`` on the same path: ``done`` then holds the indices of the frames that are
complete, and ``write`` passes over those, so a run may simply start again from the first frame.

``CocoWriter`` collects the results of many pictures and videos as one data set instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from sa2va.results.answer import Frame
from sa2va.writers.coco_dataset import CocoWriter
from sa2va.writers.folders import CutoutWriter, ObjectsWriter, PaletteWriter
from sa2va.writers.frame_writer import FramePairs, FrameWriter
from sa2va.writers.json_files import JsonLinesWriter, JsonWriter
from sa2va.writers.video_encoder import VIDEO_SUFFIXES, VideoEncoder
from sa2va.writers.videos import BinaryWriter, CutoutVideoWriter, OverlayWriter

WRITERS: dict[str, type[FrameWriter]] = {
    "overlay": OverlayWriter,
    "masks": PaletteWriter,
    "binary": BinaryWriter,
    "objects": ObjectsWriter,
    "cutout": CutoutWriter,
    "cutout-video": CutoutVideoWriter,
    "json": JsonWriter,
    "jsonl": JsonLinesWriter,
}
"""The kinds of output by the names the command line gives them; ``default_name`` is each one's file in a folder."""

__all__ = [
    "WRITERS",
    "BinaryWriter",
    "CocoWriter",
    "CutoutVideoWriter",
    "CutoutWriter",
    "FrameWriter",
    "JsonLinesWriter",
    "JsonWriter",
    "ObjectsWriter",
    "OverlayWriter",
    "PaletteWriter",
    "VideoEncoder",
    "kind_of_path",
    "write_track",
]


def write_track(
    track: FramePairs, writers: Sequence[FrameWriter], on_frame: Callable[[Frame], None] | None = None
) -> None:
    """Write every frame of a track to every writer, then close them; see the module for how errors end.

    Args:
        on_frame: called after each frame is written.
    """
    with ExitStack() as stack:
        for writer in writers:
            stack.enter_context(writer)
        for frame, pixels in track.pairs():
            for writer in writers:
                writer.write(frame, pixels)
            if on_frame is not None:
                on_frame(frame)


def kind_of_path(path: Path) -> type[FrameWriter]:
    """The writer that a path's suffix stands for; a folder gets palette PNGs.

    Raises:
        ValueError: a suffix that stands for no kind.
    """
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return OverlayWriter
    if suffix in (".json", ".jsonl"):
        return JsonWriter if suffix == ".json" else JsonLinesWriter
    if not suffix or path.is_dir():
        return PaletteWriter
    expected = ", ".join(sorted(VIDEO_SUFFIXES | {".json", ".jsonl"}))
    raise ValueError(f"expected a name ending in {expected}, or a folder, got {path.name!r}")
