"""Lets ``python -m sa2va.cli`` stand in for the ``sa2va`` command."""

from __future__ import annotations

import sys

from sa2va.cli import main

if __name__ == "__main__":
    sys.exit(main())
