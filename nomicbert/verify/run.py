"""Verify a checkpoint: load both sides, compare, and report."""

import contextlib
import gc
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch

from nomicbert.arguments import as_device
from nomicbert.embedder import Embedder
from nomicbert.errors import BackendError, to_install
from nomicbert.loading import hub
from nomicbert.loading.folder import find_encoder
from nomicbert.loading.target import choose_ops
from nomicbert.user_warnings import (
    ConfigWarning,
    PoolingWarning,
    VectorWarning,
    WeightWarning,
)
from nomicbert.verify.bounds import HALF_VALUES
from nomicbert.verify.checks import embedding_rows, hidden_rows, invariance_row, tensors_row
from nomicbert.verify.references import choose, need_transformers
from nomicbert.verify.report import Report
from nomicbert.verify.speed import speed_row
from nomicbert.verify.texts import TEXTS, Batch, cut
from nomicbert.verify.truth import Truth
from nomicbert_kernels import Backend, compute_dtype

BACKENDS: tuple[Backend, ...] = ("reference", "torch", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Step = Callable[[str], object]


def verify(
    path_or_repo_id: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    device: torch.device | str | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    backends: Sequence[Backend] | None = None,
    step: Step = lambda what: None,
) -> Report:
    """Compare a checkpoint's results with those of the reference, on this machine.

    Args:
        path_or_repo_id: a local folder, or a repository of the hub.
        against: checkpoint for the reference, such as the same weights in another layout; default:
            the same checkpoint.
        revision: branch, tag or commit of the repository.
        local_files_only: do not use the network.
        device: of both sides; default: the CPU.
        dtypes: of the model, one or several of fp32, bf16 and fp16.
        backends: None takes those of BACKENDS that can run on the device.
        step: called before each step with its description; see `count_steps`.

    Raises:
        ImportError: transformers is not installed.
        NomicBertError, ValueError: loading failed.
        BackendError: a requested backend cannot run.
    """
    need_transformers()
    place = as_device(device)
    chosen, notes = _choose_backends(place, dtypes, backends)
    step("files")
    folder = hub.resolve(path_or_repo_id, revision=revision, local_files_only=local_files_only)
    other = folder
    if against is not None:
        other = hub.resolve(against, local_files_only=local_files_only)
    embedder = Embedder.from_pretrained(folder, device=place)
    tensors = tensors_row(find_encoder(folder), embedder.model)
    batch, longest = _batch(embedder), embedder.max_seq_length
    del embedder
    step("the reference")
    encoder = choose(find_encoder(other), place)
    truth = Truth(encoder, find_encoder(other), other, batch, longest)
    report = Report(
        model=os.fspath(path_or_repo_id),
        against=os.fspath(path_or_repo_id if against is None else against),
        reference=encoder.name,
        embedding_reference=truth.name,
        reason=encoder.reason,
        notes=[*notes, *_remarks(truth, place, dtypes)],
        rows=[tensors],
    )
    with _without_repeated_warnings():
        for dtype in dtypes:
            forms = encoder.forms if dtype == torch.float32 else encoder.forms[:1]
            step(f"the reference in {_name(dtype)}")
            theirs = {form: encoder.states(batch, dtype, form) for form in forms}
            for backend in chosen[dtype]:
                step(f"{backend} in {_name(dtype)}")
                ours = Embedder.from_pretrained(folder, device=place, dtype=dtype, backend=backend)
                report.rows += hidden_rows(ours.model, truth, theirs, backend)
                report.rows += embedding_rows(ours, truth, backend)
                if backend == "invariant" or (backend == "torch" and place.type == "cpu"):
                    report.rows.append(invariance_row(ours))
                del ours
                gc.collect()
        step("speed")
        timed = speed_row(folder, truth, dtypes[0], "auto" if backends is None else backends[0])
        report.rows += [timed] if timed else []
    return report


def count_steps(dtypes: Sequence[torch.dtype], backends: int) -> int:
    """Upper bound of the number of steps of `verify`."""
    return 3 + len(dtypes) * (1 + backends)


def _choose_backends(
    device: torch.device, dtypes: Sequence[torch.dtype], asked: Sequence[Backend] | None
) -> tuple[dict[torch.dtype, list[Backend]], list[str]]:
    """The backends that can run in each dtype, and notes on the others.

    Raises: BackendError: a requested backend cannot run in any dtype.
    """
    chosen: dict[torch.dtype, list[Backend]] = {dtype: [] for dtype in dtypes}
    notes: dict[str, list[str]] = {}
    for backend in asked or BACKENDS:
        problem: BackendError | None = None
        for dtype in dtypes:
            try:
                choose_ops(device, compute_dtype(device, dtype), backend)
            except BackendError as error:
                problem = error
                notes.setdefault(str(error), []).append(_name(dtype))
            else:
                chosen[dtype].append(backend)
        if asked and problem and not any(backend in found for found in chosen.values()):
            raise problem
    everywhere = len(dtypes)
    return chosen, [
        why if len(names) == everywhere else f"{', '.join(names)}: {why}"
        for why, names in notes.items()
    ]


def _batch(embedder: Embedder) -> Batch:
    """Token ids of the sentences, repeated to give at least HALF_VALUES values per layer."""
    config = embedder.model.config
    ids, _ = embedder.tokenizer.encode(TEXTS, embedder.max_seq_length)
    stream = [token for text in ids for token in text]
    return cut(stream, config.type_vocab_size, -(-HALF_VALUES // config.hidden_size))


def _remarks(truth: Truth, device: torch.device, dtypes: Sequence[torch.dtype]) -> list[str]:
    """Notes on results that are easily misread."""
    remarks = []
    if truth.encoder.reason:
        remarks.append(
            f"not compared with transformers: {truth.encoder.reason}. The reference is the formula "
            "instead: an independent forward pass from the tensors and config.json"
        )
    if truth.lacks_library:
        remarks.append(
            "sentence-transformers is not installed: vectors are compared with transformers' "
            f"hidden states, pooled by formula ({to_install('verify')} to compare the tokenizer "
            "and pooling too)"
        )
    widened = [_name(dtype) for dtype in dtypes if compute_dtype(device, dtype) != dtype]
    if widened:
        remarks.append(
            f"{' and '.join(widened)} on this CPU: the reference computes in this dtype, this "
            "package stores the weights in it and computes in float32"
        )
    if truth.clear is not None:
        remarks.append(
            "expert routing can flip on the last bit: tokens near a routing boundary are excluded "
            "in float32, and 16-bit rows have no bound"
        )
    return remarks


@contextlib.contextmanager
def _without_repeated_warnings() -> Iterator[None]:
    """Silence warnings that the first load of the checkpoint has already shown."""
    # it warns about 16-bit dtypes on a CPU, for which the report has a note
    backend_logger = logging.getLogger("nomicbert.modeling.backend_module")
    level = backend_logger.level
    backend_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (ConfigWarning, PoolingWarning, VectorWarning, WeightWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        backend_logger.setLevel(level)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
