"""Output files of a request about an image or a clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from sa2va.cli.outputs import OutputPlan
from sa2va.inference.video_result import Track
from sa2va.masks.segment import Segment
from sa2va.media.frames import DecodedFrame, FrameSource
from sa2va.media.open import Picture
from sa2va.results.answer import Frame
from sa2va.writers import WRITERS, write_track
from sa2va.writers.picture_files import write_json, write_picture


def write_found(plan: OutputPlan, media: FrameSource, segments: Sequence[Segment], record: dict[str, Any]) -> list[str]:
    """Write what was found in a picture or a clip; see [`write_picture`]."""
    if isinstance(media, Picture):
        return write_picture(plan.files, media.image, segments, record, folder=plan.folder)
    about = {"size": media.size, "fps": media.fps, "source": media.path}
    writers = [WRITERS[kind](path, **about) for kind, path in plan.files.items() if kind != "json"]
    if writers:
        with Track(_clip_frames(media, segments), **about) as track:
            write_track(track, writers)
    outputs = [plan.shown(path) for path in plan.files.values()]
    if (path := plan.files.get("json")) is not None:
        write_json(path, {**record, "outputs": outputs})
    return outputs


def _clip_frames(media: FrameSource, segments: Sequence[Segment]) -> Iterator[tuple[Frame, Any]]:
    """The frames of a clip again, each with its masks."""

    def here(frame: DecodedFrame) -> tuple[Segment, ...]:
        return tuple(replace(segment, masks=(segment.masks[frame.index],)) for segment in segments)

    for frame in media:
        yield Frame(frame.index, frame.time, media.size, here(frame)), frame.pixels
