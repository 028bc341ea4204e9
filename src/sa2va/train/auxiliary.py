"""Auxiliary losses: what a run learns besides text and masks, each in a file of its own.

A loss is a subclass of [`AuxiliaryLoss`] that the configuration names: ``auxiliary: [{loss: "my_losses:Compact",
weights: {compact: 0.1}}]``. It may add targets to every sample (made in the data loader's workers), parameters of its
own (trained with the model, not saved with it) and, if it runs the model itself, a whole stage of training.
``docs/training.md`` has an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from sa2va.data.encode import MakeTargets, Shown
from sa2va.data.sample import Sample
from sa2va.model.types import Batch, Sa2VAOutput
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.runtime import import_object
from sa2va.train.losses import LossWeights, Term


class AuxiliaryLoss:
    """Base class of auxiliary losses. A subclass defines ``names`` and [`losses`]; the rest has defaults.

    Args:
        model: the model being trained.
        processor: its processor.
        weights: weight of each of the loss's names, see [`AuxiliaryOptions`].

    Attributes:
        names: names of its losses in the configuration and the log.
        needs: which parts of the model run before [`losses`] is called: ``"masks"``, all; ``"text"``, the language
            model, and SAM 2 only if another loss needs it; ``"nothing"``, none: the loss runs them itself.
        heads: its own parameters, the part ``auxiliary``; they are trained, but not saved with the model.
    """

    names: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[Literal["masks", "text", "nothing"]] = "masks"
    heads: nn.Module | None = None

    def __init__(self, model: Sa2VAModel, processor: Sa2VAProcessor, weights: Mapping[str, float]):
        self.weights = weights

    @staticmethod
    def targets(sample: Sample, shown: Shown) -> Any:
        """The targets of a sample: tensors in any nesting of tuples and mappings, or None for no targets.

        Data loader workers call this, without the model. Stage ``"segmenter"`` does not call it.

        Args:
            sample: as its source yielded it; ``sample.extras`` may contain data for this loss alone.
            shown: what the model sees of the sample.
        """
        return None

    def losses(
        self, model: Sa2VAModel, batch: Batch, output: Sa2VAOutput | None, generator: torch.Generator
    ) -> dict[str, Term]:
        """The losses of a micro-batch by name; those without targets in it are left out.

        Args:
            model: the model being trained.
            batch: on the model's device.
            output: of the forward pass; None if ``needs`` is ``"nothing"``.
            generator: for random choices; a resumed run makes the same ones.
        """
        raise NotImplementedError

    def targets_of(self, batch: Batch) -> Sequence[Any]:
        """What [`targets`] returned for each sample of a batch."""
        return batch.extras.get(type(self).__name__, (None,) * len(batch.input_ids))


@dataclass(frozen=True)
class AuxiliaryOptions:
    """An auxiliary loss of a training run.

    Attributes:
        loss: ``"package.module:Class"`` of a subclass of [`AuxiliaryLoss`].
        weights: weight of each of its names in the total; those without a weight are not computed.
    """

    loss: str
    weights: dict[str, float] = field(default_factory=dict)

    def find(self) -> type[AuxiliaryLoss]:
        """The class.

        Raises:
            ValueError: it cannot be imported, is no auxiliary loss, or has no loss of a name that has a weight.
        """
        found = import_object(self.loss, "auxiliary loss")
        if not (isinstance(found, type) and issubclass(found, AuxiliaryLoss)):
            raise ValueError(f"auxiliary loss {self.loss!r} must be a subclass of {__name__}.AuxiliaryLoss")
        wrong = [name for name, weight in self.weights.items() if name not in found.names or not weight >= 0]
        if wrong or not any(self.weights.values()):
            raise ValueError(
                f"auxiliary loss {self.loss!r} has the losses {list(found.names)}; give weights above 0 to some of "
                f"them, got {self.weights}"
            )
        return found


def find_all(options: Sequence[AuxiliaryOptions]) -> tuple[type[AuxiliaryLoss], ...]:
    """The classes of all auxiliary losses of a run.

    Raises:
        ValueError: one is wrong, or two losses have the same name.
    """
    found = tuple(one.find() for one in options)
    names = [name for one in found for name in one.names] + list(LossWeights.__dataclass_fields__)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several losses are called {twice}; every name can stand once: rename those of your own")
    return found


def make_targets(options: Sequence[AuxiliaryOptions]) -> dict[str, MakeTargets]:
    """What makes the targets of all auxiliary losses that have some, as ``encode_sample`` takes it."""
    return {one.__name__: one.targets for one in find_all(options) if one.targets is not AuxiliaryLoss.targets}


def add_losses(
    options: Sequence[AuxiliaryOptions], model: Sa2VAModel, processor: Sa2VAProcessor
) -> tuple[AuxiliaryLoss, ...]:
    """The auxiliary losses of a run, ready; their heads become the part ``auxiliary`` of the model.

    Raises:
        ValueError: one does not fit the model.
    """
    classes = find_all(options)
    losses = tuple(one(model, processor, given.weights) for one, given in zip(classes, options, strict=True))
    heads = {type(loss).__name__: loss.heads for loss in losses if loss.heads is not None}
    if heads:
        model.add_module("auxiliary", nn.ModuleDict(heads))
    return losses
