"""Caption metrics: METEOR and CIDEr if Java is installed, and word overlap.

METEOR 1.5 and the tokenizer before CIDEr are Java programs inside pycocoevalcap. Where they cannot run the scores say
so; a stand-in under the same name would not be comparable with anything printed elsewhere.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sa2va.runtime import require_extra

_WORD = re.compile(r"\w+")
_TAG = re.compile(r"<[^<>]*>|\[SEG\]")
#: How the released models open a region's description before they get to it.
_OPENING = re.compile(
    r"""^\s*(?:(?:sure|certainly|of\ course)\s*[,.!:]\s*)?
        (?:(?:in\ (?:the|this)\ (?:picture|image|photo),?\s+)?
           (?:the\ (?:region|area|object)\s+(?:marked\ (?:by|as)\s+)?)?region\s?1
           (?:\s+(?:in|of)\ (?:the|this)\ (?:picture|image|photo))?
           \s*(?::|,|\b(?:is|shows|depicts|contains|features|describes)\b)\s*
         |it\ is\s+|it's\s+)?""",
    re.IGNORECASE | re.VERBOSE,
)
_CLOSING = re.compile(r"\s+(?:in|of)\ (?:the|this)\ (?:picture|image|photo)(?=\s*\.?\s*$)", re.IGNORECASE)


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions.

    Attributes:
        values: ``"meteor"`` 0..1 and ``"cider"`` 0..10 where they could be computed (papers print both times 100), and
            always ``"word_f1"`` 0..1.
        samples: name -> METEOR where there is one, else word F1.
        notices: which were left out, why, and the cure.
    """

    values: dict[str, float]
    samples: dict[str, float]
    notices: tuple[str, ...] = ()


def caption_scores(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> CaptionScores:
    """Score one caption per name against one or more references each.

    Raises:
        ValueError: captions and references are not of the same names, or there are none.
    """
    if not captions or captions.keys() != references.keys() or not all(references.values()):
        raise ValueError(
            f"expected one caption and at least one reference per name, got {len(captions)} captions and "
            f"references for {len(references)} names"
        )
    words = {name: max(word_f1(caption, one) for one in references[name]) for name, caption in captions.items()}
    values = {"word_f1": float(np.mean(list(words.values())))}
    if reason := why_no_java_metrics():
        return CaptionScores(values, words, (_notice(reason),))
    try:
        official, each = _coco_caption_scores(captions, references)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return CaptionScores(values, words, (_notice(f"the Java programs failed ({type(error).__name__}: {error})"),))
    return CaptionScores({**official, **values}, each)


def why_no_java_metrics() -> str:
    """Why METEOR and CIDEr cannot be computed here, with the cure; "" where they can."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "the package pycocoevalcap is missing: pip install 'sa2va[eval]'"
    if shutil.which("java") is None:
        return "there is no Java: install a Java runtime (8 or newer) so that `java` is found"
    return ""


def word_f1(caption: str, reference: str) -> float:
    """Harmonic mean of the shares of words that each text has in common with the other, 0..1; case does not matter."""
    ours, theirs = (Counter(_WORD.findall(text.lower())) for text in (caption, reference))
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 1.0


def plain_caption(raw_text: str) -> str:
    """A grounded caption without its tags and ``[SEG]``, white space made single."""
    return " ".join(_TAG.sub("", raw_text.replace("\n", " ")).split())


def region_caption(text: str) -> str:
    """A description of one region without the opening and closing the released models wrap it in.

    Whole phrases go, at the two ends only: words inside the description stay as they are.
    """
    bare = plain_caption(text)
    cleaned = _CLOSING.sub("", _OPENING.sub("", bare)).strip()
    return cleaned if _WORD.search(cleaned) else bare


def _coco_caption_scores(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[dict[str, float], dict[str, float]]:
    """METEOR and CIDEr over all, and METEOR of each."""
    cider = require_extra("pycocoevalcap.cider.cider", "eval").Cider()
    tokenizer = require_extra("pycocoevalcap.tokenizer.ptbtokenizer", "eval").PTBTokenizer()
    names = list(captions)
    given = tokenizer.tokenize({name: [{"caption": _line(captions[name])}] for name in names})
    true = tokenizer.tokenize({name: [{"caption": _line(one)} for one in references[name]] for name in names})
    if not list(given) == list(true) == names:
        raise ValueError(f"the tokenizer gave {len(given)} captions for {len(names)}")
    meteor, each = _meteor(true, given)
    values = {"meteor": meteor, "cider": float(cider.compute_score(true, given)[0])}
    return values, dict(zip(names, each, strict=True))


def _meteor(true: Mapping[str, list[str]], given: Mapping[str, list[str]]) -> tuple[float, list[float]]:
    scorer = require_extra("pycocoevalcap.meteor.meteor", "eval").Meteor()
    try:
        total, each = scorer.compute_score(true, given)
        return float(total), [float(one) for one in each]
    finally:
        # It keeps its lock when it fails, waits for it when it is freed, and never closes what it reads from.
        if scorer.lock.locked():
            scorer.lock.release()
        scorer.meteor_p.kill()
        scorer.meteor_p.stdout.close()
        scorer.meteor_p.stderr.close()


def _line(text: str) -> str:
    """Text on one line; the tokenizer counts lines, and one that is quite empty would shift the others."""
    return " ".join(text.split()) or "."


def _notice(reason: str) -> str:
    return f"METEOR and CIDEr were not computed: {reason}; word F1 is reported instead and is not comparable with them"
