"""Activation functions as nodes: those of MLPs, and those of Dense modules by torch.nn's names.

Source: as in `modeling.activations` and `vectors.activations`.
"""

import math
from collections.abc import Callable

from nomicbert.export.graph import Graph
from nomicbert.vectors.activations import SELU_ALPHA, SELU_SCALE

# torch.nn's defaults.
LEAKY_SLOPE, SHRINK = 0.01, 0.5


def activation(graph: Graph, name: str, x: str) -> str:
    """Apply the activation of `EncoderConfig.hidden_act`, or of a Dense module."""
    return _FUNCTIONS[name](graph, x)


def gelu(graph: Graph, x: str) -> str:
    """Compute x / 2 * (1 + erf(x / sqrt 2)), in the form that onnxruntime fuses."""
    inner = graph.add("Erf", graph.add("Div", x, graph.number(math.sqrt(2))))
    half = graph.add("Mul", x, graph.number(0.5))
    return graph.add("Mul", half, graph.add("Add", inner, graph.number(1.0)))


def gelu_tanh(graph: Graph, x: str) -> str:
    """Compute x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    scale = math.sqrt(2 / math.pi)
    square = graph.add("Mul", graph.add("Mul", x, x), graph.number(0.044715 * scale))
    inner = graph.add("Mul", graph.add("Add", square, graph.number(scale)), x)
    half = graph.add("Mul", x, graph.number(0.5))
    return graph.add("Mul", half, graph.add("Add", graph.add("Tanh", inner), graph.number(1.0)))


def silu(graph: Graph, x: str) -> str:
    """Compute x / (1 + exp(-x))."""
    return graph.add("Mul", x, graph.add("Sigmoid", x))


def quick_gelu(graph: Graph, x: str) -> str:
    """Compute x / (1 + exp(-1.702 x))."""
    return graph.add("Mul", x, graph.add("Sigmoid", graph.add("Mul", x, graph.number(1.702))))


def relu(graph: Graph, x: str) -> str:
    """The positive part."""
    return graph.add("Relu", x)


def tanh(graph: Graph, x: str) -> str:
    """The hyperbolic tangent."""
    return graph.add("Tanh", x)


def sigmoid(graph: Graph, x: str) -> str:
    """Compute 1 / (1 + exp(-x))."""
    return graph.add("Sigmoid", x)


def identity(graph: Graph, x: str) -> str:
    """Add nothing."""
    return x


def softplus(graph: Graph, x: str) -> str:
    """Compute log(1 + exp(x))."""
    return graph.add("Softplus", x)


def log_sigmoid(graph: Graph, x: str) -> str:
    """Compute -softplus(-x)."""
    return graph.add("Neg", softplus(graph, graph.add("Neg", x)))


def mish(graph: Graph, x: str) -> str:
    """Compute x tanh(softplus(x)); ONNX has an operator for it since opset 18."""
    return graph.add("Mul", x, graph.add("Tanh", softplus(graph, x)))


def tanhshrink(graph: Graph, x: str) -> str:
    """Compute x - tanh(x)."""
    return graph.add("Sub", x, graph.add("Tanh", x))


def _operator(kind: str, **attributes: float | int) -> Callable[[Graph, str], str]:
    """One operator of ONNX."""
    return lambda graph, x: graph.add(kind, x, outputs=None, **attributes)


def _clip(low: float, high: float) -> Callable[[Graph, str], str]:
    return lambda graph, x: graph.add("Clip", x, graph.number(low), graph.number(high))


_FUNCTIONS: dict[str, Callable[[Graph, str], str]] = {
    "gelu": gelu,
    "GELU": gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": relu,
    "ReLU": relu,
    "silu": silu,
    "SiLU": silu,
    "quick_gelu": quick_gelu,
    "Tanh": tanh,
    "Sigmoid": sigmoid,
    "Identity": identity,
    "Softmax": _operator("Softmax", axis=-1),
    "LogSoftmax": _operator("LogSoftmax", axis=-1),
    "Softmin": lambda graph, x: graph.add("Softmax", graph.add("Neg", x), axis=-1),
    "LogSigmoid": log_sigmoid,
    "Softplus": softplus,
    "Mish": mish,
    "ELU": _operator("Elu", alpha=1.0),
    "CELU": _operator("Elu", alpha=1.0),
    "SELU": _operator("Selu", alpha=SELU_ALPHA, gamma=SELU_SCALE),
    "LeakyReLU": _operator("LeakyRelu", alpha=LEAKY_SLOPE),
    "ReLU6": _clip(0.0, 6.0),
    "Softsign": _operator("Softsign"),
    "Tanhshrink": tanhshrink,
    "Hardtanh": _clip(-1.0, 1.0),
    "Hardsigmoid": _operator("HardSigmoid", alpha=1 / 6, beta=0.5),
    "Hardswish": _operator("HardSwish"),
    "Hardshrink": _operator("Shrink", lambd=SHRINK, bias=0.0),
    "Softshrink": _operator("Shrink", lambd=SHRINK, bias=SHRINK),
}
