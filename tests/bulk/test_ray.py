"""A batch on a real Ray of several nodes on this machine: what is killed in the middle, and what comes out."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from PIL import Image
from ray.cluster_utils import Cluster
from stand_in import StandInSource

import sa2va
from sa2va.bulk import Answerer
from sa2va.cli import main
from synthetic_checkpoint import picture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]
ROWS = 200


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and two more nodes, a CPU each."""
    patch = pytest.MonkeyPatch()
    places = [
        str(Path(sa2va.__file__).parents[1]),
        str(Path(__file__).parent),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    patch.setenv("PYTHONPATH", os.pathsep.join(places))
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("OMP_NUM_THREADS", "1")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    patch.undo()


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small pictures, and one that is broken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sa2va.bulk.worker_pool.ModelSource", StandInSource)
    Path("pics").mkdir()
    for number in range(ROWS - 1):
        Image.fromarray(picture(24, 16, number)).save(f"pics/{number:03d}.png")
    Path("pics/broken.png").write_text("no picture")
    return str(tmp_path / "pics")


def run(source: str, *options: str) -> list[dict[str, Any]]:
    """The answers of a batch; its model notes what it answers in the file ``asked``."""
    assert main(["batch", source, "the dog", "-o", "out", "-m", os.path.abspath("asked"), "--ray", *options]) == 0
    return [json.loads(line) for line in Path("out/answers.jsonl").read_text().splitlines()]


def checked(rows: list[dict[str, Any]]) -> None:
    """Every row is there once, in order."""
    assert [row["index"] for row in rows] == list(range(ROWS))
    assert Counter(row["error"] is None for row in rows) == {True: ROWS - 1, False: 1}
    assert len({row["id"] for row in rows}) == ROWS
    assert all(len(row["segments"]) == 1 and row["size"] == [16, 24] for row in rows if row["error"] is None)


def noted() -> list[list[str]]:
    return [line.split() for line in Path("asked").read_text().splitlines()] if Path("asked").exists() else []


def after(rows: int, kill: Callable[[list[str]], None]) -> threading.Thread:
    """Call with the last line noted when so many rows were answered."""

    def watch() -> None:
        while len(noted()) < rows:
            time.sleep(0.02)
        kill(noted()[-1])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_every_row_once(cluster, pictures):
    rows = run(pictures, "--replicas", "2")
    checked(rows)
    assert "not" in next(row["error"] for row in rows if row["error"])
    assert Counter(int(line[0]) for line in noted()) == {row["index"]: 1 for row in rows if not row["error"]}


def test_two_replicas_on_two_cpus_leave_room_for_reading(cluster, pictures):
    """As many models as there are CPUs: if each held one, nothing could be read."""
    checked(run(pictures, "--replicas", "3"))


def test_a_killed_actor(cluster, pictures):
    killer = after(40, lambda line: os.kill(int(line[1]), signal.SIGKILL))
    checked(run(pictures, "--replicas", "2"))
    assert not killer.is_alive() and len({line[1] for line in noted()}) >= 2


def test_a_killed_node(cluster, pictures):
    head = ray.get_runtime_context().get_node_id()
    lost: list[str] = []

    def kill(line: list[str]) -> None:
        node = next(node for node in cluster.worker_nodes if node.node_id == line[2] or line[2] == head)
        lost.append(node.node_id)
        cluster.remove_node(node, allow_graceful=False)

    killer = after(40, kill)
    checked(run(pictures, "--replicas", "3"))
    killer.join(60)
    assert lost and not killer.is_alive()


def test_answerer_in_a_pipeline_of_ones_own(cluster, tmp_path):
    for number in range(6):
        Image.fromarray(picture(40, 30, number)).save(tmp_path / f"{number}.png")
    found = ray.data.read_images(str(tmp_path), include_paths=True).map_batches(
        Answerer,
        fn_constructor_kwargs={"model": "tiny", "phrases": ["the red car"], "device": "cpu"},
        batch_size=4,
        num_cpus=0,
        concurrency=1,
    )
    rows = sorted(found.take_all(), key=lambda row: row["path"])
    assert [Path(row["path"]).name for row in rows] == [f"{number}.png" for number in range(6)]
    assert all(row["error"] is None and list(row["size"]) == [30, 40] for row in rows)
