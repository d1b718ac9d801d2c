"""The models of a server: loading, names, warm-up, self-test.

Where in the flow: `service` loads them once, in a thread, before the server is ready. A request
names a model by any of its names; no request loads, downloads or deletes one.
"""

import copy
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nomicbert.embedder import Embedder
from nomicbert.runtime.batch_budget import batch_tokens
from nomicbert.serve import calibrate
from nomicbert.serve.compute import Replica
from nomicbert.serve.problems import Problem, Reason
from nomicbert.serve.settings import ServeSettings
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.fingerprint import Fingerprint
from nomicbert.vectors.pooling import Finish
from nomicbert_kernels.linear_torch import onednn_packs

logger = logging.getLogger(__name__)

SELF_TEST = "The quick brown fox jumps over the lazy dog."
# A name such as nomic-embed-text-v1.5, which ollama writes nomic-embed-text:v1.5.
NOMIC = re.compile(r"(nomic-embed-text)-(v[\d.]+)")


@dataclass(frozen=True)
class ServedModel:
    """One loaded model.

    Attributes:
        index: its place among the models.
        name: how metrics and lists call it.
        embedder: facade of the copy on the first device.
        fingerprint: names its vector space.
        max_length: tokens per text.
        default_prompt: prompt of requests that name none.
        self_test: vector of SELF_TEST when it was loaded.
    """

    index: int
    name: str
    embedder: Embedder
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
        dtype = self.embedder.model.compute_dtype
        if self.embedder.device.type == "cpu" and onednn_packs(dtype):
            return torch.equal(row, self.self_test)
        return bool(torch.allclose(row, self.self_test, rtol=1e-2, atol=1e-2))


class Names:
    """Name of a model in a request -> its index.

    Attributes:
        by_name: every name that is listed, in this order.
    """

    def __init__(self, settings: ServeSettings) -> None:
        """Collect the names of all models.

        Raises: ValueError: an alias of a model that is not served, or a name of two models.
        """
        self.by_name: dict[str, int] = {}
        self.primary = [primary_name(model) for model in settings.models]
        self._any = settings.any_model_name
        # names as they were given; paths of folders among them are shown to nobody
        self._given = {model: index for index, model in enumerate(settings.models)}
        for index, primary in enumerate(self.primary):
            more = settings.served_model_names if index == 0 else ()
            for name in (*more, primary):
                self._add(name, index)
        implied: dict[str, int] = {}
        for index, primary in enumerate(self.primary):
            for name in well_known_names(primary):
                implied.setdefault(name, index)
        targets = {**self.by_name, **implied, **self._given, **self.by_name}
        for alias, name in settings.model_aliases:
            if name not in targets:
                known = ", ".join(map(repr, targets))
                raise ValueError(f"--model-alias {alias}={name}: no model {name!r}; known: {known}")
            self._add(alias, targets[name])
        self.by_name = {**self.by_name, **implied, **self.by_name}  # stated names come first

    def find(self, name: str | None) -> int:
        """The index of a model; without a name, or with --any-model-name, the first one's.

        Raises: Problem: no such model.
        """
        if name is None:
            return 0
        found = self.by_name.get(name, self._given.get(name))
        if found is not None:
            return found
        if self._any:
            return 0
        known = ", ".join(map(repr, self.by_name))
        raise Problem(
            Reason.UNKNOWN_MODEL, f"no model {name!r:.200} here: this server has {known}", "model"
        )

    def _add(self, name: str, index: int) -> None:
        if self.by_name.setdefault(name, index) != index:
            raise ValueError(
                f"two models are called {name!r}: rename a folder, or choose another "
                "--served-model-name or --model-alias"
            )


def primary_name(model: str) -> str:
    """The id of a repository; of a folder its last part, since its path is nobody's business."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def well_known_names(name: str) -> Iterable[str]:
    """Further names that clients know a checkpoint by: without the owner, and ollama's."""
    short = name.rsplit("/", 1)[-1]
    yield short
    if match := NOMIC.fullmatch(short):
        family, version = match.groups()
        yield from (family, f"{family}:latest", f"{family}:{version}")


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
    models, budgets, rates = [], [], []
    replicas: list[list[Replica]] = [[] for _ in settings.devices]
    for index, name in enumerate(settings.models):
        embedder = Embedder(
            name,
            revision=settings.revision if index == 0 else None,
            local_files_only=settings.local_files_only,
            dtype=settings.dtype,
            device=settings.devices[0],
            backend=settings.backend,
            rotary_scaling_factor=settings.rotary_scaling_factor,
        )
        embedder.embedding_model.eval()
        model = serve_model(index, names.primary[index], embedder, settings)
        for device, copies in zip(settings.devices, replicas, strict=True):
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


def serve_model(index: int, name: str, embedder: Embedder, settings: ServeSettings) -> ServedModel:
    """The record of a loaded embedder.

    Raises: ValueError: --max-length or --default-prompt-name does not fit the checkpoint.
    """
    if settings.max_length is not None:
        embedder.max_seq_length = settings.max_length
    if settings.default_prompt is not None:
        prompt = settings.default_prompt
    else:
        prompt = embedder.prompt_text(settings.default_prompt_name)
    vector = embedder.encode(SELF_TEST, prompt="", convert_to_tensor=True)
    assert isinstance(vector, torch.Tensor)
    return ServedModel(
        index=index,
        name=name,
        embedder=embedder,
        fingerprint=Fingerprint.of(embedder.embedding_model, embedder.tokenizer),
        max_length=embedder.max_seq_length,
        default_prompt=prompt,
        self_test=vector.float().cpu(),
    )


def self_test_ids(model: ServedModel) -> tuple[list[list[int]], Finish]:
    """Token ids of SELF_TEST, and the steps after pooling."""
    ids, _ = model.tokenizer.encode([SELF_TEST], model.max_length)
    return ids, Finish(truncate_dim=model.embedder.truncate_dim)


def _copy_to(embedder: Embedder, device: str, *, first: bool) -> EmbeddingModel:
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
