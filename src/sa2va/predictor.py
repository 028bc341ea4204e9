"""The user's handle on a model: pictures, videos and words in; text and masks out.

A request reads its media once. Several phrases about one picture share the vision tower, the prompt's prefix in the
key-value cache and SAM 2's image features; the prompts decode as one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sa2va import zoo
from sa2va.checkpoint.adapter import adapter_base, attach, is_adapter, open_adapter
from sa2va.inference import sasasa2va
from sa2va.inference.pipeline import Answerer, MaskSettings, Media, Region
from sa2va.inference.postprocess import MaskOutput
from sa2va.inference.predict_forward import predict_forward
from sa2va.inference.propagation import KeyFrames, follow, frame_count, key_frame_indices
from sa2va.inference.sasasa2va import Selection
from sa2va.inference.tracker import Mode, VideoTracker
from sa2va.inference.video_result import Track
from sa2va.inference.vlm import Asker, segmentation_request, unfound
from sa2va.masks.mask_ops import Cleanup
from sa2va.media.open import ImageSource, MediaSource, is_video, load_image, open_media
from sa2va.model.generation import GenerationOptions
from sa2va.model.quantization import Quantization
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.conversation import check_text
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.processing.regions import as_regions
from sa2va.processing.requests import GCG_REQUEST, REGION_REQUEST
from sa2va.results.answer import Answer
from sa2va.results.history import History
from sa2va.runtime import default_device, default_dtype, present_device

#: Frames of a video that the language model sees.
KEY_FRAMES = 5


class Sa2VA:
    """A loaded model and its processor, ready to answer.

    Attributes:
        model: the [`Sa2VAModel`]. processor: its [`Sa2VAProcessor`].
    """

    def __init__(self, model: Sa2VAModel, processor: Sa2VAProcessor):
        self.model = model.eval()
        self.processor = processor
        self._asker = Asker(model, processor)
        self._answerer = Answerer(self._asker)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        quantization: Quantization | None = None,
        adapter: str | Path | None = None,
        **kwargs: Any,
    ) -> Sa2VA:
        """Load a checkpoint, released or ours, without remote code.

        Args:
            source: ``"tiny"``, the checkpoint in this package; a local folder, a hub id, or a name that
                ``sa2va models`` lists; or the folder of an adapter, which names the model it belongs to.
            device: where to put the model; None takes the best device present. Not together with ``device_map``.
            dtype: of the weights; None takes float32 on CPU and half precision on accelerators.
            device_map: ``"auto"`` or a dict spreads the model over devices (needs accelerate).
            quantization: ``"int8"`` or ``"nf4"`` keeps the linear layers of the language model in eight or four bits
                (needs bitsandbytes; CUDA or CPU); all else stays in ``dtype``.
            adapter: folder or hub id of what a LoRA run has learnt on this model; it stays apart from the weights
                (needs peft). ``sa2va merge`` puts it into them.
            kwargs: as in [`Sa2VAModel.from_pretrained`].

        Raises:
            ValueError: the source is no checkpoint, the hub does not give it, or a tensor is missing, left over or
                misshapen; the adapter belongs to another model; the device does not compute with quantised weights.
            ImportError: a package that an option needs is missing; the message says how to install it.
        """
        source = zoo.resolve(str(source))
        if adapter is None and is_adapter(source):
            source, adapter = adapter_base(source), source
        if device is not None and device_map is not None:
            raise ValueError("pass device= for one device, or device_map= to spread the model; not both")
        target = present_device(device) if device is not None else default_device()
        hub = {key: kwargs[key] for key in ("revision", "cache_dir", "token", "local_files_only") if key in kwargs}
        if device_map is None and (quantization or kwargs.get("quantization_config")):
            device_map = {"": target}  # quantised weights are made where they stay
        model: Any = Sa2VAModel.from_pretrained(
            source, dtype=dtype or default_dtype(target), device_map=device_map, quantization=quantization, **kwargs
        )
        if adapter is not None:
            attach(model, open_adapter(adapter, **hub))
        if device_map is None:
            model.to(target)
        return cls(model, Sa2VAProcessor.from_pretrained(source, model.config, **hub))

    def segment(
        self,
        media: Media,
        phrases: str | Sequence[str],
        *,
        threshold: float = 0.5,
        probabilities: bool = False,
        cleanup: Cleanup = Cleanup(),  # noqa: B008 -- frozen
        key_frames: KeyFrames = "uniform",
        num_key_frames: int = KEY_FRAMES,
        mode: Mode | None = None,
        **generation: Any,
    ) -> Answer | list[Answer]:
        """Find what phrases (or questions) describe.

        Args:
            media: a picture, or a short video whose masks fit in memory; for long ones see [`track`]. Arrays are uint8
                RGB (H, W, 3); what OpenCV reads is BGR: pass ``frame[..., ::-1]``.
            phrases: one, or several that are answered together; a phrase with a question mark is asked as a question.
            threshold: probability above which a pixel belongs to the object.
            probabilities: keep float32 probabilities in every segment.
            cleanup: holes to fill, specks to remove and the like; off by default.
            key_frames, num_key_frames, mode: for videos, see [`track`].
            generation: fields of [`GenerationOptions`], such as ``max_new_tokens`` or ``temperature``.

        Returns:
            an [`Answer`] for a single phrase, a list of them for a list. One that points at nothing has no segments,
            and ``reason`` says why.
        """
        wanted = _phrases(phrases)
        if media is None:
            raise ValueError("segment needs a picture or a video; got None. Use chat(None, ...) to talk without one")
        video = is_video(media)
        answers = self._answerer.answer(
            media,
            [segmentation_request(phrase, video=video) for phrase in wanted],
            GenerationOptions(**generation),
            MaskSettings(MaskOutput(threshold, probabilities, cleanup), key_frames, num_key_frames, mode),
            names=wanted,
        )
        return answers[0] if isinstance(phrases, str) else answers

    def chat(
        self,
        media: Media | None,
        question: str,
        *,
        history: History = (),
        threshold: float = 0.5,
        probabilities: bool = False,
        cleanup: Cleanup = Cleanup(),  # noqa: B008 -- frozen
        key_frames: KeyFrames = "uniform",
        num_key_frames: int = KEY_FRAMES,
        mode: Mode | None = None,
        **generation: Any,
    ) -> Answer:
        """Ask anything about a picture, a short video, or nothing but words (``media=None``).

        Args:
            history: ``history`` of an earlier answer about the same media, to go on talking; or pairs (question,
                answer), or messages ``{"role": "user" | "assistant", "content": text}``.
            threshold, probabilities, cleanup, key_frames, num_key_frames, mode, generation: as in [`segment`].
        """
        (answer,) = self._answerer.answer(
            media,
            [question],
            GenerationOptions(**generation),
            MaskSettings(MaskOutput(threshold, probabilities, cleanup), key_frames, num_key_frames, mode),
            names=[None],
            histories=[history],
        )
        return answer

    def ask(
        self,
        media: Media | None,
        questions: Sequence[str],
        *,
        histories: Sequence[History] | None = None,
        regions: Sequence[Region] | None = None,
        at_once: int | None = None,
        empty_masks: bool = False,
        threshold: float = 0.5,
        key_frames: KeyFrames = "uniform",
        num_key_frames: int = KEY_FRAMES,
        mode: Mode | None = None,
        **generation: Any,
    ) -> list[Answer]:
        """Many unrelated questions about one picture or short video, which is encoded once for all of them.

        Args:
            questions: each is put as it is, and knows nothing of the others.
            histories: the turns before each question, as in [`chat`]; None where every one is the first.
            regions: of a picture, a marked part for each question, which its text calls region1; as in [`describe`].
            at_once: how many are answered together; None for all. Fewer need less memory. Questions about regions are
                answered one by one.
            empty_masks: keep a segment for every ``[SEG]``, also where its mask is empty.
            threshold, key_frames, num_key_frames, mode, generation: as in [`segment`].

        Returns:
            an [`Answer`] for each, as [`chat`] would give.

        Raises:
            ValueError: histories or regions of another number than the questions; or as in [`describe`].
        """
        if isinstance(questions, str):
            raise ValueError(f"ask takes a list of questions; got one string: {questions!r:.100}. See chat")
        for name, given in (("history", histories), ("region", regions)):
            if given is not None and len(given) != len(questions):
                raise ValueError(f"ask needs one {name} per question; got {len(given)} for {len(questions)}")
        if regions is not None and (media is None or is_video(media)):
            raise ValueError("regions are parts of one picture; pass a picture with them, not a video or words alone")
        return self._answerer.answer(
            media,
            list(questions),
            GenerationOptions(**generation),
            MaskSettings(MaskOutput(threshold), key_frames, num_key_frames, mode, empty_masks),
            names=[None] * len(questions),
            histories=histories,
            regions=regions,
            at_once=at_once,
        )

    def caption(self, media: Media, **options: Any) -> Answer:
        """Describe a picture and point at what is named: segments carry their phrase and its characters in the text.

        Args:
            options: as in [`chat`].
        """
        return self.chat(media, GCG_REQUEST, **options)

    def describe(
        self,
        media: Media,
        regions: Region | Sequence[Region],
        *,
        requests: Sequence[str] | None = None,
        **generation: Any,
    ) -> list[str]:
        """Describe marked parts of a picture, one text each. Every request sees all of them.

        Args:
            regions: bool masks (H, W) or boxes (x0, y0, x1, y1) in pixels of the picture; one of them may come bare.
            requests: what to ask about each region, where they are called region1, region2, ...; None for the released
                models' own wording.

        Raises:
            ValueError: the model's family reads no regions, or a region is empty or outside the picture.
        """
        regions = as_regions(regions)
        if not regions:
            raise ValueError("describe needs at least one region: a bool mask (H, W) or a box (x0, y0, x1, y1)")
        if requests is not None and len(requests) != len(regions):
            raise ValueError(f"describe needs one request per region; got {len(requests)} for {len(regions)}")
        image = load_image(media)
        grids = self._answerer.region_grids(image, regions)
        questions = requests or [REGION_REQUEST.format(number=number) for number in range(1, len(grids) + 1)]
        view = self._asker.look([image], video=False, regions=grids)
        replies = self._asker.ask(view, questions, GenerationOptions(**generation), regions=grids)
        return [self.processor.clean(reply.raw)[0] for reply in replies]

    def track(
        self,
        media: Media,
        phrases: str | Sequence[str],
        *,
        key_frames: KeyFrames | Literal["compressed"] = "uniform",
        num_key_frames: int = KEY_FRAMES,
        mode: Mode | None = None,
        selections: Sequence[Selection] = ("uniform",),
        threshold: float = 0.5,
        probabilities: bool = False,
        cleanup: Cleanup = Cleanup(),  # noqa: B008 -- frozen
        sampling: dict[str, Any] | None = None,
        **generation: Any,
    ) -> Track:
        """Follow what phrases describe through a video of any length, lazily.

        Args:
            media: video file, folder of frames, or list of frames (arrays uint8 RGB); frames are decoded when they are
                needed.
            key_frames: which frames the language model sees: ``"uniform"`` over the video (measured better),
                ``"first"`` (the reference), frame indices (one, or a list or array of them), or ``"compressed"``
                (SaSaSa2VA checkpoints).
            num_key_frames: how many.
            mode: ``"released"`` or ``"consistent"``, see [`sa2va.inference.tracker`]; None takes what the checkpoint
                was made for.
            selections: with ``"compressed"``, how its hundred frames are chosen; several are averaged.
            threshold, probabilities, cleanup, generation: as in [`segment`].
            sampling: ``stride``, ``fps``, ``start``, ``end``, ``max_frames`` of [`open_media`].

        Returns:
            a [`Track`]: an iterator of frames whose memory use does not depend on the length of the video.
        """
        wanted = _phrases(phrases)
        options = GenerationOptions(**generation)
        output = MaskOutput(threshold, probabilities, cleanup)
        source = open_media(media, **(sampling or {}))
        tracker = VideoTracker(self.model, mode=mode, output=output)
        if isinstance(key_frames, str) and key_frames == "compressed":
            return sasasa2va.track(self._asker, source, wanted, selections, options, output)
        keys = key_frame_indices(key_frames, num_key_frames, frame_count(source))
        requests = [segmentation_request(phrase, video=True) for phrase in wanted]
        replies = self._asker.ask(self._asker.look_at_frames(source, keys), requests, options)
        for phrase, reply in zip(wanted, replies, strict=True):
            tracker.add_prompts(reply.prompts_KC, [phrase] * len(reply.prompts_KC))
        return Track(
            follow(tracker, source, keys),
            source=source.path,
            fps=source.fps,
            size=source.size,
            total=source.frame_count,
            reasons=unfound(self._asker, wanted, replies),
            pixels=lambda: (decoded.pixels for decoded in source),
        )

    def stream(
        self,
        *phrases: str | Sequence[str],
        mode: Mode | None = None,
        threshold: float = 0.5,
        probabilities: bool = False,
        cleanup: Cleanup = Cleanup(),  # noqa: B008 -- frozen
        **generation: Any,
    ) -> VideoTracker:
        """A tracker for frames that arrive one by one; phrases are looked for in the first frame it is given.

        Frames are uint8 RGB (H, W, 3), not OpenCV's BGR.

        Args:
            phrases: what to look for, one by one or as a list; their ids are 1, 2, ... in this order. More may be added
                at any time with ``tracker.add``.
            mode, threshold, probabilities, cleanup, generation: as in [`track`].

        Raises:
            ValueError: a phrase is blank or no text.
        """
        listed = phrases[0] if len(phrases) == 1 and not isinstance(phrases[0], str) else phrases
        first = _phrases(listed) if phrases else []
        options = GenerationOptions(**generation)

        def ask(wanted: Sequence[str], pixels: np.ndarray) -> list[Tensor]:
            view = self._asker.look([load_image(pixels)], video=False)
            requests = [segmentation_request(phrase, video=False) for phrase in wanted]
            return [reply.prompts_KC for reply in self._asker.ask(view, requests, options)]

        tracker = VideoTracker(self.model, mode=mode, output=MaskOutput(threshold, probabilities, cleanup), ask=ask)
        for phrase in first:
            tracker.add(phrase)
        return tracker

    def predict_forward(
        self,
        image: ImageSource | None = None,
        video: MediaSource | None = None,
        text: str | None = None,
        past_text: str = "",
        mask_prompts: Any = None,
        tokenizer: Any = None,
        processor: Any = None,
        max_new_tokens: int = 2048,
    ) -> dict[str, Any]:
        """Drop-in for the method of the released remote code: same arguments, same results.

        Differences, all of them where the released code raises: ``<image>`` in ``text`` is optional, a CPU will do,
        pictures and videos may be files, and ``past_text`` is returned.

        Args:
            image: a picture, as for [`load_image`].
            video: the frames, or a video as for [`open_media`]; where both are given, ``image`` is not looked at.
            mask_prompts: ``[masks]``, masks (N, H, W) of regions of the picture; InternVL families read them. One that
                falls between the samples of the grid is no token, as in the released code.
            tokenizer, processor: accepted and not needed.

        Returns:
            ``{"prediction": str with special tokens, "prediction_masks": [bool (T, H, W), ...], "past_text": str}``:
            one mask per ``[SEG]``; ``past_text`` goes with the same pictures into the next call, to go on talking.

        Raises:
            ValueError: no ``text``, a video without frames, or masks of another form.
        """
        return predict_forward(
            self._asker,
            image=image,
            video=video,
            text=text,
            past_text=past_text,
            mask_prompts=mask_prompts,
            max_new_tokens=max_new_tokens,
        )


def _phrases(phrases: Any) -> list[str]:
    several = isinstance(phrases, Iterable) and not isinstance(phrases, str | bytes)
    wanted: list[Any] = list(phrases) if several else [phrases]
    if not wanted or not all(isinstance(phrase, str) and phrase.strip() for phrase in wanted):
        raise ValueError(f"phrases must be a non-empty text or a list of them; got {phrases!r}")
    for phrase in wanted:
        check_text(phrase, "the phrase")
    return wanted
