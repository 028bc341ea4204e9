"""Own pictures annotated in COCO's format, with phrases, captions, or nothing but categories."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sa2va.data.formats.coco import CocoInstances, is_segmentation, unite
from sa2va.data.formats.layout import PictureFolders, Problems, first_existing, require_files
from sa2va.data.sample import Sample
from sa2va.data.sources.requests import MOST_PHRASES, Draws, Request, requests_sample
from sa2va.data.sources.wording import CAPTION_REQUESTS, phrase_of
from sa2va.mask import Mask

_KEYS = ("phrase", "caption")


class Coco:
    """Pictures with a turn per phrase, the mask of which is the union of all annotations that carry it.

    What an annotation is called is in its ``phrase`` (or ``caption``): text, or a list of texts that all mean it. Where
    there is none, its category's name is taken. A ``caption`` of an image, or of an annotation without
    ``segmentation``, as in COCO's caption files, answers a request for a description.

    Args:
        root: a folder. annotations, images: the JSON and the folder of pictures, relative to it.
        seed, phrases, views: see [`Draws`].
        skip_broken: leave out pictures that are missing or wrongly annotated, with a warning, instead of refusing.

    Raises:
        MissingData: files are missing; the message names them. ValueError: annotations are malformed.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        annotations: str = "annotations.json",
        images: str = "images",
        seed: int = 0,
        phrases: int = MOST_PHRASES,
        views: int = 1,
        skip_broken: bool = False,
    ):
        self.draws = Draws(seed, phrases, views)
        # labelme's script calls the folder of pictures as Pascal VOC does.
        path, folder = Path(root) / annotations, first_existing([Path(root) / images, Path(root) / "JPEGImages"])
        require_files("COCO annotations", {path: "your annotation tool", folder: "your pictures"})
        self.instances = self.read(path)
        self._folders = PictureFolders((folder,))
        problems = Problems(str(path))
        self.entries = [
            (number, said) for number, said in self._said(problems).items() if self._has_picture(number, problems)
        ]
        problems.settle(len(self.entries), skip=skip_broken)

    def read(self, path: Path) -> CocoInstances:
        """The annotations."""
        return CocoInstances(path)

    def __len__(self) -> int:
        return len(self.entries) * self.draws.views

    def key(self, index: int) -> str:
        """The file name of a sample's picture."""
        number, _ = self.entries[self.draws.view(index, len(self.entries)).place]
        return self.instances.images[number].file_name

    def __getitem__(self, index: int) -> Sample:
        view = self.draws.view(index, len(self.entries))
        number, said = self.entries[view.place]
        image, rng = self.instances.images[number], self.draws.wording(index)
        requests = [
            Request(text, partial(self._union, number, targets))
            if targets
            else Request(text, None, question=rng.choice(CAPTION_REQUESTS), answer=text)
            for text, targets in self.draws.choose(said, view)
        ]
        return requests_sample(
            requests,
            rng,
            name=f"coco/{image.file_name}{view.suffix}",
            image=self._folders.find(image.file_name),
            size=image.size,
            source="coco",
        )

    def _union(self, number: int, targets: tuple[int, ...]) -> Mask:
        return unite(map(self.instances.mask, targets), self.instances.images[number].size)

    def _has_picture(self, number: int, problems: Problems) -> bool:
        return problems.present(self._folders.find(self.instances.images[number].file_name), "your pictures")

    def _said(self, problems: Problems) -> dict[int, list[tuple[str, tuple[int, ...]]]]:
        """For each picture that has any: phrases with their annotations, and captions, which have none."""
        phrases: dict[int, dict[str, tuple[int, ...]]] = {}
        captions = {number: [caption] for number, caption in self.instances.captions.items()}
        broken: set[int] = set()
        for number, annotation in self.instances.annotations.items():
            picture = annotation.get("image_id", -1)
            texts, trouble = self._texts(annotation)
            if trouble or picture not in self.instances.images:
                problems.malformed(trouble or "an annotation belongs to no picture", f"annotation {number}")
                broken.add(picture)
            elif "segmentation" in annotation:
                named = phrases.setdefault(picture, {})
                for text in map(phrase_of, texts):
                    named[text] = (*named.get(text, ()), number)
            else:
                captions.setdefault(picture, []).extend(texts)
        return {
            number: [*phrases.get(number, {}).items(), *((text, ()) for text in captions.get(number, []))]
            for number in self.instances.images
            if number not in broken and (phrases.get(number) or captions.get(number))
        }

    def _texts(self, annotation: dict[str, Any]) -> tuple[list[str], str | None]:
        """What an annotation says, and what is wrong with it, if anything."""
        given = next((annotation[key] for key in _KEYS if annotation.get(key)), None)
        if given is None:
            given = self.instances.categories.get(annotation.get("category_id"))
        texts: list[Any] = given if isinstance(given, list) else [given]
        if not texts or not all(isinstance(text, str) and text.strip(" .") for text in texts):
            return [], "an annotation has neither a phrase nor a category with a name"
        if "segmentation" in annotation and not is_segmentation(annotation["segmentation"]):
            return [], "an annotation has no polygon of three points and no RLE"
        return texts, None
