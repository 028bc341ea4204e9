"""The training loop: transformers' Trainer over [`Batch`]es, with this package's losses, schedule and checkpoints.

A step is a function of the configuration, the seed and its number: batches, random points and clicks are drawn from
generators that the position in the run seeds, so a resumed run equals an uninterrupted one, and the number of processes
does not matter as long as processes times accumulation stays.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from sa2va.atomic import naming
from sa2va.data.collate import Collator, CompanionCollator, has_companion
from sa2va.data.encode import key_frames
from sa2va.data.mixture import EncodedDataset, MixtureOrder, SampleCounters, SampleIndex, epochs_to_samples
from sa2va.model.families import IGNORED_LABEL
from sa2va.model.types import Batch, Sa2VAOutput
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.runtime import default_device
from sa2va.train.auxiliary import AuxiliaryLoss
from sa2va.train.checkpointing import TRAINED_FILE, checkpoint_folder, is_complete, save_run
from sa2va.train.config import TrainConfig
from sa2va.train.losses import Term, frame_shares, low_resolution_targets, mask_losses, text_loss
from sa2va.train.muon import MuonWithAdamW, is_matrix
from sa2va.train.trainable import parameters_of, trained_parameters, zero_of

#: The learning rate starts at this share of its peak.
WARMUP_START = 1e-5


@contextmanager
def _fast_attention(config: TrainConfig) -> Iterator[None]:
    """On CPU torch's fused attention has a slow backward pass: plain products in bfloat16 take half as long.

    What is recomputed in the backward pass runs outside of here, and has to be computed in the same way.
    """
    if default_device().type != "cpu" or config.precision != "bf16" or config.checkpoint_activations:
        yield
        return
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)


def _write_error(folder: Path) -> OSError | None:
    """What the system says to more of the file that was last written to; ``torch.save`` does not tell why it failed."""
    newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None:
        return None
    try:
        with naming(newest), newest.open("ab") as file:
            file.write(bytes(2**20))
    except OSError as error:
        return error
    return None


class Counts(NamedTuple):
    """What losses are averaged over, () tensors: tokens that are learnt, and frames that have known objects."""

    tokens: Tensor
    frames: Tensor


def counts_of(batch: Batch) -> Counts:
    """What the losses of a micro-batch are sums over."""
    labels = batch.labels
    tokens = torch.zeros(()) if labels is None else (labels[:, 1:] != IGNORED_LABEL).sum().float()
    masks = () if has_companion(batch) else batch.masks or ()
    known = batch.annotated or [None] * len(masks)
    frames = sum(
        count if annotated_KF is None else int(annotated_KF.any(dim=0).sum())
        for count, sample, annotated_KF in zip(batch.frames_per_sample or (), masks, known, strict=False)
        if sample is not None
    )
    return Counts(tokens, torch.tensor(float(frames), device=tokens.device))


def learning_rate_factor(step: int, *, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at a step: a line from nearly 0 up to 1, then a cosine down to 0."""
    if step < warmup:
        return WARMUP_START + (1 - WARMUP_START) * step / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def training_arguments(
    config: TrainConfig, model: Sa2VAModel, *, save: bool = True, validate: bool = False
) -> TrainingArguments:
    """TrainingArguments for a TrainConfig."""
    # Only layers that every batch runs are sharded one by one: a process without pictures would not join the others.
    layer: Any = model.vlm.model.language_model.layers[0]
    arguments = TrainingArguments(
        output_dir=config.output,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=1,  # the order runs over the whole of the run
        max_steps=config.steps or -1,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        max_grad_norm=config.clip_norm,
        bf16=config.precision == "bf16",
        use_cpu=default_device().type == "cpu",
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        logging_first_step=True,
        save_strategy="steps" if save else "no",
        save_steps=config.save_every,
        eval_strategy="steps" if validate else "no",
        eval_steps=config.save_every,
        save_total_limit=config.keep,
        seed=config.seed,
        data_seed=config.seed,
        dataloader_num_workers=config.workers,
        dataloader_persistent_workers=False,
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=[],
        ddp_find_unused_parameters=False,
        report_to=list(config.trackers) or "none",
        disable_tqdm=True,  # see Progress
        fsdp=cast(Any, config.fsdp or None),
        fsdp_config={"transformer_layer_cls_to_wrap": [type(layer).__name__]} if config.fsdp else None,
        deepspeed=config.deepspeed,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # without a launcher Trainer would split batches by torch's DataParallel, which cannot
    return arguments


class Sa2VATrainer(Trainer):
    """Trains a [`Sa2VAModel`] whose parameters were already frozen and unfrozen, see ``make_trainable``.

    Args:
        model: the model. processor: is saved beside its weights, and says how to pad.
        config: the run. dataset: encoded samples. auxiliary: the losses that ``config.auxiliary`` names, see
            ``add_losses``. validation: samples whose losses are logged with every checkpoint.
        callbacks: as in transformers. save: write checkpoints.
    """

    def __init__(
        self,
        model: Sa2VAModel,
        processor: Sa2VAProcessor,
        config: TrainConfig,
        dataset: EncodedDataset,
        *,
        auxiliary: Sequence[AuxiliaryLoss] = (),
        validation: EncodedDataset | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        save: bool = True,
    ):
        self.config, self.processor, self.dataset, self.auxiliary = config, processor, dataset, tuple(auxiliary)
        self.model: Any  # Trainer wraps it in some kinds of distribution
        super().__init__(
            model=model,
            args=training_arguments(config, model, save=save, validate=save and validation is not None),
            train_dataset=dataset,
            eval_dataset=validation,
            data_collator=cast(Any, (CompanionCollator if config.deepspeed else Collator).of(processor)),
            callbacks=list(callbacks),
        )
        self.pop_callback(PrinterCallback)
        vars(model.config).pop("use_cache", None)  # Trainer's own mark, which would be saved
        self.loss_is_scaled_for_ga = False
        self._micro_batch = 0
        self._averages: Counts | None = None
        self._window: dict[str, Tensor] = {}
        self._prompted = None
        if config.prompted_frames is not None:
            shown = replace(config.encode, key_frames=config.prompted_frames)
            self._prompted = partial(key_frames, options=shown)
        self._weights: dict[str, float] = {
            name: weight
            for weights in (vars(config.loss.weights), *(loss.weights for loss in self.auxiliary))
            for name, weight in weights.items()
            if weight
        }
        needed = {loss.needs for loss in self.auxiliary}
        self._draws = config.loss.weights.masks or "masks" in needed
        self._runs = self._draws or "text" in needed or bool(config.loss.weights.text)

    # -- data ----------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> MixtureOrder:
        args = self.args
        if self.config.steps:
            length = self.config.steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        else:
            length = epochs_to_samples(self.dataset.parts, self.config.epochs)
        return MixtureOrder(self.dataset.parts, batch_size=args.train_batch_size, length=length, seed=self.config.seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], None]:
        """All micro-batches of a step; with ``average="step"`` they are counted over all processes."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self._micro_batch = 0
        if self.config.loss.average == "step" and batches:
            own = torch.stack([torch.stack(counts_of(batch)) for batch in batches]).sum(dim=0).to(device)
            self._averages = Counts(*(self._sum(own) / (len(batches) * self.args.world_size)))
        return batches, None

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs.to(self.args.device)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the formula of Trainer knows nothing of masks

    def _sum(self, values: Tensor) -> Tensor:
        """Over all processes."""
        return cast(Tensor, self.accelerator.reduce(values, "sum"))

    # -- loss ----------------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Weighted sum of all losses of one micro-batch; the single losses are kept for the log."""
        output = None
        with _fast_attention(self.config):
            if self._runs:
                shown = inputs if self._draws else replace(inputs, grounding_pixels=None)
                output = model(shown, prompted=self._prompted, labelled_only=True)
            terms = self.losses(inputs, output)
        text = output is not None and output.logits is not None
        # DeepSpeed takes gradients as they come, and runs every part that is trained (see CompanionCollator).
        left_out = () if self.config.deepspeed else parameters_of(self.model, text=text)
        total = zero_of(left_out).to(self.args.device)
        for name, term in terms.items():
            average = None
            if self._averages is not None:
                average = self._averages.tokens if name == "text" else self._averages.frames
            total = total + self._weights[name] * term.mean(average)
            self._remember(name, term)
        return (total, output) if return_outputs else total

    def losses(self, batch: Batch, output: Sa2VAOutput | None) -> dict[str, Term]:
        """The losses of one micro-batch whose weights are not 0 and for which it has targets.

        Args:
            output: of the forward pass; None where no loss needs it.
        """
        generator, terms = self._point_generator(self.args.device), {}
        if output is not None:
            terms |= self._released_losses(batch, output, generator)
        for loss in self.auxiliary:
            # What runs parts of the model itself computes as the forward pass would.
            with self.accelerator.autocast() if loss.needs == "nothing" else nullcontext():
                found = loss.losses(self.accelerator.unwrap_model(self.model), batch, output, generator)
            if unnamed := found.keys() - {*loss.names}:
                raise ValueError(
                    f"{type(loss).__name__} computes {sorted(unnamed)}; add them to its names {loss.names}"
                )
            terms |= {name: term for name, term in found.items() if name in self._weights}
        self._micro_batch += 1
        return terms

    def _released_losses(self, batch: Batch, output: Sa2VAOutput, generator: torch.Generator) -> dict[str, Term]:
        """Of text and masks."""
        options, terms = self.config.loss, {}
        if output.logits is not None and batch.labels is not None and options.weights.text:
            terms["text"] = text_loss(output.logits, batch.labels)
        if output.masks is not None and batch.masks is not None and batch.frames_per_sample is not None:
            prediction = output.masks
            targets = low_resolution_targets(batch.masks, prediction.candidates.shape[-1]).to(prediction.ious.device)
            shares = targets.new_tensor(
                frame_shares(output.objects_per_sample, batch.frames_per_sample, batch.annotated)
            )
            drawn = mask_losses(prediction, targets, shares, options, generator)
            if has_companion(batch):
                drawn = {name: Term(0 * term.total, 0 * term.count) for name, term in drawn.items()}
            terms |= drawn
        return terms

    def _point_generator(self, device: torch.device) -> torch.Generator:
        """Of this micro-batch, whichever process computes it: they take turns, see accelerate's BatchSamplerShard."""
        number = self.state.global_step * self.args.gradient_accumulation_steps + self._micro_batch
        number = number * self.args.world_size + self.args.process_index
        return torch.Generator(device=device).manual_seed(self.config.seed * 2**40 + number)

    # -- log -----------------------------------------------------------------------------------------------------------

    def _remember(self, name: str, term: Term) -> None:
        pair = torch.stack([term.total.detach().float(), term.count.float()])
        self._window[name] = self._window[name] + pair if name in self._window else pair

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of every loss since the last log, over all micro-batches and processes, unweighted."""
        if "loss" in logs:
            self.dataset.check()
            logs |= self._loss_means() | self._dropped_samples()
            if not math.isfinite(logs["loss"]):
                raise ValueError(
                    f"the loss is {logs['loss']} at step {self.state.global_step} ({logs}); lower learning_rate or "
                    "raise warmup, and go on from the last checkpoint"
                )
        super().log(logs, start_time)

    def _loss_means(self) -> dict[str, float]:
        """Of every loss since the last call, over all processes."""
        nothing = torch.zeros(2, device=self.args.device)
        rows = torch.stack([self._window.get(name, nothing) for name in self._weights])
        losses = self._sum(rows).tolist()
        self._window = {}
        return {name: total / count for name, (total, count) in zip(self._weights, losses, strict=True) if count}

    def _dropped_samples(self) -> dict[str, float]:
        """Samples that were not trained on as they are, by kind, over all processes."""
        lost = (SampleCounters.REJECTED, SampleCounters.BROKEN, SampleCounters.SHORTENED)
        counted = torch.tensor([self.dataset.count(kind) for kind in lost], device=self.args.device)
        named = zip(lost, self._sum(counted).tolist(), strict=True)
        return {f"{kind.name.lower()}_samples": number for kind, number in named if number}

    # -- validation ----------------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean losses over what is held out, unweighted and summed, logged as ``eval_NAME`` and ``eval_loss``."""
        training, averages, window = self.model.training, self._averages, self._window
        self._averages, self._window, self._micro_batch = None, {}, 0
        self.model.eval()
        with torch.no_grad():
            for batch in self._validation_batches():
                self.compute_loss(cast(nn.Module, self.model_wrapped), self._prepare_inputs(batch))
        self.model.train(training)
        means = self._loss_means()
        self._averages, self._window = averages, window
        means["loss"] = sum(self._weights[name] * mean for name, mean in means.items())
        metrics = {f"eval_{name}": mean for name, mean in means.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _validation_batches(self) -> Iterator[Batch]:
        """This process's share of what is held out; all have as many batches, or they would wait for each other."""
        dataset = cast(EncodedDataset, self.eval_dataset)
        visits = [
            SampleIndex(0, part, index) for part, own in enumerate(dataset.parts) for index in range(len(own.source))
        ]
        own = visits[: len(visits) // self.args.world_size * self.args.world_size][
            self.args.process_index :: self.args.world_size
        ]
        collate: Any = self.data_collator
        for start in range(0, len(own), self.args.train_batch_size):
            yield collate([dataset[visit] for visit in own[start : start + self.args.train_batch_size]])

    # -- optimizer -----------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """One group per learning rate, weight decay and kind of parameter."""
        if self.optimizer is None:
            config = self.config
            matrices = set(self.get_decay_parameter_names(self.model)) if config.decay == "matrices" else None
            groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
            for part, name, parameter in trained_parameters(model or self.model):
                scale = config.lr_scale.get(part, 1.0)
                decay = config.weight_decay if matrices is None or name in matrices else 0.0
                muon = config.optimizer == "muon" and is_matrix(name, parameter)
                groups.setdefault((scale, decay, muon), []).append(parameter)
            kinds: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
            for (scale, decay, muon), parameters in groups.items():
                rate = config.learning_rate * scale
                kinds[muon].append({"params": parameters, "lr": rate, "weight_decay": decay})
            if config.optimizer == "muon":
                self.optimizer = MuonWithAdamW(kinds[True], kinds[False], config.betas)
            else:
                optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
                self.optimizer = optimizer_class(kinds[False], **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Linear warm-up, then a cosine to 0."""
        if self.lr_scheduler is None:
            warmup = round(self.config.warmup * num_training_steps)
            factor = partial(learning_rate_factor, steps=num_training_steps, warmup=warmup)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As Trainer does; of one that cannot be written whole, nothing stays."""
        folder = checkpoint_folder(self.config.output, self.state.global_step)
        try:
            super()._save_checkpoint(model, trial)
        except BaseException as error:
            cause = _write_error(folder) if isinstance(error, RuntimeError) else None
            if not is_complete(folder, self.args.world_size):
                shutil.rmtree(folder, ignore_errors=True)
            if cause is not None:
                raise cause from error
            raise

    def _save(self, output_dir: Any = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """A complete model that ``Sa2VA.from_pretrained`` loads, and, to resume from, exactly what was trained."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.config.output)
        model = self.accelerator.unwrap_model(self.model)
        tensors = model.state_dict() if state_dict is None else state_dict
        finished = folder == Path(self.config.output)
        save_run(folder, model, self.processor, self.config, tensors, finished=finished)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:  # its own sharded files
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        tensors = load_file(Path(resume_from_checkpoint) / TRAINED_FILE)
        target = self.model if model is None else model
        missing = target.load_state_dict(tensors, strict=False)
        forgotten = [name for name, p in target.named_parameters() if p.requires_grad and name not in tensors]
        if forgotten or missing.unexpected_keys:
            raise ValueError(
                f"{resume_from_checkpoint} does not fit this run: it lacks {forgotten[:3]} and adds "
                f"{missing.unexpected_keys[:3]}; resume with the settings it was made with, or set another output"
            )
