"""NomicBERT and BERT text embeddings, from the checkpoint to the vector."""

from nomicbert.config import EncoderConfig
from nomicbert.embedder import Embedder
from nomicbert.errors import NomicBertError
from nomicbert.model import NomicBert

__version__ = "0.1.0"

__all__ = ["Embedder", "EncoderConfig", "NomicBert", "NomicBertError", "__version__"]
