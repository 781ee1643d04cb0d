"""Value estimators by name."""

from enum import Enum, EnumMeta
from typing import TYPE_CHECKING, Any, Optional, Union

from a2c_compiled.estimators.base import REGISTERED, ValueEstimator

if TYPE_CHECKING:

    class _Registered(EnumMeta):
        def __getattr__(cls, name: str) -> "ValueEstimators": ...

    class ValueEstimators(Enum, metaclass=_Registered):
        """The package's value estimators, by TorchRL's names where it has them."""

else:
    # Imported when the modules of this package have declared theirs.
    ValueEstimators = Enum("ValueEstimators", REGISTERED, module=__name__)
    ValueEstimators.__doc__ = """The package's value estimators, by TorchRL's names where it has them."""

EstimatorKind = Union[ValueEstimators, str, type[ValueEstimator], ValueEstimator]


def make_value_estimator(value_type: Optional[EstimatorKind] = None, **hyperparams: Any) -> ValueEstimator:
    """A value estimator from its kind and hyperparameters.

    Args:
        value_type: a member of :class:`ValueEstimators`, its name in any case (``"gae"``, ``"td_lambda"``), the name of another
            declared estimator, an estimator class, an estimator, which is returned as it is, or None for GAE.
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
        value_type = REGISTERED["GAE"]
    elif isinstance(value_type, str):
        by_name = {_plain(name): kind for name, kind in REGISTERED.items()}
        if _plain(value_type) not in by_name:
            raise ValueError(f"value_type: expected one of {sorted(by_name)}, got {value_type!r}")
        value_type = by_name[_plain(value_type)]
    elif isinstance(value_type, ValueEstimators):
        value_type = value_type.value
    if not (isinstance(value_type, type) and issubclass(value_type, ValueEstimator)):
        raise TypeError(
            f"value_type: expected a name, a ValueEstimators member, a ValueEstimator or a subclass of it, got {value_type!r}"
        )
    return value_type(**{"differentiable": True, **hyperparams})


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
