"""Memory that a model needs: its weights exactly, and activations counted from its shapes.

The working set is the largest of the moments that a request goes through: pictures in the vision tower, the prompt in
the language model, frames in SAM 2's image encoder. What a device's own libraries take (on CUDA some hundred megabytes)
is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sa2va.inference.propagation import FRAMES_PER_ENCODING

Numbers = Literal["float32", "bfloat16", "int8", "nf4"]
#: Bytes of a number outside the quantised layers; those work in half precision here.
_WIDTHS: dict[Numbers, int] = {"float32": 4, "bfloat16": 2, "int8": 2, "nf4": 2}
#: Tokens of a prompt and its answer beside those of the pictures.
_WORDS = 256
#: bitsandbytes: weights that share a scale, scales that share one, and the tables and offset of each four-bit layer.
_BLOCK, _SCALES, _TABLES = 64, 256, 4 * (16 + 256 + 1)


@dataclass(frozen=True)
class Architecture:
    """The shapes that decide how much memory a model needs.

    Attributes:
        parameters: all numbers in its weights.
        layers, hidden, feed_forward, heads, key_heads, head: of the language model: depth, widths, attention heads, and
            numbers of a head.
        vision_width, vision_feed_forward: of the vision tower.
        picture, frame: (vision tower's, language model's) most tokens of a picture, and of one key frame of a video.
        side, channels, width: of SAM 2: pixels of its square input, channels of its first stage and of its features.
        key_frames: of a video. deepstack: layers of the language model into which visual tokens enter once more.
    """

    parameters: int
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_heads: int
    head: int
    vision_width: int
    vision_feed_forward: int
    picture: tuple[int, int]
    frame: tuple[int, int]
    side: int = 1024
    channels: int = 144
    width: int = 256
    key_frames: int = 5
    deepstack: int = 0

    @property
    def linear_layers(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of the linear layers in one layer of the language model, which are those that are quantised."""
        attention, keys = self.heads * self.head, self.key_heads * self.head
        hidden, inner = self.hidden, self.feed_forward
        return (
            (attention, hidden), (keys, hidden), (keys, hidden), (hidden, attention),
            (inner, hidden), (inner, hidden), (hidden, inner),
        )  # fmt: skip

    def weights(self, numbers: Numbers, width: int | None = None) -> int:
        """Bytes of the weights.

        Args:
            numbers: of the language model's linear layers. width: bytes of a number elsewhere.
        """
        width = width or _WIDTHS[numbers]
        stored = sum(_stored(out, inner, numbers, width) for out, inner in self.linear_layers)
        replaced = sum(out * inner for out, inner in self.linear_layers)
        return width * (self.parameters - self.layers * replaced) + self.layers * stored

    def picture_work(self, width: int = 2) -> int:
        """Most bytes at work while a picture as large as can be is asked about; ``width`` of a number."""
        return width * max(self.looking(self.picture[0]), self.reading(self.picture[1]), self.grounding(1))

    def video_work(self, width: int = 2) -> int:
        """Most bytes at work while an object is followed through a video of any length."""
        tower, tokens = (self.key_frames * count for count in self.frame)
        return width * max(self.looking(tower), self.reading(tokens), self.grounding(FRAMES_PER_ENCODING))

    def open_picture(self, width: int = 2, words: int = _WORDS) -> int:
        """Bytes that an open picture as large as can be keeps between requests, see [`sa2va.inference.scene.Scene`]:
        its visual tokens, the keys and values of its prompt, and SAM 2's features of it.

        Args:
            width: bytes of a number. words: tokens of the prompt and the answer beside the picture's.
        """
        tokens, cells = self.picture[1], (self.side // 4) ** 2
        seen = tokens * self.hidden * (1 + self.deepstack)
        read = (tokens + words) * 2 * self.layers * self.key_heads * self.head
        return width * (seen + read + self.width * (cells + cells // 4 + cells // 16))

    def looking(self, tokens: int) -> int:
        """Numbers at work in the vision tower: one layer's feed-forward part, before and after it, and the pixels."""
        return tokens * (2 * self.vision_feed_forward + 5 * self.vision_width)

    def reading(self, tokens: int) -> int:
        """Numbers at work in the language model: keys and values of all layers, and one layer's gated feed-forward."""
        cache = 2 * self.layers * self.key_heads * self.head
        return (tokens + _WORDS) * (cache + 3 * self.feed_forward + 6 * self.hidden)

    def grounding(self, frames: int) -> int:
        """Numbers at work in SAM 2's image encoder: its first stage, the features before it, and the pixels."""
        cells = (self.side // 4) ** 2
        kept = 0 if frames == 1 else 5 * self.width // 4  # features of the frames encoded before
        return frames * (cells * (12 * self.channels + kept) + 4 * self.side**2)


def _stored(out: int, inner: int, numbers: Numbers, width: int) -> int:
    """Bytes of one linear layer's weight."""
    count = out * inner
    if numbers == "int8":
        return count + 4 * out
    if numbers == "nf4":
        blocks = -(-count // _BLOCK)
        return -(-count // 2) + blocks + 4 * -(-blocks // _SCALES) + _TABLES
    return width * count


_VIT_300M, _VIT_6B = (1024, 4096), (3200, 12800)
#: Thirteen tiles of a picture, and one for a frame; 448 pixels, patches of 14, of which four make a language token.
_TILES: dict[str, Any] = {"picture": (13 * 1025, 13 * 256), "frame": (1025, 256)}
#: 2048 x 28 x 28 pixels at most; patches of 14 or 16, of which four make a language token.
_QWEN2_5: dict[str, Any] = {"picture": (8192, 2048), "frame": (8192, 2048)}
_QWEN3: dict[str, Any] = {"picture": (6272, 1568), "frame": (6272, 1568), "deepstack": 3}

#: The ten released checkpoints, by name.
ARCHITECTURES: dict[str, Architecture] = {
    "Sa2VA-1B": Architecture(1163665714, 24, 896, 4864, 14, 2, 64, *_VIT_300M, **_TILES),
    "Sa2VA-4B": Architecture(3941809714, 36, 2048, 11008, 16, 2, 128, *_VIT_300M, **_TILES),
    "Sa2VA-8B": Architecture(8317666866, 32, 4096, 14336, 32, 8, 128, *_VIT_300M, **_TILES),
    "Sa2VA-26B": Architecture(25778005938, 48, 6144, 16384, 48, 8, 128, *_VIT_6B, **_TILES),
    "Sa2VA-InternVL3-2B": Architecture(2316157490, 28, 1536, 8960, 12, 2, 128, *_VIT_300M, **_TILES),
    "Sa2VA-InternVL3-8B": Architecture(8182606386, 28, 3584, 18944, 28, 4, 128, *_VIT_300M, **_TILES),
    "Sa2VA-InternVL3-14B": Architecture(15369268786, 48, 5120, 13824, 40, 8, 128, *_VIT_300M, **_TILES),
    "Sa2VA-Qwen2_5-VL-3B": Architecture(4293849650, 36, 2048, 11008, 16, 2, 128, 1280, 3420, **_QWEN2_5),
    "Sa2VA-Qwen2_5-VL-7B": Architecture(8527539250, 28, 3584, 18944, 28, 4, 128, 1280, 3420, **_QWEN2_5),
    "Sa2VA-Qwen3-VL-4B": Architecture(5057072690, 36, 2560, 9728, 32, 8, 128, 1024, 4096, **_QWEN3),
}
