"""Value estimators as modules: each holds the hyperparameters of a function of :mod:`a2c_compiled.functional` and calls it."""

# An import registers the estimators of a module. The members of ValueEstimators have the order of the imports, which is TorchRL's order.
from a2c_compiled.estimators.base import Steps, ValueEstimator
from a2c_compiled.estimators.td import UPGO, NStepEstimator, TD0Estimator, TD1Estimator, TDLambdaEstimator

# isort: split
from a2c_compiled.estimators.gae import GAE, MultiAgentGAE
from a2c_compiled.estimators.vtrace import VTrace

# isort: split
from a2c_compiled.estimators.registry import ValueEstimators, make_value_estimator

__all__ = [
    "GAE",
    "UPGO",
    "MultiAgentGAE",
    "NStepEstimator",
    "Steps",
    "TD0Estimator",
    "TD1Estimator",
    "TDLambdaEstimator",
    "VTrace",
    "ValueEstimator",
    "ValueEstimators",
    "make_value_estimator",
]
