"""Value estimators by name: the enumeration and the factory."""

import inspect
from enum import Enum, EnumMeta
from typing import TYPE_CHECKING, Any, Optional, Union

from a2c_compiled.estimators.base import REGISTERED, ValueEstimator

if TYPE_CHECKING:

    class _Registered(EnumMeta):
        """Declares to mypy that every attribute of the enumeration is a member."""

        def __getattr__(cls, name: str) -> "ValueEstimators": ...

    class ValueEstimators(Enum, metaclass=_Registered):
        """The value estimators of this package. A member has TorchRL's name if TorchRL has the estimator."""

else:
    # This module is imported after all modules that declare estimators, so REGISTERED is complete.
    ValueEstimators = Enum("ValueEstimators", REGISTERED, module=__name__)
    ValueEstimators.__doc__ = "The value estimators of this package. A member has TorchRL's name if TorchRL has the estimator."

EstimatorKind = Union[ValueEstimators, str, type[ValueEstimator], ValueEstimator]


def make_value_estimator(value_type: Optional[EstimatorKind] = None, **hyperparams: Any) -> ValueEstimator:
    """Makes a value estimator: ``value_type(**hyperparams)``.

    Args:
        value_type: the estimator, as one of

            * None: :class:`~a2c_compiled.estimators.GAE`;
            * a member of :class:`ValueEstimators`;
            * a name, such as ``"gae"`` or ``"td_lambda"``; case, ``_`` and ``-`` do not matter. Names of subclasses of
              :class:`ValueEstimator` that your code declares with ``name=...`` work too;
            * a subclass of :class:`ValueEstimator`;
            * a :class:`ValueEstimator`, which is returned unchanged.
        hyperparams: arguments of the class. ``differentiable`` is True unless you pass it. The class has the other defaults.

    Returns:
        The estimator.

    Raises:
        ValueError: no estimator has this name, or a hyperparameter is out of range.
        TypeError: ``value_type`` is of another type, a hyperparameter is unknown, or an estimator came with hyperparameters.

    Source: TorchRL's ``LossModule.make_value_estimator``.
    """
    if isinstance(value_type, ValueEstimator):
        if hyperparams:
            raise TypeError(f"hyperparams: expected none when value_type is an estimator instance, got {sorted(hyperparams)}")
        return value_type
    if value_type is None:
        value_type = REGISTERED["GAE"]
    elif isinstance(value_type, str):
        by_name = {_normalized(name): kind for name, kind in REGISTERED.items()}
        if _normalized(value_type) not in by_name:
            raise ValueError(f"value_type: expected one of {sorted(by_name)}, got {value_type!r}")
        value_type = by_name[_normalized(value_type)]
    elif isinstance(value_type, ValueEstimators):
        value_type = value_type.value
    if not (isinstance(value_type, type) and issubclass(value_type, ValueEstimator)):
        raise TypeError(
            f"value_type: expected a name, a ValueEstimators member, a ValueEstimator or a subclass of it, got {value_type!r}"
        )
    options = inspect.signature(value_type).parameters
    unknown = [name for name in hyperparams if name not in options]
    if unknown and not any(option.kind is option.VAR_KEYWORD for option in options.values()):
        raise TypeError(
            f"hyperparams: expected options of {value_type.__name__} ({', '.join(options)}), got {', '.join(unknown)}"
        )
    return value_type(**{"differentiable": True, **hyperparams})


def _normalized(name: str) -> str:
    """Returns ``name`` in lower case, without ``_`` and ``-``."""
    return name.lower().replace("_", "").replace("-", "")
