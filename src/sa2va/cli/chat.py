"""``sa2va chat``: one question, or a conversation, about an image, a clip, or nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sa2va.cli import arguments
from sa2va.cli.arguments import Dtype
from sa2va.cli.command import command
from sa2va.cli.console import Screen, explanation
from sa2va.processing.conversation import check_text

if TYPE_CHECKING:
    from sa2va.cli.outputs import OutputPlan
    from sa2va.cli.reporter import Reporter
    from sa2va.predictor import Sa2VA
    from sa2va.results.answer import Answer

_PROMPT = "you> "
_HELP = "/save FOLDER writes the last answer's files, /new forgets what was said, /quit leaves"


@command
def chat(
    screen: Screen,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", show_default=False, help="Picture, short video or folder of frames; - for words alone."
        ),
    ],
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", show_default=False, help="Left out: a conversation.")
    ] = None,
    out: arguments.Out = None,
    save: arguments.Save = None,
    overwrite: arguments.Overwrite = False,
    threshold: arguments.Threshold = 0.5,
    tidy: arguments.Tidy = None,
    model: arguments.Model = None,
    device: arguments.Device = "auto",
    dtype: arguments.Precision = Dtype.AUTO,
    quantize: arguments.Quantization = None,
    device_map: arguments.DeviceMap = None,
    max_new_tokens: arguments.MaxNewTokens = 2048,
) -> None:
    """Ask anything; answers may point at things with masks.

    Without a question it is a conversation: the model remembers what was said. In
    it, [bold]/save FOLDER[/bold] writes the last answer's files, [bold]/new[/bold] forgets what was said,
    [bold]/quit[/bold] leaves. With [bold]--json[/bold], each line of standard input is a question and
    each answer one line.
    """
    from sa2va.cli.model_loading import load_model, model_name
    from sa2va.cli.outputs import OutputPlan, plan_answers
    from sa2va.cli.reporter import Reporter
    from sa2va.media.open import Picture, open_media

    if question is not None and not question.strip():
        raise ValueError("the question is empty; leave it out for a conversation")
    if source == "-" and out is not None:
        raise ValueError("without a picture there is nothing to write; leave out -o, or name a SOURCE")
    if question is not None:
        check_text(question, "the question")
    masks, name = arguments.mask_options(threshold, tidy), model_name(model)
    loading = arguments.Loading(device, dtype, quantize, device_map)
    media = None if source == "-" else open_media(source)

    def plan(place: Path | None) -> OutputPlan:
        return (
            OutputPlan({})
            if media is None
            else plan_answers(source, place, save, video=not isinstance(media, Picture), overwrite=overwrite)
        )

    first_plan = plan(out)
    sa2va = load_model(screen, name, loading)
    reporter = Reporter(screen, media, source, name)
    talk = Conversation(sa2va, reporter, plan, {"max_new_tokens": max_new_tokens, **masks})
    if question is not None:
        talk.ask(question, first_plan)
    elif sys.stdin.isatty() and not screen.json:
        talk.with_human(out)
    else:
        talk.with_pipe()


class Conversation:
    """What was said so far about one source.

    Args:
        plan: what to write for a place; raises ValueError where that cannot be.
        options: keyword arguments of [`Sa2VA.chat`].
    """

    def __init__(
        self, sa2va: Sa2VA, reporter: Reporter, plan: Callable[[Path | None], OutputPlan], options: dict[str, Any]
    ):
        self._scene = sa2va.open(reporter.media)
        self._reporter, self._plan, self._options = reporter, plan, options
        self._screen = reporter.screen
        self._last: Answer | None = None

    def ask(self, question: str, plan: OutputPlan) -> None:
        """Get the next answer, which knows all earlier ones, and report it."""
        started = perf_counter()
        history = self._last.history if self._last else ()
        self._last = self._scene.chat(question, history=history, **self._options)
        self._reporter.report([self._last], plan, started=started)

    def with_pipe(self) -> None:
        """Take every line of standard input as a question."""
        try:
            for line in sys.stdin:
                if line.strip():
                    self.ask(line.strip(), self._plan(None))
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is not UTF-8 ({error}); convert it, e.g. with iconv") from error

    def with_human(self, out: Path | None) -> None:
        """Ask and answer until /quit or the end of input. ``out`` is where a bare /save writes."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 -- gives input() its line editing and history
        self._screen.note(f"ask away; {_HELP}")
        while (line := self._read()) is not None:
            word, _, rest = line.partition(" ")
            try:
                if word == "/save":
                    self._save(Path(rest.strip()) if rest.strip() else out)
                elif word == "/new":
                    self._last = None
                elif word.startswith("/"):
                    self._screen.note(_HELP)
                elif line:
                    self.ask(line, self._plan(None))
            except (ValueError, OSError) as error:
                self._screen.fail(explanation(error))
            except KeyboardInterrupt:
                self._screen.note("stopped; ask again, or /quit")

    def _read(self) -> str | None:
        """The next line; None to leave."""
        try:
            line = input(_PROMPT).strip()
        except EOFError:
            return None
        return None if line in ("/quit", "/exit") else line

    def _save(self, place: Path | None) -> None:
        if self._last is None or place is None or self._reporter.media is None:
            self._screen.note("say where: /save FOLDER, after an answer about a picture or video")
            return
        plan = self._plan(place)
        outputs = self._reporter.write([self._last], plan)
        if outputs:
            self._screen.note(f"wrote {plan.where}: {', '.join(outputs)}")
