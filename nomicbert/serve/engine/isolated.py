"""Models that compute in processes of their own, one per device, for `nomicbert serve --isolate`.

Where in the flow: `service` calls `load` in place of `models.load`. The engine asks an
`IsolatedReplica` for the rows of a batch as it asks a `Replica`; the batch goes to the device's
worker, which runs `Replica.rows`. The server itself loads no weights.

A batch whose worker dies is computed again in halves by `compute.isolate`, once a worker runs
again. A lone text may have been unlucky, so it has a second try.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nomicbert.errors import WorkerError
from nomicbert.serve.engine import wire
from nomicbert.serve.engine.deadly import DeadlyTexts
from nomicbert.serve.engine.engine import STOP
from nomicbert.serve.engine.jobs import Piece
from nomicbert.serve.engine.keeper import Keeper
from nomicbert.serve.engine.process import WorkerDied, WorkerProcess
from nomicbert.serve.engine.runs import ModelFacts
from nomicbert.serve.engine.workers import Workers
from nomicbert.serve.models import Loaded, check_prompt, devices_of, folder_of
from nomicbert.serve.names import Names
from nomicbert.serve.scorers import apply_pair_settings, scorer_of
from nomicbert.serve.served import ServedEmbedder, ServedModel, apply_settings
from nomicbert.serve.settings import ServeSettings
from nomicbert.serve.weightless import Weightless, WeightlessReranker, read_weightless
from nomicbert.vectors.pooling import Finish

logger = logging.getLogger(__name__)

# How often a lone text may end a worker.
TRIES = 2


class IsolatedReplica:
    """One model on one device, in the device's worker.

    Attributes:
        device: of the rows that `finish` takes.
    """

    device = torch.device("cpu")

    def __init__(
        self, keeper: Keeper, index: int, deadly: DeadlyTexts, self_test: Sequence[int]
    ) -> None:
        """See `load`.

        Args:
            keeper: of the device's worker.
            index: of the model.
            deadly: texts that are not computed.
            self_test: token ids of the model's self-test.
        """
        self._keeper = keeper
        self._index = index
        self._deadly = deadly
        self._self_test = self_test

    @property
    def embedding_model(self) -> "IsolatedReplica":
        """See Computes."""
        return self

    def rows(self, batch: Sequence[Piece]) -> list[Tensor]:
        """See Computes.

        Raises: RemoteError: the computation failed. WorkerDied: so did the worker; of a lone text
            for the second time. DeadlyText: that was lately. Problem: no worker can be started.
        """
        self._deadly.check(batch)
        alone = len(batch) == 1
        # a server whose self-test passes and all else hangs answers nothing
        is_test = alone and batch[0].ids == self._self_test
        tries = TRIES if alone else 1
        try:
            return self._try(lambda process: process.rows(batch), tries, is_test=is_test)
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

    def _try(
        self,
        work: Callable[[WorkerProcess], list[Tensor]],
        tries: int,
        *,
        is_test: bool = False,
    ) -> list[Tensor]:
        for _ in range(tries - 1):
            try:
                return self._keeper.ask(work, is_test=is_test)
            except WorkerDied:
                pass  # the keeper has logged it, and starts another
        return self._keeper.ask(work, is_test=is_test)


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
    folders = [folder_of(name, settings).resolve() for name in settings.models]
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
        check_prompt(settings, expected.models)
    except BaseException:
        workers.close()
        workers.stop(STOP)
        raise
    for model, one in zip(expected.models, expected.facts, strict=True):
        logger.info(
            "%s: %s, batches of up to %d tokens, texts of up to %d tokens",
            model.name, model.runs.description, one.budget, model.max_length,
        )  # fmt: skip
    deadly = DeadlyTexts()
    replicas = [
        [
            IsolatedReplica(keeper, model.index, deadly, Piece(model.self_test_job(), 0).ids)
            for model in expected.models
        ]
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
        self.facts: list[ModelFacts] = []
        self._serve = [
            _recorder(index, name, folder, settings)
            for index, (name, folder) in enumerate(zip(names.primary, folders, strict=True))
        ]

    def check(self, process: WorkerProcess, facts: wire.Facts, vectors: list[Tensor]) -> None:
        """Compare a worker with the first one, and have it compute the self-test of each model.

        Raises: WorkerError: it differs.
        """
        if len(facts.models) != len(self._serve):
            raise WorkerError(f"the worker has {len(facts.models)} models")
        if not self.models:
            self.facts = facts.models
            self.models = [
                serve(one, vector.clone())
                for serve, one, vector in zip(self._serve, facts.models, vectors, strict=True)
            ]
        for model, first, one in zip(self.models, self.facts, facts.models, strict=True):
            with process.turn:
                (row,) = process.rows([Piece(model.self_test_job(), 0)])
            if one.fingerprint != first.fingerprint or not model.is_same(row):
                raise WorkerError(
                    f"{model.name} gives another vector than at the start: its files have changed"
                )


# What a worker says of a model, and its row of the self-test -> the model's record.
Recorder = Callable[[ModelFacts, Tensor], ServedModel]


def _recorder(index: int, name: str, folder: Path, settings: ServeSettings) -> Recorder:
    """Read a model without its weights, and apply the options of the server to it.

    Raises: NomicBertError, ValueError: a model that is not valid, an option that does not fit it.
    """
    facade = read_weightless(folder, settings.rotary_scaling_factor)
    if isinstance(facade, WeightlessReranker):
        return partial(_scorer, index, name, facade, apply_pair_settings(name, facade, settings))
    return partial(_embedder, index, name, facade, apply_settings(facade, settings))


def _scorer(
    index: int,
    name: str,
    facade: WeightlessReranker,
    shortest: int,
    facts: ModelFacts,
    row: Tensor,
) -> ServedModel:
    return scorer_of(index, name, facade, shortest, facts.runs, row)


def _embedder(
    index: int, name: str, facade: Weightless, prompt: str, facts: ModelFacts, row: Tensor
) -> ServedModel:
    if facts.fingerprint is None:
        raise WorkerError(f"the worker has loaded {name} as a reranker")
    return ServedEmbedder(
        index=index,
        name=name,
        runs=facts.runs,
        max_length=facade.max_seq_length,
        default_prompt=prompt,
        self_test=row,
        embedder=facade,
        fingerprint=facts.fingerprint,
    )
