"""Whether the tests notice when the code is wrong: small changes to it, each run against the tests that execute it.

    python benchmarks/mutation.py --minutes 20                    # all files of the table, evenly
    python benchmarks/mutation.py --minutes 5 masks/* eval/metrics.py
    python benchmarks/mutation.py --list masks/mask.py            # the changes, without running any
    python benchmarks/mutation.py --only masks/mask.py:63:21      # those at one place

One change at a time: a comparison turned or shifted by its equality, a number moved by one, + and - or ``and`` and
``or`` exchanged, a ``not`` dropped, a returned truth value turned.

* The tests of a file are run once unchanged, to learn their times and the lines they execute (kept in ``--work``).
* One process has imported the package, collected the tests and loaded their models. Each change is a fork of it, in
  which the code of the changed functions is replaced; the tests that execute the changed line run there, the quick
  first and one row of each parametrised test before the others, until one fails or ``--budget`` seconds are spent.
* What nobody noticed there, and whatever is evaluated at import (constants, defaults of parameters), runs once more in
  a fork that imports a changed copy of the package, together with the models that its tests load.
* A test that fails is believed when it passes unchanged. One that uses five times its CPU time counts as noticing.

The same seed takes the same changes in the same order. Changes that change nothing are in ``mutation_equivalent.toml``.
"""

from __future__ import annotations

import argparse
import ast
import gc
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import tomllib
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

NOTICED = ("killed", "time limit")
ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "sa2va"
#: Changes that nobody could notice: by file, what the changed line becomes, and why it is the same.
EQUIVALENT = Path(__file__).with_name("mutation_equivalent.toml")

#: Which test files concern which source files: those of every pattern that fits.
TABLE = {
    "masks/*": "masks/test_mask_ops masks/test_mask_runs results/test_results visualization/test_draw "
    "writers/test_writers writers/test_exits_of_tracks",
    "media/*": "media/test_media media/test_pictures media/test_pages media/test_depth writers/test_video_file",
    "media/cuts.py": "inference/test_asked_again",
    "eval/metrics.py": "eval/test_metrics eval/test_metrics_regions eval/test_metrics_grounded eval/test_track_metrics",
    "train/losses.py": "train/test_losses",
    "data/annotations/*": "data/test_formats_images data/test_formats_videos data/test_sources_foreign "
    "data/test_own_data data/test_sources_images data/test_sources_videos data/test_sparse_videos data/test_unpickle",
    "processing/*": "processing/test_processor parity/test_processing",
    "checkpoint/*": "checkpoint/test_checkpoints checkpoint/test_checkpoint_forms checkpoint/test_checkpoint_fuzz "
    "checkpoint/test_original_decoder inference/test_propagators parity/test_sa2vai",
    "checkpoint/adapter.py": "train/test_merge",
    "model/*": "model/test_model model/test_canaries model/test_finite model/test_prompt_reader "
    "model/test_quantization inference/test_foreground inference/test_tracker inference/test_local_memory "
    "inference/test_engine inference/test_propagators parity/test_sam2 parity/test_vlm",
    "inference/*": "inference/test_scene inference/test_predictor inference/test_tracker inference/test_compressed "
    "inference/test_engine inference/test_memory_policies inference/test_local_memory inference/test_second_looks "
    "inference/test_asked_again inference/test_propagators checkpoint/test_released_code media/test_media "
    "parity/test_end_to_end serve/test_jobs results/test_results results/test_history results/test_notebook",
}
#: Seconds up to which every row of a parametrised test is tried at once.
_AT_ONCE = 0.05
#: Models of ``conftest.load`` that many tests share.
MODELS = ("iv25_qwen2", "q25", "q3")
#: What a fresh import of the package and its tests begins with.
OTHERS = (
    "torch transformers hypothesis scipy.ndimage PIL.Image av cv2 safetensors.torch pycocotools.mask "
    "transformers.models.sam2_video.modeling_sam2_video transformers.models.qwen2.modeling_qwen2 "
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl transformers.models.qwen3_vl.modeling_qwen3_vl"
)


# -- changes -----------------------------------------------------------------------------------------------------------

_TURNED = {
    **{ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
}
_SHIFTED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
_EXCHANGED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.And: ast.Or, ast.Or: ast.And}
#: What is said, where a warning points, and how much a cache keeps: nothing that a result depends on.
_SAID = {"warn", "warning", "info", "debug", "lru_cache"}


@dataclass(frozen=True)
class Change:
    """One small change: what stands at (line, column) of a file until (end line, end column) becomes ``new``."""

    file: str
    start: tuple[int, int]
    end: tuple[int, int]
    new: str
    body: tuple[int, int] | None  # First and last line of the statement in a function; None for what import evaluates.
    users: tuple[int, int] | str  # Else the lines of the function whose default it is, or a name that others use.

    @property
    def place(self) -> str:
        return f"{self.file}:{self.start[0]}:{self.start[1]}"

    @cached_property
    def _cut(self) -> tuple[bytes, bytes, bytes]:
        # Columns of ast are bytes.
        lines = (SOURCE / self.file).read_bytes().splitlines(keepends=True)
        first, last = (sum(map(len, lines[: line - 1])) + column for line, column in (self.start, self.end))
        text = b"".join(lines)
        return text[:first], text[first:last], text[last:]

    def apply(self) -> bytes:
        before, old, after = self._cut
        blank = b"\n" * old.count(b"\n")  # Lines below keep their numbers.
        new = self.new.encode()
        return before + (new[:-1] + blank + b")" if blank and new.endswith(b")") else new + blank) + after

    @property
    def becomes(self) -> str:
        """What its lines are afterwards, on one line."""
        lines = self.apply().decode().splitlines()[self.start[0] - 1 : self.end[0]]
        return " ".join(" ".join(lines).split())

    def __str__(self) -> str:
        return f"{self.place}  {' '.join(self._cut[1].decode().split())}  ->  {self.new}"


def changes(file: str) -> list[Change]:
    """All changes of a file. Annotations, what an error says, and what is known to change nothing are left alone."""
    found: list[Change] = []
    same = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")).get(file, {})

    def visit(node: ast.AST, body: tuple[int, int] | None, users: tuple[int, int] | str, returns_bool: bool) -> None:
        if isinstance(node, ast.stmt | ast.match_case):
            if body:
                body = _head(node)
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.ClassDef):
                target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", node)
                names = [getattr(one, "id", getattr(one, "name", "")) for one in getattr(target, "elts", [target])]
                users = f"(?:{'|'.join(names)})" if all(names) else users
        for new in _changed(node, returns_bool, limits=body is None):
            at = node.value if isinstance(node, ast.Return) and node.value else node
            start, end = (at.lineno, at.col_offset), (at.end_lineno or 0, at.end_col_offset or 0)  # pyright: ignore
            text = ast.unparse(new) if isinstance(new, ast.Constant | ast.AugAssign) else f"({ast.unparse(new)})"
            change = Change(file, start, end, text, body, users)
            if change.becomes not in same:
                found.append(change)
        for name, value in ast.iter_fields(node):
            inside, concerned = body, users
            if isinstance(node, ast.FunctionDef):
                if name == "body":
                    inside = (node.lineno, node.lineno)
                    returns_bool = isinstance(node.returns, ast.Name) and node.returns.id == "bool"
                elif not body:
                    concerned = (node.body[0].lineno, node.end_lineno or 0)
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _left_alone(name, child):
                    visit(child, inside, concerned, returns_bool)

    visit(ast.parse((SOURCE / file).read_bytes()), None, "", False)
    return found


def _left_alone(name: str, node: ast.AST) -> bool:
    called = node.func if isinstance(node, ast.Call) else None
    return (
        name in ("annotation", "returns")
        or isinstance(node, ast.Raise | ast.JoinedStr)
        or getattr(called, "attr", getattr(called, "id", None)) in _SAID
    )


def _head(node: ast.stmt | ast.match_case) -> tuple[int, int]:
    """Lines of a statement without those of the statements in it."""
    if isinstance(node, ast.match_case):
        return node.pattern.lineno, node.body[0].lineno
    inner = getattr(node, "body", None) or [case.pattern for case in getattr(node, "cases", ())]
    return node.lineno, max(node.lineno, inner[0].lineno - 1) if inner else node.end_lineno or 0


def _changed(node: ast.AST, returns_bool: bool, limits: bool) -> Iterator[ast.AST]:
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
            # A limit that a file states in thousands is none the worse for one more.
            if not limits or value < 1000:
                yield ast.Constant(value + 1)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr | ast.List) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


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


# -- processes ---------------------------------------------------------------------------------------------------------


def _fork(job: Callable[[], int], limit: float, log: Path) -> tuple[int, float]:
    """Exit status of a job in a process of its own, negative where a signal or the limit ended it; its CPU seconds."""
    child = os.fork()
    if child == 0:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 1))
        status = 70
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)  # makes its pool anew, which fails where several threads of a test do it at once
        try:
            status = int(job())
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    end = time.monotonic() + 60 + 10 * limit  # The machine may be busy with other things.
    try:
        while time.monotonic() < end:
            ended, status, used = os.wait4(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
            time.sleep(0.02)
        return -signal.SIGXCPU, limit
    finally:
        # Also what tests started and left behind; the child itself where it ran too long or this program is stopped.
        with suppress(ProcessLookupError, PermissionError, ChildProcessError):
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _pytest(files: list[str], plugin: object) -> int:
    where = [f"tests/{name}.py" for name in files]
    # Its plugins are among the modules that were imported before the fork.
    quiet = ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-s", "--tb=short"]
    return pytest.main(["-q", "--hypothesis-seed=0", *quiet, *where], plugins=[plugin])


@dataclass
class Lines:
    """The lines of a package that are executed."""

    package: str
    of_fixtures: dict[str, dict[str, set[int]]] = field(default_factory=dict)
    _found: dict[int, tuple[CodeType, set[int], int]] = field(default_factory=dict)

    @contextmanager
    def fixture(self, name: str) -> Iterator[None]:
        """What runs here belongs to all tests that use a fixture."""
        before, self._found = self._found, {}
        yield
        self.of_fixtures[name], self._found = self._executed(), before

    def start(self) -> None:
        self._found = {}
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def stop(self) -> dict[str, set[int]]:
        sys.settrace(None)
        threading.settrace(None)  # pyright: ignore[reportArgumentType]
        return self._executed()

    def _executed(self) -> dict[str, set[int]]:
        lines: dict[str, set[int]] = defaultdict(set)
        for code, seen, _ in self._found.values():
            lines[code.co_filename[len(self.package) :]] |= seen
        return lines

    def _enter(self, frame: Any, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(self.package):
            return None
        if id(code) not in self._found:
            self._found[id(code)] = code, {code.co_firstlineno}, len({line for *_, line in code.co_lines()})
        _, seen, count = self._found[id(code)]
        if len(seen) == count:
            return None

        def line(frame: Any, event: str, argument: Any) -> Any:
            seen.add(frame.f_lineno)
            return line

        return line


@dataclass(eq=False)
class Collected:
    """A pytest plugin that runs tests when it is asked to, in any order, instead of all once."""

    ask: Callable[[Collected], None]
    session: Any = None
    failed: bool = False
    lines: Lines | None = None  # while they are recorded
    models: tuple[str, ...] = ()  # that the next test loads

    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings

        # What fails needs no smallest example.
        settings.register_profile("mutation", settings(), phases=(Phase.explicit, Phase.generate), database=None)
        settings.load_profile("mutation")

    def pytest_runtestloop(self, session: Any) -> bool:
        self.session = session
        self.ask(self)
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed = True
            print(report.longreprtext)

    def pytest_runtest_call(self, item: Any) -> None:
        for model in self.models:
            item._request.getfixturevalue("open_sa2va")(model)
        self.models = ()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        lines = self.lines if fixturedef.scope != "function" else None
        with lines.fixture(fixturedef.argname) if lines else nullcontext():
            return (yield)

    def passes(self, item: Any, following: Any = None) -> bool:
        self.failed = False
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        return not self.failed

    def first_failure(self, chosen: list[tuple[str, float]], found: Path) -> int:
        """1 with a test's name in the file, or 0; a signal ends the process where a test takes far too long."""
        items = {item.nodeid: item for item in self.session.items}
        tests = [(items[name], limit) for name, limit in chosen]
        for (item, limit), (following, _) in zip(tests, [*tests[1:], (None, 0)], strict=True):
            found.write_text(item.nodeid)
            signal.setitimer(signal.ITIMER_PROF, limit)
            if not self.passes(item, following or self.session):
                return 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        return 0


def _replace(file: Path, old: bytes, new: bytes) -> None:
    """Functions of a loaded module get the code of its changed text."""

    def codes(text: bytes) -> Iterator[CodeType]:
        waiting = [compile(text, str(file), "exec", dont_inherit=True)]
        while waiting:
            yield (code := waiting.pop())
            waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]

    pairs = {before: after for before, after in zip(codes(old), codes(new), strict=True) if before != after}
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__.co_filename == str(file):
            function.__code__ = pairs.get(function.__code__, function.__code__)


# -- runs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Test:
    name: str
    seconds: float

    @property
    def function(self) -> str:
        return self.name.partition("[")[0]


class Laboratory:
    """The copy of the package, what is known of the tests, and the process that has them ready."""

    def __init__(self, work: Path, budget: float, files: list[str]) -> None:
        self.work, self.budget = work, budget
        self.package = work / "package" / "sa2va"
        self.found = work / "test.txt"
        shutil.rmtree(self.package.parent, ignore_errors=True)
        shutil.copytree(SOURCE, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        os.environ |= {"PYTHONPATH": str(self.package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # torch does not compute in threads that a fork starts
        sys.path.insert(0, str(self.package.parent))
        sys.dont_write_bytecode = True
        self._by_line: dict[tuple[str, int], set[Test]] = defaultdict(set)
        self._learnt: set[str] = set()
        self._believed: set[str] = set()
        self._unfit: set[str] = set()
        self._imported = False
        self.spent = 0.0  # CPU seconds of changes
        self._texts = {str(p.relative_to(SOURCE)): p.read_text(encoding="utf-8") for p in SOURCE.rglob("*.py")}
        self._asked, serving = Pipe()
        tests = sorted({t for f in files for t in _test_files(f)})
        if os.fork() == 0:
            log = os.open(work / "ready.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            self._asked.close()
            try:
                _pytest(tests, Collected(lambda collected: self._serve(collected, serving)))
            finally:
                os._exit(0)
        serving.close()
        self._asked.recv()  # Until then the package is being imported: no change may be in it.

    # In the process that has everything ready:

    def _serve(self, collected: Collected, asked: Connection) -> None:
        if item := next((item for item in collected.session.items if "open_sa2va" in item.fixturenames), None):
            collected.models = MODELS
            collected.passes(item, collected.session)
        gc.collect()
        gc.freeze()
        asked.send("ready")
        with suppress(EOFError):
            while request := asked.recv():
                match request:
                    case "learn", file:
                        log = self.work / f"{_flat(file)}.log"
                        asked.send(_fork(lambda file=file: self._learn(collected, file), 1200, log))
                    case "try", file, old, new, chosen:

                        def run() -> int:
                            gc.unfreeze()
                            if old != new:
                                _replace(self.package / file, old, new)
                            return collected.first_failure(chosen, self.found)

                        asked.send(_fork(run, 5 + sum(limit for _, limit in chosen), self.work / "last.log"))

    def _learn(self, collected: Collected, file: str) -> int:
        """Write of each test that passes within the budget: its time, and the lines that it or its fixtures execute."""

        def stop(*_: Any) -> None:
            raise TimeoutError

        signal.signal(signal.SIGPROF, stop)
        items = [item for item in collected.session.items if item.nodeid.startswith(f"tests/{file}.py::")]
        lines, tests = Lines(f"{self.package}/"), []
        collected.lines = lines
        for item, following in zip(items, [*items[1:], collected.session], strict=True):
            begin = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, self.budget)
            lines.start()
            passed = collected.passes(item, following)
            executed = lines.stop()
            signal.setitimer(signal.ITIMER_PROF, 0)
            for fixture in item.fixturenames:
                for name, found in lines.of_fixtures.get(fixture, {}).items():
                    executed[name] |= found
            if passed:
                taken = {name: sorted(found) for name, found in executed.items() if _concerned(name)}
                tests.append([item.nodeid, time.process_time() - begin, taken])
        (self.work / f"{_flat(file)}.json").write_text(json.dumps(tests))
        return 0

    # In the process that asks:

    def learn(self, file: str) -> None:
        """Know the tests of a file; what an earlier run wrote down holds while neither they nor the package change."""
        if file in self._learnt:
            return
        self._learnt.add(file)
        kept = self.work / f"{_flat(file)}.json"
        newest = max(p.stat().st_mtime for p in [ROOT / "tests" / f"{file}.py", *SOURCE.rglob("*.py")])
        if not kept.is_file() or kept.stat().st_mtime < newest:
            self._asked.send(("learn", file))
            status, seconds = self._asked.recv()
            print(f"  learnt {file}, status {status}, {seconds:.0f} s", flush=True)
        for name, seconds, executed in json.loads(kept.read_text()):
            test = Test(name, seconds)
            for where, lines in executed.items():
                for line in lines:
                    self._by_line[where, line].add(test)

    def fate(self, change: Change) -> str:
        """Whether a change "survived", was "killed" by a test, or ran into the "time limit"."""
        for file in _test_files(change.file):
            self.learn(file)
        old, new = (SOURCE / change.file).read_bytes(), change.apply()
        (self.package / change.file).write_bytes(new)
        try:
            fate = "no test"
            for ready in (True, False) if change.body else (False,):
                if chosen := self._chosen(change):
                    fate = self._tried(change.file, old, new, chosen, ready)
                if fate in NOTICED:
                    break
            return fate
        finally:
            shutil.copy2(SOURCE / change.file, self.package / change.file)

    def _tried(self, file: str, old: bytes, new: bytes, chosen: list[Test], ready: bool) -> str:
        while chosen:
            status = self._run(file, old, new, chosen, ready)
            if status == 0:
                return "survived"
            if status < 0:
                return "time limit"
            failed = self.found.read_text()
            if failed in self._believed:
                return "killed"
            (self.package / file).write_bytes(old)
            # None began where the package cannot even be imported; then it must be possible unchanged.
            alone = [test for test in chosen if test.name == failed] or chosen[:1]
            status = self._run(file, old, old, alone, ready)
            if status == 0:
                self._believed.add(failed)
                return "killed"
            (self.package / file).write_bytes(new)
            shutil.copy(self.work / "last.log", self.work / f"unfit{len(self._unfit)}.log")
            print(f"  {alone[0].name} fails alone and unchanged, status {status}", flush=True)
            self._unfit.add(alone[0].name)
            chosen = [test for test in chosen if test != alone[0]]
        return "no test"

    def _run(self, file: str, old: bytes, new: bytes, chosen: list[Test], ready: bool) -> int:
        limits = [(test.name, 5 + 5 * test.seconds) for test in chosen]
        self.found.write_text("")
        if ready:
            self._asked.send(("try", file, old, new, limits))
            status, seconds = self._asked.recv()
            self.spent += seconds
            return status
        self._import_others()
        files = sorted({test.name.partition("::")[0][len("tests/") : -len(".py")] for test in chosen})

        def run() -> int:
            status = 70

            def ask(collected: Collected) -> None:
                nonlocal status
                status = collected.first_failure(limits, self.found)

            _pytest(files, Collected(ask))
            return status

        status, seconds = _fork(run, 60 + sum(limit for _, limit in limits), self.work / "last.log")
        self.spent += seconds
        return status

    def _import_others(self) -> None:
        """Once, what every fresh import of the package needs."""
        if not self._imported:
            self._imported = True
            for module in OTHERS.split():
                with suppress(ImportError):
                    import_module(module)

    def _chosen(self, change: Change) -> list[Test]:
        near = self._executing(change)
        order: dict[str, int] = {}
        ranked = []
        for test in sorted(near, key=lambda test: (test.seconds, test.name)):
            order[test.function] = order.get(test.function, -1) + 1
            ranked.append((near[test], order[test.function] if test.seconds > _AT_ONCE else 0, test.seconds, test))
        chosen, total = [], 0.0
        for *_, seconds, test in sorted(ranked, key=lambda entry: entry[:3]):
            if not chosen or total + seconds <= self.budget:
                chosen.append(test)
                total += seconds
        return chosen

    def _executing(self, change: Change) -> dict[Test, int]:
        """Tests that execute a change, and how far from it: 0 its own lines."""
        inside = [(change.file, line) for line in range(change.start[0], change.end[0] + 1)]
        around: list[tuple[str, int]] = []
        if change.body:
            around = [(change.file, line) for line in range(change.body[0], change.body[1] + 1)]
        elif isinstance(change.users, tuple):
            inside = [(change.file, line) for line in range(change.users[0], change.users[1] + 1)]
        elif change.users:
            name = re.compile(rf"\b{change.users}\b")
            for file, text in self._texts.items():
                found = [(file, i) for i, line in enumerate(text.splitlines(), 1) if name.search(line)]
                inside, around = (inside + found, around) if file == change.file else (inside, around + found)
        # What runs at import only is executed by no test: then those of the whole file.
        whole = [place for place in self._by_line if place[0] == change.file]
        fit: dict[Test, int] = {}
        for distance, places in ((0, inside), (1, around), (2, whole)):
            if distance == 2 and fit:
                break
            for test in set().union(*(self._by_line.get(place, ()) for place in places)):
                if test.name not in self._unfit:
                    fit.setdefault(test, distance)
        return fit


def _flat(file: str) -> str:
    return file.replace("/", "-")


def _concerned(file: str) -> bool:
    return any(fnmatch(file, pattern) for pattern in TABLE)


def _test_files(file: str) -> list[str]:
    return [test for pattern, tests in TABLE.items() if fnmatch(file, pattern) for test in tests.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=["*"], help="patterns of files below src/sa2va")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30, help="begin no change after this many minutes")
    parser.add_argument("--budget", type=float, default=8, help="CPU seconds of tests for one change")
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
    end = time.monotonic() + 60 * options.minutes
    taken = listed[options.skip :]
    laboratory = Laboratory(options.work, options.budget, sorted({change.file for change in taken}))
    fates: dict[str, Counter[str]] = {}
    for change in taken:
        if time.monotonic() > end:
            break
        begin = laboratory.spent
        fate = laboratory.fate(change)
        fates.setdefault(change.file.rpartition("/")[0], Counter())[fate] += 1
        end_of_line = "" if fate in NOTICED else f"\n    becomes {change.becomes}"
        print(f"{fate:10} {laboratory.spent - begin:5.1f} s  {change}{end_of_line}", flush=True)
    print(f"\nseed {options.seed}: of {len(listed)} changes")
    for room, counts in [*sorted(fates.items()), ("all", sum(fates.values(), Counter()))]:
        print(f"  {room:20}", *(f"{counts[fate]:5} {fate}" for fate in ("killed", "time limit", "survived", "no test")))


if __name__ == "__main__":
    main()
