"""An open image or video (or neither): encoded once, asked any number of times.

What requests share is computed on first use and kept: the visual tokens of the frames that the language model sees, the
key-value cache of the last prompt, and SAM 2's features of an image.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sa2va.inference import sasasa2va
from sa2va.inference.options import InferenceOptions, Options
from sa2va.inference.postprocess import clip_segments, frame_segments
from sa2va.inference.propagation import frame_count, key_frame_indices, propagate_video
from sa2va.inference.sasasa2va import Selection
from sa2va.inference.tracker import VideoTracker
from sa2va.inference.video_result import Track
from sa2va.inference.vlm import EncodedMedia, VLMOutput, VLMRunner, segmentation_request, unfound, why_nothing
from sa2va.masks.segment import Segment
from sa2va.media.frames import FrameSource
from sa2va.media.open import Picture
from sa2va.model.mask_decoder import FrameFeatures, decode_masks, grounding_side, language_tokens
from sa2va.model.sampling import GenerationOptions
from sa2va.processing.conversation import check_text
from sa2va.processing.image_transforms import squashed_frames
from sa2va.processing.regions import Region, as_regions, region_cells
from sa2va.processing.requests import GCG_REQUEST, REGION_REQUEST
from sa2va.results.answer import Answer
from sa2va.results.history import History, Turn, turns_of
from sa2va.visualization.colors import ObjectColors

#: Requests for masks: nearly all are answered in the same few words.
_SEGMENT = "segment"


class Scene:
    """An open image or video with its encoding, made by [`Sa2VA.open`].

    A second request about an image, or the next turn of a conversation, runs neither the vision tower nor SAM 2's image
    encoder, and only those tokens of its prompt that differ from the last one's beginning. The answers are the same as
    those of a newly opened scene. Threads may share a scene; they take turns.

    Attributes:
        media: the open [`Picture`], or another [`FrameSource`] for a video; None without either.

    Examples:
        >>> from sa2va import Sa2VA
        >>> model = Sa2VA.from_pretrained("tiny")
        >>> with model.open("shapes.png") as scene:
        ...     cloud = scene.segment("the yellow cloud")
        ...     answer = scene.chat("What color is the car?")
        ...     more = scene.chat("How many clouds are there?", history=answer.history)
        >>> answer.text
        'blue'
    """

    def __init__(self, runner: VLMRunner, media: FrameSource | None):
        self.media = media
        self._runner = runner
        self._encoded: dict[tuple[int, ...], EncodedMedia] = {}  # by the frames that the language model sees
        self._features: FrameFeatures | None = None
        self._lock = threading.RLock()
        self._closed = False

    @property
    def is_video(self) -> bool:
        """Whether the medium is a video rather than an image."""
        return self.media is not None and not isinstance(self.media, Picture)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels; None without a medium."""
        return None if self.media is None else self.media.size

    @property
    def nbytes(self) -> int:
        """Memory that the scene occupies on the model's devices, in bytes."""
        features = [] if self._features is None else [self._features.fine, self._features.middle, self._features.top]
        return sum(one.nbytes for one in self._encoded.values()) + sum(tensor.nbytes for tensor in features)

    def close(self) -> None:
        """Free the encoding. A [`Track`] that was started may still be read."""
        with self._lock:
            self._closed = True
            self._encoded.clear()
            self._features = None

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        what = "words" if self.media is None else "video" if self.is_video else "picture"
        size = "" if self.size is None else f" {self.size[1]}x{self.size[0]}"
        return f"Scene({what}{size}, {'closed' if self._closed else f'{self.nbytes / 2**20:.1f} MiB'})"

    def segment(self, phrases: str | Sequence[str], **options: Unpack[Options]) -> Answer | list[Answer]:
        """Segment what phrases or questions describe; see [`Sa2VA.segment`]."""
        wanted = checked_phrases(phrases)
        if self.media is None:
            raise ValueError("segment needs a picture or a video; got None. Use chat(None, ...) to talk without one")
        requests = [segmentation_request(phrase, video=self.is_video) for phrase in wanted]
        answers = self._answer(requests, InferenceOptions.of(**options), names=wanted, kind=_SEGMENT)
        return answers[0] if isinstance(phrases, str) else answers

    def chat(self, question: str, *, history: History = (), **options: Unpack[Options]) -> Answer:
        """Ask anything; see [`Sa2VA.chat`]."""
        (answer,) = self._answer([question], InferenceOptions.of(**options), histories=[history])
        return answer

    def ask(
        self,
        questions: Sequence[str],
        *,
        histories: Sequence[History] | None = None,
        regions: Sequence[Region] | None = None,
        at_once: int | None = None,
        empty_masks: bool = False,
        **options: Unpack[Options],
    ) -> list[Answer]:
        """Ask many independent questions; see [`Sa2VA.ask`]."""
        if isinstance(questions, str):
            raise ValueError(f"ask takes a list of questions; got one string: {questions!r:.100}. See chat")
        for name, given in (("history", histories), ("region", regions)):
            if given is not None and len(given) != len(questions):
                raise ValueError(f"ask needs one {name} per question; got {len(given)} for {len(questions)}")
        return self._answer(
            list(questions),
            InferenceOptions.of(**options),
            histories=histories,
            regions=regions,
            at_once=at_once,
            keep_empty=empty_masks,
            kind="ask",
        )

    def caption(self, **options: Unpack[Options]) -> Answer:
        """Write a grounded caption; see [`Sa2VA.caption`]."""
        return self.chat(GCG_REQUEST, **options)

    def describe(
        self, regions: Region | Sequence[Region], *, requests: Sequence[str] | None = None, **generation: Any
    ) -> list[str]:
        """Describe regions of an image, one text each; see [`Sa2VA.describe`]."""
        wanted = as_regions(regions)
        if not wanted:
            raise ValueError("describe needs at least one region: a bool mask (H, W) or a box (x0, y0, x1, y1)")
        if requests is not None and len(requests) != len(wanted):
            raise ValueError(f"describe needs one request per region; got {len(requests)} for {len(wanted)}")
        with self._lock:
            grids = self._region_grids(wanted)
            questions = requests or [REGION_REQUEST.format(number=number) for number in range(1, len(grids) + 1)]
            shown = self._look(()).with_regions(grids)
            outputs = self._runner.generate(shown, questions, GenerationOptions(**generation), regions=grids)
        return [self._runner.processor.clean(output.raw)[0] for output in outputs]

    def track(
        self,
        phrases: str | Sequence[str],
        *,
        selections: Sequence[Selection] = ("uniform",),
        **options: Unpack[Options],
    ) -> Track:
        """Lazily track what phrases describe through a video of any length; see [`Sa2VA.track`]."""
        wanted = checked_phrases(phrases)
        source = self._source("track needs a video or a picture; got None")
        chosen = InferenceOptions.of(**options)
        if isinstance(chosen.key_frames, str) and chosen.key_frames == "compressed":
            return sasasa2va.track(self._runner, source, wanted, selections, chosen.generation, chosen.masks)
        tracker = VideoTracker(self._runner.model, mode=chosen.mode, output=chosen.masks)
        keys = self._key_frames(chosen)
        outputs = self._find(wanted, keys, chosen.generation, video=True)
        for phrase, output in zip(wanted, outputs, strict=True):
            tracker.add_prompts(output.prompts_KC, [phrase] * len(output.prompts_KC))
        return Track(
            propagate_video(tracker, source, keys),
            source=source.path,
            fps=source.fps,
            size=source.size,
            total=source.frame_count,
            reasons=unfound(self._runner, wanted, outputs),
            pixels=lambda: (decoded.pixels for decoded in source),
        )

    def mask_prompts(self, phrases: Sequence[str], generation: GenerationOptions) -> list[Tensor]:
        """The mask prompts (K, C) of each phrase in an image, for [`VideoTracker.add_prompts`]."""
        return [output.prompts_KC for output in self._find(phrases, (), generation, video=False)]

    def prompt_tokens(self, question: str, *, history: History = (), **options: Unpack[Options]) -> int:
        """How many tokens [`chat`] has the model read for a question, those of the medium included."""
        chosen = InferenceOptions.of(**options)
        with self._lock:
            media = self._look(self._key_frames(chosen) if self.is_video else ())
            return len(self._runner.processor.prompt_ids(question, vision=media.vision, history=turns_of(history)))

    def _find(
        self, phrases: Sequence[str], keys: tuple[int, ...], generation: GenerationOptions, *, video: bool
    ) -> list[VLMOutput]:
        requests = [segmentation_request(phrase, video=video) for phrase in phrases]
        with self._lock:
            return self._runner.generate(self._look(keys, video=video), requests, generation, kind=_SEGMENT)

    def _answer(
        self,
        questions: Sequence[str],
        options: InferenceOptions,
        *,
        names: Sequence[str] | None = None,
        histories: Sequence[History] | None = None,
        regions: Sequence[Region] | None = None,
        at_once: int | None = None,
        keep_empty: bool = False,
        kind: str | None = None,
    ) -> list[Answer]:
        """Answer questions with text and masks.

        Args:
            names: what each asks for, when it asks for a mask. kind: see [`VLMRunner.generate`].
        """
        for question in questions:
            if not isinstance(question, str) or not question.strip():
                raise ValueError(f"a question is a non-empty text; got {question!r}")
            check_text(question, "the question")
        turns = [turns_of(history) for history in ([()] * len(questions) if histories is None else histories)]
        with self._lock:
            keys = self._key_frames(options) if self.is_video else ()
            if regions is None:
                media = self._look(keys)
                outputs = self._runner.generate(
                    media, questions, options.generation, histories=turns, at_once=at_once, kind=kind
                )
            else:
                outputs = self._generate_by_region(questions, regions, options.generation, turns)
            named = zip(outputs, names or [None] * len(outputs), strict=True)
            parsed = [_Parsed(self._runner, output, name) for output, name in named]
            segments = self._segments(parsed, keys, options)
        answers = []
        for one, history in zip(parsed, turns, strict=True):
            count = len(one.output.prompts_KC)
            own, segments = segments[:count], segments[count:]
            answers.append(one.answer(own, self.size, history, keep_empty=keep_empty))
        return answers

    def _generate_by_region(
        self,
        questions: Sequence[str],
        regions: Sequence[Region],
        generation: GenerationOptions,
        turns: Sequence[Sequence[Turn]],
    ) -> list[VLMOutput]:
        """Each question sees a region of its own, which is its region1."""
        grids = self._region_grids(regions)
        media, outputs = self._look(()), []
        for question, grid, history in zip(questions, grids, turns, strict=True):
            shown = media.with_regions([grid])
            outputs += self._runner.generate(shown, [question], generation, histories=[history], regions=[grid])
        return outputs

    def _region_grids(self, regions: Sequence[Region]) -> list[np.ndarray]:
        """The cells of each region, bool (cells, cells)."""
        processor = self._runner.processor
        if not isinstance(self.media, Picture):
            raise ValueError("regions are parts of one picture; pass a picture with them, not a video or words alone")
        if not processor.family.visual_prompts or processor.cells is None:
            raise ValueError(
                f"{processor.family.name} checkpoints cannot describe regions; use an InternVL-based one "
                "(Sa2VA-1B, -4B, -8B, -26B or Sa2VA-InternVL3-*)"
            )
        return [region_cells(region, self.media.size, processor.cells) for region in regions]

    def _key_frames(self, options: InferenceOptions) -> tuple[int, ...]:
        source = self._source("there are no frames")
        policy: Any = options.key_frames  # "compressed" is refused like any other word
        return tuple(key_frame_indices(policy, options.num_key_frames, frame_count(source)))

    def _source(self, otherwise: str) -> FrameSource:
        if self.media is None:
            raise ValueError(otherwise)
        return self.media

    def _look(self, keys: tuple[int, ...], *, video: bool | None = None) -> EncodedMedia:
        """The medium as the language model sees it: a picture, the key frames of a video, or nothing."""
        if self._closed:
            raise ValueError("this scene is closed; open the medium again")
        if keys not in self._encoded:
            if self.media is None:
                self._encoded[keys] = EncodedMedia()
            else:
                video = self.is_video if video is None else video
                if isinstance(self.media, Picture):
                    images = [self.media.image]
                else:
                    images = [Image.fromarray(frame) for frame in self.media.read(keys)]
                self._encoded[keys] = self._runner.encode(images, video=video)
        return self._encoded[keys]

    @torch.inference_mode()
    def _segments(self, parsed: Sequence[_Parsed], keys: tuple[int, ...], options: InferenceOptions) -> list[Segment]:
        """The objects of all answers, decoded together."""
        prompts = torch.cat([one.output.prompts_KC for one in parsed])
        phrases = [phrase for one in parsed for phrase in one.phrases]
        if not len(prompts) or self.media is None:
            return []
        if not isinstance(self.media, Picture):
            tracker = VideoTracker(self._runner.model, mode=options.mode, output=options.masks)
            tracker.add_prompts(prompts, phrases)
            colors = ObjectColors()
            return clip_segments(
                replace(frame, segments=colors.apply(pixels, frame.segments))
                for frame, pixels in propagate_video(tracker, self.media, keys)
            )
        model = self._runner.model
        side = grounding_side(model.sam2)
        if self._features is None:
            self._features = model.encode_frames(squashed_frames([self.media.image], side))
        tokens = language_tokens(model.sam2, prompts)
        prediction = decode_masks(model.sam2, model.sam2.mask_decoder, self._features, tokens)
        ids, size = range(1, len(prompts) + 1), self.media.size
        segments = frame_segments(prediction, ids, phrases, side=side, size=size, output=options.masks)
        return [*ObjectColors().apply(np.asarray(self.media.image), segments)]


class _Parsed:
    """What was written to one question, and the words that name each of its masks."""

    def __init__(self, runner: VLMRunner, output: VLMOutput, name: str | None):
        self.output, self.name = output, name
        self.text, found = runner.processor.clean(output.raw)
        named = [one or (name or "", None) for one in found[: len(output.prompts_KC)]]
        self.phrases = [name or phrase for phrase, _ in named]
        self.spans = [span for _, span in named]

    def answer(
        self, segments: Sequence[Segment], size: tuple[int, int] | None, history: Sequence[Turn], *, keep_empty: bool
    ) -> Answer:
        """The answer with its masks; empty ones are left out and accounted for, or kept."""
        shown = (
            tuple(
                replace(segment, span=span)
                for segment, span in zip(segments, self.spans, strict=True)
                if keep_empty or any(mask.area for mask in segment.masks)
            )
            if segments
            else ()
        )
        nothing = not shown and self.name is not None
        return Answer(
            text=self.text,
            raw_text=self.output.raw,
            segments=shown,
            reason=why_nothing(self.output, self.text, len(segments)) if nothing else None,
            size=size,
            history=(*history, Turn(self.output.question, self.output.raw)),
        )


def checked_phrases(phrases: Any) -> list[str]:
    """One phrase or several as a list. ValueError for a blank one, or none."""
    several = isinstance(phrases, Iterable) and not isinstance(phrases, str | bytes)
    wanted: list[Any] = list(phrases) if several else [phrases]
    if not wanted or not all(isinstance(phrase, str) and phrase.strip() for phrase in wanted):
        raise ValueError(f"phrases must be a non-empty text or a list of them; got {phrases!r}")
    for phrase in wanted:
        check_text(phrase, "the phrase")
    return wanted
