"""Throughput goals for one H200, and their comparison with measured lines.

The goals are estimates from a roofline of 790 TFLOP/s in bf16 and 4.3 TB/s. They assume GEMMs at
600 TFLOP/s, attention at published rates, and no other cost. "Stretch" goals go beyond that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nomicbert.benchmark.lines import MEASURED, Line

NOMIC, BERT_LARGE, MINILM = "nomic-v1.5", "conan-v1", "minilm"
OURS, TEXTS, FP8 = "ours", "ours-texts", "ours-fp8"
COMPILE, RECORDED = "transformers-compile", "transformers-reduce-overhead"
EAGER, ST_32 = "transformers", "sentence-transformers-32"
FLASH = "sentence-transformers-fa4"


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        model: of the lines.
        case: of the lines.
        field: name of the compared field, in the unit of UNITS.
        value: the goal.
        stretch: the stretch goal, or None.
        peer: which form of ours.
        over: for goals that are a multiple of a peer, the peer; None for a plain figure.
    """

    model: str
    case: str
    field: str
    value: float
    stretch: float | None = None
    peer: str = OURS
    over: str | None = None

    @property
    def what(self) -> str:
        """In words."""
        if self.over:
            return f"{self.peer}, times {self.over}"
        return f"{self.peer}, {UNITS[self.field][0]}"


# field -> unit in the report, and its value in the field's unit.
UNITS = {
    "tokens_per_second": ("Mtok/s", 1e6),
    "texts_per_second": ("thousand texts/s", 1e3),
    "model_flops": ("model TFLOP/s", 1e12),
    "p50": ("p50, ms", 1e-3),
}
# Fields where smaller is better.
SECONDS = ("p50",)

# Of nomic in bf16: Mtok/s, stretch, then multiples of torch.compile and of transformers as it is,
# in their best batches and from token ids; from strings of sentence-transformers as it is called by
# default, and on FlashAttention-4.
ROWS: dict[str, tuple[float | None, ...]] = {
    "fixed-32": (2.0, 2.6, 1.25, 1.5, 3.0, None),
    "fixed-128": (2.2, 2.8, 1.2, 1.5, 1.6, None),
    "fixed-512": (2.05, 2.6, 1.15, 1.4, 1.4, None),
    "fixed-2048": (1.6, 2.0, 1.15, 1.3, 1.35, 1.2),
    "fixed-8192": (0.88, 1.05, 1.25, 1.35, 1.35, 1.05),
    "passages": (2.1, None, 1.5, 1.6, 2.5, None),
    "queries": (1.5, None, 2.0, 2.0, 8.0, None),
    "mixture": (1.7, 2.2, 1.5, None, 3.0, 1.25),
}
STRETCHED = {("fixed-128", 0): 1.4, ("fixed-512", 0): 1.4, ("fixed-2048", 0): 1.4}
STRETCHED[("fixed-8192", 3)] = 1.25


def goals() -> Iterator[Goal]:
    """All of them."""
    rate = "tokens_per_second"
    for case, (value, stretch, *ratios) in ROWS.items():
        assert value is not None
        yield Goal(NOMIC, case, rate, value, stretch)
        rivals = ((OURS, COMPILE), (OURS, EAGER), (TEXTS, ST_32), (TEXTS, FLASH))
        for index, (ratio, (own, over)) in enumerate(zip(ratios, rivals, strict=True)):
            if ratio is not None:
                better = STRETCHED.get((case, index))
                yield Goal(NOMIC, case, rate, ratio, better, own, over)
    yield Goal(NOMIC, "passages", "texts_per_second", 30.0)
    yield Goal(NOMIC, "queries", "texts_per_second", 190.0)
    for case in ("fixed-128", "fixed-512"):
        yield Goal(NOMIC, case, "model_flops", 500.0, 620.0)
        yield Goal(NOMIC, case, rate, 3.0, 3.6, FP8)
        yield Goal(NOMIC, case, rate, 1.6, None, FP8, COMPILE)
        yield Goal(NOMIC, case, rate, 2.0, None, FP8, EAGER)
    yield Goal(NOMIC, "latency-32", "p50", 0.22, 0.15)
    yield Goal(NOMIC, "latency-32", "p50", 1.3, None, OURS, RECORDED)
    yield Goal(NOMIC, "latency-32", "p50", 7.0, None, OURS, EAGER)
    yield Goal(BERT_LARGE, "fixed-512", rate, 0.75, 0.95)
    yield Goal(BERT_LARGE, "fixed-512", rate, 1.2, 1.4, FP8)
    for case in ("fixed-32", "fixed-128", "passages"):
        yield Goal(MINILM, case, rate, 1.5, None, OURS, COMPILE)


def reached(goal: Goal, lines: Sequence[Line]) -> float | None:
    """The measured value, in the goal's unit or as a multiple of its peer; None if not measured.

    Args:
        goal: the goal.
        lines: of one run; of repeated measurements the last counts.
    """
    groups: dict[str, dict[str, Line]] = {}
    for line in lines:
        right = line["status"] == MEASURED and line["part"] in ("models", "latency")
        if right and (line["model"], line["case"]) == (goal.model, goal.case):
            groups.setdefault(line["group"], {})[line["peer"]] = line
    wanted = {goal.peer, goal.over or goal.peer}
    # only candidates of one group were interleaved, and can be compared
    found = [group for group in groups.values() if wanted <= {*group}]
    if not found:
        return None
    own: float = found[-1][goal.peer][goal.field]
    if not goal.over:
        return own / UNITS[goal.field][1]
    other: float = found[-1][goal.over][goal.field]
    return other / own if goal.field in SECONDS else own / other


def ratio(goal: Goal, value: float) -> float:
    """Measured value over the goal; 1 or more means reached."""
    plain_seconds = goal.field in SECONDS and not goal.over
    return goal.value / value if plain_seconds else value / goal.value
