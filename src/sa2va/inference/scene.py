"""An open image or video (or neither): encoded once, asked any number of times.

What requests share is computed on first use and kept: the visual tokens of the frames that the language model sees, the
key-value cache of the last prompt, and SAM 2's features of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sa2va.inference import sasasa2va
from sa2va.inference.engine import Decode, DecodeMarks, EncodeFrame, Engine, Pause, together
from sa2va.inference.options import InferenceOptions, Options
from sa2va.inference.point_prompts import Clicks, drawn_logits
from sa2va.inference.postprocess import clip_segments, frame_segments
from sa2va.inference.propagation import (
    Window,
    frame_count,
    key_frame_indices,
    propagate_video,
    propagate_windows,
    video_windows,
)
from sa2va.inference.sasasa2va import Selection
from sa2va.inference.second_looks import Box, look_by_tiles, look_closer, refined, separate, with_alpha
from sa2va.inference.tracker import VideoTracker, propagation_mode
from sa2va.inference.video_result import Track
from sa2va.inference.vlm import (
    EncodedMedia,
    VLMOutput,
    is_denial,
    presence_question,
    segmentation_request,
    unfound,
    why_nothing,
)
from sa2va.masks.mask import Segment
from sa2va.media.frames import FrameSource
from sa2va.media.open import Origin, Picture
from sa2va.model.generation import GenerationOptions
from sa2va.model.mask_decoder import FrameFeatures, MaskPrediction
from sa2va.processing.conversation import check_text
from sa2va.processing.regions import Region, as_regions, region_cells
from sa2va.processing.requests import GCG_REQUEST, REGION_REQUEST
from sa2va.results.answer import Answer, Frame
from sa2va.results.history import History, Turn, turns_of
from sa2va.visualization.colors import ObjectColors

#: Requests for masks, and for yes or no: nearly all are answered in the same few words.
_SEGMENT, _PRESENCE = "segment", "presence"
#: Tokens of a yes or no.
_YES_OR_NO = 4


class Scene:
    """An open image or video with its encoding, made by [`Sa2VA.open`].

    A second request about an image, or the next turn of a conversation, runs neither the vision tower nor SAM 2's image
    encoder, and only those tokens of its prompt that differ from the last one's beginning. The answers are the same as
    those of a newly opened scene. Threads may share a scene, and what they ask at once is answered together.

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

    def __init__(self, engine: Engine, media: FrameSource | None, origin: Origin | None = None):
        self.media = media
        self._engine = engine
        self._origin = origin  # for those who look at answers
        self._encoded: dict[tuple[int, ...], EncodedMedia] = {}  # by the frames that the language model sees
        self._frame: EncodeFrame | None = None  # of a picture
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
        features = None if self._frame is None else self._frame.computed
        return sum(one.nbytes for one in list(self._encoded.values())) + (0 if features is None else features.nbytes)

    def close(self) -> None:
        """Free the encoding. A [`Track`] that was started may still be read."""
        self._closed = True
        self._encoded.clear()
        self._frame = None

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        what = "words" if self.media is None else "video" if self.is_video else "picture"
        size = "" if self.size is None else f" {self.size[1]}x{self.size[0]}"
        return f"Scene({what}{size}, {'closed' if self._closed else f'{self.nbytes / 2**20:.1f} MiB'})"

    def segment(
        self,
        phrases: str | Sequence[str] | None = None,
        *,
        box: Sequence[float] | None = None,
        points: Sequence[Sequence[float]] | None = None,
        labels: Sequence[int] | None = None,
        mask: np.ndarray | None = None,
        on_text: Callable[[str], None] | None = None,
        **options: Unpack[Options],
    ) -> Answer | list[Answer]:
        """Segment what phrases or questions describe, or what a box, clicks or a rough mask mark; see
        [`Sa2VA.segment`]."""
        chosen = InferenceOptions.of(**options)
        if box is not None or points is not None or mask is not None:
            if phrases is not None:
                raise ValueError("segment takes phrases, or a box, points or a mask without words; got both")
            return self._engine.run(self._marked(Clicks.of(box, points, labels), mask, chosen))
        answers = self._engine.run(self.segment_steps(phrases or "", chosen, on_text=on_text))
        return answers[0] if isinstance(phrases, str) else answers

    def chat(
        self,
        question: str,
        *,
        history: History = (),
        on_text: Callable[[str], None] | None = None,
        **options: Unpack[Options],
    ) -> Answer:
        """Ask anything; see [`Sa2VA.chat`]."""
        chosen = InferenceOptions.of(**options)
        (answer,) = self._engine.run(self.ask_steps([question], chosen, histories=[history], on_text=on_text))
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
        steps = self.ask_steps(
            questions,
            InferenceOptions.of(**options),
            histories=histories,
            regions=regions,
            at_once=at_once,
            keep_empty=empty_masks,
            kind="ask",
        )
        return self._engine.run(steps)

    def caption(self, *, on_text: Callable[[str], None] | None = None, **options: Unpack[Options]) -> Answer:
        """Write a grounded caption; see [`Sa2VA.caption`]."""
        return self.chat(GCG_REQUEST, on_text=on_text, **options)

    def describe(
        self, regions: Region | Sequence[Region], *, requests: Sequence[str] | None = None, **generation: Any
    ) -> list[str]:
        """Describe regions of an image, one text each; see [`Sa2VA.describe`]."""
        chosen = InferenceOptions(generation=GenerationOptions(**generation))
        return [answer.text for answer in self._engine.run(self.describe_steps(regions, chosen, requests=requests))]

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
        chosen.check_looks(picture=False, phrases=True)
        if isinstance(chosen.key_frames, str) and chosen.key_frames == "compressed":
            if chosen.memory != "recent":
                raise ValueError(
                    f"memory={chosen.memory!r} is for key frames that masks are carried from; key_frames='compressed' "
                    "remembers frames in its own way: leave memory out, or take key_frames='uniform'"
                )
            return sasasa2va.track(
                self._engine, source, wanted, selections, chosen.generation, chosen.masks, self._origin
            )
        tracker = VideoTracker(self._engine.model, mode=chosen.mode, memory=chosen.memory, output=chosen.masks)
        reasons: dict[str, str] = {}
        if chosen.ask_every is None:
            keys = self._key_frames(chosen)
            outputs = self._engine.run(self._find(self._shown(keys, video=True), wanted, chosen, video=True))
            for phrase, output in zip(wanted, outputs, strict=True):
                tracker.add_prompts(output.prompts_KC, [phrase] * len(output.prompts_KC))
            reasons |= unfound(self._engine.processor, wanted, outputs)
            frames = propagate_video(tracker, source, keys)
        else:
            frame_count(source)  # one without an end is refused here
            frames = self._asked_again(tracker, source, list(dict.fromkeys(wanted)), chosen, reasons)
        return Track(
            frames,
            source=source.path,
            fps=source.fps,
            size=source.size,
            total=source.frame_count,
            reasons=reasons,
            pixels=lambda: (decoded.pixels for decoded in source),
            origin=self._origin,
        )

    def mask_prompts(self, phrases: Sequence[str], options: InferenceOptions) -> list[Tensor]:
        """The mask prompts (K, C) of each phrase in a picture or in all frames of a short video, for
        [`VideoTracker`]."""
        keys = tuple(range(frame_count(self._source("there is no picture")))) if self.is_video else ()
        found = self._engine.run(self._find(self._shown(keys), phrases, options, video=self.is_video))
        return [one.prompts_KC for one in found]

    def prepare(self) -> None:
        """Make the pixels of a picture that the vision tower takes, before they are asked for; any thread may."""
        if isinstance(self.media, Picture):
            self._shown(())

    def prompt_tokens(self, question: str, *, history: History = (), **options: Unpack[Options]) -> int:
        """How many tokens [`chat`] has the model read for a question, those of the medium included."""
        keys = self._key_frames(InferenceOptions.of(**options)) if self.is_video else ()
        vision = self._shown(keys).vision
        return len(self._engine.processor.prompt_ids(question, vision=vision, history=turns_of(history)))

    # -- the steps of requests, for the engine -------------------------------------------------------------------------

    async def segment_steps(
        self, phrases: str | Sequence[str], options: InferenceOptions, *, on_text: Callable[[str], None] | None = None
    ) -> list[Answer]:
        """[`segment`], always a list."""
        wanted = checked_phrases(phrases)
        if self.media is None:
            raise ValueError("segment needs a picture or a video; got None. Use chat(None, ...) to talk without one")
        requests = [segmentation_request(phrase, video=self.is_video) for phrase in wanted]
        if not options.looks_again:
            return await self.ask_steps(requests, options, names=wanted, kind=_SEGMENT, on_text=on_text)
        options.check_looks(picture=not self.is_video, phrases=True)
        first = await self.ask_steps(requests, options.first_look, names=wanted, kind=_SEGMENT, on_text=on_text)
        answers = await together(
            [self._look_again(phrase, answer, options) for phrase, answer in zip(wanted, first, strict=True)]
        )
        return await self._finished(answers, options)

    async def ask_steps(
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
        on_text: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """[`ask`].

        Args:
            names: what each asks for, when it asks for a mask. kind, on_text: see [`EncodedMedia.ask`].
        """
        if self.is_video and options.ask_every is not None:
            raise ValueError(
                f"ask_every={options.ask_every!r} is for track() and stream(); this gives one answer about the whole "
                "video: track it, or leave ask_every out"
            )
        if isinstance(questions, str):
            raise ValueError(f"ask takes a list of questions; got one string: {questions!r:.100}. See chat")
        for name, given in (("history", histories), ("region", regions)):
            if given is not None and len(given) != len(questions):
                raise ValueError(f"ask needs one {name} per question; got {len(given)} for {len(questions)}")
        if on_text is not None and len(questions) != 1:
            raise ValueError(f"on_text is told one answer; got {len(questions)} questions: ask them one by one")
        if names is None:
            for question in questions:
                if not isinstance(question, str) or not question.strip():
                    raise ValueError(f"a question is a non-empty text; got {question!r}")
                check_text(question, "the question")
        self._check_looks(options, phrases=names is not None)
        turns = [()] * len(questions) if histories is None else [turns_of(history) for history in histories]
        keys = self._key_frames(options) if self.is_video else ()
        outputs: list[VLMOutput] = []
        if regions is None:
            media = self._shown(keys)
            outputs = await media.ask(
                self._engine,
                questions,
                options.generation,
                histories=turns,
                at_once=at_once,
                kind=kind,
                on_text=on_text,
            )
            if names is not None and options.check_presence:
                outputs = await self._believed(media, names, outputs)
        else:  # each question sees a region of its own, which is its region1
            for question, grid, history in zip(questions, self._region_grids(regions), turns, strict=True):
                shown = await self._shown(()).with_regions([grid])
                outputs += await shown.ask(
                    self._engine, [question], options.generation, histories=[history], regions=[grid], on_text=on_text
                )
        named = zip(outputs, names or [None] * len(outputs), strict=True)
        parsed = [_Parsed(self._engine, output, name) for output, name in named]
        segments = await self._segments(parsed, keys, options)
        answers = []
        for one, history in zip(parsed, turns, strict=True):
            count = len(one.output.prompts_KC)
            own, segments = segments[:count], segments[count:]
            answers.append(replace(one.answer(own, self.size, history, keep_empty=keep_empty), origin=self._origin))
        return await self._finished(answers, options) if options.refine == "matting" else answers

    async def describe_steps(
        self, regions: Region | Sequence[Region], options: InferenceOptions, *, requests: Sequence[str] | None = None
    ) -> list[Answer]:
        """[`describe`], whose texts come as answers."""
        wanted = as_regions(regions)
        if not wanted:
            raise ValueError("describe needs at least one region: a bool mask (H, W) or a box (x0, y0, x1, y1)")
        if requests is not None and len(requests) != len(wanted):
            raise ValueError(f"describe needs one request per region; got {len(requests)} for {len(wanted)}")
        grids = self._region_grids(wanted)
        questions = requests or [REGION_REQUEST.format(number=number) for number in range(1, len(grids) + 1)]
        shown = await self._shown(()).with_regions(grids)
        outputs = await shown.ask(self._engine, questions, options.generation, regions=grids)
        return [_Parsed(self._engine, output, None).answer((), self.size, (), keep_empty=False) for output in outputs]

    async def _marked(self, clicks: Clicks, mask: np.ndarray | None, options: InferenceOptions) -> Answer:
        """The object that is marked in a picture: SAM 2's own prompts, without the language model."""
        if not isinstance(self.media, Picture):
            raise ValueError(
                "a box, points or a mask mark an object of a picture; in a video: model.stream() and tracker.add"
            )
        self._check_looks(options, phrases=False)
        size, side = self.media.size, self._engine.processor.grounding_side
        points, labels = clicks.tensors(size, side)
        drawn = None if mask is None else drawn_logits(mask, size)
        mode = propagation_mode(self._engine.model, options.mode)
        features = await self._features(self.media)
        prediction = await DecodeMarks(features, points, labels, logits_KHW=drawn, original=mode == "consistent")
        segments = await self._picture_segments(self.media, features, prediction, [""], options)
        shown = tuple(segment for segment in segments if segment.mask.area)
        reason = None if shown else "SAM 2 found no object there: its mask is empty"
        answer = Answer("", "", shown, reason=reason, size=size, origin=self._origin)
        return (await self._finished([answer], options))[0] if options.refine == "matting" else answer

    async def _look_again(self, phrase: str, answer: Answer, options: InferenceOptions) -> Answer:
        """The answer to a phrase about a picture after its second looks."""
        picture, side = self._picture(), self._engine.processor.grounding_side
        if options.instances:
            features, original = await self._features(picture), self._engine.model.original_mask_decoder is not None
            parts = await together(
                [separate(segment, features, side, original=original) for segment in answer.segments]
            )
            answer = replace(answer, segments=tuple(chain.from_iterable(parts)))
        if options.zoom:
            closer = replace(options, zoom=False, refine=options.first_look.refine)

            async def ask(window: Box) -> Answer:
                with Scene(self._engine, Picture(picture.image.crop(window))) as part:
                    return (await part.segment_steps(phrase, closer))[0]

            if options.instances or not answer.segments:
                answer = await look_by_tiles(answer, picture.size, side, ask, several=options.instances)
            answer = await look_closer(answer, picture.size, side, ask)
        return answer

    async def _finished(self, answers: Sequence[Answer], options: InferenceOptions) -> list[Answer]:
        """Answers about a picture with their objects numbered and coloured anew, and with their opacity."""
        picture = self._picture()
        found = [segment for answer in answers for segment in answer.segments]
        if options.refine == "matting":
            found = await together([with_alpha(picture.image, segment, options.matting) for segment in found])
        numbered = [replace(segment, id=number, color=None) for number, segment in enumerate(found, 1)]
        colored = iter(ObjectColors().apply(np.asarray(picture.image), numbered))
        return [replace(answer, segments=tuple(islice(colored, len(answer.segments)))) for answer in answers]

    def _check_looks(self, options: InferenceOptions, *, phrases: bool) -> None:
        """Refuse second looks that the medium, the request or the checkpoint does not allow."""
        options.check_looks(picture=isinstance(self.media, Picture), phrases=phrases)
        if options.refine == "sam" and self._engine.model.original_mask_decoder is None:
            raise ValueError(
                "refine='sam' gives masks to SAM 2's original decoder, which this checkpoint lacks; load it with "
                "sam2='facebook/sam2-hiera-large' (--sam2), or Meta's sam2_hiera_large.pt"
            )

    def _picture(self) -> Picture:
        assert isinstance(self.media, Picture)
        return self.media

    async def _find(
        self, media: EncodedMedia, phrases: Sequence[str], options: InferenceOptions, *, video: bool
    ) -> list[VLMOutput]:
        """What the model points at for each phrase."""
        requests = [segmentation_request(phrase, video=video) for phrase in phrases]
        outputs = await media.ask(self._engine, requests, options.generation, kind=_SEGMENT)
        return await self._believed(media, phrases, outputs) if options.check_presence else outputs

    def _asked_again(
        self,
        tracker: VideoTracker,
        source: FrameSource,
        phrases: Sequence[str],
        options: InferenceOptions,
        reasons: dict[str, str],
    ) -> Iterator[tuple[Frame, np.ndarray]]:
        """Every frame of a video that is asked about window by window. ``reasons`` are those of phrases not found so
        far."""
        assert options.ask_every is not None
        found_before: set[str] = set()

        def ask(frames: Sequence[np.ndarray]) -> dict[str, Tensor]:
            pictures = [Image.fromarray(frame) for frame in frames]
            media = EncodedMedia.of(self._engine.processor, pictures, video=True)
            outputs = self._engine.run(self._find(media, phrases, options, video=True))
            found_before.update(phrase for phrase, one in zip(phrases, outputs, strict=True) if len(one.prompts_KC))
            missing = unfound(self._engine.processor, phrases, outputs)
            reasons.clear()
            reasons.update({phrase: why for phrase, why in missing.items() if phrase not in found_before})
            return {phrase: output.prompts_KC for phrase, output in zip(phrases, outputs, strict=True)}

        def key_frames(window: Window) -> list[int]:
            policy: Any = options.key_frames
            indices = key_frame_indices(policy, options.num_key_frames, window.stop - window.start)
            return [window.start + index for index in indices]

        windows = video_windows(source, options.ask_every)
        return propagate_windows(tracker, source, windows, key_frames, ask)

    async def _believed(
        self, media: EncodedMedia, phrases: Sequence[str], outputs: Sequence[VLMOutput]
    ) -> list[VLMOutput]:
        """The answers without the prompts of those whose phrase the model denies when asked for yes or no.

        Only what it has pointed at is asked about, in a prompt that goes on from the pictures of the requests.
        """
        questions = [
            presence_question(phrase) if len(output.prompts_KC) else None
            for phrase, output in zip(phrases, outputs, strict=True)
        ]
        asked = [question for question in questions if question is not None]
        if not asked:
            return list(outputs)
        answers = iter(await media.ask(self._engine, asked, GenerationOptions(_YES_OR_NO), kind=_PRESENCE))
        return [
            output.as_denied() if question is not None and is_denial(next(answers)) else output
            for question, output in zip(questions, outputs, strict=True)
        ]

    def _region_grids(self, regions: Sequence[Region]) -> list[np.ndarray]:
        """The cells of each region, bool (cells, cells)."""
        processor = self._engine.processor
        if not isinstance(self.media, Picture):
            raise ValueError("regions are parts of one picture; pass a picture with them, not a video or words alone")
        if processor.cells is None:
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

    def _shown(self, keys: tuple[int, ...], *, video: bool | None = None) -> EncodedMedia:
        """The medium as the language model sees it: a picture, the key frames of a video, or nothing."""
        self._check_open()
        known = self._encoded.get(keys)
        if known is None or known.has_failed:
            known = self._encoded[keys] = self._seen(keys, self.is_video if video is None else video)
        return known

    def _seen(self, keys: tuple[int, ...], video: bool) -> EncodedMedia:
        if self.media is None:
            return EncodedMedia()
        if isinstance(self.media, Picture):
            images = [self.media.image]
        else:
            images = [Image.fromarray(frame) for frame in self.media.read(keys)]
        return EncodedMedia.of(self._engine.processor, images, video=video)

    async def _features(self, picture: Picture) -> FrameFeatures:
        """A picture as SAM 2 sees it."""
        self._check_open()
        if self._frame is None or self._frame.error is not None:
            self._frame = EncodeFrame(picture.image)
        return await self._frame

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this scene is closed; open the medium again")

    async def _segments(
        self, parsed: Sequence[_Parsed], keys: tuple[int, ...], options: InferenceOptions
    ) -> list[Segment]:
        """The objects of all answers, decoded together."""
        prompts = torch.cat([one.output.prompts_KC for one in parsed])
        phrases = [phrase for one in parsed for phrase in one.phrases]
        if not len(prompts) or self.media is None:
            return []
        model = self._engine.model
        if not isinstance(self.media, Picture):
            tracker = VideoTracker(model, mode=options.mode, memory=options.memory, output=options.masks)
            tracker.add_prompts(prompts, phrases)
            colors, frames = ObjectColors(), []
            for frame, pixels in propagate_video(tracker, self.media, keys):
                frames.append(replace(frame, segments=colors.apply(pixels, frame.segments)))
                await Pause()
            return clip_segments(frames)
        features = await self._features(self.media)
        prediction = await Decode(features, prompts)
        return await self._picture_segments(self.media, features, prediction, phrases, options)

    async def _picture_segments(
        self,
        picture: Picture,
        features: FrameFeatures,
        prediction: MaskPrediction,
        phrases: Sequence[str],
        options: InferenceOptions,
    ) -> list[Segment]:
        """What was decoded in a picture as segments, after SAM 2's second look at it."""
        side = self._engine.processor.grounding_side
        if options.refine == "sam":
            prediction = await refined(features, prediction, side)
        ids, size = range(1, len(phrases) + 1), picture.size
        segments = frame_segments(prediction, ids, phrases, side=side, size=size, output=options.masks)
        return [*ObjectColors().apply(np.asarray(picture.image), segments)]


class _Parsed:
    """What was written to one question, and the words that name each of its masks."""

    def __init__(self, engine: Engine, output: VLMOutput, name: str | None):
        self.output, self.name = output, name
        self.text, found = engine.processor.clean(output.raw)
        named = [one or (name or "", None) for one in found[: len(output.prompts_KC)]]
        self.phrases = [name or phrase for phrase, _ in named]
        self.spans = [span for _, span in named]

    def answer(
        self, segments: Sequence[Segment], size: tuple[int, int] | None, history: Sequence[Turn], *, keep_empty: bool
    ) -> Answer:
        """The answer with its masks; empty ones are left out and accounted for, or kept."""
        shown = (
            tuple(
                segment if span is None else replace(segment, span=span)
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
