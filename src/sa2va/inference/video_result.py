"""The lazy result of a video: frames are computed on demand, once."""

from __future__ import annotations

import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from sa2va.atomic import naming
from sa2va.masks.mask import Size
from sa2va.media.frames import first_indices, uniform_indices
from sa2va.media.open import Origin
from sa2va.results.answer import Frame
from sa2va.results.notebook import SHOWN_SIDE, blank, figure_html, note_html, text_html, video_html
from sa2va.runtime import in_notebook
from sa2va.visualization.colors import ObjectColors
from sa2va.visualization.overlay import ClipOverlay, contact_sheet, overlay
from sa2va.writers import JsonWriter, VideoEncoder, kind_of_path, write_track

if TYPE_CHECKING:
    import supervision

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB
#: Frames of the clip that a notebook shows.
_SHOWN_FRAMES = 150


class Track:
    """A lazy sequence of [`Frame`]: each is computed on demand, and nothing is kept in memory.

    Every iteration starts at the first frame. Frames that were read before come from a temporary file, where they are
    stored as run lengths (without probabilities), and their pixels are decoded again; so viewing a track and then
    saving it computes it once. Closing it, or leaving its ``with`` block, releases the computation's memory.

    Several threads may iterate at the same time: each gets every frame in order, and the first to reach a frame
    computes it while the others wait. Threads that call ``next`` on the track itself share one iteration.

    Args:
        frames: pairs of a frame and its pixels, or None if they were not kept.
        source: path of the video.
        fps: frames per second.
        size: (height, width) in pixels.
        total: number of frames.
        reasons: for each phrase without an object, why; whoever computes the frames may change it.
        pixels: reads the pixels of all frames again from the first; None if that is impossible (a camera).
        origin: where the frames have their pixels from when a notebook shows them.

    Attributes:
        source: path of the video, for its name and audio; None without a file.
        fps: frames per second of the track; None for sources without timestamps.
        size: (height, width) in pixels.
        total: number of frames; None if unknown.
        reasons: for each phrase without an object, why. With ``ask_every``, among the frames read so far.

    Examples:
        >>> from sa2va import Sa2VA
        >>> model = Sa2VA.from_pretrained("tiny")
        >>> with model.track("shapes.mp4", "the orange hat", sampling={"max_frames": 2}) as track:
        ...     for frame in track:
        ...         print(frame)
        ...     track.save("overlay.mp4", "masks/", "masks.json")
        Frame(0, time=0.0, segments=1)
        Frame(1, time=0.125, segments=1)
        >>> track.total, track.size
        (2, (256, 256))
    """

    def __init__(
        self,
        frames: Iterable[tuple[Frame, Pixels | None]],
        *,
        source: str | Path | None = None,
        fps: float | Fraction | None = None,
        size: Size,
        total: int | None = None,
        reasons: dict[str, str] | None = None,
        pixels: Callable[[], Iterable[Pixels]] | None = None,
        origin: Origin | None = None,
    ) -> None:
        self.source = source
        self.fps = fps
        self.size = size
        self.total = total
        self.reasons = {} if reasons is None else reasons
        self._frames = iter(frames)
        self._pixels = pixels
        self._origin = origin
        self._record = _Record()
        self._colors = ObjectColors()
        self._ended = self._complete = False
        self._cursor: Iterator[Frame] | None = None
        # Reentrant, because a track may be closed by whoever is computing it (a signal, the garbage collector).
        self._lock = threading.RLock()

    def __iter__(self) -> Iterator[Frame]:
        """All frames from the first. Raises RuntimeError if the track was closed or its computation failed."""
        return (frame for frame, _ in self._read(with_pixels=False))

    def __next__(self) -> Frame:
        """The next frame of the iteration that ``next`` shares."""
        with self._lock:
            if self._cursor is None:
                self._cursor = iter(self)
            return next(self._cursor)

    def pairs(self) -> Iterator[tuple[Frame, Pixels | None]]:
        """All frames from the first with their pixels, or None for frames whose pixels cannot be read again."""
        return self._read(with_pixels=True)

    def save(self, *paths: str | Path, on_frame: Callable[[Frame], None] | None = None) -> None:
        """Write every frame to every path, in one pass.

        .mp4, .mov, .mkv, .webm and .gif become a video with the masks drawn over it, .json the masks in YouTube-VOS
        format, .jsonl one line per frame; a folder gets DAVIS palette PNGs. [`sa2va.writers`] has more kinds.

        Args:
            paths: files and folders to write.
            on_frame: called after each frame is written, e.g. to show progress; None shows a bar in a notebook.

        Raises:
            ValueError: an unknown suffix, or a video is wanted but the track has no pixels.
        """
        about = {"size": self.size, "fps": self.fps, "source": self.source}
        kinds = [(kind_of_path(Path(path)), Path(path)) for path in paths]
        with ExitStack() as opened:
            # A path that cannot be written ends this before anything is computed and undoes those before it.
            writers = [opened.enter_context(kind(path, **about)) for kind, path in kinds]
            bar = opened.enter_context(_progress(self.total))

            def count(_: Frame) -> None:
                bar.update()

            write_track(self, writers, on_frame or count)

    def to_json(self, path: str | Path) -> None:
        """Like [`save`], as JSON whatever the name."""
        write_track(self, [JsonWriter(path, size=self.size, fps=self.fps, source=self.source)])

    def to_supervision(self, *, compact: bool = False) -> Iterator[supervision.Detections]:
        """The visible objects of each frame as ``supervision.Detections``; see [`Frame.to_supervision`].

        ``class_id`` numbers the phrases of the whole track in the order in which they first appear, so that a class
        keeps its number and its colour.
        """
        classes: dict[str, int] = {}
        for frame in self:
            for segment in frame.segments:
                classes.setdefault(segment.phrase, len(classes))
            found = frame.to_supervision(compact=compact)
            if len(found):
                found.class_id = np.array([classes[str(phrase)] for phrase in found.data["phrase"]])
            yield found

    def preview(self, count: int = 8, columns: int = 4) -> Image.Image:
        """A contact sheet of frames with masks drawn over them, e.g. for a notebook.

        Args:
            count: number of frames, spread over the video; if its length is unknown, the first ones.
            columns: number of frames in a row.
        """
        wanted = uniform_indices(self.total, count) if self.total else first_indices(count, count)
        shown = [
            (frame, overlay(pixels, frame.segments))
            for frame, pixels in _progress(self.total, self.pairs())
            if frame.index in wanted and pixels is not None
        ]
        labels = [f"frame {frame.index}" for frame, _ in shown]
        return contact_sheet([picture for _, picture in shown], columns, labels)

    def results(self) -> list[Frame]:
        """All frames as a list, in memory."""
        return list(_progress(self.total, self))

    def close(self) -> None:
        """Stop computing and discard all frames."""
        with self._lock:
            self._ended = True
            self._complete = False
            self._record.close()
            if (close := getattr(self._frames, "close", None)) is not None:
                close()

    def __enter__(self) -> Track:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "complete" if self._complete else "ended" if self._ended else "open"
        frames = f"{self._record.count}/{self.total or '?'}"
        return f"Track({self.size[0]}x{self.size[1]}, fps={self.fps}, read {frames}, {state})"

    def _repr_html_(self) -> str | None:
        """The first 150 frames as a clip that plays in a notebook; those that nobody has read yet are computed.

        None if the track was closed.
        """
        if self._ended and not self._complete:
            return None
        scale = min(1, SHOWN_SIDE / max(self.size))
        height, width = (max(2, round(side * scale / 2) * 2) for side in self.size)  # even: plays everywhere
        total = min(self.total or _SHOWN_FRAMES, _SHOWN_FRAMES)
        drawing, last = ClipOverlay(), None
        with tempfile.TemporaryDirectory() as folder:
            video = VideoEncoder(Path(folder) / "clip.mp4", size=(height, width), fps=self.fps)
            try:
                for last, pixels in _progress(total, islice(self.pairs(), total)):
                    drawn = drawing.draw(blank(self.size) if pixels is None else pixels, last.segments)
                    video.write(np.asarray(drawn.resize((width, height))), last.time)
                if last is None:
                    return None
                video.close()
            except BaseException:
                video.abort()
                raise
            shown = video_html(video.path.read_bytes())
        reasons = [note_html(f"{phrase}: {reason}") for phrase, reason in self.reasons.items()]
        return figure_html(shown, text_html("", last.segments), *reasons, note_html(repr(self)))

    def _read(self, *, with_pixels: bool) -> Iterator[tuple[Frame, Pixels | None]]:
        position, offset = 0, 0
        # Pixels of frames that were read before, and how many of them have been decoded.
        again: Iterator[Pixels] = iter(())
        decoded = 0
        while True:
            with self._lock:
                known = self._record.read(offset) if position < self._record.count else None
                pair = self._compute() if known is None else None
                offset = self._record.size if known is None else known[1]
            if known is not None:
                pixels = None
                if with_pixels and self._pixels is not None:
                    again = again if decoded else iter(self._pixels())
                    pixels, decoded = next(islice(again, position - decoded, None)), position + 1
                yield replace(known[0], origin=self._origin), pixels
            elif pair is not None:
                yield replace(pair[0], origin=self._origin), pair[1]
            else:
                return
            position += 1

    def _compute(self) -> tuple[Frame, Pixels | None] | None:
        """The next frame that nobody has read yet; None after the last."""
        if self._complete:
            return None
        if self._ended:
            raise RuntimeError(
                f"this track ended after {self._record.count} frames, because it was closed or its computation failed; "
                "run the model again"
            )
        try:
            pair = next(self._frames)
        except StopIteration:
            self._complete = True
            return None
        except BaseException:
            self._ended = True
            raise
        frame, pixels = pair
        if pixels is not None:
            frame = replace(frame, segments=self._colors.apply(pixels, frame.segments))
        self._record.append(frame)
        return frame, pixels


def _progress(total: int | None, frames: Iterable[Any] | None = None) -> tqdm:
    """A bar over frames in a notebook, where waiting shows nothing otherwise; silent elsewhere."""
    return tqdm(frames, total=total, unit="frame", leave=False, disable=not in_notebook())


class _Record:
    """Frames in a temporary file, one JSON line each."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- lives as long as the track
        weakref.finalize(self, self._file.close)
        self.count = 0
        self.size = 0

    def append(self, frame: Frame) -> None:
        with naming(tempfile.gettempdir()):
            self._file.seek(self.size)
            self.size += self._file.write(frame.to_json().encode() + b"\n")
        self.count += 1

    def read(self, offset: int) -> tuple[Frame, int]:
        """The frame at a byte offset, and the offset of the one after it."""
        self._file.seek(offset)
        line = self._file.readline()
        return Frame.from_json(line.decode()), offset + len(line)

    def close(self) -> None:
        self._file.close()
        self.count = self.size = 0
