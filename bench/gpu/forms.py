"""Other forms of our ops, raced against the shipped one: launch settings, and backend "fp8".

Each kernel with tiles has two alternatives, which were considered for the shipped row.
`nomicbert tune` tries many more settings, one op at a time.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from bench.aot_cases import Model
from bench.gpu.place import Place
from bench.harness import Peer
from bench.problem import Call, Problem, Tensors
from nomicbert_kernels import launch, select_ops, tiling, values
from nomicbert_kernels.fp8 import round_groups, round_rows
from nomicbert_kernels.launch import Row, Settings
from nomicbert_kernels.tensors import Activation
from nomicbert_kernels.tuning.search import taking

# (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages), or LIBRARY: a cuBLAS GEMM and a small kernel.
Tile = tuple[int, int, int, int, int]
LIBRARY = "library"
PRODUCTS: dict[str, tuple[Tile | str, ...]] = {
    "qkv_rotary": ((128, 256, 64, 8, 3), LIBRARY),
    "swiglu": ((64, 128, 64, 4, 2), LIBRARY),
    "gelu": ((64, 128, 64, 4, 3), LIBRARY),
    "linear": ((128, 128, 64, 8, 4), (64, 128, 64, 4, 4)),
}
# Persistent kernels run one program per processor. Below this many warps they are not persistent.
WARPS_OF_ONE = 8
# (BLOCK_M, BLOCK_N, warps, stages), for short and long texts.
ATTENTION = ((64, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2))
# With fewer rows a GEMM is bound by reading the weight, whatever the tile.
LEAST_TOKENS = 1024
FP8 = "ours-fp8"
# How an op's input is rounded on backend "fp8": per row after LayerNorm, per group after an MLP.
# Ops that are not listed get unrounded rows.
ROUNDED: dict[str, Callable[[Tensor], Activation]] = {
    "qkv_rotary": round_rows,
    "swiglu": round_rows,
    "gelu": round_rows,
    "linear down": round_groups,
}
IN_FP8 = (*ROUNDED, "linear out", "layer_norm")


@dataclass(frozen=True)
class Asked(Row):
    """A row that fits all sizes, and records that it was looked up."""

    met: list[str] = field(default_factory=list, compare=False)

    def fits(self, sizes: Mapping[str, int]) -> bool:
        """See Row."""
        self.met.append(self.kernel)
        return True


def kernel_of(model: Model, op: str) -> str:
    """The launch table's name of an op's kernel."""
    # without rotation the projection is an ordinary linear layer
    return "linear" if op == "qkv_rotary" and not model.rotary else op


def widths(kernel: str, problem: Problem) -> dict[str, int]:
    """Sizes that launch rows of a kernel compare, except the number of tokens."""
    if kernel.startswith("attention"):
        return {"head_dim": problem.tensors["qkv"].shape[-1]}
    columns, width = problem.tensors["weight"].shape
    if kernel == "qkv_rotary":
        return {"n": columns, "k": width, "head_dim": 2 * problem.tensors["cos"].shape[1]}
    return {"n": columns // 2 if kernel == "swiglu" else columns, "k": width}


def of_products(place: Place, kernel: str, problem: Problem) -> dict[str, Peer]:
    """Our GEMM kernels with other settings."""
    few = problem.tokens < LEAST_TOKENS and not place.dry
    if place.ops.name != "triton" or kernel not in PRODUCTS or few:
        return {}
    sizes = {"rows": problem.tokens, **widths(kernel, problem)}
    shipped = launch.settings(kernel, place.device, place.dtype, **sizes)
    found: dict[str, Settings] = {}
    for tile in PRODUCTS[kernel]:
        if isinstance(tile, str):
            found[f"ours, {tile}"] = replace(shipped, library=True)
            continue
        m, n, k, warps, stages = tile
        blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}
        if warps < WARPS_OF_ONE:
            blocks["FLATTEN"] = False
        options = {"num_warps": warps, "num_stages": stages}
        found[f"ours, {m}x{n}x{k} w{warps} s{stages}"] = Settings(
            {**shipped.constants, **blocks}, options
        )
    return {
        name: under(place, problem, [kernel], settings)
        for name, settings in found.items()
        if settings != shipped
    }


def of_attention(place: Place, head_dim: int, longest: int, problem: Problem) -> dict[str, Peer]:
    """Our attention with other tile sizes than the shipped ones."""
    if place.ops.name != "triton":
        return {}
    kernels = ["attention_short", "attention_long"]
    kernel = kernels[longest > tiling.SHORT]
    shipped = launch.settings(kernel, place.device, place.dtype, head_dim=head_dim)
    found = {}
    for m, n, warps, stages in ATTENTION:
        constants = {**shipped.constants, "BLOCK_M": m, "BLOCK_N": n}
        settings = Settings(constants, {"num_warps": warps, "num_stages": stages})
        if settings != shipped:
            found[f"ours, {m}x{n} w{warps} s{stages}"] = under(place, problem, kernels, settings)
    return found


def under(place: Place, problem: Problem, kernels: Sequence[str], settings: Settings) -> Peer:
    """Our form of a problem with these settings; its call raises RuntimeError if none was used."""
    arch, size = launch.architecture(place.device), place.dtype.itemsize
    rows = [Asked(kernel, size, {}, {}, settings) for kernel in kernels]

    @contextlib.contextmanager
    def chosen() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for row in rows:
                stack.enter_context(taking(row, arch))
            yield

    def call(t: Tensors) -> Call:
        with chosen():
            bound = problem.bind(place.ops, t)

        def launched() -> Tensor:
            with chosen():
                found = bound()
            if not any(row.met for row in rows):
                raise RuntimeError(f"no launch of {', '.join(kernels)} has asked for settings")
            return found

        return launched

    return Peer(call)


def in_fp8(place: Place, name: str, problem: Problem) -> dict[str, Peer]:
    """An op on backend "fp8", with its input rounded as in a model."""
    if place.ops.name != "triton" or name not in IN_FP8:
        return {}
    rounded = ROUNDED.get(name, lambda x: x)

    def call(t: Tensors) -> Call:
        ops = select_ops(place.device, place.dtype, "fp8")
        given = t | {"x": rounded(t["x"])}
        return problem.bind(ops, given)  # type: ignore[arg-type]

    # the timed result is the Activation that the next op reads; `values` converts it to compare
    return {FP8: Peer(call, values)}
