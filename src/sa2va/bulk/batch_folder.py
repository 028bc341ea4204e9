"""The folder of a batch: what is asked, and the answers in shards that appear whole.

```text
run.json       what answers, and how
rows.jsonl     every row, as the source had it when the run began
shards/        the answers to rows 0..63, 64..127, ... in a file each
```

A shard's number says which rows it answers. So a run that was killed at any moment goes on with the shards that are
missing, and every row is answered exactly once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sa2va import __version__
from sa2va.atomic import RUN_RECORD, remove_leftovers, replacing
from sa2va.bulk.batch_rows import Ask, BatchRow
from sa2va.untrusted import parse_json, read_json_object, reading

ROWS, SHARDS = "rows.jsonl", "shards"
#: So many rows are lost, and asked again, when a run is killed.
ROWS_PER_SHARD = 64


@dataclass(frozen=True)
class BatchSettings:
    """What the answers depend on.

    Attributes:
        source, model: as given. ask: of rows that do not say it themselves.
        options: keywords of [`Sa2VA`]'s methods, JSON-ready. dtype, quantize: as given.
    """

    source: str
    model: str
    ask: Ask | None
    options: dict[str, Any]
    dtype: str = "auto"
    quantize: str = ""

    @property
    def record(self) -> dict[str, Any]:
        """All fields, ready for JSON, with the version of this package."""
        ask = {} if self.ask is None else self.ask.record
        about = {"dtype": self.dtype, "quantize": self.quantize, "sa2va": __version__}
        return {"source": self.source, "model": self.model, **ask, **self.options, **about}


@dataclass(frozen=True)
class RowShard:
    """Rows that are answered in one file."""

    number: int
    rows: Sequence[BatchRow]


class BatchFolder:
    """A batch on disk, made by [`start`].

    Attributes:
        path: the folder. settings: ``BatchSettings.record`` of the run. rows: how many there are.
        revision: the commit or fingerprint of the weights that answer; "" before the first answer.
    """

    def __init__(self, path: Path):
        record = read_json_object(path / RUN_RECORD)
        with reading(path / RUN_RECORD, "the record of a batch"):
            self.settings: dict[str, Any] = dict(record["settings"])
            self.rows, self.revision = int(record["rows"]), str(record["revision"])
            self._per_shard = int(record["rows_per_shard"])
        self.path = path
        self._shards = path / SHARDS

    @classmethod
    def start(
        cls, path: Path, settings: BatchSettings, rows: Iterable[BatchRow], *, rows_per_shard: int = ROWS_PER_SHARD
    ) -> BatchFolder:
        """Write down what is asked, all of it before the folder counts as a batch.

        Raises:
            ValueError: a row is malformed, or there are none.
        """
        count = 0
        with replacing(path / ROWS) as temporary, temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row.record, ensure_ascii=False) + "\n")
                count += 1
            if not count:
                raise ValueError(f"{settings.source} has no rows")
        cls._write(path, settings.record, count, rows_per_shard, "")
        return cls(path)

    @staticmethod
    def _write(path: Path, settings: dict[str, Any], rows: int, rows_per_shard: int, revision: str) -> None:
        record = {"settings": settings, "revision": revision, "rows": rows, "rows_per_shard": rows_per_shard}
        with replacing(path / RUN_RECORD) as temporary:
            temporary.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def holds_batch(path: Path) -> bool:
        """Whether a batch was started in a folder. ValueError where something else is in it."""
        remove_leftovers(path)
        if (path / RUN_RECORD).is_file():
            return True
        if path.is_dir() and any(entry.name != ROWS for entry in path.iterdir()):
            raise ValueError(f"{path} is not empty, and no batch was started in it; choose another folder")
        return False

    def check_settings(self, settings: BatchSettings) -> None:
        """Refuse to go on with other settings; the message shows what was and what is given."""
        theirs, ours = self.settings, settings.record
        names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
        if names:
            before, now = ({name: one[name] for name in names if name in one} for one in (theirs, ours))
            raise ValueError(
                f"{self.path} holds a batch with other settings: it was {_shown(before)}, now it is {_shown(now)}; "
                "go on with the same settings, or choose another -o"
            )

    def settle_revision(self, revision: str) -> None:
        """Note which weights answer, or make sure that they are those of the answers that are there.

        Raises:
            ValueError: they are others.
        """
        if not self.revision:
            self._write(self.path, self.settings, self.rows, self._per_shard, revision)
            self.revision = revision
        elif self.revision != revision:
            raise ValueError(
                f"{self.path} holds answers of other weights: they were {self.revision}, now they are {revision}; "
                "go on with the same model, or choose another -o"
            )

    @property
    def shard_count(self) -> int:
        """How many shards the whole batch has."""
        return -(-self.rows // self._per_shard)

    def missing(self) -> list[int]:
        """Numbers of the shards that are not answered, in order."""
        there = {path.name for path in self._answered()}
        return [number for number in range(self.shard_count) if _name(number) not in there]

    def rows_in(self, shards: Iterable[int]) -> int:
        """How many rows some shards have."""
        last = self.shard_count - 1
        return sum(self.rows - last * self._per_shard if number == last else self._per_shard for number in shards)

    def read_rows(self) -> Iterator[BatchRow]:
        """All rows, in order."""
        path = self.path / ROWS
        with open(path, encoding="utf-8") as file:
            for index, line in enumerate(file):
                with reading(f"{path}:{index + 1}"):
                    row = BatchRow.of(index, parse_json(line))
                yield row

    def shards(self, numbers: Sequence[int]) -> Iterator[RowShard]:
        """Some shards with their rows, one after the other."""
        wanted, rows = set(numbers), self.read_rows()
        for number in range(self.shard_count):
            own = list(islice(rows, self._per_shard))
            if number in wanted:
                yield RowShard(number, own)

    def write(self, number: int, records: Sequence[dict[str, Any]]) -> None:
        """Write the answers of a shard, whole or not at all."""
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records]
        with replacing(self._shards / _name(number)) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")

    def records(self) -> Iterator[dict[str, Any]]:
        """All answers there are, in the order of the source, read one after the other."""
        for path in self._answered():
            with open(path, encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    with reading(f"{path}:{number}"):
                        record = parse_json(line)
                    yield record

    def _answered(self) -> list[Path]:
        """The shards that are there; what is being written has a hidden name."""
        return sorted(self._shards.glob("[0-9]*.jsonl"))


def _name(number: int) -> str:
    return f"{number:08d}.jsonl"


def _shown(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()) or "unset"
