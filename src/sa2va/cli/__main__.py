"""Lets ``python -m sa2va.cli`` stand in for the ``sa2va`` command."""

from __future__ import annotations

from sa2va.cli import run

if __name__ == "__main__":
    run()
