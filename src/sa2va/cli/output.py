"""What commands give back: answers printed and written to the folder or file of ``-o``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.text import Text

from sa2va import __version__
from sa2va.atomic import check_target, remove_leftovers
from sa2va.cli.arguments import OutputOptions, parse_kinds
from sa2va.cli.console import Screen, printable
from sa2va.masks.mask import DOUBTFUL, Segment
from sa2va.media.frames import FrameSource
from sa2va.media.open import Picture
from sa2va.results.answer import Answer, Frame
from sa2va.visualization.colors import color as default_color
from sa2va.writers import WRITERS
from sa2va.writers.picture_files import write_json, write_picture
from sa2va.writers.video_encoder import VIDEO_SUFFIXES
from sa2va.zoo import TINY

#: Kinds of output for a picture, with their names in a folder.
_PICTURE_FILES = {
    "overlay": "overlay.png",
    "masks": "masks.png",
    "objects": "objects",
    "cutout": "cutout.png",
    "json": "result.json",
}
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_DEFAULT_KINDS = ("overlay", "masks", "json")
#: Scores of tiny on pictures of its own world are seldom lower, those on photographs seldom as high.
_AT_HOME = 0.7


@dataclass(frozen=True)
class OutputPlan:
    """What is written where.

    Attributes:
        files: path of each kind of output. folder: the folder of ``-o``; None where it names one file, or nothing.
    """

    files: dict[str, Path]
    folder: Path | None = None

    @property
    def where(self) -> str:
        """The folder or file, for a message."""
        return str(self.folder or ", ".join(map(str, self.files.values())))

    def without_overlay(self) -> OutputPlan:
        """The plan where nothing was found: the overlay, which would equal the source, is removed if it exists."""
        files = dict(self.files)
        if (path := files.pop("overlay", None)) is not None:
            path.unlink(missing_ok=True)
        return replace(self, files=files)

    def shown(self, path: Path) -> str:
        """A written file, relative to the folder where there is one."""
        return str(path if self.folder is None else path.relative_to(self.folder))

    def summary(self, outputs: Sequence[str]) -> str:
        """The files written, in few words."""
        if self.folder is None:
            return self.where
        more = f" and {len(outputs) - 5} more" if len(outputs) > 6 else ""
        return f"{self.where}: {', '.join(outputs[:5] if more else outputs)}{more}"


def plan_output(
    source: str, media: FrameSource | None, options: OutputOptions, *, by_frame: bool = False
) -> OutputPlan:
    """Decide what is written where, and check it before a model is loaded.

    Args:
        source: the name of the medium on the command line. media: the medium; None for words alone.
        by_frame: the results are the frames of a track, not answers about the whole medium.

    Raises:
        ValueError: a kind or a suffix that does not suit the medium, results that exist already (unless they may be
            overwritten), or a result that would overwrite the source.
        OSError: nothing can be written there.
    """
    out = options.out
    if media is None:
        return OutputPlan({})
    if out is None:
        if options.save is not None:
            raise ValueError("--save says what to write; say where with -o OUT")
        return OutputPlan({})
    plan = _plan(out, options.save, *_kinds(media, by_frame=by_frame))
    if plan.folder is not None and Path(source).is_dir():
        check_target(plan.folder, source)
    for path in plan.files.values():
        check_target(path, source)
    remove_leftovers(out)
    if not options.overwrite and out.is_file():
        raise ValueError(f"{out} exists; choose another name, or replace it with --overwrite")
    if not options.overwrite and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose another folder, or replace what is there with --overwrite")
    return plan


def _kinds(media: FrameSource, *, by_frame: bool) -> tuple[dict[str, str], dict[str, str]]:
    """The name in a folder of each kind of output, and the kind that a file's suffix stands for."""
    if isinstance(media, Picture) and not by_frame:
        return _PICTURE_FILES, dict.fromkeys(_PICTURE_SUFFIXES, "overlay") | {".json": "json"}
    names = {kind: writer.default_name for kind, writer in WRITERS.items()}
    suffixes = dict.fromkeys(sorted(VIDEO_SUFFIXES), "overlay") | {".json": "json"}
    if by_frame:
        return names, suffixes | {".jsonl": "jsonl"}
    names.pop("jsonl")
    return names | {"json": _PICTURE_FILES["json"]}, suffixes


def _plan(out: Path, save: str | None, names: dict[str, str], suffixes: dict[str, str]) -> OutputPlan:
    nearest = next(parent for parent in out.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise ValueError(f"-o {out}: {nearest} is a file, not a folder")
    if out.suffix and not out.is_dir():
        if out.suffix.lower() not in suffixes:
            raise ValueError(f"-o {out}: expected a folder, or a file ending in {', '.join(suffixes)}")
        if save is not None:
            raise ValueError(f"-o {out} names one file, so there is nothing for --save to choose; name a folder")
        return OutputPlan({suffixes[out.suffix.lower()]: out})
    wanted = parse_kinds(save, tuple(names), _DEFAULT_KINDS)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder, or give the file an ending such as {', '.join(suffixes)}")
    return OutputPlan({kind: out / names[kind] for kind in wanted}, out)


def answer_record(
    answers: Sequence[Answer], media: FrameSource | None, source: str, model: str, wanted: Sequence[str] | None = None
) -> dict[str, Any]:
    """Answers and what was asked, JSON-ready; an answer's own fields are those of `Answer.to_json`.

    Args:
        wanted: what each answer was asked to find; None for questions.
    """
    requests = wanted or [answer.history[-1].question for answer in answers]
    return {
        "sa2va": __version__,
        "source": source,
        "model": model,
        "size": None if media is None else media.size,
        "answers": [{"request": request, **answer.record} for request, answer in zip(requests, answers, strict=True)],
    }


def report(
    screen: Screen,
    plan: OutputPlan,
    media: FrameSource | None,
    answers: Sequence[Answer],
    *,
    source: str,
    model: str,
    started: float,
    wanted: Sequence[str] | None = None,
) -> None:
    """Write the planned files, and print what was found.

    Args:
        media: the medium; None for words alone. source: its name on the command line. model: folder or hub id.
        started: ``perf_counter()`` before the request.
        wanted: what each answer was asked to find; None for questions, whose answers are printed as text.
    """
    seconds = perf_counter() - started
    record = answer_record(answers, media, source, model, wanted)
    outputs = write_answers(screen, plan, media, answers, record)
    if screen.json:
        screen.emit({**record, "outputs": outputs, "seconds": round(seconds, 3)})
    if wanted is None:
        for answer in answers:
            screen.result(_colored(answer))
    show_found(screen, answers, wanted)
    if len(answers[0].history) == 1:  # once in a conversation
        scores = [max((segment.score for segment in answer.segments), default=0.0) for answer in answers]
        note_on_tiny(screen, model, scores)
    screen.note(f"{seconds:.1f} s" + (f"; wrote {plan.summary(outputs)}" if outputs else ""))


def write_answers(
    screen: Screen, plan: OutputPlan, media: FrameSource | None, answers: Sequence[Answer], record: dict[str, Any]
) -> list[str]:
    """Write the planned files; ``record`` is the JSON file. Returns their names."""
    if media is None or not plan.files:
        return []
    segments = [segment for answer in answers for segment in answer.segments]
    if "overlay" in plan.files and not any(mask.area for segment in segments for mask in segment.masks):
        screen.note("nothing was found, so there is no overlay")
        plan = plan.without_overlay()
    if isinstance(media, Picture):
        return write_picture(plan.files, media.image, segments, record, folder=plan.folder)
    about: dict[str, Any] = {"size": media.size, "fps": media.fps, "source": media.path}
    with ExitStack() as opened:
        kinds = [(WRITERS[kind], path) for kind, path in plan.files.items() if kind != "json"]
        writers = [opened.enter_context(kind(path, **about)) for kind, path in kinds]
        for decoded in media if writers else ():
            here = tuple(replace(segment, masks=(segment.masks[decoded.index],)) for segment in segments)
            frame = Frame(decoded.index, decoded.time, media.size, here)
            for writer in writers:
                writer.write(frame, decoded.pixels)
    outputs = [plan.shown(path) for path in plan.files.values()]
    if (path := plan.files.get("json")) is not None:
        write_json(path, {**record, "outputs": outputs})
    return outputs


def show_found(screen: Screen, answers: Sequence[Answer], wanted: Sequence[str] | None) -> None:
    """Print one line per object, then one per wanted phrase without any."""
    screen.rows(
        [
            (
                named(segment.id, segment.phrase, segment.color),
                f"object {segment.id}",
                scored(segment.score),
                _share(segment),
            )
            for answer in answers
            for segment in answer.segments
        ]
    )
    for phrase, answer in zip(wanted or (), answers, strict=False):
        if not answer.segments:
            screen.result(nothing(phrase, answer.reason or "the model pointed at nothing"))


def nothing(phrase: str, reason: str) -> Text:
    """A line for a phrase without an object."""
    return Text.assemble("- ", printable(phrase), (f"   nothing: {printable(reason)}", "yellow"))


def note_on_tiny(screen: Screen, model: str, scores: Sequence[float]) -> None:
    """Say what the packaged model is for, unless its scores are as high as they hardly ever are elsewhere.

    Args:
        model: as it was loaded. scores: of what was found for each request, 0 for nothing.
    """
    if Path(model) == TINY and (not scores or min(scores) < _AT_HOME):
        screen.note("tiny knows only the drawn world it was made from; for photographs take a model of `sa2va models`")


def named(number: int, phrase: str, color: Sequence[int] | None) -> Text:
    """An object's phrase beside a patch of its colour in the overlays."""
    return Text.assemble(("■ ", _style(number, color)), printable(phrase) or "(unnamed)")


def scored(score: float) -> Text:
    """A score, marked where the model itself thinks little of its masks."""
    return Text.assemble(f"score {score:.2f}", (" doubtful" if score < DOUBTFUL else "", "yellow"))


def _colored(answer: Answer) -> Text:
    """What the model said, phrases in the colours of their masks."""
    text = Text(printable(answer.text))
    for segment in answer.segments:
        if segment.span is not None:
            text.stylize(f"bold {_style(segment.id, segment.color)}", *segment.span)
    return text


def _share(segment: Segment) -> str:
    if len(segment.masks) > 1:
        return f"in {sum(mask.area > 0 for mask in segment.masks)} of {len(segment.masks)} frames"
    height, width = segment.mask.size
    return f"{segment.mask.area / (height * width):.1%} of the picture"


def _style(number: int, color: Sequence[int] | None) -> str:
    red, green, blue = color or default_color(number)
    return f"rgb({red},{green},{blue})"
