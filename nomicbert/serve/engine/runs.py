"""How a loaded model is computed: what answers, metrics and the self-test need to know of it.

Where in the flow: `models` notes it where the model is loaded, which may be a worker process.
"""

from dataclasses import dataclass

from nomicbert.modeling.model import NomicBert
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
