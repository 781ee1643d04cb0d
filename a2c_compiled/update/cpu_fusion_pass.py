"""A pass over inductor's graphs that makes the most of a CPU in float32."""

from typing import Any, Optional, Tuple, TypeAlias

import torch
from torch import Tensor
from torch.fx import Graph

from a2c_compiled._torch_internals import inductor_patterns, onednn_product, size_hint

inductor = inductor_patterns()
_Pass: Any = inductor.CustomGraphPass
Match: TypeAlias = Any  # of inductor's pattern matcher

aten = torch.ops.aten

# From so many multiplications on oneDNN's speed makes up for its longer start, and so many rows and columns it makes use of; measured.
_LARGE, _WIDE = 1 << 21, 8

# tanh(x) / x - 1 as x^2 times a polynomial in x^2, for |x| below the first number; from the highest power down.
_NEAR_ZERO = 0.625
_ODD = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)

_products, _activations = inductor.PatternMatcherPass(), inductor.PatternMatcherPass()


class Float32OnCpu(_Pass):
    """Puts faster equals in the place of operations in inductor's graph; one is as good as another, as compiled functions are."""

    def __eq__(self, other: object) -> bool:
        return type(other) is Float32OnCpu

    def __hash__(self) -> int:
        return hash(Float32OnCpu)

    def __call__(self, graph: Graph) -> None:
        _products.apply(graph)
        _activations.apply(graph)

    def uuid(self) -> Any:
        return inductor.get_hash_for_files((__file__,))


def _is_float32_on_cpu(match: Match) -> bool:
    value = match.output_node().meta.get("val")
    return isinstance(value, Tensor) and value.device.type == "cpu" and value.dtype is torch.float32


# -- Products --


# An operator of its own: inductor takes oneDNN's for networks that no longer learn, and its weights for constants.
# The library lives as long as the module: its end would unregister the operator.
_library = torch.library.Library("a2c_compiled", "FRAGMENT")
_library.define(
    "product(Tensor left, Tensor right, Tensor? bias, str activation) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)


def _in_onednn(left: Tensor, right: Tensor, bias: Optional[Tensor], activation: str) -> Tensor:
    assert onednn_product is not None, "products are left alone without it"
    return onednn_product(left, right.t(), bias, activation, [], "")


def _fake_product(left: Tensor, right: Tensor, bias: Optional[Tensor], activation: str) -> Tensor:
    return left.new_empty(left.size(0), right.size(1))


_library.impl("product", _in_onednn, "CPU")
torch.library.register_fake("a2c_compiled::product", _fake_product, lib=_library)


def _sizes(left: Tensor, right: Tensor) -> Tuple[int, int, int]:
    return size_hint(left.size(0)), size_hint(left.size(1)), size_hint(right.size(1))


def _pays_off(match: Match) -> bool:
    """Whether a product is one of those that oneDNN is faster at."""
    if not _is_float32_on_cpu(match) or onednn_product is None:
        return False
    rows, inner, columns = _sizes(*(match.kwargs[name].meta["val"] for name in ("left", "right")))
    long_sums = inner > max(rows, columns)
    return rows * inner * columns >= _LARGE and (not long_sums or ("bias" not in match.kwargs and min(rows, columns) >= _WIDE))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Long sums, as in the gradient of a weight, want one factor's entries in the order of summing: the loop that makes it turns it."""
    rows, inner, columns = _sizes(left, right)
    if inner > max(rows, columns):
        if rows > columns:
            return _product(right.t(), left.t()).t()
        left = left.clone(memory_format=torch.contiguous_format)
    return torch.ops.a2c_compiled.product(left, right, None, "none")


def _product_with_bias(left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.a2c_compiled.product(left, right, bias, "none")


@inductor.register_graph_pattern(
    inductor.CallFunction(aten.mm.default, inductor.KeywordArg("left"), inductor.KeywordArg("right")),
    extra_check=_pays_off,
    pass_dict=_products,
)
def _replace_mm(match: Match, left: Any, right: Any) -> None:
    match.replace_by_example(_product, [left, right])


@inductor.register_graph_pattern(
    inductor.CallFunction(
        aten.addmm.default, inductor.KeywordArg("bias"), inductor.KeywordArg("left"), inductor.KeywordArg("right")
    ),
    extra_check=lambda match: _pays_off(match) and match.kwargs["bias"].meta["val"].dim() == 1,
    pass_dict=_products,
)
def _replace_addmm(match: Match, bias: Any, left: Any, right: Any) -> None:
    match.replace_by_example(_product_with_bias, [left, right, bias])


# -- tanh --


def _tanh(x: Tensor) -> Tensor:
    """An odd polynomial near 0, and ``1 - 2 / (exp(2 |x|) + 1)`` beyond, where that loses no digits."""
    size, square = x.abs(), x * x
    series = torch.full_like(x, _ODD[0])
    for coefficient in _ODD[1:]:
        series = series * square + coefficient
    near = size + size * square * series
    return torch.where(size < _NEAR_ZERO, near, 1 - 2 / ((2 * size).exp() + 1)).copysign(x)


@inductor.register_graph_pattern(
    inductor.CallFunction(aten.tanh.default, inductor.KeywordArg("x")), extra_check=_is_float32_on_cpu, pass_dict=_activations
)
def _replace_tanh(match: Match, x: Any) -> None:
    product = x.args[0] if x.target in (aten.view.default, aten.reshape.default) else x
    if product.target is torch.ops.a2c_compiled.product.default and len(x.users) == len(product.users) == 1:
        product.update_arg(3, "tanh")  # as accurate there, and what the product writes need not be read again
        match.output_node().replace_all_uses_with(x)
        match.erase_nodes()
    else:
        match.replace_by_example(_tanh, [x])
