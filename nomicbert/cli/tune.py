"""`nomicbert tune`: measure launch settings of the Triton kernels on this machine's GPU.

Where in the flow: this module reads a checkpoint's sizes, `nomicbert_kernels.tuning` checks and
times the candidates, and `tuned` prints the results. docs/tune.md explains how the table is used.
"""

from collections.abc import Sequence
from datetime import datetime, timezone
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nomicbert import __version__
from nomicbert.cli import console, options, tuned

if TYPE_CHECKING:
    import torch

    from nomicbert_kernels.launch import Row
    from nomicbert_kernels.tuning.problems import Model, Problem
    from nomicbert_kernels.tuning.search import Result, Search

EXAMPLES = """\b
Examples:
  nomicbert tune
  nomicbert tune nomic-ai/nomic-embed-text-v1.5 --quick
  nomicbert tune ./my-checkpoint --kernel swiglu --dtype float16
  nomicbert tune --dry-run
"""


class KernelName(str, Enum):
    """What --kernel takes."""

    qkv_rotary = "qkv_rotary"
    swiglu = "swiglu"
    gelu = "gelu"
    linear = "linear"
    attention = "attention"
    experts = "experts"


class TunedDtype(str, Enum):
    """What --dtype takes here."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


def tune(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint's folder or repository id. Default: the shapes of leading models.",
            show_default=False,
        ),
    ] = None,
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    device: options.Device = "auto",
    dtype: Annotated[
        TunedDtype,
        typer.Option(help="Dtype of the hidden states. Dtypes of one size share their rows."),
    ] = TunedDtype.bfloat16,
    kernel: Annotated[
        list[KernelName] | None,
        typer.Option(help="Only this kernel. Can be repeated.", show_default=False),
    ] = None,
    fp8: Annotated[
        bool, typer.Option("--fp8", help='The kernels of backend "fp8", on e4m3 elements.')
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few candidates: one per tile.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be measured, and stop.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of lines.")
    ] = False,
) -> None:
    """Find faster launch settings of the Triton kernels on this GPU.

    Each candidate is first checked against the reference. Settings that beat the shipped ones by
    more than the timing noise are written to a table, which then overrides the shipped one.
    """
    if fp8 and dtype is TunedDtype.float32:
        raise ValueError(
            "--fp8 measures e4m3 elements with hidden states of 16 bits, not --dtype float32: use "
            "bfloat16 or float16"
        )
    # Slow imports, so they follow the checks of the arguments.
    import torch

    from nomicbert.arguments import as_device
    from nomicbert_kernels import launch
    from nomicbert_kernels.tuning import tables
    from nomicbert_kernels.tuning.problems import KERNELS, LEADING, NARROW_KERNELS, problems

    place = as_device(device)
    wanted = getattr(torch, dtype.value)
    if not dry_run:
        _need_gpu(place, wanted, fp8)
    models = [_read_model(model, revision, local_files_only)] if model else list(LEADING)
    arch = launch.architecture(place) if _measurable(place) else launch.SAFE
    size = 1 if fp8 else wanted.itemsize
    shipped = tables.shipped_rows(arch, size)
    if not shipped:
        raise ValueError(f"the launch table of {arch} has no rows for elements of {size} bytes")
    asked = [name.value for name in kernel] if kernel else KERNELS
    kernels = [name for name in asked if not fp8 or name in NARROW_KERNELS]
    found = problems(models, kernels, shipped)
    if not found:
        where = model or "the leading models"
        where = f"backend 'fp8' of {where}" if fp8 else where
        raise ValueError(f"{where} has none of these kernels: {', '.join(asked)}")
    if dry_run:
        _plan(found, shipped, arch, size, quick, as_json)
    else:
        _measure(found, shipped, place, wanted, size, quick, as_json)


def _measurable(device: "torch.device") -> bool:
    """Whether times on a device are meaningful; those of Triton's interpreter are not."""
    return device.type == "cuda"


def _need_gpu(device: "torch.device", dtype: "torch.dtype", fp8: bool) -> None:
    """Check that the kernels run on this device.

    Raises: BackendError: they do not.
    """
    from nomicbert.errors import BackendError
    from nomicbert.loading.target import choose_ops

    backend: Literal["fp8", "triton"] = "fp8" if fp8 else "triton"
    if not _measurable(device):
        raise BackendError(
            f"tuning measures the kernels of backend {backend!r}, which needs a CUDA device, not "
            f"{device.type}: --dry-run prints what it would measure"
        )
    choose_ops(device, dtype, backend)


def _read_model(model: str, revision: str | None, local_files_only: bool) -> "Model":
    """The sizes of a checkpoint."""
    from nomicbert.loading import hub
    from nomicbert.loading.folder import find_encoder
    from nomicbert.loading.hub_config import read_config
    from nomicbert_kernels.tuning.problems import Model

    folder = hub.resolve(model, revision=revision, local_files_only=local_files_only)
    config = read_config(find_encoder(folder))
    size, act = config.head_dim, config.hidden_act
    whole = config.rotary_dim == size and not config.rotary_interleaved and size & (size - 1) == 0
    return Model(
        name=model,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        inner=config.intermediate_size,
        mlp=act if act in ("swiglu", "gelu") else "linear",
        rotary=config.rotary_dim > 0,
        fused_rotary=whole,
        bias=config.qkv_bias,
        experts=config.num_experts,
        top_k=config.moe_top_k,
    )


def _plan(
    found: "Sequence[Problem]",
    shipped: "Sequence[Row]",
    arch: str,
    size: int,
    quick: bool,
    as_json: bool,
) -> None:
    """Print what would be measured."""
    from nomicbert_kernels import launch
    from nomicbert_kernels.tuning import tables
    from nomicbert_kernels.tuning.candidates import candidates

    known = arch != launch.SAFE
    # how many candidates fit depends on the GPU's shared memory
    counts = [len(candidates(p, shipped, arch, size, quick)) if known else None for p in found]
    put = tuned.put_plan_document if as_json else tuned.put_plan
    put(found, counts, *((arch, tables.path_of(arch)) if known else (None, None)))


def _measure(
    found: "Sequence[Problem]",
    shipped: "Sequence[Row]",
    device: "torch.device",
    dtype: "torch.dtype",
    size: int,
    quick: bool,
    as_json: bool,
) -> None:
    """Measure, write the table, and print the results."""
    import torch

    from nomicbert.loading.target import select_ops
    from nomicbert_kernels import launch
    from nomicbert_kernels.tuning import tables
    from nomicbert_kernels.tuning.search import Search, triton_version
    from nomicbert_kernels.tuning.timing import gpu_timer

    arch, triton = launch.architecture(device), triton_version()
    earlier = tables.read_tuned(arch, triton)
    tables.check_writable(arch)
    ops = select_ops(device, dtype, "fp8" if size == 1 else "triton")
    with console.open_bar("Tuning", " candidates") as bar:
        search = Search(ops, device, dtype, shipped, gpu_timer(device), bar.update)
        results = _search(found, search, quick, bar)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    about = {
        "written_by": f"nomicbert tune {__version__}",
        "written_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": name,
        "torch": torch.__version__,
        "triton": triton,
    }
    rows = tables.merge(results, earlier, size, triton)
    path = tables.write(arch, rows, about)
    if as_json:
        where = {"architecture": arch, "dtype": str(dtype).removeprefix("torch.")}
        where["backend"] = ops.name
        tuned.put_document(results, {**about, **where, "path": str(path)})
    else:
        tuned.put_results(results)
    tuned.say_what_happened(results, path)


def _search(found: "Sequence[Problem]", search: "Search", quick: bool, bar: Any) -> "list[Result]":
    """Solve the problems one by one."""
    tried = [search.candidates(problem, quick) for problem in found]
    bar.total = sum(map(len, tried))
    results = []
    for problem, settings in zip(found, tried, strict=True):
        bar.set_postfix_str(f"{problem.kernel} {problem.shape}", refresh=False)
        results.append(search.solve(problem, settings))
    return results
