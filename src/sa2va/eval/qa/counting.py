"""Scores of question benchmarks from judged answers. All are fractions; papers print them times 100."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sa2va.eval.qa.tsv import TableQuestion

#: Rotations of a question have its index plus a multiple of this (MMBench).
ROTATION = 1_000_000
PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


@dataclass(frozen=True)
class Verdict:
    """One answer, judged.

    Attributes:
        question: what was asked. said: letter, ``"Yes"`` or ``"No"``; None where the answer was unclear, and so wrong.
        right: whether it is the right one.
    """

    question: TableQuestion
    said: str | None
    right: bool


Values = dict[str, float]
Count = Callable[[Sequence[Verdict]], Values]


def share(hits: Iterable[bool]) -> float:
    """Fraction of hits, 0 where there are none to hit."""
    counted = list(hits)
    return sum(counted) / len(counted) if counted else 0.0


def accuracy(verdicts: Sequence[Verdict]) -> Values:
    """``accuracy``, and ``unclear``: the fraction of answers that named no option."""
    return {
        "accuracy": share(one.right for one in verdicts),
        "unclear": share(one.said is None for one in verdicts),
    }


def rotations(verdicts: Iterable[Verdict]) -> list[list[Verdict]]:
    """Verdicts on the rotations of one question together, the question as it was first."""
    groups: dict[int, list[Verdict]] = {}
    for one in verdicts:
        groups.setdefault(rotation_group(one.question), []).append(one)
    return [sorted(group, key=lambda one: int(one.question.index)) for group in groups.values()]


def rotation_group(question: TableQuestion) -> int:
    """The index of the question that this one is a rotation of.

    Raises:
        ValueError: the index is no number.
    """
    try:
        return int(question.group) if question.group else int(question.index) % ROTATION
    except ValueError as error:
        raise ValueError(
            f"expected a whole number as the index of row {question.row}, got {question.index!r}"
        ) from error


def circular(verdicts: Sequence[Verdict]) -> Values:
    """MMBench: a question counts when it is right in every rotation of its options.

    ``accuracy`` is that; ``first_only`` counts questions as they were before rotation; ``unclear`` as in [`accuracy`].
    """
    groups = rotations(verdicts)
    return {
        "accuracy": share(all(one.right for one in group) for group in groups),
        "first_only": share(group[0].right for group in groups),
        "unclear": share(one.said is None for one in verdicts),
    }


def mme_task(verdicts: Sequence[Verdict]) -> Values:
    """One task of MME: ``accuracy`` of questions, ``accuracy_plus`` of pictures whose questions are all right, and the
    sum of both, ``score`` (0..2; MME prints 0..200)."""
    pictures: dict[str, list[bool]] = {}
    for one in verdicts:
        pictures.setdefault(one.question.image_path or one.question.picture, []).append(one.right)
    single, both = share(one.right for one in verdicts), share(map(all, pictures.values()))
    return {"accuracy": single, "accuracy_plus": both, "score": single + both}


def mme(verdicts: Sequence[Verdict]) -> Values:
    """MME: ``perception`` (0..20; printed 0..2000) and ``cognition`` (0..8; printed 0..800), sums of the tasks' scores.

    ``tasks_present`` is the fraction of its 14 tasks that there are; ``unclear`` as in [`accuracy`].
    """
    tasks = {name: mme_task(own)["score"] for name, own in by_category(verdicts).items()}
    return {
        "perception": sum(tasks.get(name, 0.0) for name in PERCEPTION),
        "cognition": sum(tasks.get(name, 0.0) for name in COGNITION),
        "tasks_present": share(name in tasks for name in (*PERCEPTION, *COGNITION)),
        "unclear": share(one.said is None for one in verdicts),
    }


def pope(verdicts: Sequence[Verdict]) -> Values:
    """POPE over all categories: a question of several counts once in each of them."""
    return yes_f1([one for one in verdicts for _ in several_categories(one.question) or [""]])


def yes_f1(verdicts: Sequence[Verdict]) -> Values:
    """``f1``, ``precision`` and ``recall`` of Yes, ``accuracy``, and ``yes``, the fraction answered so.

    Nothing over nothing is 0; ``unclear`` as in [`accuracy`].
    """
    said = [one.said == "Yes" for one in verdicts]
    true = [one.question.answer == "Yes" for one in verdicts]
    hits = sum(s and t for s, t in zip(said, true, strict=True))
    precision = hits / sum(said) if any(said) else 0.0
    recall = hits / sum(true) if any(true) else 0.0
    return {
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "accuracy": share(one.right for one in verdicts),
        "precision": precision,
        "recall": recall,
        "yes": share(said),
        "unclear": share(one.said is None for one in verdicts),
    }


def one_category(question: TableQuestion) -> list[str]:
    """The category of a question, nothing where it has none."""
    return [question.category] if question.category else []


def several_categories(question: TableQuestion) -> list[str]:
    """The categories of a question of POPE, which has commas between them."""
    return [name.strip() for name in question.category.split(",") if name.strip()]


def by_category(
    verdicts: Iterable[Verdict], categories: Callable[[TableQuestion], list[str]] = one_category
) -> dict[str, list[Verdict]]:
    """Verdicts per category, in the order of names; those without one are left out."""
    groups: dict[str, list[Verdict]] = {}
    for one in verdicts:
        for name in categories(one.question):
            groups.setdefault(name, []).append(one)
    return dict(sorted(groups.items()))
