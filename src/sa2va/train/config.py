"""The configuration of a training run: one frozen dataclass, saved next to the weights.

It comes from a preset, a YAML or JSON file, and ``key=value`` words. [`TrainConfig.check`] finds what cannot work
before anything is loaded.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from sa2va.atomic import check_target
from sa2va.data.check import KNOWN_SETS
from sa2va.data.encode import EncodeOptions
from sa2va.data.mixture import MixtureEntry, Source
from sa2va.processing.requests import TrainingRequests
from sa2va.runtime import import_object, require_extra
from sa2va.train.auxiliary import AuxiliaryOptions, find_all
from sa2va.train.losses import LossOptions, LossWeights
from sa2va.train.parsing import build, override, plain, read_settings
from sa2va.train.trainable import TrainableOptions

CONFIG_FILE = "train_config.json"
#: Data sources by short name: where they are, and options that the name stands for. Any other source is
#: ``"package.module:factory"``.
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "synthetic": ("sa2va.tiny.synthetic:SyntheticWorld", {}),
    **{name: (known.factory, dict(known.options)) for name, known in KNOWN_SETS.items()},
}


@dataclass(frozen=True)
class SourceOptions:
    """One data source of a training run.

    Attributes:
        kind: a short name of a known dataset or form of own data, or ``"package.module:factory"``.
        options: keyword arguments of the factory.
        repeats: how often an epoch shows each sample.
        group: samples of different groups do not share a batch.
        requests: YAML or JSON file of request wordings instead of ours, see [`TrainingRequests`]; a source whose
            questions stand in its data has no use for it. ``data.requests=FILE`` gives it to all sources.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    repeats: float = 1.0
    group: str = ""
    requests: str | None = None

    @property
    def words_requests(self) -> bool:
        """Whether the source words requests: whether it, or a base class, takes ``requests``.

        Raises:
            ValueError: there is no such kind.
        """
        factory = self._factory()
        makers = [vars(one).get("__init__") for one in factory.__mro__] if isinstance(factory, type) else [factory]
        return any(inspect.isfunction(one) and "requests" in inspect.signature(one).parameters for one in makers)

    def open(self) -> MixtureEntry:
        """Open the source.

        Raises:
            ValueError: there is no such kind, it does not accept its options, or the file of requests is wrong.
        """
        factory, (_, meant) = self._factory(), SOURCES.get(self.kind, ("", {}))
        options = {**meant, **self.options}
        if self.requests is not None and self.words_requests:
            options["requests"] = TrainingRequests.from_file(self.requests)
        try:
            source = factory(**options)
        except TypeError as error:
            raise ValueError(f"data source {self.kind!r} does not take options {self.options}: {error}") from error
        return MixtureEntry(self.kind, source, self.repeats, self.group)

    def _factory(self) -> Callable[..., Source]:
        place, _ = SOURCES.get(self.kind, (self.kind, {}))
        if ":" not in place:
            raise ValueError(
                f"unknown data source {self.kind!r}; take one of {sorted(SOURCES)}, or 'package.module:name'"
            )
        return import_object(place, "data source")


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Numbers default to the released recipe.

    Attributes:
        model: what to start from, folder or hub id: a released checkpoint, one of ours, or, with ``sam2``, a base
            vision-language model.
        output: folder of the run.
        sam2: folder, hub id or Meta's ``.pt`` file of the SAM 2 to join a base model with; None if ``model`` is a
            Sa2VA checkpoint.
        template: chat template of a base InternVL model; None means ``"qwen_chat"``.
        quantization: ``"nf4"`` keeps the frozen linear layers of the language model in four bits (LoRA only; CUDA or
            CPU).
        data: the sources.
        encode: how samples become tensors.
        stage: ``"joint"`` trains on conversations, with text and masks; ``"segmenter"`` trains SAM 2 alone, from random
            clicks and boxes, without text.
        trainable: what is trained.
        loss: how losses are computed.
        auxiliary: losses besides those of text and masks, see [`sa2va.train.auxiliary`]. Only what a loss with a weight
            needs is computed: if no loss reads masks, none are decoded.
        grounding_side: side of the pictures that SAM 2 sees from now on, pixels, a multiple of 32; None keeps it.
        prompted_frames: None decodes every frame from its prompt, without memory (released). A number prompts that
            many frames of each clip, chosen as ``encode.key_frame_policy`` says, and follows the rest through the
            memory, with gradients.
        validation: share of the pictures and clips of own data that is kept out of training, above 0 and below 1. Their
            losses are logged with every checkpoint, and ``sa2va eval RUN own --holdout SHARE`` scores the masks.
        steps: optimizer steps; None trains for ``epochs``.
        batch_size: samples per process and micro-batch.
        accumulation: micro-batches per step.
        optimizer: ``"adamw"`` (released), or ``"muon"`` for the matrices of a model that starts from nothing.
        learning_rate, betas, weight_decay: of the optimizer.
        lr_scale: factor on the learning rate, per part of the model.
        decay: which parameters decay: ``"all"`` (released), or ``"matrices"`` only.
        clip_norm: largest gradient norm.
        warmup: fraction of the steps in which the learning rate rises from almost 0; then it decays to 0 as a cosine.
        precision: ``"bf16"``: frozen weights and computation in bfloat16, trained weights in float32.
            ``"fp32"``: everything in float32.
        checkpoint_activations: recompute activations in the backward pass, which saves memory for a third more time.
        compile: fuse the layers of the vision tower and the language model with torch.compile, which takes a minute at
            the start and needs a C++ compiler on CPU.
        workers: data loader workers per process.
        max_broken: fraction of broken samples above which the run stops.
        seed: of shuffling and all random choices.
        log_every, save_every: interval in steps.
        keep: number of checkpoints to keep; older ones are deleted.
        report_to: integrations of transformers' Trainer, e.g. ``["tensorboard"]``; None for TensorBoard if it is
            installed, ``[]`` for none.
        fsdp: shard the model with FSDP2.
        deepspeed: JSON file of a DeepSpeed configuration, ZeRO stage 1 to 3.
        resume: continue from the last complete checkpoint in ``output``, if there is one.

    Examples:
        >>> from sa2va.train.config import SourceOptions, TrainConfig
        >>> own = SourceOptions("annotations", {"root": "mine"})
        >>> config = TrainConfig(model="tiny", output="runs/mine", data=(own,))
        >>> config = config.with_overrides(["steps=100", "trainable.lora.rank=16"])
        >>> config.steps, config.trainable.lora
        (100, LoraOptions(rank=16, alpha=256, dropout=0.05))
    """

    model: str
    output: str
    data: tuple[SourceOptions, ...]
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    sam2: str | None = None
    template: str | None = None
    quantization: Literal["nf4"] | None = None
    stage: Literal["joint", "segmenter"] = "joint"
    trainable: TrainableOptions = field(default_factory=TrainableOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    auxiliary: tuple[AuxiliaryOptions, ...] = ()
    grounding_side: int | None = None
    prompted_frames: int | None = None
    epochs: float = 1.0
    validation: float | None = None
    steps: int | None = None
    batch_size: int = 2
    accumulation: int = 8
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 4e-5
    lr_scale: dict[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    decay: Literal["all", "matrices"] = "all"
    clip_norm: float = 1.0
    warmup: float = 0.05
    precision: Literal["bf16", "fp32"] = "bf16"
    checkpoint_activations: bool = True
    compile: bool = False
    workers: int = 4
    max_broken: float = 0.01
    seed: int = 0
    log_every: int = 10
    save_every: int = 2000
    keep: int = 2
    report_to: tuple[str, ...] | None = None
    fsdp: bool = False
    deepspeed: str | None = None
    resume: bool = True

    @classmethod
    def from_file(cls, path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
        """Read a YAML or JSON file, then apply ``key=value`` words. Raises ValueError for unknown or malformed ones."""
        return build(cls, override(read_config(path), overrides))

    def with_overrides(self, overrides: Sequence[str]) -> TrainConfig:
        """A copy with ``key=value`` words applied. Raises ValueError for unknown or malformed ones."""
        return build(type(self), override(plain(self), overrides))

    def save(self, folder: str | Path) -> Path:
        """Write ``train_config.json``, which [`from_file`] reads. Returns its path."""
        path = Path(folder) / CONFIG_FILE
        path.write_text(json.dumps(plain(self), indent=2) + "\n", encoding="utf-8")
        return path

    @property
    def trackers(self) -> tuple[str, ...]:
        """``report_to`` with its default filled in."""
        if self.report_to is None:
            return ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
        return self.report_to

    def check(self) -> None:
        """Find what cannot work, without loading the model.

        Raises:
            ValueError: settings contradict each other or are out of range; the message says what to set.
            ImportError: a package is missing; the message says how to install it.
        """
        for name, low, high in _RANGES:
            value = _get(self, name)
            if value is not None and not (low <= value and (high is None or value <= high)):
                raise ValueError(f"{name} must be {_range(low, high)}, got {value}; set {name}=...")
        if not self.data:
            raise ValueError(
                "data is empty; name at least one source, e.g. data=[{kind: annotations, options: {root: mine}}]"
            )
        self._check_combinations()
        self._check_files()
        for module in ("accelerate", *(["peft"] if self.trainable.lora else []), *self.trackers, *self._deepspeed()):
            require_extra(module, "train")

    def _check_combinations(self) -> None:
        weights = self.loss.weights
        if self.fsdp and self.deepspeed:
            raise ValueError("fsdp and deepspeed both shard the model; take one: fsdp=false or deepspeed=null")
        if self.optimizer == "muon" and (self.fsdp or self.deepspeed):
            raise ValueError(
                "muon needs whole matrices, fsdp and deepspeed shard them; set optimizer=adamw, or neither"
            )
        losses = find_all(self.auxiliary)
        if self.stage == "segmenter" and (self.trainable.lora or self.trainable.parts is None):
            raise ValueError(
                'stage "segmenter" does not run the language model; set trainable.lora=null and name the parts, '
                "e.g. trainable.parts=[image_encoder, prompt_encoder, mask_decoder, memory]"
            )
        if self.stage == "segmenter" and any(loss.needs == "text" for loss in losses):
            raise ValueError('stage "segmenter" does not run the language model, which a loss in auxiliary needs')
        if self.stage == "segmenter" and not (weights.bce or weights.dice or weights.focal or losses):
            raise ValueError('stage "segmenter" needs a mask loss; set loss.weights.focal=20 loss.weights.dice=1')
        if self.grounding_side and (self.grounding_side % 32 or self.sam2 or self.quantization):
            raise ValueError(
                "grounding_side is a multiple of 32 and changes a Sa2VA checkpoint; got "
                f"grounding_side={self.grounding_side}, sam2={self.sam2}, quantization={self.quantization}"
            )
        if self.quantization and (not self.trainable.lora or self.precision != "bf16"):
            raise ValueError(
                'quantization "nf4" freezes the language model in four bits, so it needs LoRA and precision=bf16; got '
                f"trainable.lora={self.trainable.lora}, precision={self.precision}"
            )
        if self.quantization and (self.sam2 or self.fsdp or self.deepspeed):
            raise ValueError(
                'quantization "nf4" starts from a Sa2VA checkpoint and runs on one device or under DDP; leave out '
                "sam2, fsdp and deepspeed"
            )
        for name in ("picture_pixels", "frame_pixels"):
            low, high = getattr(self.encode, name)
            if low > high:
                raise ValueError(f"encode.{name} is the least and the most pixels, got {low} and {high}; swap them")
        if self.encode.drawn_frames and self.prompted_frames:
            raise ValueError(
                "prompted_frames follows clips through all their frames; set encode.drawn_frames=null, or "
                "prompted_frames=null"
            )
        if self.encode.drawn_frames and self.stage != "joint":
            raise ValueError(
                f'stage "{self.stage}" takes the frames of a clip as they are; set encode.drawn_frames=null'
            )
        if not any(vars(weights).values()) and not losses:
            raise ValueError("all loss weights are 0; set at least one, e.g. loss.weights.text=1")

    def _check_files(self) -> None:
        output = Path(self.output)
        if output.exists() and not output.is_dir():
            raise ValueError(f"output {output} is a file; name a folder")
        check_target(output, self.model, self.sam2, *(source.options.get("root") for source in self.data))
        worded = [source for source in self.data if source.requests is not None]
        for path in dict.fromkeys(source.requests for source in worded if source.requests is not None):
            TrainingRequests.from_file(path)
        if worded and not any(source.words_requests for source in worded):
            kinds = ", ".join(dict.fromkeys(source.kind for source in worded))
            raise ValueError(
                f"requests replaces wordings, and {kinds} has none: its questions stand in it; leave it out"
            )
        if self.deepspeed:
            _check_deepspeed(Path(self.deepspeed), self.prompted_frames)

    def _deepspeed(self) -> tuple[str, ...]:
        return ("deepspeed",) if self.deepspeed else ()


def read_config(path: str | Path) -> dict[str, Any]:
    """Settings of a file, also of one that was written when ``loss.weights`` still held what is in ``auxiliary`` now.

    Raises:
        ValueError: the file cannot be read, or such a loss had a weight.
    """
    values = read_settings(path)
    loss = values.get("loss")
    weights = loss.get("weights") if isinstance(loss, dict) else None
    if isinstance(weights, dict):
        moved = {name: weights.pop(name) for name in _MOVED_WEIGHTS if name in weights}
        if any(moved.values()):
            raise ValueError(
                f"{path} gives weights to {[name for name, weight in moved.items() if weight]} in loss.weights; these "
                "are auxiliary losses now: take them out and name them in auxiliary, see docs/training.md"
            )
    return values


#: What were losses of every run before there were auxiliary ones.
_MOVED_WEIGHTS = ("attention", "mentions", "words", "middle", "place", "recall")
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
    ("validation", 1e-9, 0.999999),
    ("workers", 0, 1024),
    ("max_broken", 0, 1),
    ("log_every", 1, None),
    ("save_every", 1, None),
    ("keep", 1, None),
    ("prompted_frames", 1, None),
    ("grounding_side", 32, None),
    ("encode.max_length", 16, None),
    ("encode.key_frames", 1, None),
    ("encode.drawn_frames", 1, None),
    *((f"encode.{name}_pixels.{end}", 28 * 28, None) for name in ("picture", "frame") for end in (0, 1)),
    ("loss.points", 1, None),
    ("loss.oversample", 1, None),
    ("loss.importance", 0, 1),
    *((f"loss.weights.{weight.name}", 0, None) for weight in fields(LossWeights)),
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


def _check_deepspeed(path: Path, prompted_frames: int | None) -> None:
    stage = (read_settings(path).get("zero_optimization") or {}).get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"{path} asks for ZeRO stage {stage}; take 1, 2 or 3")
    if stage > 1 and prompted_frames is not None:
        raise ValueError(
            f"{path} asks for ZeRO stage {stage}, in which every process must run the same modules equally often; "
            "through the memory that depends on the clips: take stage 1 or fsdp=true, or set prompted_frames=null"
        )
