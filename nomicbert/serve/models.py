"""The models of a server: loading, copies per device, warm-up.

Where in the flow: `service` loads them once, in a thread, before the server is ready. No request
loads, downloads or deletes one.
"""

import asyncio
import contextlib
import copy
import logging
import threading
from dataclasses import dataclass

import numpy as np
import torch

from nomicbert.arguments import as_devices
from nomicbert.cross_encoder import CrossEncoder
from nomicbert.embedder import Embedder
from nomicbert.loading import hub
from nomicbert.loading.folder import read_folder
from nomicbert.loading.purpose import is_reranker
from nomicbert.loading.reranker_keywords import ORGANISATION
from nomicbert.loading.sentence_keywords import translate
from nomicbert.runtime.batch_budget import batch_tokens
from nomicbert.serve.engine import calibrate
from nomicbert.serve.engine.compute import Replica
from nomicbert.serve.names import Names
from nomicbert.serve.scorers import serve_reranker
from nomicbert.serve.served import SELF_TEST, ServedEmbedder, ServedModel, serve_embedder
from nomicbert.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

# The arguments of a facade that say where its checkpoint is.
LOCATION = dict.fromkeys(("revision", "cache_dir", "token", "local_files_only"))


@dataclass(frozen=True)
class Loaded:
    """All models, on all devices, ready to compute.

    Attributes:
        models: in the order of the settings.
        replicas: per device, each model.
        budgets: tokens per batch of each model.
        rates: tokens per second of each model as measured; 0 if it was not.
    """

    models: list[ServedModel]
    replicas: list[list[Replica]]
    budgets: list[int]
    rates: list[float]


def load(settings: ServeSettings, names: Names) -> Loaded:
    """Load, warm up and measure all models.

    Raises: NomicBertError, ValueError: as `Embedder`, or a prompt or limit that does not fit.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    devices = as_devices(settings.devices)
    if len({device.type for device in devices}) > 1:
        raise ValueError("--device: one server computes on GPUs or on the CPU, not on both")
    if settings.revision is not None and len(settings.models) > 1:
        raise ValueError("--revision is for one --model: start a server for each")
    models: list[ServedModel] = []
    budgets, rates = [], []
    replicas: list[list[Replica]] = [[] for _ in devices]
    for index, name in enumerate(settings.models):
        model = open_model(index, name, names.primary[index], settings, devices[0])
        for device, copies in zip(devices, replicas, strict=True):
            copies.append(_replica(model, device, first=copies is replicas[0]))
        budget, rate = _budget(model, replicas[0][index], settings.max_batch_tokens)
        for copies in replicas[1:]:
            _warm_up(model, copies[index])
        models.append(model)
        budgets.append(budget)
        rates.append(rate)
        logger.info(
            "%s: %s, batches of up to %d tokens, texts of up to %d tokens",
            model.name, model.facade, budget, model.max_length,
        )  # fmt: skip
    prompted = settings.default_prompt is not None or settings.default_prompt_name is not None
    if prompted and not any(isinstance(model, ServedEmbedder) for model in models):
        raise ValueError("--default-prompt and --default-prompt-name are for embedding models")
    return Loaded(models, replicas, budgets, rates)


def open_model(
    index: int, given: str, name: str, settings: ServeSettings, device: torch.device
) -> ServedModel:
    """Load one checkpoint as what it is: a reranker, or else an embedding model.

    Args:
        index: its place among the models.
        given: folder or repository id.
        name: see ServedModel.
        settings: of the server.
        device: of the first copy.

    Raises: as `load`.
    """
    # both facades' names of repositories without an organisation
    location = translate({**LOCATION, "path_or_repo_id": given}, {}).location
    wanted = translate(location, {}, ORGANISATION).location
    wanted |= {"revision": settings.revision, "local_files_only": settings.local_files_only}
    folder = hub.resolve(**wanted)
    if is_reranker(read_folder(folder, settings.rotary_scaling_factor)):
        reranker = CrossEncoder(
            folder,
            dtype=settings.dtype,
            device=device,
            backend=settings.backend,
            rotary_scaling_factor=settings.rotary_scaling_factor,
        )
        reranker.model.eval()
        return serve_reranker(index, name, reranker, settings)
    embedder = Embedder(
        folder,
        dtype=settings.dtype,
        device=device,
        backend=settings.backend,
        rotary_scaling_factor=settings.rotary_scaling_factor,
    )
    embedder.embedding_model.eval()
    return serve_embedder(index, name, embedder, settings)


async def load_aside(settings: ServeSettings, names: Names) -> Loaded:
    """`load` on a thread that does not keep the process alive: a download may take hours."""
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
            loaded = load(settings, names)
        except BaseException as error:  # raised again where the future is awaited
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(hand_over, loaded, problem)

    threading.Thread(target=work, name="loading", daemon=True).start()
    return await future


def _replica(model: ServedModel, device: torch.device, *, first: bool) -> Replica:
    """The model itself on the first device, a copy on others."""
    if isinstance(model.facade, Embedder):
        module = model.facade.embedding_model
        return Replica(module if first else copy.deepcopy(module).to(device))
    head = model.facade.model
    return Replica(head if first else copy.deepcopy(head).to(device))


def _budget(model: ServedModel, replica: Replica, wanted: int | None) -> tuple[int, float]:
    """Warm up a model; return its tokens per batch and its measured rate, or 0."""
    _warm_up(model, replica)
    if wanted is not None:
        return wanted, 0.0
    if model.encoder.device.type != "cpu":
        return batch_tokens(model.encoder), 0.0
    longest = min(model.max_length, 2 * calibrate.SIZES[0])
    return calibrate.measure_budget(replica.plain_rows, _ids(model, longest))


def _warm_up(model: ServedModel, replica: Replica) -> None:
    """Compute a short text and a longer batch: weights are packed, kernels compiled."""
    with torch.inference_mode():
        for count, length in ((1, 8), (8, 64)):
            length = min(length, model.max_length)
            replica.plain_rows([_ids(model, length)] * count)


def _ids(model: ServedModel, length: int) -> list[int]:
    """Token ids of some text, `length` in all."""
    ids, _ = model.tokenizer.encode([SELF_TEST * length], length)
    return list(np.resize(np.array(ids[0]), length).tolist())
