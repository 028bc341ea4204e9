"""Tracking jobs, also of servers that are killed."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import pytest
from live_server import VIDEO, Running, clip
from PIL import Image

from sa2va import Frame, Sa2VA
from sa2va.serve.monitoring import Monitoring
from sa2va.serve.track_jobs import JobRunner, JobStore, TrackJob

HAT = "the orange hat"


def post(client: httpx2.Client, video: bytes = VIDEO, **fields: Any) -> str:
    reply = client.post("/v1/track", files={"video": video}, data={"phrases": HAT, **fields})
    assert reply.status_code == 202, reply.text
    assert reply.headers["location"] == f"/v1/jobs/{reply.json()['id']}"
    return reply.json()["id"]


def wait(client: httpx2.Client, job: str, *states: str, seconds: float = 60) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while (found := client.get(f"/v1/jobs/{job}").json())["state"] not in states:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def test_a_job_from_the_video_to_its_files(server: Running, tiny: Sa2VA, tmp_path: Path) -> None:
    with server.http as client:
        job = post(client, clip(4), **{"return": ["overlay", "masks", "json", "jsonl"]})
        with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
            lines = [line for line in stream.iter_lines() if line]
        events = [line.removeprefix("event: ") for line in lines if line.startswith("event")]
        told = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data")]
        assert events[-1] == told[-1]["state"] == "done"
        assert [one["frames_done"] for one in told] == sorted(one["frames_done"] for one in told)
        state = client.get(f"/v1/jobs/{job}").json()
        assert (state["frames_done"], state["frames_total"], state["error"]) == (4, 4, None)
        assert state["expires"] == pytest.approx(state["finished"] + 24 * 3600)
        files = {one["kind"]: client.get(one["url"]) for one in state["results"]}
        assert {one["kind"]: one["bytes"] for one in state["results"]} == {
            kind: len(reply.content) for kind, reply in files.items()
        }
        part = client.get(state["results"][0]["url"], headers={"Range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, b"ftyp")
    (tmp_path / "clip.gif").write_bytes(clip(4))
    expected = tiny.track(tmp_path / "clip.gif", HAT).results()
    frames = [Frame.from_json(line) for line in files["jsonl"].text.splitlines()]
    assert [frame.segments for frame in frames] == [frame.segments for frame in expected]
    with zipfile.ZipFile(io.BytesIO(files["masks"].content)) as pack:
        assert pack.namelist() == [*(f"{index:05d}.png" for index in range(4)), "objects.json"]
        first = np.asarray(Image.open(pack.open("00000.png")))
    np.testing.assert_array_equal(first == 1, expected[0].segments[0].mask.array)
    with av.open(io.BytesIO(files["overlay"].content)) as video:
        assert sum(1 for _ in video.decode(video=0)) == 4
    assert files["json"].json()["annotations"][0]["phrase"] == HAT
    left = [path.name for path in (server.folder / "jobs" / job).iterdir()]
    assert left == ["results"]


def test_frames_are_sampled_and_what_is_not_followed_has_a_reason(server: Running) -> None:
    with server.http as client:
        job = post(client, start="1", end="2.0", stride="4", **{"return": "jsonl"})
        state = wait(client, job, "done")
        times = [json.loads(line)["time"] for line in client.get(state["results"][0]["url"]).text.splitlines()]
    assert times == [1.0, 1.5]
    assert set(state["reasons"]) <= {HAT}


def test_the_model_is_asked_again_if_a_job_says_so(server: Running, tiny: Sa2VA, tmp_path: Path) -> None:
    with server.http as client:
        job = post(client, clip(4), ask_every="2", check_presence="true", **{"return": "jsonl"})
        state = wait(client, job, "done")
        lines = client.get(state["results"][0]["url"]).text.splitlines()
    (tmp_path / "clip.gif").write_bytes(clip(4))
    expected = tiny.track(tmp_path / "clip.gif", HAT, ask_every=2, check_presence=True).results()
    assert [Frame.from_json(line).segments for line in lines] == [frame.segments for frame in expected]


def test_a_job_is_cancelled_within_a_frame_and_then_forgotten(server: Running) -> None:
    with server.http as client:
        job = post(client)
        behind = post(client)
        while not (state := wait(client, job, "running"))["frames_done"]:
            time.sleep(0.02)
        assert state["seconds_left"] > 0
        assert client.get(f"/v1/jobs/{job}/results/overlay").status_code == 404
        for one in (behind, job):
            assert client.delete(f"/v1/jobs/{one}").json()["state"] == "cancelled"
        deadline = time.monotonic() + 30
        while (server.folder / "jobs" / job).exists() or (server.folder / "jobs" / behind).exists():
            assert time.monotonic() < deadline
        assert client.get(f"/v1/jobs/{job}").json()["frames_done"] < 24
        assert client.get(f"/v1/jobs/{job}").json()["results"] == []
        assert client.delete(f"/v1/jobs/{job}").status_code == 200
        for method in ("GET", "DELETE"):
            assert client.request(method, f"/v1/jobs/{job}").status_code == 404


def test_what_is_no_video_is_refused_and_leaves_nothing(start: Callable[..., Any]) -> None:
    with start(max_jobs=1) as server, server.http as client:
        for video, message in ((b"no video", "neither a video"), (b"", "neither a video"), (VIDEO[:2000], "the video")):
            reply = client.post("/v1/track", files={"video": video}, data={"phrases": HAT})
            assert reply.status_code == 400
            assert message in reply.json()["error"]["message"]
            assert str(server.folder) not in reply.text
        reply = client.post("/v1/track", files={"image": VIDEO}, data={"phrases": HAT})
        assert reply.status_code == 400
        assert client.get("/v1/jobs/../../etc/passwd").status_code == 404
        assert client.get("/v1/jobs/x/results/passwd").status_code in (400, 404)
        assert list((server.folder / "jobs").glob("*")) == []
        job = post(client)
        wait(client, job, "running")
        queued = post(client)
        full = client.post("/v1/track", files={"video": VIDEO}, data={"phrases": HAT})
        assert (full.status_code, full.headers["retry-after"]) == (429, "60")
        for one in (queued, job):
            client.delete(f"/v1/jobs/{one}")


def test_results_go_when_their_time_is_over(start: Callable[..., Any]) -> None:
    with start(keep_hours=1e-6) as server, server.http as client:
        job = post(client, clip(1), **{"return": "jsonl"})
        deadline = time.monotonic() + 60
        while (server.folder / "jobs" / job / "video").exists():
            assert time.monotonic() < deadline
    with start(folder=server.folder, keep_hours=1e-6) as again, again.http as client:
        while client.get(f"/v1/jobs/{job}").status_code == 200:
            assert time.monotonic() < deadline
    assert not (server.folder / "jobs" / job).exists()


def test_a_server_that_ends_parks_its_job(start: Callable[..., Any]) -> None:
    with start() as server, server.http as client:
        job, behind = post(client), post(client, clip(1))
        while not wait(client, job, "running")["frames_done"]:
            time.sleep(0.02)
    assert sorted(path.name for path in (server.folder / "jobs" / job).iterdir()) == ["video"]
    with start(folder=server.folder) as again, again.http as client:
        assert again.notes == [f"job {job} is still queued", f"job {behind} is still queued"]
        state = wait(client, job, "running")
        assert "shut down while this job ran" in state["note"]
        client.delete(f"/v1/jobs/{job}")
        assert wait(client, behind, "done")["frames_done"] == 1


def test_a_job_that_takes_servers_down_is_given_up(tmp_path: Path, tiny: Sa2VA) -> None:
    store = JobStore(tmp_path)
    about: dict[str, Any] = {"options": {}, "sampling": {}, "frames_total": 9, "created": 1.0, "state": "running"}
    for name, attempts, video in (("once", 1, True), ("thrice", 3, True), ("lost", 1, False)):
        store.add(TrackJob(name, [HAT], ["jsonl"], attempts=attempts, **about))
        store.place(name).mkdir(parents=True)
        (store.place(name) / "partial").mkdir()
        (store.place(name) / "results").mkdir()
        if video:
            (store.place(name) / "video").write_bytes(VIDEO)
    store.place("nobody's").mkdir()
    runner = JobRunner(store, tiny, None, Monitoring(), keep_seconds=1, max_frames=9)  # type: ignore[arg-type]
    told = runner.recover()
    store.close()
    assert [line.split(maxsplit=2)[1] for line in told] == ["once", "thrice", "lost"]
    assert ["starts again" in told[0], "stopped 3 times" in told[1], "video is gone" in told[2]] == [True] * 3
    left = {path.name: sorted(one.name for one in path.iterdir()) for path in (tmp_path / "jobs").iterdir()}
    assert left == {"once": ["video"]}


def test_a_killed_server_leaves_no_half_result_and_its_successor_says_so(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    command = ["serve", "--model", "tiny", "--device", "cpu", "--port", "0", "--folder", str(tmp_path)]
    with subprocess.Popen([sys.executable, "-m", "sa2va.cli", *command], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = next(line for line in process.stderr if "tiny at http://" in line)
        with httpx2.Client(base_url=told.split("tiny at ")[1].split("/v1")[0], timeout=60) as client:
            job = post(client, max_frames="8", **{"return": ["masks", "jsonl"]})
            behind = post(client, clip(1), **{"return": "jsonl"})
            while not wait(client, job, "running")["frames_done"]:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
    assert (tmp_path / "jobs" / job / "partial").exists()
    with start(folder=tmp_path) as server, server.http as client:
        assert server.notes == [f"job {job} was running and starts again", f"job {behind} is still queued"]
        assert "frames of this job; it starts again" in client.get(f"/v1/jobs/{job}").json()["note"]
        assert wait(client, job, "done")["frames_done"] == 8
        assert wait(client, behind, "done")["results"]
    assert [path.name for path in (tmp_path / "jobs" / job).iterdir()] == ["results"]
    assert not (tmp_path / "tmp").exists()
