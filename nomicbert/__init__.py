"""NomicBERT and BERT text embeddings, from the checkpoint to the vector.

What needs torch is imported when it is first asked for: `nomicbert --help` and the completion of a
shell need none of it, and torch alone takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nomicbert.config import EncoderConfig
from nomicbert.errors import (
    AccuracyError,
    BackendError,
    CheckpointError,
    ConfigError,
    ExportError,
    HubError,
    NomicBertError,
    TextError,
    TokenizerError,
    WorkerError,
)

if TYPE_CHECKING:
    from nomicbert import embed
    from nomicbert.cross_encoder import CrossEncoder
    from nomicbert.embedder import Embedder
    from nomicbert.loading.card_data import ModelCardData
    from nomicbert.modeling.heads import (
        NomicBertForMaskedLM,
        NomicBertForPreTraining,
        NomicBertForQuestionAnswering,
        NomicBertForSequenceClassification,
        NomicBertForTokenClassification,
    )
    from nomicbert.modeling.model import NomicBert
    from nomicbert.user_warnings import (
        ConfigWarning,
        EmptyRowWarning,
        PoolingWarning,
        PromptWarning,
        TruncationWarning,
        VectorWarning,
        WeightWarning,
        WorkerWarning,
    )

__version__ = "0.1.0"

__all__ = [
    "AccuracyError",
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "ConfigWarning",
    "CrossEncoder",
    "Embedder",
    "EmptyRowWarning",
    "EncoderConfig",
    "ExportError",
    "HubError",
    "ModelCardData",
    "NomicBert",
    "NomicBertError",
    "NomicBertForMaskedLM",
    "NomicBertForPreTraining",
    "NomicBertForQuestionAnswering",
    "NomicBertForSequenceClassification",
    "NomicBertForTokenClassification",
    "PoolingWarning",
    "PromptWarning",
    "TextError",
    "TokenizerError",
    "TruncationWarning",
    "VectorWarning",
    "WeightWarning",
    "WorkerError",
    "WorkerWarning",
    "__version__",
    "embed",
]

_HOMES = {
    "CrossEncoder": "nomicbert.cross_encoder",
    "Embedder": "nomicbert.embedder",
    "ModelCardData": "nomicbert.loading.card_data",
    "NomicBert": "nomicbert.modeling.model",
    "NomicBertForMaskedLM": "nomicbert.modeling.heads",
    "NomicBertForPreTraining": "nomicbert.modeling.heads",
    "NomicBertForQuestionAnswering": "nomicbert.modeling.heads",
    "NomicBertForSequenceClassification": "nomicbert.modeling.heads",
    "NomicBertForTokenClassification": "nomicbert.modeling.heads",
    "ConfigWarning": "nomicbert.user_warnings",
    "EmptyRowWarning": "nomicbert.user_warnings",
    "PoolingWarning": "nomicbert.user_warnings",
    "PromptWarning": "nomicbert.user_warnings",
    "TruncationWarning": "nomicbert.user_warnings",
    "VectorWarning": "nomicbert.user_warnings",
    "WeightWarning": "nomicbert.user_warnings",
    "WorkerWarning": "nomicbert.user_warnings",
}

# Modules that are public as they are.
_MODULES = ("embed",)


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
