"""Export to other runtimes: ONNX files, and programs of torch.export."""

from nomicbert.export.run import Export, ExportedFile, onnx
from nomicbert.export.torch_program import program

__all__ = ["Export", "ExportedFile", "onnx", "program"]
