"""Export to other runtimes: ONNX files, and programs of torch.export."""

from nomicbert.export.run import Export, ExportedFile, onnx

__all__ = ["Export", "ExportedFile", "onnx"]
