"""Videos with expressions and masks as training samples: ReVOS, MeViS, Ref-YouTube-VOS, Ref-DAVIS17 and own videos.

A sample is one view of one video: a few frames and a few expressions, each a question with its answer and its masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np

from sa2va.data.annotations.annotated_images import (
    Orientation,
    PictureHeader,
    checked_orientation,
    lazy_picture,
    upright_picture,
)
from sa2va.data.annotations.layout import Doubts, Problems, first_existing
from sa2va.data.annotations.referring_video import RunLengths, RvosExpression, RvosVideo, read_rvos
from sa2va.data.datasets.conversation_sampling import Draws, united
from sa2va.data.datasets.frame_sampling import Draw, check_counts, draw_annotated
from sa2va.data.sample import LazyFrame, Sample
from sa2va.processing.requests import TRAINING_REQUESTS, TrainingRequests
from sa2va.results.history import Turn


class ReferredVideos:
    """Samples of a set: ``views`` per video, sample ``i`` shows view ``i // videos`` of video ``i % videos``.

    Frames are drawn anew for every view, without repetition, by ``seed`` and ``i`` alone. Expressions are dealt out, so
    that the views of a video show all of them equally often (give or take one). An epoch at ``repeats=1`` thus shows
    each video ``views`` times; ``repeats`` would show the very same samples again. Where not all frames are annotated,
    those that are come first, and the others fill up a sample to be looked at only.

    Args:
        videos: of the set; those without expressions are left out. name: of the source.
        frames, phrases, views, seed, requests, skip_broken: see [`Draw`].

    Raises:
        MissingData: pictures are missing. ValueError: a number is below 1, or no video has an expression.
    """

    def __init__(
        self,
        videos: Sequence[RvosVideo],
        name: str,
        *,
        frames: int = 5,
        phrases: int = 5,
        views: int = 1,
        seed: int = 0,
        requests: TrainingRequests = TRAINING_REQUESTS,
        skip_broken: bool = False,
    ):
        check_counts(frames=frames)
        self.name, self.frames, self.draws = name, frames, Draws(seed, phrases, views, requests)
        problems = Problems(f"{name}: {len(videos)} videos")
        self.videos = tuple(video for video in videos if video.expressions and _complete(video, problems))
        problems.settle(len(self.videos), skip=skip_broken)

    def __len__(self) -> int:
        return len(self.videos) * self.draws.views

    def key(self, index: int) -> str:
        """The name of a sample's video."""
        return self.videos[self.draws.view(index, len(self.videos)).place].id

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, pictures undecoded. ValueError or OSError when its annotation or first header is wrong."""
        view = self.draws.view(index, len(self.videos))
        video, wording = self.videos[view.place], self.draws.clip(index)
        spoken = self.draws.choose(video.expressions, view)
        annotated_KF = np.stack([video.annotated(expression) for expression in spoken])
        shown = draw_annotated(annotated_KF, self.frames, wording.rng)
        known_KF = annotated_KF[:, shown]
        if not known_KF.any(axis=1).all():  # fewer frames than are needed to see each object where it is known
            spoken = [expression for expression, known in zip(spoken, known_KF, strict=True) if known.any()]
            known_KF = known_KF[known_KF.any(axis=1)]
        frames, masks = self._drawn(video, shown, spoken)
        return Sample(
            id=f"{self.name}/{video.id}{view.suffix}",
            frames=frames,
            turns=tuple(Turn(wording.referring(one.text, video=True), wording.answer()) for one in spoken),
            masks=masks,
            video=True,
            source=self.name,
            tags=tuple(expression.text for expression in spoken),
            annotated=None if known_KF.all() else known_KF,
        )

    def _drawn(
        self, video: RvosVideo, shown: Sequence[int], spoken: Sequence[RvosExpression]
    ) -> tuple[tuple[LazyFrame, ...], tuple[np.ndarray, ...]]:
        """Frames, and masks of expressions in these frames, bool (F, H, W)."""
        frames = tuple(lazy_picture(video.frames[frame], video.size) for frame in shown)
        return frames, tuple(video.masks(expression, shown) for expression in spoken)


def _complete(video: RvosVideo, problems: Problems) -> bool:
    """Whether all pictures of a video are there, and every expression is annotated in a frame at least."""
    origin = "the first that is missing of its video"
    dark = [one.id for one in video.expressions if video.truth is not None and not video.annotated(one).any()]
    for name in dark:
        problems.malformed("an expression is annotated in no frame", f"video {video.id}, expression {name}")
    return all(problems.present(frame, origin) for frame in video.frames) and not dark


class MeViS(ReferredVideos):
    """MeViS: ``ROOT/video_datas/mevis/SPLIT/{meta_expressions.json, mask_dict.json, JPEGImages}``.

    Args:
        root: the folder of all data. split: ``"train"``, or ``"valid_u"``, which has masks too. draw: see [`Draw`].
    """

    def __init__(self, root: str | Path, *, split: str = "train", **draw: Unpack[Draw]):
        folder = Path(root) / "video_datas" / "mevis" / split
        masks = first_existing([folder / "mask_dict.json", folder / "mask_dict.pkl"])
        videos = read_rvos(folder / "meta_expressions.json", folder / "JPEGImages", masks, dataset="MeViS")
        super().__init__(videos, "mevis", **draw)


class ReVOS(ReferredVideos):
    """ReVOS: ``ROOT/video_datas/revos/{meta_expressions_SPLIT_.json, mask_dict.json}``, its videos beside them.

    Args:
        root: the folder of all data. split: ``"train"`` or ``"valid"``. draw: see [`Draw`].
    """

    def __init__(self, root: str | Path, *, split: str = "train", **draw: Unpack[Draw]):
        folder = Path(root) / "video_datas" / "revos"
        videos = read_rvos(
            folder / f"meta_expressions_{split}_.json", folder, folder / "mask_dict.json", dataset="ReVOS"
        )
        super().__init__(videos, "revos", **draw)


class RefYouTubeVOS(ReferredVideos):
    """Ref-YouTube-VOS: ``ROOT/video_datas/rvos/{meta_expressions/SPLIT/meta_expressions.json, SPLIT/JPEGImages}``.

    Masks are ``mask_dict.pkl``, numbered by the running count of expressions, or, as the set was published, the index
    pictures in ``SPLIT/Annotations``.

    Args:
        root: the folder of all data. split: only ``"train"`` was published with masks. draw: see [`Draw`].
    """

    def __init__(self, root: str | Path, *, split: str = "train", **draw: Unpack[Draw]):
        folder = Path(root) / "video_datas" / "rvos"
        masks = [folder / "mask_dict.pkl", folder / "mask_dict.json", folder / split / "Annotations"]
        videos = read_rvos(
            folder / "meta_expressions" / split / "meta_expressions.json",
            folder / split / "JPEGImages",
            first_existing(masks),
            dataset="Ref-YouTube-VOS",
            counter="file",
        )
        super().__init__(videos, "ref-ytvos", **draw)


class RefDavis17(ReferredVideos):
    """Ref-DAVIS17: ``ROOT/video_datas/davis17/{meta_expressions/SPLIT/meta_expressions.json, SPLIT/JPEGImages}``.

    Masks are ``SPLIT/mask_dict.pkl``, numbered by the running count of expressions, or the index pictures in
    ``SPLIT/Annotations``. The released models did not train on it: its ``"valid"`` is a benchmark.

    Args:
        root: the folder of all data. split: ``"train"`` or ``"valid"``. draw: see [`Draw`].
    """

    def __init__(self, root: str | Path, *, split: str = "train", **draw: Unpack[Draw]):
        folder = Path(root) / "video_datas" / "davis17"
        masks = [folder / split / "mask_dict.pkl", folder / split / "mask_dict.json", folder / split / "Annotations"]
        videos = read_rvos(
            folder / "meta_expressions" / split / "meta_expressions.json",
            folder / split / "JPEGImages",
            first_existing(masks),
            dataset="Ref-DAVIS17",
        )
        super().__init__(videos, "ref-davis17", **draw)


class OwnVideos(ReferredVideos):
    """Own videos: ``ROOT/{meta_expressions.json, JPEGImages/VIDEO/FRAME.jpg}`` and masks of one of two kinds.

    Either ``mask_dict.json`` as MeViS has it: ``{annotation id: [run lengths or null, one per sorted frame]}`` for the
    ``anno_id`` of each expression, or ``{annotation id: {FRAME: run lengths or null}}`` where only some frames are
    annotated; or ``Annotations/VIDEO/FRAME.png`` as YouTube-VOS has it: index pictures in which pixels hold the
    ``obj_id`` of each expression, for all frames or some. Frames that are not annotated are shown but not learnt from;
    null, or an index picture without the object, says that it is hidden. Pictures may also be png or webp. Equal
    expressions of a video are one, which means all their objects.

    Args:
        root: the folder.
        orientation: of frames that their EXIF data turn, how they were annotated: ``"upright"`` or ``"stored"``. None
            takes the one that has the size of the masks; where both have, upright, with a warning.
        draw: see [`Draw`].

    Attributes:
        doubts: what was decided without being told.
    """

    def __init__(self, root: str | Path, *, orientation: Orientation | None = None, **draw: Unpack[Draw]):
        folder = Path(root)
        self.orientation: Orientation | None = checked_orientation(orientation)
        self.doubts = Doubts(str(root))
        masks = first_existing([folder / "mask_dict.json", folder / "mask_dict.pkl", folder / "Annotations"])
        videos = read_rvos(
            folder / "meta_expressions.json",
            folder / "JPEGImages",
            masks,
            dataset=str(root),
            doubts=self.doubts,
        )
        super().__init__([_united(video) for video in videos], "videos", **draw)
        for video in self.videos:
            self._note_sparse(video)

    def inspect(self, index: int) -> None:
        """Read all frames and masks of a video, also those that its sample leaves out.

        Raises:
            ValueError, OSError: one of them is broken, or an expression names objects that no frame shows.
        """
        video = self.videos[self.draws.view(index, len(self.videos)).place]
        seen: set[str] = set()
        for frame in range(len(video.frames)):
            pictures, masks = self._drawn(video, [frame], video.expressions)
            pictures[0].load()
            seen |= {one.id for one, mask in zip(video.expressions, masks, strict=True) if mask.any()}
        unseen = [one.id for one in video.expressions if one.id not in seen and (one.annotation_ids or one.object_ids)]
        if unseen:
            raise ValueError(
                f"video {video.id!r}: what expressions {unseen} mean is in no annotated frame; mend their anno_id or "
                "obj_id, or paint it"
            )

    def _drawn(
        self, video: RvosVideo, shown: Sequence[int], spoken: Sequence[RvosExpression]
    ) -> tuple[tuple[LazyFrame, ...], tuple[np.ndarray, ...]]:
        turns = [PictureHeader.read(video.frames[frame]).turn for frame in shown]
        if not any(turns):
            return super()._drawn(video, shown, spoken)
        size = video.mask_size
        pictures = [upright_picture(video.frames[f], size, self.orientation, self.doubts) for f in shown]
        drawn = [video.masks(expression, shown, pictures[0].canvas) for expression in spoken]
        turned = [[picture.turned(mask) for picture, mask in zip(pictures, rows, strict=True)] for rows in drawn]
        return tuple(picture.frame for picture in pictures), tuple(np.stack(rows) for rows in turned)

    def _note_sparse(self, video: RvosVideo) -> None:
        known_F = np.all([video.annotated(expression) for expression in video.expressions], axis=0)
        if not known_F.all():
            self.doubts.note(
                "videos are annotated in some of their frames only; the others are shown but not learnt from",
                f"{video.id} ({known_F.sum()} of {len(known_F)})",
            )
        if isinstance(video.truth, RunLengths):
            for name in {name for one in video.expressions for name in one.annotation_ids}:
                if video.truth.looks_sparse(name):
                    self.doubts.note(
                        "masks stand in the first frame or every n-th alone; null means hidden, frames that are not "
                        'annotated are left out of {"00000": {...}, "00005": null}',
                        f"annotation {name}",
                    )


def _united(video: RvosVideo) -> RvosVideo:
    """Equal expressions as one that means the objects of all."""
    groups = united((expression.text, expression) for expression in video.expressions)
    expressions = tuple(
        replace(
            same[0],
            object_ids=tuple(dict.fromkeys(number for one in same for number in one.object_ids)),
            annotation_ids=tuple(dict.fromkeys(number for one in same for number in one.annotation_ids)),
        )
        for same in groups.values()
    )
    return replace(video, expressions=expressions)
