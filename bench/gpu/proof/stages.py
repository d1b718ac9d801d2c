"""The stages of the proof run, most important first.

Boxes are seconds on one H200 and add up to eight minutes. The start of a child and the estimates of
its cases fit into its box. `precompile` and `inductor` run in the background, mostly on the host's
processors. `headline`, the first stage whose times matter, waits for both.
"""

from bench.gpu.runner.supervise import Stage

INTERPRETER = {"TRITON_INTERPRET": "1"}
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
# Seconds until the first case of a child: Python imports torch and transformers, CUDA starts.
START = 6.0


def stages(dry: bool) -> list[Stage]:
    """All stages.

    Args:
        dry: on a CPU, where the stages of single ops run in Triton's interpreter.
    """
    here = NO_GPU if dry else {}
    ops = {**NO_GPU, **INTERPRETER} if dry else {}
    room = "bench.gpu.proof"
    return [
        Stage("precompile", f"{room}.precompile:cases", 120, 120, background=True, env=NO_GPU),
        Stage("baseline", f"{room}.baseline:cases", 30, 40, env=here),
        Stage("inductor", f"{room}.speed:inductor_cases", 90, 90, background=True, env=here),
        Stage("smoke", f"{room}.smoke:cases", 50, 40, env=ops),
        Stage("parity", f"{room}.parity:cases", 40, 45, env=here),
        Stage("headline", f"{room}.speed:headline_cases", 75, 40, exclusive=True, env=here),
        Stage("profile", f"{room}.profiling:cases", 20, 30, env=here),
        Stage("variants", f"{room}.variants:cases", 80, 40, env=ops),
        Stage("tuned", f"{room}.speed:tuned_cases", 35, 40, env=here),
        Stage("peers", f"{room}.speed:peer_cases", 60, 60, env=here),
        Stage("fp8", f"{room}.parity:fp8_cases", 35, 40, env=ops),
        Stage("compiled", f"{room}.speed:compiled_cases", 55, 90, env=here),
    ]


def budget(found: list[Stage]) -> float:
    """Seconds of all boxes together, without the background."""
    return sum(stage.box for stage in found if not stage.background)
