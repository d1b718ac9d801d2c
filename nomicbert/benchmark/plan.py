"""Options of a benchmark, and its checkpoint."""

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
# Name of the group of latency cases in which the peers of all dtypes are interleaved.
ALL = "all"
# Calibration texts: cases, and texts per case, drawn with a seed of their own.
SAMPLE_CASES = ("queries", "passages", "fixed-512")
SAMPLE_TEXTS, SAMPLE_TOKENS, SAMPLE_SEED = 16, 8192, 1


@dataclass(frozen=True)
class Options:
    """Options of a benchmark.

    Attributes:
        cases: of workloads.NAMES.
        dtypes: of peers.DTYPES; the peers of one dtype are loaded, measured and freed together.
        families: of peers.FAMILIES, or None for all.
        tokens: approximate number of tokens per case.
        rounds: number of interleaved rounds over all peers.
        threads: number of CPU threads of each peer.
        device: of the computation.
        cache: folder of exported models (may take gigabytes); None uses a temporary folder.
        slow: include peers that take minutes to load.
        together: load the peers of all dtypes at once for latency cases, to compare across dtypes.
        quick: as little work as possible, to test that everything runs.
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
        """Name, dtypes and cases of each group, whose peers are in memory together."""
        latency = [name for name in self.cases if self.together and name.startswith("latency-")]
        others = [name for name in self.cases if name not in latency]
        found = [(dtype, [dtype], others) for dtype in self.dtypes if others]
        return [*found, (ALL, list(self.dtypes), latency)] if latency else found

    def peers(self, dtypes: Sequence[str]) -> list[Peer]:
        """The peers of a group; includes ANCHOR unless `families` excludes it."""
        found = choose(self.families, dtypes, self.device, self.slow)
        if not found or ANCHOR in found:
            return found
        return (
            [*found, ANCHOR] if self.families is None or ANCHOR.family in self.families else found
        )


@dataclass(frozen=True)
class Checkpoint:
    """The properties of a checkpoint that do not depend on the peer.

    Attributes:
        name: given by the caller.
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
        """The Setting that the peers of a group share; nothing is loaded yet."""
        sample: list[list[int]] = []
        for name in SAMPLE_CASES:
            case = self.case(name, SAMPLE_TOKENS, options.device, SAMPLE_SEED)
            sample += case.ids[: 2 if options.quick else SAMPLE_TEXTS] if case else []
        return Setting(self.folder, self.encoder, options.device, options.threads, cache, sample)
