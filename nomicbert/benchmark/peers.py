"""The peers of the benchmark: this package, and libraries that can compute the same vectors.

A peer that cannot take part gives the reason: its library is missing, it does not support the
architecture, or the checkpoint cannot be exported. Its results are never estimated.
"""

import importlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from nomicbert.benchmark.batching import Batching
from nomicbert.benchmark.workloads import Case

DTYPES = ("float32", "bfloat16", "float16", "int8")


class AbsentError(Exception):
    """A peer cannot take part; the message gives the reason, in half a line."""


class Runner(Protocol):
    """A loaded peer.

    Attributes:
        from_texts: it takes strings, so its time includes tokenisation.
    """

    from_texts: bool

    def ways(self, case: Case) -> list[Batching]:
        """Candidate ways to cut a case into batches; one for a peer that batches by itself."""

    def vectors(self, case: Case, way: Batching) -> np.ndarray:
        """Compute all vectors (texts, dim) fp32, in the case's order; blocks until done."""


@dataclass(frozen=True)
class Setting:
    """Everything that a peer needs for loading.

    Attributes:
        folder: of the checkpoint with its modules.json.
        encoder: of its config.json, tokenizer and weights.
        device: of the computation.
        threads: number of CPU threads.
        cache: folder of exported models.
        sample: token ids of some texts, for peers that calibrate activations.
        loaded: models shared by several peers, so that each is in memory once.
        closing: closed when the peers are no longer needed, for peers with threads of their own.
    """

    folder: Path
    encoder: Path
    device: torch.device
    threads: int
    cache: Path
    sample: Sequence[Sequence[int]]
    loaded: dict[str, Any] = field(default_factory=dict)
    closing: ExitStack = field(default_factory=ExitStack)


@dataclass(frozen=True)
class Peer:
    """One row of a table.

    Attributes:
        family: its name for --peer.
        dtype: of its GEMMs, one of DTYPES.
        module: name of the module of this package that loads it.
        devices: device types that it runs on.
        slow: takes minutes to load, so it takes part only on request.
    """

    family: str
    dtype: str
    module: str
    devices: tuple[str, ...] = ("cpu",)
    slow: bool = False

    @property
    def name(self) -> str:
        """Unique name of this row."""
        return f"{self.family} {self.dtype}"

    @property
    def is_ours(self) -> bool:
        """Whether this peer is this package."""
        return self.family in ("ours", "ours-texts")

    def load(self, setting: Setting) -> Runner:
        """Load it.

        Raises: AbsentError: it cannot take part here.
        """
        if setting.device.type not in self.devices:
            raise AbsentError(f"does not run on {setting.device.type} here")
        module = importlib.import_module(f"nomicbert.benchmark.{self.module}")
        load: Callable[[str, str, Setting], Runner] = module.load
        return load(self.family, self.dtype, setting)


def _rows() -> list[Peer]:
    both = ("cpu", "cuda")
    rows = []
    for dtype in DTYPES:
        devices = {"float16": ("cuda",), "int8": ("cpu",)}.get(dtype, both)
        rows += [Peer(family, dtype, "ours", devices) for family in ("ours", "ours-texts")]
        if dtype == "int8":
            continue
        rows += [
            Peer("transformers-32", dtype, "torch_peers", devices),
            Peer("transformers", dtype, "torch_peers", devices),
            Peer("sentence-transformers", dtype, "torch_peers", devices),
            Peer("transformers-compile", dtype, "torch_peers", devices, slow=True),
        ]
    return [
        *rows,
        Peer("onnxruntime", "float32", "onnx_peers"),
        Peer("onnxruntime", "int8", "onnx_peers"),
        Peer("onnxruntime-ours", "float32", "onnx_peers"),
        Peer("onnxruntime-ours", "int8", "onnx_peers"),
        Peer("light-embed", "float32", "light_embed_peers"),
        Peer("light-embed", "int8", "light_embed_peers"),
        Peer("infinity-emb", "float32", "infinity_peers"),
        Peer("infinity-emb", "bfloat16", "infinity_peers"),
        Peer("openvino", "float32", "openvino_peers"),
        Peer("openvino", "bfloat16", "openvino_peers"),
        Peer("openvino-weights", "int8", "openvino_peers"),
        Peer("openvino-ptq", "int8", "openvino_peers"),
        Peer("ctranslate2", "float32", "ctranslate2_peers"),
        Peer("ctranslate2", "int8", "ctranslate2_peers"),
    ]


PEERS = _rows()
FAMILIES = list(dict.fromkeys(peer.family for peer in PEERS))
ANCHOR = next(peer for peer in PEERS if peer.name == "transformers-32 float32")
OURS = next(peer for peer in PEERS if peer.name == "ours float32")


def dtypes_of(device: torch.device) -> list[str]:
    """Dtypes that at least one peer supports on a device."""
    return [d for d in DTYPES if any(d == p.dtype and device.type in p.devices for p in PEERS)]


def choose(
    families: Sequence[str] | None, dtypes: Sequence[str], device: torch.device, slow: bool
) -> list[Peer]:
    """The peers of some families and dtypes for a device.

    Args:
        families: None takes all; ours always take part.
        dtypes: of DTYPES.
        device: of the computation.
        slow: also include peers that take minutes to load, even if not named.

    Raises: ValueError: an unknown family.
    """
    unknown = [name for name in families or () if name not in FAMILIES]
    if unknown:
        raise ValueError(f"unknown peer {unknown[0]!r}: it must be one of {', '.join(FAMILIES)}")
    return [
        peer
        for peer in PEERS
        if peer.dtype in dtypes
        and (peer.is_ours or families is None or peer.family in families)
        and (not peer.slow or slow or peer.family in (families or ()))
        and (device.type in peer.devices or peer.family in (families or ()))
    ]
