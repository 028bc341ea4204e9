"""SAM 2's memory: what K objects remember of a clip, as data, with pure functions that write and read it.

A [`MemoryBank`] belongs to objects that were prompted together: they share its frames and are one batch through the
decoder, the memory encoder and memory attention. A bank keeps every prompted frame, the spatial memory of the last
six tracked frames and the pointers of the last fifteen, so its size does not depend on the length of the video.

Shape legend: K objects, T frames, P prompt tokens, C model width, D memory width, h = w = S/16, s = S/4, M = h*w memory
cells of a frame.

Source: SAM 2 (arXiv 2408.00714, section 4, "Memory attention", "Memory encoder and memory bank").
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMaskDecoder, get_1d_sine_pe

from sa2va.model.local_attention import read_around_objects
from sa2va.model.mask_decoder import (
    FrameFeatures,
    MaskPrediction,
    decode_masks,
    grounding_side,
    language_tokens,
    no_prompt_tokens,
)
from sa2va.model.memory_attention import read_memory

#: Memory attention of one chunk of objects reads at most this many (query, key) pairs, which bounds its activations.
#: One object at full size is 4096 x 45,000 pairs; small models run all objects at once.
PAIRS_PER_CHUNK = 2**28


@dataclass(frozen=True, eq=False)
class FrameMemory:
    """What K objects remember of one frame.

    Attributes:
        index: frame index in the clip.
        features: (K, M, D) bfloat16 spatial memory; None once only the pointer is still read.
        pointer: (K, C) object pointers.
    """

    index: int
    features: Tensor | None
    pointer: Tensor


@dataclass(frozen=True)
class MemoryBank:
    """The frames K objects remember: all prompted ones, and the most recent tracked ones (oldest first).

    Attributes:
        prompted, tracked: the frames.
        ranked: spatial memory of tracked frames is read as if it were of the last frames without a gap: what counts is
            its rank from the latest, not its distance in time. For banks that pick frames.
    """

    prompted: tuple[FrameMemory, ...] = ()
    tracked: tuple[FrameMemory, ...] = ()
    ranked: bool = False

    def add_prompted(self, memory: FrameMemory) -> MemoryBank:
        """With one more prompted frame; it is read for as long as the bank lives."""
        return replace(self, prompted=(*self.prompted, memory))

    def add_tracked(self, memory: FrameMemory, *, slots: int, pointers: int) -> MemoryBank:
        """With one more tracked frame; of older ones only what is still within reach is kept.

        Args:
            slots: how many frames away spatial memory is read (``num_maskmem - 1``).
            pointers: how many frames away pointers are read (``max_object_pointers_in_encoder - 1``).
        """
        kept = (*self.tracked, memory)[-pointers:]
        tracked = tuple(old if i >= len(kept) - slots else replace(old, features=None) for i, old in enumerate(kept))
        return replace(self, tracked=tracked)

    def add_picked(self, memory: FrameMemory, keep: Collection[int], *, pointers: int) -> MemoryBank:
        """With one more tracked frame; spatial memory is kept of some frames only, however old they are.

        Args:
            keep: indices of the tracked frames whose spatial memory is kept, this one's among them or not.
            pointers: as in [`add_tracked`]; those of frames with spatial memory are kept too.
        """
        known = (*self.tracked, memory)
        slim = [one if one.index in keep else replace(one, features=None) for one in known]
        oldest = len(known) - pointers
        kept = tuple(one for place, one in enumerate(slim) if one.features is not None or place >= oldest)
        return replace(self, tracked=kept)

    def select(self, rows_K: Tensor) -> MemoryBank:
        """The bank of some of its objects, by int64 row."""

        def pick(memory: FrameMemory) -> FrameMemory:
            features = None if memory.features is None else memory.features[rows_K]
            return FrameMemory(memory.index, features, memory.pointer[rows_K])

        return replace(self, prompted=tuple(map(pick, self.prompted)), tracked=tuple(map(pick, self.tracked)))

    def near(self, index: int, *, prompted: int, frames: int) -> MemoryBank:
        """With the spatial memory of those frames only that are nearest to one: so many prompted ones at most, and
        tracked ones up to so many frames together.

        Pointers stay: they cost nothing to read.
        """

        def nearest(memories: tuple[FrameMemory, ...], count: int) -> tuple[FrameMemory, ...]:
            kept = sorted(memories, key=lambda memory: abs(memory.index - index))[:count]
            return tuple(one if one in kept else replace(one, features=None) for one in memories)

        with_features = tuple(memory for memory in self.tracked if memory.features is not None)
        without = self.tracked[: len(self.tracked) - len(with_features)]
        kept = (*without, *nearest(with_features, frames - min(prompted, len(self.prompted))))
        return replace(self, prompted=nearest(self.prompted, prompted), tracked=kept)

    def without_tracked(self) -> MemoryBank:
        """Only the prompted frames: where propagation in the other direction starts."""
        return replace(self, tracked=())

    def first_prompted(self) -> MemoryBank:
        """Of the prompted frames only the first."""
        return replace(self, prompted=self.prompted[:1])


def encode_memory(
    sam2: Sam2VideoModel,
    features: FrameFeatures,
    prediction: MaskPrediction,
    index: int,
    *,
    frame_of_object_K: Tensor | None = None,
) -> FrameMemory:
    """Turn one frame and its K masks into memory.

    The memory is stored in bfloat16, as the reference does. The raw image feature is encoded, not the one that memory
    attention has changed.

    Args:
        features: of one frame, or of several clips at the same moment.
        prediction: of K objects on this frame.
        frame_of_object_K: int64, which of the frames shows each object; None where there is only one.
    """
    encoder, config = sam2.memory_encoder, sam2.config
    side = grounding_side(sam2)
    # Bilinear in float32: CPU and older CUDA kernels lack or round the half-precision one.
    logits = F.interpolate(prediction.logits[:, None].float(), size=(side, side), mode="bilinear", align_corners=False)
    masks = logits.sigmoid()
    masks = masks * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
    picture = encoder.feature_projection(features.top)
    if frame_of_object_K is not None:
        picture = picture[frame_of_object_K]
    fused = encoder.memory_fuser(picture + encoder.mask_downsampler(masks.to(picture.dtype)))
    memory_KDhw = encoder.projection(fused)
    if sam2.occlusion_spatial_embedding_parameter is not None:  # SAM 2.1
        absent = (prediction.presence <= 0).to(memory_KDhw.dtype)[:, None, None, None]
        memory_KDhw = memory_KDhw + absent * sam2.occlusion_spatial_embedding_parameter[..., None, None]
    return FrameMemory(index, memory_KDhw.flatten(2).transpose(1, 2).to(torch.bfloat16), prediction.pointer)


def track_frame(
    sam2: Sam2VideoModel,
    decoder: Sam2VideoMaskDecoder,
    bank: MemoryBank,
    features: FrameFeatures,
    index: int,
    *,
    backward: bool = False,
    frame_of_object_K: Tensor | None = None,
) -> MaskPrediction:
    """Decode the K objects of a bank on one more frame, from memory alone.

    Args:
        features: of one frame, or of several clips at the same moment. index: its place in the clip.
        backward: time runs towards frame 0; pointers are read from prompted frames that lie after this one.
        frame_of_object_K: int64, which of the frames shows each object; None where there is only one.
    """
    conditioned = attend(sam2, bank, features.top, index, backward=backward, frame_of_object_K=frame_of_object_K)
    return decode_masks(
        sam2,
        decoder,
        features,
        no_prompt_tokens(sam2, len(conditioned)),
        frame_of_prompt_N=frame_of_object_K,
        conditioned_NChw=conditioned,
    )


def attend(
    sam2: Sam2VideoModel,
    bank: MemoryBank,
    top_FChw: Tensor,
    index: int,
    *,
    backward: bool = False,
    frame_of_object_K: Tensor | None = None,
    windows_K2: Tensor | None = None,
) -> Tensor:
    """Image features (K, C, h, w) after memory attention, one per object of the bank; see [`track_frame`].

    Args:
        windows_K2: look closely only around the objects, see [`read_around_objects`]; all are in one frame.
    """
    memory_KMD, position_MD, pointer_tokens = _read(sam2, bank, top_FChw, index, backward=backward)
    if frame_of_object_K is None:
        frame_of_object_K = torch.zeros(len(memory_KMD), dtype=torch.long, device=top_FChw.device)
    pictures_FQC = top_FChw.flatten(2).transpose(1, 2)
    picture_position_QC = _sine_position(sam2.vision_encoder.neck.position_encoding, top_FChw, sam2.hidden_dim)
    height, width = top_FChw.shape[-2:]
    if windows_K2 is not None:
        conditioned_KQC = read_around_objects(
            sam2.memory_attention,
            pictures_FQC,
            picture_position_QC.to(pictures_FQC.dtype),
            memory_KMD,
            position_MD,
            pointer_tokens,
            windows_K2,
        )
        return conditioned_KQC.transpose(1, 2).unflatten(2, (height, width))
    objects_per_chunk = max(1, PAIRS_PER_CHUNK // (pictures_FQC.shape[1] * memory_KMD.shape[1]))
    chunks = zip(memory_KMD.split(objects_per_chunk), frame_of_object_K.split(objects_per_chunk), strict=True)
    conditioned = [
        read_memory(
            sam2.memory_attention,
            pictures_FQC,
            picture_position_QC.to(pictures_FQC.dtype),
            chunk,
            position_MD,
            pointer_tokens,
            frames,
        )
        for chunk, frames in chunks
    ]
    return torch.cat(conditioned).transpose(1, 2).unflatten(2, (height, width))


def propagate(
    sam2: Sam2VideoModel,
    decoder: Sam2VideoMaskDecoder,
    features: FrameFeatures | Sequence[FrameFeatures],
    prompts: Tensor,
    prompted: Sequence[int],
    *,
    clip_of_object_K: Tensor | None = None,
) -> Iterator[MaskPrediction]:
    """Segment clips that are already encoded: the differentiable whole, for training and for short clips.

    Clips of equal length are unrolled together, as one batch of objects.

    Prompted frames are decoded with their prompt and no memory; all others follow from memory, forward in time.

    Args:
        features: of the T frames of a clip; or T times those of several clips at the same moment.
        prompts: (K, C) language embeddings of K objects, the same on every prompted frame; or (K, T, P, C) sparse
            prompt tokens, of which those of prompted frames are read.
        prompted: frame indices that get the prompt; must hold 0, since nothing is known before the first of them.
        clip_of_object_K: int64, which clip shows each object; None where there is only one.

    Yields:
        the prediction of the K objects, frame by frame.
    """
    if 0 not in prompted:
        raise ValueError(f"forward propagation starts at frame 0, so it must be prompted; prompted frames: {prompted}")
    bank, given = MemoryBank(), {}
    for index in prompted:
        tokens = prompts[:, index] if prompts.ndim == 4 else language_tokens(sam2, prompts)
        given[index] = decode_masks(sam2, decoder, features[index], tokens, frame_of_prompt_N=clip_of_object_K)
        if len(prompted) < len(features):  # otherwise nothing is left to be tracked
            memory = encode_memory(sam2, features[index], given[index], index, frame_of_object_K=clip_of_object_K)
            bank = bank.add_prompted(memory)
    for index in range(len(features)):
        if index in given:
            yield given.pop(index)
            continue
        prediction = track_frame(sam2, decoder, bank, features[index], index, frame_of_object_K=clip_of_object_K)
        bank = remember(sam2, bank, features[index], prediction, index, frame_of_object_K=clip_of_object_K)
        yield prediction


def remember(
    sam2: Sam2VideoModel,
    bank: MemoryBank,
    features: FrameFeatures,
    prediction: MaskPrediction,
    index: int,
    *,
    frame_of_object_K: Tensor | None = None,
) -> MemoryBank:
    """The bank with a tracked frame added, within the limits of SAM 2's config; see [`encode_memory`]."""
    return bank.add_tracked(
        encode_memory(sam2, features, prediction, index, frame_of_object_K=frame_of_object_K),
        slots=sam2.num_maskmem - 1,
        pointers=sam2.config.max_object_pointers_in_encoder - 1,
    )


def _read(
    sam2: Sam2VideoModel, bank: MemoryBank, top_FChw: Tensor, index: int, *, backward: bool
) -> tuple[Tensor, Tensor, int]:
    """What memory attention reads at a frame: tokens (K, M', D), position codes (M', D), and how many are pointers."""
    if not bank.prompted:
        raise ValueError("nothing to track: no frame of this clip has been prompted yet")
    temporal_TD = sam2.memory_temporal_positional_encoding[:, 0, 0].float()
    spatial_MD = _sine_position(sam2.memory_encoder.position_encoding, top_FChw, sam2.mem_dim)

    # Prompted frames keep their spatial memory for as long as the bank lives.
    memories = [memory.features for memory in bank.prompted if memory.features is not None]
    positions = [spatial_MD + temporal_TD[-1] for _ in memories]
    pointing = [memory for memory in bank.prompted if (memory.index >= index if backward else memory.index <= index)]
    ranks = sum(memory.features is not None for memory in bank.tracked)
    for memory in bank.tracked:
        distance = abs(index - memory.index)
        if memory.features is not None:
            place = ranks if bank.ranked else distance
            ranks -= 1
            if place < sam2.num_maskmem:
                memories.append(memory.features)
                positions.append(spatial_MD + temporal_TD[place - 1])
        if distance < sam2.config.max_object_pointers_in_encoder:
            pointing.append(memory)

    pointer_tokens = 0
    if pointing:
        # A pointer is as wide as the model; it enters the narrower memory as several tokens.
        tokens_KPD = torch.stack([memory.pointer for memory in pointing], dim=1)
        tokens_KPD = tokens_KPD.unflatten(2, (-1, sam2.mem_dim)).flatten(1, 2)
        pointer_tokens = tokens_KPD.shape[1]
        memories.append(tokens_KPD)
        position_PD = _pointer_position(sam2, [abs(index - memory.index) for memory in pointing])
        positions.append(position_PD.repeat_interleave(pointer_tokens // len(pointing), dim=0))
    dtype = top_FChw.dtype
    return torch.cat([m.to(dtype) for m in memories], dim=1), torch.cat(positions).to(dtype), pointer_tokens


def _pointer_position(sam2: Sam2VideoModel, distances: Sequence[int]) -> Tensor:
    """(P, D) position code of object pointers by their distance in time; zero in SAM 2.0, which trained none."""
    weight = sam2.no_object_pointer
    if not sam2.config.enable_temporal_pos_encoding_for_object_pointers:
        return torch.zeros(len(distances), sam2.mem_dim, device=weight.device)
    reach = sam2.config.max_object_pointers_in_encoder - 1
    scaled = torch.tensor(distances, device=weight.device, dtype=torch.float32) / reach
    code = get_1d_sine_pe(scaled, dim=sam2.hidden_dim)
    return sam2.temporal_positional_encoding_projection_layer(code.to(weight.dtype)).float()


def _sine_position(encoding: torch.nn.Module, top_FChw: Tensor, width: int) -> Tensor:
    """(M, width) sine position code of a feature grid, in float32 always: made in bfloat16 it is 0.03 off."""
    shape = torch.Size((1, width, *top_FChw.shape[-2:]))
    return encoding(shape, top_FChw.device, torch.float32)[0].flatten(1).T
