"""A world of drawn objects that needs no files: pictures and clips with exact masks and text for every task."""

from __future__ import annotations

from sa2va.tiny.synthetic.dialogs import CLIP_MIX, PICTURE_MIX, TASKS
from sa2va.tiny.synthetic.splits import Look, Split, home_split
from sa2va.tiny.synthetic.wording import (
    CAPTION_REQUEST,
    IMAGE_REQUEST,
    NO_TARGET_ANSWER,
    NO_TARGET_ANSWERS,
    QUESTION_REQUEST,
    REGION_REQUEST,
    SEG_ANSWER,
    SEG_ANSWERS,
    VIDEO_REQUEST,
    vocabulary,
)
from sa2va.tiny.synthetic.world import SyntheticWorld

__all__ = [
    "CAPTION_REQUEST",
    "CLIP_MIX",
    "IMAGE_REQUEST",
    "NO_TARGET_ANSWER",
    "NO_TARGET_ANSWERS",
    "PICTURE_MIX",
    "QUESTION_REQUEST",
    "REGION_REQUEST",
    "SEG_ANSWER",
    "SEG_ANSWERS",
    "TASKS",
    "VIDEO_REQUEST",
    "Look",
    "Split",
    "SyntheticWorld",
    "home_split",
    "vocabulary",
]
