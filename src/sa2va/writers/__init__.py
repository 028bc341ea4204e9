"""Write a track to files while it is computed: one writer per kind of output, all with the same interface.

A writer is a context manager with ``write(frame, pixels)``. An output that is one file appears complete at the end
(``close``) or not at all (``abort``); folders and JSON lines grow by whole frames and can be resumed. Leaving the block
by Ctrl-C closes with ``partial=True``: what was written so far is kept and valid. An error aborts.

To resume, open the writer on the same path with ``resume=True``: ``done`` then contains the indices of the complete
frames and ``write`` skips them, so a run may simply start again at the first frame.

[`CocoWriter`], [`YoloWriter`], [`LabelmeWriter`] and [`LabelStudioWriter`] collect the results of many images and
videos in one dataset instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from sa2va.results.answer import Frame
from sa2va.writers.coco_dataset import CocoWriter
from sa2va.writers.cvat_video import CvatVideoWriter
from sa2va.writers.folders import CutoutWriter, ObjectsWriter, PaletteWriter
from sa2va.writers.frame_writer import FramePairs, FrameWriter
from sa2va.writers.json_files import JsonLinesWriter, JsonWriter
from sa2va.writers.label_studio_tasks import LabelStudioWriter
from sa2va.writers.label_studio_video import LabelStudioVideoWriter
from sa2va.writers.labelme_files import LabelmeWriter
from sa2va.writers.video_encoder import VIDEO_SUFFIXES, VideoEncoder
from sa2va.writers.videos import BinaryWriter, CutoutVideoWriter, OverlayWriter
from sa2va.writers.yolo_dataset import YoloWriter

WRITERS: dict[str, type[FrameWriter]] = {
    "overlay": OverlayWriter,
    "masks": PaletteWriter,
    "binary": BinaryWriter,
    "objects": ObjectsWriter,
    "cutout": CutoutWriter,
    "cutout-video": CutoutVideoWriter,
    "json": JsonWriter,
    "jsonl": JsonLinesWriter,
    "cvat": CvatVideoWriter,
    "label-studio": LabelStudioVideoWriter,
}
"""The kinds of output by their names on the command line; ``default_name`` is the name of each in a folder."""

__all__ = [
    "WRITERS",
    "BinaryWriter",
    "CocoWriter",
    "CutoutVideoWriter",
    "CutoutWriter",
    "CvatVideoWriter",
    "FrameWriter",
    "JsonLinesWriter",
    "JsonWriter",
    "LabelStudioVideoWriter",
    "LabelStudioWriter",
    "LabelmeWriter",
    "ObjectsWriter",
    "OverlayWriter",
    "PaletteWriter",
    "VideoEncoder",
    "YoloWriter",
    "kind_of_path",
    "write_track",
]


def write_track(
    track: FramePairs, writers: Sequence[FrameWriter], on_frame: Callable[[Frame], None] | None = None
) -> None:
    """Write every frame of a track to every writer, then close them. On an error all are aborted.

    Args:
        track: a [`sa2va.Track`], or anything else with its ``pairs``.
        writers: may be empty.
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
    """The kind of writer for a path, by its suffix; palette PNGs for a folder.

    Raises:
        ValueError: an unknown suffix.
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
