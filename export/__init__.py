"""Exports policies, losses, value estimators and the training step to files that run without this package.

Each export stores reference outputs, computed in eager mode, beside the file. :func:`verify` compares the file with these outputs.
Needs the extra ``export``: onnx, onnxscript and onnxruntime.
"""

from a2c_compiled._extras import needs

with needs(__name__, "export"):
    from a2c_compiled.export.checking.verify import Report, verify
    from a2c_compiled.export.formats.aot import export_aot
    from a2c_compiled.export.formats.onnx import export_onnx
    from a2c_compiled.export.formats.pt2 import export_pt2
    from a2c_compiled.export.formats.torchscript import export_torchscript
    from a2c_compiled.export.graphs.examples import Graph, graphs_of
    from a2c_compiled.export.graphs.policies import (
        ActingPolicy,
        GreedyPolicy,
        RecurrentPolicy,
        RecurrentSampledPolicy,
        SampledPolicy,
    )
    from a2c_compiled.export.graphs.update_graph import TrainStepGraph
    from a2c_compiled.export.tracing.errors import ExportError
    from a2c_compiled.export.update_files import export_train_step
    from a2c_compiled.export.web_page import write_page

__all__ = [
    "ActingPolicy",
    "ExportError",
    "Graph",
    "GreedyPolicy",
    "RecurrentPolicy",
    "RecurrentSampledPolicy",
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
    "write_page",
]
