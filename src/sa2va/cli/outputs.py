"""Where results go: the folder or file of ``-o``, planned and checked before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sa2va.atomic import check_target, remove_leftovers
from sa2va.cli import arguments

#: Kinds of output for a picture, with their names in a folder.
PICTURE_FILES = {
    "overlay": "overlay.png",
    "masks": "masks.png",
    "objects": "objects",
    "cutout": "cutout.png",
    "json": "result.json",
}
DEFAULT_KINDS = ("overlay", "masks", "json")
_PICTURE_SUFFIXES = dict.fromkeys((".png", ".jpg", ".jpeg", ".webp"), "overlay") | {".json": "json"}


@dataclass(frozen=True)
class OutputPlan:
    """What to write where.

    Attributes:
        files: path of each kind of output. folder: what holds them all; None where ``-o`` names one file, or nothing.
    """

    files: dict[str, Path]
    folder: Path | None = None

    @property
    def where(self) -> str:
        """The place, for a message."""
        return str(self.folder or ", ".join(map(str, self.files.values())))

    def without_overlay(self) -> OutputPlan:
        """The plan where nothing was found: an overlay would look like the unmarked source. One of before goes."""
        files = dict(self.files)
        if (path := files.pop("overlay", None)) is not None:
            path.unlink(missing_ok=True)
        return replace(self, files=files)

    def shown(self, path: Path) -> str:
        """A written file, relative to the folder where there is one."""
        return str(path if self.folder is None else path.relative_to(self.folder))


def plan_pictures(source: str, out: Path | None, save: str | None, *, overwrite: bool) -> OutputPlan:
    """The plan for results about one picture. Raises ValueError: see [`plan`]."""
    return plan(source, out, save, PICTURE_FILES, _PICTURE_SUFFIXES, overwrite=overwrite)


def plan_answers(source: str, out: Path | None, save: str | None, *, video: bool, overwrite: bool) -> OutputPlan:
    """The plan for answers about a picture or a clip: as above, with ``json`` the answers. Raises ValueError."""
    if not video:
        return plan_pictures(source, out, save, overwrite=overwrite)
    names, suffixes = _video_names()
    names = {kind: name for kind, name in names.items() if kind != "jsonl"} | {"json": PICTURE_FILES["json"]}
    suffixes = {ending: kind for ending, kind in suffixes.items() if kind != "jsonl"}
    return plan(source, out, save, names, suffixes, overwrite=overwrite)


def plan_videos(source: str, out: Path | None, save: str | None, *, overwrite: bool) -> OutputPlan:
    """The plan for results about a video. Raises ValueError: see [`plan`]."""
    return plan(source, out, save, *_video_names(), overwrite=overwrite)


def _video_names() -> tuple[dict[str, str], dict[str, str]]:
    from sa2va.writers import WRITERS
    from sa2va.writers.video_encoder import VIDEO_SUFFIXES

    names = {kind: writer.default_name for kind, writer in WRITERS.items()}
    return names, dict.fromkeys(sorted(VIDEO_SUFFIXES), "overlay") | {".json": "json", ".jsonl": "jsonl"}


def plan(
    source: str, out: Path | None, save: str | None, names: dict[str, str], suffixes: dict[str, str], *, overwrite: bool
) -> OutputPlan:
    """Decide what is written where.

    Args:
        source: what the results are about, as the user named it.
        out: the value of ``-o``. save: the value of ``--save``.
        names: file or folder of each kind in a folder. suffixes: the kind that a file's ending stands for.
        overwrite: results may be there already.

    Raises:
        ValueError: a kind or an ending that does not suit the source, results that are there already, or a result in
            place of the source.
        OSError: nothing can be written there.
    """
    if out is None:
        if save is not None:
            raise ValueError("--save says what to write; say where with -o OUT")
        return OutputPlan({})
    found = _planned(out, save, names, suffixes)
    if found.folder is not None and Path(source).is_dir():
        check_target(found.folder, source)
    for path in found.files.values():
        check_target(path, source)
    remove_leftovers(out)
    if not overwrite:
        _refuse_results(out)
    return found


def _planned(out: Path, save: str | None, names: dict[str, str], suffixes: dict[str, str]) -> OutputPlan:
    """The plan, whatever is there."""
    nearest = next(parent for parent in out.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise ValueError(f"-o {out}: {nearest} is a file, not a folder")
    if out.suffix and not out.is_dir():
        if out.suffix.lower() not in suffixes:
            raise ValueError(f"-o {out}: expected a folder, or a file ending in {', '.join(suffixes)}")
        if save is not None:
            raise ValueError(f"-o {out} names one file, so there is nothing for --save to choose; name a folder")
        return OutputPlan({suffixes[out.suffix.lower()]: out})
    wanted = arguments.kinds(save, tuple(names), DEFAULT_KINDS)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder, or give the file an ending such as {', '.join(suffixes)}")
    return OutputPlan({kind: out / names[kind] for kind in wanted}, out)


def _refuse_results(out: Path) -> None:
    if out.is_file():
        raise ValueError(f"{out} exists; choose another name, or replace it with --overwrite")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose another folder, or replace what is there with --overwrite")
