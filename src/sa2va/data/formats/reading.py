"""The boundary between files and code: what Python stumbles over in malformed values becomes a ValueError with a place.

JSON, YAML and XML say nothing about types, so that any code that reads them meets text where it wants a number, a list
where it wants an object, numbers beyond every range and values nested a thousand levels deep.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: What values of a wrong kind raise. ``OverflowError`` is an ``ArithmeticError``, of ``int(float("inf"))`` for one.
STUMBLES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@contextmanager
def expecting(where: object, what: str = "") -> Iterator[None]:
    """Values of a file are read inside; whatever they make code stumble over names the place and what was expected.

    Args:
        where: the file, and the entry or field in it. what: e.g. ``"images with id, file_name, height and width"``;
            left out where inner messages say it.

    Raises:
        ValueError: of such an error. A ``ValueError`` of another class, as ``MissingData``, comes through as it is.
    """
    try:
        yield
    except STUMBLES as error:
        if isinstance(error, ValueError) and type(error) is not ValueError and not isinstance(error, UnicodeError):
            raise
        raise ValueError(f"{where}: {f'expected {what}; ' * bool(what)}{stumbled(error)}") from error


def stumbled(error: Exception) -> str:
    """An error as a reader of data would say it."""
    if isinstance(error, RecursionError):
        return "values are nested too deeply"
    if isinstance(error, KeyError):
        return f"{error} is missing or unknown"
    return str(error) if isinstance(error, ValueError) and str(error) else f"{type(error).__name__}: {error}"
