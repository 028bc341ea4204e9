"""``sa2va chat``: one question, or a conversation, about an image, a clip, or nothing."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sa2va.cli import arguments
from sa2va.cli.console import Screen, command, explanation
from sa2va.processing.conversation import check_text

if TYPE_CHECKING:
    from sa2va.cli.output import OutputPlan
    from sa2va.inference.scene import Scene
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
    *,
    output: arguments.OutputOptions,
    masks: arguments.MaskOptions,
    model: arguments.Model = None,
    loading: arguments.Loading,
    max_new_tokens: arguments.MaxNewTokens = 2048,
) -> None:
    """Ask anything; answers may point at things with masks.

    Without a question it is a conversation: the model remembers what was said. In
    it, [bold]/save FOLDER[/bold] writes the last answer's files, [bold]/new[/bold] forgets what was said,
    [bold]/quit[/bold] leaves. With [bold]--json[/bold], each line of standard input is a question and
    each answer one line.
    """
    from sa2va.cli.output import plan_output
    from sa2va.media.open import open_media

    if question is not None and not question.strip():
        raise ValueError("the question is empty; leave it out for a conversation")
    if source == "-" and output.out is not None:
        raise ValueError("without a picture there is nothing to write; leave out -o, or name a SOURCE")
    if question is not None:
        check_text(question, "the question")
    name = arguments.model_name(model)
    media = None if source == "-" else open_media(source)
    plan = plan_output(source, media, output)
    scene = arguments.load_model(screen, name, loading).open(media)
    options = {"max_new_tokens": max_new_tokens, **masks.keywords}
    conversation = Conversation(screen, scene, source, name, output, options)
    if question is not None:
        conversation.ask(question, plan)
    elif sys.stdin.isatty() and not screen.json:
        conversation.with_human()
    else:
        conversation.with_pipe()


class Conversation:
    """A conversation about one source.

    Args:
        source: the name of the medium on the command line. model: folder or hub id.
        output: what ``/save`` writes, and where it writes if no folder is named.
        options: keyword arguments of `Scene.chat`.
    """

    def __init__(
        self,
        screen: Screen,
        scene: Scene,
        source: str,
        model: str,
        output: arguments.OutputOptions,
        options: dict[str, Any],
    ):
        self._screen, self._scene, self._source, self._model = screen, scene, source, model
        self._output, self._options = output, options
        self._last: Answer | None = None

    def ask(self, question: str, plan: OutputPlan | None = None) -> None:
        """Ask the next question, print the answer, and write the planned files."""
        from sa2va.cli.output import OutputPlan, report

        started = perf_counter()
        history = self._last.history if self._last else ()
        self._last = self._scene.chat(question, history=history, **self._options)
        report(
            self._screen,
            plan or OutputPlan({}),
            self._scene.media,
            [self._last],
            source=self._source,
            model=self._model,
            started=started,
        )

    def with_pipe(self) -> None:
        """Take every line of standard input as a question."""
        try:
            for line in sys.stdin:
                if line.strip():
                    self.ask(line.strip())
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is not UTF-8 ({error}); convert it, e.g. with iconv") from error

    def with_human(self) -> None:
        """Ask and answer until /quit or the end of input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 -- gives input() its line editing and history
        self._screen.note(f"ask away; {_HELP}")
        while (line := self._read()) is not None:
            word, _, rest = line.partition(" ")
            try:
                if word == "/save":
                    self._save(Path(rest.strip()) if rest.strip() else self._output.out)
                elif word == "/new":
                    self._last = None
                elif word.startswith("/"):
                    self._screen.note(_HELP)
                elif line:
                    self.ask(line)
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
        from sa2va.cli.output import answer_record, plan_output, write_answers

        media = self._scene.media
        if self._last is None or place is None or media is None:
            self._screen.note("say where: /save FOLDER, after an answer about a picture or video")
            return
        plan = plan_output(self._source, media, replace(self._output, out=place))
        record = answer_record([self._last], media, self._source, self._model)
        outputs = write_answers(self._screen, plan, media, [self._last], record)
        if outputs:
            self._screen.note(f"wrote {plan.where}: {', '.join(outputs)}")
