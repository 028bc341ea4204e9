"""A model as a class for ``map_batches`` of Ray Data, and others that call with columns. Needs the extra ``bulk``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import numpy as np

from sa2va.bulk.answering import answer_rows
from sa2va.bulk.arrow import answer_schema
from sa2va.bulk.batch_rows import FIELDS, Ask, BatchRow
from sa2va.bulk.remote_files import Loaded, medium_of
from sa2va.inference.options import Options
from sa2va.model.quantization import Quantization
from sa2va.predictor import Sa2VA
from sa2va.runtime import require_extra

#: What is not told about a batch's rows, which have no place in a source.
_ANSWER_FIELDS = tuple(name for name in FIELDS if name not in ("index", "id", "source"))


class Answerer:
    """Answers batches of rows; made once per process, it keeps its model.

    With Ray Data, give its actors no CPUs: what reads and decodes needs them, and where actors hold all, nothing is
    ever read and the job stands still.

    ```text
    ds.map_batches(Answerer, fn_constructor_kwargs={"model": "Sa2VA-4B", "phrases": ["the red car"]},
                   batch_size=64, num_cpus=0, num_gpus=1, concurrency=(1, 8))
    ```

    Args:
        model: as for [`Sa2VA.from_pretrained`]; so are ``device``, ``dtype`` and ``quantization``.
        phrases, question, caption: what is asked of every row, one of them; rows with a column ``phrases`` (lists of
            texts) or ``question`` are asked that instead.
        media: the column of pictures and clips: paths or URLs, bytes of files, or uint8 arrays (H, W, 3) as
            ``ray.data.read_images`` gives them.
        options: see [`Sa2VA`].

    Raises:
        ValueError: several things are asked; or as in [`Sa2VA.from_pretrained`].

    Examples:
        >>> import numpy as np
        >>> from sa2va.bulk import Answerer
        >>> answerer = Answerer("tiny", phrases=["the yellow cloud"])
        >>> table = answerer({"image": np.array(["shapes.png", "gone.png"]), "shelf": np.array([4, 7])})
        >>> table.column_names
        ['image', 'shelf', 'asked', 'size', 'text', 'reasons', 'segments', 'error']
        >>> [len(segments) for segments in table["segments"].to_pylist()]
        [1, 0]
        >>> table["error"].to_pylist()
        [None, 'no such file or directory: gone.png']
    """

    def __init__(
        self,
        model: str | Path,
        *,
        phrases: Sequence[str] = (),
        question: str | None = None,
        caption: bool = False,
        media: str = "image",
        device: str | None = None,
        dtype: str | None = None,
        quantization: Quantization | None = None,
        **options: Unpack[Options],
    ):
        require_extra("pyarrow", "bulk")
        asked = bool(phrases) or question is not None or caption
        self._ask = Ask(tuple(phrases), question, caption) if asked else None
        self._media, self._options = media, dict(options)
        self._sa2va = Sa2VA.from_pretrained(model, device=device, dtype=dtype, quantization=quantization)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Any:
        """Answer a batch.

        Args:
            batch: columns of equal length.

        Returns:
            A ``pyarrow.Table`` of as many rows: the columns of the batch but for pixels and bytes, and ``asked``,
            ``size``, ``text``, ``reasons``, ``segments`` and ``error``, as in the results of ``sa2va batch``.

        Raises:
            ValueError: there is no such column, one has the name of an answer's, or nothing is asked of a row.
        """
        pa = require_extra("pyarrow", "bulk")
        if self._media not in batch:
            raise ValueError(f"expected media in a column {self._media!r}, got {', '.join(batch)}; name it with media=")
        if taken := sorted({*batch} & {*_ANSWER_FIELDS}):
            raise ValueError(f"columns {', '.join(taken)} have names of the answers; rename them")
        with TemporaryDirectory(prefix="sa2va-") as scratch:
            rows = [self._loaded(index, batch, Path(scratch)) for index in range(len(batch[self._media]))]
            records = list(answer_rows(self._sa2va, rows, self._ask, self._options))
        kept = {name: column for name, column in batch.items() if name != self._media or _is_text(column)}
        columns = {name: pa.array(column if column.ndim == 1 else list(column)) for name, column in kept.items()}
        answers = pa.Table.from_pylist(records, answer_schema({}, run=()).remove(0).remove(0).remove(0))
        return pa.table(columns | dict(zip(answers.column_names, answers.columns, strict=True)))

    def _loaded(self, index: int, batch: Mapping[str, np.ndarray], scratch: Path) -> Loaded:
        own = {name: _plain(batch[name][index]) for name in ("phrases", "question") if name in batch}
        medium = _plain(batch[self._media][index])
        row = BatchRow(index, "", medium if isinstance(medium, str) else f"row {index}", Ask.of(own))
        if row.ask is None and self._ask is None:
            raise ValueError(
                f"nothing is asked of row {index}; give phrases=, question= or caption=, or a column of them"
            )
        return row, medium_of(medium, scratch) if isinstance(medium, str) else medium


def _plain(value: Any) -> Any:
    """A value of a column as the model takes it: lists and texts of Python, pixels as an array."""
    if isinstance(value, np.ndarray) and value.dtype != np.uint8:
        return value.tolist()
    return str(value) if isinstance(value, np.str_) else bytes(value) if isinstance(value, np.bytes_) else value


def _is_text(column: np.ndarray) -> bool:
    return column.dtype.kind == "U" or (column.dtype == object and all(isinstance(one, str) for one in column))
