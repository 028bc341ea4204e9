"""Until `on_text` exists: the whole text at once, at the end."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def with_text(method: Callable[..., Any], *args: Any, on_text: Callable[[str], Any], **options: Any) -> Any:
    """Call a method of a scene and tell its text afterwards."""
    if "on_text" in inspect.signature(method).parameters:
        return method(*args, on_text=on_text, **options)
    on_text("")
    found = method(*args, **options)
    for answer in found if isinstance(found, list) else [found]:
        on_text(answer.raw_text)
    return found
