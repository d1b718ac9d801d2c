"""Export to other runtimes: ONNX files, and programs of torch.export."""
