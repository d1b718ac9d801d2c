"""Speed of ours and the reference, interleaved on the same texts: a ratio without a bound."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from nomicbert.embedder import Embedder
from nomicbert.verify.checks import encode
from nomicbert.verify.references import Transformers, quiet
from nomicbert.verify.report import Row
from nomicbert.verify.texts import TEXTS
from nomicbert.verify.truth import Truth, sentence_transformer
from nomicbert_kernels import Backend

ROUNDS = 5
# Without the long text: next to it, a reference that pads would mostly be timed on padding.
SHORT = list(TEXTS[:-1])


def speed_row(folder: Path, truth: Truth, dtype: torch.dtype, backend: Backend) -> Row | None:
    """Speed of ours relative to the reference; None if the reference is the oracle.

    Compares sentences -> vectors with sentence-transformers, else one padded batch through the
    encoder. Both sides get the same tokens, and padding does not count as work.
    """
    encoder = truth.encoder
    if not isinstance(encoder, Transformers):
        return None
    embedder = Embedder.from_pretrained(folder, device=encoder.device, dtype=dtype, backend=backend)
    if truth.whole:
        theirs = sentence_transformer(truth.folder, encoder.device, dtype)
        lengths = map(len, embedder.tokenizer.encode(SHORT, embedder.max_seq_length)[0])
        what, tokens = f"{len(SHORT)} texts", sum(lengths)

        def ours_once() -> None:
            encode(embedder, SHORT)

        def theirs_once() -> None:
            with quiet():
                theirs.encode(SHORT, prompt="", show_progress_bar=False)
    else:
        model, batch = encoder.load(dtype, encoder.forms[0]), truth.batch
        arguments = batch.padded(encoder.device)
        what, tokens = "encoder", sum(batch.lengths)

        def ours_once() -> None:
            with torch.inference_mode():
                embedder.model(**arguments)

        def theirs_once() -> None:
            with torch.inference_mode():
                model(**arguments)

    mine, own = _interleaved(ours_once, theirs_once, encoder.device)
    name = str(dtype).removeprefix("torch.")
    said = f"{what}: {tokens / mine:,.0f} to {tokens / own:,.0f} tokens/s"
    return Row("speed", name, embedder.model.ops.name, said, "times as fast", own / mine)


def _interleaved(
    a: Callable[[], None], b: Callable[[], None], device: torch.device
) -> tuple[float, float]:
    """Median seconds of each call, interleaved A B A B, after one untimed warm-up of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        for place, call in enumerate((a, b)):
            _wait(device)
            started = time.perf_counter()
            call()
            _wait(device)
            if number:
                times[place].append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
