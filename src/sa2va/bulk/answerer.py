"""A model as a class for ``map_batches`` of Ray Data, and of whatever else calls with columns."""

from __future__ import annotations


class Answerer:
    pass
