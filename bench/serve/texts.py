"""Workloads: texts of English words, the k-th of which is a function of a seed and k.

Each word is one token in the vocabulary of BERT, so the number of tokens of a text is known before
it is sent: its words and two special tokens. It is called `drawn` below. A server that adds a
prompt reports more in its `usage`.

A text begins with LEAD words that spell k in base 256, so that no two texts are equal and no cache
can answer. The rest comes from a pool that is drawn once, which keeps the client cheap.
"""

import math
import random
import time
from dataclasses import dataclass

WORDS = tuple(
    """
    able about above across action active after again against age agency air all almost alone along
    also always american among amount and animal another answer any area army around art as ask at
    attack away back ball bank base battle beach bed before begin behind best better between big
    bird black blood blue board boat body book both bottom box boy bridge bring brother brown build
    building business but buy by call camp can capital car card care case cause cell center century
    chair chance change child church circle city class clear close club coach coast code cold
    college color come common company cost could council count country county course court cover
    cross cup current cut dance dark date daughter day dead deal death deep design did different do
    doctor dog door down draw dream drive drop during each early earth east easy eat edge effect
    eight else end energy enough even event ever every example eye face fact fall family far farm
    fast father feel few field fight film final find fire first fish five floor flow food foot for
    force form four free friend from front full game garden gate general get girl give glass go gold
    good great green ground group grow half hall hand happy hard have head hear heart heat heavy
    help here high hill history hit hold home horse hospital hot hotel hour house how human hundred
    ice idea image in inside into iron island it job join judge jump just keep key kid kind king
    know lake land language
    """.split()
)
LEAD = 5
POOL = 1021  # a prime, so that lead and body never repeat together
SPECIAL = 2  # [CLS] and [SEP]
NUMBERS = 2**34  # 64 texts per request each fill the 256**5 leads
PER_SECOND = 2**14  # numbers between the starts of two runs a second apart


@dataclass(frozen=True)
class Workload:
    """What one request asks for.

    Attributes:
        texts: per request.
        least, most: words of a text.
        spread: "uniform" or "log" (uniform in the logarithm).
    """

    texts: int
    least: int
    most: int
    spread: str = "uniform"


WORKLOADS = {
    "short": Workload(1, 6, 10),
    "passages": Workload(1, 78, 138),
    "bulk": Workload(64, 78, 138),
    "mixed": Workload(1, 6, 240, "log"),
}


class Texts:
    """The requests of a workload, by number.

    Args:
        workload: see WORKLOADS.
        seed: of the pool and of the order of WORDS.
        repeat: number of distinct requests, after which they recur; 0: they never do.
    """

    def __init__(self, workload: Workload, seed: int = 0, repeat: int = 0) -> None:
        rng = random.Random(seed)
        self.workload, self.repeat = workload, repeat
        self.words = rng.sample(WORDS, len(WORDS))
        self.pool = [
            (" ".join(rng.choices(WORDS, k=length - LEAD)), length)
            for length in (_length(workload, rng) for _ in range(POOL))
        ]

    def text(self, k: int) -> tuple[str, int]:
        """The k-th text, and its number of tokens."""
        words = self.words
        body, length = self.pool[k % POOL]
        lead = (
            f"{words[k & 255]} {words[k >> 8 & 255]} {words[k >> 16 & 255]} "
            f"{words[k >> 24 & 255]} {words[k >> 32 & 255]} "
        )
        return lead + body, length + SPECIAL

    def request(self, number: int) -> tuple[list[str], int]:
        """The texts of a request, and the number of tokens of them all."""
        if self.repeat:
            number %= self.repeat
        count = self.workload.texts
        found = [self.text(number % NUMBERS * count + i) for i in range(count)]
        return [text for text, _ in found], sum(tokens for _, tokens in found)


def first_number() -> int:
    """A first request that no run of the last twelve days has used: a cache may live longer."""
    return int(time.time()) * PER_SECOND % NUMBERS


def _length(workload: Workload, rng: random.Random) -> int:
    if workload.spread == "log":
        return round(math.exp(rng.uniform(math.log(workload.least), math.log(workload.most))))
    return rng.randint(workload.least, workload.most)
