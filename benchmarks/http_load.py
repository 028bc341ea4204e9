"""Load on `sa2va serve`: latency and throughput at 1, 16 and 200 clients, and a long run of mixed requests.

    python benchmarks/http_load.py                   # starts a server with `tiny`
    python benchmarks/http_load.py --url http://gpu:8000 --model Sa2VA-4B
    python benchmarks/http_load.py --minutes 20      # mixed load: is memory flat, are handles?

Every answer is compared with the one that the same request got alone. Clients send drawn pictures, some of which others
ask about too, half of the requests as chat and half as segmentation.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image

from sa2va import Mask

EXAMPLES = Path(__file__).parents[1] / "examples"
CLIENTS = (1, 16, 200)
QUESTIONS = ("What color is the car?", "Please segment the letter Z in this image.", "How many clouds are there?")
PHRASES = ("the yellow cloud", "the letter Z", "the blue car")
Request = tuple[str, dict[str, Any]]


def requests(model: str) -> list[Request]:
    """Different requests about different pictures, as (path, body)."""
    found: list[Request] = []
    with Image.open(EXAMPLES / "shapes.png") as drawn:
        for angle in (0, 90, 180, 270):
            file = io.BytesIO()
            drawn.convert("RGB").rotate(angle).save(file, "PNG")
            encoded = base64.b64encode(file.getvalue()).decode()
            image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
            for question, phrase in zip(QUESTIONS, PHRASES, strict=True):
                content = [image, {"type": "text", "text": question}]
                chat = {"model": model, "messages": [{"role": "user", "content": content}]}
                found.append(("/v1/chat/completions", chat))
                found.append(("/v1/segment", {"image": encoded, "phrases": [phrase]}))
    return found


def said(reply: dict[str, Any]) -> Any:
    """What must not depend on who else asks: the text and the masks."""
    parts = reply["answers"] if "answers" in reply else [choice["message"] for choice in reply["choices"]]
    return [(part.get("text", part.get("content")), [one["mask"] for one in part["segments"]]) for part in parts]


def pixels_apart(one: Any, other: Any) -> int | None:
    """Pixels in which two answers differ; None where their texts or the number of their masks do."""
    apart = 0
    for (text, masks), (other_text, others) in zip(one, other, strict=True):
        if text != other_text or len(masks) != len(others):
            return None
        apart += sum(
            int((Mask.from_rle(a).array != Mask.from_rle(b).array).sum()) for a, b in zip(masks, others, strict=True)
        )
    return apart


@contextmanager
def server(url: str | None, model: str) -> Iterator[str]:
    """The address of a server: the one given, or one that is started."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sa2va.cli", "serve", "--model", model, "--port", "0", "--folder", folder]
        log = Path(folder) / "server.log"  # not a pipe: a server that nobody reads would stand still
        with log.open("w") as told, subprocess.Popen(command, stderr=told) as process:
            while "http://" not in log.read_text():
                if process.poll() is not None:
                    sys.exit(f"the server did not start: {log.read_text()}")
                time.sleep(0.2)
            try:
                yield "http://" + log.read_text().split("http://")[1].split("/v1")[0]
            finally:
                process.terminate()


def client(url: str, clients: int) -> httpx2.AsyncClient:
    headers = {"Authorization": f"Bearer {os.environ.get('SA2VA_API_KEY', 'none')}"}
    limits = httpx2.Limits(max_connections=clients)
    return httpx2.AsyncClient(base_url=url, timeout=300, headers=headers, limits=limits)


async def figures(http: httpx2.AsyncClient) -> dict[str, float]:
    """The server's metrics."""
    lines = (await http.get("/metrics")).raise_for_status().text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


async def level(url: str, asked: list[Request], alone: list[Any], clients: int, seconds: float) -> float:
    """Print one line of the table; returns answers per second."""
    latencies: list[float] = []
    outcome: Counter[str] = Counter()
    end = time.perf_counter() + seconds

    async def visit(http: httpx2.AsyncClient, number: int) -> None:
        for index in itertools.count(number * 7):
            if time.perf_counter() > end:
                return
            path, body = asked[index % len(asked)]
            began = time.perf_counter()
            reply = await http.post(path, json=body)
            if reply.status_code == 429:
                outcome["429"] += 1
                await asyncio.sleep(float(reply.headers["retry-after"]))
                continue
            latencies.append(time.perf_counter() - began)
            if reply.status_code != 200:
                outcome["errors"] += 1
                continue
            apart = pixels_apart(said(reply.json()), alone[index % len(asked)])
            outcome["other" if apart is None else "equal" if apart == 0 else "rounding"] += 1

    async with client(url, clients) as http:
        cpu = -(await figures(http))["process_cpu_seconds_total"]
        began = time.perf_counter()
        await asyncio.gather(*(visit(http, number) for number in range(clients)))
        cpu += (await figures(http))["process_cpu_seconds_total"]
    rate = len(latencies) / (time.perf_counter() - began)
    cuts = statistics.quantiles(latencies, n=20) if len(latencies) > 1 else latencies * 19
    print(
        f"{clients:7} | {len(latencies):7} | {rate:9.1f} | {1000 * cpu / max(1, len(latencies)):7.0f} | "
        f"{cuts[9]:6.2f} | {cuts[18]:6.2f} | {outcome['429']:5} | {outcome['errors']:6} | "
        f"{outcome['equal']:6} | {outcome['rounding']:8} | {outcome['other']:5}",
        flush=True,
    )
    return rate


async def load(url: str, model: str, seconds: float) -> None:
    asked = requests(model)
    async with client(url, 1) as http:
        alone = [said((await http.post(path, json=body)).raise_for_status().json()) for path, body in asked]
    print("clients | answers | answers/s | CPU, ms | p50, s | p95, s |   429 | errors |  equal | rounding | other")
    rates = [await level(url, asked, alone, clients, seconds) for clients in CLIENTS]
    print(f"throughput against one client: {', '.join(f'{rate / rates[0]:.1f}x' for rate in rates[1:])}")
    print("CPU: of the server, for an answer; p50, p95: of the time that a client waits")
    print("equal: text and masks as alone; rounding: the same text, masks differ in some pixels; other: another text")


async def soak(url: str, model: str, minutes: float) -> None:
    """Mixed load: answers, streams, clients that leave, mistakes, jobs; memory and handles each half minute."""
    asked, clip = requests(model), (EXAMPLES / "shapes.mp4").read_bytes()
    end = time.perf_counter() + 60 * minutes
    outcome: Counter[str] = Counter()

    async def answer(http: httpx2.AsyncClient, chance: random.Random) -> str:
        path, body = chance.choice(asked)
        return str((await http.post(path, json=body)).status_code)

    async def stream(http: httpx2.AsyncClient, chance: random.Random) -> str:
        body = {**asked[0][1], "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            async for _ in reply.aiter_lines():
                if chance.random() < 0.3:
                    return "left a stream"
        return "stream"

    async def leave(http: httpx2.AsyncClient, chance: random.Random) -> str:
        with suppress(httpx2.TimeoutException):
            await http.post("/v1/caption", json={"image": asked[1][1]["image"]}, timeout=0.05)
        return "left"

    async def mistake(http: httpx2.AsyncClient, chance: random.Random) -> str:
        body = {"image": chance.choice(["?", "", "https://x/y", "file:///etc/passwd"]), "phrases": ["x"]}
        return f"mistake {(await http.post('/v1/segment', json=body)).status_code}"

    async def job(http: httpx2.AsyncClient, chance: random.Random) -> str:
        fields = {"phrases": "the orange hat", "max_frames": "3"}
        reply = await http.post("/v1/track", files={"video": clip}, data=fields)
        if reply.status_code != 202:
            return f"job {reply.status_code}"
        place = reply.headers["location"]
        while (state := (await http.get(place)).json()["state"]) in ("queued", "running") and chance.random() < 0.9:
            await asyncio.sleep(0.5)
        await http.delete(place)
        return f"job {state}"

    async def visit(http: httpx2.AsyncClient, number: int) -> None:
        chance = random.Random(number)
        kinds = [answer, answer, answer, stream, leave, mistake, job]
        while time.perf_counter() < end:
            kind = chance.choice(kinds)
            try:
                outcome[await kind(http, chance)] += 1
            except httpx2.HTTPError as error:
                outcome[type(error).__name__] += 1

    async def watch(http: httpx2.AsyncClient) -> None:
        began = time.perf_counter()
        while time.perf_counter() < end:
            await asyncio.sleep(min(30, max(0.1, end - time.perf_counter())))
            now = await figures(http)
            print(
                f"{(time.perf_counter() - began) / 60:5.1f} min | "
                f"{now['process_resident_memory_bytes'] / 2**20:6.0f} MiB | "
                f"{now['process_open_fds']:4.0f} handles | {now['sa2va_scenes']:3.0f} scenes | "
                f"{now['sa2va_scene_bytes'] / 2**20:5.0f} MiB of scenes | {sum(outcome.values())} requests",
                flush=True,
            )

    async with client(url, 24) as http, client(url, 1) as watching:
        await asyncio.gather(watch(watching), *(visit(http, number) for number in range(16)))
    print(json.dumps(outcome, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", help="of a server that runs; by default one is started")
    parser.add_argument("--model", default="tiny", help="what the server has")
    parser.add_argument("--seconds", type=float, default=20, help="for each number of clients")
    parser.add_argument("--minutes", type=float, help="of mixed load, instead of the table")
    given = parser.parse_args()
    with server(given.url, given.model) as url:
        if given.minutes:
            asyncio.run(soak(url, given.model, given.minutes))
        else:
            asyncio.run(load(url, given.model, given.seconds))


if __name__ == "__main__":
    main()
