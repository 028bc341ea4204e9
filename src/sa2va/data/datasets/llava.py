"""Conversations in LLaVA's JSON as samples: about a picture, of several turns, or of text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sa2va.data.annotations.annotated_images import upright_picture
from sa2va.data.annotations.conversations import PackedRecords, place_image, read_conversation
from sa2va.data.annotations.layout import PictureFolders, Problems, read_json, require_files
from sa2va.data.sample import Sample
from sa2va.results.history import Turn

_ORIGIN = "liuhaotian/LLaVA-Instruct-150K and the picture sets it names"


class Llava:
    """``[{"image": path, "conversations": [...]}, ...]``; entries without ``image`` are text alone.

    A picture stands where the first question says ``<image>``. Conversations are cut before a turn that is empty or
    holds one of the model's own tokens as text; those of which nothing is left are left out. Both are counted. Pictures
    are shown upright, as at inference.

    Args:
        root: the folder of all data. annotations, images: the JSON and the folder of pictures, relative to it.
        text_only: also take the entries without picture.
        skip_broken: leave out entries whose picture is missing or that are malformed, with a warning.

    Attributes:
        shortened: conversations that lost turns. left_out: those that lost all.

    Raises:
        MissingData: files are missing; the message names them. ValueError: entries are malformed.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        annotations: str = "llava_data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json",
        images: str = "llava_data/llava_images",
        text_only: bool = True,
        skip_broken: bool = False,
    ):
        path, folder = Path(root) / annotations, Path(root) / images
        require_files("LLaVA conversations", {path: _ORIGIN, folder: _ORIGIN})
        entries = read_json(path)
        if not isinstance(entries, list):
            raise ValueError(f"{path} must hold a list of conversations, got {type(entries).__name__}")
        self.shortened = self.left_out = 0
        problems, folders = Problems(str(path)), PictureFolders((folder,))
        found = (self._record(number, entry, problems, folders) for number, entry in enumerate(entries))
        self.records = PackedRecords(
            record for record in found if record is not None and (text_only or record[1] is not None)
        )
        problems.settle(len(self.records), skip=skip_broken)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        number, image, turns = self.records[index]
        return Sample(
            id=f"llava/{number}",
            frames=() if image is None else (upright_picture(Path(image)).frame,),
            turns=tuple(Turn(*turn) for turn in turns),
            source="llava",
        )

    def _record(
        self, number: int, entry: Any, problems: Problems, folders: PictureFolders
    ) -> tuple[int, str | None, list[tuple[str, str]]] | None:
        """Number, picture and turns of a good entry."""
        image = entry.get("image") if isinstance(entry, dict) else None
        try:
            if not isinstance(entry, dict) or not isinstance(image, str | None):
                raise ValueError("an entry is no object with conversations and at most one image")
            turns = read_conversation(entry.get("conversations"))
            shortened = len(turns) < _answers(entry["conversations"])
            turns = turns and place_image(turns, picture=bool(image))
        except ValueError as error:
            problems.malformed(str(error), f"entry {number}")
            return None
        if not turns:
            self.left_out += 1
            return None
        path = folders.find(image) if image else None
        if path and not problems.present(path, _ORIGIN):
            return None
        self.shortened += shortened
        return number, str(path) if path else None, turns


def _answers(messages: list[dict[str, Any]]) -> int:
    """Answers that have a question before them."""
    speakers = [message["from"] for message in messages]
    first = speakers.index("human") if "human" in speakers else len(speakers)
    return speakers[first:].count("gpt")
