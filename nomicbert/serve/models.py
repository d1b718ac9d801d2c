"""The models of a server: loading, copies per device, warm-up.

Where in the flow: `service` loads them once, in a thread, before the server is ready. No request
loads, downloads or deletes one.
"""

import asyncio
import contextlib
import copy
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nomicbert.arguments import as_devices
from nomicbert.embedder import Embedder
from nomicbert.runtime.batch_budget import batch_tokens
from nomicbert.runtime.settings import EmbedderSettings
from nomicbert.serve.engine import calibrate
from nomicbert.serve.engine.compute import Replica
from nomicbert.serve.engine.jobs import Computes
from nomicbert.serve.engine.runs import Runs
from nomicbert.serve.engine.workers import Workers
from nomicbert.serve.names import Names
from nomicbert.serve.settings import ServeSettings
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.fingerprint import Fingerprint
from nomicbert.vectors.pooling import Finish

logger = logging.getLogger(__name__)

SELF_TEST = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True)
class ServedModel:
    """One loaded model.

    Attributes:
        index: its place among the models.
        name: how metrics and lists call it.
        embedder: tokenizer, prompts and settings; the copy on the first device, or without
            parameters if workers compute.
        runs: how it is computed.
        fingerprint: names its vector space.
        max_length: tokens per text.
        default_prompt: prompt of requests that name none.
        self_test: vector of SELF_TEST when it was loaded.
    """

    index: int
    name: str
    embedder: EmbedderSettings
    runs: Runs
    fingerprint: Fingerprint
    max_length: int
    default_prompt: str
    self_test: torch.Tensor

    @property
    def tokenizer(self) -> Tokenizer:
        """Text -> token ids."""
        return self.embedder.tokenizer

    @property
    def width(self) -> int:
        """Columns of a whole vector."""
        return self.embedder.pooling.embedding_dimension

    @property
    def space(self) -> str:
        """Fingerprint of the vectors of a request that asks for nothing else, without a prompt."""
        finish = Finish(truncate_dim=self.embedder.truncate_dim, normalize=True)
        return self.fingerprint.of_call(finish, "").partition(".")[0]

    def is_same(self, row: torch.Tensor) -> bool:
        """Whether a vector of SELF_TEST is that of load time.

        Up to rounding where bits depend on the batch: on a GPU, and without oneDNN.
        """
        if self.runs.is_exact:
            return torch.equal(row, self.self_test)
        return bool(torch.allclose(row, self.self_test, rtol=1e-2, atol=1e-2))


@dataclass(frozen=True)
class Loaded:
    """All models, on all devices, ready to compute.

    Attributes:
        models: in the order of the settings.
        replicas: per device, each model.
        budgets: tokens per batch of each model.
        rates: tokens per second of each model as measured; 0 if it was not.
        workers: the processes that compute, or None if this one does.
    """

    models: list[ServedModel]
    replicas: Sequence[Sequence[Computes]]
    budgets: list[int]
    rates: list[float]
    workers: Workers | None = None


def load(settings: ServeSettings, names: Names) -> Loaded:
    """Load, warm up and measure all models.

    Raises: NomicBertError, ValueError: as `Embedder`, or a prompt or limit that does not fit.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    devices = devices_of(settings)
    models, budgets, rates = [], [], []
    replicas: list[list[Replica]] = [[] for _ in devices]
    for index, name in enumerate(settings.models):
        embedder = Embedder(
            name,
            revision=settings.revision,
            local_files_only=settings.local_files_only,
            dtype=settings.dtype,
            device=devices[0],
            backend=settings.backend,
            rotary_scaling_factor=settings.rotary_scaling_factor,
        )
        embedder.embedding_model.eval()
        model = serve_model(index, names.primary[index], embedder, settings)
        for device, copies in zip(devices, replicas, strict=True):
            copies.append(Replica(_copy_to(embedder, device, first=copies is replicas[0])))
        budget, rate = _budget(embedder, replicas[0][index], settings.max_batch_tokens)
        for copies in replicas[1:]:
            _warm_up(embedder, copies[index])
        models.append(model)
        budgets.append(budget)
        rates.append(rate)
        logger.info(
            "%s: %s, batches of up to %d tokens, texts of up to %d tokens",
            model.name, embedder, budget, model.max_length,
        )  # fmt: skip
    return Loaded(models, replicas, budgets, rates)


def devices_of(settings: ServeSettings) -> list[torch.device]:
    """The devices, after a check of what is for one model or one kind of device.

    Raises: ValueError: it names the option.
    """
    devices = as_devices(settings.devices)
    if len({device.type for device in devices}) > 1:
        raise ValueError("--device: one server computes on GPUs or on the CPU, not on both")
    if settings.revision is not None and len(settings.models) > 1:
        raise ValueError("--revision is for one --model: start a server for each")
    return devices


async def load_aside(load: Callable[[], Loaded]) -> Loaded:
    """Call `load` on a thread that does not keep the process alive: a download may take hours."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Loaded] = loop.create_future()

    def hand_over(loaded: Loaded | None, error: BaseException | None) -> None:
        if future.done():
            return
        if loaded is not None:
            future.set_result(loaded)
        elif error is not None:
            future.set_exception(error)

    def work() -> None:
        loaded, problem = None, None
        try:
            loaded = load()
        except BaseException as error:  # raised again where the future is awaited
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(hand_over, loaded, problem)

    threading.Thread(target=work, name="loading", daemon=True).start()
    return await future


def serve_model(index: int, name: str, embedder: Embedder, settings: ServeSettings) -> ServedModel:
    """The record of a loaded embedder.

    Raises: ValueError: --max-length or --default-prompt-name does not fit the checkpoint.
    """
    prompt = apply_settings(embedder, settings)
    vector = embedder.encode(SELF_TEST, prompt="", convert_to_tensor=True)
    assert isinstance(vector, torch.Tensor)
    return ServedModel(
        index=index,
        name=name,
        embedder=embedder,
        runs=Runs.of(embedder),
        fingerprint=Fingerprint.of(embedder.embedding_model, embedder.tokenizer),
        max_length=embedder.max_seq_length,
        default_prompt=prompt,
        self_test=vector.float().cpu(),
    )


def apply_settings(embedder: EmbedderSettings, settings: ServeSettings) -> str:
    """Set --max-length; return the prompt of requests that name none.

    Raises: ValueError: --max-length or --default-prompt-name does not fit the checkpoint.
    """
    if settings.max_length is not None:
        embedder.max_seq_length = settings.max_length
    if settings.default_prompt is not None:
        return settings.default_prompt
    return embedder.prompt_text(settings.default_prompt_name)


def self_test_ids(model: ServedModel) -> tuple[list[list[int]], Finish]:
    """Token ids of SELF_TEST, and the steps after pooling."""
    ids, _ = model.tokenizer.encode([SELF_TEST], model.max_length)
    return ids, Finish(truncate_dim=model.embedder.truncate_dim)


def _copy_to(embedder: Embedder, device: torch.device, *, first: bool) -> EmbeddingModel:
    """The model itself on the first device, a copy on others."""
    if first:
        return embedder.embedding_model
    return copy.deepcopy(embedder.embedding_model).to(device)


def _budget(embedder: Embedder, replica: Replica, wanted: int | None) -> tuple[int, float]:
    """Warm up a model; return its tokens per batch and its measured rate, or 0."""
    _warm_up(embedder, replica)
    if wanted is not None:
        return wanted, 0.0
    if embedder.device.type != "cpu":
        return batch_tokens(embedder.model), 0.0
    longest = min(embedder.max_seq_length, 2 * calibrate.SIZES[0])
    return calibrate.measure_budget(
        lambda texts: replica.model.encode_ids(texts), _ids(embedder, longest)
    )


def _warm_up(embedder: Embedder, replica: Replica) -> None:
    """Compute a short text and a longer batch: weights are packed, kernels compiled."""
    with torch.inference_mode():
        for count, length in ((1, 8), (8, 64)):
            length = min(length, embedder.max_seq_length)
            replica.model.encode_ids([_ids(embedder, length)] * count)


def _ids(embedder: Embedder, length: int) -> list[int]:
    """Token ids of some text, `length` in all."""
    ids, _ = embedder.tokenizer.encode([SELF_TEST * length], length)
    return list(np.resize(np.array(ids[0]), length).tolist())
