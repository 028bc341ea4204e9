"""A track as a video task of Label Studio: the boxes of every object, frame by frame."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from sa2va.atomic import replacing
from sa2va.results.answer import Frame
from sa2va.writers.frame_writer import Pixels
from sa2va.writers.label_studio_tasks import Control, VideoBoxes
from sa2va.writers.labelled_folder import LabelledFolderWriter
from sa2va.writers.video_encoder import DEFAULT_FPS, VideoEncoder

_BOX = Control("videorectangle", "box", "video")


class LabelStudioVideoWriter(LabelledFolderWriter):
    """A folder with ``tasks.json``, ``config.xml``, the labels of a project, and the frames as ``videos/NAME.mp4``.

    Import the task into a project with that configuration, whose local storage holds the folder. Label Studio has no
    masks in videos: objects are boxes, which the editor shows as predictions. Frames of the file are those of the
    track, of one length, so that the editor counts them as they are.

    A folder that was written here is replaced, and others with something in them are refused. Until all frames are
    there, the file has no boxes.
    """

    default_name = "label-studio"
    needs_pixels: ClassVar[bool] = True
    label_file, mark, media = "tasks.json", '"model_version": "sa2va"', ("videos/*.mp4", "config.xml")

    def _open(self, fps: float | Fraction | None, source: str | Path | None, resume: bool) -> None:
        super()._open(fps, source, resume)
        self._rate = float(fps or DEFAULT_FPS)
        self._name = f"{Path(self._source).stem}.mp4"
        self._video = VideoEncoder(self.path / "videos" / self._name, size=self.size, fps=fps)
        self._boxes = VideoBoxes(self._rate)
        self._labels: dict[str, str] = {}

    def _add(self, frame: Frame, pixels: Pixels | None) -> None:
        self._video.write(np.asarray(pixels))
        self._labels.update((segment.phrase, segment.phrase or "object") for segment in frame.segments)
        self._boxes.add(Frame(self._count, None, frame.size, frame.segments))

    def _finish(self, partial: bool) -> None:
        self._video.close()
        labels = "".join(f"    <Label value={quoteattr(label)}/>\n" for label in self._labels.values())
        with replacing(self.path / "config.xml") as temporary:
            temporary.write_text(
                f'<View>\n  <Video name="video" value="$video" frameRate="{self._rate:g}"/>\n'
                '  <VideoRectangle name="box" toName="video"/>\n'
                f'  <Labels name="label" toName="video">\n{labels}  </Labels>\n</View>\n',
                encoding="utf-8",
            )
        super()._finish(partial)

    def _discard(self) -> None:
        self._video.abort()
        super()._discard()

    def _pieces(self) -> Iterator[str]:
        results = self._boxes.results(self._labels, _BOX)
        scores = [one["score"] for one in results]
        prediction = {"model_version": "sa2va", "score": min(scores, default=0.0), "result": results}
        data = {"video": f"/data/local-files/?d={quote(f'{self.path.resolve().name}/videos/{self._name}')}"}
        yield from json.JSONEncoder(ensure_ascii=False).iterencode(
            [{"predictions": [prediction], "annotations": [], "data": data}]
        )
