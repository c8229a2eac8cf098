"""Export of a model together with its maps: a plain module, an exported program (.pt2), an ONNX file."""
