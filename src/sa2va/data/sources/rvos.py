"""Videos with expressions and masks as training samples: ReVOS, MeViS, Ref-YouTube-VOS, Ref-DAVIS17 and own videos.

A sample is one view of one video: a few frames and a few expressions, each a question with its answer and its masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from sa2va.data.formats.layout import Problems, first_existing
from sa2va.data.formats.pictures import lazy_picture
from sa2va.data.formats.rvos import RvosVideo, read_rvos
from sa2va.data.sample import Sample
from sa2va.data.sources.clips import Draw, check_counts, draw_frames, video_request
from sa2va.data.sources.requests import Draws
from sa2va.data.sources.wording import ANSWERS
from sa2va.results import Turn


class ReferredVideos:
    """Samples of a set: ``views`` per video, sample ``i`` shows view ``i // videos`` of video ``i % videos``.

    Frames are drawn anew for every view, without repetition, by ``seed`` and ``i`` alone. Expressions are dealt out, so
    that the views of a video show all of them equally often (give or take one). An epoch at ``repeats=1`` thus shows
    each video ``views`` times; ``repeats`` would show the very same samples again.

    Args:
        videos: of the set; those without expressions are left out. name: of the source.
        frames, phrases, views, seed, skip_broken: see [`Draw`].

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
        skip_broken: bool = False,
    ):
        check_counts(frames=frames)
        self.name, self.frames, self.draws = name, frames, Draws(seed, phrases, views)
        problems, kept = Problems(f"{name}: {len(videos)} videos"), []
        for video in videos:
            origin = "the first that is missing of its video"
            if all(problems.present(frame, origin) for frame in video.frames) and video.expressions:
                kept.append(video)
        problems.settle(len(kept), skip=skip_broken)
        self.videos = tuple(kept)

    def __len__(self) -> int:
        return len(self.videos) * self.draws.views

    def key(self, index: int) -> str:
        """The name of a sample's video."""
        return self.videos[self.draws.view(index, len(self.videos)).place].id

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, pictures undecoded. ValueError or OSError when its annotation or first header is wrong."""
        view = self.draws.view(index, len(self.videos))
        video, rng = self.videos[view.place], self.draws.clip(index)
        shown = draw_frames(len(video.frames), self.frames, rng)
        spoken = self.draws.choose(video.expressions, view)
        return Sample(
            id=f"{self.name}/{video.id}{view.suffix}",
            frames=tuple(lazy_picture(video.frames[frame], video.size) for frame in shown),
            turns=tuple(Turn(video_request(expression.text, rng), rng.choice(ANSWERS)) for expression in spoken),
            masks=tuple(video.masks(expression, shown) for expression in spoken),
            video=True,
            source=self.name,
            tags=tuple(expression.text for expression in spoken),
        )


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
    ``anno_id`` of each expression; or ``Annotations/VIDEO/FRAME.png`` as YouTube-VOS has it: index pictures in which
    pixels hold the ``obj_id`` of each expression. Pictures may also be png or webp.

    Args:
        root: the folder. draw: see [`Draw`].
    """

    def __init__(self, root: str | Path, **draw: Unpack[Draw]):
        folder = Path(root)
        masks = first_existing([folder / "mask_dict.json", folder / "mask_dict.pkl", folder / "Annotations"])
        super().__init__(
            read_rvos(folder / "meta_expressions.json", folder / "JPEGImages", masks, dataset=str(root)),
            "videos",
            **draw,
        )
