"""Deployment: graphs that run without this package, each checked against eager.

Needs the extra ``export``: onnx, onnxscript and onnxruntime.
"""

from a2c_compiled.export.aot import export_aot, export_pt2
from a2c_compiled.export.errors import ExportError
from a2c_compiled.export.graphs import Graph, GreedyPolicy, RecurrentPolicy, SampledPolicy, graphs_of
from a2c_compiled.export.onnx import export_onnx
from a2c_compiled.export.torchscript import export_torchscript
from a2c_compiled.export.train_step import ActingPolicy, TrainStepGraph, export_train_step
from a2c_compiled.export.verify import Report, verify

__all__ = [
    "ActingPolicy",
    "ExportError",
    "Graph",
    "GreedyPolicy",
    "RecurrentPolicy",
    "Report",
    "SampledPolicy",
    "TrainStepGraph",
    "export_aot",
    "export_onnx",
    "export_pt2",
    "export_torchscript",
    "export_train_step",
    "graphs_of",
    "verify",
]
