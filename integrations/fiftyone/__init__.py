"""Sa2VA in FiftyOne's model zoo: phrases to masks on the pictures and videos of a dataset.

    import fiftyone as fo
    import fiftyone.zoo as foz

    shutil.copytree("integrations/fiftyone", f"{fo.config.model_zoo_dir}/sa2va-zoo")  # once
    model = foz.load_zoo_model("Sa2VA-4B", phrases=["the red car", "the dog"])
    dataset.apply_model(model, label_field="found")
    dataset.apply_model(model, label_field="asked", prompt_field="phrases")  # words of each sample
    videos.apply_model(foz.load_zoo_model("Sa2VA-4B", phrases="the dog", media_type="video"), label_field="dogs")

Needs ``pip install sa2va fiftyone``. The manifest is not called "sa2va": FiftyOne makes a module of that name, which
would hide the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fiftyone as fo
import fiftyone.core.models as fom
from sa2va import Sa2VA, Segment, zoo
from sa2va.hub import resolve_folder

_PROMPT = "prompt_field"


def download_model(model_name: str, model_path: str) -> None:
    """Download a checkpoint of the manifest into the Hugging Face cache.

    Args:
        model_path: a file that FiftyOne looks for; it gets the checkpoint's folder.
    """
    folder = resolve_folder(_source(model_name))
    Path(model_path).write_text(str(folder), encoding="utf-8")


def load_model(
    model_name: str,
    model_path: str,
    *,
    phrases: str | Sequence[str] = (),
    media_type: str = "image",
    options: dict[str, Any] | None = None,
    **loading: Any,
) -> Sa2VAZooModel:
    """A model for ``apply_model``.

    Args:
        phrases: what to look for, unless samples say it themselves (``prompt_field=`` of ``apply_model``).
        media_type: ``"image"``, or ``"video"`` to follow objects through videos.
        options: of ``Sa2VA.segment`` or ``Sa2VA.track``. loading: of ``Sa2VA.from_pretrained``.

    Raises:
        ValueError: another media type, or blank phrases.
    """
    return Sa2VAZooModel(Sa2VA.from_pretrained(_source(model_name), **loading), phrases, media_type, options or {})


def _source(model_name: str) -> str:
    """The checkpoint of a name in the manifest."""
    return zoo.resolve(model_name.removeprefix("Sa2VA-") if model_name == "Sa2VA-tiny" else model_name)


class Sa2VAZooModel(fom.SamplesMixin, fom.Model):
    """Labels pictures with ``fo.Detections`` that have masks, and videos with those of each frame.

    The label is the phrase, the confidence the model's own estimate of the mask, and ``index`` the object's number,
    which stays the same through a video.
    """

    #: FiftyOne asks it for settings that it would pass on; there are none, so it filters by itself.
    config = None
    ragged_batches = True
    transforms = None
    preprocess = False

    def __init__(self, model: Sa2VA, phrases: str | Sequence[str], media_type: str, options: dict[str, Any]):
        fom.SamplesMixin.__init__(self)
        if media_type not in ("image", "video"):
            raise ValueError(f"media_type is image or video; got {media_type!r}")
        self._model, self._media_type, self._options = model, media_type, options
        self._phrases = _listed(phrases)

    @property
    def media_type(self) -> str:
        """``"image"`` or ``"video"``."""
        return self._media_type

    def predict(self, arg: Any, sample: fo.Sample | None = None) -> Any:
        """Labels of a picture, or of each frame of a video by its number from 1.

        Args:
            arg: uint8 RGB (H, W, 3), or a video reader of FiftyOne's. sample: has the phrases in its prompt field.

        Raises:
            ValueError: nobody says what to look for.
        """
        phrases = self._phrases_of(sample)
        if self._media_type == "image":
            answers: Any = self._model.segment(np.asarray(arg), phrases, **self._options)
            return _detections([segment for answer in answers for segment in answer.segments])
        first, last = _bounds(arg.frames)  # of a clip; FiftyOne counts from 1
        sampling = {"start": first - 1, "end": last}
        with self._model.track(arg.inpath, phrases, sampling=sampling, **self._options) as track:
            return {first + number: _detections(frame.segments) for number, frame in enumerate(track)}

    def predict_all(self, args: Any, samples: Any = None) -> list[Any]:
        """[`predict`] of each."""
        return [self.predict(arg, sample) for arg, sample in zip(args, samples or [None] * len(args), strict=True)]

    def _phrases_of(self, sample: fo.Sample | None) -> list[str]:
        field = self.needs_fields.get(_PROMPT)
        own = _listed(sample[field] or ()) if sample is not None and field else []
        if phrases := own or self._phrases:
            return phrases
        raise ValueError('say what to look for: load_zoo_model(..., phrases=["the dog"]), or prompt_field= of samples')


def _listed(phrases: str | Sequence[str]) -> list[str]:
    return [phrases] if isinstance(phrases, str) else list(phrases)


def _bounds(frames: str) -> tuple[int, int]:
    """The first and the last frame of ``"1-5"``."""
    first, _, last = frames.partition("-")
    return int(first), int(last or first)


def _detections(segments: Sequence[Segment]) -> fo.Detections:
    found = []
    for segment in segments:
        height, width = segment.masks[0].size
        if box := segment.mask.box:
            x0, y0, x1, y1 = map(int, box)
            found.append(
                fo.Detection(
                    label=segment.phrase or "object",
                    bounding_box=[x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height],
                    mask=segment.mask.crop((x0, y0, x1, y1)),
                    confidence=float(segment.score),
                    index=segment.id,
                )
            )
    return fo.Detections(detections=found)
