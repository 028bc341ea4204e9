"""Sentences that turn annotations into conversations: requests with ``{}`` for a phrase, and the released answers.

The first request of each pool is the wording of inference. Pools that the synthetic world has too are its own.
"""

from __future__ import annotations

import random

from sa2va.data.synthetic import wording as synthetic

#: The five forms of the released models.
ANSWERS = synthetic.SEG_ANSWERS
NO_TARGET_ANSWERS = synthetic.NO_TARGET_ANSWERS
REQUESTS = (
    *synthetic.IMAGE_REQUESTS,
    "What is {} in this image? Please respond with a segmentation mask.",
    "What is {} in this picture? Please output its segmentation mask.",
    "Can you provide a segmentation mask for {}?",
    "Please identify and segment {} in this picture.",
)
#: For phrases that are questions or requests already.
QUESTION_REQUESTS = (
    synthetic.QUESTION_REQUEST,
    "{} Please output segmentation mask.",
    "{} Answer with a segmentation mask.",
)
#: For what has to be worked out rather than found by its looks.
REASONING_REQUESTS = (
    "What is {} in this image? Please output segmentation mask.",
    "What is {} in this image? Please respond with a segmentation mask.",
    *synthetic.IMAGE_REQUESTS[:3],
)
GROUNDED_CAPTION_REQUESTS = (
    *synthetic.CAPTION_REQUESTS,
    "Please explain in detail what the picture shows, with a segmentation mask for each part you speak of.",
    "Can you give a thorough description of the photo? Interleave masks of the corresponding phrases.",
)
CAPTION_REQUESTS = (
    "Please describe this image.",
    "What is in the picture?",
    "Can you tell me what you see in this image?",
    "Give me a short caption of the picture.",
)
REGION_DETAIL_REQUESTS = (
    "Please describe {} in detail.",
    "Can you give me a detailed description of {}?",
    "What can you tell me about {}? Please be thorough.",
    "Describe {} as precisely as you can.",
    "I would like to know everything about {} in the picture.",
    "Please look at {} and describe it at length.",
    "Could you explain in detail what {} shows?",
    "Tell me in detail what you see in {}.",
)
SHORT_ANSWER = synthetic.SHORT_ANSWER


def phrase_of(text: str) -> str:
    """A phrase as it is put into a request: in lower case, without space around it and without one final full stop."""
    return text.lower().strip().removesuffix(".").rstrip()


def request_for(text: str, rng: random.Random) -> str:
    """A request for the mask of a phrase, in a random wording; a question keeps its own words."""
    if "?" in text:
        return rng.choice(QUESTION_REQUESTS).format(text.strip())
    return rng.choice(REQUESTS).format(phrase_of(text))
