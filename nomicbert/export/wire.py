"""A model as the bytes of a file, without a copy of its large tensors.

Where in the flow: `graph` ends here. protobuf would copy each weight into its message, and the
message twice more while serialising it: 3 GB for a model of 0.5 GB. Here weights go from their
arrays to the file.

    message = its fields in any order;  embedded field = tag, length as varint, bytes
    tag = field number * 8 + 2

Source: https://protobuf.dev/programming-guides/encoding; field numbers from onnx itself.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    import onnx


def write(file: BinaryIO, model: "onnx.ModelProto", tensors: Mapping[str, np.ndarray]) -> None:
    """Write a model with more initializers than it holds.

    Args:
        file: open for binary writing.
        model: without `tensors` so far.
        tensors: by name.
    """
    from onnx import GraphProto, ModelProto, TensorProto, helper

    graph = model.graph.SerializeToString()
    rest = ModelProto()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    heads = {}
    for name, x in tensors.items():
        kind = helper.np_dtype_to_tensor_dtype(x.dtype)
        head = TensorProto(name=name, dims=x.shape, data_type=kind).SerializeToString()
        head += _opening(TensorProto.RAW_DATA_FIELD_NUMBER, x.nbytes)
        heads[name] = _opening(GraphProto.INITIALIZER_FIELD_NUMBER, len(head) + x.nbytes) + head
    size = len(graph) + sum(len(heads[name]) + x.nbytes for name, x in tensors.items())
    file.write(rest.SerializeToString() + _opening(ModelProto.GRAPH_FIELD_NUMBER, size) + graph)
    for name, x in tensors.items():
        file.write(heads[name])
        file.write(np.ascontiguousarray(x, x.dtype.newbyteorder("<")).data)


def _opening(field: int, size: int) -> bytes:
    """Tag and length of an embedded field."""
    return _varint(field * 8 + 2) + _varint(size)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    found = bytearray()
    while value > 127:
        found.append(value % 128 + 128)
        value //= 128
    return bytes([*found, value])
