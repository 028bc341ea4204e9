"""Results of many images and videos as one dataset in COCO's instance format."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sa2va.atomic import check_target, naming, remove_leftovers, replacing
from sa2va.masks.segment import Segment
from sa2va.media.open import Picture, load_image, open_media
from sa2va.results import exports
from sa2va.results.answer import Answer, Frame
from sa2va.writers.frame_writer import FramePairs

ANNOTATIONS, IMAGES = "annotations.json", "images"
_UPRIGHT = 1
_ORIENTATION = 0x0112  # the tag of EXIF

Pixels = NDArray[np.uint8]
Found = Answer | Frame | FramePairs | Sequence[Answer]


class CocoWriter:
    """Collects results as ``FOLDER/annotations.json`` and ``FOLDER/images``.

    pycocotools, supervision and ``sa2va data check`` read it. There is one category per phrase (``"object"`` if there
    is none). An annotation has the mask as RLE, its area and box, ``iscrowd`` 0 and, in addition to COCO's keys,
    ``score``, ``phrase`` and ``object_id``.

    The annotations appear complete when the block ends; after an error there are none. For a benchmark whose images
    already have ids use [`sa2va.Answer.to_coco`].

    Args:
        folder: new, or without annotations.

    Raises:
        ValueError: the folder has annotations already.
        OSError: the folder is not writable.

    Examples:
        >>> from sa2va import Sa2VA
        >>> from sa2va.writers import CocoWriter
        >>> model = Sa2VA.from_pretrained("tiny")
        >>> with CocoWriter("found") as writer:
        ...     writer.add("shapes.png", model.segment("shapes.png", ["the yellow cloud", "the letter Z"]))
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / ANNOTATIONS
        check_target(self.path)
        remove_leftovers(self.folder)
        if self.path.exists():
            raise ValueError(f"{self.path} exists; choose another folder, or remove it")
        self._images: list[dict[str, Any]] = []
        self._categories: dict[str, int] = {}
        self._written: dict[str, bool] = {}
        self._last_id = 0
        # Annotations wait on disk, so that memory does not grow with the masks.
        self._spool = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115

    def add(self, source: str | Path, found: Found, image: Image.Image | Pixels | None = None) -> None:
        """Add an image, or every frame of a video, with what was found in it.

        Args:
            source: the file of the image or video (images are copied, frames are written as PNG), or a name for
                ``image``.
            found: an answer, the answers to several phrases, a frame, or a track.
            image: the image, if it is not in a file.

        Raises:
            ValueError: an image of this name was added before, masks have another size, or the track's pixels cannot be
                read again.
        """
        name = Path(source).name
        if isinstance(found, FramePairs):
            for frame, pixels in found.pairs():
                if pixels is None:
                    raise ValueError(f"the frames of {source} are gone: this track was read before and cannot be again")
                self._add_frame(name, frame, pixels)
            return
        segments = found.segments if isinstance(found, Answer | Frame) else [s for one in found for s in one.segments]
        if isinstance(found, Frame) or image is not None:
            pixels = None if image is None else np.asarray(load_image(image))
            target = name if Path(name).suffix else f"{name}.png"
            self._add(target, load_image(source) if pixels is None else Image.fromarray(pixels), segments)
        elif not isinstance(media := open_media(source), Picture):
            for decoded in media:
                here = tuple(_at(segment, decoded.index) for segment in segments)
                frame = Frame(decoded.index, decoded.time, decoded.pixels.shape[:2], here)
                self._add_frame(name, frame, decoded.pixels)
        else:
            self._add(name, Path(source) if Path(source).is_file() else load_image(source), segments)

    def close(self) -> None:
        """Write the annotations."""
        with self._spool, replacing(self.path) as temporary, temporary.open("w", encoding="utf-8") as out:
            out.writelines(self._pieces())

    def abort(self) -> None:
        """Discard the dataset: no annotations appear, and the images written for them are removed."""
        self._spool.close()
        for name, own in self._written.items():
            if own:
                (self.folder / IMAGES / name).unlink(missing_ok=True)

    def __enter__(self) -> CocoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _add_frame(self, video: str, frame: Frame, pixels: Pixels) -> None:
        self._add(f"{Path(video).stem}/{frame.index:05d}.png", Image.fromarray(pixels), frame.segments)

    def _add(self, name: str, picture: Path | Image.Image, segments: Sequence[Segment]) -> None:
        if name in self._written:
            raise ValueError(f"there is an image named {name} already; rename one, or collect it in another folder")
        size = load_image(picture).size
        for segment in segments:
            if segment.mask.size != (size[1], size[0]):
                raise ValueError(f"expected masks (h, w) {(size[1], size[0])} of {name}, got {segment.mask.size}")
        self._written[name] = _put(picture, self.folder / IMAGES / name)
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        for segment in segments:
            self._categories.setdefault(segment.phrase or "object", len(self._categories) + 1)
        annotations = exports.coco_annotations(segments, number, self._categories, self._last_id + 1)
        self._last_id += len(annotations)
        with naming(tempfile.gettempdir()):
            for annotation in annotations:
                self._spool.write(json.dumps(annotation, ensure_ascii=False) + "\n")

    def _pieces(self) -> Iterator[str]:
        categories = [{"id": number, "name": name} for name, number in self._categories.items()]
        head = {"info": {"description": "found by sa2va"}, "licenses": [], "images": self._images}
        yield json.dumps(head | {"categories": categories}, ensure_ascii=False)[:-1] + ', "annotations": ['
        self._spool.seek(0)
        for number, line in enumerate(self._spool):
            yield (",\n" if number else "\n") + line.rstrip("\n")
        yield "\n]}\n"


def _at(segment: Segment, frame: int) -> Segment:
    return replace(segment, masks=(segment.masks[frame],))


def _put(picture: Path | Image.Image, target: Path) -> bool:
    """Store a picture as its masks see it. Returns whether that made a file; one that is there already is kept."""
    if isinstance(picture, Path) and target.exists() and picture.samefile(target):
        return False
    check_target(target, picture)
    with replacing(target) as temporary:
        if isinstance(picture, Path) and _is_upright(picture):
            shutil.copyfile(picture, temporary)
        else:
            load_image(picture).save(temporary, quality=95)
    return True


def _is_upright(path: Path) -> bool:
    """Whether readers that ignore EXIF show a file as the others do, and as its masks are."""
    with Image.open(path) as picture:
        return picture.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT
