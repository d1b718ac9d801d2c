"""Load one damaged folder, use it, and say what came out.

A damaged checkpoint loads and gives the vectors that transformers or sentence-transformers give
from the same files, or is refused by an error of nomicbert's tree that names the folder. All else
is a failure.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from nomicbert import CrossEncoder, Embedder, NomicBertError
from nomicbert.describe import describe
from tests.fuzz.folders import Sound

GOOD = ("loads", "equal", "no reference", "refused")
BAD = ("raw", "unnamed", "differs", "not finite", "disagrees", "abort", "hang", "memory")
TEXTS = ("the quick fox", "", "中文 文本 é́ 🙂 ﷺ", "a" * 120 + " b", "  [SEP] ½ \t x\u0000y ")
PAIRS = (("the quick fox", "a b"), ("中文", ""), ("a" * 60, "🙂 [SEP]"))
IDS = torch.tensor([[2, 9, 7, 3], [2, 5, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
TOLERANCE = 1e-3


def judge(folder: Path, sound: Sound, done: Callable[[str, str], None], compare: bool) -> None:
    """Load a folder and use the model.

    Args:
        folder: a damaged one.
        sound: what it was made from.
        done: called with an outcome and details, perhaps twice: "loads" comes before the
            comparison, in which the other library may fail in any way.
        compare: whether to compare.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome, detail, values = _ours(folder, sound)
    if outcome == "loads" and not all(np.isfinite(value).all() for value in values):
        told = any(w.category.__name__ in ("VectorWarning", "WeightWarning") for w in caught)
        outcome = "no reference" if told or sound.loads not in (Embedder, CrossEncoder) else (
            "not finite"
        )  # fmt: skip
    done(outcome, detail)
    if outcome == "loads" and compare and sound.alike:
        done(*_compared(folder, sound, values))


def _ours(folder: Path, sound: Sound) -> tuple[str, str, list[np.ndarray]]:
    described = None
    try:
        if sound.loads is Embedder:
            described = _refusal(lambda: describe(folder, **sound.keywords), folder)
            if described and described[0] != "refused":
                return (*described, [])
        values = _values(folder, sound)
    except BaseException as error:
        return (*_class(error, folder), [])
    if described:
        return "disagrees", f"describe refuses what loads: {described[1]}", []
    return "loads", "", values


def _values(folder: Path, sound: Sound) -> list[np.ndarray]:
    if sound.loads is Embedder:
        return [Embedder(folder, **sound.keywords).encode(list(TEXTS))]
    if sound.loads is CrossEncoder:
        return [CrossEncoder(folder).predict(list(PAIRS))]
    with torch.no_grad():
        # only kept tokens: what a padding token gets is each library's own affair
        return [sound.loads.from_pretrained(folder)(IDS, MASK).logits[MASK.bool()].numpy()]


def _refusal(call: Callable[[], object], folder: Path) -> tuple[str, str] | None:
    try:
        call()
    except BaseException as error:
        return _class(error, folder)
    return None


def _class(error: BaseException, folder: Path) -> tuple[str, str]:
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    text = f"{type(error).__name__}: {error}".encode("ascii", "backslashreplace").decode()
    text = text.replace(str(folder), "")
    if not isinstance(error, NomicBertError):
        return "raw", text[:300]
    named = folder.name in str(error) and "weights_only" not in text
    return "refused" if named else "unnamed", text[:300]


def _compared(folder: Path, sound: Sound, ours: list[np.ndarray]) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = _theirs(folder, sound)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return "no reference", f"{type(error).__name__}: {error}"[:120]
    for mine, other in zip(ours, theirs, strict=True):
        if mine.shape != other.shape:
            return "differs", f"shapes {mine.shape} {other.shape}"
        if not np.isfinite(other).all():
            return "no reference", "not finite"
        scale = max(1e-6, float(np.abs(other).max()))
        off = float(np.abs(mine.astype(np.float64) - other).max()) / scale
        if scale > 1e4:
            return "no reference", "values beyond any model's"
        if not off < TOLERANCE:
            return "differs", f"by {off:.3g} of {scale:.3g}"
    return "equal", ""


def _theirs(folder: Path, sound: Sound) -> list[np.ndarray]:
    import sentence_transformers
    import transformers

    if sound.loads is Embedder:
        judge = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        # without the dtype that a file may ask for, as ours is float32 unless told; and each text
        # alone, because a tokenizer without attention_mask lets the model see padding
        return [judge.float().encode(list(TEXTS), batch_size=1, show_progress_bar=False)]
    if sound.loads is CrossEncoder:
        scorer = sentence_transformers.CrossEncoder(str(folder), device="cpu")
        return [scorer.predict([*PAIRS], batch_size=1, show_progress_bar=False)]
    name = sound.loads.__name__.removeprefix("NomicBert")
    model = getattr(transformers, f"AutoModel{name}").from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return [model.eval()(IDS, attention_mask=MASK).logits[MASK.bool()].numpy()]
