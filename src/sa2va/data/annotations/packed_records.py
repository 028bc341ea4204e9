"""Many records packed into one buffer, which the workers of a data loader share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np


class PackedRecords:
    """A sequence of JSON values, made when asked for.

    Hundreds of thousands of dictionaries take gigabytes, and each worker gets its own copy as it counts references.
    """

    def __init__(self, records: Iterable[Any]):
        lines = [json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() for record in records]
        self._ends = np.cumsum([0, *map(len, lines)])
        self._text = b"".join(lines)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        start, end = self._ends[index % len(self)], self._ends[index % len(self) + 1]
        return json.loads(self._text[start:end])
