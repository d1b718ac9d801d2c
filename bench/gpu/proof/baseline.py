"""The machine itself: versions and clocks, copy bandwidth, launch overhead, cuBLAS throughput."""

import functools
import subprocess
from collections.abc import Sequence

from bench.gpu import gemm, launches
from bench.gpu.place import Place
from bench.gpu.proof.cases import case, interleaved, matched
from bench.gpu.race import Task
from bench.gpu.runner.child import Case, Facts

# Rows of one wave of nomic's GEMMs on 132 multiprocessors, and of three.
ROWS = (5632, 16896)
CUBE, DRY_CUBE = 8192, 64


def cases(stage: str, options: Facts) -> Sequence[Case]:
    """A copy, launches, a large matmul, and the GEMMs of the leading model."""
    place = Place.here(options["dry"])
    rows = gemm.DRY_ROWS if place.dry else ROWS
    cube = DRY_CUBE if place.dry else CUBE
    size, flops = 3.0 * cube * cube * place.dtype.itemsize, 2.0 * cube**3
    square = Task("gemm", "any", f"{cube}^3", "gemm", cube, flops, size, {"shape": [cube] * 3})
    costs = [task for task in launches.tasks(place) if "170" not in task.case]
    products = [task for task in gemm.tasks(place) if task.model == "nomic" and task.tokens in rows]
    found = [case(place, "machine", functools.partial(machine, place), 2.0)]
    for module, tasks in ((launches, costs), (gemm, [square, *products])):
        for task in tasks:
            work = functools.partial(interleaved, functools.partial(module.measure, place), task)
            found.append(case(place, f"{task.model} {task.case}", work, 1.5))
    return matched(found, options)


def machine(place: Place) -> Facts:
    """Versions, machine, digest of the kernels, and the output of nvidia-smi."""
    try:
        done = subprocess.run(
            ["nvidia-smi"], capture_output=True, text=True, check=False, timeout=10
        )
        text = done.stdout
    except OSError as error:
        text = str(error)
    around = place.around()
    said = str(around["machine"].get("gpu") or "no GPU")
    return {**around, "nvidia_smi": text, "said": said}
