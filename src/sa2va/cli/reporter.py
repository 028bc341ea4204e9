"""The end of a request: write files and report the result, as text or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sa2va import __version__
from sa2va.cli.answers import answer_record, note_on_tiny, show_found, show_text
from sa2va.cli.console import Screen
from sa2va.cli.outputs import OutputPlan
from sa2va.cli.source import write_found
from sa2va.media.frames import FrameSource

if TYPE_CHECKING:
    from sa2va.results.answer import Answer


@dataclass(frozen=True)
class Reporter:
    """Reports answers about one source.

    Attributes:
        media: the source, opened; None for a conversation about words alone. source: as the user named it.
        model: name of the checkpoint.
    """

    screen: Screen
    media: FrameSource | None
    source: str
    model: str

    def report(
        self,
        answers: Sequence[Answer],
        plan: OutputPlan,
        *,
        started: float,
        wanted: Sequence[str] | None = None,
    ) -> None:
        """Write the planned files, and tell what was found.

        Args:
            started: ``perf_counter()`` before the request.
            wanted: what each answer was asked to find; None for free answers, whose text is shown.
        """
        seconds = perf_counter() - started
        outputs = self.write(answers, plan, wanted)
        if self.screen.json:
            self.screen.emit({**self._record(answers, wanted), "outputs": outputs, "seconds": round(seconds, 3)})
        if wanted is None:
            for answer in answers:
                show_text(self.screen, answer)
        show_found(self.screen, answers, wanted)
        if len(answers[0].history) == 1:  # once in a conversation
            scores = [max((segment.score for segment in answer.segments), default=0.0) for answer in answers]
            note_on_tiny(self.screen, self.model, scores)
        self.screen.note(f"{seconds:.1f} s" + (f"; wrote {summary(plan, outputs)}" if outputs else ""))

    def write(self, answers: Sequence[Answer], plan: OutputPlan, wanted: Sequence[str] | None = None) -> list[str]:
        """Write the planned files. Returns their names."""
        if self.media is None or not plan.files:
            return []
        segments = [segment for answer in answers for segment in answer.segments]
        if "overlay" in plan.files and not any(mask.area for segment in segments for mask in segment.masks):
            self.screen.note("nothing was found, so there is no overlay")
            plan = plan.without_overlay()
        return write_found(plan, self.media, segments, self._record(answers, wanted))

    def _record(self, answers: Sequence[Answer], wanted: Sequence[str] | None) -> dict[str, Any]:
        requests = wanted or [answer.history[-1].question for answer in answers]
        return {
            "sa2va": __version__,
            "source": self.source,
            "model": self.model,
            "size": None if self.media is None else self.media.size,
            "answers": [answer_record(request, answer) for request, answer in zip(requests, answers, strict=True)],
        }


def summary(plan: OutputPlan, outputs: Sequence[str]) -> str:
    """The files written, in few words."""
    if plan.folder is None:
        return plan.where
    more = f" and {len(outputs) - 5} more" if len(outputs) > 6 else ""
    return f"{plan.where}: {', '.join(outputs[:5] if more else outputs)}{more}"
