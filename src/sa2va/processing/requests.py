"""All request strings: those the released models were trained and measured with, and our wordings for training.

The first part are format constants: the models know exactly these strings, and the published numbers were measured
with them, blanks included. The second part, [`TrainingRequests`], is ours: sentences that word annotations as requests.
The reference has other sentences of the same kinds; users can replace ours by a file.

Templates have named placeholders for `str.format`: ``{phrase}``, ``{region}``, ``{number}``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from string import Formatter
from typing import Any

from sa2va.model.families import ADDED_TOKENS, FAMILIES, SEG_TOKEN
from sa2va.processing.conversation import check_text
from sa2va.untrusted import read_mapping

# -- format of the released models -------------------------------------------------------------------------------------

#: Where the picture stands in a question.
IMAGE_MARK = "<image>"
#: Text that would be read as the model's own tokens: a page of HTML holds ``<p>``.
RESERVED = frozenset(
    (*ADDED_TOKENS, *(token for f in FAMILIES.values() for token in (f.image_start, f.image_token, f.image_end)))
)
#: What a marked region is called, counted from 1.
REGION_NAME = "region{number}"
#: Announces the marked regions of a picture, right after it; ``{regions}`` are their names and features.
REGIONS_ANNOUNCEMENT = "\nThere are {count} part regions in the picture: {regions}.\n"
#: A phrase of an answer and its mask.
GROUNDED_PHRASE = f"<p> {{phrase}} </p> {SEG_TOKEN}"
#: How an answer points at what was asked for.
SEG_ANSWERS = (
    f"It is {SEG_TOKEN}.",
    f"Sure, {SEG_TOKEN}.",
    f"Sure, it is {SEG_TOKEN}.",
    f"Sure, the segmentation result is {SEG_TOKEN}.",
    f"{SEG_TOKEN}.",
)

# -- requests of inference ---------------------------------------------------------------------------------------------

REFERRING_REQUEST = "Please segment {phrase} in this image."
VIDEO_REFERRING_REQUEST = "Please segment {phrase}."
#: For phrases that are questions or requests already.
QUESTION_REQUEST = "{phrase} Please respond with a segmentation mask."
GCG_REQUEST = (
    "Could you please give me a brief description of the image? Please respond with interleaved segmentation masks for "
    "the corresponding parts of the answer."
)
REGION_REQUEST = f"Please give me a short description of the region in the picture marked by {REGION_NAME}."

# -- requests of the benchmarks ----------------------------------------------------------------------------------------

#: The published numbers were made with the blank before these two, and with the run of blanks inside the third.
REFERRING_BENCHMARK_REQUEST = f" {REFERRING_REQUEST}"
VIDEO_QUESTION_BENCHMARK_REQUEST = f" {QUESTION_REQUEST}"
GCG_BENCHMARK_REQUEST = GCG_REQUEST.replace("interleaved segmentation", "interleaved     segmentation")
REASONING_REQUEST = "What is {phrase} in this image? Please output segmentation mask."
#: For whole sentences.
REASONING_SENTENCE_REQUEST = "{phrase} Please output segmentation mask."

# Of chat benchmarks, after the question (VLMEvalKit's adapter of InternVL); in English, and in Chinese.
CHOICE_REQUEST = ("Answer with the option's letter from the given choices directly.", "请直接回答选项字母。")
OPEN_QUESTION_REQUEST = ("Answer the question directly.", "请直接回答问题。")
YES_NO_REQUEST = "Please answer yes or no."
#: Also in training, after questions about regions.
SHORT_ANSWER_REQUEST = "Answer the question using a single word or phrase."
#: Whether there is such a thing, for yes or no. The question fits any phrase, "the dog" and "dogs"; the request for a
#: short answer follows as in the chat training of the released models.
PRESENCE_REQUEST = f"Do you see {{phrase}}?\n{SHORT_ANSWER_REQUEST}"

# -- our wordings for training -----------------------------------------------------------------------------------------

#: The placeholder that templates of a task need, where it is another than ``{phrase}``; "" for none.
_PLACEHOLDERS = {"gcg": "", "caption": "", "no_target": "", "region": "{region}"}


@dataclass(frozen=True)
class TrainingRequests:
    """Templates that word annotations as requests in training; one is drawn for each turn.

    The first of each task is the wording of inference, if there is one. The sentences are ours: apart from the
    constants above, none is from the reference's recipe.

    Attributes:
        referring: ``{phrase}`` in an image: RefCOCO and its relatives, own images.
        video_referring: ``{phrase}`` in a clip: MeViS, Ref-YouTube-VOS, ReVOS, own clips.
        video_description: ``{phrase}`` of several sentences in a clip: Ref-SAV.
        question: ``{phrase}`` is a question or request itself, about an image or a clip.
        reasoning: ``{phrase}`` must be inferred rather than recognised: ReasonSeg's short queries.
        gcg: a description whose phrases have masks; no placeholder.
        caption: a description without masks; no placeholder.
        region: a detailed description of ``{region}``, which becomes region1, region2, ...: Osprey's descriptions.
        no_target: the answer if the request refers to nothing in the image; no placeholder.

    Raises:
        ValueError: a task has no template, or a template is blank, has the wrong placeholder, or contains one of the
            model's own tokens.

    Examples:
        >>> from sa2va.processing.requests import TrainingRequests
        >>> requests = TrainingRequests(referring=("Find {phrase}.",))
        >>> requests.referring[0].format(phrase="the dog")
        'Find the dog.'
    """

    referring: tuple[str, ...] = (
        REFERRING_REQUEST,
        "Please segment {phrase}.",
        "Segment {phrase}.",
        "Can you segment {phrase} in this picture?",
        "Could you find {phrase} and give me the mask?",
        "Show me {phrase} with a mask.",
        "Mark {phrase} in the image.",
        "I would like a mask of {phrase}.",
        "Please outline {phrase} in the picture.",
        "Where can I see {phrase}? Please give a mask.",
        "What is {phrase} in this image? Please respond with a segmentation mask.",
        "What is {phrase} in this picture? Please output its segmentation mask.",
        "Can you provide a segmentation mask for {phrase}?",
        "Please identify and segment {phrase} in this picture.",
    )
    video_referring: tuple[str, ...] = (
        VIDEO_REFERRING_REQUEST,
        "Please segment {phrase} in this video.",
        "Segment {phrase} in the clip.",
        "Track {phrase}.",
        "Please track {phrase} through the video.",
        "Can you follow {phrase} and give me the masks?",
        "Show me {phrase} in every frame.",
    )
    video_description: tuple[str, ...] = (VIDEO_REFERRING_REQUEST,)
    question: tuple[str, ...] = (
        QUESTION_REQUEST,
        "{phrase} Please output segmentation mask.",
        "{phrase} Answer with a segmentation mask.",
    )
    reasoning: tuple[str, ...] = (
        REASONING_REQUEST,
        "What is {phrase} in this image? Please respond with a segmentation mask.",
        "Please segment {phrase} in this image.",
        "Please segment {phrase}.",
        "Segment {phrase}.",
    )
    gcg: tuple[str, ...] = (
        GCG_REQUEST,
        "Please describe this picture and add a mask for each object you name.",
        "What is in the image? Answer with masks for the phrases.",
        "Tell me what you see and segment every part of your answer.",
        "Please explain in detail what the picture shows, with a segmentation mask for each part you speak of.",
        "Can you give a thorough description of the photo? Interleave masks of the corresponding phrases.",
    )
    caption: tuple[str, ...] = (
        "Please describe this image.",
        "What is in the picture?",
        "Can you tell me what you see in this image?",
        "Give me a short caption of the picture.",
    )
    region: tuple[str, ...] = (
        "Please describe {region} in detail.",
        "Can you give me a detailed description of {region}?",
        "What can you tell me about {region}? Please be thorough.",
        "Describe {region} as precisely as you can.",
        "I would like to know everything about {region} in the picture.",
        "Please look at {region} and describe it at length.",
        "Could you explain in detail what {region} shows?",
        "Tell me in detail what you see in {region}.",
    )
    no_target: tuple[str, ...] = (
        "There is no such object.",
        "I cannot find it.",
        "Nothing here matches that.",
        "It is not there.",
    )

    def __post_init__(self) -> None:
        for task, templates in vars(self).items():
            _check_templates(task, templates)

    @classmethod
    def from_file(cls, path: str | Path) -> TrainingRequests:
        """Read a YAML or JSON file that maps tasks to lists of templates; missing tasks keep ours.

        Raises:
            ValueError: the file is missing or unreadable, names an unknown task, or has a template that does not suit
                its task; the message names the file, the task, the template and the placeholder.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(
                f"request wordings {path} do not exist; expected a .yaml or .json file of task: [template]"
            )
        content = read_mapping(path)
        tasks = [field.name for field in fields(cls)]
        for task in content:
            if task not in tasks:
                near = difflib.get_close_matches(str(task), tasks, n=1)
                meant = f"did you mean {near[0]!r}?" if near else f"expected one of {tasks}"
                raise ValueError(f"{path}: unknown task {task!r}; {meant}")
        try:
            return cls(**{task: tuple(given) if isinstance(given, list) else given for task, given in content.items()})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _check_templates(task: str, templates: Any) -> None:
    if not isinstance(templates, Sequence) or isinstance(templates, str) or not templates:
        raise ValueError(f"task {task!r} needs a list of at least one template, got {templates!r:.100}")
    wanted = _PLACEHOLDERS.get(task, "{phrase}")
    need = f"the placeholder {wanted}" if wanted else "no placeholder"
    for template in templates:
        check_text(template, f"a template of task {task!r}")
        where = f"task {task!r}, template {template!r}"
        if not template.strip():
            raise ValueError(f"{where} says nothing; write a sentence, or leave it out")
        held = next((token for token in (IMAGE_MARK, *sorted(RESERVED)) if token in template), None)
        if held:
            raise ValueError(f"{where} holds {held}, a token of the model's own; leave it out")
        found = _placeholders(template, where)
        wrong = next((placeholder for placeholder in found if placeholder != wanted), None)
        if wrong:
            raise ValueError(f"{where} has the placeholder {wrong}; this task takes {need}")
        if wanted and not found:
            raise ValueError(f"{where} lacks {need}; write {wanted} where it belongs")


def _placeholders(template: str, where: str) -> list[str]:
    """The placeholders, as they are written."""
    try:
        parts = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{where} is no template: {error}; write {{{{ and }}}} for braces that are meant") from error
    return [
        "".join(["{", str(name), f"!{conversion}" if conversion else "", f":{spec}" if spec else "", "}"])
        for _, name, spec, conversion in parts
    ]


#: Ours, which a file may replace.
TRAINING_REQUESTS = TrainingRequests()
