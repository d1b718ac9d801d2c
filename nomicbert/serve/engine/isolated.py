"""Models that compute in processes of their own, one per device, for `nomicbert serve --isolate`.

Where in the flow: `service` calls `load` in place of `models.load`. The engine asks an
`IsolatedReplica` for the rows of a batch as it asks a `Replica`; the batch goes to the device's
worker, which runs `Replica.rows`. The server itself loads no weights.

A batch whose worker dies is computed again in halves by `compute.isolate`, once a worker runs
again. A lone text may have been unlucky, so it has a second try.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nomicbert.errors import WorkerError
from nomicbert.loading import hub
from nomicbert.serve.engine import wire
from nomicbert.serve.engine.deadly import DeadlyTexts
from nomicbert.serve.engine.jobs import Group, Job, Piece
from nomicbert.serve.engine.keeper import Keeper
from nomicbert.serve.engine.process import WorkerDied, WorkerProcess
from nomicbert.serve.engine.workers import Workers
from nomicbert.serve.models import (
    Loaded,
    ServedModel,
    apply_settings,
    devices_of,
    self_test_ids,
)
from nomicbert.serve.names import Names
from nomicbert.serve.settings import ServeSettings
from nomicbert.serve.weightless import Weightless
from nomicbert.vectors.pooling import Finish

# How often a lone text may end a worker.
TRIES = 2


class IsolatedReplica:
    """One model on one device, in the device's worker.

    Attributes:
        device: of the rows that `finish` takes.
        model: for joins: this object.
    """

    device = torch.device("cpu")

    def __init__(self, keeper: Keeper, index: int, deadly: DeadlyTexts) -> None:
        """See `load`.

        Args:
            keeper: of the device's worker.
            index: of the model.
            deadly: texts that are not computed.
        """
        self._keeper = keeper
        self._index = index
        self._deadly = deadly

    @property
    def model(self) -> "IsolatedReplica":
        """See Computes."""
        return self

    def rows(self, batch: Sequence[Piece]) -> list[Tensor]:
        """See Computes.

        Raises: RemoteError: the computation failed. WorkerDied: so did the worker; of a lone text
            for the second time. DeadlyText: that was lately. Problem: no worker can be started.
        """
        self._deadly.check(batch)
        alone = len(batch) == 1
        try:
            return self._try(lambda process: process.rows(batch), TRIES if alone else 1)
        except WorkerDied:
            if alone:
                self._deadly.add(batch[0])
            raise

    def finish(self, pooled: Tensor, finish: Finish) -> Tensor:
        """See Finisher.

        Raises: as `rows`.
        """
        return torch.stack(
            self._try(lambda process: process.finish(self._index, pooled, finish), TRIES)
        )

    def _try(self, work: Callable[[WorkerProcess], list[Tensor]], tries: int) -> list[Tensor]:
        for _ in range(tries - 1):
            try:
                return self._keeper.ask(work)
            except WorkerDied:
                pass  # the keeper has logged it, and starts another
        return self._keeper.ask(work)


def load(settings: ServeSettings, names: Names) -> Loaded:
    """Read the settings of all models, and start a worker per device.

    Raises: NomicBertError, ValueError: as `models.load`. WorkerError: a worker dies, or its vectors
        are not those of another one.
    """
    devices = devices_of(settings)
    if settings.worker_memory is not None and devices[0].type != "cpu":
        raise ValueError(
            "--worker-memory limits the address space, of which CUDA reserves more than there is "
            "memory: leave it out on a GPU"
        )
    folders = [
        hub.resolve(
            name, revision=settings.revision, local_files_only=settings.local_files_only
        ).resolve()
        for name in settings.models
    ]
    if len(set(folders)) < len(folders):
        raise ValueError("--isolate: two of the models are one folder")
    expected = Expected(settings, names, folders)
    changed = threading.Condition()
    keepers = [
        Keeper(settings_of_worker(settings, folders, str(device), first=not number),
               expected.check, changed)
        for number, device in enumerate(devices)
    ]  # fmt: skip
    workers = Workers(keepers, changed)
    try:
        for number, keeper in enumerate(keepers):
            keeper.start()
            if not number:  # it measures the budget, undisturbed by the others
                keeper.wait()
        for keeper in keepers:
            keeper.wait()
    except BaseException:
        workers.close()
        workers.stop()
        raise
    deadly = DeadlyTexts()
    replicas = [
        [IsolatedReplica(keeper, model.index, deadly) for model in expected.models]
        for keeper in keepers
    ]
    facts = expected.facts
    budgets, rates = [one.budget for one in facts], [one.rate for one in facts]
    return Loaded(expected.models, replicas, budgets, rates, workers)


def settings_of_worker(
    settings: ServeSettings, folders: Sequence[Path], device: str, *, first: bool
) -> ServeSettings:
    """What the worker of one device needs of a server's settings; no secrets are among them.

    Args:
        settings: of the server.
        folders: of the models: a worker that starts later must find the same files.
        device: of the worker.
        first: whether it is to measure the tokens per batch.
    """
    return ServeSettings(
        models=tuple(map(str, folders)),
        local_files_only=True,
        dtype=settings.dtype,
        devices=(device,),
        backend=settings.backend,
        rotary_scaling_factor=settings.rotary_scaling_factor,
        threads=settings.threads,
        max_length=settings.max_length,
        max_batch_tokens=settings.max_batch_tokens if first else settings.max_batch_tokens or 1,
        stuck_seconds=settings.stuck_seconds,
        isolate=True,
        worker_memory=settings.worker_memory,
    )


class Expected:
    """What the first worker has loaded, and all later ones must load too.

    Attributes:
        models: as requests see them, once the first worker is ready.
        facts: of each model.
    """

    def __init__(self, settings: ServeSettings, names: Names, folders: Sequence[Path]) -> None:
        """Read the settings of the models.

        Raises: NomicBertError, ValueError: a model or an option that is not valid.
        """
        self.models: list[ServedModel] = []
        self.facts: list[wire.ModelFacts] = []
        self._names = names.primary
        self._embedders = [Weightless(folder, settings.rotary_scaling_factor) for folder in folders]
        self._prompts = [apply_settings(embedder, settings) for embedder in self._embedders]

    def check(self, process: WorkerProcess, facts: wire.Facts, vectors: list[Tensor]) -> None:
        """Compare a worker with the first one, and have it embed the text of the self-test.

        Raises: WorkerError: it differs.
        """
        if len(facts.models) != len(self._embedders):
            raise WorkerError(f"the worker has {len(facts.models)} models")
        if not self.models:
            self.facts = facts.models
            self.models = [
                self._served(index, one, vector)
                for index, (one, vector) in enumerate(zip(facts.models, vectors, strict=True))
            ]
        for model, one in zip(self.models, facts.models, strict=True):
            ids, finish = self_test_ids(model)
            piece = Piece(Job(Group(model.index), ids, finish), 0)
            with process.turn:
                (row,) = process.rows([piece])
            if one.fingerprint != model.fingerprint or not model.is_same(row):
                raise WorkerError(
                    f"{model.name} gives another vector than at the start: its files have changed"
                )

    def _served(self, index: int, facts: wire.ModelFacts, vector: Tensor) -> ServedModel:
        embedder = self._embedders[index]
        return ServedModel(
            index=index,
            name=self._names[index],
            embedder=embedder,
            runs=facts.runs,
            fingerprint=facts.fingerprint,
            max_length=embedder.max_seq_length,
            default_prompt=self._prompts[index],
            self_test=vector.clone(),
        )
