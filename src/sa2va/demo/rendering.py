"""Results as pictures and HTML for the page. Whatever is not ours is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image, ImageFilter

from sa2va.demo.backend import About, TrackProgress
from sa2va.masks.mask import Mask, Segment
from sa2va.media.frames import DecodedFrame
from sa2va.results.answer import Answer
from sa2va.visualization.overlay import overlay

#: Bounds of the longer side of a picture on the page, in pixels; small ones are enlarged, so that labels are sharp.
_MOST_SIDE, _LEAST_SIDE = 1280, 768


@dataclass(frozen=True)
class Exchange:
    """What was asked and answered.

    Attributes:
        question: the visitor's words. answers: with the name of what each was to find, "" for free answers.
        error: why there is no answer. partial: the text so far of an answer that is being written.
        report: what was followed through a clip, as HTML.
    """

    question: str
    answers: tuple[tuple[str, Answer], ...] = ()
    error: str = ""
    partial: str | None = None
    report: str = ""


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """The (width, height) in which a picture of some (width, height) is shown."""
    longer = max(size)
    scale = min(max(longer, _LEAST_SIDE), _MOST_SIDE) / longer
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def shrunk_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask in another (width, height)."""
    if (mask.size[1], mask.size[0]) == size:
        return mask
    smooth = Image.fromarray(mask.array.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    if size[0] > mask.size[1]:  # without steps of the size of a pixel
        smooth = smooth.filter(ImageFilter.GaussianBlur(size[0] / mask.size[1] / 2))
    return Mask.from_array(np.asarray(smooth) > 127)


def picture_url(image: Image.Image, side: int | None = None) -> str:
    """A picture as a data URL, so that no file is left anywhere; at most ``side`` pixels on its longer side."""
    if side is not None and max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side))
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def no_stage() -> str:
    """The place of a picture."""
    return '<div class="stage"><p>Drop a picture here, or take an example.</p></div>'


def stage(view: Image.Image, visible: Sequence[Segment], opacity: float) -> str:
    """A picture with masks over it.

    Args:
        view: in the size it is shown in, as the masks of ``visible``.
    """
    found = ", ".join(segment.phrase for segment in visible if segment.phrase)
    described = f"Your picture. Marked in it: {escape(found) or 'nothing'}"
    url = picture_url(overlay(view, visible, alpha=opacity))
    return (
        f'<div class="stage"><div class="canvas"><img src="{url}" draggable="false" alt="{described}">'
        '<svg class="ink"></svg></div></div>'
    )


def conversation(exchanges: Iterable[Exchange], welcome: str) -> str:
    """Questions and answers as bubbles, phrases in the colours of their masks."""
    bubbles = []
    for one in exchanges:
        bubbles.append(f'<div class="bubble you">{escape(one.question)}</div>')
        if one.error:
            bubbles.append(f'<div class="bubble error" role="alert">{escape(one.error)}</div>')
        elif one.partial is not None:
            dots = '<span class="dots"><i></i><i></i><i></i></span>'
            bubbles.append(f'<div class="bubble model">{escape(one.partial)} {dots}</div>')
        else:
            bubbles.append(
                f'<div class="bubble model">{one.report}{"".join(_answer(*answer) for answer in one.answers)}</div>'
            )
    body = "".join(bubbles) or f'<p class="welcome">{escape(welcome)}</p>'
    return f'<div class="chat" role="log" aria-live="polite"><div>{body}</div></div>'


def _answer(wanted: str, answer: Answer) -> str:
    if not wanted:
        unnamed = [segment for segment in answer.segments if segment.span is None]
        text = answer.text.strip()
        if len(unnamed) == 1 and text:  # the whole answer is about one object
            return f"<p>{_phrase(unnamed[0], text)}{_score(unnamed[0])}</p>"
        chips = " ".join(f"{_phrase(segment)}{_score(segment)}" for segment in unnamed)
        return f"<p>{_colored(answer) or '<em>no words</em>'}</p>" + (f"<p>{chips}</p>" if chips else "")
    if not answer.segments:
        return _nothing(wanted, answer.reason)
    parts = [
        f"{_phrase(segment, wanted if n == 0 else '')}{_score(segment)}" for n, segment in enumerate(answer.segments)
    ]
    return f"<p>{' '.join(parts)}</p>"


def _nothing(wanted: str, reason: str | None) -> str:
    return f'<p class="nothing"><b>{escape(wanted)}</b>: nothing found{f" ({escape(reason)})" if reason else ""}</p>'


def _colored(answer: Answer) -> str:
    """The answer's text, phrases in the colours of their masks."""
    parts, position = [], 0
    for segment in sorted((one for one in answer.segments if one.span), key=lambda one: one.span or (0, 0)):
        start, end = segment.span or (0, 0)
        if start >= position:
            parts += [escape(answer.text[position:start]), _phrase(segment, answer.text[start:end])]
            position = end
    return "".join([*parts, escape(answer.text[position:])])


def _phrase(segment: Segment, text: str = "") -> str:
    return f'<mark style="{_style(segment)}">{escape(text or segment.phrase or f"object {segment.id}")}</mark>'


def _score(segment: Segment) -> str:
    doubt = " doubtful" if segment.doubtful else ""
    title = "The model's own estimate of how well the mask fits, 0 to 1" + (" - it is in doubt" if doubt else "")
    return f'<span class="score{doubt}" title="{title}">{segment.score:.2f}{" ?" if doubt else ""}</span>'


def _style(segment: Segment) -> str:
    return f"--object:{','.join(map(str, segment.color or (128, 128, 128)))}"


def object_list(objects: Iterable[Segment], hidden: Collection[int]) -> str:
    """A switch for every object found so far, and what can be saved.

    Args:
        hidden: ids of those that are switched off.
    """
    rows = []
    for segment in objects:
        on = segment.id not in hidden
        name = escape(segment.phrase or f"object {segment.id}")
        state = f'data-toggle="{segment.id}" aria-pressed="{str(on).lower()}" title="Mask {"off" if on else "on"}"'
        rows.append(f'<button class="object" {state} style="{_style(segment)}"><i></i>{name}{_score(segment)}</button>')
    if not rows:
        return ""
    kinds = {"masks": "Masks (PNG)", "json": "JSON", "cutout": "Cut-out", "overlay": "Picture"}
    links = [f'<button class="save" data-save="{kind}">&#8595; {label}</button>' for kind, label in kinds.items()]
    return f'<div class="objects">{"".join(rows)}</div><div class="saves">{"".join(links)}</div>'


def download_link(url: str) -> str:
    """A link that the page follows at once."""
    return f'<a data-now href="{escape(url, quote=True)}" download></a>'


def progress(step: TrackProgress, seconds: float, preview: Image.Image | None = None) -> str:
    """How far a track is, under the last frame."""
    rate = step.done / seconds if seconds else 0.0
    left = f", {max(0, step.total - step.done) / rate:.0f} s left" if rate and step.total else ""
    words = (
        f"Frame {step.done} of {step.total or '?'}, {rate:.1f} frames/s{left}" if step.done else "Looking at the clip"
    )
    share = min(100, round(100 * step.done / step.total)) if step.total else 0
    picture = f'<img src="{picture_url(preview, _LEAST_SIDE)}" alt="The last frame with its masks">' if preview else ""
    return (
        f'<div class="running"><div class="screen">{picture}</div>'
        f'<div class="bar" role="progressbar" aria-valuenow="{share}" aria-valuemin="0" aria-valuemax="100">'
        f'<i style="width:{share}%"></i></div><p>{words}</p></div>'
    )


def track_report(wanted: Sequence[str], step: TrackProgress, seen: Mapping[int, Segment], seconds: float) -> str:
    """What was followed, what was not found, and how fast.

    Args:
        step: the last one. seen: each object by its id, where it was seen best.
    """
    found = [f"<p>{_phrase(segment)}{_score(segment)}</p>" for segment in seen.values()]
    missing = [_nothing(phrase, step.reasons[phrase]) for phrase in wanted if phrase in step.reasons]
    rate = f"{step.done} frames in {seconds:.1f} s, {step.done / max(seconds, 1e-9):.1f} frames/s"
    return "".join([*found, *missing, f"<p><small>{rate}</small></p>"])


def key_frame_strip(frames: Sequence[DecodedFrame]) -> str:
    """The frames of a clip that the language model sees."""
    shown = []
    for one in frames:
        when = f"frame {one.source_index}" if one.time is None else f"{one.time:.1f} s"
        url = picture_url(Image.fromarray(one.pixels), 160)
        shown.append(f'<figure><img src="{url}" alt=""><figcaption>{when}</figcaption></figure>')
    return f'<div class="keys"><p>Frames that the language model sees</p><div>{"".join(shown)}</div></div>'


def header(about: About, version: str) -> str:
    """Name, promise and model."""
    return (
        '<header class="top"><div><h1>sa<i>2</i>va</h1><p>Ask about a picture or a video. '
        "Get words back, and the exact pixels they mean.</p></div>"
        f'<div class="model" title="sa2va {escape(version)}"><b>{escape(about.model)}</b> '
        f"<span>{escape(about.place)}</span>"
        '<button data-theme-toggle title="Light or dark" aria-label="Light or dark">&#9680;</button></div></header>'
    )


def footnote(about: About) -> str:
    """What the model can and cannot do, once and quietly."""
    tiny = (
        "<b>tiny</b> is an 18 MB model that comes with the package. It knows drawn shapes like those of the examples, "
        "not photographs; for these start <code>sa2va demo --model Sa2VA-4B</code>."
        if about.tiny
        else ""
    )
    words = " ".join(filter(None, [tiny, escape(about.note)]))
    return f'<p class="footnote">{words}</p>' if words else ""


def example_cards(cards: Sequence[tuple[str, str, str]]) -> str:
    """Examples as buttons.

    Args:
        cards: for each the URL of a thumbnail, the mode and the request.
    """
    shown = [
        f'<button class="card" data-example="{number}"><img src="{url}" alt=""><span><small>{escape(mode)}</small>'
        f"{escape(text)}</span></button>"
        for number, (url, mode, text) in enumerate(cards)
    ]
    return f'<div class="cards"><p>Examples</p><div>{"".join(shown)}</div></div>'
