"""The chat templates of the InternVL families, as frozen rows.

A released checkpoint names its template in ``config.json``. No system prompt is ever written. The Qwen-VL families are
not here: their tokenizer files carry their own Jinja template.
"""

from __future__ import annotations

from dataclasses import dataclass


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
