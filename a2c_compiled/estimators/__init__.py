"""Value estimators as modules: a function of :mod:`a2c_compiled.functional` with its hyperparameters."""

# In the order of the enumeration's members, which is TorchRL's: an estimator is registered when its module is imported.
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
