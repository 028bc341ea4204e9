"""The embedded ``tiny`` model before it has learned anything: its tokenizer, its sizes, and random weights.

It is a member of the InternVL family like the released checkpoints, only a thousand times smaller: every line of code
that serves a 26B model serves it too.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import InternVLConfig, PreTrainedTokenizerFast

from sa2va.model.configuration import Sa2VAConfig, sam2_config
from sa2va.model.families import ADDED_TOKENS, INTERNVL
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.tiny.synthetic import vocabulary

#: Side of a picture and of a tile, pixels.
SIDE = 128
#: SAM 2 sees the picture enlarged: its masks have a quarter of this side, and small objects need fine borders.
GROUNDING_SIDE = 256
PATCH = 8
#: What a configuration calls the model before it has learnt anything.
RANDOM_TINY = "random-tiny"
_BASE_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_IMAGE_TOKENS = (INTERNVL.image_start, INTERNVL.image_end, INTERNVL.image_token)


def random_tiny(seed: int, grounding_side: int | None) -> tuple[Sa2VAModel, PreTrainedTokenizerFast]:
    """The model and its tokenizer, as a run starts from them.

    Args:
        grounding_side: of the pictures that SAM 2 sees, pixels; None for its own.
    """
    tokenizer = tiny_tokenizer()
    return tiny_model(tokenizer, seed, grounding_side or GROUNDING_SIDE), tokenizer


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of the synthetic world's words; unknown words fall into pieces, none is lost."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = vocabulary()
    # Every word with and without a blank before it becomes one token.
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        special_tokens=list(_BASE_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*words, *(f" {word}" for word in words)], trainer)
    tokenizer.add_special_tokens([*_IMAGE_TOKENS, *ADDED_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def tiny_config(tokenizer: PreTrainedTokenizerFast, grounding_side: int = GROUNDING_SIDE) -> Sa2VAConfig:
    """Nine million parameters: vision tower and language model 5.3, SAM 2 3.6."""
    vision = {
        "image_size": SIDE,
        "patch_size": PATCH,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "attention_bias": True,
        "layer_scale_init_value": 1.0,
    }
    text = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 7,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    image_token_id: Any = tokenizer.convert_tokens_to_ids(INTERNVL.image_token)
    seg_token_id: Any = tokenizer.convert_tokens_to_ids(ADDED_TOKENS[0])
    vlm = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=image_token_id,
        tie_word_embeddings=False,
    )
    sam2 = sam2_config(
        image_size=grounding_side,
        embed_dim=32,
        num_heads=1,
        blocks=(1, 2, 4, 1),
        global_blocks=(4, 6),
        windows=(8, 4, 8, 4),
        width=128,
        memory_layers=2,
        memory_mlp=512,
        decoder_heads=4,
        decoder_mlp=512,
    )
    # What is this small does not overfit, and drawing random numbers takes a sixth of the time.
    sam2.memory_attention_dropout = sam2.memory_attention_rope_dropout = 0.0
    return Sa2VAConfig(vlm_config=vlm, sam2_config=sam2, seg_token_id=seg_token_id, template="qwen_chat", max_tiles=1)


def tiny_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0, grounding_side: int = GROUNDING_SIDE) -> Sa2VAModel:
    """Random weights that can learn.

    transformers initialises for large models whose weights will be downloaded anyway: with a deviation of 0.02, which
    is too small for narrow layers, and with zeros in parts of SAM 2 and for all positions. Here layers start as
    torch's own do, and positions as plain sines.
    """
    torch.manual_seed(seed)
    model = Sa2VAModel(tiny_config(tokenizer, grounding_side))
    module: Any
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.1)
    sam2: Any = model.sam2
    embeddings: Any = model.vlm.model.vision_tower.embeddings
    with torch.no_grad():
        for parameter in (
            sam2.no_memory_embedding,
            sam2.memory_temporal_positional_encoding,
            sam2.no_object_pointer,
            sam2.vision_encoder.backbone.pos_embed,
            sam2.vision_encoder.backbone.pos_embed_window,
            embeddings.cls_token,
        ):
            parameter.normal_(std=0.1)
        for layer in sam2.memory_encoder.memory_fuser.layers:
            layer.scale.fill_(0.1)
        sam2.prompt_encoder.shared_embedding.positional_embedding.copy_(
            sam2.shared_image_embedding.positional_embedding
        )
        embeddings.position_embeddings[0, 1:] = 0.5 * _sines(embeddings.position_embeddings.shape[-1])
    return model


def _sines(width: int) -> Tensor:
    """(rows * columns, width) position code of the patches: half of it for the row, half for the column."""
    side = SIDE // PATCH
    frequencies = 1 / 100 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], dim=2).flatten(0, 1)
