"""The user's handle on a model: pictures, videos and words in; text and masks out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from sa2va import zoo
from sa2va.checkpoint.adapter import adapter_base, attach, is_adapter, open_adapter
from sa2va.inference.options import InferenceOptions, Options
from sa2va.inference.predict_forward import predict_forward
from sa2va.inference.sasasa2va import Selection
from sa2va.inference.scene import Scene, checked_phrases
from sa2va.inference.tracker import VideoTracker
from sa2va.inference.video_result import Track
from sa2va.inference.vlm import VLMRunner
from sa2va.media.open import ImageSource, MediaSource, Picture, open_media
from sa2va.model.quantization import Quantization
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.processing.regions import Region
from sa2va.results.answer import Answer
from sa2va.results.history import History
from sa2va.runtime import default_device, default_dtype, present_device


class Sa2VA:
    """A loaded model and its processor, ready to answer.

    Every method opens its medium, asks, and closes it; [`open`] keeps it for several requests. ``**options`` are those
    of [`InferenceOptions`] and its parts:

    * ``threshold``: probability above which a pixel belongs to an object; 0.5 if not given. ``probabilities``: keep
      float32 probabilities in every segment. ``cleanup``: holes to fill, specks to remove and the like.
    * ``key_frames``, ``num_key_frames``, ``mode``: for videos, see [`track`].
    * ``max_new_tokens``, ``temperature``, ``top_p``, ``top_k``, ``repetition_penalty``, ``seed``: see
      [`GenerationOptions`].

    Attributes:
        model: the [`Sa2VAModel`]. processor: its [`Sa2VAProcessor`].
    """

    def __init__(self, model: Sa2VAModel, processor: Sa2VAProcessor):
        self.model = model.eval()
        self.processor = processor
        self._runner = VLMRunner(model, processor)

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
        """Open a picture or video for any number of requests, which share what the model makes of it. ::

            with model.open("street.jpg") as scene:
                cars = scene.segment("all cars")
                answer = scene.chat("What is the weather like?")

        Args:
            media: a picture, a video, or None to talk without one; see [`open_media`].
            stride, fps, start, end, max_frames: which frames of a video count, see [`open_media`].

        Raises:
            FileNotFoundError, ValueError: there is nothing to read, or it is damaged.
        """
        if media is None:
            return Scene(self._runner, None)
        source = open_media(media, stride=stride, fps=fps, start=start, end=end, max_frames=max_frames)
        return Scene(self._runner, source)

    def segment(
        self, media: MediaSource, phrases: str | Sequence[str], **options: Unpack[Options]
    ) -> Answer | list[Answer]:
        """Find what phrases (or questions) describe.

        Args:
            media: a picture, or a short video whose masks fit in memory; for long ones see [`track`]. Arrays are uint8
                RGB (H, W, 3); what OpenCV reads is BGR: pass ``frame[..., ::-1]``.
            phrases: one, or several that are answered together; a phrase with a question mark is asked as a question.
            options: see [`Sa2VA`].

        Returns:
            an [`Answer`] for a single phrase, a list of them for a list. One that points at nothing has no segments,
            and ``reason`` says why.
        """
        checked_phrases(phrases)  # before anything is decoded
        with self.open(media) as scene:
            return scene.segment(phrases, **options)

    def chat(
        self, media: MediaSource | None, question: str, *, history: History = (), **options: Unpack[Options]
    ) -> Answer:
        """Ask anything about a picture, a short video, or nothing but words (``media=None``).

        Args:
            history: ``history`` of an earlier answer about the same media, to go on talking; or pairs (question,
                answer), or messages ``{"role": "user" | "assistant", "content": text}``.
            options: see [`Sa2VA`].
        """
        with self.open(media) as scene:
            return scene.chat(question, history=history, **options)

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
        """Many unrelated questions about one picture or short video.

        Args:
            questions: each is put as it is, and knows nothing of the others.
            histories: the turns before each question, as in [`chat`]; None where every one is the first.
            regions: of a picture, a marked part for each question, which its text calls region1; as in [`describe`].
            at_once: how many are answered together; None for all. Fewer need less memory. Questions about regions are
                answered one by one.
            empty_masks: keep a segment for every ``[SEG]``, also where its mask is empty.
            options: see [`Sa2VA`].

        Returns:
            an [`Answer`] for each, as [`chat`] would give.

        Raises:
            ValueError: histories or regions of another number than the questions; or as in [`describe`].
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

    def caption(self, media: MediaSource, **options: Unpack[Options]) -> Answer:
        """Describe a picture and point at what is named: segments carry their phrase and its characters in the text.

        Args:
            options: see [`Sa2VA`].
        """
        with self.open(media) as scene:
            return scene.caption(**options)

    def describe(
        self,
        media: MediaSource,
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
            generation: fields of [`GenerationOptions`], such as ``max_new_tokens``.

        Raises:
            ValueError: the model's family reads no regions, or a region is empty or outside the picture.
        """
        with self.open(media) as scene:
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
        """Follow what phrases describe through a video of any length, lazily.

        Args:
            media: video file, folder of frames, or list of frames (arrays uint8 RGB); frames are decoded when they are
                needed.
            selections: with ``key_frames="compressed"``, how its hundred frames are chosen; several are averaged.
            sampling: ``stride``, ``fps``, ``start``, ``end``, ``max_frames`` of [`open_media`].
            options: see [`Sa2VA`]; for videos: ``key_frames``, which frames the language model sees: ``"uniform"`` over
                the video (measured better), ``"first"`` (the reference), frame indices (one, or a list or array of
                them), or ``"compressed"`` (SaSaSa2VA checkpoints); ``num_key_frames``, how many; ``mode``,
                ``"released"`` or ``"consistent"``, see [`sa2va.inference.tracker`], None for what the checkpoint was
                made for.

        Returns:
            a [`Track`]: an iterator of frames whose memory use does not depend on the length of the video.
        """
        checked_phrases(phrases)
        InferenceOptions.of(**options)
        with self.open(media, **(sampling or {})) as scene:
            return scene.track(phrases, selections=selections, **options)

    def stream(self, *phrases: str | Sequence[str], **options: Unpack[Options]) -> VideoTracker:
        """A tracker for frames that arrive one by one; phrases are looked for in the first frame it is given.

        Frames are uint8 RGB (H, W, 3), not OpenCV's BGR.

        Args:
            phrases: what to look for, one by one or as a list; their ids are 1, 2, ... in this order. More may be added
                at any time with ``tracker.add``.
            options: see [`Sa2VA`].

        Raises:
            ValueError: a phrase is blank or no text.
        """
        listed = phrases[0] if len(phrases) == 1 and not isinstance(phrases[0], str) else phrases
        first = checked_phrases(listed) if phrases else []
        chosen = InferenceOptions.of(**options)

        def ask(wanted: Sequence[str], pixels: np.ndarray) -> list[Tensor]:
            with Scene(self._runner, Picture(pixels)) as scene:
                return scene.mask_prompts(wanted, chosen.generation)

        tracker = VideoTracker(self.model, mode=chosen.mode, output=chosen.masks, ask=ask)
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
            self._runner,
            image=image,
            video=video,
            text=text,
            past_text=past_text,
            mask_prompts=mask_prompts,
            max_new_tokens=max_new_tokens,
        )
