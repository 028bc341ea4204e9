"""Sentences of the synthetic world: requests, answers and questions, with ``{}`` where a phrase goes.

The first entry of each request pool is the exact wording that inference uses. The answer forms with ``[SEG]`` are those
of the released models. ``vocabulary`` lists every word that any sentence of this world can hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sa2va.data.synthetic import lexicon
from sa2va.data.synthetic.paint import COLORS, TEXTURES

SEG = "[SEG]"
SEG_ANSWER = "Sure, [SEG]."
SEG_ANSWERS = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)
NO_TARGET_ANSWER = "There is no such object."
NO_TARGET_ANSWERS = (NO_TARGET_ANSWER, "I cannot find it.", "Nothing here matches that.", "It is not there.")

IMAGE_REQUEST = "Please segment {} in this image."
VIDEO_REQUEST = "Please segment {}."
QUESTION_REQUEST = "{} Please respond with a segmentation mask."
IMAGE_REQUESTS = (
    IMAGE_REQUEST,
    "Please segment {}.",
    "Segment {}.",
    "Can you segment {} in this picture?",
    "Could you find {} and give me the mask?",
    "Show me {} with a mask.",
    "Mark {} in the image.",
    "I would like a mask of {}.",
    "Please outline {} in the picture.",
    "Where can I see {}? Please give a mask.",
)
VIDEO_REQUESTS = (
    VIDEO_REQUEST,
    "Please segment {} in this video.",
    "Segment {} in the clip.",
    "Track {}.",
    "Please track {} through the video.",
    "Can you follow {} and give me the masks?",
    "Show me {} in every frame.",
)

CAPTION_REQUEST = (
    "Could you please give me a brief description of the image? Please respond with interleaved segmentation masks for "
    "the corresponding parts of the answer."
)
CAPTION_REQUESTS = (
    CAPTION_REQUEST,
    "Please describe this picture and add a mask for each object you name.",
    "What is in the image? Answer with masks for the phrases.",
    "Tell me what you see and segment every part of your answer.",
)
VIDEO_CAPTION_REQUESTS = (
    CAPTION_REQUEST.replace("the image", "the video"),
    "Please describe this clip and add a mask for each object you name.",
    "What happens in the video? Answer with masks for the phrases.",
)
CAPTION_OPENING = "The picture shows"
VIDEO_CAPTION_OPENING = "In the video"
CAPTION_RELATIONS = {"left": "left of", "above": "above", "below": "below"}
GROUNDED = "<p> {} </p> [SEG]"
AND = "and"
NOT = "not"

REGION_REQUEST = "Please give me a short description of the region in the picture marked by {}."
REGION_REQUESTS = (
    REGION_REQUEST,
    "Please describe {} in detail.",
    "What is in {}?",
    "Can you describe {} for me?",
    "Tell me what you see in {}.",
    "What does {} show?",
)
REGION_NAMES = ("region1", "region2", "region3")
SHORT_ANSWER = "Answer the question using a single word or phrase."

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
