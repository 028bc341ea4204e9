"""A conversation as pieces of text, each trained on or not: before an answer, the answer, after it.

The pieces are tokenised one by one, in training and in inference alike, so a longer conversation begins with the very
ids of the shorter one. InternVL families write a fixed template, which ``config.json`` names, Qwen families the Jinja
template of their tokenizer. No system prompt is ever written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Text, and whether training learns it.
Piece = tuple[str, bool]


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
