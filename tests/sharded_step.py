"""One step under FSDP2 in two processes, one with a picture and one with text alone; prints the worst gradient error.

Trainer shards on accelerators only; here torch's own sharding runs on CPU, along the same lines.
"""

from __future__ import annotations

import os
import sys
from copy import deepcopy

import torch
import torch.distributed as dist
import transformers
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from rectangles import Rectangles
from sa2va.data.collate import Collator
from sa2va.data.encode import encode_sample
from sa2va.model.types import Batch
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.train.losses import LossOptions, frame_shares, low_resolution_targets, mask_losses, text_loss
from sa2va.train.trainable import TrainableOptions, make_trainable, parameters_of, zero_of


def loss_of(model: Sa2VAModel, batch: Batch) -> torch.Tensor:
    output = model(batch, labelled_only=True)
    total = zero_of(parameters_of(model, text=True)) + text_loss(output.logits, batch.labels).mean()
    if output.masks is not None:
        targets = low_resolution_targets(batch.masks, output.masks.candidates.shape[-1])
        shares = torch.tensor(frame_shares(output.objects_per_sample, batch.frames_per_sample))
        for term in mask_losses(output.masks, targets, shares, LossOptions(points=None)).values():
            total = total + term.mean()
    return total


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    dist.init_process_group("gloo")
    model = Sa2VAModel.from_pretrained(sys.argv[1])
    processor = Sa2VAProcessor.from_pretrained(sys.argv[1], model.config)
    make_trainable(model, TrainableOptions(lora=None))
    whole = deepcopy(model)
    samples = [Rectangles()[0], Rectangles(text_every=1)[0]]
    batches = [Collator.of(processor)([encode_sample(sample, processor)]) for sample in samples]
    for batch in batches:
        (loss_of(whole, batch) / 2).backward()

    mesh = init_device_mesh("cpu", (2,))
    for layer in model.vlm.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    loss_of(model, batches[dist.get_rank()]).backward()
    errors = [0.0]
    for shard, parameter in zip(model.parameters(), whole.parameters(), strict=True):
        if parameter.requires_grad:
            gradient = shard.grad.full_tensor()
            errors.append(((gradient - parameter.grad).norm() / (parameter.grad.norm() + 1e-6)).item())
    assert len(errors) > 1 and all(error == error for error in errors)
    if dist.get_rank() == 0:
        print("worst gradient error", max(errors), flush=True)
    dist.destroy_process_group()
    os._exit(0)  # the shards hold threads of gloo that now and then abort the interpreter while it ends
