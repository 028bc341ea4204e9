"""Lets ``AutoModel.from_pretrained(folder)`` of transformers load Sa2VA checkpoints, without importing it here.

Importing transformers' auto classes takes seconds. They keep third-party model types in a dict; that dict is replaced,
when somebody imports them, by one that brings in this package the first time it is asked for one of our types.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_WATCHED = "transformers.models.auto.configuration_auto"
_MODEL_TYPES = ("sa2va", "sa2va_chat")


class _OnDemand(dict):
    """Third-party model types of transformers, with ours registered when they are first looked up."""

    def __contains__(self, key: object) -> bool:
        if key in _MODEL_TYPES and not super().__contains__(key):
            importlib.import_module("sa2va.model.sa2va")  # registers itself
        return super().__contains__(key)


def _prepare(module: ModuleType) -> None:
    mapping = module.CONFIG_MAPPING
    mapping._extra_content = _OnDemand(mapping._extra_content)


class _PreparingLoader(Loader):
    """Runs the real loader, then prepares its module."""

    def __init__(self, loader: Loader):
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _prepare(module)


class _Finder(MetaPathFinder):
    """Sees the auto classes being imported, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _PreparingLoader(spec.loader)
        return spec


def install() -> None:
    """Prepare transformers' auto classes now if they are loaded already, else when they are."""
    loaded = sys.modules.get(_WATCHED)
    if loaded is not None:
        _prepare(loaded)
    else:
        sys.meta_path.insert(0, _Finder())
