"""The OpenAPI document, and what comes of anything that it allows, nearly allows, or does not."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import Running
from PIL import Image

SMALL = io.BytesIO()
Image.new("RGB", (24, 16), "navy").save(SMALL, "PNG")
ENCODED = base64.b64encode(SMALL.getvalue()).decode()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
WORD = {"type": "text", "text": "Hello"}
#: Values that mean something to the server, by the name of their field.
KNOWN: dict[str, st.SearchStrategy[Any]] = {
    "image": st.sampled_from(
        [ENCODED, f"data:image/png;base64,{ENCODED}", "data:,", "file:///etc/passwd", "http://[", "@"]
    ),
    "url": st.sampled_from([f"data:image/png;base64,{ENCODED}", "data:image/png;base64,", "https://x/y", "\x00"]),
    "video": st.none() | st.sampled_from([ENCODED, ""]),
    "threshold": st.sampled_from([0.5, 0, 1]),
    "requests": st.none(),
    "regions": st.lists(st.sampled_from([[1, 1, 9, 9], [0.5, 0, 99, 4], [5, 5, 1, 1], []]), min_size=1, max_size=2),
    "role": st.sampled_from(["user", "user", "user", "assistant", "system"]),
    "content": st.sampled_from(["Hello", "Hello", ""])
    | st.just([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{ENCODED}"}}, WORD])
    | st.just([{"type": "video_url", "video_url": {"url": "data:,"}}, WORD]),
    "model": st.sampled_from(["tiny", "other"]),
    "max_tokens": st.integers(-1, 4),
    "max_completion_tokens": st.integers(-1, 4),
}


def values_of(
    schema: dict[str, Any], document: dict[str, Any], name: str = "", *, wild: bool = False
) -> st.SearchStrategy[Any]:
    """What a schema allows; if wild, with something else in one of eight places."""
    inner = partial(values_of, document=document, wild=wild)
    if "$ref" in schema:
        return inner(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], name=name)
    if name in KNOWN:
        fitting = KNOWN[name]
    elif "const" in schema or "enum" in schema:
        fitting = st.sampled_from(schema.get("enum") or [schema["const"]])
    elif several := schema.get("anyOf") or schema.get("oneOf"):
        fitting = st.one_of([inner(one) for one in several])
    elif schema.get("type") == "array":
        most = min(schema.get("maxItems", 3), 4)
        fitting = st.lists(inner(schema["items"]), min_size=schema.get("minItems", 0), max_size=most)
    elif schema.get("type") == "object":
        fields = {key: inner(one, name=key) for key, one in schema.get("properties", {}).items()}
        required = {key: fields.pop(key) for key in schema.get("required", ())}
        fitting = st.fixed_dictionaries(required, optional=fields)
    elif schema.get("type") == "string":
        fitting = st.text(min_size=schema.get("minLength", 0), max_size=12)
    elif schema.get("type") == "integer":
        fitting = st.integers(schema.get("minimum", -5), schema.get("maximum", 300))
    elif schema.get("type") == "number":
        fitting = st.floats(schema.get("minimum"), schema.get("maximum"), allow_nan=False, allow_infinity=False)
    else:
        fitting = {"boolean": st.booleans(), "null": st.none()}.get(schema.get("type", ""), JSON)
    return st.integers(0, 7).flatmap(lambda chance: JSON if chance == 0 else fitting) if wild else fitting


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx2.Client]:
    with server.http as http:
        yield http


@pytest.fixture(scope="module")
def document(client: httpx2.Client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def check(reply: httpx2.Response) -> None:
    assert reply.status_code < 500, reply.text
    assert reply.headers["x-request-id"].startswith("req_")
    if reply.status_code >= 400:
        assert reply.json()["error"].keys() == {"message", "type", "param", "code"}
        assert reply.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/segment", "/v1/caption", "/v1/describe", "/v1/track"])
def test_no_body_is_an_error_of_ours(client: httpx2.Client, document: dict[str, Any], path: str) -> None:
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]

    @given(values_of(schema, document) | values_of(schema, document, wild=True))
    @settings(max_examples=30)
    def fuzz(body: Any) -> None:
        check(client.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"}))

    fuzz()


@given(
    st.sampled_from(["application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/plain", ""]),
    st.binary(max_size=40)
    | st.sampled_from([b"[" * 50_000, b"1" * 5000, b"{}", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n']),
)
@settings(max_examples=30)
def test_no_bytes_are(client: httpx2.Client, kind: str, content: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/segment", "/v1/track"):
        check(client.post(path, content=content, headers={"content-type": kind} if kind else {}))


@given(st.text(min_size=1, max_size=12), st.sampled_from(["GET", "DELETE", "POST", "PATCH", "OPTIONS"]))
@settings(max_examples=30)
def test_no_path_is(client: httpx2.Client, name: str, method: str) -> None:
    named = quote(name, safe="", errors="replace")
    for path in (f"/v1/jobs/{named}", f"/v1/jobs/{named}/results/{named}", f"/v1/models/{named}", f"/{named}"):
        check(client.request(method, path))


def test_every_route_is_described(document: dict[str, Any], client: httpx2.Client) -> None:
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            assert route.get("description"), f"{method} {path}"
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("description"), name


def test_the_page_shows_every_route_and_loads_nothing(document: dict[str, Any], client: httpx2.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "//" not in page.text.replace("https URL", "").split("</style>")[1]
    for path in document["paths"]:
        assert path in page.text
