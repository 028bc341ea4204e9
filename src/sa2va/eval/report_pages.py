"""A page as a list of blocks, written as Markdown with pictures beside it, or as one HTML file that needs nothing else.

Every text of a block is plain: whatever a model or an annotation file says, nothing of it becomes markup.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sa2va.atomic import replacing
from sa2va.eval.sample_images import SampleImage


@dataclass(frozen=True)
class Heading:
    """``level`` from 1."""

    text: str
    level: int = 1


@dataclass(frozen=True)
class Paragraph:
    """Words."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """Short sentences."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    """``rows`` of as many cells as ``head``; columns from ``numbers`` on are aligned right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: int = 1


@dataclass(frozen=True)
class Gallery:
    """Answers with their pictures."""

    title: str
    samples: Sequence[SampleImage]


Block = Heading | Paragraph | Bullets | Table | Gallery


def write_markdown(path: Path, blocks: Sequence[Block]) -> None:
    """Write a Markdown page; its pictures go into a folder beside it that has the page's name, and replace those of an
    earlier page."""
    pictures = _Pictures(path.with_suffix(""))
    text = "\n\n".join(_markdown(block, pictures) for block in blocks) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    pictures.drop_others()


def write_html(path: Path, title: str, blocks: Sequence[Block]) -> None:
    """Write an HTML page with its pictures inside."""
    body = "\n".join(_html(block) for block in blocks)
    with replacing(path) as temporary:
        temporary.write_text(_PAGE.format(title=html.escape(title), style=_STYLE, body=body), encoding="utf-8")


# -- Markdown ----------------------------------------------------------------------------------------------------------


class _Pictures:
    """Saves pictures under running numbers; the folder is made with the first one."""

    def __init__(self, folder: Path):
        self._folder, self._count = folder, 0

    def save(self, picture: Image.Image) -> str:
        """The picture's path, relative to the page."""
        self._count += 1
        path = self._folder / f"{self._count:03d}.jpg"
        with replacing(path) as temporary:
            picture.save(temporary, quality=88)
        return f"{self._folder.name}/{path.name}"

    def drop_others(self) -> None:
        """Delete what an earlier page had under higher numbers."""
        for path in self._folder.glob("*.jpg"):
            if path.stem.isdecimal() and int(path.stem) > self._count:
                path.unlink()


def _markdown(block: Block, pictures: _Pictures) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_plain(block.text)}"
    if isinstance(block, Paragraph):
        return _plain(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"* {_plain(text)}" for text in block.texts)
    if isinstance(block, Table):
        rule = ["---" if column < block.numbers else "--:" for column in range(len(block.head))]
        rows = [[_plain(cell) for cell in row] for row in (block.head, *block.rows)]
        return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))
    parts = [f"**{_plain(block.title)}**"]
    for sample in block.samples:
        parts.append("\n".join(f"* {name}: {_plain(text)}" for name, text in _captions(sample)))
        images = [f"![{name}]({pictures.save(picture)})" for name, picture in _pictures(sample)]
        if images:
            parts.append(" ".join(images))
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    escaped = re.sub(r"([\\`*_\[\]#|~!])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _pictures(sample: SampleImage) -> list[tuple[str, Image.Image]]:
    """Pictures with what is written under them."""
    ours = "picture" if sample.truth is None else "prediction"
    return [(name, one) for name, one in ((ours, sample.ours), ("truth", sample.truth)) if one is not None]


def _captions(sample: SampleImage) -> list[tuple[str, str]]:
    """What is written under a picture: names with texts, those without text left out."""
    texts = {
        "query": sample.id,
        "score": f"{100 * sample.score:.1f}",
        "before": sample.before,
        "request": sample.request,
        "answer": sample.answer or "(no words)",
        "expected": sample.expected,
    }
    return [(name, text) for name, text in texts.items() if text]


# -- HTML --------------------------------------------------------------------------------------------------------------

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #fff; --line: #d9dee6; --soft: #5b6776; --band: #f4f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --paper: #15181d; --line: #333a44; --soft: #9aa5b3; --band: #1d2128; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.35rem; margin: 2.75rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
p { max-width: 48rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; background: var(--band); white-space: nowrap; }
td:first-child { white-space: nowrap; }
@media (max-width: 40rem) { td:first-child { white-space: normal; } }
.n { text-align: right; }
.gallery { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 0; padding: .75rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--band); }
.wide { grid-column: 1 / -1; }
.pair { display: flex; gap: .5rem; flex-wrap: wrap; }
.pair div { flex: 0 1 calc(50% - .25rem); min-width: min(9rem, 100%); }
.stacked .pair div { flex-basis: 100%; }
img { display: block; width: 100%; height: auto; border-radius: .25rem; }
.label { color: var(--soft); font-size: .8rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .75rem; margin: .6rem 0 0; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Bullets):
        return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in block.texts)}</ul>"
    if isinstance(block, Table):
        head = _row(block.head, block.numbers, "th")
        body = "".join(_row(row, block.numbers, "td") for row in block.rows)
        return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'
    figures = "".join(_figure(sample) for sample in block.samples)
    return f'<h3>{html.escape(block.title)}</h3>\n<div class="gallery">{figures}</div>'


def _row(cells: Sequence[str], numbers: int, tag: str) -> str:
    marks = ["" if column < numbers else ' class="n"' for column in range(len(cells))]
    return "<tr>" + "".join(f"<{tag}{m}>{html.escape(c)}</{tag}>" for m, c in zip(marks, cells, strict=True)) + "</tr>"


def _figure(sample: SampleImage) -> str:
    shown = _pictures(sample)
    images = "".join(
        f'<div><img src="{_data_uri(one)}" alt="{name}" width="{one.width}" height="{one.height}">'
        f'<span class="label">{name}</span></div>'
        for name, one in shown
    )
    words = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in _captions(sample))
    wide = "wide " if any(one.width > 2 * one.height for _, one in shown) else ""
    stacked = "stacked" if wide or sample.labelled else ""
    return f'<figure class="{wide}{stacked}"><div class="pair">{images}</div><dl>{words}</dl></figure>'


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
