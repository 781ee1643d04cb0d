"""Deployment: graphs that run without this package, each checked against eager.

Needs the extra ``export``: onnx, onnxscript and onnxruntime.
"""

from a2c_compiled.export.checking.verify import Report, verify
from a2c_compiled.export.formats.aot import export_aot, export_pt2
from a2c_compiled.export.formats.onnx import export_onnx
from a2c_compiled.export.formats.torchscript import export_torchscript
from a2c_compiled.export.graphs.policies_and_losses import Graph, GreedyPolicy, RecurrentPolicy, SampledPolicy, graphs_of
from a2c_compiled.export.graphs.update_graph import ActingPolicy, TrainStepGraph, export_train_step
from a2c_compiled.export.tracing.errors import ExportError

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
