"""Value estimators as modules: a function of :mod:`a2c_compiled.functional` with its hyperparameters."""

from a2c_compiled.estimators.base import Steps as Steps
from a2c_compiled.estimators.base import ValueEstimator as ValueEstimator
from a2c_compiled.estimators.gae import GAE as GAE
from a2c_compiled.estimators.gae import MultiAgentGAE as MultiAgentGAE
from a2c_compiled.estimators.td import UPGO as UPGO
from a2c_compiled.estimators.td import NStepEstimator as NStepEstimator
from a2c_compiled.estimators.td import TD0Estimator as TD0Estimator
from a2c_compiled.estimators.td import TD1Estimator as TD1Estimator
from a2c_compiled.estimators.td import TDLambdaEstimator as TDLambdaEstimator
from a2c_compiled.estimators.vtrace import VTrace as VTrace

# isort: split
from a2c_compiled.estimators.registry import ValueEstimators as ValueEstimators  # of all that are imported above
from a2c_compiled.estimators.registry import make_value_estimator as make_value_estimator
