"""A conversation as text: how it is written for the model, and how an answer is read.

It is written as pieces, each trained on or not: before an answer, the answer, after it. They are tokenised one by one,
in training and in inference alike, so a longer conversation begins with the very ids of the shorter one. InternVL
families write a fixed template, which ``config.json`` names, Qwen families the Jinja template of their tokenizer. No
system prompt is ever written.

An answer is read into clean text and the phrase of each mask. Text is only changed where a token was cut out: the
blanks around the cut become one, and punctuation that the cut left hanging goes ("Sure, [SEG]." reads "Sure.").
Everything else, line breaks and code included, stays as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from sa2va.model.families import SEG_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Text, and whether training learns it.
Piece = tuple[str, bool]
#: A phrase and its (start, end) characters in the clean text.
Phrase = tuple[str, tuple[int, int]]

_BLANK = " \t"
_CLOSING = ".,;:!?)"


@dataclass(frozen=True)
class ChatTemplate:
    """How one conversation becomes text: ``instruction`` + answer + ``suffix`` + ``separator``, turn after turn.

    Attributes:
        instruction: what stands before an answer; ``{input}`` is the place of the question.
        suffix: what ends an answer. It is learnt, so the model writes it.
        separator: what stands between two turns. It is not learnt.
        stop_words: generation ends when the decoded text ends in one of them.
    """

    instruction: str
    suffix: str
    separator: str
    stop_words: tuple[str, ...]

    def ask(self, question: str) -> str:
        """The text before the answer to ``question``. Braces in the question stay as they are."""
        return self.instruction.replace("{input}", question)


_CHATML = "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n"
_PHI3 = "<|user|>\n{input}<|end|>\n<|assistant|>\n"

TEMPLATES: dict[str, ChatTemplate] = {
    "qwen_chat": ChatTemplate(_CHATML, "<|im_end|>", "\n", ("<|im_end|>", "<|endoftext|>")),
    "internlm2_chat": ChatTemplate(_CHATML, "<|im_end|>", "\n", ("<|im_end|>",)),
    "phi3_chat": ChatTemplate(_PHI3, "<|end|>", "\n", ("<|end|>",)),
}


def template_of(name: str) -> ChatTemplate:
    """The template of that name; dashes count as underscores.

    Raises:
        ValueError: there is no such template.
    """
    key = name.replace("-", "_")
    if key not in TEMPLATES:
        raise ValueError(f"unknown chat template {name!r}; expected one of {sorted(TEMPLATES)}")
    return TEMPLATES[key]


def check_text(text: object, name: str = "a question or phrase") -> None:
    """Refuse what no tokenizer reads, and no file in UTF-8 keeps.

    Raises:
        ValueError: it is no string, or holds half a character (a lone surrogate), as bytes of another encoding become.
    """
    if not isinstance(text, str):
        raise ValueError(f"expected {name} as a string, got {type(text).__name__}: {text!r:.100}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} is not Unicode at character {error.start}: {text!a:.100}. If it was typed or read from a "
            "file, its encoding is not UTF-8: convert it; otherwise join surrogate pairs or leave them out"
        ) from error


def template_pieces(template: ChatTemplate, questions: Sequence[str], answers: Sequence[str]) -> list[Piece]:
    """The pieces of a fixed template; the last question may be without an answer."""
    pieces: list[Piece] = []
    for k, question in enumerate(questions):
        pieces.append((template.ask(question), False))
        if k < len(answers):
            pieces += [(answers[k] + template.suffix, True), (template.separator, False)]
    return pieces


def rendered_pieces(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], answers: Sequence[str], images: int
) -> list[Piece]:
    """The pieces of the tokenizer's own chat template: what each further message adds to the rendered text.

    Args:
        images: how many pictures stand before the first question; each is one image token in the text.
    """
    messages: list[dict[str, Any]] = []
    pieces: list[Piece] = []
    done = ""
    for k, question in enumerate(questions):
        pictures = [{"type": "image"} for _ in range(images if k == 0 else 0)]
        messages.append({"role": "user", "content": [*pictures, {"type": "text", "text": question}]})
        asked = _addition(tokenizer, messages, done, ask=True)
        pieces.append((asked, False))
        done += asked
        if k < len(answers):
            messages.append({"role": "assistant", "content": answers[k]})
            answered = _addition(tokenizer, messages, done, ask=False)
            answer, suffix, separator = answered.rpartition(str(tokenizer.eos_token))
            pieces += [(answer + suffix, True), (separator, False)]
            done += answered
    return pieces


def bare_answer(answer: str, endings: Sequence[str]) -> str:
    """An answer without the endings that generation leaves on it."""
    while ending := next((ending for ending in endings if answer.endswith(ending)), None):
        answer = answer.removesuffix(ending)
    return answer


def expand_images(text: str, token: str, counts: Sequence[int]) -> str:
    """Repeat the template's one image token per picture to the picture's visual tokens."""
    first, *rest = text.split(token)
    if len(rest) != len(counts):
        raise ValueError(f"the prompt has {len(rest)} {token} for {len(counts)} pictures; leave it out of the text")
    return first + "".join(token * count + part for count, part in zip(counts, rest, strict=True))


def _addition(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], done: str, *, ask: bool) -> str:
    """What the template writes after ``done``."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        assert isinstance(text, str)
    except (TemplateError, TypeError, ArithmeticError, LookupError, ValueError) as error:
        raise ValueError(f"the tokenizer's chat template cannot be rendered: {error}") from error
    end = str(tokenizer.eos_token)
    if not text.startswith(done) or not (ask or end in text[len(done) :]):
        raise ValueError(
            f"the tokenizer's chat template rewrites earlier turns or does not end an answer in {end!r}; "
            "expected the template of an instruct model"
        )
    return text[len(done) :]


def clean_answer(raw: str, special_tokens: Collection[str]) -> tuple[str, list[Phrase | None]]:
    """Take the special tokens out of an answer.

    Args:
        raw: decoded text, special tokens kept.
        special_tokens: every text to cut out; ``[SEG]``, ``<p>`` and ``</p>`` are always cut out.

    Returns:
        The clean text, and for each ``[SEG]`` in order the phrase it grounds: the ``<p> ... </p>`` before it with no
        word in between, None where there is none. Several ``[SEG]`` in a row share one phrase.
    """
    cuts = sorted({SEG_TOKEN, "<p>", "</p>", *special_tokens}, key=len, reverse=True)
    text = _SeamedText()
    found: list[Phrase | None] = []
    phrase: Phrase | None = None
    inside = False
    start: int | None = None
    for part in re.split(f"({'|'.join(map(re.escape, cuts))})", raw):
        if part == "<p>":
            inside, start, phrase = True, None, None
        elif part == "</p>":
            phrase = text.protect(start) if start is not None else None
            inside, start = False, None
        elif part == SEG_TOKEN:
            found.append(phrase)
        elif part not in cuts:
            if not inside and re.search(r"\w", part):
                phrase = None
            begin = text.add(part)
            if inside and start is None:
                start = begin
            continue
        text.cut()
    return text.finish(), found


class _SeamedText:
    """Text that grows part by part; the next part after a cut is joined tidily."""

    def __init__(self) -> None:
        self._text = ""
        self._seam = True
        self._floor = 0  # Characters before it belong to phrases, whose spans must stay true.

    def cut(self) -> None:
        self._seam = True

    def add(self, part: str) -> int | None:
        """Append; the index of the part's first visible character, None where it has none."""
        if self._seam:
            part = self._join(part)
        visible = part.lstrip()
        if visible:
            self._seam = False
        begin = len(self._text) + len(part) - len(visible)
        self._text += part
        return begin if visible else None

    def protect(self, start: int) -> Phrase:
        """Close the phrase that began at ``start``: its text no longer changes."""
        self._floor = len(self._text.rstrip())
        return self._text[start : self._floor], (start, self._floor)

    def finish(self) -> str:
        return self._text.rstrip()

    def _join(self, part: str) -> str:
        """Tidy the end of the text and the start of the part; returns the part to append."""
        left, right = self._text.rstrip(_BLANK), part.lstrip(_BLANK)
        if not left:
            return part.lstrip()
        if not right:
            return part
        blank = len(left) < len(self._text) or len(right) < len(part)
        loose = len(left) > self._floor
        if loose and left.endswith("(") and right.startswith(")"):
            self._text = left[:-1].rstrip(_BLANK)
            return right[1:]
        if right[0] in _CLOSING:
            hanging = loose and left[-1] in ",;:" and right[0] != ")"
            self._text = left[:-1] if hanging else left
            return right
        self._text = left
        return " " + right if blank and left[-1] not in "\n([" and right[0] != "\n" else right
