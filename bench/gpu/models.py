"""Whole models on a GPU, in batches and one text at a time, measured by nomicbert.benchmark.

A model stays loaded on the device until the next one is measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from bench.gpu.place import Place
from bench.gpu.race import Task
from bench.gpu.rivals import Field, Rival, rows
from bench.throughput import MINILM, folder_of
from nomicbert.benchmark.group import Group
from nomicbert.benchmark.lines import MEASURED, Line
from nomicbert.benchmark.plan import Checkpoint
from nomicbert.benchmark.workloads import FIXED, NAMES, Case, draw

# Tokens per case; more for the mixture, whose documents have up to 8192.
CASES = {
    "fixed-32": 65536,
    "fixed-128": 65536,
    "fixed-512": 65536,
    "fixed-2048": 65536,
    "fixed-8192": 65536,
    "passages": 65536,
    "queries": 65536,
    "mixture": 262144,
}
LATENCY = ("latency-16", "latency-32", "latency-64", "latency-512")
DRY_CASES, DRY_LATENCY, DRY_TOKENS = ("fixed-16", "queries"), ("latency-24",), 64
# Rounds. A latency round has 20 calls (1 in a dry run): 240 calls in total.
ROUNDS, LATENCY_ROUNDS, DRY_ROUNDS = 9, 12, 1


class AnyLength(Checkpoint):
    """A checkpoint with latency cases of any length."""

    def case(self, name: str, tokens: int, device: torch.device, seed: int = 0) -> Case | None:
        """See Checkpoint. A latency case of a new length is cut from a longer text."""
        if name in NAMES or not name.startswith("latency-"):
            return super().case(name, tokens, device, seed)
        length = int(name.removeprefix("latency-"))
        if length > self.longest:
            return None
        larger = min(size for size in FIXED if size >= length)
        text = draw(f"fixed-{larger}", self.tokenizer, larger, longest=larger, seed=seed)
        assert text is not None
        ids, _ = self.tokenizer.encode(text.texts, length)
        words = self.tokenizer.rust.decode(ids[0])
        if self.tokenizer.encode([words], length + 1)[0] != ids:
            raise ValueError(f"case {name}: the shortened text gives other token ids")
        return Case(name, ids, [words])


@dataclass
class Models:
    """The models of a run, one of them loaded at a time.

    Attributes:
        names: of checkpoints, or folders.
        scratch: folder where checkpoints are built.
        compiles: include torch.compile.
        slow: include its max-autotune mode.
        rivals: the candidates; None: all.
        rounds: rounds for batches of texts.
        tokens: case -> tokens, overrides CASES.
    """

    place: Place
    names: list[str]
    scratch: Path
    compiles: bool = True
    slow: bool = False
    rivals: tuple[Rival, ...] | None = None
    rounds: int = ROUNDS
    tokens: Mapping[str, int] = field(default_factory=dict)
    _checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    _groups: dict[tuple[str, str], Group] = field(default_factory=dict)

    def checkpoint(self, name: str) -> Checkpoint:
        """The checkpoint of a name, built if it is missing."""
        if name not in self._checkpoints:
            folder = self.dry_folder(name) if self.place.dry else folder_of(name, self.scratch)
            known = Checkpoint.of(Path(name).name, folder)
            self._checkpoints[name] = AnyLength(**vars(known))
        return self._checkpoints[name]

    def dry_folder(self, name: str) -> Path:
        """A checkpoint of one layer in the named layout."""
        if Path(name).is_dir() or name == MINILM:
            return folder_of(name, self.scratch)
        from tests.support.checkpoints import build_checkpoint

        return build_checkpoint(self.scratch / "dry" / name, name, num_hidden_layers=1)

    def tasks(self, part: str) -> Iterator[Task]:
        """Cases of batches for part "models", of single texts for "latency"."""
        for name in self.names:
            for case in self.cases(part):
                group = self.place.dtype_name
                yield Task(part, Path(name).name, case, group, more={"source": name})

    def cases(self, part: str) -> tuple[str, ...]:
        """Names of a part's cases."""
        if part == "latency":
            return DRY_LATENCY if self.place.dry else LATENCY
        return DRY_CASES if self.place.dry else tuple(CASES)

    def measure(self, task: Task) -> list[Line]:
        """Measure one case: the lines of nomicbert.benchmark with the fields of this benchmark.

        The list is empty if the case has longer texts than the model takes.
        """
        assert task.more is not None
        group = self.group(task.part, task.more["source"])
        known = {**CASES, **self.tokens}
        tokens = DRY_TOKENS if self.place.dry else known.get(task.case, 1)
        group.options = replace(group.options, tokens=tokens)
        blocks = list(group.cases([task.case], lambda what: None))
        around = self.place.around()
        lines = [line for block in blocks for line in block]
        return [{**line, "part": task.part, **repeats(line), **around} for line in lines]

    def group(self, part: str, name: str) -> Group:
        """The peers of a part and model; frees those of another model."""
        if (part, name) not in self._groups:
            self._groups.clear()
            self.place.tidy()
            checkpoint, dtype, dry = self.checkpoint(name), self.place.dtype_name, self.place.dry
            latency = part == "latency"
            compiles = self.compiles and not dry
            options = Field(
                cases=(),
                dtypes=[dtype],
                rounds=DRY_ROUNDS if dry else LATENCY_ROUNDS if latency else self.rounds,
                threads=torch.get_num_threads(),
                device=self.place.device,
                quick=dry,
                rivals=self.rivals
                or rows(
                    self.place.backend, dtype, latency=latency, compiles=compiles, slow=self.slow
                ),
            )
            setting = checkpoint.setting(options, self.scratch / "exports")
            self._groups[part, name] = Group(checkpoint, options, setting, dtype, [dtype])
        return self._groups[part, name]


def repeats(line: Line) -> Line:
    """Number of timed rounds or calls, and interquartile range in seconds."""
    if line["status"] != MEASURED:
        return {"repeats": line["rounds"]}
    return {"repeats": len(line["seconds"]), "iqr": line["spread"] * line["median"]}
