"""NomicBERT and BERT text embeddings, from the checkpoint to the vector.

What needs torch is imported when it is first asked for: `nomicbert --help` and the completion of a
shell need none of it, and torch alone takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nomicbert.config import EncoderConfig
from nomicbert.errors import NomicBertError

if TYPE_CHECKING:
    from nomicbert.cross_encoder import CrossEncoder
    from nomicbert.embedder import Embedder
    from nomicbert.modeling.heads import (
        NomicBertForMaskedLM,
        NomicBertForPreTraining,
        NomicBertForQuestionAnswering,
        NomicBertForSequenceClassification,
        NomicBertForTokenClassification,
    )
    from nomicbert.modeling.model import NomicBert

__version__ = "0.1.0"

__all__ = [
    "CrossEncoder",
    "Embedder",
    "EncoderConfig",
    "NomicBert",
    "NomicBertError",
    "NomicBertForMaskedLM",
    "NomicBertForPreTraining",
    "NomicBertForQuestionAnswering",
    "NomicBertForSequenceClassification",
    "NomicBertForTokenClassification",
    "__version__",
]

_HOMES = {
    "CrossEncoder": "nomicbert.cross_encoder",
    "Embedder": "nomicbert.embedder",
    "NomicBert": "nomicbert.modeling.model",
    "NomicBertForMaskedLM": "nomicbert.modeling.heads",
    "NomicBertForPreTraining": "nomicbert.modeling.heads",
    "NomicBertForQuestionAnswering": "nomicbert.modeling.heads",
    "NomicBertForSequenceClassification": "nomicbert.modeling.heads",
    "NomicBertForTokenClassification": "nomicbert.modeling.heads",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
