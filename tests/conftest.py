"""Setup of every test: no network, no developer's cache, a reproducible seed.

The environment is set first: huggingface_hub and triton read it when they are imported.
"""

import atexit
import gc
import ipaddress
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DEFAULT_SEED = 20241
NETWORK = "NOMICBERT_NETWORK"

# Neither read nor change a developer's cache, login and mirror.
_home = tempfile.mkdtemp(prefix="nomicbert-tests-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
for _name in [
    name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_", "HUGGING_FACE_"))
]:
    del os.environ[_name]
for _name in ("TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE", "SENTENCE_TRANSFORMERS_HOME"):
    os.environ.pop(_name, None)
os.environ["HF_HOME"] = _home
# Waiting threads sleep: spinning would take cores from the other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["MTEB_CACHE"] = _home
# Xet downloads in compiled code, which the guard below cannot intercept.
os.environ["HF_HUB_DISABLE_XET"] = "1"

# Ignore launch settings that a developer has measured with `nomicbert tune`.
os.environ["NOMICBERT_LAUNCH"] = _home

import torch  # noqa: E402

HAS_CUDA = torch.cuda.is_available()
# Run the GPU tests on a CPU, slowly and with tiny shapes, to check the tests themselves.
STANDS_IN = os.environ.get("NOMICBERT_GPU_TESTS") == "interpreter"
# Simulate a machine without oneDNN.
if os.environ.get("NOMICBERT_ONEDNN") == "0":
    torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)
if not HAS_CUDA:
    os.environ.setdefault("TRITON_INTERPRET", "1")

try:
    import hypothesis
except ImportError:  # a GPU machine may only have the dependencies of the tests marked gpu
    hypothesis = None
    _rooms = [path.name for path in Path(__file__).parent.iterdir() if path.is_dir()]
    collect_ignore_glob = ["test_*.py", *(f"{room}/*" for room in _rooms if room != "gpu")]


class NetworkBlocked(RuntimeError):
    """A test tried to leave this machine. Not an OSError, so that no retry or fallback hides it."""


class NetworkGuard:
    """Refuse every connection and look-up beyond loopback, and record the attempts."""

    def __init__(self) -> None:
        self.attempts: list[str] = []
        self.allowed = False
        self._connect = socket.socket.connect
        self._connect_ex = socket.socket.connect_ex
        self._getaddrinfo = socket.getaddrinfo

    def install(self) -> None:
        guard = self

        def connect(sock: socket.socket, address: Any) -> None:
            guard.check_address(sock, address)
            return guard._connect(sock, address)

        def connect_ex(sock: socket.socket, address: Any) -> int:
            guard.check_address(sock, address)
            return guard._connect_ex(sock, address)

        def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
            guard.check_host(host, "look-up")
            return guard._getaddrinfo(host, *args, **kwargs)

        socket.socket.connect = connect
        socket.socket.connect_ex = connect_ex
        socket.getaddrinfo = getaddrinfo

    def remove(self) -> None:
        socket.socket.connect = self._connect
        socket.socket.connect_ex = self._connect_ex
        socket.getaddrinfo = self._getaddrinfo

    def check_address(self, sock: socket.socket, address: Any) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            self.check_host(address[0], "connection")

    def check_host(self, host: Any, kind: str) -> None:
        if self.allowed or _is_loopback(host):
            return
        attempt = f"{kind} to {host!r}"
        self.attempts.append(attempt)
        raise NetworkBlocked(f"{attempt}: tests stay on this machine; serve it from loopback")


def _is_loopback(host: Any) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", "0.0.0.0", "::"):  # the last two are listening addresses
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


_guard = NetworkGuard()


def read_seed() -> int:
    """The seed of this run: NOMICBERT_SEED, else a fixed one."""
    text = os.environ.get("NOMICBERT_SEED", "")
    if not text:
        return DEFAULT_SEED
    if not text.isdecimal():
        raise pytest.UsageError(f"NOMICBERT_SEED={text!r} is not a whole number")
    return int(text)


@pytest.hookimpl(tryfirst=True)  # before hypothesis reads its seed
def pytest_configure(config: pytest.Config) -> None:
    seed = read_seed()
    # From here on, so that imports of test modules and wider fixtures are guarded too.
    _guard.install()
    config.add_cleanup(_guard.remove)
    if hypothesis is None:
        return
    # hypothesis uses the same seed, also under CI, where it would fix its own. No deadline: the
    # machine may be busy.
    hypothesis.settings.register_profile("nomicbert", deadline=None, derandomize=False)
    hypothesis.settings.load_profile("nomicbert")
    if config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = str(seed)


def pytest_report_header() -> str:
    onednn = bool(torch._C._get_mkldnn_enabled())
    return f"NOMICBERT_SEED={read_seed()} torch={torch.__version__} cuda={HAS_CUDA} onednn={onednn}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not (HAS_CUDA or STANDS_IN):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("network") and os.environ.get(NETWORK) != "1":
            item.add_marker(pytest.mark.skip(reason=f"needs {NETWORK}=1"))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave out of later collections what importing the tests has made: millions of objects."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At exit all is freed again: extension modules complain of what is left."""
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[pytest.TestReport]:
    """Add the seed to the report of a failure: the header is not shown with -q."""
    report = yield
    if report.failed and "seed" in getattr(item, "fixturenames", ()):
        report.sections.append(("replay with", f"NOMICBERT_SEED={read_seed()}"))
    return report


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that tried to leave this machine, even if the error was swallowed."""
    _guard.allowed = request.node.get_closest_marker("network") is not None
    yield
    _guard.allowed = False
    attempts = [*_guard.attempts]
    _guard.attempts.clear()
    if attempts:
        pytest.fail(f"the test tried to use the network: {'; '.join(attempts)}", pytrace=False)


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Use one thread: for tiny tensors, synchronising threads takes longer than the work."""
    before = torch.get_num_threads()
    if not request.node.get_closest_marker("all_threads"):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """One of `tests.support.cpus.CPU_DTYPES`, with the CPU simulated accordingly."""
    from tests.support.cpus import pretend

    kind, found = request.param
    if found is not None:
        pretend(monkeypatch, found)
    return kind


@pytest.fixture(scope="session")
def warm_python() -> Iterator[Any]:
    """A `tests.support.warm_python.WarmPython`, for programs that a test runs as processes."""
    from tests.support.warm_python import WarmPython

    process = WarmPython()
    yield process
    process.stop()


@pytest.fixture
def seed() -> int:
    """The seed for a randomised test."""
    return read_seed()
