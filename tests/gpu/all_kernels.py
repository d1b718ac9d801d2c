"""Launch every kernel once in each dtype, forward and backward; run by `test_sanitizer`.

PYTHONPATH=.:kernels python -m tests.gpu.all_kernels
"""

from __future__ import annotations

import torch

from tests.gpu.calls import CASES, FIRST
from tests.gpu.support import DEVICE, DTYPES, INTERPRETED, NOMIC, draw, ops

# A full and a partial tile, and no more: sanitizers are slow.
TOKENS = 17 if INTERPRETED else 150
CALLS = [case for case in CASES if case.model == NOMIC or case in FIRST]


def main() -> None:
    if INTERPRETED:
        from tests.interpreter import bf16

        bf16.install()
    for dtype in DTYPES:
        for case in CALLS:
            problem = case.problem(draw(dtype, 0), TOKENS)
            with torch.no_grad():
                result = problem.run(ops())
            upstream = draw(dtype, 1)(*result.shape)
            gradients = problem.gradients(ops(), upstream)
            if not all(t.isfinite().all() for t in (result, *gradients.values())):
                raise SystemExit(f"{case.name} in {dtype}: not finite")
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    print(f"{len(CALLS)} calls in {len(DTYPES)} dtypes")  # noqa: T201


if __name__ == "__main__":
    main()
