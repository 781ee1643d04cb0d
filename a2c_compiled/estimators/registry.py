"""Value estimators by name."""

from enum import Enum
from typing import Any, Optional, Union

from a2c_compiled.estimators.base import ValueEstimator
from a2c_compiled.estimators.gae import GAE, MultiAgentGAE
from a2c_compiled.estimators.td import UPGO, NStepEstimator, TD0Estimator, TD1Estimator, TDLambdaEstimator
from a2c_compiled.estimators.vtrace import VTrace


class ValueEstimators(Enum):
    """The value estimators, by TorchRL's names where it has them."""

    TD0 = TD0Estimator
    TD1 = TD1Estimator
    TDLambda = TDLambdaEstimator
    GAE = GAE
    MAGAE = MultiAgentGAE
    VTrace = VTrace
    NStep = NStepEstimator
    UPGO = UPGO


EstimatorKind = Union[ValueEstimators, str, type[ValueEstimator], ValueEstimator]


def make_value_estimator(value_type: Optional[EstimatorKind] = None, **hyperparams: Any) -> ValueEstimator:
    """A value estimator from its kind and hyperparameters.

    Args:
        value_type: a member of :class:`ValueEstimators`, its name in any case (``"gae"``, ``"td_lambda"``), an estimator class, an
            estimator, which is returned as it is, or None for GAE.
        hyperparams: of the class; unless given, ``differentiable`` is True, and the rest as the class says.

    Raises:
        ValueError: there is no estimator of that name.
        TypeError: the kind is none of these, a hyperparameter is unknown, or an estimator came with hyperparameters.
    """
    if isinstance(value_type, ValueEstimator):
        if hyperparams:
            raise TypeError(f"hyperparams: expected none beside an estimator that is already made, got {sorted(hyperparams)}")
        return value_type
    if value_type is None:
        value_type = ValueEstimators.GAE
    if isinstance(value_type, str):
        by_name = {kind.name.lower(): kind for kind in ValueEstimators}
        try:
            value_type = by_name[value_type.lower().replace("_", "").replace("-", "")]
        except KeyError:
            raise ValueError(f"value_type: expected one of {sorted(by_name)}, got {value_type!r}") from None
    if isinstance(value_type, ValueEstimators):
        value_type = value_type.value
    if not (isinstance(value_type, type) and issubclass(value_type, ValueEstimator)):
        raise TypeError(
            f"value_type: expected a name, a ValueEstimators member, a ValueEstimator or a subclass of it, got {value_type!r}"
        )
    return value_type(**{"differentiable": True, **hyperparams})
