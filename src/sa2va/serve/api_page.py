"""The OpenAPI document, and a page that shows it without loading anything from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 3rem } h2 code { font-size: 1rem } code, pre { font-family: ui-monospace, monospace; font-size: .9em }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .3rem .6rem; vertical-align: top;
  border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent) }
.method { display: inline-block; min-width: 4.5rem; font-weight: 600 } .quiet { opacity: .7 }
pre { overflow-x: auto; padding: .8rem; background: color-mix(in srgb, currentColor 8%, transparent) }
"""


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document without the errors of status 422, which this server tells with 400."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    for methods in document["paths"].values():
        for route in methods.values():
            route["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document


def api_page(document: dict[str, Any]) -> str:
    """A page for readers: each route with its fields and what it answers."""
    info = document["info"]
    parts = [f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>", _prose(info["description"])]
    parts.append('<p class="quiet">The same for machines: <a href="openapi.json">openapi.json</a>.</p>')
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            parts.append(f"<h2><code><span class=method>{method.upper()}</span> {escape(path)}</code></h2>")
            parts.append(_prose(route.get("description", "")))
            for kind, content in route.get("requestBody", {}).get("content", {}).items():
                parts.append(
                    f"<p>Takes <code>{escape(kind)}</code>:</p>{_fields(_resolved(content['schema'], document))}"
                )
            for status, reply in route["responses"].items():
                for kind, content in reply.get("content", {}).items() if status < "300" else ():
                    schema = content.get("schema", {})
                    parts.append(f"<p>{status}: <code>{escape(kind)}</code> {escape(_name(schema))}</p>")
                    parts.append(_fields(_resolved(schema, document)))
    parts.append("<h1>Objects</h1>")
    for name, schema in document["components"]["schemas"].items():
        parts.append(f"<h2 id={escape(name)}>{escape(name)}</h2>{_prose(schema.get('description', ''))}")
        parts.append(_fields(schema))
    body = "\n".join(parts)
    head = "<meta charset=utf-8><meta name=viewport content='width=device-width'>"
    return f"<!doctype html><html lang=en><head>{head}<title>sa2va API</title><style>{_STYLE}</style></head>{body}"


def _prose(text: str) -> str:
    paragraphs = escape(text).replace("\n* ", "<br>• ").split("\n\n")
    for number, paragraph in enumerate(paragraphs):
        pieces = paragraph.split("`")
        paragraphs[number] = "".join(f"<code>{one}</code>" if k % 2 else one for k, one in enumerate(pieces))
    return "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs if paragraph)


def _fields(schema: dict[str, Any]) -> str:
    """The fields of an object as a table; nothing for what is no object."""
    rows = []
    for name, field in schema.get("properties", {}).items():
        needed = "" if name in schema.get("required", ()) else f' <span class="quiet">{_default(field)}</span>'
        kind = escape(_name(field))
        about = _prose(field.get("description", ""))
        rows.append(f"<tr><td><code>{escape(name)}</code>{needed}<td>{kind}<td>{about}")
    example = "".join(f"<pre>{escape(json.dumps(one, indent=2))}</pre>" for one in schema.get("examples", ()))
    return (f"<table>{''.join(rows)}</table>" if rows else "") + example


def _resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"].get(name, schema)


def _default(field: dict[str, Any]) -> str:
    return escape(f"= {json.dumps(field['default'])}") if field.get("default") is not None else "optional"


def _name(schema: dict[str, Any]) -> str:
    """A type in a few words."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if several := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_name(one) for one in several))
    if "enum" in schema or "const" in schema:
        return " | ".join(json.dumps(one) for one in schema.get("enum") or [schema["const"]])
    if schema.get("type") == "array":
        return f"list of {_name(schema.get('items', {}))}"
    return str(schema.get("type", "any"))
