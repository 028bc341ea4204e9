"""A question file as a benchmark: rows about one picture are one item; answers are matched by rules and counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sa2va.eval.benchmark import Benchmark, Expected, Item, Kind, Prediction, Query, Scores, require_all
from sa2va.eval.qa import counting
from sa2va.eval.qa.counting import Count, Verdict
from sa2va.eval.qa.tsv import QuestionFile, TableQuestion, as_clip, common_size


@dataclass(frozen=True)
class PromptStyle:
    """How questions of one kind are put, matched and counted.

    Attributes:
        prompt: a question to the text that is asked. match: an answer's text to what it says, in the words of the
            file's answers, None when unclear.
        count: all verdicts to values. group: those of one category to values.
        headline: the value that tables print.
        protocol: the same in words.
        categories: those of a question.
        circular: rows are rotations of each other.
    """

    prompt: Callable[[TableQuestion], str]
    match: Callable[[TableQuestion, str], str | None]
    count: Count
    group: Count
    headline: str
    protocol: str
    categories: Callable[[TableQuestion], list[str]] = counting.one_category
    circular: bool = False


@dataclass(frozen=True)
class QuestionTask:
    """What is known about a question file.

    Attributes:
        name: of the benchmark. title: for tables. file: the file's name. style: see [`PromptStyle`].
        split: of the headline; rows of other splits are asked and listed, but not in it. "" for all rows.
        md5: of the published versions of the file. origin: where they come from.
    """

    name: str
    title: str
    file: str
    style: PromptStyle
    split: str = ""
    md5: tuple[str, ...] = ()
    origin: str = ""


class QuestionBenchmark:
    """One question file, asked and scored.

    Args:
        task: what it is. file: its rows. questions: some of them; None for all.

    Raises:
        ValueError: rows have no answers, as in files whose truth is on a server, or an index is no number where the
            rotations of a question are known by it.
    """

    kind: Kind = "question"
    submission = False

    def __init__(self, task: QuestionTask, file: QuestionFile, questions: Sequence[TableQuestion] | None = None):
        self.name = task.name
        self._task, self._file = task, file
        self._questions = tuple(file.questions if questions is None else questions)
        unanswered = [question for question in self._questions if not question.answer]
        if unanswered:
            raise ValueError(
                f"{file.path}: {len(unanswered)} rows have no answer (first: index {unanswered[0].index}); where the "
                "answers are on a server nothing can be scored here: use the dev or val file"
            )
        if task.style.circular:
            for question in self._questions:
                counting.rotation_group(question)
        self._by_picture: dict[str, list[TableQuestion]] = {}
        for question in self._questions:
            self._by_picture.setdefault(question.picture, []).append(question)
        self._by_id = {self._id(question): question for question in self._questions}

    @property
    def protocol(self) -> str:
        """What is asked and counted, and of which file."""
        known = self._file.md5 in self._task.md5
        edition = "the published file" if known else "none of the published files" if self._task.md5 else "not known"
        return (
            f"{self._file.path.name}, {len(self._questions)} rows, md5 {self._file.md5} ({edition}). "
            f"{self._task.style.protocol} Several pictures of one question are shown as the frames of a clip. "
            "Answers are matched by rules, without a language model as judge."
        )

    def items(self) -> Sequence[Item]:
        """One item per picture, in the order of the file; its header is read when the item is, its pixels later."""
        return _Items(tuple(self._by_picture.values()), self._item)

    def limited(self, count: int) -> Benchmark:
        """The questions about the first ``count`` pictures."""
        kept = {question.index for own in list(self._by_picture.values())[:count] for question in own}
        return QuestionBenchmark(self._task, self._file, [one for one in self._questions if one.index in kept])

    def score(self, predictions: Mapping[str, Prediction]) -> Scores:
        """Match every answer and count."""
        require_all(self.name, list(self._by_id), predictions)
        style = self._task.style
        verdicts = [self._judge(question, predictions[id_].text) for id_, question in self._by_id.items()]
        main, notices = self._of_the_split(verdicts)
        values = style.count(main)
        for split in sorted({one.question.split for one in verdicts} - {""}):
            own = [one for one in verdicts if one.question.split == split]
            if len(own) < len(verdicts):
                values[f"{style.headline}/{split}"] = style.count(own)[style.headline]
        return Scores(
            values=values,
            groups=self._groups(main),
            samples={self._id(one.question): float(one.right) for one in verdicts},
            headline=style.headline,
            notices=(*notices, *self._notices()),
        )

    def pack(self, predictions: Mapping[str, Prediction], path: Path) -> Path:
        """Nothing to pack: the truth is here."""
        raise ValueError(f"{self.name} is scored here; there is no server to pack its answers for")

    def expected(self, query_id: str) -> Expected:
        """The right answer, with its text where it is an option's letter."""
        if query_id not in self._by_id:
            raise ValueError(f"{self.name} has no query {query_id!r}")
        question = self._by_id[query_id]
        text = question.options.get(question.answer)
        return Expected(f"{question.answer}. {text}" if text else question.answer)

    def _id(self, question: TableQuestion) -> str:
        return f"{self.name}/{question.index}"

    def _item(self, questions: Sequence[TableQuestion]) -> Item:
        first, ids = questions[0], [self._id(question) for question in questions]
        style, sizes = self._task.style, self._file.sizes(first)
        return Item(
            id=ids[0],
            media=partial(_media, self._file, first),
            video=len(sizes) > 1,
            size=common_size(sizes),
            queries=tuple(
                Query(id_, style.prompt(question), question.category)
                for id_, question in zip(ids, questions, strict=True)
            ),
        )

    def _judge(self, question: TableQuestion, text: str) -> Verdict:
        said = self._task.style.match(question, text)
        return Verdict(question, said, said == question.answer)

    def _of_the_split(self, verdicts: list[Verdict]) -> tuple[list[Verdict], list[str]]:
        split = self._task.split
        main = [one for one in verdicts if one.question.split == split] if split else verdicts
        if main:
            return main, []
        return verdicts, [f"no row is of the split {split!r}, which the headline is meant for; all rows count"]

    def _groups(self, verdicts: Sequence[Verdict]) -> dict[str, dict[str, float]]:
        style = self._task.style
        groups = counting.by_category(verdicts, style.categories)
        coarse = counting.by_category(
            verdicts, lambda question: [f"l2/{question.l2_category}"] if question.l2_category else []
        )
        return {name: {"count": len(own), **style.group(own)} for name, own in {**groups, **coarse}.items()}

    def _notices(self) -> list[str]:
        file, notices = self._file, []
        if self._task.md5 and file.md5 not in self._task.md5:
            notices.append(
                f"{file.path.name} has md5 {file.md5}, the published file {' or '.join(self._task.md5)}: "
                "numbers may not compare"
            )
        if file.pictureless:
            notices.append(f"{file.pictureless} rows without a picture were left out")
        lost = [one for one in self._questions if one.options and one.answer not in one.options]
        if lost:
            notices.append(
                f"{len(lost)} rows have an answer that is none of their options (first: index {lost[0].index}); "
                "they count as wrong"
            )
        return notices


class _Items(Sequence[Item]):
    """Items made when they are asked for."""

    def __init__(self, groups: Sequence[Sequence[TableQuestion]], make: Callable[[Sequence[TableQuestion]], Item]):
        self._groups, self._make = groups, make

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Items(self._groups[index], self._make)
        return self._make(self._groups[index])


def _media(file: QuestionFile, question: TableQuestion) -> Any:
    pictures = file.pictures(question)
    return pictures[0] if len(pictures) == 1 else as_clip(pictures)
