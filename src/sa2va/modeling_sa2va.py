"""The model as transformers' users meet it: loaded from and saved to folders, known to the auto classes, and with the
released ``predict_forward``. What it computes is in [`sa2va.model.network`]."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Sam2VideoModel,
)

from sa2va.atomic import naming, new_file_mode
from sa2va.checkpoint.build import build_from_parts
from sa2va.checkpoint.loading import open_checkpoint
from sa2va.checkpoint.original_decoder import with_original_decoder
from sa2va.checkpoint.propagators import load_propagator
from sa2va.checkpoint.released_config import config_from_released
from sa2va.hub import HUB_OPTIONS
from sa2va.inference.engine import Engine
from sa2va.inference.predict_forward import predict_forward
from sa2va.media.open import ImageSource, MediaSource
from sa2va.model.configuration import Sa2VAConfig
from sa2va.model.network import Sa2VANetwork
from sa2va.model.quantization import Quantization, check_widths, main_device, quantization_settings
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.runtime import no_weight_bar, require_extra

if TYPE_CHECKING:
    from sa2va.model.propagator import PropagatorModel


class Sa2VAModel(Sa2VANetwork):
    """Sa2VA as a transformers model: a vision-language model, SAM 2, and the projection between them.

    For requests about images and videos use [`sa2va.Sa2VA`], which adds the processor.

    Attributes:
        vlm: the transformers vision-language model.
        sam2: a ``Sam2VideoModel``; its parts are used, its ``forward`` never is.
        projection: from the hidden state at ``[SEG]`` to a prompt of SAM 2's mask decoder.
        original_mask_decoder: SAM 2's own mask decoder in Sa2VA-i checkpoints, else None. ``sam2.mask_decoder`` is the
            fine-tuned one.
        propagator: another model that carries masks through videos; None without one.
        folder: where the weights were loaded from; None for a model made otherwise.
        processor: loaded from that folder when [`predict_forward`] first needs it.

    Examples:
        >>> from sa2va import Sa2VAModel
        >>> from sa2va.zoo import TINY
        >>> model = Sa2VAModel.from_pretrained(TINY)
        >>> model.config.family.name
        'internvl'
        >>> model.predict_forward(image="shapes.png", text="<image>What color is the car?")["prediction"]
        'blue<|im_end|>'
    """

    folder: Path | None = None
    processor: Any = None  # a Sa2VAProcessor; transformers evaluates these annotations

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *model_args: Any,
        config: Sa2VAConfig | None = None,
        dtype: torch.dtype | str | None = None,
        quantization: Quantization | None = None,
        sam2: str | Path | None = None,
        propagator: str | Path | None = None,
        **kwargs: Any,
    ) -> Sa2VAModel:
        """Load a released checkpoint or one of ours, strictly, without remote code.

        Args:
            pretrained_model_name_or_path: local folder or hub id; ``config.json`` tells which layout it has.
            model_args: passed on to the constructor.
            config: overrides the folder's own.
            dtype: of the weights in memory; None or ``"auto"`` takes the one in ``config.json``, else float32.
                ``torch_dtype`` is its older name.
            quantization: ``"int8"`` or ``"nf4"`` quantises the linear layers of the language model, on CUDA or CPU.
                Everything else keeps its dtype.
            sam2: SAM 2's own weights (Meta's ``.pt`` file, or a folder or hub id in transformers' layout), whose mask
                decoder and memory carry masks through videos in mode ``"consistent"``. The released checkpoints need
                ``"facebook/sam2-hiera-large"`` for it; those of Sa2VA-i have both decoders.
            propagator: another model that carries masks through videos in that mode, with its own image encoder: SAM 2
                or 2.1 of any size, SAM 3, or EdgeTAM, see [`sa2va.checkpoint.propagators.load_propagator`]. It is no
                part of the checkpoint: [`save_pretrained`] leaves it out.
            kwargs: as in transformers: ``device_map``, ``attn_implementation``, ``quantization_config`` (which is given
                the list of layers to skip), ``max_memory``, and for a hub id ``revision``, ``cache_dir``, ``token``,
                ``local_files_only``. ``trust_remote_code`` and ``use_flash_attn`` are accepted for code written for the
                releases, and ignored.

        Raises:
            ValueError: a tensor is missing, unexpected or misshapen, or a file is damaged; the message names it. Or the
                download failed, or this device or checkpoint cannot be quantised this way.
            ImportError: ``quantization`` or ``device_map`` needs a package that is not installed.
        """
        if pretrained_model_name_or_path is None:  # transformers' own way to load a given state dict
            return super().from_pretrained(None, *model_args, config=config, dtype=dtype, **kwargs)
        device_map = kwargs.get("device_map")
        # What is missing here is said before anything is downloaded.
        settings = quantization_settings(quantization, kwargs.pop("quantization_config", None), main_device(device_map))
        if device_map is not None:
            require_extra("accelerate", "multi-gpu")
        hub = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        for ignored in ("trust_remote_code", "use_flash_attn"):
            kwargs.pop(ignored, None)
        older = kwargs.pop("torch_dtype", None)
        dtype = older if dtype is None else dtype
        checkpoint = open_checkpoint(pretrained_model_name_or_path, config, **hub)
        others = {key: value for key, value in hub.items() if key != "revision"}  # that is the checkpoint's
        if sam2 is not None:
            checkpoint = with_original_decoder(checkpoint, sam2, **others)
        with no_weight_bar():
            carrier = None if propagator is None else load_propagator(propagator, **others)
        chosen = checkpoint.dtype if dtype in (None, "auto") else dtype
        check_widths(settings, checkpoint.config.get_text_config())
        if quantization == "nf4":
            settings.bnb_4bit_compute_dtype = getattr(torch, chosen) if isinstance(chosen, str) else chosen
        with no_weight_bar():
            model = super().from_pretrained(
                None,
                *model_args,
                config=checkpoint.config,
                state_dict=checkpoint.tensors,
                dtype=chosen,
                quantization_config=settings,
                **kwargs,
            )
        model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        model.folder = checkpoint.folder
        if carrier is not None:
            model.attach_propagator(carrier)
        return model

    def attach_propagator(self, propagator: PropagatorModel) -> None:
        """Let another model carry masks through videos; it gets the device and dtype of SAM 2."""
        weight = self.sam2.no_memory_embedding
        self.propagator = cast(Any, propagator).to(weight.device, weight.dtype).eval()
        names = {f"propagator.{name}" for name in propagator.state_dict()}
        self._keys_to_ignore_on_save = {*(self._keys_to_ignore_on_save or ()), *names}

    @classmethod
    def from_parts(
        cls,
        vlm: str | Path | PreTrainedModel,
        sam2: str | Path | Sam2VideoModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        template: str | None = None,
    ) -> Sa2VAModel:
        """Build an untrained Sa2VA from a base vision-language model and SAM 2.

        Sa2VA's five tokens are added to the tokenizer in the released order, the embeddings are resized to exactly its
        length, and the projection gets torch's default initialisation.

        Args:
            vlm: a loaded model, or the folder or hub id of one (transformers' layout, or InternVL's own).
            sam2: a loaded ``Sam2VideoModel``, a folder or hub id in transformers' layout, or Meta's ``.pt`` file.
            tokenizer: the base model's; it is changed in place. None loads it from ``vlm``, which must be a folder or
                id then.
            template: chat template of an InternVL model; None means ``"qwen_chat"``.
        """
        return build_from_parts(cls, vlm, sam2, tokenizer=tokenizer, template=template)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write a checkpoint in our layout.

        Args:
            save_directory: folder to write to.
            kwargs: as in transformers. Its ``save_original_format`` is off by default, because it would rename tensors
                of the vision-language model as in transformers' own older checkpoints.

        Raises:
            ValueError: the model is quantised: its own weights are gone.
            OSError: the folder is full, read-only or not permitted.
        """
        if getattr(self, "hf_quantizer", None) is not None:
            raise ValueError(
                "a quantised model has lost its own weights and is not saved; keep the checkpoint it was loaded from "
                "and quantise that when it is loaded"
            )
        kwargs.setdefault("save_original_format", False)
        with naming(save_directory):
            super().save_pretrained(save_directory, **kwargs)
        for path in Path(save_directory).glob("*.safetensors"):
            path.chmod(new_file_mode(path.parent))  # safetensors makes every file it writes private

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
        """[`sa2va.Sa2VA.predict_forward`], for code written for the releases that calls it on a model of an auto class.

        Args:
            image: as in [`sa2va.Sa2VA.predict_forward`], like the arguments up to ``mask_prompts``.
            video: the frames, or a video.
            text: the request.
            past_text: the conversation so far.
            mask_prompts: regions of the image.
            tokenizer: needed only if the model was not loaded from a folder.
            processor: the same.
            max_new_tokens: limit on the length of the answer.
        """
        engine = Engine(self, self._processor_for(tokenizer, processor))
        steps = predict_forward(
            engine,
            image=image,
            video=video,
            text=text,
            past_text=past_text,
            mask_prompts=mask_prompts,
            max_new_tokens=max_new_tokens,
        )
        return engine.run(steps)

    def _processor_for(self, tokenizer: Any, processor: Any) -> Sa2VAProcessor:
        """The processor given, else that of the folder the model came from, else one made of the given tokenizer."""
        if isinstance(processor, Sa2VAProcessor):
            return processor
        if self.folder is not None:
            if self.processor is None:
                self.processor = Sa2VAProcessor.from_pretrained(self.folder, self.config)
            return self.processor
        tokenizer = getattr(processor, "tokenizer", None) if tokenizer is None else tokenizer
        if tokenizer is None:
            raise ValueError("this model was not loaded from a folder; pass predict_forward its tokenizer=")
        return Sa2VAProcessor(tokenizer, self.config)


class ReleasedConfig(Sa2VAConfig):
    """Lets transformers' ``AutoConfig`` read a released ``config.json`` as a [`Sa2VAConfig`]."""

    model_type = "sa2va_chat"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        return Sa2VAConfig.from_dict(config_from_released(config_dict).to_dict(), **kwargs)


class SaSaSa2VAConfig(ReleasedConfig):
    """The same for SaSaSa2VA's exports."""

    model_type = "sasasa2va_chat"


AutoConfig.register(Sa2VAConfig.model_type, Sa2VAConfig)
AutoConfig.register(ReleasedConfig.model_type, ReleasedConfig)
AutoConfig.register(SaSaSa2VAConfig.model_type, SaSaSa2VAConfig)
for _auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
    _auto_class.register(Sa2VAConfig, Sa2VAModel)
