"""Makes ``AutoModel.from_pretrained(folder)`` of transformers load Sa2VA checkpoints, without importing it here.

Importing transformers' auto classes takes seconds, so they are told about Sa2VA when somebody imports them, not before.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_WATCHED = "transformers.models.auto.modeling_auto"


class _RegisteringLoader(Loader):
    """Runs the real loader, then registers."""

    def __init__(self, loader: Loader):
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        # While our own model module is being imported, it registers itself at its end.
        if "sa2va.model.sa2va" not in sys.modules:
            importlib.import_module("sa2va.model.sa2va")


class _AutoClassesFinder(MetaPathFinder):
    """Sees the auto classes being imported, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


def install() -> None:
    """Register now if the auto classes are loaded already, else when they are."""
    if _WATCHED in sys.modules:
        importlib.import_module("sa2va.model.sa2va")
    else:
        sys.meta_path.insert(0, _AutoClassesFinder())
