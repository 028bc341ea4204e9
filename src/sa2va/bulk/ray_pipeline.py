"""A batch on a cluster: Ray Data reads and decodes on CPUs, and feeds a pool of actors with a model each.

The rows come from this process and the answers return to it, so that only media have to be within reach of the nodes; a
shard is written here when all its rows are back. What an actor or a node that dies had at hand, Ray computes again.

Actors hold no CPUs. If they did, they might hold all there are: nothing would be read then, and the job would stand
still. So reading has every CPU of the cluster, and what limits the actors is the number asked for, or their GPUs.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sa2va.bulk.answering import Finished, answer_rows, revision_of
from sa2va.bulk.batch_folder import RowShard
from sa2va.bulk.batch_rows import Ask
from sa2va.bulk.decoding import decode, decoded, rows_table
from sa2va.bulk.worker_pool import ModelSource
from sa2va.runtime import logger, require_extra

#: Rows that an actor is given at a time; of two such calls at once, it works on one while the other is brought.
_ROWS_PER_CALL, _CALLS = 32, 2
#: Pictures that a task decodes: few, because pixels take a hundred times the room of files.
_ROWS_PER_TASK = 8


@dataclass(frozen=True)
class ClusterOptions:
    """Where a batch runs.

    Attributes:
        address: of a running cluster ("auto" for the one this machine belongs to); None starts Ray on this machine.
        replicas: models at most; None for one per GPU, or per node where there are no GPUs.
        gpus_per_replica: GPUs that each holds, or a share of one; None for one where the cluster has GPUs, else none.
    """

    address: str | None = None
    replicas: int | None = None
    gpus_per_replica: float | None = None


def answer_on_ray(
    shards: Iterable[RowShard],
    model: ModelSource,
    ask: Ask | None,
    options: dict[str, Any],
    cluster: ClusterOptions,
    on_revision: Callable[[str], None],
) -> Generator[Finished, None, None]:
    """Answer shards on a cluster, each coming when all its rows are back.

    Args:
        model: what each actor loads. ask: of rows that do not say it themselves. options: keywords of [`Sa2VA`]'s
            methods.
        on_revision: told the revision of the weights that answered, again and again.

    Raises:
        ImportError: Ray is missing. ConnectionError: there is no cluster at the address.
        ValueError: no node has as many GPUs as a replica needs.
    """
    ray = require_extra("ray", "ray")
    data = require_extra("ray.data", "ray")
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
        own = {"include_dashboard": False} if cluster.address is None else {}
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR, **own)
    try:
        replicas, fitting, gpus, threads = _resources(ray, cluster)
        context = data.DataContext.get_current().copy()
        context.enable_progress_bars = context.print_on_execution_start = False
        with data.DataContext.current(context):
            pool = data.ActorPoolStrategy(
                min_size=1,
                initial_size=min(replicas, fitting) or 1,
                max_size=replicas,
                max_concurrent_calls_per_actor=_CALLS,
                enable_true_multi_threading=True,  # the model computes calls of several threads together
            )
            blocks, left = [], {}
            for shard in shards:
                blocks.append(ray.put(rows_table(shard.number, list(shard.rows))))
                left[shard.number] = len(shard.rows)
            pipeline = (
                data.from_arrow_refs(blocks)
                .map_batches(decode, batch_format="pyarrow", batch_size=_ROWS_PER_TASK, num_cpus=1)
                .map_batches(
                    _Replica,
                    fn_constructor_args=(model, ask, options, threads),
                    batch_format="pyarrow",
                    batch_size=_ROWS_PER_CALL,
                    compute=pool,
                    num_cpus=0,
                    num_gpus=gpus,
                )
            )
            yield from _gathered(pipeline, left, on_revision)
    finally:
        if started:
            ray.shutdown()


def _resources(ray: Any, cluster: ClusterOptions) -> tuple[int, int, float, int]:
    """Replicas at most, and those that there is room for now; for each GPUs, and threads where it computes on CPUs.

    Raises:
        ValueError: no node has as many GPUs as a replica needs.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    there = [node.get("GPU", 0.0) for node in nodes]
    gpus = cluster.gpus_per_replica
    if gpus is None:
        gpus = 1.0 if any(there) else 0.0
    fitting = sum(int(count / gpus + 1e-6) for count in there) if gpus else len(nodes)
    if not fitting and cluster.replicas is None:
        raise ValueError(
            f"a replica needs {gpus:g} GPUs, and no node has so many (they have {there}); lower --gpus-per-replica, "
            "or, where the cluster adds nodes by itself, say how many --replicas there may be"
        )
    if not fitting:
        logger.warning("no node has %g GPUs yet: the job waits until the cluster adds one", gpus)
    replicas = cluster.replicas or fitting
    return replicas, fitting, gpus, max(1, int(sum(node.get("CPU", 0) for node in nodes)) // replicas)


def _gathered(
    pipeline: Any, left: dict[int, int], on_revision: Callable[[str], None]
) -> Generator[Finished, None, None]:
    """Whole shards from rows that come in any order."""
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for table in pipeline.iter_batches(batch_format="pyarrow", batch_size=None):
        for row in table.to_pylist():
            on_revision(row["revision"])
            shard = found.setdefault(row["shard"], {})
            shard[row["index"]] = json.loads(row["record"])
            if len(shard) == left.get(row["shard"]):
                left.pop(row["shard"])
                yield row["shard"], [record for _, record in sorted(found.pop(row["shard"]).items())]
    if left:
        raise RuntimeError(f"Ray gave no answers for rows of {len(left)} shards; what is answered is kept")


class _Replica:
    """A model in an actor."""

    def __init__(self, model: ModelSource, ask: Ask | None, options: dict[str, Any], threads: int):
        torch.set_num_threads(threads)  # Ray takes no CPUs for no threads
        self._sa2va, self._ask, self._options = model.load(), ask, options
        self._revision = revision_of(self._sa2va, model.name)

    def __call__(self, table: Any) -> Any:
        pa = require_extra("pyarrow", "ray")
        with TemporaryDirectory(prefix="sa2va-") as scratch:
            rows = [decoded(row, Path(scratch)) for row in table.to_pylist()]
            records = [json.dumps(one) for one in answer_rows(self._sa2va, rows, self._ask, self._options)]
        revisions = pa.array([self._revision] * len(records))
        return pa.table({"shard": table["shard"], "index": table["index"], "record": records, "revision": revisions})
