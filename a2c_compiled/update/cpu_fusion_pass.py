"""A pass over inductor's graphs that replaces float32 operations on a CPU with faster ones: matrix products, sums over rows, and tanh.

It also moves reshapes, see :mod:`a2c_compiled.update.reshapes`.
"""

import functools
from typing import Any, Optional, Sequence, Tuple, TypeAlias

import torch
from torch import Tensor
from torch.fx import Graph

from a2c_compiled._torch_internals import fused_multiply_add, inductor_patterns, onednn_product, size_hint
from a2c_compiled.update import reshapes

inductor = inductor_patterns()
_Pass: Any = inductor.CustomGraphPass
Match: TypeAlias = Any  # torch._inductor.pattern_matcher.Match

aten = torch.ops.aten

_HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"

# Measured limits. Below this number of multiplications, the longer start of oneDNN costs more time than its product saves.
_MIN_MULTIPLICATIONS = 1 << 21
# If the inner dimension of a product is the longest, oneDNN needs a copy of a factor. This pays off only with wide vectors, which ATen's
# library may not use, and at least this many rows and columns.
_MIN_ROWS_AND_COLUMNS = 8
# From this number of elements on, ATen adds up the rows of a matrix faster than inductor's code.
_MIN_SUMMED = 1 << 15

# tanh(x) = x * p(x^2) / q(x^2) for |x| <= _SATURATED. For larger |x|, tanh(x) rounds to 1 or -1. The coefficients of p and q, highest power
# first, minimise the largest relative error: 2e-8 before rounding.
_SATURATED = 9.03
_NUMERATOR = (1.33665141e-08, 2.06230743e-05, 0.00349668623, 0.133820385, 1.0)
_DENOMINATOR = (7.78299864e-07, 0.000328725349, 0.0258814283, 0.467153609, 1.0)

_MM = inductor.CallFunction(aten.mm.default, inductor.KeywordArg("left"), inductor.KeywordArg("right"))
_products, _sums, _gradients, _activations = (inductor.PatternMatcherPass() for _ in range(4))


class Float32OnCpu(_Pass):
    """An inductor pass that replaces float32 matrix products, sums over rows, and tanh on a CPU.

    Torch compares the options of compiled functions. Because equal passes are equal objects, torch reuses one compiled graph for equal
    options.

    Args:
        own_operators: whether the code may call operators of this library. Code that runs without the library must not: then products stay
            in torch's library, and inductor adds up rows.
    """

    def __init__(self, own_operators: bool = True) -> None:
        self.own_operators = own_operators

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Float32OnCpu) and other.own_operators == self.own_operators

    def __hash__(self) -> int:
        return hash((Float32OnCpu, self.own_operators))

    def __call__(self, graph: Graph) -> None:
        reshapes.compute_on_matrices(graph)
        if self.own_operators:
            _products.apply(graph)
            _sums.apply(graph)
        _gradients.apply(graph)
        _activations.apply(graph)

    def uuid(self) -> Any:
        """Returns the key of this pass in inductor's cache: a changed pass, or another processor, compiles again."""
        return inductor.get_hash_for_files((__file__, reshapes.__file__), f"{_HAS_AVX512} {self.own_operators}")


def _is_float32_on_cpu(match: Match) -> bool:
    """Returns whether the result of the matched operation is a float32 tensor on a CPU."""
    value = match.output_node().meta.get("val")
    return isinstance(value, Tensor) and value.device.type == "cpu" and value.dtype is torch.float32


# -- Products --


# This operator wraps oneDNN's operator. Inductor would treat the weights of oneDNN's own operator as constants, as in frozen networks.
# The activation is a bool: for a string, inductor's C++ includes headers that take longer to compile than the rest of the training step.
# A module variable holds the library, because torch unregisters the operator when the library object is deleted.
_library = torch.library.Library("a2c_compiled", "FRAGMENT")
_library.define("product(Tensor left, Tensor right, Tensor? bias, bool tanh) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def _onednn_product(left: Tensor, right: Tensor, bias: Optional[Tensor], tanh: bool) -> Tensor:
    """Computes ``left @ right + bias``, or its tanh, with ``left`` of shape ``[rows, inner]`` and ``right`` ``[inner, columns]``."""
    assert onednn_product is not None, "without oneDNN, no product is replaced"
    return onednn_product(left, right.t(), bias, "tanh" if tanh else "none", [], "")


def _fake_product(left: Tensor, right: Tensor, bias: Optional[Tensor], tanh: bool) -> Tensor:
    """Returns a tensor with the shape and dtype of the product, for tracing."""
    return left.new_empty(left.size(0), right.size(1))


_library.impl("product", _onednn_product, "CPU")
torch.library.register_fake("a2c_compiled::product", _fake_product, lib=_library)


def _sizes(left: Tensor, right: Tensor) -> Tuple[int, int, int]:
    """Returns the numbers of rows, of inner entries and of columns, with a hint for a symbolic size."""
    return size_hint(left.size(0)), size_hint(left.size(1)), size_hint(right.size(1))


def _factors(match: Match) -> Tuple[Tensor, Tensor]:
    """Returns the values of the left and of the right factor of a matched product."""
    return match.kwargs["left"].meta["val"], match.kwargs["right"].meta["val"]


def _is_for_onednn(match: Match) -> bool:
    """Returns whether oneDNN is faster for this product than ATen, by the measured limits."""
    if not _is_float32_on_cpu(match) or onednn_product is None:
        return False
    rows, inner, columns = _sizes(*_factors(match))
    if rows * inner * columns < _MIN_MULTIPLICATIONS:
        return False
    if inner > max(rows, columns):
        return "bias" not in match.kwargs and _HAS_AVX512 and min(rows, columns) >= _MIN_ROWS_AND_COLUMNS
    return True


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Computes ``left @ right`` in oneDNN.

    If the inner dimension is the longest, as in the gradient of a weight, oneDNN is faster with a left factor that is contiguous along the
    inner dimension. The code copies the left factor to make it contiguous. It first swaps the factors if the right one is smaller. Inductor
    fuses the copy into the loop that computes the factor.
    """
    rows, inner, columns = _sizes(left, right)
    if inner > max(rows, columns):
        if rows > columns:
            return _product(right.t(), left.t()).t()
        left = left.clone(memory_format=torch.contiguous_format)
    return torch.ops.a2c_compiled.product(left, right, None, False)


def _product_with_bias(left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.a2c_compiled.product(left, right, bias, False)


@inductor.register_graph_pattern(_MM, extra_check=_is_for_onednn, pass_dict=_products)
def _replace_mm(match: Match, left: Any, right: Any) -> None:
    match.replace_by_example(_product, [left, right])


@inductor.register_graph_pattern(
    inductor.CallFunction(
        aten.addmm.default, inductor.KeywordArg("bias"), inductor.KeywordArg("left"), inductor.KeywordArg("right")
    ),
    extra_check=lambda match: _is_for_onednn(match) and match.kwargs["bias"].meta["val"].dim() == 1,
    pass_dict=_products,
)
def _replace_addmm(match: Match, bias: Any, left: Any, right: Any) -> None:
    match.replace_by_example(_product_with_bias, [left, right, bias])


# -- Gradients of weights in ATen --


def _is_slow_gradient(match: Match) -> bool:
    """Returns whether a product is the gradient of a weight with fewer inputs than outputs: a transposed matrix times another."""
    left, right = _factors(match)
    rows, _, columns = _sizes(left, right)
    is_gradient = size_hint(left.stride(0)) == size_hint(right.stride(1)) == 1
    return 1 < columns < rows and is_gradient and _is_float32_on_cpu(match)


def _transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """Computes ``left @ right`` in ATen, as the transpose of the product of the transposes.

    For 2 to 8 columns, ATen's matrix library takes 2 to 10 times as long for the product itself.
    """
    return torch.mm(right.t(), left.t()).t()


@inductor.register_graph_pattern(_MM, extra_check=_is_slow_gradient, pass_dict=_gradients)
def _replace_gradient(match: Match, left: Any, right: Any) -> None:
    match.replace_by_example(_transposed_product, [left, right])


# -- Sums over rows, such as the gradient of a bias --


_library.define("sum_of_rows(Tensor x) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def _sum_of_rows(x: Tensor) -> Tensor:
    """Returns the sum of the rows of a matrix, ``[1, columns]``, as ATen computes it: row after row, several columns at a time.

    Inductor's code reads the matrix column after column, far apart in memory, and computes each element anew if it has a formula for it.
    """
    return x.sum(0, keepdim=True)


def _fake_sum_of_rows(x: Tensor) -> Tensor:
    return x.new_empty(1, x.size(1))


_library.impl("sum_of_rows", _sum_of_rows, "CPU")
torch.library.register_fake("a2c_compiled::sum_of_rows", _fake_sum_of_rows, lib=_library)


def _is_large_sum_of_rows(match: Match) -> bool:
    x = match.kwargs["x"].meta["val"]
    is_over_rows = x.dim() == 2 and list(match.kwargs["dims"]) == [0] and match.kwargs["keepdim"] is True
    return is_over_rows and _is_float32_on_cpu(match) and size_hint(x.size(0)) * size_hint(x.size(1)) >= _MIN_SUMMED


@inductor.register_graph_pattern(
    inductor.CallFunction(
        aten.sum.dim_IntList, inductor.KeywordArg("x"), inductor.KeywordArg("dims"), inductor.KeywordArg("keepdim")
    ),
    extra_check=_is_large_sum_of_rows,
    pass_dict=_sums,
)
def _replace_sum(match: Match, x: Any, dims: Any, keepdim: Any) -> None:
    match.replace_by_example(torch.ops.a2c_compiled.sum_of_rows, [x])


# -- tanh --


def _tanh(x: Tensor) -> Tensor:
    """Computes tanh as an odd rational function, as XLA and Eigen do. The error is at most 6.1 units in the last place."""
    x = x.clamp(-_SATURATED, _SATURATED)
    numerator, denominator = (_polynomial(coefficients, x * x) for coefficients in (_NUMERATOR, _DENOMINATOR))
    # The rounded quotient can exceed 1.
    return (x * numerator / denominator).clamp(-1.0, 1.0)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Returns the value of a polynomial at ``x``. ``coefficients``: highest power first."""
    first, *others = (torch.full_like(x, coefficient) for coefficient in coefficients)
    return functools.reduce(lambda value, coefficient: fused_multiply_add(value, x, coefficient), others, first)


@inductor.register_graph_pattern(
    inductor.CallFunction(aten.tanh.default, inductor.KeywordArg("x")), extra_check=_is_float32_on_cpu, pass_dict=_activations
)
def _replace_tanh(match: Match, x: Any) -> None:
    product = x.args[0] if x.target in reshapes.RESHAPES else x
    is_product = product.target is torch.ops.a2c_compiled.product.default and len(x.users) == len(product.users) == 1
    if is_product and _HAS_AVX512:
        # oneDNN's tanh reads a table, which is fast where one instruction reads 16 entries. It is as accurate, and saves writing the
        # product to memory and reading it again.
        product.update_arg(3, True)
        match.output_node().replace_all_uses_with(x)
        match.erase_nodes()
    else:
        match.replace_by_example(_tanh, [x])
