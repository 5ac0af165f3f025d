"""Short vectors of float32 in compiled loops, one machine instruction for many lanes.

A loop over a short row of labels is left scalar by the compiler, which cannot know that the rows do
not overlap. A kernel that loads a row as one vector says so: the vector lives in registers, and
every operation on it is one instruction per register.

Every lane is computed alone, with the rounding of IEEE 754; sums over lanes are taken in a fixed
order: the same numbers come out on every machine, whatever the width of its registers.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from functools import wraps
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable
from numpy.typing import NDArray

_FLOAT = ir.FloatType()
_INT = ir.IntType(32)


class Vector(types.Type):
    """The type of a vector: a number of float32 lanes."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"Vector({lanes})")

    if TYPE_CHECKING:
        # What the variables of this type can do in a kernel.
        def __add__(self, other: Any) -> Vector: ...
        def __sub__(self, other: Any) -> Vector: ...
        def __mul__(self, other: Any) -> Vector: ...


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, _floats(kind.lanes))


def _floats(lanes: int) -> ir.VectorType:
    return ir.VectorType(_FLOAT, lanes)


def _spread(builder: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    kind = ir.VectorType(scalar.type, lanes)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, _INT(0))
    zeros = ir.Constant(ir.VectorType(_INT, lanes), [0] * lanes)
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), zeros)


def _constant(value: float, lanes: int) -> ir.Constant:
    return ir.Constant(_floats(lanes), [value] * lanes)


def _lower(build: Callable[..., Any]) -> Callable[..., Any]:
    """Make what numba compiles an operation by, of a function that builds it of LLVM values.

    The function is given the data of an array, the value of a literal, and numbers beside a vector
    as vectors.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        lanes = [kind.lanes for kind in signature.args if isinstance(kind, Vector)]
        values = []
        for kind, value in zip(signature.args, args, strict=True):
            if isinstance(kind, types.Array):
                value = cgutils.create_struct_proxy(kind)(context, builder, value).data
            elif isinstance(kind, types.IntegerLiteral):
                value = kind.literal_value
            elif isinstance(kind, types.Float) and lanes:
                value = _spread(builder, value, lanes[0])
            values.append(value)
        found = build(builder, *values)
        return context.get_dummy_value() if found is None else found

    return generate


def _operation(sign: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Make an operation of compiled code; to a type checker it takes and returns anything.

    ``sign`` makes the signature of the types of its arguments, None where it takes others.
    """

    def decorate(build: Callable[..., Any]) -> Any:
        generate = _lower(build)

        @wraps(build)
        def type_operation(typingctx: Any, *kinds: Any) -> Any:
            signature = sign(*kinds)
            return None if signature is None else (signature, generate)

        return intrinsic(type_operation)

    return decorate


def _sign_zeros(lanes: Any) -> Any:
    return Vector(lanes.literal_value)(lanes) if isinstance(lanes, types.IntegerLiteral) else None


@_operation(_sign_zeros)
def zeros(builder: ir.IRBuilder, lanes: int) -> Any:
    """Return a vector of ``lanes`` zeros; ``lanes`` is a constant."""
    return _constant(0.0, lanes)


@_operation(lambda vector: types.intp(vector))
def count_lanes(builder: ir.IRBuilder, vector: ir.Value) -> Any:
    """Return the number of lanes, a constant to the compiler."""
    return ir.IntType(8 * np.dtype(np.intp).itemsize)(vector.type.count)


@_operation(lambda scalar, like: like(types.float32, like))
def spread(builder: ir.IRBuilder, scalar: ir.Value, like: ir.Value) -> Any:
    """Return a vector as long as ``like``, the same number in every lane."""
    return scalar


def _sign_load(array: Any, at: Any, like: Any) -> Any:
    floats = isinstance(array, types.Array) and array.dtype == types.float32
    return like(array, types.intp, like) if floats else None


@_operation(_sign_load)
def load(builder: ir.IRBuilder, array: ir.Value, at: ir.Value, like: ir.Value) -> Any:
    """Load a vector as long as ``like`` from flat index ``at`` of a C-contiguous float32 array."""
    place = builder.bitcast(builder.gep(array, [at]), like.type.as_pointer())
    return builder.load(place, align=4)


@_operation(lambda array, at, vector: types.void(array, types.intp, vector))
def store(builder: ir.IRBuilder, array: ir.Value, at: ir.Value, vector: ir.Value) -> None:
    """Store a vector in a C-contiguous float32 array from flat index ``at`` on."""
    place = builder.bitcast(builder.gep(array, [at]), vector.type.as_pointer())
    builder.store(vector, place, align=4)


@_operation(lambda array, at: types.void(array, types.intp))
def prefetch(builder: ir.IRBuilder, array: ir.Value, at: ir.Value) -> None:
    """Ask for the cache line of flat index ``at`` of a C-contiguous array, to be written soon."""
    place = builder.bitcast(builder.gep(array, [at]), ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [place.type, _INT, _INT, _INT])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [place, _INT(0), _INT(3), _INT(1)])


def _sign_add_scaled(vector: Any, other: Any, factor: Any) -> Any:
    return vector(vector, other, factor if isinstance(factor, Vector) else types.float32)


@_operation(_sign_add_scaled)
def add_scaled(builder: ir.IRBuilder, vector: ir.Value, other: ir.Value, factor: ir.Value) -> Any:
    """Return ``vector + factor * other``, rounded once; ``factor`` is a number or a vector."""
    kind = vector.type
    signature = ir.FunctionType(kind, [kind] * 3)
    name = f"llvm.fma.v{kind.count}f32"
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    return builder.call(function, [other, factor, vector])


@_operation(lambda vector: types.float32(vector))
def largest(builder: ir.IRBuilder, vector: ir.Value) -> Any:
    """Return the largest lane."""
    return _fold(builder, vector, _maximum)


@_operation(lambda vector: types.float32(vector))
def total(builder: ir.IRBuilder, vector: ir.Value) -> Any:
    """Return the sum of the lanes, added half to half."""
    return _fold(builder, vector, ir.IRBuilder.fadd)


def _fold(builder: ir.IRBuilder, vector: ir.Value, join: Callable[..., ir.Value]) -> ir.Value:
    lanes = vector.type.count
    while lanes % 2 == 0:
        lanes //= 2
        halves = [
            builder.shuffle_vector(
                vector,
                ir.Constant(vector.type, ir.Undefined),
                ir.Constant(ir.VectorType(_INT, lanes), list(range(first, first + lanes))),
            )
            for first in (0, lanes)
        ]
        vector = join(builder, *halves)
    result = builder.extract_element(vector, _INT(0))
    for lane in range(1, lanes):
        result = join(builder, result, builder.extract_element(vector, _INT(lane)))
    return result


def _maximum(builder: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", first, second), first, second)


def _sign_two(first: Any, second: Any) -> Any:
    """Return the signature of an operation on two vectors, or on a vector and a number."""
    kinds = [kind if isinstance(kind, Vector) else types.float32 for kind in (first, second)]
    vectors = {kind for kind in kinds if isinstance(kind, Vector)}
    return vectors.pop()(*kinds) if len(vectors) == 1 else None


@_operation(_sign_two)
def maximum(builder: ir.IRBuilder, first: ir.Value, second: ir.Value) -> Any:
    """Return the larger of the two in every lane; ``second`` is a vector or a number."""
    return _maximum(builder, first, second)


@_operation(_sign_two)
def minimum(builder: ir.IRBuilder, first: ir.Value, second: ir.Value) -> Any:
    """Return the smaller of the two in every lane; ``second`` is a vector or a number."""
    return builder.select(builder.fcmp_ordered("<", first, second), first, second)


@_operation(_sign_two)
def less(builder: ir.IRBuilder, first: ir.Value, second: ir.Value) -> Any:
    """Return 1 in every lane where ``first`` is less than ``second``, and 0 elsewhere."""
    lanes = first.type.count
    below = builder.fcmp_ordered("<", first, second)
    return builder.select(below, _constant(1.0, lanes), _constant(0.0, lanes))


@_operation(lambda vector, tested, bound: vector(vector, tested, types.float32))
def zero_below(builder: ir.IRBuilder, vector: ir.Value, tested: ir.Value, bound: ir.Value) -> Any:
    """Return ``vector`` where ``tested`` exceeds the number ``bound``, and 0 elsewhere."""
    above = builder.fcmp_ordered(">", tested, bound)
    return builder.select(above, vector, _constant(0.0, vector.type.count))


@_operation(lambda vector: vector(vector))
def power_of_two(builder: ir.IRBuilder, vector: ir.Value) -> Any:
    """Return 2 to the power of each lane; all are integers from -126 to 127."""
    lanes = vector.type.count
    integers = ir.VectorType(_INT, lanes)
    biased = builder.add(builder.fptosi(vector, integers), ir.Constant(integers, [127] * lanes))
    shifted = builder.shl(biased, ir.Constant(integers, [23] * lanes))
    return builder.bitcast(shifted, vector.type)


def _define(operation: Callable[..., Any], build: Callable[..., Any]) -> None:
    @type_callable(operation)
    def type_operation(context: Any) -> Callable[[Any, Any], Any]:
        def typer(first: Any, second: Any) -> Any:
            signature = _sign_two(first, second)
            taken = signature is not None and signature.args == (first, second)
            return signature.return_type if taken else None

        return typer

    for kinds in ((Vector, Vector), (Vector, types.Float), (types.Float, Vector)):
        lower_builtin(operation, *kinds)(_lower(build))


_define(operator.add, ir.IRBuilder.fadd)
_define(operator.sub, ir.IRBuilder.fsub)
_define(operator.mul, ir.IRBuilder.fmul)


# A larger array is given back at once.
LARGEST_KEPT = 2**26
# Bytes of a line of the cache.
LINE = 64

_kept = threading.local()


def take_scratch(name: str, shape: tuple[int, ...], dtype: type = np.float32) -> NDArray[Any]:
    """Take an array with any content, the same memory whenever a thread asks by the same name.

    To have the system map and zero new pages costs a tenth of a CRF's whole inference. What a
    thread keeps goes with the thread.
    """
    size = prod(shape)
    if size * np.dtype(dtype).itemsize > LARGEST_KEPT:
        return allocate_aligned(shape, dtype)
    kept: dict[str, NDArray[Any]] = _kept.__dict__
    if name not in kept or len(kept[name]) < size:
        kept[name] = allocate_aligned((size,), dtype)
    return kept[name][:size].reshape(shape)


def allocate_aligned(shape: tuple[int, ...], dtype: type = np.float32) -> NDArray[Any]:
    """Allocate an array of any content that begins at a line of the cache.

    Rows that lie astride of two lines take up to twice as long to read and write.
    """
    size = prod(shape)
    bytes_ = np.empty(size * np.dtype(dtype).itemsize + LINE, np.uint8)
    first = -bytes_.ctypes.data % LINE
    return bytes_[first : len(bytes_) - LINE + first].view(dtype).reshape(shape)


def compile_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of arrays, scalars and tuples of these; many threads may run it at once.

    The code is kept on disk beside the module, or in the user's cache where that is read-only.
    Strict floating-point rules hold, so that the same image gives the same bytes everywhere; a
    division by 0 gives infinity, as in numpy, and no test for it.
    """
    try:
        kernel: Callable[..., Any] = njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        # Neither the package nor the user's home can be written: every process compiles anew.
        kernel = njit(nogil=True, error_model="numpy")(function)
    return kernel
