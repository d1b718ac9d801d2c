"""What is measured, on which checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nomicbert.config import EncoderConfig
from nomicbert.dialects import read_config
from nomicbert.limits import read_limit
from nomicbert.modules import module_folders
from nomicbert.throughput.peers import DTYPES
from nomicbert.throughput.workloads import Case, draw
from nomicbert.tokenizer import Tokenizer

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        cases: of workloads.NAMES.
        dtypes: of peers.DTYPES; the peers of one are loaded, measured and let go.
        families: of peers.FAMILIES, or None for all.
        tokens: of a case, about.
        rounds: of all peers in turn.
        threads: that each peer may use.
        device: where all compute.
        cache: where exported models are kept, which may be gigabytes; None for a while only.
        slow: let those take part that need minutes to load, too.
        together: load the peers of all dtypes at once for latency cases, to compare across dtypes.
        quick: as little as shows that everything runs.
    """

    cases: Sequence[str]
    dtypes: Sequence[str] = DTYPES
    families: Sequence[str] | None = None
    tokens: int = 2048
    rounds: int = 5
    threads: int = 1
    device: torch.device = CPU
    cache: Path | None = None
    slow: bool = False
    together: bool = False
    quick: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """What all peers share of a checkpoint.

    Attributes:
        name: as it was given.
        folder: of modules.json.
        encoder: of config.json, tokenizer and weights.
    """

    name: str
    folder: Path
    encoder: Path
    config: EncoderConfig
    tokenizer: Tokenizer
    longest: int

    @classmethod
    def of(cls, name: str, folder: Path) -> "Checkpoint":
        """Read its files, but not its weights."""
        encoder = next((p for kind, p in module_folders(folder) if kind == "Transformer"), folder)
        config = read_config(encoder)
        tokenizer = Tokenizer.from_folder(encoder, config.vocab_size)
        return cls(name, folder, encoder, config, tokenizer, read_limit(encoder, config).tokens)

    def case(self, name: str, tokens: int, device: torch.device, seed: int = 0) -> Case | None:
        """See workloads.draw."""
        return draw(
            name,
            self.tokenizer,
            tokens,
            longest=self.longest,
            long_documents=device.type == "cuda",
            seed=seed,
        )
