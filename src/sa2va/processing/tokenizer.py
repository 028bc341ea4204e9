"""Tokenizers of the released checkpoints, loaded without running any code that comes with them.

Qwen2 tokenizers are transformers' own. InternLM2 folders name a Python class of the checkpoint; ``InternLM2Tokenizer``
here reads the same SentencePiece file and gives the same ids and the same text.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from sa2va.hub import TEXT_PATTERNS, resolve_folder
from sa2va.model.families import ADDED_TOKENS, SEG_TOKEN
from sa2va.untrusted import read_json_object, reading


class InternLM2Tokenizer(SentencePieceBackend):
    """The SentencePiece tokenizer of InternLM2: BOS before every text, and its own way to set spaces when decoding."""

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 -- transformers' protocol

    def __init__(self, vocab_file: str, **kwargs: Any):
        # The checkpoint's pointer to its own Python code: neither followed nor saved again.
        kwargs.pop("auto_map", None)
        names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
        super().__init__(**(names | kwargs), vocab_file=vocab_file, special_tokens_pattern="bos")

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of pieces; a space precedes special tokens and their text, as the original tokenizer has it."""
        special = set(self.all_special_tokens)
        text = pending = ""
        for is_special, run in groupby(tokens, key=special.__contains__):
            pieces = list(run)
            if is_special:
                text += " " + pending + "".join(pieces)
                pending = ""
            else:
                pending = self.sp_model.decode(pieces)
        return self.clean_up_tokenization(text + pending)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = False,
        **kwargs: Any,
    ) -> str:
        """Tokens added to the base vocabulary stand alone between spaces; the runs between them are text.

        Both options about spaces are without effect: the checkpoints were trained and are read with these ones.
        """
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        parts: list[str] = []
        for added, run in groupby(ids, key=lambda i: i >= self.vocab_size):
            tokens = self.convert_ids_to_tokens(list(run), skip_special_tokens=skip_special_tokens)
            parts.extend(tokens if added else filter(None, [self.convert_tokens_to_string(tokens)]))
        return " ".join(parts)


_CLASSES: dict[str, type[PreTrainedTokenizerBase]] = {
    "InternLM2Tokenizer": InternLM2Tokenizer,
    "Qwen2Tokenizer": Qwen2Tokenizer,
    "PreTrainedTokenizer": PreTrainedTokenizerFast,
    "TokenizersBackend": PreTrainedTokenizerFast,
}

_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")


def load_tokenizer(
    folder: str | os.PathLike[str], options: Mapping[str, Any] | None = None, **hub_kwargs: Any
) -> PreTrainedTokenizerBase:
    """The tokenizer of a released or saved checkpoint. ``auto_map`` is never followed.

    Args:
        folder: a local folder or a hub id.
        options: of the tokenizer, such as ``padding_side``, instead of what its files say.
        hub_kwargs: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

    Raises:
        ValueError: the folder holds no tokenizer, or one of a class that is not known here; or the hub does not give
            it.
    """
    place = resolve_folder(str(folder), TEXT_PATTERNS, **hub_kwargs)
    name = str(read_json(place, "tokenizer_config.json").get("tokenizer_class") or "Qwen2Tokenizer")
    cls = _CLASSES.get(name.removesuffix("Fast"))
    if cls is None:
        raise ValueError(
            f"{folder} names the tokenizer class {name!r}, which is not known here and would need the checkpoint's own "
            f"code; expected one of {sorted(_CLASSES)}"
        )
    if not any((place / vocabulary).is_file() for vocabulary in _VOCABULARIES):
        raise ValueError(f"{folder} holds no tokenizer: expected one of {', '.join(_VOCABULARIES)} in it")
    for settings in ("special_tokens_map.json", "added_tokens.json"):
        read_json(place, settings)  # names the file where transformers would not
    with reading(f"{folder}: the tokenizer's files"):
        return cls.from_pretrained(place, **(options or {}))


def add_sa2va_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Add the tokens of Sa2VA that are missing, as special tokens in the released order.

    Returns:
        The id of ``[SEG]``.
    """
    present = tokenizer.get_vocab()
    missing = [AddedToken(token, special=True, normalized=False) for token in ADDED_TOKENS if token not in present]
    tokenizer.add_tokens(missing, special_tokens=True)
    return tokenizer.get_vocab()[SEG_TOKEN]


def read_json(folder: str | os.PathLike[str], name: str, **hub_kwargs: Any) -> dict[str, Any]:
    """A JSON file of a local folder or a hub id; empty where the file is missing.

    Raises:
        ValueError: the file holds no JSON object, or the hub does not give it.
    """
    path = resolve_folder(str(folder), TEXT_PATTERNS, **hub_kwargs) / name
    return read_json_object(path) if path.is_file() else {}
