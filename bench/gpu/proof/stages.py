"""The stages of the proof run, in order: what is most worth knowing comes first.

Boxes are seconds on one H200 and add up to eight minutes. By arithmetic, the start of a child and
the estimates of its cases fit into its box. `precompile` and `inductor` run in the background, on
the host's processors for the most part; `headline`, the first stage whose times matter, waits for
both.
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
    ops = INTERPRETER if dry else {}
    return [
        _stage("precompile", "precompile:cases", 120, 120, background=True, env=NO_GPU),
        _stage("baseline", "baseline:cases", 30, 40),
        _stage("inductor", "speed:inductor_cases", 90, 90, background=True),
        _stage("smoke", "smoke:cases", 50, 40, env=ops),
        _stage("parity", "parity:cases", 40, 45),
        _stage("headline", "speed:headline_cases", 75, 40, exclusive=True),
        _stage("profile", "profiling:cases", 20, 30),
        _stage("variants", "variants:cases", 80, 40, env=ops),
        _stage("tuned", "speed:tuned_cases", 35, 40),
        _stage("peers", "speed:peer_cases", 60, 60),
        _stage("fp8", "parity:fp8_cases", 35, 40, env=ops),
        _stage("compiled", "speed:compiled_cases", 55, 90),
    ]


def _stage(name: str, cases: str, box: float, limit: float, **more: object) -> Stage:
    return Stage(name, f"bench.gpu.proof.{cases}", box, limit, **more)  # type: ignore[arg-type]


def budget(found: list[Stage]) -> float:
    """Seconds of all boxes together, without the background."""
    return sum(stage.box for stage in found if not stage.background)
