"""How a loaded model is computed: what answers, metrics and the self-test need to know of it.

Where in the flow: `models` notes it where the model is loaded, which may be a worker process.
"""

from dataclasses import dataclass

import msgspec

from nomicbert.modeling.model import NomicBert
from nomicbert.vectors.fingerprint import Fingerprint
from nomicbert_kernels.linear_torch import onednn_packs


@dataclass(frozen=True)
class Runs:
    """Facts about one loaded model.

    Attributes:
        device: type of the device.
        dtype, compute_dtype: of parameters and hidden states.
        backend: name of its ops.
        is_exact: whether a text has the same bits in any batch.
        description: the facade in one line.
    """

    device: str
    dtype: str
    compute_dtype: str
    backend: str
    is_exact: bool
    description: str

    @classmethod
    def of(cls, encoder: NomicBert, description: str) -> "Runs":
        """Of a loaded model."""
        device = encoder.device.type
        names = [
            str(dtype).removeprefix("torch.") for dtype in (encoder.dtype, encoder.compute_dtype)
        ]
        is_exact = device == "cpu" and onednn_packs(encoder.compute_dtype)
        return cls(device, names[0], names[1], encoder.ops.name, is_exact, description)


class ModelFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker says of one loaded model.

    Attributes:
        budget: tokens per batch.
        rate: tokens per second as measured, or 0.
        runs: how it is computed.
        fingerprint: of its vectors; None for a reranker.
        width: values of its row of the self-test.
    """

    budget: int
    rate: float
    runs: Runs
    fingerprint: Fingerprint | None
    width: int
