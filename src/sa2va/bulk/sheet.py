"""A page to look at: some rows of a batch, the emptiest, the least sure, and the errors."""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Any

from PIL import Image

from sa2va.bulk.batch_summary import Summary
from sa2va.bulk.targets import AnsweredRow, at_frame
from sa2va.eval.report_pages import Block, Gallery, Heading, Table, write_html
from sa2va.eval.sample_images import SampleImage
from sa2va.media.frames import FrameSource
from sa2va.media.open import open_media
from sa2va.visualization.overlay import overlay

#: Rows in each part of the page, and the longest side of a picture on it.
_SHOWN, _SIDE = 12, 480


class Sheet:
    """Chooses rows while they pass by; only those chosen are kept.

    Args:
        rows: how many there will be.
    """

    def __init__(self, rows: int):
        self._step = max(1, rows // _SHOWN)
        self._sample: list[dict[str, Any]] = []
        self._errors: list[dict[str, Any]] = []
        # Heaps with the most telling row first out: (how telling, index, row).
        self._emptiest: list[tuple[float, int, dict[str, Any]]] = []
        self._doubtful: list[tuple[float, int, dict[str, Any]]] = []

    def add(self, record: dict[str, Any]) -> None:
        """Consider one row."""
        if record["error"] is not None:
            if len(self._errors) < _SHOWN:
                self._errors.append(record)
            return
        if record["index"] % self._step == 0 and len(self._sample) < _SHOWN:
            self._sample.append(record)
        _keep(self._emptiest, -_covered(record), record)
        if record["segments"]:
            _keep(self._doubtful, -_score(record), record)

    def write(self, path: Path, title: str, summary: Summary, scratch: Path) -> None:
        """Draw what was chosen, and write the page.

        Args:
            scratch: a folder for copies of remote media.
        """
        counts = [
            ["rows", f"{summary.rows:,}"],
            ["errors", f"{summary.errors:,}"],
            ["nothing found", f"{summary.empty:,}"],
            ["objects", f"{summary.objects:,}"],
        ]
        blocks: list[Block] = [Heading(title), Table(["", "count"], counts)]
        emptiest, doubtful = _best(self._emptiest), _best(self._doubtful)
        for name, about, records in (
            ("A sample", "Spread evenly over the source.", self._sample),
            ("The emptiest", "Least of the picture is covered by what was found.", emptiest),
            ("The least sure", "The lowest score of any object.", doubtful),
        ):
            shown = [sample for record in records if (sample := _shown(AnsweredRow(record, scratch))) is not None]
            if shown:
                blocks += [Heading(name, 2), Gallery(about, shown)]
        if self._errors:
            rows = [[record["id"], record["error"]] for record in self._errors]
            blocks += [Heading("Errors", 2), Table(["row", "error"], rows, numbers=2)]
        write_html(path, title, blocks)


def _keep(heap: list[tuple[float, int, dict[str, Any]]], telling: float, record: dict[str, Any]) -> None:
    (heapq.heappush if len(heap) < _SHOWN else heapq.heappushpop)(heap, (telling, -record["index"], record))


def _best(heap: list[tuple[float, int, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [record for _, _, record in sorted(heap, reverse=True)]


def _score(record: dict[str, Any]) -> float:
    return min((segment["score"] for segment in record["segments"]), default=0.0)


def _covered(record: dict[str, Any]) -> float:
    """Share of the picture that masks cover; of a clip, a number that grows with the masks there are."""
    if record["size"] is None:
        return 0.0
    height, width = record["size"]
    areas = (len(segment["masks"]) if segment["area"] is None else segment["area"] for segment in record["segments"])
    return sum(areas) / (height * width)


def _shown(row: AnsweredRow) -> SampleImage | None:
    """A row as the page shows it; None where its medium is gone."""
    if not row.present:
        return None
    with open_media(row.medium) as media:
        picture = _drawn(row, media)
    record = row.record
    asked = ", ".join(record["asked"]) or "describe it"
    return SampleImage(record["id"], "", asked, record["text"], "", _score(record), picture, None)


def _drawn(row: AnsweredRow, media: FrameSource) -> Image.Image:
    """The picture, or the middle frame of a clip, with what was found."""
    index = (media.frame_count or 1) // 2
    (pixels,) = media.read([index])
    drawn = overlay(pixels, [at_frame(segment, index) for segment in row.segments])
    drawn.thumbnail((_SIDE, _SIDE))
    return drawn
