"""A model and its maps where camhook is not: as a plain module, an exported program, an ONNX file."""
