"""Notebooks of examples/ as pages of the site, under ``notebooks/``."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for path in sorted(EXAMPLES.glob("notebooks/*.ipynb")):
        name = path.relative_to(EXAMPLES).as_posix()
        files.append(File(name, str(EXAMPLES), config.site_dir, config.use_directory_urls))
    return files
