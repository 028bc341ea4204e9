"""The configuration of a model: one of the vision-language model, one of SAM 2, and what joins them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, Sam2VideoConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto import AutoConfig

from sa2va.model.families import Family, family_of

#: Side of one memory cell, in pixels of the grounding image.
STRIDE = 16


def hiera_large_config() -> Sam2VideoConfig:
    """SAM 2.0 with the Hiera-L encoder: the grounding encoder of every released checkpoint."""
    return sam2_config(
        image_size=1024,
        embed_dim=144,
        num_heads=2,
        blocks=(2, 6, 36, 4),
        global_blocks=(23, 33, 43),
        windows=(8, 4, 16, 8),
        width=256,
    )


def sam2_config(
    *,
    image_size: int,
    embed_dim: int,
    num_heads: int,
    blocks: tuple[int, int, int, int],
    global_blocks: tuple[int, ...],
    windows: tuple[int, int, int, int],
    width: int,
    memory_layers: int = 4,
    memory_mlp: int = 2048,
    decoder_heads: int = 8,
    decoder_mlp: int = 2048,
    background: int = 7,
    version: Literal["2.0", "2.1"] = "2.0",
) -> Sam2VideoConfig:
    """A SAM 2 config of any size.

    Args:
        image_size: side of the square input, pixels; a multiple of 32.
        embed_dim: channels of the first Hiera stage; they double with each stage, as do ``num_heads``.
        blocks: blocks per stage. global_blocks: indices of blocks with global attention. windows: window side per
            stage.
        width: channels of the feature pyramid, decoder and memory attention.
        memory_layers, memory_mlp: depth and feed-forward width of memory attention.
        decoder_heads, decoder_mlp: attention heads and feed-forward width of the mask decoder.
        background: side of the position embedding that is stretched over the image.
        version: 2.0 (the released checkpoints) lacks the occlusion embedding and the temporal code of object
            pointers.
    """
    dims = [embed_dim * 2**stage for stage in range(4)]
    config = Sam2VideoConfig(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": embed_dim,
                "num_attention_heads": num_heads,
                "blocks_per_stage": list(blocks),
                "embed_dim_per_stage": dims,
                "num_attention_heads_per_stage": [num_heads * 2**stage for stage in range(4)],
                "window_size_per_stage": list(windows),
                "global_attention_blocks": list(global_blocks),
                "window_positional_embedding_background_size": [background] * 2,
            },
            "backbone_channel_list": dims[::-1],
            "fpn_hidden_size": width,
        },
        prompt_encoder_config={"hidden_size": width},
        mask_decoder_config={"hidden_size": width, "num_attention_heads": decoder_heads, "mlp_dim": decoder_mlp},
        enable_occlusion_spatial_embedding=version == "2.1",
        enable_temporal_pos_encoding_for_object_pointers=version == "2.1",
        memory_attention_hidden_size=width,
        memory_attention_num_layers=memory_layers,
        memory_attention_feed_forward_hidden_size=memory_mlp,
        memory_encoder_hidden_size=width,
        mask_downsampler_embed_dim=width,
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=4 * width,
    )
    set_grounding_side(config, image_size)
    return config


def set_grounding_side(config: Sam2VideoConfig, side: int) -> None:
    """Let SAM 2 see pictures of another size, in place; no weight has another shape.

    Args:
        side: of the square input, pixels; a multiple of 32.
    """
    vision: Any = config.vision_config
    prompts: Any = config.prompt_encoder_config
    config.image_size = prompts.image_size = side
    vision.backbone_config.image_size = [side, side]
    vision.backbone_feature_sizes = [[side // stride] * 2 for stride in (4, 8, 16)]
    config.memory_attention_rope_feat_sizes = [side // STRIDE] * 2


@strict
class Sa2VAConfig(PreTrainedConfig):
    """Configuration of a [`sa2va.Sa2VAModel`]: one of the vision-language model, one of SAM 2, and what joins them.

    Attributes:
        vlm_config: configuration of the vision-language model (``internvl``, ``qwen2_5_vl`` or ``qwen3_vl``); a dict
            is converted.
        sam2_config: configuration of SAM 2; a dict is converted, None means SAM 2.0 with Hiera-L.
        seg_token_id: id of ``[SEG]`` in the tokenizer.
        template: chat template of the InternVL families: ``"qwen_chat"``, ``"internlm2_chat"`` or ``"phi3_chat"``; None
            for Qwen families, whose tokenizer files contain the template.
        max_tiles: largest number of tiles an InternVL model cuts an image into; 1 shows it the whole image only.
        original_mask_decoder: whether the weights include SAM 2's original mask decoder next to the fine-tuned one
            (Sa2VA-i checkpoints); it propagates masks in mode ``"consistent"``.

    Examples:
        >>> from sa2va import Sa2VAConfig
        >>> config = Sa2VAConfig(vlm_config={"model_type": "qwen3_vl"})
        >>> config.family.name
        'qwen3_vl'
        >>> config.sam2_config.image_size
        1024
    """

    model_type = "sa2va"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "vlm_config": SubConfigSpec(config_class=AutoConfig, model_type="internvl"),
        "sam2_config": Sam2VideoConfig,
    }

    vlm_config: Any = None  # a config after construction; a dict is accepted
    sam2_config: Any = None
    seg_token_id: int = 151674
    template: str | None = None
    max_tiles: int = 12
    original_mask_decoder: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.sam2_config is None:
            self.sam2_config = hiera_large_config()
        super().__post_init__(**kwargs)

    @property
    def family(self) -> Family:
        """The family of the vision-language model, from its ``model_type``."""
        return family_of(self.vlm_config.model_type)

    def get_text_config(self, decoder=None, encoder=None) -> PreTrainedConfig:
        return self.vlm_config.get_text_config(decoder=decoder, encoder=encoder)
