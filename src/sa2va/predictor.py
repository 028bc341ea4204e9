"""The main entry point: images, videos and words in; text and masks out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
import torch
from torch import Tensor

from sa2va import zoo
from sa2va.checkpoint.adapter import adapter_base, attach, is_adapter, open_adapter
from sa2va.inference.engine import Engine
from sa2va.inference.options import InferenceOptions, Options
from sa2va.inference.predict_forward import predict_forward
from sa2va.inference.replies import Reply, Request, replies
from sa2va.inference.sasasa2va import Selection
from sa2va.inference.scene import Scene, checked_phrases
from sa2va.inference.tracker import VideoTracker
from sa2va.inference.video_result import Track
from sa2va.media.frames import FrameSource
from sa2va.media.open import ImageSource, MediaSource, Origin, Picture, load_image, open_media
from sa2va.model.quantization import Quantization
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.processing.regions import Region
from sa2va.results.answer import Answer
from sa2va.results.history import History
from sa2va.runtime import default_device, default_dtype, present_device


class Sa2VA:
    """A loaded model with its processor: segments, chats, captions, describes regions and tracks.

    Each method opens the medium, asks and closes it; [`open`] keeps it open for several requests. ``**options`` are
    keywords of [`InferenceOptions`] and its parts:

    * ``threshold``: probability above which a pixel belongs to an object (0.5). ``probabilities``: keep float32
      probabilities in every segment. ``cleanup``: a [`Cleanup`][sa2va.masks.mask_ops.Cleanup] of the masks.
    * ``key_frames``, ``num_key_frames``, ``mode``, ``memory``, ``ask_every``: for videos, see [`track`].
    * ``check_presence``: for phrases of [`segment`], [`track`] and [`stream`]: the model is also asked for yes or no
      whether there is such a thing, and a no leaves the phrase without masks (False).
    * Second looks at pictures. ``zoom``: ask again in a window around what a phrase has found, and tile by tile where
      it has found nothing in a large picture. ``instances``: a segment for each object that a phrase means. ``refine``:
      ``"sam"`` draws masks anew with SAM 2's original decoder (load it with ``sam2=``), ``"matting"`` adds
      ``Segment.alpha`` for cut-outs, with the VitMatte weights ``matting`` (hub id or folder).
    * ``max_new_tokens``, ``temperature``, ``top_p``, ``top_k``, ``repetition_penalty``, ``seed``: see
      [`sa2va.model.generation.GenerationOptions`].

    Attributes:
        model: the [`Sa2VAModel`].
        processor: its [`Sa2VAProcessor`].
        engine: what answers the requests of all threads together, see [`sa2va.inference.engine.Engine`].

    Examples:
        >>> from sa2va import Sa2VA
        >>> model = Sa2VA.from_pretrained("tiny")
        >>> answer = model.segment("shapes.png", "the yellow cloud")
        >>> len(answer.segments)
        1
        >>> model.chat("shapes.png", "What color is the car?").text
        'blue'
        >>> with model.open("shapes.png") as scene:  # the image is encoded once
        ...     cloud, letter = scene.segment(["the yellow cloud", "the letter Z"])
        >>> track = model.track("shapes.mp4", "the orange hat", sampling={"max_frames": 2})
        >>> [frame.index for frame in track]
        [0, 1]
    """

    def __init__(self, model: Sa2VAModel, processor: Sa2VAProcessor):
        self.model = model.eval()
        self.processor = processor
        self.engine = Engine(model, processor)

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
                ``sa2va models`` lists; or the folder of an adapter, which names its base model.
            device: where to put the model; None takes the best available. Not together with ``device_map``.
            dtype: of the weights; None means float32 on CPU and half precision on accelerators.
            device_map: ``"auto"`` or a dict distributes the model over devices (needs accelerate).
            quantization: ``"int8"`` or ``"nf4"`` quantises the linear layers of the language model (needs bitsandbytes;
                CUDA or CPU). Everything else stays in ``dtype``.
            adapter: folder or hub id of a LoRA adapter for this model (needs peft). It stays separate from the weights;
                ``sa2va merge`` merges it.
            kwargs: as in [`Sa2VAModel.from_pretrained`]; among them ``sam2=``, SAM 2's own weights, whose decoder
                carries masks through videos better than that of the released checkpoints, and ``propagator=``, another
                model that does (SAM 2.1, SAM 3, EdgeTAM).

        Raises:
            ValueError: the source is no checkpoint, the download failed, or a tensor is missing, unexpected or
                misshapen; the adapter belongs to another model; the device does not support quantised weights.
            ImportError: an option needs a package that is not installed; the message says how to install it.
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

    def open(
        self,
        media: MediaSource | None,
        *,
        stride: int = 1,
        fps: float | None = None,
        start: int | float | None = None,
        end: int | float | None = None,
        max_frames: int | None = None,
    ) -> Scene:
        """Open an image or video for any number of requests, which share its encoding.

        Args:
            media: an image, a video, or None to talk without one; see [`open_media`].
            stride, fps, start, end, max_frames: which frames of a video to use, see [`open_media`].

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is neither an image nor a video, or is damaged.
        """
        if media is None:
            return Scene(self.engine, None)
        sampling = {"stride": stride, "fps": fps, "start": start, "end": end, "max_frames": max_frames}
        return Scene(self.engine, open_media(media, **sampling), Origin(media, sampling))

    def answers(self, requests: Iterable[Request], *, ahead: int = 16) -> Iterator[Reply]:
        """Answer requests about any number of media, in order and lazily.

        Media are opened ahead, and what is asked about several of them is computed together: their pictures are encoded
        as batches, and their answers written at once. A request that fails yields a reply with its error, and the
        others are answered.

        Args:
            requests: any iterable; it is read only so far ahead.
            ahead: how many requests are worked on at once. More fill a GPU better and take more memory.

        Raises:
            ValueError: ``ahead`` is not a whole number of at least 1.

        Examples:
            >>> from pathlib import Path
            >>> from sa2va import Request, Sa2VA
            >>> model = Sa2VA.from_pretrained("tiny")
            >>> paths = sorted(Path().glob("*.png"))
            >>> for reply in model.answers(Request(path, phrases="the yellow cloud") for path in paths):
            ...     print(reply.request.media, reply.error or reply.answers[0].text)
            shapes.png Sure.
        """
        if not isinstance(ahead, int) or ahead < 1:
            raise ValueError(f"ahead is a whole number of at least 1; got {ahead!r}")
        return replies(self.engine, self.open, requests, ahead)

    def segment(
        self,
        media: MediaSource,
        phrases: str | Sequence[str] | None = None,
        *,
        box: Sequence[float] | None = None,
        points: Sequence[Sequence[float]] | None = None,
        labels: Sequence[int] | None = None,
        mask: np.ndarray | None = None,
        on_text: Callable[[str], None] | None = None,
        **options: Unpack[Options],
    ) -> Answer | list[Answer]:
        """Segment what phrases or questions describe, or what a box, clicks or a rough mask mark in a picture.

        Args:
            media: an image, or a short video whose masks fit in memory; for long ones see [`track`]. Arrays are uint8
                RGB (H, W, 3); OpenCV reads BGR: pass ``frame[..., ::-1]``.
            phrases: one phrase, or several that are answered as a batch. A phrase with a question mark is asked as a
                question.
            box: x0, y0, x1, y1 in pixels around one object, instead of phrases. The language model is not asked: SAM 2
                is prompted as in its own paper (with the original decoder, where the model has it).
            points: the same with clicks (x, y) in pixels, in the box if there is one. labels: for each, 1 inside (the
                default) or 0 outside.
            mask: bool (H, W), the same with a rough mask of the object, alone or beside a box or points. SAM 2 draws it
                anew.
            on_text: as in [`chat`]; for a single phrase.
            options: see [`Sa2VA`].

        Returns:
            an [`Answer`] for a single phrase, a box, points or a mask; a list of them for a list. If nothing was found,
            it has no segments and its ``reason`` says why.

        Raises:
            ValueError: a phrase is blank, the medium cannot be read, or an option is out of range.
        """
        if box is None and points is None and mask is None:
            checked_phrases(phrases)  # before anything is decoded
        with self.open(media) as scene:
            return scene.segment(phrases, box=box, points=points, labels=labels, mask=mask, on_text=on_text, **options)

    def chat(
        self,
        media: MediaSource | None,
        question: str,
        *,
        history: History = (),
        on_text: Callable[[str], None] | None = None,
        **options: Unpack[Options],
    ) -> Answer:
        """Ask anything about an image or a short video, or talk without one (``media=None``).

        Args:
            media: an image, a video, or None.
            question: the user's words.
            history: ``history`` of an earlier answer about the same medium, to continue the conversation; or pairs
                (question, answer), or messages ``{"role": "user" | "assistant", "content": text}``.
            on_text: called with each new piece of the answer's text as it is written, special tokens included. What it
                raises cancels the request and is raised here. It cannot ask the same model.
            options: see [`Sa2VA`].

        Raises:
            ValueError: the question or history is malformed, the medium cannot be read, or an option is out of range.
        """
        with self.open(media) as scene:
            return scene.chat(question, history=history, on_text=on_text, **options)

    def ask(
        self,
        media: MediaSource | None,
        questions: Sequence[str],
        *,
        histories: Sequence[History] | None = None,
        regions: Sequence[Region] | None = None,
        at_once: int | None = None,
        empty_masks: bool = False,
        **options: Unpack[Options],
    ) -> list[Answer]:
        """Ask many independent questions about one image or short video.

        Args:
            media: an image, a video, or None.
            questions: each is asked as it is, without knowledge of the others.
            histories: the turns before each question, as in [`chat`]; None if there are none.
            regions: one region of the image per question, which its text calls region1; as in [`describe`].
            at_once: batch size; None answers all together. Fewer need less memory. Questions about regions are answered
                one by one.
            empty_masks: keep a segment for every ``[SEG]``, even if its mask is empty.
            options: see [`Sa2VA`].

        Returns:
            for each question an [`Answer`], the same as that of [`chat`].

        Raises:
            ValueError: the number of histories or regions differs from that of the questions; or as in [`describe`].
        """
        with self.open(media) as scene:
            return scene.ask(
                questions,
                histories=histories,
                regions=regions,
                at_once=at_once,
                empty_masks=empty_masks,
                **options,
            )

    def caption(
        self, media: MediaSource, *, on_text: Callable[[str], None] | None = None, **options: Unpack[Options]
    ) -> Answer:
        """Write a grounded caption: each segment has its phrase and the characters it spans in the text.

        Args:
            media: an image or a short video.
            on_text: as in [`chat`].
            options: see [`Sa2VA`].
        """
        with self.open(media) as scene:
            return scene.caption(on_text=on_text, **options)

    def describe(
        self,
        media: MediaSource,
        regions: Region | Sequence[Region],
        *,
        requests: Sequence[str] | None = None,
        **generation: Any,
    ) -> list[str]:
        """Describe regions of an image, one text each. Every request sees all regions.

        Args:
            media: an image.
            regions: bool masks (H, W) or boxes (x0, y0, x1, y1) in pixels; a single one needs no list.
            requests: what to ask about each region; they are called region1, region2, ... None means the wording of the
                released models.
            generation: fields of [`sa2va.model.generation.GenerationOptions`], such as ``max_new_tokens``.

        Raises:
            ValueError: the family has no region prompts, or a region is empty or outside the image.
        """
        # As an image, also where a file could be opened as a video: its first frame.
        source = media if isinstance(media, FrameSource) else Picture(load_image(cast("ImageSource", media)))
        with self.open(source) as scene:
            return scene.describe(regions, requests=requests, **generation)

    def track(
        self,
        media: MediaSource,
        phrases: str | Sequence[str],
        *,
        selections: Sequence[Selection] = ("uniform",),
        sampling: dict[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Track:
        """Lazily track what phrases describe through a video of any length.

        Args:
            media: a video file, a folder of frames, or a list of frames (arrays uint8 RGB), decoded on demand.
            phrases: one phrase, or several.
            selections: how the hundred frames of ``key_frames="compressed"`` are chosen; several are averaged.
            sampling: ``stride``, ``fps``, ``start``, ``end``, ``max_frames`` of [`open_media`].
            options: see [`Sa2VA`]. For videos: ``key_frames``, which frames the language model sees, ``"uniform"`` over
                the video (measured better), ``"first"`` (the reference), frame indices (one, or a list or array), or
                ``"compressed"`` (SaSaSa2VA checkpoints); ``num_key_frames``, their number; ``mode``, ``"released"`` or
                ``"consistent"``, see [`sa2va.inference.tracker`], or None for the one the checkpoint was made for;
                ``memory``, which frames are remembered and read, see [`sa2va.inference.memory_policies`];
                ``ask_every``, a number of frames or ``"scene"``: the language model sees key frames of every part of so
                many frames, or of every scene between two cuts. What it points at joins the object that is followed
                there or has left, else it gets an id of its own.

        Returns:
            a [`Track`]: an iterator of frames whose memory use does not depend on the length of the video.

        Raises:
            ValueError: a phrase is blank, the medium cannot be read, or an option is out of range.
        """
        checked_phrases(phrases)
        InferenceOptions.of(**options).check_looks(picture=False, phrases=True)
        with self.open(media, **(sampling or {})) as scene:
            return scene.track(phrases, selections=selections, **options)

    def stream(self, *phrases: str | Sequence[str], **options: Unpack[Options]) -> VideoTracker:
        """A tracker for frames that arrive one by one, such as a camera's. It looks for the phrases in its first frame.

        Frames are uint8 RGB (H, W, 3), not OpenCV's BGR.

        Args:
            phrases: what to look for, as arguments or as a list. Their ids are 1, 2, ... in this order; more may be
                added at any time with [`VideoTracker.add`].
            options: see [`Sa2VA`].

        Raises:
            ValueError: a phrase is blank or not text.
        """
        listed = phrases[0] if len(phrases) == 1 and not isinstance(phrases[0], str) else phrases
        first = checked_phrases(listed) if phrases else []
        chosen = InferenceOptions.of(**options)
        chosen.check_looks(picture=False, phrases=True)

        def ask(wanted: Sequence[str], frames: Sequence[np.ndarray]) -> list[Tensor]:
            shown = frames[0] if len(frames) == 1 else list(frames)
            with Scene(self.engine, open_media(shown)) as scene:
                return scene.mask_prompts(wanted, chosen)

        tracker = VideoTracker(
            self.model,
            mode=chosen.mode,
            output=chosen.masks,
            memory=chosen.memory,
            ask=ask,
            ask_every=chosen.ask_every,
            num_key_frames=chosen.num_key_frames,
        )
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
        """Drop-in replacement for the method of the released remote code: same arguments, same results.

        It accepts more where the released code raises: ``<image>`` in ``text`` is optional, the model may be on a CPU,
        images and videos may be files, and ``past_text`` is returned.

        Args:
            image: an image, as for [`sa2va.media.image.load_image`].
            video: the frames, or a video as for [`open_media`]. If both are given, ``image`` is ignored.
            text: the request.
            past_text: ``past_text`` of the result before, to continue the conversation.
            mask_prompts: ``[masks]``, masks (N, H, W) of regions of the image (InternVL families). One that falls
                between the sampling points of the grid gets no token, as in the released code.
            tokenizer, processor: accepted and ignored.
            max_new_tokens: limit on the length of the answer.

        Returns:
            ``{"prediction": str with special tokens, "prediction_masks": [bool (T, H, W), ...], "past_text": str}``,
            with one mask per ``[SEG]``.

        Raises:
            ValueError: there is no ``text``, the video has no frames, or the masks are malformed.
        """
        steps = predict_forward(
            self.engine,
            image=image,
            video=video,
            text=text,
            past_text=past_text,
            mask_prompts=mask_prompts,
            max_new_tokens=max_new_tokens,
        )
        return self.engine.run(steps)
