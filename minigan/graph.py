"""On a GPU: a step of Algorithm 1 as one CUDA graph, recorded once and from then on launched as a whole.

A step is some dozens of small kernels, and Python takes several times as long to launch one as the GPU to run it.
What a graph replays is fixed: the kernels, their addresses, and the numbers passed to them. So everything that changes
from step to step is put on the device before the launch: the real rows into D's input; learning rates, momentum and
the penalty's weight into arrays that the kernels read; random numbers into z and the dropout layers.

CuPy refuses to record calls of cuBLAS (cupy issue 6290), though cuBLAS itself allows it; ``CuBLAS`` below calls it with
a handle and a workspace of its own.
"""

import contextlib
import ctypes
import functools
import os
import re
import warnings
import weakref
from itertools import pairwise
from pathlib import Path

from minigan.layers import Linear
from minigan.mlp import ACTIVATIONS

WORKSPACE = 32 << 20  # bytes: what cuBLAS itself takes on Hopper, and it may not allocate while recording
AHEAD = 64, 32 << 20  # draws made at once, and bytes that they may take, for each array


class Replay:
    """Does the steps of one GAN: each the first time as it is, which compiles its kernels, then as a graph.

    Where steps cannot be recorded they are done kernel by kernel, several times slower, after a warning.
    """

    def __init__(self, xp):
        self.xp, self.possible = xp, None
        self.draws, self.graphs = {}, {}  # of each step

    def __call__(self, step):
        """Do what ``step`` does: a method of the GAN, discriminator_step, generator_step or simultaneous_step."""
        gan = step.__self__
        if self.possible is None:
            self.possible = self._prepare(gan)
        rows = self._set(gan, step.__name__)
        which = step.__name__, gan.loss, gan.has_r1, gan.r2  # with others it is another step
        if which not in self.draws:
            self.draws[which] = self._first(step, rows)
            return
        for draw in self.draws[which]:
            draw.next()
        if self.possible and which not in self.graphs:
            self.graphs[which] = self._record(step, rows)
        if self.possible:
            self.graphs[which].launch()  # on the current stream, as all that is done between the steps
        else:
            with self._from_the_device(gan, Filled):
                step(*rows)

    def _prepare(self, gan):
        """Make what recording needs; returns whether it is possible."""
        xp = self.xp
        self.numbers_D, self.numbers_G = Numbers(gan.dtype, xp), Numbers(gan.dtype, xp)
        try:
            self.stream = xp.cuda.Stream(non_blocking=True)  # the default one cannot be recorded
            self.pool = xp.cuda.MemoryPool()  # what a graph allocates must stay where it is, and unused by others
            self.cublas = CuBLAS(xp, self.stream)
            self.aside = [CuBLAS(xp, xp.cuda.Stream(non_blocking=True)) for _ in range(2)]
        except Exception as error:
            return warn(error)
        return True

    def _set(self, gan, name):
        """Put the real rows of this step and its numbers where the graph finds them; returns the arguments of step."""
        rows = () if name == "generator_step" else (gan.tape_D_real.x,)
        if rows:
            gan.batches.next(out=rows[0])
            self.numbers_D.set([gan.penalty_weight(), *gan.numbers_D()])
        if name != "discriminator_step":
            self.numbers_G.set(gan.numbers_G())
        return rows

    def _first(self, step, rows):
        """Do the step on the stream that it will be recorded on, in its turn among those of the current one; returns
        how it draws its random numbers."""
        gan, draws = step.__self__, []
        noted = functools.partial(Noted, draws)
        if not self.possible:
            with self._from_the_device(gan, noted):
                step(*rows)
        else:
            current = self.xp.cuda.get_current_stream()
            self.stream.wait_event(current.record())
            try:
                with self.stream, self._from_the_device(gan, noted), self._own_passes(gan):
                    step(*rows)
            finally:
                current.wait_event(self.stream.record())
        return [Ahead(self.xp, *draw) for draw in draws]

    def _record(self, step, rows):
        """The graph of a step, or None, if it is not possible after all."""
        gan, allocator = step.__self__, self.xp.cuda.using_allocator(self.pool.malloc)
        with self.stream, self._from_the_device(gan, Filled), self._own_passes(gan), allocator:
            try:
                self.stream.begin_capture()
                step(*rows)
                return self.stream.end_capture()
            except BaseException as error:
                with contextlib.suppress(Exception):
                    self.stream.end_capture()
                if not isinstance(error, Exception):
                    raise
                self.possible = warn(error)

    @contextlib.contextmanager
    def _from_the_device(self, gan, drawn):
        """In this block a step finds its numbers on the device; its random generators are in the hands of ``drawn``."""
        penalty_weight, *of_D = self.numbers_D.arrays
        gan.numbers_D, gan.numbers_G, gan.penalty_weight = (
            lambda: of_D,
            lambda: self.numbers_G.arrays,
            lambda: penalty_weight,
        )
        noise, dropout = gan.rng.noise, gan.rng.dropout
        gan.rng.noise, gan.rng.dropout = drawn(noise), drawn(dropout)
        try:
            yield
        finally:
            del gan.numbers_D, gan.numbers_G, gan.penalty_weight  # the methods appear again
            gan.rng.noise, gan.rng.dropout = noise, dropout

    @contextlib.contextmanager
    def _own_passes(self, gan):
        """In this block the passes launch fewer kernels one after another than in layers.py.

        Products go to the own cuBLAS, those for a gradient, which nothing needs before the end of the backward pass,
        on streams of their own beside it; and an activation adds the bias of the layer before it.
        """
        replaced = []

        def replace(owner, name, function):
            replaced.append((owner, name, vars(owner).get(name)))
            setattr(owner, name, function)

        def backward(net, dout, tape, grad=None, need_dx=True):
            self.grad = (0, 0) if grad is None else (grad.flat.data.ptr, grad.flat.data.ptr + grad.flat.nbytes)
            dx = type(net).backward(net, dout, tape, grad, need_dx)
            if grad is not None:
                for cublas in self.aside:
                    self.stream.wait_event(cublas.stream.record())
            return dx

        def without_bias(x, p, c, rng=None):
            return self._matmul(x, p[0], out=c.out)

        self.grad = 0, 0
        for net in (gan.G, gan.D):
            replace(net, "backward", functools.partial(backward, net))
            for layer in net.layers:
                if layer.shapes:
                    replace(getattr(layer, "affine", layer), "matmul", self._matmul)
            for (layer, p), (after, _) in pairwise(zip(net.layers, net.params.layers, strict=True)):
                if type(layer) is Linear and type(after) in ACTIVATIONS.values():
                    replace(layer, "forward", without_bias)
                    replace(after, "forward", functools.partial(after.forward_biased, p[1]))
        try:
            yield
        finally:
            for owner, name, before in replaced:
                if before:
                    setattr(owner, name, before)
                else:
                    delattr(owner, name)  # the method appears again

    def _matmul(self, a, b, out):
        if not self.grad[0] <= out.data.ptr < self.grad[1]:
            return self.cublas.matmul(a, b, out)
        cublas = self.aside[a.ndim - 1]  # db on one, dW on the other
        cublas.stream.wait_event(self.stream.record())
        with cublas.stream:
            return cublas.matmul(a, b, out)


def warn(error):
    """Say why nothing can be recorded; returns False."""
    warnings.warn(
        f"a step cannot be recorded as a CUDA graph ({type(error).__name__}: {error}), so training goes on kernel by "
        "kernel, several times slower",
        stacklevel=2,
    )
    return False


class Numbers:
    """Numbers on the device, each in an array (1,) that kernels read; the host sets all of them by one launch."""

    def __init__(self, dtype, xp):
        self.dtype, self.xp, self.arrays = dtype, xp, []

    def set(self, numbers):
        if not self.arrays:
            each = range(len(numbers))
            self.arrays = [self.xp.empty(1, self.dtype) for _ in each]
            self.copy = self.xp.ElementwiseKernel(
                ", ".join(f"T x{i}" for i in each),
                ", ".join(f"T y{i}" for i in each),
                "; ".join(f"y{i} = x{i}" for i in each),
                name="set_numbers",
            )
        self.copy(*numbers, *self.arrays)


class Noted:
    """A random generator that notes in ``draws`` what it is asked for."""

    def __init__(self, draws, rng):
        self.draws, self.rng = draws, rng

    def standard_normal(self, dtype, out):
        self._draw(self.rng.standard_normal, dtype, out)

    def random(self, dtype, out):
        self._draw(self.rng.random, dtype, out)

    def _draw(self, draw, dtype, out):
        draw(dtype=dtype, out=out)
        self.draws.append((draw, out))


class Filled:
    """In place of a random generator, where ``Ahead`` has filled the arrays already."""

    def __init__(self, rng):
        pass

    def standard_normal(self, dtype, out):
        pass

    def random(self, dtype, out):
        pass


class Ahead:
    """A draw into an array, made for many steps at once: it takes a GPU 20 µs, however few the numbers are."""

    def __init__(self, xp, draw, out):
        self.draw, self.out, self.left = draw, out, 0
        draws, most = AHEAD
        n = min(draws, most // out.nbytes)
        self.block = xp.empty((n, *out.shape), out.dtype) if n > 1 else None

    def next(self):
        """Put the next numbers into the array."""
        if self.block is None:
            self.draw(dtype=self.out.dtype, out=self.out)
            return
        if not self.left:
            self.draw(dtype=self.out.dtype, out=self.block)
            self.left = len(self.block)
        self.left -= 1
        self.out[...] = self.block[self.left]


class CuBLAS:
    """Products of matrices on one stream, float32 (with TF32 if CUPY_TF32 asks CuPy for it) or float64."""

    def __init__(self, xp, stream):
        self.stream = stream
        xp.matmul(xp.ones((2, 2)), xp.ones((2, 2)))  # loads the library
        maps = Path("/proc/self/maps").read_text()
        self.library = ctypes.CDLL(re.search(r"/.*/libcublas\.so\S*", maps).group())  # the one that CuPy has loaded
        self.handle = ctypes.c_void_p()
        self.workspace = xp.cuda.alloc(WORKSPACE)
        self.of_dtype = {
            "f": ("cublasSgemm_v2", ctypes.c_float(1), ctypes.c_float(0)),
            "d": ("cublasDgemm_v2", ctypes.c_double(1), ctypes.c_double(0)),
        }
        self.call("cublasCreate_v2", ctypes.byref(self.handle))
        weakref.finalize(self, self.library.cublasDestroy_v2, self.handle).atexit = False
        self.call("cublasSetStream_v2", self.handle, ctypes.c_void_p(stream.ptr))  # this resets the workspace
        self.call("cublasSetWorkspace_v2", self.handle, ctypes.c_void_p(self.workspace.ptr), ctypes.c_size_t(WORKSPACE))
        tf32 = int(os.environ.get("CUPY_TF32", "0")) > 0
        self.call("cublasSetMathMode", self.handle, ctypes.c_int(3 if tf32 else 0))  # CUBLAS_TF32_TENSOR_OP_MATH

    def call(self, name, *arguments):
        if status := getattr(self.library, name)(*arguments):
            raise RuntimeError(f"{name} failed with status {status}")

    def matmul(self, a, b, out):
        """out = a @ b, as cupy.matmul; a or b or both may be transposed, a may be a vector."""
        rows, columns = (a[None], out[None]) if a.ndim == 1 else (a, out)
        (m, k), n = rows.shape, columns.shape[1]
        # cuBLAS counts by columns: it sees the transposes of what lies here, and outᵀ = bᵀ aᵀ.
        (b_op, b_step), (a_op, a_step), (_, out_step) = map(as_columns, (b, rows, columns))
        gemm, one, zero = self.of_dtype[out.dtype.char]
        size, pointer, by = ctypes.c_int, ctypes.c_void_p, ctypes.byref
        self.call(
            gemm, self.handle, b_op, a_op, size(n), size(m), size(k), by(one), pointer(b.data.ptr), b_step,
            pointer(a.data.ptr), a_step, by(zero), pointer(out.data.ptr), out_step,
        )  # fmt: skip
        return out


def as_columns(a):
    """(whether to transpose, leading dimension) of a matrix, for cuBLAS."""
    by_row, by_column = (stride // a.itemsize for stride in a.strides)
    if by_column == 1:
        return ctypes.c_int(0), ctypes.c_int(max(by_row, a.shape[1]))
    if by_row == 1:
        return ctypes.c_int(1), ctypes.c_int(max(by_column, a.shape[0]))
    raise ValueError(f"a matrix with strides {a.strides} cannot be passed to cuBLAS")
