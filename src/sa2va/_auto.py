"""Lets transformers' auto classes load Sa2VA checkpoints without their remote code, and without importing it here.

Importing transformers' auto classes takes seconds, so each of their modules is prepared when somebody imports it. They
keep third-party model types in a dict; that dict is replaced by one that brings in this package the first time it is
asked for one of our types, and the models register themselves. Tokenizers and processors are chosen by files of the
folder, which may name remote code: for folders of our types ``AutoTokenizer`` and ``AutoProcessor`` hand over to the
loaders of this package. On the way transformers is kept from reading all its model files twice.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_MODEL_TYPES = ("sa2va", "sa2va_chat", "sasasa2va_chat")
#: Arguments of ``AutoTokenizer`` that choose between classes or allow remote code.
_CHOICES = ("config", "use_fast", "trust_remote_code", "tokenizer_type", "code_revision")


class _OnDemand(dict):
    """Third-party model types of transformers, with ours registered when they are first looked up."""

    def __contains__(self, key: object) -> bool:
        if key in _MODEL_TYPES and not super().__contains__(key):
            importlib.import_module("sa2va.modeling_sa2va")  # registers itself
        return super().__contains__(key)


def _prepare_configs(module: ModuleType) -> None:
    mapping = module.CONFIG_MAPPING
    mapping._extra_content = _OnDemand(mapping._extra_content)


def _prepare_tokenizers(module: ModuleType) -> None:
    def load(source: Any, hub: dict[str, Any], options: dict[str, Any]) -> Any:
        from sa2va.processing.tokenizer import load_tokenizer

        return load_tokenizer(source, {key: options[key] for key in options if key not in _CHOICES}, **hub)

    _hand_over(module.AutoTokenizer, load)


def _prepare_processors(module: ModuleType) -> None:
    def load(source: Any, hub: dict[str, Any], options: dict[str, Any]) -> Any:
        from transformers import AutoConfig

        from sa2va.processing.processor import Sa2VAProcessor

        config: Any = AutoConfig.from_pretrained(source, **hub)
        return Sa2VAProcessor.from_pretrained(source, config, **hub)

    _hand_over(module.AutoProcessor, load)


def _hand_over(auto: Any, load: Callable[[Any, dict[str, Any], dict[str, Any]], Any]) -> None:
    """Let ``auto.from_pretrained`` call ``load`` for our folders and do what it did for all others."""
    usual = auto.from_pretrained

    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, *inputs: Any, **kwargs: Any) -> Any:
        from sa2va.hub import HUB_OPTIONS

        hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        if not _is_ours(pretrained_model_name_or_path, hub):
            return usual(pretrained_model_name_or_path, *inputs, **kwargs)
        return load(pretrained_model_name_or_path, hub, {key: kwargs[key] for key in kwargs if key not in hub})

    from_pretrained.__doc__ = usual.__doc__
    auto.from_pretrained = classmethod(from_pretrained)


def _prepare_import_structure(module: ModuleType) -> None:
    """Remember what a folder's modules export: ``transformers`` and ``transformers.models`` read 1,500 files for it."""
    if (read := getattr(module, "create_import_structure_from_path", None)) is None:
        return
    read_once = cache(read)
    module.create_import_structure_from_path = lambda path: read_once(  # type: ignore[attr-defined]
        os.path.dirname(path) if os.path.isfile(path) else os.fspath(path)
    )


def _is_ours(source: Any, hub: dict[str, Any]) -> bool:
    from transformers import PreTrainedConfig

    try:
        content, _ = PreTrainedConfig.get_config_dict(source, **hub)
    except (OSError, ValueError):  # transformers says what is wrong with it
        return False
    return content.get("model_type") in _MODEL_TYPES


_PREPARE: dict[str, Callable[[ModuleType], None]] = {
    "transformers.utils.import_utils": _prepare_import_structure,
    "transformers.models.auto.configuration_auto": _prepare_configs,
    "transformers.models.auto.tokenization_auto": _prepare_tokenizers,
    "transformers.models.auto.processing_auto": _prepare_processors,
}


class _PreparingLoader(Loader):
    """Runs the real loader, then prepares its module."""

    def __init__(self, loader: Loader):
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _PREPARE[module.__name__](module)


class _Finder(MetaPathFinder):
    """Sees each module of the auto classes being imported, once."""

    def __init__(self, names: Sequence[str]):
        self._waiting = set(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._waiting:
            return None
        self._waiting.remove(fullname)
        if not self._waiting:
            sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _PreparingLoader(spec.loader)
        return spec


def install() -> None:
    """Prepare the modules of the auto classes that are loaded already, and the others when they are."""
    for name in _PREPARE.keys() & sys.modules.keys():
        _PREPARE[name](sys.modules[name])
    if waiting := sorted(_PREPARE.keys() - sys.modules.keys()):
        sys.meta_path.insert(0, _Finder(waiting))
