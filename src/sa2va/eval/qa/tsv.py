"""Question files of VLMEvalKit: a row per question, its picture as base64, by reference to another row, or in a file.

The file is read once from end to end: texts are kept, pictures are not, only where they stand. They are decoded when
they are asked for, with limits on their size.
"""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase

import numpy as np
from PIL import Image

from sa2va.eval.qa.records import Record, RecordFile
from sa2va.media.image import MAX_PIXELS, load_image, open_picture

#: A cell of at most so many characters is no picture but the index of the row that has it.
REFERENCE_LENGTH = 64
_ORIENTATION, _SIDEWAYS = 0x0112, 5  # EXIF: from 5 on, width and height change places
_NEEDED = ("index", "question", "answer")


@dataclass(frozen=True)
class TableQuestion:
    """One row.

    Attributes:
        row: number from 1, header not counted. index: its name in the file.
        question, answer, hint, category, l2_category, split: texts, "" where the file has none.
        options: letter -> text, those that are there. group: ``g_index``, "" without that column.
        picture: equal for rows about the same picture (or pictures). image_path: as in the file.
        place: offset and length of the record that holds the picture; None where ``image_path`` names it.
    """

    row: int
    index: str
    question: str
    answer: str
    options: dict[str, str]
    hint: str
    category: str
    l2_category: str
    split: str
    group: str
    picture: str
    image_path: str
    place: tuple[int, int] | None


class QuestionFile:
    """The rows of a TSV file, and their pictures.

    Args:
        path: the file. max_pixels: refuse to decode larger pictures (height * width).

    Attributes:
        questions: rows with a picture, in order. pictureless: how many rows had none and were left out.
        md5: hex digest of the file.

    Raises:
        ValueError: columns are missing, a row has too few or too many cells, two rows have one index, or a row refers
            to a picture that is not there; the message names file and row.
    """

    def __init__(self, path: str | Path, *, max_pixels: int = MAX_PIXELS):
        self.path = Path(path)
        self._max_pixels = max_pixels
        self._file = RecordFile(self.path)
        records = iter(self._file)
        header = next(records, None)
        self._columns = self._check_header(header)
        rows = [self._row(record, number) for number, record in enumerate(records, 1)]
        self._check_indices([row for row, _ in rows])
        self.questions = tuple(self._resolve(rows))
        self.pictureless = len(rows) - len(self.questions)
        self.md5 = self._file.md5
        if not self.questions:
            raise ValueError(f"{self.path} has no row with a picture")

    def name(self, question: TableQuestion) -> str:
        """How errors call a row."""
        return f"{self.path}, row {question.row} (index {question.index})"

    def sizes(self, question: TableQuestion) -> list[tuple[int, int]]:
        """(height, width) of each of [`pictures`], read from their headers.

        Raises:
            ValueError: as in [`pictures`], or together they are too large to be frames of one size.
        """
        with self._naming(question):
            sizes = [self._header_size(source) for source in self._sources(question)]
            common_size(sizes)
            return sizes

    def pictures(self, question: TableQuestion) -> list[np.ndarray]:
        """The pictures of a row, uint8 RGB (H, W, 3).

        Raises:
            ValueError: base64 or picture are damaged, or too large; the message names the row.
        """
        with self._naming(question):
            sources = self._sources(question)
            return [np.asarray(load_image(source, max_pixels=self._max_pixels)) for source in sources]

    def _check_header(self, header: Record | None) -> dict[str, int]:
        columns = {_text(cell).strip(): number for number, cell in enumerate(header.cells if header else ())}
        missing = [name for name in _NEEDED if name not in columns]
        if not {"image", "image_path"} & columns.keys():
            missing.append("image or image_path")
        if missing:
            raise ValueError(
                f"{self.path} lacks the columns {', '.join(missing)}; its first line has {', '.join(columns) or 'none'}"
            )
        return columns

    def _row(self, record: Record, row: int) -> tuple[TableQuestion, str]:
        """A row, and the index of the row that holds its picture, "" when it has one of its own or none."""
        if len(record.cells) != len(self._columns):
            raise ValueError(
                f"{self.path}, row {row} (line {record.line}): {len(record.cells)} cells, but the header has "
                f"{len(self._columns)} columns; is a tab or a quote missing?"
            )
        try:
            cells = {name: _text(record.cells[at]) for name, at in self._columns.items() if name != "image"}
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}, row {row} (line {record.line}) is not UTF-8: {error}") from error
        image = record.cells[self._columns["image"]].strip() if "image" in self._columns else b""
        reference = _text(image) if len(image) <= REFERENCE_LENGTH else ""
        inside = bool(image) and not reference
        question = TableQuestion(
            row=row,
            index=cells["index"].strip(),
            question=cells["question"],
            answer=cells["answer"].strip(),
            options={letter: cells[letter] for letter in ascii_uppercase if cells.get(letter)},
            hint=cells.get("hint", ""),
            category=cells.get("category", "").strip(),
            l2_category=(cells.get("l2-category") or cells.get("l2_category", "")).strip(),
            split=cells.get("split", "").strip(),
            group=cells.get("g_index", "").strip(),
            picture=_digest(image) if inside else cells.get("image_path", ""),
            image_path=cells.get("image_path", ""),
            place=(record.offset, record.length) if inside else None,
        )
        return question, reference

    def _check_indices(self, rows: Sequence[TableQuestion]) -> None:
        seen: dict[str, int] = {}
        for row in rows:
            if row.index in seen:
                raise ValueError(f"{self.name(row)}: row {seen[row.index]} has the same index")
            seen[row.index] = row.row

    def _resolve(self, rows: Sequence[tuple[TableQuestion, str]]) -> Iterator[TableQuestion]:
        """Rows with a picture, references to other rows' pictures followed."""
        holders = {row.index: row for row, _ in rows if row.place}
        for row, reference in rows:
            if reference and reference not in holders:
                raise ValueError(f"{self.name(row)}: its image is {reference!r}, but no row of that index has one")
            if reference:
                yield replace(row, picture=holders[reference].picture, place=holders[reference].place)
            elif row.picture:
                yield row

    def _sources(self, question: TableQuestion) -> list[bytes | Path]:
        """What holds the pictures of a row: decoded base64, or paths."""
        if question.place is None:
            return [self._beside(Path(name)) for name in _listed(question.image_path)]
        cell = self._file.cells_at(*question.place)[self._columns["image"]]
        return [_decoded(text) for text in _listed(_text(cell.strip()))]

    def _beside(self, path: Path) -> Path:
        """A picture file: absolute, next to the TSV, or in VLMEvalKit's folder of pictures."""
        folders = (self.path.parent, self.path.parent / "images" / self.path.stem)
        found = next((folder / path for folder in folders if (folder / path).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"there is no file {path} in {' or '.join(map(str, folders))}")
        return found

    def _header_size(self, source: bytes | Path) -> tuple[int, int]:
        file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        with open_picture(file, "the picture", self._max_pixels) as image:
            return _upright_size(image)

    @contextmanager
    def _naming(self, question: TableQuestion) -> Iterator[None]:
        """Errors about a picture say whose it is."""
        try:
            yield
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.name(question)}: its picture cannot be read: {error}") from error


def common_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The greatest height and the greatest width among (height, width).

    Raises:
        ValueError: a picture of that size would be too large to make.
    """
    height, width = max(height for height, _ in sizes), max(width for _, width in sizes)
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"pictures of the sizes {', '.join(f'{w}x{h}' for h, w in sizes)} cannot be frames of one clip"
        )
    return height, width


def as_clip(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Several pictures as the frames of a clip, each resized to [`common_size`].

    The models take one picture or one clip, whose frames have one size. InternVL-based ones squeeze every frame into a
    square anyway, so what they see does not change.

    Args:
        pictures: uint8 RGB (H, W, 3) of any sizes.
    """
    height, width = common_size([picture.shape[:2] for picture in pictures])
    return [
        picture
        if picture.shape[:2] == (height, width)
        else np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
        for picture in pictures
    ]


def _listed(cell: str) -> list[str]:
    """A cell's values: it is one itself, or a list written in Python's way."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return [cell]
    try:
        values = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"expected a list of texts, got {cell[:60]!r}...") from error
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"expected a list of texts, got {cell[:60]!r}...")
    return list(values)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"it is not valid base64 ({error})") from error


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    try:
        sideways = image.getexif().get(_ORIENTATION, 1) >= _SIDEWAYS
    except Exception:
        # As when the picture is loaded: EXIF data that cannot be parsed says nothing about orientation.
        sideways = False
    return (width, height) if sideways else (height, width)


def _digest(cell: bytes) -> str:
    return hashlib.md5(cell, usedforsecurity=False).hexdigest()


def _text(cell: bytes) -> str:
    return cell.decode("utf-8")
