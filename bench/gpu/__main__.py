"""Kernels and whole models on a GPU, beside their peers: lines of JSON, in pieces of some minutes.

    python -m bench.gpu --part gemm --out build/gpu.jsonl --minutes 9

A case that the file has is not measured again: the same call goes on where the last one stopped.
Remove its lines to measure it anew. Exit code 0: all is measured; 1: a case failed; 2: a mistake,
or no GPU; 3: time is up, and cases are left.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.gpu.place import Place
from bench.gpu.plan import GUESSES, PARTS, Job, jobs
from bench.gpu.race import in_words
from bench.throughput import MODELS
from nomicbert.errors import NomicBertError
from nomicbert.throughput import lines as found
from nomicbert.throughput.group import first_line

DONE, FAILED, MISTAKE, LEFT = 0, 1, 2, 3
Clock = Callable[[], float]


@dataclass
class Watch:
    """How long the cases of a part take, and how long a call may.

    Attributes:
        guess: seconds of a case before one has been measured.
        until: on the clock, when the call has to be over; None for never.
    """

    guess: float
    until: float | None
    clock: Clock = time.monotonic
    seen: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Seconds of a case."""
        return sum(self.seen) / len(self.seen) if self.seen else self.guess

    def is_up(self) -> bool:
        """Whether the next case would probably not be done in time."""
        # those that were longer than the mean will be so again
        needed = max([self.mean, *self.seen[-3:]])
        return self.until is not None and self.clock() + needed > self.until

    def words(self, cases: int) -> str:
        """What so many cases will take, and what the call has left."""
        said = f"{cases} left, about {_minutes(cases * self.mean)}"
        if self.until is not None:
            said += f"; {_minutes(self.until - self.clock())} of this call"
        return said


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, metavar="NAME",
                        help=f"only these: {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="lines of JSON")
    parser.add_argument("--match", default="", metavar="TEXT",
                        help="only cases whose model and name have it, as 'nomic qkv'")  # fmt: skip
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME",
                        help="of models, latency and stream: as of bench.throughput")  # fmt: skip
    parser.add_argument("--minutes", type=float, metavar="N",
                        help="begin no case that would probably end later")  # fmt: skip
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--slow", action="store_true",
                        help="torch.compile's search for kernels too: takes minutes")  # fmt: skip
    parser.add_argument("--scratch", type=Path, default=Path("build/gpu"), metavar="FOLDER",
                        help="where checkpoints are built")  # fmt: skip
    parser.add_argument("--dry", action="store_true",
                        help="tiny sizes, to see that everything runs; on a CPU too")  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, clock: Clock = time.monotonic) -> int:
    args = parse(arguments)
    until = None if args.minutes is None else clock() + 60 * args.minutes
    try:
        place = Place.here(args.dry)
        known = found.read(args.out) if args.out.is_file() else []
        place.ops  # noqa: B018, what it cannot run on is a mistake that is said at once
    except (ValueError, RuntimeError) as error:
        print(f"bench.gpu: {first_line(error)}", file=sys.stderr)
        return MISTAKE
    if place.dry and any(line.get("machine", {}).get("gpu") for line in known):
        print(f"bench.gpu: {args.out} holds figures of a GPU: give a dry run its own file",
              file=sys.stderr)  # fmt: skip
        return MISTAKE
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = {found.block_of(line) for line in known}
    if note := place.elsewhere(known):
        print(note, flush=True)
    code = DONE
    for part in args.part:
        planned = jobs(part, place, args.models, args.scratch, not args.no_compile, args.slow)
        todo = [
            job for job in planned
            if job.task.key not in done and args.match in f"{job.task.model} {job.task.case}"
        ]  # fmt: skip
        watch = Watch(GUESSES[part], until, clock)
        print(f"{part}: {len(planned) - len(todo)} of {len(planned)} cases are there or left out; "
              f"{watch.words(len(todo))}", flush=True)  # fmt: skip
        for ended in measured(todo, place, watch, args.out):
            code = max(code, ended)
        if code == LEFT:
            break
    return code


def measured(todo: Sequence[Job], place: Place, watch: Watch, path: Path) -> Iterator[int]:
    """Measure one case after the other, write its lines, and yield an exit code for each."""
    for number, job in enumerate(todo):
        name = f"{job.task.part}: {job.task.model} {job.task.case}"
        if watch.is_up():
            print(f"time is up: {watch.words(len(todo) - number)}; run the same again", flush=True)
            yield LEFT
            return
        began = watch.clock()
        try:
            lines = job.measure()
        except NomicBertError as error:
            print(f"{name}: left out: {first_line(error)}", flush=True)
            yield DONE
            continue
        except Exception as error:  # time on a GPU is dear: what fails does not end the others
            place.finish()
            print(f"{name}: FAILED: {type(error).__name__}: {first_line(error)}", flush=True)
            yield FAILED
            continue
        watch.seen.append(watch.clock() - began)
        if lines:
            found.put(lines, path)
        said = in_words(lines) if lines else "left out: its texts are too long for this model"
        print(f"{name}: {said} | {watch.words(len(todo) - number - 1)}", flush=True)
        yield DONE


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if abs(seconds) < 90 else f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    sys.exit(main())
