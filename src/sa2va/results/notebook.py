"""Results as HTML, for notebooks: pictures inside the page, phrases in the colours of their masks.

Whatever the model or the caller wrote is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from html import escape

import numpy as np
from PIL import Image

from sa2va.masks.mask import Segment, Size
from sa2va.media.frames import uniform_indices
from sa2va.media.open import Origin
from sa2va.visualization.colors import color
from sa2va.visualization.overlay import ClipOverlay, contact_sheet

#: The longer side of what is shown, in pixels: pages stay small, and so do notebooks that are kept with their results.
SHOWN_SIDE = 640
_SHEET_FRAMES, _SHEET_COLUMNS = 8, 4
_GREY = 225


def picture_html(origin: Origin | None, segments: Sequence[Segment], size: Size | None, index: int = 0) -> str:
    """The picture with its segments, a sheet of frames for those of a clip; "" if there is neither.

    Args:
        origin: of the picture; grey stands for it where it is gone.
        size: (height, width) of the picture. index: its number in its source.
    """
    size = size or next((segment.masks[0].size for segment in segments), None)
    if size is None:
        return ""
    count = len(segments[0].masks) if segments else 1
    indices = [index] if count == 1 else uniform_indices(count, _SHEET_FRAMES)
    pixels = origin.pictures(indices, size) if origin else None
    if pixels is None and not segments:
        return ""
    drawing = ClipOverlay()
    shown = [
        drawing.draw(blank(size) if pixels is None else pixels[number], _at(segments, frame if count > 1 else 0))
        for number, frame in enumerate(indices)
    ]
    image = shown[0] if count == 1 else contact_sheet(shown, _SHEET_COLUMNS, [f"frame {frame}" for frame in indices])
    described = ", ".join(segment.phrase or f"object {segment.id}" for segment in segments)
    return f'<img style="max-width:100%" src="{_jpeg(image)}" alt="{escape(described or "no objects")}">'


def _at(segments: Sequence[Segment], frame: int) -> list[Segment]:
    return [replace(segment, masks=(segment.masks[frame],), probabilities=None) for segment in segments]


def blank(size: Size) -> np.ndarray:
    """What stands for a picture (height, width) that is gone."""
    return np.full((*size, 3), _GREY, np.uint8)


def video_html(data: bytes) -> str:
    """An MP4 that plays in the page."""
    encoded = base64.b64encode(data).decode()
    return (
        '<video style="max-width:100%" controls autoplay loop muted playsinline '
        f'src="data:video/mp4;base64,{encoded}"></video>'
    )


def text_html(text: str, segments: Sequence[Segment]) -> str:
    """An answer's text with its phrases coloured, then the objects that have no place in it, with their scores."""
    parts, rest, end = [], [], 0
    for segment in sorted(segments, key=lambda segment: segment.span or (0, 0)):
        start, stop = segment.span or (0, 0)
        if end <= start < stop <= len(text):
            parts += [escape(text[end:start]), _colored(text[start:stop], segment)]
            end = stop
        else:  # nor do those whose words another one has already
            sure = "?" if segment.doubtful else ""
            rest.append(f"{_colored(segment.phrase or f'#{segment.id}', segment)} {segment.score:.2f}{sure}")
    written = "".join([*parts, escape(text[end:])])
    return "".join(f"<div>{line}</div>" for line in (written, " &nbsp; ".join(rest)) if line)


def note_html(text: str) -> str:
    """A remark beside a result."""
    return f'<div style="opacity:.7"><em>{escape(text)}</em></div>'


def figure_html(*parts: str) -> str:
    """Parts one below the other."""
    style = f"max-width:{SHOWN_SIDE}px;margin:0;line-height:1.6"
    return f'<div class="sa2va-result" style="{style}">{"".join(parts)}</div>'


def _colored(text: str, segment: Segment) -> str:
    # The line says which mask it is; the tint lets the page's own ink be read, on light pages as on dark ones.
    red, green, blue = segment.color or color(segment.id)
    tint = f"background:rgba({red},{green},{blue},.25);border-bottom:3px solid rgb({red},{green},{blue})"
    return f'<span style="{tint};border-radius:3px;padding:0 2px">{escape(text)}</span>'


def _jpeg(image: Image.Image) -> str:
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
