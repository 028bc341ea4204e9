"""Request bodies that may be JSON or a form with a file."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import HTTPException, Request
from pydantic import BaseModel
from starlette.datastructures import UploadFile

from sa2va.untrusted import parse_json

B = TypeVar("B", bound=BaseModel)

_MOST_FIELDS = 200


async def read_body(request: Request, kind: type[B]) -> tuple[B, dict[str, bytes]]:
    """The fields of a request, and the files that came with it by the names of their fields.

    In a form, a field that takes a list may be repeated, or be JSON; others are JSON or text.

    Raises:
        ValueError: the fields are not those of ``kind``. HTTPException: the body is neither JSON nor a form.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        return kind.model_validate(parse_json(await request.body())), {}
    if media_type != "multipart/form-data":
        raise HTTPException(415, "send application/json, or multipart/form-data with a file")
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    lists = {info.alias or name for name, info in kind.model_fields.items() if "list" in str(info.annotation)}
    async with request.form(max_files=1, max_fields=_MOST_FIELDS) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files[name] = await value.read()
            elif name in lists and not value.lstrip().startswith("["):
                fields.setdefault(name, []).append(value)
            else:
                fields[name] = parse_json(value) if name in lists else value
    return kind.model_validate(fields), files


def body_document(kind: type[BaseModel], file: str) -> dict[str, Any]:
    """The OpenAPI description of a body that [`read_body`] reads.

    Args:
        file: name of the field that holds the file of a form.
    """
    schema = kind.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    form = {**schema, "properties": {**schema["properties"], file: {"type": "string", "format": "binary"}}}
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    """A schema with its definitions in the places that refer to them."""
    if isinstance(value, list):
        return [_inlined(one, definitions) for one in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _inlined(definitions[value["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(one, definitions) for name, one in value.items()}
