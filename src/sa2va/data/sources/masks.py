"""Own pictures with PNG masks: one picture of object numbers each, or one black and white picture per object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sa2va.data.formats.layout import Problems, read_json, require_files
from sa2va.data.formats.pictures import read_numbers, stored_size
from sa2va.data.sample import Sample
from sa2va.data.sources.requests import MOST_PHRASES, Draws, Request, requests_sample
from sa2va.mask import Mask, Size

_PICTURES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))


@dataclass(frozen=True)
class _Entry:
    """One picture. phrases: of each object. files: the mask of each object. numbered: it holds objects' numbers."""

    image: Path
    size: Size
    phrases: dict[str, list[str]]
    files: dict[str, Path]
    numbered: bool

    def masks(self) -> dict[str, np.ndarray]:
        """bool (H, W) of each object; its file is decoded once."""
        decoded = {path: read_numbers(path) for path in set(self.files.values())}
        return {
            name: decoded[path] == int(name) if self.numbered else decoded[path] != 0
            for name, path in self.files.items()
        }


class MaskFolder:
    """``ROOT/images/NAME.jpg``, ``ROOT/masks`` and ``ROOT/phrases.json``; a turn per phrase.

    Masks and phrases come in four forms, where a phrase may be a list of phrases that all mean the object:

    * ``masks/NAME.png`` holds the objects' numbers, ``{"NAME": {"1": phrase, "2": phrase}}`` says what they are;
    * ``masks/NAME.png`` holds numbers that mean the same in all pictures: ``{"1": phrase, "2": phrase}``. Of a picture
      the phrases of the numbers that it holds are asked for, or one that it lacks if it holds none;
    * ``masks/NAME.png`` is 0 but for one object: ``{"NAME": phrase}``;
    * ``masks/NAME/OBJECT.png`` is 0 but for the object: ``{"NAME": {"OBJECT": phrase}}``.

    Args:
        root: the folder. seed, phrases, views: see [`Draws`].
        skip_broken: leave out pictures with missing or malformed masks, with a warning, instead of refusing.

    Raises:
        MissingData: files are missing; the message names them. ValueError: phrases or sizes are wrong. That a mask
            lacks its object shows only when the sample is asked for, as a ValueError too.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        seed: int = 0,
        phrases: int = MOST_PHRASES,
        views: int = 1,
        skip_broken: bool = False,
    ):
        self.root, self.draws = Path(root), Draws(seed, phrases, views)
        path = self.root / "phrases.json"
        folders = {self.root / "images": "your pictures", self.root / "masks": "your masks"}
        require_files("pictures with masks", {path: "you: what each mask is called", **folders})
        said = read_json(path)
        if not isinstance(said, dict) or not said:
            raise ValueError(f"{path} must hold an object whose keys are pictures or numbers, got {str(said)[:80]}")
        problems = Problems(str(self.root))
        pictures = _pictures(self.root / "images", problems)
        self.common = not said.keys() & pictures.keys() and all(map(str.isdecimal, said))
        wanted = dict.fromkeys(pictures, said) if self.common else said
        found = [self._entry(name, pictures.get(name), own, problems) for name, own in wanted.items()]
        self.entries = [entry for entry in found if entry is not None]
        problems.settle(len(self.entries), skip=skip_broken)

    def __len__(self) -> int:
        return len(self.entries) * self.draws.views

    def key(self, index: int) -> str:
        """The file name of a sample's picture."""
        return self.entries[self.draws.view(index, len(self.entries)).place].image.name

    def __getitem__(self, index: int) -> Sample:
        view = self.draws.view(index, len(self.entries))
        entry = self.entries[view.place]
        masks = entry.masks()
        seen = {name: mask for name, mask in masks.items() if mask.any()}
        if len(seen) < len(masks) and not self.common:
            raise ValueError(
                f"picture {entry.image.name}: the masks of {sorted(masks.keys() - seen.keys())} are empty; paint the "
                f"objects, or take them out of {self.root / 'phrases.json'}"
            )
        said = [(phrase, name) for name in seen or masks for phrase in entry.phrases[name]]
        drawn = self.draws.choose(said, view)
        return requests_sample(
            [Request(phrase, _made(masks[name])) for phrase, name in (drawn if seen else drawn[:1])],
            self.draws.wording(index),
            name=f"masks/{entry.image.stem}{view.suffix}",
            image=entry.image,
            size=entry.size,
            source="masks",
        )

    def _entry(self, name: str, image: Path | None, said: Any, problems: Problems) -> _Entry | None:
        """A good entry; what is wrong with another is noted."""
        phrases = _phrases(said)
        single, folder = self.root / "masks" / f"{name}.png", self.root / "masks" / name
        numbered = isinstance(said, dict) and not folder.is_dir()
        if image is None:
            problems.missing(self.root / "images" / f"{name}.*", "your pictures")
        elif not phrases or (numbered and not all(map(str.isdecimal, phrases))):
            problems.malformed("an object has no phrase, or its number is none", name)
        else:
            files = {key: folder / f"{key}.png" if folder.is_dir() else single for key in phrases}
            size = _size(image, problems)
            if size and _good_files(files, size, problems):
                return _Entry(image, size, phrases, files, numbered)
        return None


def _good_files(files: dict[str, Path], size: Size, problems: Problems) -> bool:
    good = True
    for path in dict.fromkeys(files.values()):
        own = _size(path, problems) if path.is_file() else None
        if not path.is_file():
            problems.missing(path, "your masks")
        elif own and own != size:
            problems.malformed("a mask has not the size of its picture", str(path))
        good = good and own == size
    return good


def _size(path: Path, problems: Problems) -> Size | None:
    try:
        return stored_size(path)
    except ValueError:
        problems.malformed("a file is no picture that can be read", str(path))
        return None


def _phrases(said: Any) -> dict[str, list[str]]:
    """Phrases by object, a single one under ""; nothing when one is missing."""
    objects = said if isinstance(said, dict) else {"": said}
    lists = {str(name): texts if isinstance(texts, list) else [texts] for name, texts in objects.items()}
    good = all(texts and all(isinstance(text, str) and text.strip(" .") for text in texts) for texts in lists.values())
    return lists if good else {}


def _pictures(folder: Path, problems: Problems) -> dict[str, Path]:
    """Pictures by their name without ending."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _PICTURES or path.name.startswith("."):
            continue
        if path.stem in found:
            problems.malformed("two pictures have one name", f"{found[path.stem].name} and {path.name}")
        found.setdefault(path.stem, path)
    return found


def _made(mask: np.ndarray) -> Callable[[], Mask] | None:
    return (lambda: Mask.from_array(mask)) if mask.any() else None
