"""The rows of referring video segmentation: which set is read from where, and under which rules it is counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

from sa2va.data.annotations.layout import first_existing, read_json
from sa2va.data.annotations.referring_video import RvosVideo, read_rvos
from sa2va.eval.benchmark import BenchmarkSpec
from sa2va.eval.benchmarks import published
from sa2va.eval.benchmarks.davis import OfficialDavis
from sa2va.eval.benchmarks.file_benchmark import row
from sa2va.eval.benchmarks.server_scored import ServerVideos
from sa2va.eval.benchmarks.video_segmentation import ASKED, JF, MEAN, GroupedVideos, ReferringVideos, Revos
from sa2va.masks.mask import Mask
from sa2va.untrusted import reading

_MEVIS = "MeViS, github.com/henghuiding/MeViS"
_DAVIS = "Ref-DAVIS17 converted as ReferFormer does, or the archive davis17 of Dense-World/Sa2VA-Training on the hub"
_YOUTUBE = "Ref-YouTube-VOS, codalab.lisn.upsaclay.fr competition 3282"
_REVOS = "ReVOS, github.com/cilinyan/ReVOS-api"
_REF_SAV = "Dense-World/Sa2VA-Eval on the hub"

_MEVIS_RULES = (
    " valid_u (50 videos, public masks) and valid (140 videos, masks on the server) differ by 5 to 12 points for the "
    "same model: never compare the two."
)
_DAVIS_RULES = (
    " Each of the four descriptions of an object is a task of its own (244 in all), as language models report it. Not "
    "comparable with the official protocol, which lays the objects of a video into label maps."
)
_REVOS_RULES = (
    "R (robustness): 1 minus wrong pixels over pixels of all annotated objects, per frame, never below 0; A: share of "
    "pixels that agree. Every value is the plain mean of the means over referring and over reasoning expressions, as "
    "published; J&F by expression weighs expressions alike. Expressions without target are a group of their own and "
    "outside these means. Nothing is rounded before averaging, and a pixel of two objects counts once in R; the "
    "published script differs in both."
)
_REF_SAV_RULES = (
    "Every value is the plain mean of the means over long and over short expressions, as published; J&F by expression "
    "weighs expressions alike."
)
_SERVER_PROTOCOL = ASKED + "The masks are scored by the server (J, F as DAVIS defines them, mean over expressions)."


@dataclass(frozen=True)
class SetPlaces:
    """Where a set lies under the data root.

    Attributes:
        expressions, frames: the JSON and the folder of frames; of frames, the first that exists. masks: or None.
        origin: where they come from. more: other files that are needed, by what they are called here.
    """

    expressions: str
    frames: tuple[str, ...]
    origin: str
    masks: str | None = None
    more: Mapping[str, tuple[str, ...]] | None = None

    def files(self, root: Path) -> dict[Path, str]:
        """All that is needed, with where it comes from."""
        found = [root / self.expressions, self.folder(root, self.frames)]
        found += [root / self.masks] if self.masks else []
        found += [self.folder(root, places) for places in (self.more or {}).values()]
        return dict.fromkeys(found, self.origin)

    def read(self, root: Path) -> list[RvosVideo]:
        """The videos."""
        masks = root / self.masks if self.masks else None
        return read_rvos(root / self.expressions, self.folder(root, self.frames), masks)

    def other(self, root: Path, name: str) -> Path:
        """One of ``more``."""
        return self.folder(root, (self.more or {})[name])

    @staticmethod
    def folder(root: Path, places: Sequence[str]) -> Path:
        """The first that exists."""
        return first_existing([root / place for place in places])


def _mevis(split: str, expressions: str = "meta_expressions.json", masks: str | None = None) -> SetPlaces:
    folder = f"video_datas/mevis/{split}"
    return SetPlaces(f"{folder}/{expressions}", (f"{folder}/JPEGImages",), _MEVIS, masks and f"{folder}/{masks}")


_DAVIS_PLACES = (
    "video_datas/davis17/meta_expressions/valid/meta_expressions.json",
    ("video_datas/davis17/valid/JPEGImages",),
    _DAVIS,
)
_DAVIS_LABELS = tuple(
    f"video_datas/{place}"
    for place in (
        "davis17/Annotations_unsupervised/480p",
        "davis17/DAVIS/Annotations_unsupervised/480p",
        "DAVIS/Annotations_unsupervised/480p",
        "davis17/valid/Annotations",
    )
)
PLACES = {
    "mevis/valid_u": _mevis("valid_u", masks="mask_dict.json"),
    "mevis/valid": _mevis("valid"),
    "mevis/test": _mevis("test", "meta_expressions_release.json"),
    "ref-davis17/per-expression": SetPlaces(*_DAVIS_PLACES, masks="video_datas/davis17/valid/mask_dict.pkl"),
    "ref-davis17/official": SetPlaces(*_DAVIS_PLACES, more={"labels": _DAVIS_LABELS}),
    "ref-youtube-vos/valid": SetPlaces(
        "video_datas/rvos/meta_expressions/valid/meta_expressions.json",
        ("video_datas/rvos/valid/JPEGImages",),
        _YOUTUBE,
    ),
    "revos/valid": SetPlaces(
        "video_datas/revos/meta_expressions_valid_.json",
        ("video_datas/revos/JPEGImages", "video_datas/revos"),
        _REVOS,
        "video_datas/revos/mask_dict.json",
        {"foreground": ("video_datas/revos/mask_dict_foreground.json",)},
    ),
    "ref-sav/valid": SetPlaces(
        "ref_sav_eval/meta_expressions_valid.json",
        ("ref_sav_eval/videos",),
        _REF_SAV,
        "ref_sav_eval/mask_dict.json",
    ),
}


def read_foreground(path: Path, videos: Sequence[RvosVideo]) -> dict[str, tuple[Mask | None, ...]]:
    """ReVOS's unions of all annotated objects, per video and frame; None where there are none.

    Args:
        path: ``{video: {"masks_rle": [RLE, list of RLE or null, one per frame]}}``. videos: those that are needed.

    Raises:
        ValueError: a video is missing or malformed; it is named.
    """
    content = read_json(path)
    found = {}
    for video in videos:
        with reading(f"{path}, video {video.id!r}"):
            frames = content[video.id]["masks_rle"]
            found[video.id] = tuple(map(_united, frames))
        if len(frames) != len(video.frames):
            raise ValueError(f"{path}, video {video.id!r}: {len(frames)} masks for {len(video.frames)} frames")
    return found


def _united(entry: Any) -> Mask | None:
    parts = [entry] if isinstance(entry, dict) else entry or []
    return reduce(Mask.__or__, map(Mask.from_rle, parts)) if parts else None


def _plain(name: str, rules: str, root: Path) -> ReferringVideos:
    return ReferringVideos(name, ASKED + JF + MEAN + rules, "segment", PLACES[name].read(root))


def _official_davis(name: str, root: Path) -> OfficialDavis:
    places = PLACES[name]
    return OfficialDavis(name, places.read(root), places.other(root, "labels"))


def _revos(name: str, root: Path) -> Revos:
    places = PLACES[name]
    videos = places.read(root)
    return Revos(name, ASKED + JF + _REVOS_RULES, videos, read_foreground(places.other(root, "foreground"), videos))


def _ref_sav(name: str, root: Path) -> GroupedVideos:
    return GroupedVideos(
        name, ASKED + JF + _REF_SAV_RULES, PLACES[name].read(root), {0: "long", 1: "short"}, ("long", "short")
    )


def _server(folder: str, server: str, name: str, root: Path) -> ServerVideos:
    return ServerVideos(name, _SERVER_PROTOCOL, PLACES[name].read(root), folder, server)


def _row(
    name: str, title: str, make: Callable[[str, Path], ReferringVideos], numbers: Mapping[str, float] | None = None
) -> BenchmarkSpec:
    return row(name, title, partial(make, name), PLACES[name].files, numbers)


_mevis_server = partial(_server, "", "codalab.lisn.upsaclay.fr competition 15094")
_youtube_server = partial(_server, "Annotations/", "codalab.lisn.upsaclay.fr competition 3282")

ROWS: tuple[BenchmarkSpec, ...] = (
    _row(
        "mevis/valid_u",
        "MeViS valid_u",
        lambda name, root: _plain(name, _MEVIS_RULES, root),
        published.MEVIS_VALID_U,
    ),
    _row("mevis/valid", "MeViS valid (server)", _mevis_server, published.MEVIS_VALID),
    _row("mevis/test", "MeViS test (server)", _mevis_server),
    _row(
        "ref-davis17/per-expression",
        "Ref-DAVIS17, per expression",
        lambda name, root: _plain(name, _DAVIS_RULES, root),
        published.REF_DAVIS17,
    ),
    _row("ref-davis17/official", "Ref-DAVIS17, official label maps", _official_davis),
    _row("ref-youtube-vos/valid", "Ref-YouTube-VOS valid (server)", _youtube_server, published.REF_YOUTUBE_VOS),
    _row("revos/valid", "ReVOS valid", _revos, published.REVOS),
    _row("ref-sav/valid", "Ref-SAV", _ref_sav, published.REF_SAV),
)
