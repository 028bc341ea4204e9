"""Tab-separated records of any size, one after the other, with the place of each in the file.

Files of benchmarks hold pictures as base64 and reach gigabytes, beyond what ``csv`` takes in a cell without changing a
limit of the whole process. Rules are those of ``csv``: a cell that starts with a quote ends at the next single one, and
may hold tabs, line breaks and doubled quotes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

#: The longest record (bytes): far above any question with its pictures, far below what a machine can hold.
MAX_RECORD = 256 << 20
# Possessive, so that a quoted cell without an end fails at once instead of trying shorter ones.
_QUOTED = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"')
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Record:
    """One record: its cells, and where it stands.

    Attributes:
        line: number of its first line, from 1. offset, length: its bytes in the file, line end included.
    """

    cells: tuple[bytes, ...]
    line: int
    offset: int
    length: int


class RecordFile:
    """A tab-separated file, read forwards once; single records again by their place.

    Attributes:
        path: of the file. md5: hex digest of the whole file, "" until it has been read to its end.
    """

    def __init__(self, path: Path, *, max_record: int = MAX_RECORD):
        self.path = path
        self.md5 = ""
        self._max_record = max_record

    def __iter__(self) -> Iterator[Record]:
        """All records, blank lines left out.

        Raises:
            ValueError: a record is too long, or a quote is never closed.
        """
        digest = hashlib.md5(usedforsecurity=False)
        with open(self.path, "rb") as file:
            line, offset = 1, 0
            while raw := self._line(file, line, 0):
                first, pieces = line, [raw]
                cells = split_cells(_bare(raw, first))
                while cells is None:
                    more = self._line(file, first, sum(map(len, pieces)))
                    if not more:
                        raise ValueError(f"{self.path}, line {first}: a quoted cell is not closed before the file ends")
                    pieces.append(more)
                    # A line without a quote cannot close the cell, so only the others are worth a look.
                    cells = split_cells(_bare(b"".join(pieces), first)) if b'"' in more else None
                record = b"".join(pieces)
                digest.update(record)
                if record.strip(b"\r\n"):
                    yield Record(tuple(cells), first, offset, len(record))
                line, offset = line + len(pieces), offset + len(record)
        self.md5 = digest.hexdigest()

    def cells_at(self, offset: int, length: int) -> tuple[bytes, ...]:
        """The cells of the record at a place that was read before.

        Raises:
            ValueError: there is no whole record any more, since the file has changed.
        """
        with open(self.path, "rb") as file:
            file.seek(offset)
            record = file.read(length)
        cells = split_cells(_bare(record, 1 if offset == 0 else 2))
        if len(record) != length or cells is None:
            raise ValueError(f"{self.path} has changed since it was opened; open it again")
        return tuple(cells)

    def _line(self, file: IO[bytes], first: int, held: int) -> bytes:
        line = file.readline(self._max_record - held + 1)
        if held + len(line) > self._max_record:
            raise ValueError(
                f"{self.path}, line {first}: the record is longer than {self._max_record} bytes; "
                "is a quote missing, or is this no tab-separated file?"
            )
        return line


def split_cells(record: bytes) -> list[bytes] | None:
    """The cells of one record without its line end, unquoted; None when a quoted cell is still open."""
    if b'"' not in record:
        return record.split(b"\t")
    cells, start = [], 0
    while True:
        quoted = _QUOTED.match(record, start)
        if quoted is None and record.startswith(b'"', start):
            return None
        begin = quoted.end() if quoted else start
        end = record.find(b"\t", begin)
        rest = record[begin : end if end >= 0 else None]
        cells.append((quoted[0][1:-1].replace(b'""', b'"') if quoted else b"") + rest)
        if end < 0:
            return cells
        start = end + 1


def _bare(record: bytes, line: int) -> bytes:
    if line == 1:
        record = record.removeprefix(_BOM)
    return record.removesuffix(b"\n").removesuffix(b"\r")
