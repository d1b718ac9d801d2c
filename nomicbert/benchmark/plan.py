"""What is measured, on which checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nomicbert.benchmark.peers import ANCHOR, DTYPES, Peer, Setting, choose
from nomicbert.benchmark.workloads import Case, draw
from nomicbert.config import EncoderConfig
from nomicbert.loading.folder import read_folder
from nomicbert.text.tokenizer import Tokenizer

CPU = torch.device("cpu")
# The group of latency cases whose peers of all dtypes take turns.
ALL = "all"
# What scales of activations are measured on: as many texts of each kind, of another seed.
SAMPLE_CASES = ("queries", "passages", "fixed-512")
SAMPLE_TEXTS, SAMPLE_TOKENS, SAMPLE_SEED = 16, 8192, 1


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

    def groups(self) -> list[tuple[str, list[str], list[str]]]:
        """Name, dtypes and cases of each group: its peers are in memory together."""
        latency = [name for name in self.cases if self.together and name.startswith("latency-")]
        others = [name for name in self.cases if name not in latency]
        found = [(dtype, [dtype], others) for dtype in self.dtypes if others]
        return [*found, (ALL, list(self.dtypes), latency)] if latency else found

    def peers(self, dtypes: Sequence[str]) -> list[Peer]:
        """Who takes turns in a group of these dtypes; the common measure too, if asked for."""
        found = choose(self.families, dtypes, self.device, self.slow)
        if not found or ANCHOR in found:
            return found
        return (
            [*found, ANCHOR] if self.families is None or ANCHOR.family in self.families else found
        )


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
        read = read_folder(folder)
        tokenizer = Tokenizer.from_settings(read.tokenizer, read.config.vocab_size)
        return cls(name, folder, read.encoder, read.config, tokenizer, read.limit.tokens)

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

    def setting(self, options: Options, cache: Path) -> Setting:
        """What the peers of a group are loaded with; nothing is loaded yet."""
        sample: list[list[int]] = []
        for name in SAMPLE_CASES:
            case = self.case(name, SAMPLE_TOKENS, options.device, SAMPLE_SEED)
            sample += case.ids[: 2 if options.quick else SAMPLE_TEXTS] if case else []
        return Setting(self.folder, self.encoder, options.device, options.threads, cache, sample)
