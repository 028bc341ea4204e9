"""Everything that decides a training run, as one frozen dataclass that is saved beside the weights.

It comes from a preset, a YAML or JSON file, and ``key=value`` words; [`TrainConfig.check`] finds what cannot work
before anything is loaded.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sa2va.data.encode import EncodeOptions
from sa2va.data.mixture import Part, Source
from sa2va.runtime import require_extra
from sa2va.train.losses import LossOptions
from sa2va.train.parsing import build, override, plain, read_settings
from sa2va.train.trainable import TrainableOptions

CONFIG_FILE = "train_config.json"
#: Data sources by short name; any other is ``"package.module:factory"``.
SOURCES = {
    "synthetic": "sa2va.data.synthetic:SyntheticWorld",
    "annotations": "sa2va.data.sources.annotations:Annotations",
}


@dataclass(frozen=True)
class SourceOptions:
    """One data source.

    Attributes:
        kind: a key of [`SOURCES`], or ``"package.module:factory"``. options: what the factory is called with.
        repeats: how often an epoch shows each sample. group: samples of different groups do not share a batch.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    repeats: float = 1.0
    group: str = ""

    def open(self) -> Part:
        """The source, opened.

        Raises:
            ValueError: there is no such kind, or it refuses its options.
        """
        module, colon, name = SOURCES.get(self.kind, self.kind).partition(":")
        if not colon:
            raise ValueError(
                f"unknown data source {self.kind!r}; take one of {sorted(SOURCES)}, or 'package.module:name'"
            )
        try:
            factory: Callable[..., Source] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"data source {self.kind!r} cannot be imported: {error}") from error
        try:
            source = factory(**self.options)
        except TypeError as error:
            raise ValueError(f"data source {self.kind!r} does not take options {self.options}: {error}") from error
        return Part(self.kind, source, self.repeats, self.group)


@dataclass(frozen=True)
class TrainConfig:
    """One run. Numbers default to the released recipe.

    Attributes:
        model: checkpoint to start from, folder or hub id. output: folder of the run.
        data: the sources. encode: how samples become tensors.
        stage: ``"joint"``: text and masks. ``"segmenter"``: SAM 2 alone, from random clicks and boxes, without text.
        trainable: what is trained. loss: how losses are computed.
        prompted_frames: None decodes every frame from its prompt, without memory (released). A number prompts that
            many frames of each clip and follows the rest through the memory, with gradients.
        steps: optimizer steps; None trains for ``epochs``.
        batch_size: samples per process and micro-batch. accumulation: micro-batches per step.
        learning_rate, betas, weight_decay: of AdamW. lr_scale: factor on the learning rate of a part.
        decay: which parameters decay: ``"all"`` (released), or ``"matrices"`` only.
        clip_norm: largest gradient norm.
        warmup: share of the steps in which the rate rises from nearly nothing; then it falls to 0 as a cosine.
        precision: ``"bf16"``: frozen weights and computation in bfloat16, trained weights in float32.
            ``"fp32"``: everything in float32.
        checkpoint_activations: recompute activations in the backward pass, which saves memory for a third more time.
        workers: data loader processes per process.
        log_every, save_every: steps. keep: checkpoints that stay; older ones are deleted.
        report_to: what Trainer reports to besides the screen, e.g. ``["tensorboard"]``.
        fsdp: shard the model with FSDP2. deepspeed: JSON file of a DeepSpeed configuration, ZeRO stage 1 or 2.
        resume: go on from the last complete checkpoint in ``output``, if there is one.
    """

    model: str
    output: str
    data: tuple[SourceOptions, ...]
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    stage: Literal["joint", "segmenter"] = "joint"
    trainable: TrainableOptions = field(default_factory=TrainableOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    prompted_frames: int | None = None
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 2
    accumulation: int = 8
    learning_rate: float = 4e-5
    lr_scale: dict[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    decay: Literal["all", "matrices"] = "all"
    clip_norm: float = 1.0
    warmup: float = 0.05
    precision: Literal["bf16", "fp32"] = "bf16"
    checkpoint_activations: bool = True
    workers: int = 4
    seed: int = 0
    log_every: int = 10
    save_every: int = 2000
    keep: int = 2
    report_to: tuple[str, ...] = ()
    fsdp: bool = False
    deepspeed: str | None = None
    resume: bool = True

    @classmethod
    def from_file(cls, path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
        """Read YAML or JSON, then apply ``key=value`` words."""
        return build(cls, override(read_settings(path), overrides))

    def with_overrides(self, overrides: Sequence[str]) -> TrainConfig:
        """This configuration with ``key=value`` words applied."""
        return build(type(self), override(plain(self), overrides))

    def save(self, folder: str | Path) -> Path:
        """Write ``train_config.json``, from which [`from_file`] reads the same configuration."""
        path = Path(folder) / CONFIG_FILE
        path.write_text(json.dumps(plain(self), indent=2) + "\n", encoding="utf-8")
        return path

    def check(self) -> None:
        """Find what cannot work without loading the model.

        Raises:
            ValueError: what is wrong and how to cure it.
            ImportError: a missing package, with the line that installs it.
        """
        for name, low, high in _RANGES:
            value = _get(self, name)
            if value is not None and not (low <= value and (high is None or value <= high)):
                raise ValueError(f"{name} must be {_range(low, high)}, got {value}; set {name}=...")
        if not self.data:
            raise ValueError(
                "data is empty; name at least one source, e.g. data=[{kind: synthetic, options: {split: train}}]"
            )
        self._check_combinations()
        self._check_files()
        for module in ("accelerate", *(["peft"] if self.trainable.lora else []), *self.report_to, *self._deepspeed()):
            require_extra(module, "train")

    def _check_combinations(self) -> None:
        weights = self.loss.weights
        if self.fsdp and self.deepspeed:
            raise ValueError("fsdp and deepspeed both shard the model; take one: fsdp=false or deepspeed=null")
        if self.stage == "segmenter":
            if self.trainable.lora or self.trainable.parts is None:
                raise ValueError(
                    'stage "segmenter" does not run the language model; set trainable.lora=null and name the parts, '
                    "e.g. trainable.parts=[image_encoder, prompt_encoder, mask_decoder, memory]"
                )
            if not (weights.bce or weights.dice or weights.focal):
                raise ValueError('stage "segmenter" needs a mask loss; set loss.weights.focal=20 loss.weights.dice=1')
        if not any((weights.text, weights.bce, weights.dice, weights.focal, weights.iou, weights.presence)):
            raise ValueError("all loss weights are 0; set at least one, e.g. loss.weights.text=1")

    def _check_files(self) -> None:
        output = Path(self.output)
        if output.exists() and not output.is_dir():
            raise ValueError(f"output {output} is a file; name a folder")
        existing = next(path for path in (output, *output.absolute().parents) if path.exists())
        if not os.access(existing, os.W_OK):
            raise ValueError(f"output {output} cannot be written: {existing} is read-only; set output=...")
        if self.deepspeed:
            _check_deepspeed(Path(self.deepspeed))

    def _deepspeed(self) -> tuple[str, ...]:
        return ("deepspeed",) if self.deepspeed else ()


#: Setting, lowest and highest value.
_RANGES: tuple[tuple[str, float, float | None], ...] = (
    ("epochs", 1e-9, None),
    ("steps", 1, None),
    ("batch_size", 1, None),
    ("accumulation", 1, None),
    ("learning_rate", 0, 1),
    ("weight_decay", 0, 1),
    ("betas.0", 0, 0.999999),
    ("betas.1", 0, 0.999999),
    ("clip_norm", 1e-9, None),
    ("warmup", 0, 1),
    ("workers", 0, 1024),
    ("log_every", 1, None),
    ("save_every", 1, None),
    ("keep", 1, None),
    ("prompted_frames", 1, None),
    ("encode.max_length", 16, None),
    ("encode.key_frames", 1, None),
    ("loss.points", 1, None),
    ("loss.oversample", 1, None),
    ("loss.importance", 0, 1),
    ("loss.weights.text", 0, None),
    ("loss.weights.bce", 0, None),
    ("loss.weights.dice", 0, None),
    ("loss.weights.focal", 0, None),
    ("loss.weights.iou", 0, None),
    ("loss.weights.presence", 0, None),
    ("trainable.lora.rank", 1, None),
    ("trainable.lora.alpha", 1, None),
    ("trainable.lora.dropout", 0, 0.99),
)


def _get(value: Any, path: str) -> Any:
    for key in path.split("."):
        if value is None:
            return None
        value = value[int(key)] if key.isdigit() else getattr(value, key)
    return value


def _range(low: float, high: float | None) -> str:
    return f"between {low:g} and {high:g}" if high is not None else f"at least {low:g}"


def _check_deepspeed(path: Path) -> None:
    settings = read_settings(path)
    stage = (settings.get("zero_optimization") or {}).get("stage", 0)
    if stage not in (0, 1, 2):
        raise ValueError(
            f"{path} asks for ZeRO stage {stage}; batches differ in the parts of the model they run, which stage 3 "
            "cannot follow: take stage 2, or fsdp=true"
        )
