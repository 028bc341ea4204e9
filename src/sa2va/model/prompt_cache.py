"""What was read of a prompt, kept for the next one that begins alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

#: Keys and values (1, heads, tokens, width) of each layer.
KeyValues = Sequence[tuple[Tensor, Tensor]]


class PromptCache:
    """The keys and values of the tokens that were read last, for later prompts that begin with the same ones.

    It belongs to one set of pictures. Tokens of a conversation stay, the answer included, so that its next turn reads
    only what is new; a request about something else reads from where it differs.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.ids: list[int] = []
        self._layers: KeyValues = ()
        self._seg_states: dict[int, Tensor] = {}  # of the [SEG] tokens, by position

    @property
    def nbytes(self) -> int:
        """Memory of the keys and values, bytes."""
        return sum(keys.nbytes + values.nbytes for keys, values in self._layers)

    def matching(self, ids: Sequence[int]) -> int:
        """How many of these tokens, from the first on, are there."""
        length = min(len(self.ids), len(ids))
        if self.ids[:length] == list(ids[:length]):
            return length
        return next(place for place, (own, other) in enumerate(zip(self.ids, ids, strict=False)) if own != other)

    def layers(self, length: int) -> KeyValues:
        """The keys and values of the first ``length`` tokens, without copying."""
        return [(keys[..., :length, :], values[..., :length, :]) for keys, values in self._layers]

    def seg_states(self, length: int) -> list[Tensor]:
        """The states (D,) at the ``[SEG]`` tokens among the first ``length``."""
        return [state for position, state in self._seg_states.items() if position < length]

    def keep(self, layers: KeyValues, ids: Sequence[int], seg_states: Mapping[int, Tensor]) -> None:
        """Remember tokens by their keys and values, which nobody changes afterwards; there may be more of these.

        Nothing changes where they are all there already, so that questions in between do not end a conversation's
        advantage.
        """
        if self.matching(ids) < len(ids):
            self.ids, self._seg_states = list(ids), dict(seg_states)
            self._layers = [(keys[..., : len(ids), :], values[..., : len(ids), :]) for keys, values in layers]


def holds_whole_text(cache: DynamicCache) -> bool:
    """Whether every layer of a cache keeps all tokens, rather than a window of the last ones."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)
