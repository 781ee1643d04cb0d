"""ONNX models: what the exporter leaves to do."""
