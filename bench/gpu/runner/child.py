"""The child process: runs the cases of one stage, one after the other.

A failed case ends the process, because a CUDA error can make every later call fail. The parent then
starts another child for the remaining cases.
"""

import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.runner.ledger import (
    BEGUN,
    ENDS,
    FAILED,
    OK,
    PLANNED,
    WRONG,
    Ledger,
    digest,
    ends,
    unfinished,
)

# Exit codes: nothing is left to do, or no time; a case has failed, and others remain.
DONE, AGAIN = 0, 75
Facts = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: unique in its stage.
        work: returns the fields of its line; "status" among them unless it is ok. AssertionError
            means a wrong result, any other exception a failure.
        seconds: estimated duration. With less time left the case is not begun.
    """

    name: str
    work: Callable[[], Facts]
    seconds: float = 5.0


# (stage, options) -> its cases.
Plan = Callable[[str, Facts], Sequence[Case]]


def main(arguments: Sequence[str]) -> int:
    """Run the stage that a JSON specification names; see `supervise.Supervisor`."""
    spec = json.loads(arguments[0])
    threading.Thread(target=end_with_parent, daemon=True).start()
    ledger = Ledger(Path(spec["ledger"]))
    plan = function_of(spec["cases"])
    stage, until = spec["stage"], spec["until"]
    cases = plan(stage, spec["options"])
    todo = cases if spec["repeat"] else waiting(cases, stage, ledger, spec["again"])
    facts: Facts = {
        "options": digest(spec["options"]),
        "waiting": len(todo),
        "seconds": sum(case.seconds for case in todo),
    }
    ledger.add(stage, "", PLANNED, cases=[case.name for case in cases], **facts)
    for case in todo:
        if time.time() + case.seconds > until:
            return DONE
        ledger.add(stage, case.name, BEGUN, pid=os.getpid())
        started = time.perf_counter()
        try:
            facts = case.work()
        except AssertionError as error:
            facts = {"status": WRONG, "reason": first_line(error)}
        except Exception as error:  # whatever a library raises; the other cases go on
            traceback.print_exc()
            facts = {"status": FAILED, "reason": f"{type(error).__name__}: {first_line(error)}"}
        status = facts.pop("status", OK)
        assert status in ENDS, status
        seconds = round(time.perf_counter() - started, 3)
        ledger.add(stage, case.name, status, seconds=seconds, **facts)
        if status == FAILED:
            sys.stdout.flush()
            sys.stderr.flush()
            # without cleaning up, which can depend on a broken device
            os._exit(AGAIN)
    return DONE


def waiting(cases: Sequence[Case], stage: str, ledger: Ledger, again: bool) -> list[Case]:
    """Cases without an end that were not begun; with `again`, then those that were."""
    lines = ledger.lines()
    done, begun = ends(lines), unfinished(lines)
    left = [case for case in cases if (stage, case.name) not in done]
    fresh = [case for case in left if (stage, case.name) not in begun]
    return fresh + [case for case in left if again and case not in fresh]


def function_of(name: str) -> Plan:
    """The function that "module:function" names."""
    module, _, function = name.partition(":")
    found: Plan = getattr(importlib.import_module(module), function)
    return found


def end_with_parent() -> None:
    """Kill this process group once the parent's end of stdin closes."""
    # sys.stdin would hold a lock that the interpreter needs at exit
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def first_line(error: BaseException) -> str:
    """Of its message, cut to what fits a table."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
