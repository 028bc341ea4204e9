"""What our docstrings write shorter than mkdocstrings reads it: groups of names, and references."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

#: ``height, width: in pixels.``: one entry of a section for several names, with the lines that continue it.
GROUP = re.compile(r"^( +)(\w+(?:, \w+)+):((?: .*)?(?:\n\1 +.*)*)", re.MULTILINE)
#: [`Name`] or [`Class.method`] in the scope of the docstring or the names of the package; or a full path.
REFERENCE = re.compile(r"\[`([\w.]+)`\](?![\[(])")


class Shorthand(griffe.Extension):
    """Gives each name of a group an entry of its own, and each reference its target.

    A reference to nothing is a warning, in docstrings that no page shows too.
    """

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for obj in _objects(pkg):
            if (docstring := obj.docstring) is not None:
                docstring.value = GROUP.sub(_entries, docstring.value)
                docstring.value = REFERENCE.sub(lambda found, obj=obj: _link(obj, found[1]), docstring.value)


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if isinstance(member, griffe.Object):  # and no alias, which an import is
            yield from _objects(member)


def _entries(group: re.Match[str]) -> str:
    indent, names, description = group.groups()
    return "\n".join(f"{indent}{name}:{description}" for name in names.split(", "))


def _link(obj: griffe.Object, name: str) -> str:
    first, *rest = name.split(".")
    try:
        target = obj.modules_collection[".".join([_path(obj, first), *rest])]
    except KeyError:
        assert obj.docstring is not None
        griffe.docstring_warning(obj.docstring, 0, f"[`{name}`] is not in scope; import it, or write its path")
        return f"`{name}`"
    if target.is_attribute and target.parent.is_class and not target.has_docstring:  # a row in the table of its class
        target = target.parent
    title = (
        target.canonical_path.removeprefix(f"{target.module.canonical_path}.") if first == obj.package.name else name
    )
    return f"[`{title}`][{target.path}]"


def _path(obj: griffe.Object, name: str) -> str:
    try:
        return obj.resolve(name)
    except griffe.NameResolutionError:
        return name if name == obj.package.name else f"{obj.package.name}.{name}"
