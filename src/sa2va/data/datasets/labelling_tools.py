"""Pictures that were labelled with the usual tools, as they export them: labelme, YOLO, CVAT and Label Studio."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

from sa2va.data.annotations.annotated_images import Orientation, UprightPicture, checked_orientation, upright_picture
from sa2va.data.annotations.cvat import FILE, read_cvat, read_cvat_video
from sa2va.data.annotations.label_studio import export_file, read_label_studio
from sa2va.data.annotations.labelled_images import Drawing, LabelledPicture
from sa2va.data.annotations.labelme import read_labelme
from sa2va.data.annotations.layout import Doubts, MissingData, Problems
from sa2va.data.annotations.yolo import read_yolo
from sa2va.data.datasets.conversation_sampling import MOST_PHRASES, Draws, MaskRequest, phrase_of, requests_sample
from sa2va.data.datasets.frame_sampling import Draw
from sa2va.data.datasets.rvos import ReferredVideos
from sa2va.data.sample import Sample
from sa2va.masks.mask import Mask
from sa2va.processing.requests import TRAINING_REQUESTS, TrainingRequests


class LabelOptions(TypedDict, total=False):
    """Options of every source of labelled pictures.

    Attributes:
        seed, phrases, views, requests: see [`Draws`] (0, 16, 1, ours).
        orientation: of pictures that their EXIF data turn, how they were annotated: ``"upright"`` or ``"stored"``. None
            takes the one of the size that the export says; where both have it, upright, with a warning.
        skip_broken: leave out pictures that are missing or malformed, with a warning, instead of refusing (False).
    """

    seed: int
    phrases: int
    views: int
    requests: TrainingRequests
    orientation: Orientation | None
    skip_broken: bool


class LabelledPictures:
    """A sample per picture, a turn per label: the mask is the union of all shapes that carry it.

    Args:
        pictures: of the set. name: of the source. problems: what its reader found.
        seed, phrases, views, requests, orientation, skip_broken: see [`LabelOptions`].

    Attributes:
        doubts: what was decided without being told.

    Raises:
        MissingData: pictures are missing. ValueError: something was malformed, or nothing is labelled.
    """

    def __init__(
        self,
        pictures: Sequence[LabelledPicture],
        name: str,
        problems: Problems,
        *,
        seed: int = 0,
        phrases: int = MOST_PHRASES,
        views: int = 1,
        requests: TrainingRequests = TRAINING_REQUESTS,
        orientation: Orientation | None = None,
        skip_broken: bool = False,
    ):
        self.name, self.draws = name, Draws(seed, phrases, views, requests)
        self.orientation: Orientation | None = checked_orientation(orientation)
        self.doubts = Doubts(name)
        self.pictures = [picture for picture in pictures if problems.present(picture.image, "your pictures")]
        problems.settle(len(self.pictures), skip=skip_broken)

    def __len__(self) -> int:
        return len(self.pictures) * self.draws.views

    def key(self, index: int) -> str:
        """The name of the picture of a sample."""
        return self.pictures[self.draws.view(index, len(self.pictures)).place].name

    def __getitem__(self, index: int) -> Sample:
        view = self.draws.view(index, len(self.pictures))
        picture = self.pictures[view.place]
        image = upright_picture(picture.image, picture.size, self.orientation, self.doubts, claimed=True)
        said: dict[str, list[Drawing]] = {}
        for label, drawing in picture.shapes:
            said.setdefault(phrase_of(label), []).append(drawing)
        drawn = self.draws.choose(list(said.items()), view)
        return requests_sample(
            [MaskRequest(phrase, partial(_mask, picture, drawings, image)) for phrase, drawings in drawn],
            self.draws.wording(index),
            name=f"{self.name}/{picture.name}{view.suffix}",
            frame=image.frame,
            source=self.name,
        )


def _mask(picture: LabelledPicture, drawings: Sequence[Drawing], image: UprightPicture) -> Mask:
    return image.turned_mask(picture.mask(drawings, image.canvas))


class Labelme(LabelledPictures):
    """labelme's own files: ``NAME.json`` beside ``NAME.jpg``, anywhere under the folder.

    Polygons, rectangles, circles and masks are read; lines and points have no area. COCO files that labelme's script
    exports are read by [`sa2va.data.datasets.coco_instances.Coco`].

    Args:
        root: the folder. options: see [`LabelOptions`].
    """

    def __init__(self, root: str | Path, **options: Unpack[LabelOptions]):
        problems = Problems(str(root))
        super().__init__(read_labelme(Path(root), problems), "labelme", problems, **options)


class Yolo(LabelledPictures):
    """YOLO's segmentation layout: ``data.yaml``, ``images/train/NAME.jpg`` and ``labels/train/NAME.txt``.

    Folders are where ``data.yaml`` says, as ultralytics and Roboflow write it. A line of a label file is a class and
    the corners of its outline, as shares of the picture's width and height; of four numbers, a box.

    Args:
        root: the folder of ``data.yaml``. split: ``train``, ``val`` or ``test``.
        options: see [`LabelOptions`].
    """

    def __init__(self, root: str | Path, *, split: str = "train", **options: Unpack[LabelOptions]):
        problems = Problems(str(root))
        super().__init__(read_yolo(Path(root), split, problems), "yolo", problems, **options)


class Cvat(LabelledPictures):
    """CVAT's "CVAT for images 1.1": ``annotations.xml`` and ``images``.

    Polygons, boxes, ellipses and masks are read; lines, points, skeletons and cuboids have no area.

    Args:
        root: the folder. options: see [`LabelOptions`].
    """

    def __init__(self, root: str | Path, **options: Unpack[LabelOptions]):
        problems = Problems(str(Path(root) / FILE))
        super().__init__(read_cvat(Path(root), problems), "cvat", problems, **options)


class LabelStudio(LabelledPictures):
    """Label Studio's JSON export: ``NAME.json`` with a list of tasks, and the pictures in ``images``.

    Polygons, brushes, rectangles and ellipses are read; key points have no area.

    Args:
        root: the folder. options: see [`LabelOptions`].
    """

    def __init__(self, root: str | Path, **options: Unpack[LabelOptions]):
        path = export_file(Path(root))
        if path is None:
            raise MissingData(f"{root} holds no export of Label Studio: expected a JSON file with a list of tasks")
        problems = Problems(str(path))
        super().__init__(read_label_studio(path, problems), "label-studio", problems, **options)


class CvatVideo(ReferredVideos):
    """CVAT's "CVAT for video 1.1": ``annotations.xml`` with tracks, and the frames in ``images``.

    A label is asked for as one thing: the union of its tracks.

    Args:
        root: the folder. draw: see [`Draw`].
    """

    def __init__(self, root: str | Path, **draw: Unpack[Draw]):
        super().__init__(read_cvat_video(Path(root)), "cvat-video", **draw)
