"""``sa2va track``: track objects through a video and write videos, masks and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sa2va.cli import arguments
from sa2va.cli.arguments import Dtype, PropagationMode
from sa2va.cli.command import command
from sa2va.cli.console import Screen

if TYPE_CHECKING:
    from sa2va.cli.run_record import RunRecord
    from sa2va.media.frames import FrameSource


@command
def track(
    screen: Screen,
    source: arguments.Source,
    phrases: arguments.Phrases,
    out: arguments.Out = None,
    save: arguments.Save = None,
    overwrite: arguments.Overwrite = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            rich_help_panel="Output",
            help="Complete the results of a run that was stopped. Frames in folders and .jsonl files are kept and the "
            "missing ones added; whole files (videos, .json) are made anew. Masks depend on all frames before, so the "
            "model goes through the video again.",
        ),
    ] = False,
    key_frames: arguments.KeyFrames = "uniform",
    num_key_frames: arguments.NumKeyFrames = 5,
    mode: arguments.Mode = None,
    stride: arguments.Stride = 1,
    fps: arguments.Fps = None,
    start: arguments.Start = None,
    end: arguments.End = None,
    max_frames: arguments.MaxFrames = None,
    threshold: arguments.Threshold = 0.5,
    tidy: arguments.Tidy = None,
    model: arguments.Model = None,
    device: arguments.Device = "auto",
    dtype: arguments.Precision = Dtype.AUTO,
    quantize: arguments.Quantization = None,
    device_map: arguments.DeviceMap = None,
    max_new_tokens: arguments.MaxNewTokens = 2048,
) -> None:
    """Follow what phrases describe through a video of any length.

    The language model reads a few key frames, then masks are carried through
    every frame; memory use does not grow with the length. Ctrl-C stops after the
    frame in hand and leaves valid files; [bold]--resume[/bold] completes them. With [bold]--json[/bold]
    and no [bold]-o[/bold], every frame is one line on standard output.
    """
    if out is None and not screen.json:
        raise ValueError("say where the results go with -o OUT, or print every frame with --json")
    task = TrackRequest(
        source,
        phrases,
        model,
        threshold,
        tidy,
        max_new_tokens,
        arguments.Loading(device, dtype, quantize, device_map),
        key_frames=arguments.key_frames(key_frames),
        num_key_frames=num_key_frames,
        mode=mode,
        sampling=arguments.sampling(stride, fps, start, end, max_frames),
    )
    follow(screen, task, out=out, save=save, overwrite=overwrite, resume=resume)


@dataclass(frozen=True)
class TrackRequest:
    """What to follow, and how; everything that decides what the masks are."""

    source: str
    phrases: list[str]
    model: str | None
    threshold: float
    tidy: str | None
    max_new_tokens: int
    loading: arguments.Loading
    key_frames: str | list[int] = "uniform"
    num_key_frames: int = 5
    mode: PropagationMode | None = None
    sampling: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arguments.check_phrases(self.phrases)
        arguments.mask_options(self.threshold, self.tidy)

    @property
    def tracking(self) -> dict[str, Any]:
        """The keyword arguments of [`Sa2VA.track`]."""
        return {
            "key_frames": self.key_frames,
            "num_key_frames": self.num_key_frames,
            "mode": None if self.mode is None else self.mode.value,
            "max_new_tokens": self.max_new_tokens,
            **arguments.mask_options(self.threshold, self.tidy),
        }

    def open(self) -> FrameSource:
        """The video, sampled.

        Raises:
            ValueError, FileNotFoundError: there is none, it has no end, or a key frame lies outside it.
        """
        from sa2va.media.open import open_media

        video = open_media(self.source, **self.sampling)
        if video.frame_count is None:
            raise ValueError("a camera has no end; follow objects in it with Sa2VA.stream() in Python")
        if not isinstance(self.key_frames, str) and max(self.key_frames) >= video.frame_count:
            raise ValueError(
                f"--key-frames {max(self.key_frames)} is outside the video, whose frames are 0 to "
                f"{video.frame_count - 1} (after --stride and the like)"
            )
        return video

    def record(self, video: FrameSource) -> RunRecord:
        """The record of a run that has not begun."""
        from sa2va import __version__
        from sa2va.cli.model_loading import model_name
        from sa2va.cli.run_record import RunRecord

        settings = {**self.tracking, "cleanup": self.tidy, **self.sampling, "dtype": self.loading.dtype.value}
        if self.loading.quantize is not None:
            settings["quantize"] = self.loading.quantize.value
        model = model_name(self.model)
        return RunRecord(
            __version__, self.source, model, list(self.phrases), settings, list(video.size), video.frame_count
        )


def follow(
    screen: Screen,
    task: TrackRequest,
    *,
    out: Path | None,
    save: str | None,
    overwrite: bool,
    resume: bool = False,
) -> None:
    """Do a task and write what was planned; see [`track`].

    Raises:
        ValueError: a mistake in the options; all but a damaged model are found before the model is loaded.
        typer.Exit: a signal stopped it; the code is 130 for Ctrl-C.
    """
    from sa2va.cli.model_loading import load_model
    from sa2va.cli.outputs import plan_videos
    from sa2va.cli.track_run import TrackRun

    if resume and overwrite:
        raise ValueError("--resume keeps results and --overwrite replaces them; give one")
    video = task.open()
    plan = plan_videos(task.source, out, save, overwrite=overwrite or resume)
    run = TrackRun(screen, plan, task.record(video), resume=resume)
    if run.is_done:
        run.report("already complete")
        return
    sa2va = load_model(screen, run.model, task.loading)
    run.go(video, lambda: sa2va.track(video, task.phrases, **task.tracking))
