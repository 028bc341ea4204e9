"""The import graph of the package: arrows point one way, between modules and between rooms."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sa2va

ROOT = Path(sa2va.__file__).parent
#: Rooms (packages, and modules beside them) from the ground up: each imports only from itself and those before it.
ROOMS = [
    *("runtime", "atomic", "untrusted", "zoo", "hub"),
    *("masks", "media", "visualization", "model", "results", "processing", "checkpoint", "writers"),
    *("inference", "modeling_sa2va", "predictor", "sizes"),
    *("data", "eval", "train", "tiny", "serve", "demo", "bulk", "cli"),
]
#: Doors of the package itself, which open lazily: the public names, and the hook of transformers' auto classes.
DOORS = {"sa2va", "sa2va._auto"}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    names = {".".join(("sa2va", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that a module imports anywhere, also inside functions and for annotations."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sa2va":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module


def deferred(path: Path) -> Iterator[str]:
    """What a module imports from the package inside functions."""
    functions = (
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
    )
    for function in functions:
        for node in ast.walk(function):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sa2va":
                yield str(node.module)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: set(imports(path, known)) - {name} - DOORS for name, path in known.items() if name not in DOORS}


def test_no_circle(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imports go round in a circle: " + " -> ".join(reversed(error.args[1])))


def test_no_arrow_points_up(graph):
    room = {name: name.split(".")[1] for name in graph}
    unknown = sorted(set(room.values()) - set(ROOMS))
    assert not unknown, f"say in ROOMS where these stand: {unknown}"
    up = [
        f"{name} -> {other}"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if ROOMS.index(room[other]) > ROOMS.index(room[name])
    ]
    assert not up, "imports that point up:\n" + "\n".join(up)


def test_imports_stand_at_the_top():
    """But for the start-up time of the command line and of ``import sa2va``, and for what needs the extra `train`."""
    free = ("sa2va.cli", "sa2va._auto", "sa2va.train.run")
    found = {name: sorted(set(deferred(path))) for name, path in modules().items() if not name.startswith(free)}
    assert not {name: places for name, places in found.items() if places}


def test_no_file_name_twice(graph):
    """A module's last name says which one is meant. Files of the command line are called as their commands."""
    stems: dict[str, list[str]] = {}
    packages = {name.rpartition(".")[0] for name in graph}
    for name in {name for name in graph if not name.startswith("sa2va.cli.")} - packages:
        stems.setdefault(name.split(".")[-1], []).append(name)
    assert not {stem: names for stem, names in stems.items() if len(names) > 1}


def test_no_class_name_twice():
    """Nor of classes, but for those that a module keeps to itself."""
    found: dict[str, list[str]] = {}
    for name, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name)
    assert not {one: names for one, names in found.items() if len(names) > 1}


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_what_stands_beside_the_package_imports_what_there_is(folder):
    known = modules()
    for path in (ROOT.parents[1] / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sa2va":
                assert node.module in known, f"{path.name}: {node.module}"
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    there = hasattr(module, alias.name) or f"{node.module}.{alias.name}" in known
                    assert there, f"{path.name}: {node.module}.{alias.name}"
