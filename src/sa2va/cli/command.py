"""What all commands share: output options and error handling."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from sa2va.cli.console import Screen

_PANEL = "Output"
_SHARED = {
    "json": typer.Option("--json", rich_help_panel=_PANEL, help="Print JSON on standard output, and only that."),
    "quiet": typer.Option("--quiet", "-q", rich_help_panel=_PANEL, help="Print nothing but results and errors."),
    "debug": typer.Option("--debug", rich_help_panel=_PANEL, help="Show tracebacks and the libraries' own messages."),
}


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--json``, ``--quiet`` and ``--debug``; its first parameter becomes the [`Screen`] they make."""
    _, *own = inspect.signature(function).parameters.values()
    hints = get_type_hints(function, include_extras=True)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option])
        for name, option in _SHARED.items()
    ]

    @wraps(function)
    def run(json: bool, quiet: bool, debug: bool, **arguments: Any) -> None:
        screen = Screen(json=json, quiet=quiet, debug=debug)
        with screen.library_messages(), screen.errors():
            function(screen, **arguments)

    own = [parameter.replace(annotation=hints[parameter.name]) for parameter in own]
    # typer reads a command's options from its signature and annotations.
    run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
    return run
