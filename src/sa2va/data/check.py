"""What is in a folder of data: which known sets are there, what of them is missing or malformed, and what they hold."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sa2va.data.annotations.annotated_images import Orientation
from sa2va.data.annotations.layout import Doubt, Doubts, text_encoding
from sa2va.data.mixture import Source
from sa2va.data.sample import SEG, Sample
from sa2va.media.frames import uniform_indices

#: Broken samples that a report names.
_NAMED = 10


@dataclass(frozen=True)
class KnownSet:
    """A data set in a place that its reader knows.

    Attributes:
        factory: ``"module:class"`` of its source. places: files or folders under the root of which one shows that the
            set is there. options: what the class is called with beside the root.
        starts: first character of the file in ``places``, where two kinds of set share it.
        look: ``"module:function"`` that is asked of the root whether the set is there, instead; ``places`` are then for
            messages alone.
    """

    factory: str
    places: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    starts: str = ""
    look: str = ""

    def is_there(self, root: Path) -> bool:
        """Whether there is anything of it, complete or not."""
        if self.look:
            return _imported(self.look)(root)
        found = [root / place for place in self.places if (root / place).exists()]
        return bool(found) and (not self.starts or _first_character(found[0]) == self.starts)

    def open(self, root: Path, **options: Any) -> Source:
        """Its source. ValueError (of which MissingData is one) or OSError when something is missing or malformed."""
        return _imported(self.factory)(root, **self.options, **options)


def _imported(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _labelled(name: str, *places: str, look: str = "") -> KnownSet:
    """A set of pictures that a labelling tool exported."""
    looking = f"sa2va.data.annotations.{look}" if look else ""
    return KnownSet(f"sa2va.data.datasets.labelling_tools:{name}", places, look=looking)


def _sources(module: str, name: str, sets: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, KnownSet]:
    factory = f"sa2va.data.datasets.{module}:{name}"
    return {key: KnownSet(factory, (place,), options) for key, (place, options) in sets.items()}


_REFER = ("refcoco", "refcoco+", "refcocog", "refclef", "grefcoco")
#: Short name, what the reader calls it, and its file.
_GCG = (
    ("gcg-refcocog", "refcocog", "RefCOCOg_GCG_train.json"),
    ("gcg-grandf", "grandf", "GranDf_HA_GCG_train.json"),
    ("gcg-flickr", "flickr30k", "flickr_mergedGT_GCG_train.json"),
    ("gcg-openpsg", "openpsg", "OpenPsgGCG_train.json"),
)
_OSPREY_FOLDER = "osprey-724k/Osprey-724K"
_OSPREY = (
    ("osprey-conversation", "conversation", "osprey_conversation.json"),
    ("osprey-description", "description", "osprey_detail_description.json"),
    ("osprey-parts", "part", "osprey_part_level.json"),
    ("osprey-positive-negative", "positive_neg", "osprey_lvis_positive_negative.json"),
    ("osprey-short", "short", "osprey_short_form.json"),
)

#: All sets by short name: the published ones under one folder, then forms of own data.
KNOWN_SETS: dict[str, KnownSet] = {
    **_sources("refer", "Refer", {name: (f"ref_seg/{name}", {"dataset": name}) for name in _REFER}),
    "reasonseg": KnownSet("sa2va.data.datasets.reasonseg:ReasonSeg", ("lisa_reasoning", "ReasonSeg", "reason_seg")),
    **_sources("llava", "Llava", {"llava": ("llava_data", {})}),
    **_sources("rvos", "ReVOS", {"revos": ("video_datas/revos", {})}),
    **_sources("rvos", "MeViS", {"mevis": ("video_datas/mevis", {})}),
    **_sources("rvos", "RefYouTubeVOS", {"ref-ytvos": ("video_datas/rvos", {})}),
    **_sources("rvos", "RefDavis17", {"ref-davis17": ("video_datas/davis17/train", {})}),
    **_sources("ref_sav", "RefSAV", {"ref-sav": ("video_datas/Ref-SAV.json", {})}),
    **_sources("video_qa", "VideoQuestions", {"video-chat": ("video_datas/chat_univi", {})}),
    **_sources("gcg", "Gcg", {n: (f"glamm_data/annotations/{file}", {"dataset": kind}) for n, kind, file in _GCG}),
    **_sources(
        "osprey", "Osprey", {n: (f"osprey-724k/Osprey-724K/{file}", {"kind": kind}) for n, kind, file in _OSPREY}
    ),
    "annotations": KnownSet("sa2va.data.datasets.phrase_polygons:Annotations", ("annotations.json",), starts="["),
    "coco": KnownSet("sa2va.data.datasets.coco_instances:Coco", ("annotations.json",), starts="{"),
    "coco-published": KnownSet(
        "sa2va.data.datasets.coco_published:PublishedCoco",
        ("annotations/instances_*.json",),
        look="sa2va.data.datasets.coco_published:is_published_coco",
    ),
    **_sources("mask_folders", "MaskFolder", {"mask-folder": ("phrases.json", {})}),
    **_sources("rvos", "OwnVideos", {"video-json": ("meta_expressions.json", {})}),
    **_sources("interchange", "Chat", {"chat": ("chat.jsonl", {})}),
    "yolo": _labelled("Yolo", "data.yaml", "data.yml", "dataset.yaml"),
    "cvat": _labelled("Cvat", "annotations.xml", look="cvat:is_cvat"),
    "cvat-video": _labelled("CvatVideo", "annotations.xml", look="cvat:is_cvat_video"),
    "labelme": _labelled("Labelme", "NAME.json of labelme", look="labelme:is_labelme"),
    "label-studio": _labelled("LabelStudio", "NAME.json of Label Studio", look="label_studio:is_label_studio"),
}

#: Those of them that are forms of own data.
OWN_FORMS = (
    *("annotations", "coco", "mask-folder", "video-json", "chat"),
    *("coco-published", "yolo", "cvat", "cvat-video", "labelme", "label-studio"),
)
#: Those of these that are clips.
OWN_CLIPS = ("video-json", "cvat-video")


@dataclass(frozen=True)
class SetReport:
    """What was found of a set.

    Attributes:
        name: its short name. problems: what its reader says is missing or malformed, one per line.
        samples: how many can be asked for; 0 where the set cannot be read at all. checked: how many were.
        turns, objects: in these. unseen: objects that no frame of their sample shows.
        broken: samples that cannot be read, with the reason; the first few. broken_count: all of them.
        doubts: what the reader decided without being told, with counts and the first examples.
    """

    name: str
    problems: tuple[str, ...] = ()
    samples: int = 0
    checked: int = 0
    turns: int = 0
    objects: int = 0
    unseen: int = 0
    broken: tuple[tuple[str, str], ...] = ()
    broken_count: int = 0
    doubts: tuple[Doubt, ...] = ()

    @property
    def good(self) -> bool:
        """Nothing is missing, malformed or broken; there may be doubts."""
        return not self.problems and not self.broken_count and self.samples > 0


def places_of(names: Iterable[str]) -> str:
    """The files and folders under a root that show that one of these sets is there, as a list for a message."""
    return ", ".join(sorted({place for name in names for place in KNOWN_SETS[name].places}))


def present_sets(root: str | Path) -> list[str]:
    """Short names of the sets of which anything is in a folder. ValueError when the folder does not exist."""
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the one that holds the data")
    return [name for name, known in KNOWN_SETS.items() if known.is_there(folder)]


def open_set(
    root: str | Path, name: str, orientation: Orientation | None = None
) -> tuple[Source | None, tuple[str, ...]]:
    """A set with what its reader complains of; where only single entries are bad, a source of the good ones.

    Args:
        root: the folder. name: a key of [`KNOWN_SETS`].
        orientation: of pictures that their EXIF data turn, in own data; published sets are read as stored.

    Raises:
        ValueError: no set has this name.
    """
    if name not in KNOWN_SETS:
        raise ValueError(f"no data set is named {name!r}; take one of {', '.join(KNOWN_SETS)}")
    known = KNOWN_SETS[name]
    options = {"orientation": orientation} if orientation and name in OWN_FORMS else {}
    try:
        return known.open(Path(root), **options), ()
    except (ValueError, OSError) as error:
        problems = tuple(str(error).splitlines())
    try:
        return known.open(Path(root), **options, skip_broken=True), problems
    except (ValueError, OSError, TypeError):  # TypeError: a reader that takes all or nothing
        return None, problems


def check_set(
    root: str | Path,
    name: str,
    most: int | None = 200,
    step: Callable[[int, int], object] = lambda done, total: None,
    orientation: Orientation | None = None,
) -> SetReport:
    """Read a set, and some of its samples with their pictures; of all samples, also what they leave out of a video.

    Args:
        root: the folder. name: a key of [`KNOWN_SETS`].
        most: samples to look at, spread evenly; None for all. step: told how many of how many are done.
        orientation: see [`open_set`].

    Raises:
        ValueError: no set has this name, or ``most`` is below 1.
    """
    source, problems = open_set(root, name, orientation)
    if source is None:
        return SetReport(name, problems)
    size = len(source)
    indices = list(range(size)) if most is None else uniform_indices(size, min(most, size)) if most > 0 else []
    if not indices:
        raise ValueError(f"most must be at least 1, got {most}")
    turns = objects = unseen = 0
    broken: list[tuple[str, str]] = []
    doubts: Doubts = getattr(source, "doubts", None) or Doubts(name)
    inspect: Callable[[int], None] | None = getattr(source, "inspect", None) if most is None else None
    for done, index in enumerate(indices, start=1):
        try:
            sample = _whole(source, index)
            if inspect is not None:
                inspect(index)
        except (ValueError, OSError) as error:
            broken.append((f"{name}[{index}]", " ".join(str(error).split())))
        else:
            turns += len(sample.turns)
            objects += len(sample.masks)
            unseen += sum(not mask.any() for mask in sample.masks)
            if _contradicts_itself(sample):
                doubts.note("equal questions of a sample have different masks; ask once, for all of them", sample.id)
        step(done, len(indices))
    first, count = tuple(broken[:_NAMED]), len(broken)
    return SetReport(name, problems, size, len(indices), turns, objects, unseen, first, count, doubts.found)


def _whole(source: Source, index: int) -> Sample:
    """A sample whose pictures could all be decoded."""
    sample = source[index].validate()
    for frame in range(len(sample.frames)):
        sample.picture(frame)
    return sample


def _contradicts_itself(sample: Sample) -> bool:
    """Whether two equal questions, each answered by one mask, have different ones."""
    masks, known = iter(sample.masks), dict[str, np.ndarray]()
    for turn in sample.turns:
        own = [next(masks) for _ in range(turn.answer.count(SEG))]
        if len(own) == 1 and not np.array_equal(known.setdefault(turn.question, own[0]), own[0]):
            return True
    return False


def _first_character(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(64).decode(text_encoding(path), errors="replace").lstrip("\ufeff \t\r\n")[:1]


def kind_of_data(root: str) -> str:
    """The source that reads a folder of own data, a key of ``sa2va.train.config.SOURCES``.

    A folder that is not there counts as ``"annotations"``; opening it will say so.

    Raises:
        ValueError: nothing in the folder is recognised as own data.
    """
    if not Path(root).is_dir():
        return "annotations"
    present = present_sets(root)
    own = next((name for name in present if name in OWN_FORMS), None)
    if own is None:
        published = f"; of published sets it holds {', '.join(present)}: take one with kind=NAME" if present else ""
        raise ValueError(f"{root} holds no data of one's own: expected one of {places_of(OWN_FORMS)} in it{published}")
    return own
