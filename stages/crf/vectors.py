"""Short vectors of float32 in compiled loops, one machine instruction for many lanes.

A loop over a short row of labels is left scalar by the compiler, which cannot know that the rows do
not overlap. A kernel that loads a row as one vector says so: the vector lives in registers, as wide
as the machine has them, and every operation on it is one instruction per register.

Every lane is computed alone, with the rounding of IEEE 754; sums over lanes are taken in a fixed
order. The same numbers therefore come out on every machine, whatever the width of its registers.

Loops are compiled at first use, without a compiler, for any thread; `take_scratch` gives them
memory that is aligned, and used again by the thread that took it.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
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


def _operation(build: Callable[..., Any]) -> Any:
    """Make an operation of compiled code; to a type checker it takes and returns anything."""
    return intrinsic(build)


def _floats(lanes: int) -> ir.VectorType:
    return ir.VectorType(_FLOAT, lanes)


def _spread(builder: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    kind = ir.VectorType(scalar.type, lanes)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, _INT(0))
    zeros = ir.Constant(ir.VectorType(_INT, lanes), [0] * lanes)
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), zeros)


def _constant(value: float, lanes: int) -> ir.Constant:
    return ir.Constant(_floats(lanes), [value] * lanes)


def _place(context: Any, builder: ir.IRBuilder, kind: types.Array, array: Any, at: Any) -> Any:
    data = cgutils.create_struct_proxy(kind)(context, builder, array).data
    return builder.gep(data, [at])


@_operation
def zeros(typingctx: Any, lanes: Any) -> Any:
    """Return a vector of ``lanes`` zeros; ``lanes`` is a constant."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    result = Vector(lanes.literal_value)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _constant(0.0, result.lanes)

    return result(lanes), generate


@_operation
def count_lanes(typingctx: Any, vector: Any) -> Any:
    """Return the number of lanes, a constant to the compiler."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return context.get_constant(types.intp, args[0].type.count)

    return types.intp(vector), generate


@_operation
def spread(typingctx: Any, scalar: Any, like: Any) -> Any:
    """Return a vector as long as ``like``, the same number in every lane."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _spread(builder, args[0], args[1].type.count)

    return like(types.float32, like), generate


@_operation
def load(typingctx: Any, array: Any, at: Any, like: Any) -> Any:
    """Load a vector as long as ``like`` from flat index ``at`` of a C-contiguous float32 array."""
    if not (isinstance(array, types.Array) and array.dtype == types.float32):
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], args[0], args[1])
        return builder.load(builder.bitcast(place, args[2].type.as_pointer()), align=4)

    return like(array, types.intp, like), generate


@_operation
def store(typingctx: Any, array: Any, at: Any, vector: Any) -> Any:
    """Store a vector in a C-contiguous float32 array from flat index ``at`` on."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], args[0], args[1])
        pointer = builder.bitcast(place, args[2].type.as_pointer())
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@_operation
def prefetch(typingctx: Any, array: Any, at: Any) -> Any:
    """Ask for the cache line of flat index ``at`` of a C-contiguous array, to be written soon."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], args[0], args[1])
        pointer = builder.bitcast(place, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _INT, _INT, _INT])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [pointer, _INT(0), _INT(3), _INT(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def _call(builder: ir.IRBuilder, name: str, *args: ir.Value) -> ir.Value:
    kind = args[0].type
    full = f"llvm.{name}.v{kind.count}f32"
    signature = ir.FunctionType(kind, [kind] * len(args))
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, full), args)


@_operation
def add_scaled(typingctx: Any, vector: Any, other: Any, factor: Any) -> Any:
    """Return ``vector + factor * other``, rounded once; ``factor`` is a number or a vector."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        own, theirs, factor = args
        if not isinstance(signature.args[2], Vector):
            factor = _spread(builder, factor, own.type.count)
        return _call(builder, "fma", theirs, factor, own)

    kind = factor if isinstance(factor, Vector) else types.float32
    return vector(vector, other, kind), generate


@_operation
def largest(typingctx: Any, vector: Any) -> Any:
    """Return the largest lane."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _fold(builder, args[0], _maximum)

    return types.float32(vector), generate


@_operation
def total(typingctx: Any, vector: Any) -> Any:
    """Return the sum of the lanes, added half to half."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _fold(builder, args[0], lambda builder, a, b: builder.fadd(a, b))

    return types.float32(vector), generate


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


@_operation
def maximum(typingctx: Any, first: Any, second: Any) -> Any:
    """Return the larger of the two in every lane; ``second`` is a vector or a number."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _maximum(builder, *_even(builder, signature, args))

    return _sign(first, second), generate


@_operation
def minimum(typingctx: Any, first: Any, second: Any) -> Any:
    """Return the smaller of the two in every lane; ``second`` is a vector or a number."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        own, other = _even(builder, signature, args)
        return builder.select(builder.fcmp_ordered("<", own, other), own, other)

    return _sign(first, second), generate


@_operation
def zero_below(typingctx: Any, vector: Any, tested: Any, bound: Any) -> Any:
    """Return ``vector`` where ``tested`` exceeds the number ``bound``, and 0 elsewhere."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        lanes = args[0].type.count
        above = builder.fcmp_ordered(">", args[1], _spread(builder, args[2], lanes))
        return builder.select(above, args[0], _constant(0.0, lanes))

    return vector(vector, tested, types.float32), generate


@_operation
def less(typingctx: Any, first: Any, second: Any) -> Any:
    """Return 1 in every lane where ``first`` is less than ``second``, and 0 elsewhere."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        own, other = _even(builder, signature, args)
        lanes = own.type.count
        below = builder.fcmp_ordered("<", own, other)
        return builder.select(below, _constant(1.0, lanes), _constant(0.0, lanes))

    return _sign(first, second), generate


@_operation
def power_of_two(typingctx: Any, vector: Any) -> Any:
    """Return 2 to the power of each lane; all are integers from -126 to 127."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        lanes = args[0].type.count
        integers = ir.VectorType(_INT, lanes)
        whole = builder.fptosi(args[0], integers)
        biased = builder.add(whole, ir.Constant(integers, [127] * lanes))
        return builder.bitcast(
            builder.shl(biased, ir.Constant(integers, [23] * lanes)), args[0].type
        )

    return vector(vector), generate


def _even(builder: ir.IRBuilder, signature: Any, args: Any) -> list[ir.Value]:
    """Spread the argument that is a number over as many lanes as the other has."""
    lanes = next(kind.lanes for kind in signature.args if isinstance(kind, Vector))
    return [
        arg if isinstance(kind, Vector) else _spread(builder, arg, lanes)
        for kind, arg in zip(signature.args, args, strict=True)
    ]


def _sign(first: Any, second: Any) -> Any:
    """Return the signature of an operation on two vectors, or on a vector and a number."""
    vectors = {kind for kind in (first, second) if isinstance(kind, Vector)}
    if len(vectors) != 1:
        return None
    result = vectors.pop()
    return result(
        *(kind if isinstance(kind, Vector) else types.float32 for kind in (first, second))
    )


def _define(operation: Callable[..., Any], instruction: str) -> None:
    @type_callable(operation)
    def type_operation(context: Any) -> Callable[[Any, Any], Any]:
        def typer(first: Any, second: Any) -> Any:
            kinds = (first, second)
            vectors = [kind for kind in kinds if isinstance(kind, Vector)]
            others = [kind for kind in kinds if not isinstance(kind, Vector)]
            if vectors and len(set(vectors)) == 1 and all(o == types.float32 for o in others):
                return vectors[0]
            return None

        return typer

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*_even(builder, signature, args))

    for kinds in ((Vector, Vector), (Vector, types.Float), (types.Float, Vector)):
        lower_builtin(operation, *kinds)(generate)


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")


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
    """Compile a function of arrays to machine code that holds no interpreter lock.

    The code is kept on disk beside the module, or in the user's cache where that is read-only.
    Strict floating-point rules hold, so that the same image gives the same bytes everywhere; a
    division by 0 gives infinity, as in numpy, and no test for it.

    Parameters
    ----------
    function : callable
        Arrays, scalars and tuples of these in; no Python objects.

    Returns
    -------
    callable
        The compiled function; it may run in many threads at once.
    """
    try:
        kernel: Callable[..., Any] = njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        # Neither the package nor the user's home can be written: every process compiles anew.
        kernel = njit(nogil=True, error_model="numpy")(function)
    return kernel
