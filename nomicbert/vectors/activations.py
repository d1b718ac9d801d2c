"""Activations of torch.nn by name: of Dense modules and of rerankers' logits.

Where in the flow: `steps` applies them to (B, N), `runtime.activation` to logits (n, num_labels).
Each is what the class of torch.nn computes that is built without arguments. A row's bits must not
depend on its place in a batch: on a CPU torch's own sigmoid, SiLU, GELU, Softplus, ELU, SELU and
Mish round the last elements of a thread's share differently. They are written with tanh, exp, erf,
expm1 and log1p here, which do not.

    Softplus  log(1 + exp(x)), x above 20          ELU   x above 0, else exp(x) - 1
    Mish      x tanh(Softplus(x))                  SELU  s (x above 0, else a (exp(x) - 1))

Source: torch.nn of torch 2.13; s and a are those of Klambauer et al. 2017, arXiv:1706.02515.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
# Above it Softplus is x: torch.nn's default.
SOFTPLUS_LIMIT = 20.0
# Where the classes are, as sentence-transformers writes their paths.
HOMES = {"Identity": "torch.nn.modules.linear"}
OTHER_HOME = "torch.nn.modules.activation"


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), as exp(x) / (1 + exp(x)) for x below 0: no overflow, and a tail."""
    e = torch.exp(torch.where(x < 0, x, -x))  # of -|x|, but with a gradient at 0
    return torch.where(x < 0, e, 1) / (1 + e)


def gelu(x: Tensor) -> Tensor:
    """GELU by erf, not its approximation."""
    return x / 2 * (1 + torch.erf(x * math.sqrt(0.5)))


def elu(x: Tensor) -> Tensor:
    """ELU; the unused branch is finite, so that its gradient is 0 and not NaN."""
    return torch.where(x > 0, x, torch.expm1(x.clamp(max=0)))


def selu(x: Tensor) -> Tensor:
    """SELU."""
    return SELU_SCALE * torch.where(x > 0, x, SELU_ALPHA * torch.expm1(x.clamp(max=0)))


def softplus(x: Tensor) -> Tensor:
    """Softplus; finite as in `elu`."""
    return torch.where(x > SOFTPLUS_LIMIT, x, torch.log1p(torch.exp(x.clamp(max=SOFTPLUS_LIMIT))))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": F.relu,
    "GELU": gelu,
    "Sigmoid": sigmoid,
    "SiLU": lambda x: x * sigmoid(x),
    "Softmax": lambda x: x.softmax(-1),
    "LogSoftmax": lambda x: x.log_softmax(-1),
    "Softmin": lambda x: (-x).softmax(-1),
    "LogSigmoid": F.logsigmoid,
    "Softplus": softplus,
    "Mish": lambda x: x * torch.tanh(softplus(x)),
    "ELU": elu,
    "CELU": elu,  # the same function with their default alpha of 1
    "SELU": selu,
    "LeakyReLU": F.leaky_relu,
    "ReLU6": F.relu6,
    "Softsign": F.softsign,
    "Tanhshrink": F.tanhshrink,
    "Hardtanh": F.hardtanh,
    "Hardsigmoid": F.hardsigmoid,
    "Hardswish": F.hardswish,
    "Hardshrink": F.hardshrink,
    "Softshrink": F.softshrink,
}


def name_in(path: str) -> str | None:
    """The name of `ACTIVATIONS` that a dotted path such as torch.nn.Tanh stands for, or None."""
    name = path.rpartition(".")[2]
    return name if path.startswith("torch.nn.") and name in ACTIVATIONS else None


def path_of(name: str) -> str:
    """The path of a class as sentence-transformers writes it."""
    return f"{HOMES.get(name, OTHER_HOME)}.{name}"


def name_of(activation: object) -> str | None:
    """The name whose function a module of torch.nn, or a function here, computes; None without.

    A module with other settings than the defaults, such as LeakyReLU(0.3), has no name.
    """
    for name, known in ACTIVATIONS.items():
        if activation is known:
            return name
    kind = type(activation)
    name = kind.__name__
    if name not in ACTIVATIONS or getattr(nn, name, None) is not kind:
        return None
    return name if _settings(activation) == _settings(kind()) else None


def _settings(activation: Any) -> dict[str, Any]:
    """What a module of torch.nn was built with; rows have two dimensions, so 1 and -1 are one."""
    names = set(getattr(activation, "__constants__", ())) - {"inplace"}
    found = {name: getattr(activation, name) for name in names}
    if found.get("dim") in (1, -1):
        found["dim"] = None
    return found
