"""ONNX models: translations of operators and simplifications that torch's exporter lacks."""
