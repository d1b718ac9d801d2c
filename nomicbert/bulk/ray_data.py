"""A Ray Dataset of texts -> the same with a column of vectors, on the actors of a cluster.

Where in the flow: beside `embed_files`, for machines that Ray connects. Ray reads, schedules,
retries and writes; `EmbedBatch` computes. This module sets Ray up so that a job ends, and so that a
resumed one writes each row once. It is the only one that imports Ray, when it is called.
Source: docs/ray.md lists what Ray does otherwise, with its issues.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nomicbert.arguments import as_whole
from nomicbert.bulk.embed_batch import (
    BatchKeywords,
    EmbedBatch,
    OnNull,
    check_columns,
    divide,
    known_policy,
)
from nomicbert.bulk.ray_checkpoint import check_ids, open_checkpoint
from nomicbert.errors import to_install

if TYPE_CHECKING:
    from ray.data import Dataset
    from typing_extensions import Unpack

__all__ = ["EmbedBatch", "embed_dataset"]

# Before 2.55 the checkpoint was written after the rows: a crash between them wrote rows twice.
OLDEST_RAY = (2, 55)
# CPUs of a cluster that no worker may hold: for the tasks that read, cut and write blocks, and
# in a resumed job also for the actor that drops the rows that are done.
TASKS, FILTER = 1, 1


def embed_dataset(
    ds: "Dataset",
    model: str | os.PathLike[str],
    *,
    workers: int,
    num_cpus: int = 1,
    num_gpus: float = 0,
    column: str = "text",
    output: str = "embedding",
    on_null: OnNull = "error",
    id_column: str | None = None,
    checkpoint: str | None = None,
    rows_per_block: int = 16_384,
    cluster: Mapping[str, float] | None = None,
    **keywords: "Unpack[BatchKeywords]",
) -> "Dataset":
    """The dataset with a column of vectors, computed by a pool of actors when it is consumed.

    Rows come in any order: keep an id. A block whose worker dies is embedded again.

    Args:
        ds: with a column of texts.
        model: as in `EmbedBatch`; a local folder is looked for on every machine.
        workers: actors, each with a model of its own.
        num_cpus: of each worker: its threads.
        num_gpus: of each worker; 0.5 puts two on one GPU.
        column: as in `EmbedBatch`.
        output: as in `EmbedBatch`.
        on_null: as in `EmbedBatch`.
        id_column: whole numbers or strings, each once, without null; for a checkpoint.
        checkpoint: a folder or URL that all machines reach, where the ids of written rows are kept.
            The same job then goes on after a crash: rows already written are dropped when they are
            read. One checkpoint belongs to one output folder, and to one driver at a time.
        rows_per_block: rows that are computed, written and retried together, at most.
        cluster: {"CPU": ..., "GPU": ...} that the cluster has or grows to; default: those of
            `ray.cluster_resources()`, what it has now.
        **keywords: as in `EmbedBatch`.

    Raises: ValueError: a pool that would hold every CPU, a column that is missing or of another
        type, ids that are not unique, a checkpoint of another job, or one for a dataset that is not
        read from storage. TypeError: unknown keyword. ImportError: Ray is missing or too old.
    """
    ray = _need_ray()
    load, encode = divide(keywords, embed_dataset)
    for name, value in (
        ("workers", workers),
        ("num_cpus", num_cpus),
        ("rows_per_block", rows_per_block),
    ):
        if as_whole(name, value) < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    for name in ("device", "device_map"):
        if load.get(name) is not None:
            raise ValueError(f"leave {name} out: num_gpus decides where a worker computes")
    if (checkpoint is None) != (id_column is None):
        raise ValueError("give both checkpoint and id_column, or none of them")
    have = ray.cluster_resources() if cluster is None else cluster
    _check_pool(workers, num_cpus, num_gpus, have, resumes=checkpoint is not None)
    schema = ds.schema()
    if schema is not None:  # None: there are no rows
        check_columns(schema, column, output)
        if id_column is not None and id_column not in schema.names:
            known = ", ".join(map(repr, schema.names))
            raise ValueError(f"there is no column {id_column!r} for the ids, only {known}")
    if os.path.isdir(model):
        model = os.path.abspath(model)  # workers have another current folder
    own = {"column": column, "output": output, "on_null": known_policy(on_null)}
    if checkpoint is not None and id_column is not None:
        job = {"model": os.fspath(model), "gpu": num_gpus > 0, **own, **load, **encode}
        ds = _resumable(ds, checkpoint, id_column, job)
    return ds.repartition(target_num_rows_per_block=rows_per_block).map_batches(
        EmbedBatch,
        fn_constructor_args=(model,),
        fn_constructor_kwargs={**own, **load, **encode},
        batch_format="pyarrow",  # keeps Arrow's types; numpy batches do not
        batch_size=rows_per_block,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )


def _resumable(
    ds: "Dataset", checkpoint: str, id_column: str, job: Mapping[str, object]
) -> "Dataset":
    """A copy of the dataset that drops the rows that are done, and records those it writes."""
    if not ds.has_serializable_lineage():
        raise ValueError(
            "a checkpoint needs a dataset from one of ray.data.read_...: of other sources Ray "
            "cannot drop the rows that are done, and would write them twice. Write the rows to "
            "Parquet first, and read them back"
        )
    # with settings of its own: those of `ds` are shared by all that is made from it
    ds = type(ds).deserialize_lineage(ds.serialize_lineage())

    def check() -> None:
        ids = ds.select_columns([id_column])
        check_ids(ids.iter_batches(batch_size=None, batch_format="pyarrow"), id_column)

    rows = open_checkpoint(checkpoint, {"id_column": id_column, **job}, check)
    ds.context.checkpoint_config = {
        "id_column": id_column,
        "checkpoint_path": rows,
        # kept, so that a finished job finds nothing to do, in place of writing all rows again
        "delete_checkpoint_on_success": False,
    }
    # Ray's default of 10 could take the CPUs that reading needs
    ds.context.checkpoint_config.checkpoint_actor_pool_max_size = FILTER
    return ds


def _need_ray() -> Any:
    """Ray's module, with Ray Data."""
    advice = to_install("ray")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(f"embed_dataset needs Ray Data: {advice}") from error
    if tuple(map(int, ray.__version__.split(".")[:2])) < OLDEST_RAY:
        oldest = ".".join(map(str, OLDEST_RAY))
        raise ImportError(f"embed_dataset needs Ray {oldest}, not {ray.__version__}: {advice}")
    return ray


def _check_pool(
    workers: int, num_cpus: int, num_gpus: float, have: Mapping[str, float], *, resumes: bool
) -> None:
    """Refuse a pool that would not leave the CPUs that Ray Data's own tasks need."""
    cpus, gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
    free = TASKS + FILTER if resumes else TASKS
    grows = "If the cluster grows, say to what: cluster={'CPU': ..., 'GPU': ...}"
    if workers * num_cpus > cpus - free:
        checkpoint = " and the checkpoint's filter" if resumes else ""
        raise ValueError(
            f"workers={workers} with num_cpus={num_cpus} would hold {workers * num_cpus} of the "
            f"cluster's {cpus:g} CPUs, but {free} must stay free: the tasks that read and write"
            f"{checkpoint} take one each, and would wait for ever. At most "
            f"{max(0, int(cpus - free) // num_cpus)} such workers fit. {grows}"
        )
    if workers * num_gpus > gpus:
        raise ValueError(
            f"workers={workers} with num_gpus={num_gpus:g} need {workers * num_gpus:g} GPUs, but "
            f"the cluster has {gpus:g}. {grows}"
        )
