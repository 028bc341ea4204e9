"""Pictures annotated in COCO's format, with phrases, captions or nothing but categories: own and published."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from sa2va.data.annotations.annotated_images import Orientation, UprightPicture, checked_orientation, upright_picture
from sa2va.data.annotations.coco import AnnotationId, CocoInstances, is_segmentation, unite
from sa2va.data.annotations.layout import (
    Doubts,
    MissingData,
    PictureFolders,
    Problems,
    first_existing,
    read_json,
    require_files,
)
from sa2va.data.annotations.unpickle import load_plain
from sa2va.data.datasets.conversation_sampling import MOST_PHRASES, Draws, MaskRequest, phrase_of, requests_sample
from sa2va.data.sample import Sample
from sa2va.masks.mask import Mask
from sa2va.processing.requests import TRAINING_REQUESTS, TrainingRequests
from sa2va.untrusted import reading

_KEYS = ("phrase", "caption")
#: Phrases with their annotations, and captions, which have none.
_Said = list[tuple[str, tuple[AnnotationId, ...]]]
_FOLDER, _BESIDE = "annotations", "_annotations.coco.json"
_PREFIX = "instances_"
_SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


class Coco:
    """Pictures with a turn per phrase, the mask of which is the union of all annotations that carry it.

    What an annotation is called is in its ``phrase`` (or ``caption``): text, or a list of texts that all mean it. Where
    there is none, its category's name is taken. A ``caption`` of an image, or of an annotation without
    ``segmentation``, as in COCO's caption files, answers a request for a description. Entries of one picture are one
    sample.

    Args:
        root: a folder. annotations, images: the JSON and the folder of pictures, relative to it.
        seed, phrases, views, requests: see [`Draws`].
        orientation: of pictures that their EXIF data turn, how they were annotated: ``"upright"`` or ``"stored"``. None
            takes the one that has the height and width of the file; where both have, upright, with a warning.
        skip_broken: leave out pictures that are missing or wrongly annotated, with a warning, instead of refusing.

    Attributes:
        doubts: what was decided without being told.

    Raises:
        MissingData: files are missing; the message names them. ValueError: annotations are malformed, or two pictures
            have one id.
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
        requests: TrainingRequests = TRAINING_REQUESTS,
        orientation: Orientation | None = None,
        skip_broken: bool = False,
    ):
        self.draws = Draws(seed, phrases, views, requests)
        self.orientation: Orientation | None = checked_orientation(orientation)
        # labelme's script calls the folder of pictures as Pascal VOC does.
        path, folder = Path(root) / annotations, first_existing([Path(root) / images, Path(root) / "JPEGImages"])
        require_files("COCO annotations", {path: "your annotation tool", folder: "your pictures"})
        self.instances, self.doubts = self.read(path), Doubts(str(path))
        for number in sorted(self.instances.repeated, key=str):
            self.doubts.note("annotations share an id; all are kept", f"id {number}")
        problems, folders = Problems(str(path)), PictureFolders((folder,))
        pictures: dict[Path, tuple[int, dict[tuple[str, bool], tuple[AnnotationId, ...]]]] = {}
        for number, said in self._said(problems).items():
            if image := problems.found(folders, self.instances.images[number].file_name, "your pictures"):
                _, known = pictures.setdefault(image, (number, {}))
                for text, targets in said:
                    drawn = (text, bool(targets))  # a caption may say what a phrase says
                    known[drawn] = (*known.get(drawn, ()), *targets)
        self.entries = [
            (image, number, [(text, targets) for (text, _), targets in said.items()])
            for image, (number, said) in pictures.items()
        ]
        problems.settle(len(self.entries), skip=skip_broken)

    def read(self, path: Path) -> CocoInstances:
        """The annotations."""
        return CocoInstances(path)

    def __len__(self) -> int:
        return len(self.entries) * self.draws.views

    def key(self, index: int) -> str:
        """The file name of a sample's picture."""
        _, number, _ = self.entries[self.draws.view(index, len(self.entries)).place]
        return self.instances.images[number].file_name

    def __getitem__(self, index: int) -> Sample:
        view = self.draws.view(index, len(self.entries))
        path, number, said = self.entries[view.place]
        image, wording = self.instances.images[number], self.draws.wording(index)
        picture = upright_picture(path, image.size, self.orientation, self.doubts, claimed=True)
        asked = [
            MaskRequest(text, partial(self._union, picture, targets))
            if targets
            else MaskRequest(text, None, question=wording.draw(self.draws.requests.caption), answer=text)
            for text, targets in self.draws.choose(said, view)
        ]
        name = f"coco/{image.file_name}{view.suffix}"
        return requests_sample(asked, wording, name=name, frame=picture.frame, source="coco")

    def _union(self, picture: UprightPicture, targets: tuple[AnnotationId, ...]) -> Mask:
        masks = {target: self.instances.mask(target, picture.canvas) for target in targets}
        for target in (target for target, mask in masks.items() if not mask.area):
            self.doubts.note("annotations enclose no pixel of their picture", f"annotation {target}")
        return picture.turned_mask(unite(masks.values(), picture.canvas))

    def _said(self, problems: Problems) -> dict[int, _Said]:
        """By id of each picture that has any: phrases and captions."""
        phrases: dict[int, dict[str, tuple[AnnotationId, ...]]] = {}
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
        if given is None and "segmentation" not in annotation:
            return [], "an annotation has neither a segmentation nor a caption (a bbox is no mask)"
        if given is None:
            given = self.instances.categories.get(annotation.get("category_id"))
        texts: list[Any] = given if isinstance(given, list) else [given]
        if not texts or not all(isinstance(text, str) and text.strip(" .") for text in texts):
            return [], "an annotation has neither a phrase nor a category with a name"
        if "segmentation" in annotation and not is_segmentation(annotation["segmentation"]):
            return [], "an annotation has no polygon of three points and no RLE (a bbox is no mask)"
        return texts, None


def is_published_coco(root: Path) -> bool:
    """Whether a folder has one of the layouts."""
    return bool(_files(root))


class PublishedCoco(Coco):
    """``annotations/instances_train2017.json`` beside ``train2017``, and what else was said about the same pictures.

    Categories are the phrases. Where there is ``annotations/captions_train2017.json`` too, its captions answer requests
    for a description. Where there is ``annotations/refs(...).p`` (or ``.json``), as RefCOCO has it, its sentences are
    the phrases of the annotations that they mean. Pictures are in ``train2017``, ``images/train2017``, ``images`` or
    the folder itself. ``train/_annotations.coco.json`` among its pictures, as Roboflow exports it, is read, too.

    Args:
        root: the folder. split: with what the name begins, e.g. ``train`` or ``val2017``; a single file is taken
            whatever its name.
        options: ``seed``, ``phrases``, ``views``, ``skip_broken``, ...: see [`Coco`].

    Raises:
        MissingData: no file is of this split, or pictures are missing. ValueError: annotations are malformed.
    """

    def __init__(self, root: str | Path, *, split: str = "train", **options: Any):
        root = Path(root)
        path = _file(root, split)
        name = _name(path)
        folders = [root / name, root / "images" / name, root / "images", root / _FOLDER / "images", root]
        pictures = first_existing(folders) if path.name != _BESIDE else path.parent
        super().__init__(
            root, annotations=str(path.relative_to(root)), images=str(pictures.relative_to(root)), **options
        )

    def read(self, path: Path) -> CocoInstances:
        """The annotations with the captions and sentences beside them."""
        instances = super().read(path)
        captions = path.with_name(f"captions_{_name(path)}.json")
        if path.name != _BESIDE and captions.is_file():
            content = read_json(captions)
            with reading(captions, "annotations with image_id and caption"):
                for place, entry in enumerate(content["annotations"]):
                    if entry["image_id"] in instances.images:
                        said = {"image_id": entry["image_id"], "caption": entry["caption"]}
                        instances.annotations[f"caption {place}"] = said  # type: ignore[index]
        for references in sorted(path.parent.glob("refs(*).*")):
            with reading(references, "references with ann_id and sentences"):
                _say(instances, load_plain(references))
        return instances


def _say(instances: CocoInstances, references: Iterable[dict[str, Any]]) -> None:
    """Give annotations the sentences that mean them. Those of other splits are passed over."""
    for reference in references:
        annotation = instances.annotations.get(reference["ann_id"])
        if annotation is not None:
            sentences = [str(one.get("sent") or one["raw"]) for one in reference["sentences"]]
            annotation["phrase"] = [*annotation.get("phrase", []), *sentences]


def _files(root: Path) -> list[Path]:
    return [*sorted((root / _FOLDER).glob(f"{_PREFIX}*.json")), *sorted(root.glob(f"*/{_BESIDE}"))]


def _name(path: Path) -> str:
    """The split that a file is of."""
    return path.parent.name if path.name == _BESIDE else path.stem.removeprefix(_PREFIX)


def _file(root: Path, split: str) -> Path:
    files = _files(root)
    found = [path for path in files if _name(path).startswith(_SPLITS.get(split, (split,)))]
    if not found and len(files) == 1:
        found = files
    if not found:
        known = ", ".join(str(path.relative_to(root)) for path in files) or "none"
        raise MissingData(f"{root}: expected {_FOLDER}/{_PREFIX}{split}*.json, found {known}; split=NAME takes another")
    return found[-1]
