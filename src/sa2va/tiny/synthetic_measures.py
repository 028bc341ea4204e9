"""How answers about the synthetic world are counted: masks, words, grounded captions.

Letters in shapes: F frames, H height, W width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from sa2va.data.sample import SEG
from sa2va.eval.benchmark import Prediction, Query, Scores
from sa2va.eval.grounded import best_pairs
from sa2va.eval.metrics import Overlap, ciou, generalized_scores, giou, jf_sequence, overlap, precision_at
from sa2va.masks.mask import Mask
from sa2va.results.history import Turn
from sa2va.tiny.synthetic.drawn_scene import SIZES
from sa2va.tiny.synthetic.paint import COLORS, TEXTURES
from sa2va.tiny.synthetic.wording import COLOR_QUESTIONS, PRONOUN

_PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)
_MATCH = 0.5  # IoU from which a mask is that of an object, in captions and conversations
_Outcome = TypeVar("_Outcome")


@dataclass(frozen=True, eq=False)
class Case:
    """One query with its truth.

    Attributes:
        item: id of the item. query: what is asked.
        answer: the right answer as trained, special tokens included.
        masks: per ``[SEG]`` of the answer, bool (F, H, W).
        shape: (F, H, W).
    """

    item: str
    query: Query
    answer: str
    masks: tuple[np.ndarray, ...]
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Measure(Generic[_Outcome]):
    """How answers of one kind are counted.

    Attributes:
        judge: one answer against its truth. summary: outcomes to named values. quality: an outcome as one number.
        headline: the value that tables print. protocol: the same in words.
    """

    judge: Callable[[Case, Prediction], _Outcome]
    summary: Callable[[Sequence[_Outcome]], dict[str, float]]
    quality: Callable[[_Outcome], float]
    headline: str
    protocol: str

    def scores(self, cases: Sequence[Case], predictions: Mapping[str, Prediction]) -> Scores:
        """All outcomes, over everything and by tag."""
        outcomes = [self.judge(case, predictions[case.query.id]) for case in cases]
        by_tag: dict[str, list[_Outcome]] = {}
        for case, outcome in zip(cases, outcomes, strict=True):
            by_tag.setdefault(case.query.tag, []).append(outcome)
        return Scores(
            values=self.summary(outcomes),
            groups={tag: {"count": len(own), **self.summary(own)} for tag, own in sorted(by_tag.items())},
            samples={case.query.id: self.quality(one) for case, one in zip(cases, outcomes, strict=True)},
            headline=self.headline,
        )


# -- masks -------------------------------------------------------------------------------------------------------------


def _found(case: Case, prediction: Prediction) -> np.ndarray:
    """The union of all masks of an answer, bool (F, H, W)."""
    union = np.zeros(case.shape, bool)
    for masks in prediction.masks:
        union |= _volume(case, masks)
    return union


def _volume(case: Case, masks: Sequence[Mask]) -> np.ndarray:
    frames, *size = case.shape
    if len(masks) != frames or any(list(mask.size) != size for mask in masks):
        raise ValueError(
            f"{case.query.id}: expected masks of {frames} frames of {tuple(size)} (h, w), got {len(masks)} of "
            f"{sorted({mask.size for mask in masks})}"
        )
    return np.stack([mask.array for mask in masks])


def _target(case: Case) -> np.ndarray:
    return np.logical_or.reduce(case.masks) if case.masks else np.zeros(case.shape, bool)


def _overlap_summary(outcomes: Sequence[Overlap]) -> dict[str, float]:
    precisions = {f"pr@{threshold}": precision_at(outcomes, threshold) for threshold in _PRECISIONS}
    return {"ciou": ciou(outcomes), "giou": giou(outcomes), **precisions}


REFER = Measure(
    judge=lambda case, prediction: overlap(_found(case, prediction), _target(case)),
    summary=_overlap_summary,
    quality=lambda outcome: outcome.iou,
    headline="ciou",
    protocol="The union of all masks of an answer against the union of all targets: cIoU (all intersections over all "
    "unions), gIoU (mean IoU over requests) and Pr@t (share of requests whose IoU reaches t).",
)


def _says_rightly(outcome: tuple[np.ndarray, np.ndarray]) -> float:
    found, target = outcome
    return overlap(found, target).iou if target.any() and found.any() else float(found.any() == target.any())


def _generalized_summary(outcomes: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    found, targets = [one for one, _ in outcomes], [target for _, target in outcomes]
    scores = generalized_scores(found, targets)
    values = {"giou": scores.giou, "ciou": scores.ciou}
    # An accuracy over no samples is not 0 %; it is left out.
    if not all(target.any() for target in targets):
        values["n_acc"] = scores.n_acc
    if any(target.any() for target in targets):
        values["t_acc"] = scores.t_acc
    return values


ABSENT = Measure(
    judge=lambda case, prediction: (_found(case, prediction), _target(case)),
    summary=_generalized_summary,
    quality=_says_rightly,
    headline="n_acc",
    protocol="About half of the requests name nothing that is there. N-acc: share of those answered without any mask "
    "(or with empty ones); T-acc: share of the others answered with one; gIoU and cIoU as in gRefCOCO, over the pixels "
    "of all frames.",
)


def _jf_summary(outcomes: Sequence[tuple[float, float]]) -> dict[str, float]:
    j, f = np.mean(outcomes, axis=0).tolist()
    return {"j&f": (j + f) / 2, "j": j, "f": f}


CLIPS_REFER = Measure(
    judge=lambda case, prediction: jf_sequence(_found(case, prediction), _target(case)),
    summary=_jf_summary,
    quality=lambda outcome: sum(outcome) / 2,
    headline="j&f",
    protocol="The union of all masks of an answer against the union of all targets, as DAVIS counts: region similarity "
    "J and boundary accuracy F, means over all frames, then over requests; J&F is the mean of the two.",
)


# -- words -------------------------------------------------------------------------------------------------------------


def plain_words(text: str) -> str:
    """Lower case, without punctuation, articles and double spaces: what exact matching compares."""
    words = re.findall(r"\w+", text.lower())
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _accuracy(outcomes: Sequence[bool]) -> dict[str, float]:
    return {"accuracy": float(np.mean(outcomes))}


ANSWER = Measure(
    judge=lambda case, prediction: plain_words(prediction.text) == plain_words(case.answer),
    summary=_accuracy,
    quality=float,
    headline="accuracy",
    protocol="Questions with one right answer of one or two words. Accuracy: share of answers that equal it, case, "
    "punctuation and articles aside.",
)
_ATTRIBUTES = {"size": list(SIZES), "texture": list(TEXTURES), "color": list(COLORS)}


def attributes(text: str) -> dict[str, str]:
    """Size, texture, colour and kind that a description names: ``{"size": "small", ..., "kind": "star"}``.

    Attributes that are not named are "", but a texture that is not named beside a colour is plain. Kind is what else is
    said.
    """
    words = plain_words(text).split()
    found = {name: next((word for word in words if word in known), "") for name, known in _ATTRIBUTES.items()}
    if found["color"] and not found["texture"]:
        found["texture"] = TEXTURES[0]
    return {**found, "kind": " ".join(word for word in words if word not in found.values())}


def _judge_region(case: Case, prediction: Prediction) -> dict[str, bool]:
    said, right = attributes(prediction.text), attributes(case.answer)
    return {"exact": said == right, **{name: said[name] == right[name] for name in right}}


REGION = Measure(
    judge=_judge_region,
    summary=lambda outcomes: {name: float(np.mean([one[name] for one in outcomes])) for name in outcomes[0]},
    quality=lambda outcome: sum(outcome.values()) / len(outcome),
    headline="exact",
    protocol="One marked region per request. Exact: share of descriptions whose size, texture, colour and kind are all "
    "right; beside it the share for each of the four.",
)


# -- conversations -----------------------------------------------------------------------------------------------------

_MASK, _MASK_OF_IT, _NOTHING = "mask", "mask of it", "nothing there"
_WORDS, _WORDS_ABOUT_IT = "words", "words about it"


def kind_of_turn(turn: Turn, tag: str) -> str:
    """What a turn of a conversation asks for: ``"mask"``, ``"words"``, ``"mask of it"`` and ``"words about it"`` where
    *it* is what the turn before spoke of, or ``"nothing there"``.

    Args:
        tag: the turn's in the synthetic world.
    """
    if tag == "absent":
        return _NOTHING
    if SEG in turn.answer:
        return _MASK_OF_IT if tag == "pronoun" else _MASK
    return _WORDS_ABOUT_IT if turn.question.startswith(COLOR_QUESTIONS[0].format(PRONOUN)) else _WORDS


def _judge_turn(case: Case, prediction: Prediction) -> bool:
    if case.query.tag in (_MASK, _MASK_OF_IT, _NOTHING):
        return _says_rightly(ABSENT.judge(case, prediction)) >= _MATCH
    return ANSWER.judge(case, prediction)


CHAT = Measure(
    judge=_judge_turn,
    summary=_accuracy,
    quality=float,
    headline="accuracy",
    protocol="Conversations of up to three turns. Each turn is asked after the right answers to those before it. A "
    "turn that wants a mask is right when the union of all masks of its answer has an IoU of at least 0.5 with the "
    "target (in clips over the pixels of all frames), one about what is not there when it gets no mask or empty ones, "
    "and one that wants words when it equals the right ones, case, punctuation and articles aside. Accuracy: share of "
    "right turns.",
)


# -- captions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CaptionOutcome:
    """One caption: objects in the picture, masks given, masks that match an object, and of those with its phrase."""

    objects: int
    given: int
    matched: int
    named: int


def _judge_caption(case: Case, prediction: Prediction) -> CaptionOutcome:
    phrases = [plain_words(phrase) for phrase in re.findall(r"<p>(.*?)</p>", case.answer)]
    found = [_volume(case, masks) for masks in prediction.masks]
    ious = np.array([[overlap(one, mask).iou for mask in case.masks] for one in found]).reshape(
        len(found), len(case.masks)
    )
    pairs = [(row, column) for row, column, iou in best_pairs(ious) if iou >= _MATCH]
    named = sum(plain_words(prediction.phrases[row]) == phrases[column] for row, column in pairs)
    return CaptionOutcome(len(case.masks), len(found), len(pairs), named)


def _caption_summary(outcomes: Sequence[CaptionOutcome]) -> dict[str, float]:
    objects, given, matched, named = (
        sum(getattr(one, name) for one in outcomes) for name in ("objects", "given", "matched", "named")
    )
    return {
        "recall": matched / objects if objects else 0.0,
        "precision": matched / given if given else 0.0,
        "phrase_precision": named / given if given else 0.0,
        "phrase_recall": named / objects if objects else 0.0,
    }


CAPTION = Measure(
    judge=_judge_caption,
    summary=_caption_summary,
    quality=lambda outcome: (outcome.matched + outcome.named) / (2 * max(outcome.objects, outcome.given, 1)),
    headline="recall",
    protocol="A caption that grounds every object. Masks are matched to objects greedily, best IoU first, from IoU 0.5 "
    "on. Recall: matched objects; precision: matched masks; phrase precision and recall: those whose phrase is also "
    "the object's description, articles aside. In clips IoU is over the pixels of all frames.",
)
