"""Sentences of the synthetic world: requests, answers and questions, with ``{}`` where a phrase goes.

What real data are asked with too is in ``sa2va.processing.requests``. The first entry of each request pool is the exact
wording that inference uses. ``vocabulary`` lists every word that any sentence of this world can hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sa2va.model.families import SEG_TOKEN
from sa2va.processing import requests
from sa2va.tiny.synthetic import lexicon
from sa2va.tiny.synthetic.paint import COLORS, TEXTURES


def _blank(template: str) -> str:
    """A template with one placeholder, written as this module writes them."""
    return template.replace("{phrase}", "{}").replace(requests.REGION_NAME, "{}")


_real = requests.TRAINING_REQUESTS

SEG = SEG_TOKEN
SEG_ANSWERS = requests.SEG_ANSWERS
SEG_ANSWER = SEG_ANSWERS[1]
NO_TARGET_ANSWERS = _real.no_target
NO_TARGET_ANSWER = NO_TARGET_ANSWERS[0]

# The packaged model's vocabulary was made of these: longer pools of real data would give it words it has never seen.
IMAGE_REQUESTS = tuple(map(_blank, _real.referring[:10]))
VIDEO_REQUESTS = tuple(map(_blank, _real.video_referring[:7]))
CAPTION_REQUESTS = _real.gcg[:4]
IMAGE_REQUEST, VIDEO_REQUEST, CAPTION_REQUEST = IMAGE_REQUESTS[0], VIDEO_REQUESTS[0], CAPTION_REQUESTS[0]
QUESTION_REQUEST = _blank(requests.QUESTION_REQUEST)

VIDEO_CAPTION_REQUESTS = (
    CAPTION_REQUEST.replace("the image", "the video"),
    "Please describe this clip and add a mask for each object you name.",
    "What happens in the video? Answer with masks for the phrases.",
)
CAPTION_OPENING = "The picture shows"
VIDEO_CAPTION_OPENING = "In the video"
CAPTION_RELATIONS = {"left": "left of", "above": "above", "below": "below"}
GROUNDED = _blank(requests.GROUNDED_PHRASE)
AND = "and"
NOT = "not"

REGION_REQUEST = _blank(requests.REGION_REQUEST)
REGION_REQUESTS = (
    REGION_REQUEST,
    "Please describe {} in detail.",
    "What is in {}?",
    "Can you describe {} for me?",
    "Tell me what you see in {}.",
    "What does {} show?",
)
REGION_NAMES = tuple(requests.REGION_NAME.format(number=number) for number in (1, 2, 3))
SHORT_ANSWER = requests.SHORT_ANSWER_REQUEST

COLOR_QUESTIONS = ("What color is {}?", "What is the color of {}?", "What colour is {}?", "Which color does {} have?")
TEXTURE_QUESTIONS = ("What pattern does {} have?", "Is {} plain, striped, dotted or checkered?")
KIND_QUESTIONS = ("What is {}?", "What kind of thing is {}?")
SIZE_QUESTIONS = ("Is {} small, medium or large?", "What size is {}?")
COUNT_QUESTIONS = ("How many {} are there?", "How many {} do you see?", "Count the {}.")
EXIST_QUESTIONS = ("Is there {} in the picture?", "Do you see {}?", "Is there {}?")
LARGER_QUESTIONS = ("Which is larger, {} or {}?", "Which one is bigger, {} or {}?")
RELATION_QUESTIONS = ("Is {} {} {}?",)
WHERE_QUESTIONS = ("What is {} {}?", "Which thing is {} {}?")
MOTION_QUESTIONS = ("Does {} {}?",)
MOTION_WHO_QUESTIONS = ("Which {} {}?",)
DIRECTION_QUESTIONS = ("Which way does {} move?", "In which direction does {} move?")
MOTION_COUNT_QUESTIONS = ("How many things move?", "How many objects are moving?")
YES, NO = "yes", "no"
PRONOUN = "it"
NEGATION_CLAUSES = ("that is not {}", "that are not {}")
PLURALS = ("all {}", "all the {}", "every {}", "both {}", "the {} {}")
RIDDLE_SUBJECTS = ("the thing {}", "the object {}", "something {}", "the {} thing {}")
ORDERINGS = ("the {} {} from the {}", "the {} {} counted from the {}")
TEXT_REQUESTS = ("{}", "{} Answer in one word.", "Riddle: {}")


def vocabulary() -> list[str]:
    """Every word, number and punctuation mark the world's texts are made of, sorted; special tokens left out."""
    words: set[str] = set()
    tables = [vars(lexicon), globals()]
    constants = [value for table in tables for name, value in table.items() if name.isupper()]
    for text in _texts([constants, list(COLORS), TEXTURES]):
        words.update(re.findall(r"\w+|[^\w\s]", re.sub(r"\[SEG\]|</?p>|\{\}", " ", text)))
    return sorted(words)


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, Iterable):
        for part in value:
            yield from _texts(part)
