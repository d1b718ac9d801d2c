"""Options and fixtures of the benchmarks, and the table at the end of a run.

python -m pytest bench -o python_files='bench_*.py' [--backend triton] [--dtype bf16] [--quick]
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.harness import Bench
from bench.timing import clock
from nomicbert_kernels import select_ops

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Tokens per batch: a query, a request, and a full wave of tiles on 132 multiprocessors.
TOKENS = {"cuda": [64, 1024, 16896], "cpu": [16, 512]}
QUICK_TOKENS = [33]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nomicbert")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    group.addoption("--backend", help="default: triton on a GPU, torch on a CPU")
    group.addoption("--dtype", choices=DTYPES, help="default: bf16 on a GPU, fp32 on a CPU")
    group.addoption("--tokens", help="tokens per batch, comma-separated")
    group.addoption("--quick", action="store_true", help="one small size, to check that they run")
    group.addoption("--no-compile", action="store_true", help="leave out torch.compile")


def pytest_configure(config: pytest.Config) -> None:
    # warnings of peers are shown, not raised as in the test suite
    config.addinivalue_line("filterwarnings", "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=clock, group=item.path.stem))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "tokens" not in metafunc.fixturenames:
        return
    options = metafunc.config.option
    tokens = QUICK_TOKENS if options.quick else TOKENS[torch.device(options.device).type]
    if options.tokens:
        tokens = [int(number) for number in options.tokens.split(",")]
    metafunc.parametrize("tokens", tokens)


@pytest.fixture
def bench(benchmark: Any, pytestconfig: pytest.Config) -> Iterator[Bench]:
    """See `bench.harness.Bench`."""
    options = pytestconfig.option
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    dtype = DTYPES[options.dtype or ("bf16" if gpu else "fp32")]
    ops = select_ops(device, dtype, options.backend or ("triton" if gpu else "torch"))
    compiles = not (options.no_compile or options.quick)
    yield Bench(benchmark, ops, device, dtype, options.quick, compiles)
    # drop compiled graphs and cached blocks, so that the next benchmark starts clean
    torch.compiler.reset()
    if gpu:
        torch.cuda.empty_cache()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    session = getattr(config, "_benchmarksession", None)
    found = [one.extra_info for one in session.benchmarks] if session else []
    if not any(found):
        return
    write = terminalreporter.write_line
    terminalreporter.section("ours, and peers in multiples of its time")
    head = f"{'op':<12}{'model':<12}{'case':<16}{'us':>9}{'Mtok/s':>9}{'TFLOP/s':>9}{'GB/s':>8}"
    write(f"{head}{'roofline':>10}  peers")
    for info in (info for info in found if info):
        peers = [f"{name} {peer['ratio']:.2f}x" for name, peer in info["peers"].items()]
        peers += [f"{name}: {why}" for name, why in info["left_out"].items()]
        write(
            f"{info['op']:<12}{info.get('model', ''):<12}{info.get('case', info['tokens'])!s:<16}"
            f"{info['seconds'] * 1e6:9.1f}{info['tokens_per_second'] / 1e6:9.3f}"
            f"{info['tflops']:9.3f}{info['gigabytes_per_second']:8.1f}"
            f"{info['roofline_percent']:9.1f}%  {'; '.join(peers)}"
        )
