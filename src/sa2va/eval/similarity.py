"""How alike two phrases are: by a text encoder where one lies in a local folder, else by the words they share.

Recall of grounded captions is defined with the mean last hidden state of bert-base-uncased and the cosine of two of
them (GLaMM, arXiv 2311.03356).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 512
_BATCH = 64


class EncoderSimilarity:
    """Cosine of the mean-pooled last hidden states of two phrases, by an encoder in a local folder.

    Args:
        folder: an encoder and its tokenizer as transformers saves them, e.g. a copy of bert-base-uncased.

    Raises:
        ValueError: the folder is not there or holds no encoder.
    """

    def __init__(self, folder: str | Path):
        from transformers import AutoModel, AutoTokenizer

        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"expected a text encoder as transformers saves it in {folder}: there is no config.json")
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self._model = AutoModel.from_pretrained(str(folder), local_files_only=True).float().eval()
        self._known: dict[str, torch.Tensor] = {}

    def prepare(self, phrases: Iterable[str]) -> None:
        """Encode phrases in batches, short ones with short ones; later comparisons look them up."""
        new = sorted({phrase for phrase in phrases} - self._known.keys(), key=lambda phrase: (len(phrase), phrase))
        for start in range(0, len(new), _BATCH):
            part = new[start : start + _BATCH]
            self._known.update(zip(part, self._encode(part), strict=True))

    def __call__(self, one: str, other: str) -> float:
        """Cosine, -1..1."""
        self.prepare((one, other))
        return float(self._known[one] @ self._known[other])

    def _encode(self, phrases: list[str]) -> torch.Tensor:
        """Unit vectors, float32 (N, C)."""
        import torch

        tokens = self._tokenizer(phrases, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            states = self._model(**tokens).last_hidden_state
        kept = tokens["attention_mask"][..., None]
        return torch.nn.functional.normalize((states * kept).sum(1) / kept.sum(1), dim=-1)
