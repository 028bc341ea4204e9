"""Questions and answers about whole videos as training samples: Chat-UniVi, and own files in its form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sa2va.data.annotations.conversations import PackedRecords, read_conversation
from sa2va.data.annotations.layout import PictureFolders, Problems, read_json, require_files, tails
from sa2va.data.datasets.conversation_sampling import Draws
from sa2va.data.datasets.frame_sampling import SeekedFrames, check_counts, draw_from_segments
from sa2va.data.sample import Sample
from sa2va.media.video_file import VideoFile
from sa2va.results.history import Turn

_PLACEHOLDER = re.compile(r"<(?:video|image)>\s*")
#: Collections were converted along their way from one disk to the next, their annotations were not.
_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
_ORIGIN = "Chat-UniVi, in Dense-World/Sa2VA-Training"


class VideoQuestions:
    """Video chat: ``ROOT/video_datas/chat_univi/{video_chat.json, Activity_Videos}``; one sample per conversation.

    Sample ``i`` shows view ``i // conversations``. A view has one frame, drawn by ``seed`` and ``i``, of each of
    ``frames`` equal stretches of the video, and all frames of a shorter one. Only these are decoded.

    Args:
        root: the folder of all data. frames: of a sample. views: samples per conversation. seed: of the frames.
        annotations, videos: the JSON and the folder of videos, relative to ``root``:
            ``[{"video": name, "conversations": [{"from": "human" or "gpt", "value": text}, ...]}, ...]``.
        skip_broken: leave out entries that are malformed or whose video is missing, with a warning.

    Raises:
        MissingData: a file or folder is missing. ValueError: entries are malformed; the message names them.
    """

    name = "video-chat"

    def __init__(
        self,
        root: str | Path,
        *,
        frames: int = 5,
        views: int = 1,
        seed: int = 0,
        annotations: str = "video_datas/chat_univi/video_chat.json",
        videos: str = "video_datas/chat_univi/Activity_Videos",
        skip_broken: bool = False,
    ):
        check_counts(frames=frames)
        self.frames, self.draws = frames, Draws(seed, views=views)
        path, self.folder = Path(root) / annotations, Path(root) / videos
        require_files("video chat", {path: _ORIGIN, self.folder: _ORIGIN})
        entries = read_json(path)
        if not isinstance(entries, list):
            raise ValueError(f"{path} must hold a list of conversations, got {type(entries).__name__}")
        problems, folders = Problems(str(path)), PictureFolders(())
        found = (self._record(number, entry, problems, folders) for number, entry in enumerate(entries))
        self.records = PackedRecords(record for record in found if record is not None)
        problems.settle(len(self.records), skip=skip_broken)

    def __len__(self) -> int:
        return len(self.records) * self.draws.views

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, frames undecoded. ValueError or OSError when its video is damaged."""
        view = self.draws.view(index, len(self.records))
        number, name, turns = self.records[view.place]
        video = VideoFile(Path(name), threads=1)
        shown = draw_from_segments(video.frame_count, self.frames, self.draws.clip(index).rng)
        return Sample(
            id=f"{self.name}/{number}{view.suffix}",
            frames=SeekedFrames(video, shown).lazy,
            turns=tuple(Turn(*turn) for turn in turns),
            video=True,
            source=self.name,
        )

    def _record(
        self, number: int, entry: Any, problems: Problems, folders: PictureFolders
    ) -> tuple[int, str, list[tuple[str, str]]] | None:
        """Number, video and turns of a good entry."""
        try:
            name = entry.get("video") if isinstance(entry, dict) else None
            if not isinstance(entry, dict) or not isinstance(name, str) or not name:
                raise ValueError("an entry names no video")
            spoken = read_conversation(entry.get("conversations"))
            turns = [(_PLACEHOLDER.sub("", question).strip(), answer) for question, answer in spoken]
            if not turns or not all(question for question, _ in turns):
                raise ValueError("an entry has no question with an answer")
        except ValueError as error:
            problems.malformed(str(error), f"entry {number}")
            return None
        written = [self.folder / tail for tail in tails(name)]
        places = (place for path in written for place in (path, *map(path.with_suffix, _SUFFIXES)))
        path = next(filter(folders.has, places), written[0])
        return (number, str(path), turns) if problems.present(path, _ORIGIN) else None
