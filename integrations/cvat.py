"""Sa2VA as auto-annotation functions of CVAT: words to masks, clicks to masks, and masks followed from frame to frame.

Each runs on your machine, by itself or as an agent of a CVAT server; the model is loaded by `create`:

    cvat-cli task auto-annotate 42 --function-file cvat.py \\
        -p model=str:Sa2VA-4B -p labels=str:"Car=the red car; Dog"

    cvat-cli function create-native clicks --function-file cvat.py -p kind=str:interaction
    cvat-cli function run-agent 7 --function-file cvat.py -p kind=str:interaction -p model=str:Sa2VA-4B

Needs ``pip install sa2va cvat-cli``.
"""

from __future__ import annotations

from typing import Any

import cvat_sdk.auto_annotation as cvataa
import numpy as np
from cvat_sdk import models
from cvat_sdk.masks import decode_mask, encode_mask
from PIL import Image, ImageDraw

from sa2va import Mask, Sa2VA

#: Pixels by which polygons may miss the edge of a mask: people are to correct them, corner by corner.
_TOLERANCE = 1.0


def create(kind: str = "detection", *, model: str = "tiny", labels: str = "", device: str = "") -> Any:
    """A function for ``cvat-cli``.

    Args:
        kind: ``"detection"``, ``"interaction"`` or ``"tracking"``.
        model: a hub id, a local folder, or a name that ``sa2va models`` lists.
        labels: for detection, those of the task, with the words that each stands for: ``"Car=the red car; Dog"``.
        device: where to put the model; empty takes the best available.

    Raises:
        ValueError: an unknown kind, or detection without labels.
    """
    if kind not in ("detection", "interaction", "tracking"):
        raise ValueError(f"kind is detection, interaction or tracking; got {kind!r}")
    phrases = _phrases(labels)
    if kind == "detection" and not phrases:
        raise ValueError('detection needs the labels of the task: -p labels=str:"Car=the red car; Dog"')
    sa2va = Sa2VA.from_pretrained(model, device=device or None)
    if kind == "detection":
        return Detection(sa2va, phrases)
    return Interaction(sa2va) if kind == "interaction" else Tracking(sa2va)


def _phrases(text: str) -> dict[str, str]:
    """What each label stands for, by label."""
    pairs = [one.partition("=") for one in text.split(";") if one.strip()]
    return {label.strip(): phrase.strip() or label.strip() for label, _, phrase in pairs}


class Detection:
    """Finds in a picture what labels stand for. Every label gets masks, or polygons where CVAT asks for them.

    Args:
        phrases: what each label stands for, by label.
    """

    def __init__(self, model: Sa2VA, phrases: dict[str, str]):
        self._model, self._phrases = model, phrases
        self.spec = cvataa.DetectionFunctionSpec(
            labels=[cvataa.label_spec(label, number, type="mask") for number, label in enumerate(phrases)]
        )

    def detect(self, context: cvataa.DetectionFunctionContext, image: Image.Image) -> list[models.LabeledShapeRequest]:
        """Shapes of one picture; see CVAT's ``DetectionFunction``."""
        answers: Any = self._model.segment(image, list(self._phrases.values()))
        found = [
            (number, segment.mask)
            for number, answer in enumerate(answers)
            for segment in answer.segments
            if segment.score >= (context.conf_threshold or 0)
        ]
        if context.conv_mask_to_poly:
            return [
                cvataa.polygon(number, outline.ravel().tolist())
                for number, mask in found
                for outline in mask.polygons(_TOLERANCE)
            ]
        return [cvataa.mask(number, encode_mask(mask.array)) for number, mask in found]


class Interaction:
    """Finds the object that clicks, and maybe a box, mark in a picture. The picture is encoded once for all of them."""

    spec = cvataa.InteractionFunctionSpec(min_pos_points=0, min_neg_points=0, min_bounding_boxes=0)

    def __init__(self, model: Sa2VA):
        self._model = model

    def preprocess_image(self, _: cvataa.InteractionFunctionContext, image: Image.Image) -> Any:
        """The open picture."""
        return self._model.open(image)

    def detect(
        self, _: cvataa.InteractionFunctionContext, pp_image: Any, prompts: cvataa.InteractionPrompts
    ) -> list[cvataa.InteractionResultShape]:
        """A mask, or nothing; see CVAT's ``InteractionFunction``."""
        height, width = pp_image.size
        clicks = [(*point, 1) for point in prompts.pos_points] + [(*point, 0) for point in prompts.neg_points]
        # CVAT has clicks on the edge of a picture, which is no pixel any more.
        points = [(min(int(x), width - 1), min(int(y), height - 1)) for x, y, _ in clicks]
        box = prompts.bounding_box and (*prompts.bounding_box[0], *prompts.bounding_box[1])
        if not prompts.pos_points and box is None:
            return []
        answer = pp_image.segment(box=box, points=points or None, labels=[mark for *_, mark in clicks] or None)
        return [
            cvataa.InteractionResultShape(
                type="mask",
                points=encode_mask(segment.mask.array),
                attributes=[
                    models.AttributeValRequest(
                        spec_id=cvataa.InteractionResultAttributes.CONFIDENCE, value=str(round(segment.score, 4))
                    )
                ],
            )
            for segment in answer.segments
        ]


class Tracking:
    """Follows masks, polygons and boxes from frame to frame."""

    spec = cvataa.TrackingFunctionSpec(supported_shape_types={"mask", "polygon", "rectangle"})

    def __init__(self, model: Sa2VA):
        self._model = model

    def preprocess_image(self, _: cvataa.TrackingFunctionContext, image: Image.Image) -> Any:
        """The features of a frame, whatever the number of shapes on it, and its (height, width)."""
        pixels = np.asarray(image.convert("RGB"))
        return self._model.stream().encode([pixels]), pixels.shape[:2]

    def init_tracking_state(
        self, _: cvataa.TrackingFunctionShapeContext, pp_image: Any, shape: cvataa.TrackableShape
    ) -> Any:
        """A tracker that has seen the shape."""
        features, size = pp_image
        tracker = self._model.stream()
        if shape.type == "rectangle":
            tracker.add(box=shape.points)
        else:
            tracker.add(mask=_drawn(shape, size))
        tracker.step_encoded(features, size)
        return tracker

    def track(
        self, context: cvataa.TrackingFunctionShapeContext, pp_image: Any, state: Any
    ) -> cvataa.TrackableShape | None:
        """Where the shape is in the next frame; None where it is not seen."""
        frame = state.step_encoded(*pp_image)
        mask = frame.segments[0].mask
        if not mask.area:
            return None
        kind = context.original_shape_type
        return cvataa.TrackableShape(type=kind, points=_points(mask, kind))


def _drawn(shape: cvataa.TrackableShape, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a mask or polygon, bool (H, W)."""
    if shape.type == "mask":
        return decode_mask(shape.points, image_width=size[1], image_height=size[0])
    canvas = Image.new("1", (size[1], size[0]))
    ImageDraw.Draw(canvas).polygon(shape.points, fill=1)
    return np.asarray(canvas)


def _points(mask: Mask, kind: str) -> list[float]:
    """A mask that is not empty as the points of a shape; as a polygon, its largest part."""
    if kind == "mask":
        return encode_mask(mask.array)
    if kind == "rectangle":
        return list(mask.box or ())
    return max(mask.polygons(_TOLERANCE), key=_area).ravel().tolist()


def _area(outline: np.ndarray) -> float:
    x, y = outline.astype(np.float64).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
