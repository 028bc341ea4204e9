"""Check the tables of an mp4 or mov before FFmpeg expands them: a few bytes can stand for gigabytes.

A constant sample size, a run of equal durations or a fragment's header counts samples without listing them, and each
entry of an edit list may repeat them all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

_CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf"}
_RUNS = {b"stts", b"ctts"}
_MAX_BOXES = 1_000_000
_MAX_DEPTH = 8
# Edit lists of real films repeat few samples.
_FREE_REPEATS = 10**7


@dataclass
class _Track:
    """The largest number of samples a table claims, the number of edits, and what rules out that FFmpeg lists them."""

    samples: int = 0
    edits: int = 0
    sound: bool = False
    unit_durations: bool = False


def check_tables(path: Path, max_tracks: int) -> None:
    """Refuse a file whose tables claim more than it can hold.

    Raises:
        ValueError: more samples than bytes, more than ``max_tracks`` tracks, or edits that repeat samples without end.
    """
    weight = os.path.getsize(path)
    with open(path, "rb") as file:
        reader = _Reader(file, path)
        reader.read(0, weight, _Track(), 0)
    if len(reader.tracks) > max_tracks:
        raise ValueError(f"{path} has {len(reader.tracks)} tracks; at most {max_tracks} are read")
    # Sound of one sample a tick is counted, never listed: compressed, it may have more samples than bytes.
    listed = [track for track in reader.tracks if not (track.sound and track.unit_durations)]
    samples = sum(track.samples for track in listed) + reader.fragment_samples
    repeated = sum(track.samples * track.edits for track in listed)
    if samples > weight or repeated > max(weight, _FREE_REPEATS):
        raise ValueError(
            f"{path} claims {max(samples, repeated)} samples in {weight} bytes; it is no real video, or damaged"
        )


class _Reader:
    """Walks through the boxes that hold tables."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._seen = 0
        self.tracks: list[_Track] = []
        self.fragment_samples = 0

    def read(self, start: int, end: int, track: _Track, depth: int) -> None:
        for kind, body, stop in self._boxes(start, end):
            if kind in _CONTAINERS and depth < _MAX_DEPTH:
                own = _Track() if kind == b"trak" else track
                if kind == b"trak":
                    self.tracks.append(own)
                self.read(body, stop, own, depth + 1)
            elif kind == b"cmov":
                raise ValueError(f"{self._path} has a compressed header; write it anew: ffmpeg -i IN -c copy OUT.mp4")
            else:
                self._read_table(kind, body, stop, track)

    def _boxes(self, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """(type, where the body begins, where it ends) of each box."""
        while position + 8 <= end:
            self._seen += 1
            if self._seen > _MAX_BOXES:
                raise ValueError(f"{self._path} has more than {_MAX_BOXES} boxes; it is no real video, or damaged")
            head = self._at(position, 16)
            length, kind, body = int.from_bytes(head[:4]), head[4:8], position + 8
            if length == 1:
                length, body = int.from_bytes(head[8:16]), position + 16
            stop = end if length == 0 else min(end, position + length)
            if stop < body:
                return
            yield kind, body, stop
            position = stop

    def _read_table(self, kind: bytes, body: int, stop: int, track: _Track) -> None:
        if kind in (b"stsz", b"stz2"):
            track.samples = max(track.samples, int.from_bytes(self._at(body + 8, 4)))
        elif kind == b"trun":
            self.fragment_samples += int.from_bytes(self._at(body + 4, 4))
        elif kind == b"elst":
            track.edits += int.from_bytes(self._at(body + 4, 4))
        elif kind == b"hdlr":
            track.sound = self._at(body + 8, 4) == b"soun"
        elif kind in _RUNS:
            data = self._at(body + 8, max(0, stop - body - 8))
            runs = np.frombuffer(data[: len(data) // 8 * 8], ">u4").reshape(-1, 2)
            track.samples = max(track.samples, int(runs[:, 0].sum(dtype=np.uint64)))
            if kind == b"stts":
                track.unit_durations = len(runs) == 1 and runs[0, 1] == 1

    def _at(self, position: int, count: int) -> bytes:
        self._file.seek(position)
        return self._file.read(count)
