"""An ONNX graph under construction: nodes in order, and the tensors that they read.

Where in the flow: `encoder`, `vectors` and `heads` add their nodes here; `write` ends it.
Opset 17 with IR version 8 is the newest pair that the runtime of @xenova/transformers 2 reads.
Source: https://onnx.ai/onnx/operators, opset 17.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from nomicbert.errors import ExportError
from nomicbert.export.wire import write

if TYPE_CHECKING:
    import onnx

Precision: TypeAlias = Literal["fp32", "fp16", "q8"]
# What a node's attributes are here.
Attribute: TypeAlias = int | float | str | Sequence[int]

OPSET, IR_VERSION = 17, 8
# A protobuf message ends below 2 GiB; nodes and names need some of it.
MOST_BYTES = 2**31 - 2**24
SMALLER = {"fp32": "export q8 or fp16", "fp16": "export q8", "q8": "no precision is smaller"}
# Tensors up to this many bytes (shapes, scalars) keep their values where shapes are inferred.
SMALL = 1024
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Graph:
    """Nodes and tensors of one graph; a value is known by its name.

    Attributes:
        precision: "fp16" stores weights in float16 and computes in it; "q8" stores word table and
            linear layers in 8 bits, and computes in float32 between them.
    """

    def __init__(self, precision: Precision = "fp32") -> None:
        """Begin with the three inputs and no node."""
        self.precision = precision
        self._now = precision
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, np.ndarray] = {}

    @contextlib.contextmanager
    def in_float32(self) -> Iterator[None]:
        """Store and compute what is added here in float32, whatever the precision."""
        before, self._now = self._now, "fp32"
        try:
            yield
        finally:
            self._now = before

    @property
    def quantizes(self) -> bool:
        """Whether linear layers that are added now are in 8 bits."""
        return self._now == "q8"

    def weight(self, name: str, values: Tensor) -> str:
        """Store a parameter in the precision of now, float32 in "q8".

        Raises: ExportError: a value is too large for float16.
        """
        found = values.detach().to("cpu", torch.float32)
        if self._now == "fp16":
            largest = float(found.abs().max())
            if largest > torch.finfo(torch.float16).max:
                raise ExportError(
                    f"{name} has a value of {largest:.3g}, which float16 cannot hold: export fp32 "
                    "or q8"
                )
            found = found.half()
        return self.store(name, found)

    def store(self, name: str, values: Tensor) -> str:
        """Store a tensor in its own dtype."""
        assert name not in self._tensors, name
        self._tensors[name] = values.contiguous().numpy()
        return name

    def number(self, value: float) -> str:
        """A constant of no dimensions in the graph's precision."""
        return self._constant(np.asarray(value, np.float16 if self._now == "fp16" else np.float32))

    def floats(self, values: Sequence[float] | float) -> str:
        """A float32 constant, whatever the graph's precision."""
        return self._constant(np.asarray(values, np.float32))

    def double(self, value: float) -> str:
        """A float64 constant of no dimensions."""
        return self._constant(np.asarray(value, np.float64))

    def ints(self, *values: int) -> str:
        """An int64 constant of one dimension."""
        return self._constant(np.asarray(values, np.int64))

    def scalar(self, value: int) -> str:
        """An int64 constant of no dimensions."""
        return self._constant(np.asarray(value, np.int64))

    def _constant(self, values: np.ndarray) -> str:
        """Store a small constant once, named by its values."""
        shown = "_".join(f"{value:g}" for value in values.flat[:6])
        name = f"const_{values.dtype}_{'x'.join(map(str, values.shape))}_{shown}"
        while name in self._tensors and not np.array_equal(self._tensors[name], values):
            name += "_"
        self._tensors.setdefault(name, values)
        return name

    @overload
    def add(
        self, kind: str, *inputs: str, outputs: None = None, **attributes: Attribute
    ) -> str: ...

    @overload
    def add(
        self, kind: str, *inputs: str, outputs: int, **attributes: Attribute
    ) -> tuple[str, ...]: ...

    def add(
        self, kind: str, *inputs: str, outputs: int | None = None, **attributes: Attribute
    ) -> str | tuple[str, ...]:
        """Add a node.

        Args:
            kind: an operator of ONNX.
            *inputs: names of values; "" leaves an optional one out.
            outputs: number of outputs; None: one, whose name is returned alone.
            **attributes: of the operator.

        Returns: the names of the outputs.
        """
        from onnx import helper

        place = len(self._nodes)
        names = [f"{kind}_{place}_{index}" for index in range(outputs or 1)]
        self._nodes.append(helper.make_node(kind, inputs, names, f"{kind}_{place}", **attributes))
        return names[0] if outputs is None else tuple(names)

    def cast(self, value: str, kind: type[np.generic]) -> str:
        """Convert a value to a NumPy type."""
        from onnx import helper

        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))

    def narrow(self, value: str) -> str:
        """float32 -> the graph's precision."""
        return value if self.precision != "fp16" else self.cast(value, np.float16)

    def widen(self, value: str) -> str:
        """The graph's precision -> float32."""
        return value if self.precision != "fp16" else self.cast(value, np.float32)

    def write(
        self,
        file: BinaryIO,
        outputs: Mapping[str, tuple[str, Sequence[str | int]]],
        facts: Mapping[str, str],
    ) -> None:
        """End the graph, and write it.

        Args:
            file: open for binary writing.
            outputs: name of each output -> the float32 value, and its shape.
            facts: metadata of the file.

        Raises: ExportError: the file would be larger than 2 GiB, protobuf's limit.
        """
        from onnx import TensorProto, checker, helper, numpy_helper, shape_inference

        size = sum(array.nbytes for array in self._tensors.values())
        if size > MOST_BYTES:
            raise ExportError(
                f"the weights have {size / 2**30:.1f} GiB in {self.precision}, more than the 2 GiB "
                f"that one ONNX file can hold: {SMALLER[self.precision]}"
            )
        nodes = [
            *self._nodes,
            *(
                helper.make_node("Identity", [value], [name])
                for name, (value, _) in outputs.items()
            ),
        ]
        given = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
            for name in INPUTS
        ]
        wanted = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
            for name, (_, shape) in outputs.items()
        ]
        small = {name: x for name, x in self._tensors.items() if x.nbytes <= SMALL}
        large = {name: x for name, x in self._tensors.items() if x.nbytes > SMALL}
        # onnxruntime fuses residual and LayerNorm only where shapes are stated. They are inferred
        # on a copy in which large weights are inputs, so that none is copied for it. q8 runs on
        # CPUs, where the fused form of onnxruntime 1.32 is slower than the parts
        typed = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in large.items()
        ]
        stored = [numpy_helper.from_array(x, name) for name, x in small.items()]
        sketch = _wrapped(helper.make_graph(nodes, "nomicbert", [*given, *typed], wanted, stored))
        checker.check_model(sketch)
        inferred = shape_inference.infer_shapes(sketch, strict_mode=True)
        shapes = [] if self.precision == "q8" else inferred.graph.value_info
        graph = helper.make_graph(nodes, "nomicbert", given, wanted, stored, value_info=shapes)
        model = _wrapped(graph)
        helper.set_model_props(model, dict(facts))
        write(file, model, large)


def _wrapped(graph: "onnx.GraphProto") -> "onnx.ModelProto":
    from onnx import helper

    from nomicbert import __version__

    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="nomicbert",
        producer_version=__version__,
    )
