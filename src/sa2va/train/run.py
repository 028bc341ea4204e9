"""Run training from its configuration: load, check, print a summary, train, and save a complete model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sa2va.atomic import remove_leftovers, sole_writer
from sa2va.data.encode import Encoded, EncodeOptions, MakeTargets, SampleRejected, encode_clicks, encode_sample
from sa2va.data.holdout import HoldOut, OneView
from sa2va.data.mixture import EncodedDataset, MixtureEntry
from sa2va.data.sample import Sample
from sa2va.model.quantization import check_quantization
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.runtime import default_device, default_dtype
from sa2va.train.auxiliary import AuxiliaryLoss, add_losses, make_targets
from sa2va.train.checkpointing import changed_settings, last_checkpoint, other_processes, remove_incomplete
from sa2va.train.config import SourceOptions, TrainConfig
from sa2va.train.initial_model import load_start
from sa2va.train.trainable import PARTS, PlanRow, checkpoint_activations, compile_layers, make_trainable

#: Samples of each source that are encoded before the first step, to find what is wrong with them.
_PROBES = 4
_DRY_STEPS = 2
#: Is written last into the folder of a run.
FINISHED = "trainer_state.json"


@dataclass(frozen=True)
class TrainingRun:
    """A prepared training run: everything it needs, loaded and checked.

    Attributes:
        config: the configuration. model: with parameters frozen and unfrozen. processor: of the model.
        parts: the opened sources. validation: what is held out of them. plan: what is trained.
        probes: a few encoded samples of every source. auxiliary: the auxiliary losses.
    """

    config: TrainConfig
    model: Sa2VAModel
    processor: Sa2VAProcessor
    parts: tuple[MixtureEntry, ...]
    validation: tuple[MixtureEntry, ...]
    plan: tuple[PlanRow, ...]
    probes: tuple[Encoded, ...]
    auxiliary: tuple[AuxiliaryLoss, ...] = ()


def finished(config: TrainConfig) -> bool:
    """Whether a run has finished."""
    return (Path(config.output) / FINISHED).is_file()


def prepare(config: TrainConfig) -> TrainingRun:
    """Check the configuration, load the model, open the sources, and encode a few samples of each.

    Raises:
        ValueError: what would have failed later, and the cure. ImportError: a missing package.
    """
    config.check()
    _check_machine(config)
    if config.quantization:
        check_quantization(config.quantization, default_device())
    parts = tuple(_opened(place, options) for place, options in enumerate(config.data))
    parts, validation = _divided(parts, config.validation)
    model, processor = load_start(config)
    _check_scales(config)
    torch.manual_seed(config.seed)  # LoRA and heads start from random numbers
    auxiliary = add_losses(config.auxiliary, model, processor)
    plan = tuple(make_trainable(model, config.trainable))
    if config.checkpoint_activations:
        checkpoint_activations(model)
    if config.compile:
        compile_layers(model)
    encode = encoder(config, processor)
    probes = tuple(encoded for part in parts for encoded in _probe(part, encode))
    return TrainingRun(config, model, processor, parts, validation, plan, probes, auxiliary)


def encoder(config: TrainConfig, processor: Sa2VAProcessor) -> Callable[[Sample, np.random.Generator], Encoded]:
    """How a run encodes a sample."""
    if config.stage == "segmenter":
        return partial(_clicks, processor=processor, options=config.encode)
    return partial(_conversation, processor=processor, options=config.encode, extras=make_targets(config.auxiliary))


def train(
    run: TrainingRun, *, dry_run: bool = False, progress: bool = True, note: Callable[[str], None] = lambda _: None
) -> Path | None:
    """Train to the end, resuming from the last complete checkpoint if there is one.

    Args:
        dry_run: only two steps, and nothing is saved.
        progress: show a bar and the losses on standard error. note: takes lines for the user.

    Returns:
        the folder of the trained model; None after a dry run.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; the step in hand was finished and saved first (with one process).
        ValueError: the folder holds another run, or another process trains in it.
        OSError: a checkpoint could not be written; nothing of it stays.
    """
    # The tokenizers' own threads do not survive the fork of data loader workers.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            short = replace(run.config, steps=_DRY_STEPS, output=folder, report_to=(), log_every=1)
            _train(replace(run, config=short), progress, save=False)
        return None
    output, checkpoint, processes = Path(run.config.output), None, int(os.environ.get("WORLD_SIZE", "1"))
    if run.config.resume:
        checkpoint = last_checkpoint(output, processes)
    if checkpoint:
        note(f"going on from {checkpoint}")
        for name, (then, now) in changed_settings(run.config, checkpoint).items():
            note(f"setting {name} was {then} and is now {now}: what follows differs from an uninterrupted run")
    elif run.config.resume and (others := other_processes(output, processes)):
        raise ValueError(
            f"{output} holds checkpoints of {others} processes and this run has {processes}; start it with {others}, "
            "or set another output to begin anew"
        )
    elif any(output.glob("checkpoint-*")) and not run.config.resume:
        raise ValueError(f"{output} holds checkpoints of another run; set resume=true to go on, or another output")
    try:
        with _alone(output):
            if not int(os.environ.get("RANK", "0")):
                for half in remove_incomplete(output):
                    note(f"{half} was not whole, after a run that was killed; it is deleted")
            done = _train(run, progress, checkpoint=checkpoint)
    except OSError:
        if saved := last_checkpoint(output, processes):
            note(f"{saved} is whole; once the cause is mended, the same command goes on from there")
        raise
    if not done:
        note(f"stopped, and saved in {last_checkpoint(output, processes)}; the same command goes on from there")
        raise KeyboardInterrupt
    note(f"the model is in {output}")
    return output


def _alone(output: Path) -> AbstractContextManager[None]:
    """Hold the folder of a run, which belongs to the first of its processes."""
    if int(os.environ.get("RANK", "0")):
        return nullcontext()
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    return sole_writer(output)


def _train(run: TrainingRun, progress: bool, *, checkpoint: Path | None = None, save: bool = True) -> bool:
    """Run the loop and save the model; False where a signal ended it before."""
    from sa2va.train.callbacks import Progress, StopOnSignal
    from sa2va.train.trainer import Sa2VATrainer

    config, stop = run.config, StopOnSignal()
    encode = encoder(config, run.processor)
    dataset = EncodedDataset(run.parts, encode, seed=config.seed, workers=config.workers, max_broken=config.max_broken)
    try:
        validation = EncodedDataset(run.validation, encode, seed=config.seed) if run.validation else None
        trainer = Sa2VATrainer(
            run.model, run.processor, config, dataset, auxiliary=run.auxiliary, validation=validation, save=save
        )
        if progress:
            trainer.add_callback(Progress(trainer.get_total_train_batch_size(trainer.args)))
        if save:
            trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        first, *_ = str(error).partition("\n")
        raise ValueError(
            f"the device has too little memory ({first}); set batch_size=1 with more accumulation, "
            "checkpoint_activations=true, a shorter encode.max_length, fewer trainable.parts, or quantization=nf4; "
            "over several GPUs, fsdp=true"
        ) from error
    finally:
        stop.restore()
    if stop.received:
        return False
    if save:
        trainer.save_model()
    if save and trainer.is_world_process_zero():
        trainer.state.save_to_json(str(Path(config.output) / FINISHED))
    return True


def _conversation(
    sample: Sample,
    rng: np.random.Generator,
    *,
    processor: Sa2VAProcessor,
    options: EncodeOptions,
    extras: Mapping[str, MakeTargets],
) -> Encoded:
    return encode_sample(sample, processor, options, rng, extras=extras)


def _clicks(sample: Sample, rng: np.random.Generator, *, processor: Sa2VAProcessor, options: EncodeOptions) -> Encoded:
    return encode_clicks(sample, processor, rng, options)


def _opened(place: int, options: SourceOptions) -> MixtureEntry:
    try:
        return options.open()
    except ValueError as error:
        raise ValueError(
            f"data.{place} ({options.kind}): {error}\n"
            f"options of this source are set with data.{place}.options.NAME=VALUE"
        ) from error


def _divided(
    parts: tuple[MixtureEntry, ...], share: float | None
) -> tuple[tuple[MixtureEntry, ...], tuple[MixtureEntry, ...]]:
    """Parts without what is held out, and what is held out, each of its pictures and clips in one view."""
    if share is None:
        return parts, ()
    kept = tuple(replace(part, source=HoldOut(part.source, share, held_out=False)) for part in parts)
    held = tuple(replace(part, source=OneView(HoldOut(part.source, share, held_out=True)), repeats=1) for part in parts)
    return kept, held


def _probe(part: MixtureEntry, encode: Callable[[Sample, np.random.Generator], Encoded]) -> list[Encoded]:
    rng, probes, rejected = np.random.default_rng(0), [], ""
    for index in range(min(len(part.source), _PROBES)):
        try:
            probes.append(encode(part.source[index], rng))
        except SampleRejected as error:
            rejected = str(error)
    if not probes:
        raise ValueError(f"data source {part.name!r}: none of its first samples can be trained on; {rejected}")
    return probes


def _check_machine(config: TrainConfig) -> None:
    device = default_device()
    if config.fsdp and (device.type == "cpu" or int(os.environ.get("WORLD_SIZE", "1")) < 2):
        raise ValueError(
            "fsdp shards the model over several accelerators; start with torchrun --nproc-per-node N on a machine that "
            "has them, or set fsdp=false"
        )
    if config.precision == "bf16" and default_dtype(device) is torch.float16:
        raise ValueError("this accelerator does not compute in bfloat16; set precision=fp32")


def _check_scales(config: TrainConfig) -> None:
    wrong = [part for part, scale in config.lr_scale.items() if part not in PARTS or scale < 0]
    if wrong:
        raise ValueError(f"lr_scale gives a factor of 0 or more to parts of {list(PARTS)}; got {config.lr_scale}")
