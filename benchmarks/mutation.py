"""Whether the tests notice when the code is wrong: small changes to it, each run against the tests of its file.

    python benchmarks/mutation.py --minutes 20                    # all files of the table, evenly
    python benchmarks/mutation.py --minutes 5 masks/* eval/metrics.py
    python benchmarks/mutation.py --list masks/mask.py            # the changes, without running any
    python benchmarks/mutation.py --only masks/mask.py:63:21      # those at one place

One change at a time: a comparison turned or shifted by its equality, a number moved by one, + and - or ``and`` and
``or`` exchanged, a ``not`` dropped, a returned truth value turned. Changed files lie in a temporary copy of the
package. Modules of others are imported once; every run is a fork, which imports the copy. The tests of a file are run
once unchanged, to learn their times and the functions they enter; then those that enter the changed function come
first, the quick before the slow, and as many others as fit ``--budget`` seconds. One that fails, or uses four times the
CPU time that all of them should, kills the change. The same seed takes the same changes in the same order.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "sa2va"

#: Which test files concern which source files: those of every pattern that fits.
TABLE = {
    "masks/mask_ops.py": "masks/test_mask_ops",
    "masks/*": "results/test_results visualization/test_draw writers/test_writers",
    "media/camera.py": "media/test_media",
    "media/download.py": "media/test_pictures",
    "media/*": "media/test_media media/test_pictures writers/test_video_file media/test_depth",
    "eval/metrics.py": "eval/test_metrics eval/test_metrics_regions eval/test_metrics_grounded "
    "eval/test_benchmarks_videos",
    "train/losses.py": "train/test_losses",
    "data/annotations/unpickle.py": "data/test_unpickle",
    "data/annotations/*": "data/test_formats_images data/test_formats_videos data/test_sources_foreign "
    "data/test_own_data data/test_sources_images data/test_sources_videos "
    "data/test_sparse_videos",
    "processing/*": "processing/test_processor parity/test_processing",
    "checkpoint/adapter.py": "train/test_merge",
    "checkpoint/*": "checkpoint/test_checkpoints checkpoint/test_checkpoint_forms checkpoint/test_checkpoint_fuzz",
    "model/quantization.py": "model/test_quantization",
    "model/finite.py": "model/test_finite",
    "model/generation.py": "model/test_prompt_reader results/test_history",
    "model/memory*.py": "inference/test_tracker parity/test_sam2",
    "model/*": "model/test_model model/test_canaries parity/test_sam2 parity/test_vlm checkpoint/test_checkpoints",
    "inference/sasasa2va.py": "inference/test_compressed",
    "inference/predict_forward.py": "checkpoint/test_released_code",
    "inference/*": "inference/test_scene inference/test_predictor inference/test_tracker inference/test_compressed "
    "results/test_results",
}

# -- changes -----------------------------------------------------------------------------------------------------------

_TURNED = {
    **{ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
}
_SHIFTED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
_EXCHANGED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.And: ast.Or, ast.Or: ast.And}


@dataclass(frozen=True)
class Change:
    """One small change: what stands at (line, column) of a file until (end line, end column) becomes ``new``."""

    file: str
    start: tuple[int, int]
    end: tuple[int, int]
    new: str
    function: int  # First line of the function that holds it; 0 at module or class level.

    @property
    def place(self) -> str:
        return f"{self.file}:{self.start[0]}:{self.start[1]}"

    def _cut(self) -> tuple[bytes, bytes, bytes]:
        # Columns of ast are bytes.
        lines = (SOURCE / self.file).read_bytes().splitlines(keepends=True)
        first, last = (sum(map(len, lines[: line - 1])) + column for line, column in (self.start, self.end))
        text = b"".join(lines)
        return text[:first], text[first:last], text[last:]

    def apply(self) -> bytes:
        before, _, after = self._cut()
        return before + self.new.encode() + after

    def __str__(self) -> str:
        return f"{self.place}  {' '.join(self._cut()[1].decode().split())}  ->  {self.new}"


def changes(file: str) -> list[Change]:
    """All changes of a file. Annotations and what an error says are left alone."""
    found: list[Change] = []

    def visit(node: ast.AST, function: int, returns_bool: bool) -> None:
        if isinstance(node, ast.FunctionDef):
            function = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            returns_bool = isinstance(node.returns, ast.Name) and node.returns.id == "bool"
        for new in _changed(node, returns_bool):
            at = node.value if isinstance(node, ast.Return) and node.value else node
            start, end = (at.lineno, at.col_offset), (at.end_lineno or 0, at.end_col_offset or 0)  # pyright: ignore
            found.append(
                Change(file, start, end, ast.unparse(new) if _atom(new) else f"({ast.unparse(new)})", function)
            )
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not isinstance(child, ast.Raise | ast.JoinedStr):
                    visit(child, function, returns_bool)

    visit(ast.parse((SOURCE / file).read_bytes()), 0, False)
    return found


def _atom(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant | ast.AugAssign)


def _changed(node: ast.AST, returns_bool: bool) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(left, operators, right):
            for table in (_TURNED, _SHIFTED):
                for i, operator in enumerate(operators):
                    if type(operator) in table:
                        new = [*operators[:i], table[type(operator)](), *operators[i + 1 :]]
                        yield ast.Compare(left, new, right)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(_EXCHANGED[type(operator)](), values)
        case ast.BinOp(left, ast.Add() | ast.Sub() as operator, right) if not (_is_text(left) or _is_text(right)):
            yield ast.BinOp(left, _EXCHANGED[type(operator)](), right)
        case ast.AugAssign(target, ast.Add() | ast.Sub() as operator, value) if not _is_text(value):
            yield ast.AugAssign(target, _EXCHANGED[type(operator)](), value)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.Return(ast.Constant(bool(value))):
            yield ast.Constant(not value)
        case ast.Return(value) if returns_bool and value:
            yield ast.UnaryOp(ast.Not(), value)
        case ast.Constant(int() | float() as value) if not isinstance(value, bool):
            yield ast.Constant(value + 1)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr | ast.List) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


# -- runs --------------------------------------------------------------------------------------------------------------


@dataclass
class Recorder:
    """A pytest plugin that learns each test's time and the functions of the package that it enters."""

    package: str
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    _entered: set[tuple[str, int]] = field(default_factory=set)
    _begin: float = 0.0

    def _trace(self, frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if code.co_filename.startswith(self.package):
            self._entered.add((code.co_filename[len(self.package) :], code.co_firstlineno))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._entered.clear()
        self._begin = time.process_time()
        sys.settrace(self._trace)
        threading.settrace(self._trace)

    def pytest_runtest_logreport(self, report: Any) -> None:
        test = self.tests.setdefault(report.nodeid, {"passed": True})
        test["seconds"] = time.process_time() - self._begin
        test["passed"] &= report.passed
        test["entered"] = sorted(self._entered)


@dataclass
class Chooser:
    """A pytest plugin that runs the chosen tests in their order."""

    chosen: list[str]

    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings

        # What fails needs no smallest example.
        settings.register_profile("mutation", settings(), phases=(Phase.explicit, Phase.generate), database=None)
        settings.load_profile("mutation")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        place = {name: i for i, name in enumerate(self.chosen)}
        items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])


def _fork(copy: Path, job: Callable[[], int], limit: float, log: Path) -> int | None:
    """Exit status of a job in a process of its own that imports the copy; None where it ran past its CPU seconds."""
    child = os.fork()
    if child == 0:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 1))
        sys.path.insert(0, str(copy))
        os.environ["PYTHONPATH"] = str(copy)
        status = 70
        try:
            status = int(job())
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    end = time.monotonic() + 20 * limit  # The machine may be busy with other things.
    try:
        while time.monotonic() < end:
            if (done := os.waitpid(child, os.WNOHANG))[0]:
                status = os.waitstatus_to_exitcode(done[1])
                return None if status in (-signal.SIGXCPU, -signal.SIGKILL) else status
            time.sleep(0.05)
        return None
    finally:
        # Also what tests started and left behind; the child itself where it ran too long or this program is stopped.
        with suppress(ProcessLookupError, PermissionError, ChildProcessError):
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _pytest(files: list[str], plugin: object, *options: str) -> int:
    import pytest

    where = [f"tests/{name}.py" for name in files]
    # Its plugins are among the modules that were imported before the fork.
    quiet = ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return pytest.main(["-q", "--hypothesis-seed=0", *quiet, *options, *where], plugins=[plugin])


class Laboratory:
    """The copy of the package and what is known of the tests."""

    def __init__(self, work: Path, budget: float) -> None:
        self.work, self.budget = work, budget
        self.copy = work / "package"
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(SOURCE, self.copy / "sa2va", ignore=shutil.ignore_patterns("__pycache__"))
        self._known: dict[str, dict[str, Any]] = {}

    def tests_of(self, test_file: str) -> dict[str, Any]:
        """Of each test of a file that passes: its time and what it enters; learnt once, kept in the work folder."""
        if test_file not in self._known:
            kept = self.work / f"{test_file.replace('/', '-')}.json"
            if not kept.is_file() or kept.stat().st_mtime < (ROOT / "tests" / f"{test_file}.py").stat().st_mtime:

                def record() -> int:
                    recorder = Recorder(f"{self.copy}/sa2va/")
                    status = _pytest([test_file], recorder)
                    sys.settrace(None)
                    loaded = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
                    modules = [
                        name for name, path in loaded.items() if "site-packages" in path and "pytest" not in path
                    ]
                    kept.write_text(json.dumps({"tests": recorder.tests, "modules": modules}))
                    return status

                status = _fork(self.copy, record, 900, kept.with_suffix(".log"))
                print(f"  learnt {test_file}, status {status}", flush=True)
            known = json.loads(kept.read_text())
            for module in known["modules"]:
                with suppress(Exception):
                    import_module(module)
            self._known[test_file] = {name: test for name, test in known["tests"].items() if test["passed"]}
        return self._known[test_file]

    def fate(self, change: Change) -> str:
        """Whether a change "survived", was "killed" by a test, or ran into the "time limit"."""
        files = list(
            dict.fromkeys(t for pattern, tests in TABLE.items() if fnmatch(change.file, pattern) for t in tests.split())
        )
        ranked = sorted(
            ([change.file, change.function] not in test["entered"], files.index(file) // 3, test["seconds"], name)
            for file in files
            for name, test in self.tests_of(file).items()
        )
        chosen, total = [], 0.0
        for aside, _, seconds, name in ranked:
            if not chosen or total + seconds <= (self.budget if aside else 3 * self.budget):
                chosen.append(name)
                total += seconds
        if not chosen:
            return "survived"
        needed = [file for file in files if any(name.startswith(f"tests/{file}.py::") for name in chosen)]
        target = self.copy / "sa2va" / change.file
        target.write_bytes(change.apply())

        def run() -> int:
            sys.dont_write_bytecode = True
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            return _pytest(needed, Chooser(chosen), "-x")

        try:
            status = _fork(self.copy, run, 30 + 4 * total, self.work / "last.log")
            return {0: "survived", None: "time limit"}.get(status, "killed")
        finally:
            shutil.copy2(SOURCE / change.file, target)


def sample(patterns: list[str], seed: int) -> Iterator[Change]:
    """The changes of all files that fit, shuffled, and so mixed that every part of the list takes its even share."""
    files = sorted({str(p.relative_to(SOURCE)) for p in SOURCE.rglob("*.py")})
    taken = [f for f in files if any(fnmatch(f, p) for p in patterns) and any(fnmatch(f, p) for p in TABLE)]
    placed: list[tuple[float, Change]] = []
    for file in taken:
        mine = changes(file)
        random.Random(f"{seed} {file}").shuffle(mine)
        placed += [((i + 0.5) / len(mine), change) for i, change in enumerate(mine)]
    yield from (change for _, change in sorted(placed, key=lambda pair: (pair[0], pair[1].place, pair[1].new)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=["*"], help="patterns of files below src/sa2va")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30, help="begin no change after this many minutes")
    parser.add_argument("--budget", type=float, default=10, help="seconds for tests that do not enter the function")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first changes, which an earlier run did")
    parser.add_argument("--only", nargs="+", default=[], help="only changes at these places, FILE:LINE:COLUMN")
    parser.add_argument("--list", action="store_true", help="print the changes and run nothing")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sa2va-mutation")
    options = parser.parse_args()
    patterns = [place.split(":")[0] for place in options.only] or options.files
    listed = [change for change in sample(patterns, options.seed) if not options.only or change.place in options.only]
    if options.list:
        print(*listed, f"{len(listed)} changes", sep="\n")
        return
    os.chdir(ROOT)
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    laboratory = Laboratory(options.work, options.budget)
    end = time.monotonic() + 60 * options.minutes
    fates: dict[str, Counter[str]] = {}
    for change in listed[options.skip :]:
        if time.monotonic() > end:
            break
        fate = laboratory.fate(change)
        fates.setdefault(change.file.rpartition("/")[0], Counter())[fate] += 1
        print(f"{fate:10} {change}", flush=True)
    print(f"\nseed {options.seed}: of {len(listed)} changes")
    for room, counts in [*sorted(fates.items()), ("all", sum(fates.values(), Counter()))]:
        print(f"  {room:20}", *(f"{counts[fate]:5} {fate}" for fate in ("killed", "time limit", "survived")))


if __name__ == "__main__":
    main()
