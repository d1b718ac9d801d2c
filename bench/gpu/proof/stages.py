"""The stages of the proof, in their order: what is most worth knowing comes first.

Boxes are seconds on one H200; together they are eight minutes. By arithmetic, a child's start and
the guesses of its cases fit into its box. Beside them run `warm`, on the host's processors, and
`compile`, which is over before anything is timed in earnest.
"""

from bench.gpu.runner.supervise import Stage

KERNELS = {"TRITON_INTERPRET": "1"}
# Seconds until a child's first case: torch and transformers are imported, the device wakes up.
START = 6.0


def stages(dry: bool) -> list[Stage]:
    """All of them.

    Args:
        dry: on a CPU, where ops are followed in triton's interpreter.
    """
    # a kernel's stage on a CPU: slow, and tiny
    env = KERNELS if dry else {}
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    here = "bench.gpu.proof"
    found = [
        Stage("warm", f"{here}.warm:cases", 130, 130, beside=True, env=hidden),
        Stage("place", f"{here}.ground:cases", 30, 40),
        Stage("compile", f"{here}.whole:compile_cases", 100, 100, beside=True),
        Stage("smoke", f"{here}.smoke:cases", 55, 40, env=env),
        Stage("model", f"{here}.right:cases", 45, 45),
        Stage("headline", f"{here}.whole:headline_cases", 75, 40, alone=True),
        Stage("trace", f"{here}.trace:cases", 25, 30),
        Stage("variants", f"{here}.variants:cases", 90, 40, env=env),
        Stage("again", f"{here}.whole:again_cases", 40, 40),
        Stage("peers", f"{here}.whole:peer_cases", 80, 60),
        Stage("fp8", f"{here}.right:fp8_cases", 40, 40, env=env),
    ]
    return found


def budget(found: list[Stage]) -> float:
    """Seconds of all boxes one after the other, those beside left out."""
    return sum(stage.box for stage in found if not stage.beside)
