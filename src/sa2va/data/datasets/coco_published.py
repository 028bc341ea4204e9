"""COCO as it is published: annotation files beside the folders of pictures of their splits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sa2va.data.annotations.coco import CocoInstances
from sa2va.data.annotations.layout import MissingData, first_existing, read_json
from sa2va.data.annotations.unpickle import load_plain
from sa2va.data.datasets.coco_instances import Coco
from sa2va.untrusted import expecting

_FOLDER, _BESIDE = "annotations", "_annotations.coco.json"
_PREFIX = "instances_"
_SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


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
            with expecting(captions, "annotations with image_id and caption"):
                for place, entry in enumerate(content["annotations"]):
                    if entry["image_id"] in instances.images:
                        said = {"image_id": entry["image_id"], "caption": entry["caption"]}
                        instances.annotations[f"caption {place}"] = said  # type: ignore[index]
        for references in sorted(path.parent.glob("refs(*).*")):
            with expecting(references, "references with ann_id and sentences"):
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
