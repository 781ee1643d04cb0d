"""A training step and its policies, exported to the files that a device needs."""

from dataclasses import dataclass
from pathlib import Path

import torch

from a2c_compiled import export
from a2c_compiled.update import Rollout


@dataclass(frozen=True)
class OnDeviceFiles:
    """A folder with a training step, a greedy and a sampled policy."""

    folder: Path

    @property
    def graph(self):
        return self.folder / "train_step.onnx"

    @property
    def policy(self):
        return self.folder / "policy.onnx"

    @property
    def sampled(self):
        return self.folder / "policy_sampled.onnx"

    def write(self, step, rollout, action_space=None):
        """Exports ``step``, and the policies of its loss."""
        export.export_train_step(step, rollout, self.graph, action_space=action_space)
        graphs = export.graphs_of(step.loss, rollout, action_space)
        for path in (self.policy, self.sampled):
            graph = graphs[path.stem]
            export.export_onnx(graph.module, graph.example_inputs, path, graph.dynamic_axes)


def as_tensors(rollout):
    """Returns a Rollout from arrays and tuples of arrays by name."""

    def tensor(entry):
        return tuple(map(torch.from_numpy, entry)) if isinstance(entry, tuple) else torch.from_numpy(entry)

    return Rollout(**{name: tensor(entry) for name, entry in rollout.items()})
