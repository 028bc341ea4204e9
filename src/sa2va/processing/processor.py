"""From conversations and images to token ids and pixels, and from the model's token ids back to text.

Two kinds of family share one interface. InternVL families cut a picture into tiles and write a fixed chat template;
Qwen families cut it into patches and write the Jinja template of their tokenizer files.

Pixels are, bit for bit, those that the released checkpoints saw. PIL resizes (never torchvision). Tiles and frames stay
uint8: the model normalises them on its device. Shapes: T tiles, F frames, S side of a square in pixels, L patches of a
Qwen picture, D numbers per patch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from sa2va.atomic import naming
from sa2va.hub import TEXT_PATTERNS, resolve_folder
from sa2va.model.configuration import Sa2VAConfig
from sa2va.model.families import ADDED_TOKENS, FAMILIES, IGNORED_LABEL, SEG_TOKEN
from sa2va.processing.conversation import (
    Phrase,
    Piece,
    bare_answer,
    check_text,
    clean_answer,
    expand_images,
    rendered_pieces,
    template_of,
    template_pieces,
)
from sa2va.processing.processor_settings import ProcessorSettings, QwenPixels
from sa2va.processing.regions import region_prompt
from sa2va.processing.requests import IMAGE_MARK
from sa2va.processing.tokenizer import load_tokenizer, read_json
from sa2va.untrusted import reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sa2va.results.history import Turn

#: A stop word is looked for in the text of this many last tokens.
_TAIL_TOKENS = 32
#: How a prompt of the Qwen families begins.
_CHATML_START = "<|im_start|>"
#: Question, answer, and what parts it from the next question.
_PIECES_PER_TURN = 3


@dataclass(frozen=True)
class VisionInputs:
    """Images as inputs of the vision tower.

    Attributes:
        pixel_values: uint8 (tiles, side, side, 3) for InternVL families; normalised float32 (patches, values per patch)
            for Qwen families.
        image_grid_thw: int64 (images, 3), patches in time, rows and columns; None for InternVL families.
        tokens_per_image: visual tokens of each image or frame.
        video: whether the images are frames of one video.
    """

    pixel_values: torch.Tensor
    image_grid_thw: torch.Tensor | None
    tokens_per_image: tuple[int, ...]
    video: bool


class EncodedTurns(NamedTuple):
    """A conversation for training.

    Attributes:
        ids: its token ids.
        labels: for each of them, the id itself in answers and their suffixes, ``IGNORED_LABEL`` elsewhere.
        questions: for each turn, the text with its question, and the number of ``ids`` up to the end of that text.
    """

    ids: list[int]
    labels: list[int]
    questions: list[tuple[str, int]]


class Sa2VAProcessor:
    """Makes the inputs of a [`sa2va.Sa2VAModel`] from text and images, and parses its answers.

    Args:
        tokenizer: the checkpoint's tokenizer.
        config: the model's configuration, or the settings that follow from it.

    Attributes:
        tokenizer: the checkpoint's tokenizer.
        settings: what the processor knows about its model; [`save_pretrained`] writes them.
        family: the vision-language family, with its special tokens.
        tile_side: side of a tile in pixels; None for Qwen families, as the next two.
        tokens_per_tile: visual tokens of a tile.
        cells: visual tokens per side of a tile.
        grounding_side: side of SAM 2's square input, in pixels.
        template: the chat template of an InternVL family; None for Qwen families.
        eos_ids: ids at which generation ends.
        stop_words: generation also ends when the text ends in one of these.
        seg_token_id: id of ``[SEG]``.
        image_token_id: id of the placeholder of an image feature.

    Raises:
        ValueError: the tokenizer lacks a token or the chat template that the family needs.

    Examples:
        >>> from PIL import Image
        >>> from sa2va import Sa2VA
        >>> processor = Sa2VA.from_pretrained("tiny").processor
        >>> vision = processor.vision([Image.open("shapes.png").convert("RGB")])
        >>> ids = processor.prompt_ids("What color is the car?", vision=vision)
        >>> ids.count(processor.image_token_id) == sum(vision.tokens_per_image)
        True
        >>> text, phrases = processor.clean("It is <p> the car </p> [SEG].")
        >>> text
        'It is the car.'
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: Sa2VAConfig | ProcessorSettings):
        self.tokenizer = tokenizer
        self.settings = config if isinstance(config, ProcessorSettings) else ProcessorSettings.of(config)
        self.family = FAMILIES[self.settings.family]
        self.tile_side, self.tokens_per_tile = self.settings.tile_side, self.settings.tokens_per_tile
        self.cells = math.isqrt(self.tokens_per_tile) if self.tokens_per_tile else None
        self.grounding_side = self.settings.grounding_side
        self.template = template_of(self.settings.template) if self.settings.template else None
        self.stop_words = self.template.stop_words if self.template else ()
        vocabulary = self._checked_vocabulary()
        self.eos_ids = (vocabulary[str(tokenizer.eos_token)],)
        self.seg_token_id = vocabulary[SEG_TOKEN]
        self.image_token_id = vocabulary[self.family.image_token]
        self._endings = (*self.stop_words, str(tokenizer.eos_token))
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special_tokens = {*added, *tokenizer.all_special_tokens, *self._needed_tokens, *self.stop_words}

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, config: Sa2VAConfig | None = None, **hub_kwargs: Any
    ) -> Sa2VAProcessor:
        """Load from a local folder or a hub id, without remote code.

        Args:
            folder: written by [`save_pretrained`], or a released checkpoint.
            config: the model's configuration; needed only if the folder has no ``processor_config.json`` of ours.
            hub_kwargs: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Raises:
            ValueError: there is no such folder, the download failed, or the tokenizer is of an unknown class.
        """
        place = resolve_folder(folder, TEXT_PATTERNS, **hub_kwargs)
        tokenizer = load_tokenizer(place)
        # Processors of the Qwen families used to keep their template in a file that tokenizers do not read.
        if legacy := read_json(place, "chat_template.json"):
            tokenizer.chat_template = legacy.get("chat_template")
        settings = ProcessorSettings.read(place, config)
        with reading(folder):
            return cls(tokenizer, settings)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer's files and ``processor_config.json``, which [`from_pretrained`] reads.

        Raises:
            OSError: the folder is full, read-only or not permitted.
        """
        with naming(Path(folder)):
            self.tokenizer.save_pretrained(folder)
            self.settings.save(folder)

    def vision(
        self, images: Sequence[Image.Image], *, video: bool = False, budget: tuple[int, int] | None = None
    ) -> VisionInputs:
        """Pixel inputs of the vision tower.

        Args:
            images: one RGB image, or the selected key frames of a video.
            video: whether they are frames of a video. In InternVL families a frame is one tile, an image up to 13.
            budget: smallest and largest number of pixels of each, for training a Qwen family; None means the limits
                of inference.

        Raises:
            ValueError: not RGB images, or several without ``video=True``.
        """
        if not images or not all(isinstance(image, Image.Image) and image.mode == "RGB" for image in images):
            got = [image.mode if isinstance(image, Image.Image) else type(image).__name__ for image in images]
            raise ValueError(f"expected PIL images of mode RGB, got {got or 'none'}; use image.convert('RGB')")
        if len(images) > 1 and not video:
            raise ValueError(f"expected one picture, got {len(images)}; pass video=True if they are frames of a video")
        patches = self.settings.patches
        if patches:
            pictures, grids = zip(*(qwen_patches(image, patches, budget) for image in images), strict=True)
            tokens = tuple(math.prod(grid) // patches.merge**2 for grid in grids)
            return VisionInputs(torch.cat(pictures), torch.tensor(grids, dtype=torch.int64), tokens, video)
        assert self.tile_side and self.tokens_per_tile
        tiles = (
            squashed_frames(images, self.tile_side)
            if video
            else tile_image(images[0], self.tile_side, self.settings.max_tiles)
        )
        tokens = (len(tiles) * self.tokens_per_tile // len(images),) * len(images)
        return VisionInputs(tiles, None, tokens, video)

    def tile_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Columns and rows of the tiles an image of (width, height) pixels is cut into; (1, 1) for Qwen families.

        More than one tile are followed by a thumbnail.
        """
        return tile_grid(*size, self.tile_side, self.settings.max_tiles) if self.tile_side else (1, 1)

    def prompt_ids(
        self,
        question: str,
        *,
        vision: VisionInputs | None,
        history: Sequence[Turn] = (),
        regions: Sequence[np.ndarray] | None = None,
    ) -> list[int]:
        """Token ids of the whole prompt for one question. The image precedes the conversation's first question.

        Args:
            question: the user's words. One ``<image>`` in the first question puts the image there instead.
            vision: the images of the conversation; None for text alone.
            history: earlier turns; their answers may or may not end in the template's suffix.
            regions: bool (cells, cells) grids of ``region_cells``, which the text calls region1, region2, ...

        Raises:
            ValueError: image placeholders, or regions, do not fit the images or the family.
        """
        _check_cells(regions)
        questions = [*(turn.question for turn in history), question]
        answers = [turn.answer for turn in history]
        for said in (*questions, *answers):
            check_text(said)
        pieces = self._pieces(self._place_image(questions, vision, regions), answers, vision)
        ids = [i for piece in self._encode(text for text, _ in pieces) for i in piece]
        return self._checked(ids, vision, regions)

    def released_prompt_ids(
        self,
        text: str,
        *,
        vision: VisionInputs | None,
        past_text: str = "",
        regions: Sequence[np.ndarray] | None = None,
    ) -> list[int]:
        """Token ids of [`released_prompt`], which takes the same arguments.

        Raises:
            ValueError: the number of image tokens differs from the number of features of images and regions.
        """
        prompt = self.released_prompt(text, vision=vision, past_text=past_text, regions=regions)
        return self._checked(self._encode([prompt])[0], vision, regions)

    def released_prompt(
        self,
        text: str,
        *,
        vision: VisionInputs | None,
        past_text: str = "",
        regions: Sequence[np.ndarray] | None = None,
    ) -> str:
        """The prompt that ``predict_forward`` of the released remote code builds from the same text.

        Unlike in [`prompt_ids`], no line break follows the image, and ``past_text`` is a raw prefix of the prompt with
        its image tokens written out. As in the released code, Qwen families ignore it if there are images and make it
        part of the user's message if there are none; but one made by [`released_past_text`] continues the conversation.
        ``<image>`` may be missing from the text, where the released code raises. A region may be empty.

        Args:
            text: the user's words, with or without ``<image>``.
            vision: the images of the conversation; None for text alone.
            past_text: the conversation so far.
            regions: bool (cells, cells) grids, as for [`prompt_ids`].

        Raises:
            ValueError: more than one ``<image>``, regions in a family without region prompts, or regions together with
                a ``past_text``.
        """
        check_text(text, "text=")
        check_text(past_text, "past_text=")
        if self.template is None:
            self._no_regions(regions)
            text = text.replace(IMAGE_MARK, "")
            if past_text.startswith(_CHATML_START):
                return past_text + template_of("qwen_chat").ask(text)
            return self._pieces([text if vision else past_text + text], [], vision)[0][0]
        if regions is not None and past_text:
            raise ValueError("expected an empty past_text where regions are given")
        if vision is None:
            text = text.replace(IMAGE_MARK, "")
        if IMAGE_MARK in text or self.family.image_token not in past_text:
            [text] = self._place_image([text], vision, regions)
        return past_text + self.template.ask(text)

    def released_past_text(self, prompt: str, prediction: str) -> str:
        """The ``past_text`` with which [`released_prompt`] continues after a prompt and its answer."""
        template = self.template or template_of("qwen_chat")
        return prompt + bare_answer(prediction, self._endings) + template.suffix + template.separator

    def encode_turns(
        self,
        turns: Sequence[Turn],
        vision: VisionInputs | None,
        regions: Sequence[np.ndarray] | None = None,
    ) -> EncodedTurns:
        """Token ids and labels of a whole conversation, for training.

        Qwen families are trained on plain ChatML, as the released models were: without a system prompt, and with a
        line break between the frames of a video. Inference uses the tokenizer's template, which may add a system
        prompt and writes frames side by side.

        Args:
            turns: at least one question and answer.
            vision: the images of the conversation; None for text alone.
            regions: bool (cells, cells) grids, as for [`prompt_ids`].

        Raises:
            ValueError: no turns, or image placeholders or regions that do not fit the images or the family.
        """
        if not turns:
            raise ValueError("expected at least one turn, got none")
        for turn in turns:
            check_text(turn.question)
            check_text(turn.answer)
        _check_cells(regions)
        template = self.template or template_of("qwen_chat")
        questions = self._place_image([turn.question for turn in turns], vision, regions, written=True)
        answers = [bare_answer(turn.answer, self._endings) for turn in turns]
        pieces = template_pieces(template, questions, answers)
        ids: list[int] = []
        labels: list[int] = []
        stops: list[tuple[str, int]] = []
        for piece, (text, learnt) in zip(self._encode(text for text, _ in pieces), pieces, strict=True):
            ids += piece
            labels += piece if learnt else [IGNORED_LABEL] * len(piece)
            stops.append((text, len(ids)))
        return EncodedTurns(self._checked(ids, vision, regions), labels, stops[::_PIECES_PER_TURN])

    def question_tokens(
        self, turns: Sequence[Turn], encoded: EncodedTurns, ends: Sequence[tuple[int, int]]
    ) -> list[int]:
        """Where in ``encoded.ids`` words of the questions are: the position of the last token of each.

        Args:
            turns, encoded: what [`encode_turns`] took and gave. ends: (turn, character after the words) in questions.
        """
        if not ends:
            return []
        rests = [_after(encoded.questions[turn][0], turns[turn].question, end) for turn, end in ends]
        left: Any = self.tokenizer(rests, add_special_tokens=False)["input_ids"]
        return [encoded.questions[turn][1] - len(rest) - 1 for (turn, _), rest in zip(ends, left, strict=True)]

    def is_finished(self, ids: Sequence[int]) -> bool:
        """Whether new tokens end an answer: at an end token, or when their text ends in a stop word."""
        if ids[-1] in self.eos_ids:
            return True
        if not self.stop_words:
            return False
        tail = str(self.tokenizer.decode(list(ids[-_TAIL_TOKENS:]), skip_special_tokens=False))
        return tail.replace("\r", "").replace("\n", "").endswith(self.stop_words)

    def decode(self, ids: list[int] | torch.Tensor) -> str:
        """The text of one answer's token ids: special tokens are kept, surrounding white space is stripped."""
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        assert isinstance(text, str), "decode takes the ids of one answer"
        return text.strip()

    def clean(self, raw: str) -> tuple[str, list[Phrase | None]]:
        """Strip special tokens from an answer, and find the phrase of each ``[SEG]``.

        Returns:
            the clean text, and per ``[SEG]`` its phrase with the characters it spans in that text, or None.
        """
        return clean_answer(raw, self._special_tokens)

    def _place_image(
        self,
        questions: list[str],
        vision: VisionInputs | None,
        regions: Sequence[np.ndarray] | None,
        *,
        written: bool = False,
    ) -> list[str]:
        """The questions, image and regions written into the first; the Qwen templates write images themselves, unless
        they are to be ``written`` here."""
        first, *later = questions
        if any(IMAGE_MARK in question for question in later):
            raise ValueError(f"{IMAGE_MARK} stands in a later question; the image belongs to the first: leave it out")
        counts = self._region_counts(regions, vision)
        if vision is None:
            if IMAGE_MARK in first:
                raise ValueError(f"the question has {IMAGE_MARK} but no picture came with it; pass one or leave it out")
            return questions
        if first.count(IMAGE_MARK) > 1:
            raise ValueError(f"expected at most one {IMAGE_MARK} in the question, got {first.count(IMAGE_MARK)}")
        if IMAGE_MARK not in first:
            # The region text ends in a line break of its own. Both forms are those of training.
            first = IMAGE_MARK + first if counts else f"{IMAGE_MARK}\n{first}"
        block = self._image_block(vision) if self.template or written else ""
        if counts:
            block += region_prompt(counts, self.family.image_token)
        return [first.replace(IMAGE_MARK, block), *later]

    def _image_block(self, vision: VisionInputs) -> str:
        start, token, end = self.family.image_start, self.family.image_token, self.family.image_end
        return "\n".join(f"{start}{token * count}{end}" for count in vision.tokens_per_image)

    def _pieces(self, questions: list[str], answers: list[str], vision: VisionInputs | None) -> list[Piece]:
        answers = [bare_answer(answer, self._endings) for answer in answers]
        if self.template:
            return template_pieces(self.template, questions, answers)
        counts = vision.tokens_per_image if vision else ()
        (first, learnt), *later = rendered_pieces(self.tokenizer, questions, answers, len(counts))
        return [(expand_images(first, self.family.image_token, counts), learnt), *later]

    def _encode(self, texts: Iterable[str]) -> list[list[int]]:
        """Each text tokenised by itself; BOS, where the tokenizer has one, before the first."""
        first, *later = texts
        encoded = [self.tokenizer.encode(first)]
        if later:  # in one call: each has a fixed cost that is larger than the work
            encoded += self.tokenizer(later, add_special_tokens=False)["input_ids"]
        return encoded

    def _region_counts(self, regions: Sequence[np.ndarray] | None, vision: VisionInputs | None) -> list[int]:
        if regions is None or not self.family.visual_prompts:
            self._no_regions(regions)
            return []
        if vision is None or vision.video:
            raise ValueError("regions are parts of one picture; pass a picture with them, not a video or text alone")
        shape = (self.cells, self.cells)
        for region in regions:
            if region.shape != shape or region.dtype != bool:
                raise ValueError(
                    f"expected a region as bool {shape}, got {region.dtype} {region.shape}; "
                    f"make it with region_cells(mask_or_box, size, {self.cells})"
                )
        return [int(region.sum()) for region in regions]

    def _no_regions(self, regions: Sequence[np.ndarray] | None) -> None:
        if regions is not None and not self.family.visual_prompts:
            raise ValueError(f"{self.family.name} models cannot describe regions; use an InternVL checkpoint")

    def _checked(self, ids: list[int], vision: VisionInputs | None, regions: Sequence[np.ndarray] | None) -> list[int]:
        """The ids, after making sure that each image feature has its place."""
        expected = sum(vision.tokens_per_image) if vision else 0
        expected += sum(self._region_counts(regions, vision))
        found = ids.count(self.image_token_id)
        if found != expected:
            raise ValueError(
                f"the prompt has {found} {self.family.image_token} tokens but the picture makes {expected} features; "
                f"leave {self.family.image_token} out of the text, and pass the picture that past_text speaks of"
            )
        return ids

    @property
    def _needed_tokens(self) -> tuple[str, ...]:
        return (self.family.image_start, self.family.image_token, self.family.image_end, *ADDED_TOKENS)

    def _checked_vocabulary(self) -> dict[str, int]:
        vocabulary = self.tokenizer.get_vocab()
        missing = [token for token in self._needed_tokens if token not in vocabulary]
        if missing or self.tokenizer.eos_token is None:
            raise ValueError(
                f"the tokenizer lacks {missing or 'an end-of-text token'}, which {self.family.name} models need; "
                "Sa2VA's own are added by add_sa2va_tokens(tokenizer)"
            )
        if self.template is None and not isinstance(self.tokenizer.chat_template, str | dict):
            raise ValueError(
                f"the tokenizer has no chat template, which {self.family.name} models need: copy chat_template.json or "
                "chat_template.jinja from the base model into the folder, or set tokenizer.chat_template"
            )
        return vocabulary


def _check_cells(regions: Sequence[np.ndarray] | None) -> None:
    if any(not region.any() for region in regions or ()):
        raise ValueError("a region has no cell set; make it with region_cells, which gives every region one")


def _after(piece: str, question: str, end: int) -> str:
    """What follows the first ``end`` characters of a question in the piece of text that holds it."""
    return piece[piece.rindex(question) + end :]


def tile_image(image: Image.Image, side: int, max_tiles: int = 12) -> torch.Tensor:
    """Cut a picture into square tiles, row by row; the whole picture as a last tile when there is more than one.

    Returns:
        uint8 (T, side, side, 3); T is 1 or 3 to ``max_tiles + 1``.
    """
    columns, rows = tile_grid(image.width, image.height, side, max_tiles)
    large = _resized(image, columns * side, rows * side)
    tiles = large.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    if len(tiles) > 1:
        tiles = np.concatenate([tiles, _resized(image, side, side)[None]])
    return torch.from_numpy(tiles)


def squashed_frames(frames: Sequence[Image.Image], side: int) -> torch.Tensor:
    """Frames squashed to squares, for SAM 2, and as one tile each for an InternVL vision tower.

    Returns:
        uint8 (F, side, side, 3).
    """
    return torch.from_numpy(np.stack([_resized(frame, side, side) for frame in frames]))


def qwen_patches(
    image: Image.Image, settings: QwenPixels, budget: tuple[int, int] | None = None
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Patches of a picture for a Qwen vision tower.

    The picture is resized twice, as released inference did: by PIL to multiples of 28 (for Qwen3-VL too), then to the
    family's own multiple and area limits by torch's antialiased bicubic filter on uint8, which rounds unlike PIL's.

    Args:
        budget: limits of the area instead of the settings'; the picture is then resized once, by torch's filter, as
            released training did.

    Returns:
        float32 (L, D), D = 3 * frames * patch**2, patches of one visual token side by side; and the grid (time, rows,
        columns) in patches.

    Raises:
        ValueError: the picture is more than 200 times as long as wide.
    """
    first = image.size if budget else _smart_size(image.width, image.height, 28, 4 * 28 * 28, 16384 * 28 * 28)
    pixels = torch.from_numpy(_resized(image, *first)).permute(2, 0, 1)
    low, high = budget or (settings.min_pixels, settings.max_pixels)
    width, height = _smart_size(*first, settings.patch * settings.merge, low, high)
    if (width, height) != first:
        pixels = torch.nn.functional.interpolate(
            pixels[None], (height, width), mode="bicubic", antialias=True, align_corners=False
        )[0]
    mean, std = (torch.tensor(values)[:, None, None] * 255 for values in (settings.mean, settings.std))
    values = (pixels.float() - mean) / std
    rows, columns = height // settings.patch, width // settings.patch
    merge, patch = settings.merge, settings.patch
    values = values.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
    values = values.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, 3, 1, patch * patch)
    patches = values.expand(-1, -1, settings.frames, -1).reshape(rows * columns, -1)
    return patches, (1, rows, columns)


def tile_grid(width: int, height: int, side: int, max_tiles: int) -> tuple[int, int]:
    """Columns and rows of tiles, their ratio nearest the picture's; of equal ones the larger that it half fills."""
    grids = [(i, j) for i in range(1, max_tiles + 1) for j in range(1, max_tiles // i + 1)]
    best, best_difference = (1, 1), math.inf
    for columns, rows in sorted(grids, key=math.prod):
        difference = abs(width / height - columns / rows)
        half_filled = width * height > 0.5 * side * side * columns * rows
        if difference < best_difference or (difference == best_difference and half_filled):
            best, best_difference = (columns, rows), difference
    return best


def _smart_size(width: int, height: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (width, height) nearest in shape with both a multiple of ``factor`` and the area within the limits."""
    if max(width, height) > 200 * min(width, height):
        raise ValueError(
            f"the picture is {width} x {height} pixels; expected sides that differ by at most a factor of 200: crop it"
        )
    # Python rounds halves to even, which is part of the released rule.
    sides = [max(factor, round(length / factor) * factor) for length in (width, height)]
    if math.prod(sides) > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        sides = [max(factor, math.floor(length / shrink / factor) * factor) for length in (width, height)]
    elif math.prod(sides) < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        sides = [math.ceil(length * grow / factor) * factor for length in (width, height)]
    return sides[0], sides[1]


def _resized(image: Image.Image, width: int, height: int) -> np.ndarray:
    """uint8 (height, width, 3)."""
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))
