"""Own pictures with PNG masks: one picture of object numbers each, or one black and white picture per object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sa2va.data.annotations.annotated_images import Orientation, PictureHeader, checked_orientation, upright_picture
from sa2va.data.annotations.layout import Doubts, Problems, read_json, require_files, tails
from sa2va.data.annotations.mask_files import numbered_areas, object_area
from sa2va.data.datasets.conversation_sampling import MOST_PHRASES, Draws, MaskRequest, requests_sample, united
from sa2va.data.sample import Sample
from sa2va.masks.mask import Mask, Size
from sa2va.processing.requests import TRAINING_REQUESTS, TrainingRequests

_PICTURES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))


@dataclass(frozen=True)
class _Entry:
    """One picture.

    Attributes:
        image: the file. size: (height, width) of its masks. phrases: of each object. files: the mask of each object.
        numbered: they are one, which holds objects' numbers.
    """

    image: Path
    size: Size
    phrases: dict[str, list[str]]
    files: dict[str, Path]
    numbered: bool

    def masks(self, doubts: Doubts) -> dict[str, np.ndarray]:
        """bool (H, W) of each object, as drawn."""
        if not self.numbered:
            return {name: object_area(path, doubts) for name, path in self.files.items()}
        (path,) = set(self.files.values())
        areas = numbered_areas(path, {int(name) for name in self.phrases}, doubts)
        return {name: areas[int(name)] for name in self.phrases}


class MaskFolder:
    """``ROOT/images/NAME.jpg``, ``ROOT/masks`` and ``ROOT/phrases.json``; a turn per phrase.

    Masks and phrases come in four forms, where a phrase may be a list of phrases that all mean the object. Objects of
    one phrase are one answer:

    * ``masks/NAME.png`` holds the objects' numbers, ``{"NAME": {"1": phrase, "2": phrase}}`` says what they are;
    * ``masks/NAME.png`` holds numbers that mean the same in all pictures: ``{"1": phrase, "2": phrase}``. Of a picture
      the phrases of the numbers that it holds are asked for, or one that it lacks if it holds none;
    * ``masks/NAME.png`` is 0 but for one object: ``{"NAME": phrase}``;
    * ``masks/NAME/OBJECT.png`` is 0 but for the object: ``{"NAME": {"OBJECT": phrase}}``.

    255 beside small numbers is the void border of VOC and DAVIS, which is background. See
    [`sa2va.data.annotations.mask_files`] for masks that are not quite what they should be.

    Args:
        root: the folder. seed, phrases, views, requests: see [`Draws`].
        orientation: of pictures that their EXIF data turn, how they were annotated: ``"upright"`` or ``"stored"``. None
            takes the one that has the size of the masks; where both have, upright, with a warning.
        skip_broken: leave out pictures with missing or malformed masks, with a warning, instead of refusing.

    Attributes:
        doubts: what was decided without being told.

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
        requests: TrainingRequests = TRAINING_REQUESTS,
        orientation: Orientation | None = None,
        skip_broken: bool = False,
    ):
        self.root, self.draws = Path(root), Draws(seed, phrases, views, requests)
        self.orientation: Orientation | None = checked_orientation(orientation)
        self.doubts = Doubts(str(root))
        path = self.root / "phrases.json"
        folders = {self.root / "images": "your pictures", self.root / "masks": "your masks"}
        require_files("pictures with masks", {path: "you: what each mask is called", **folders})
        said = read_json(path)
        if not isinstance(said, dict) or not said:
            raise ValueError(f"{path} must hold an object whose keys are pictures or numbers, got {str(said)[:80]}")
        problems = Problems(str(self.root))
        pictures = _pictures(self.root / "images", problems)
        self.common = not said.keys() & pictures.keys() and all(map(str.isdecimal, said))
        wanted = dict.fromkeys(pictures, said) if self.common else _by_picture(said, pictures, problems)
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
        picture = upright_picture(entry.image, entry.size, self.orientation, self.doubts)
        masks = {name: picture.turned(mask) for name, mask in entry.masks(self.doubts).items()}
        seen = {name: mask for name, mask in masks.items() if mask.any()}
        if len(seen) < len(masks) and not self.common:
            raise ValueError(
                f"picture {entry.image.name}: the masks of {sorted(masks.keys() - seen.keys())} are empty; paint the "
                f"objects, or take them out of {self.root / 'phrases.json'}"
            )
        said = united((phrase, masks[name]) for name in seen or masks for phrase in entry.phrases[name])
        drawn = self.draws.choose(list(said.items()), view)
        return requests_sample(
            [MaskRequest(phrase, _made(areas)) for phrase, areas in (drawn if seen else drawn[:1])],
            self.draws.wording(index),
            name=f"masks/{entry.image.stem}{view.suffix}",
            frame=picture.frame,
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
            header = _header(image, problems)
            size = header and _common_size(files, header, problems)
            if size:
                return _Entry(image, size, phrases, files, numbered)
        return None


def _common_size(files: dict[str, Path], picture: PictureHeader, problems: Problems) -> Size | None:
    """(height, width) of all masks of a picture, which is that of the picture, stored or upright."""
    sizes: set[Size | None] = set()
    for path in dict.fromkeys(files.values()):
        mask = _header(path, problems) if path.is_file() else None
        if not path.is_file():
            problems.missing(path, "your masks")
        elif mask and mask.stored not in (picture.stored, picture.upright):
            problems.malformed("a mask has not the size of its picture", str(path))
        sizes.add(mask.stored if mask else None)
    if len(sizes) > 1 and None not in sizes:
        problems.malformed("masks of one picture differ in size", picture.path.name)
    (size,) = sizes if len(sizes) == 1 else (None,)
    return size if size in (picture.stored, picture.upright) else None


def _header(path: Path, problems: Problems) -> PictureHeader | None:
    try:
        return PictureHeader.read(path)
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


def _by_picture(said: dict[str, Any], pictures: dict[str, Path], problems: Problems) -> dict[str, Any]:
    """Phrases by name of a picture, which may be written with its ending and with folders before it."""
    found: dict[str, Any] = {}
    for key, own in said.items():
        stems = (Path(tail).stem for tail in tails(key))
        name = key if key in pictures else next((stem for stem in stems if stem in pictures), key)
        if name in found:
            problems.malformed("two keys mean one picture", key)
        found.setdefault(name, own)
    return found


def _made(areas: list[np.ndarray]) -> Callable[[], Mask] | None:
    union = np.logical_or.reduce(areas)
    return (lambda: Mask.from_array(union)) if union.any() else None
