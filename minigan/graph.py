"""On a GPU: a step of Algorithm 1 as one CUDA graph, recorded once and from then on launched as a whole.

A step is some dozens of small kernels, and Python takes several times as long to launch one as the GPU to run it.
What a graph replays is fixed: the kernels, their addresses, and the numbers passed to them. So everything that changes
from step to step is put on the device before the launch: the real rows into D's input; learning rates, momentum and
the penalty's weight into arrays that the kernels read; random numbers into z and the dropout layers.

CuPy refuses to record calls of cuBLAS (cupy issue 6290), though cuBLAS itself allows it; ``CuBLAS`` below calls it with
a handle and a workspace of its own.
"""

import ctypes
import functools
import os
import re
import warnings
import weakref
from contextlib import contextmanager
from pathlib import Path

WORKSPACE = 32 << 20  # bytes: what cuBLAS itself takes on Hopper, and it may not allocate while recording
AHEAD = 64, 32 << 20  # draws made at once, and bytes that they may take


class Replay:
    """Does the steps of one GAN: each the first time as it is, which compiles its kernels, then as a graph.

    Where graphs are not possible the steps are done kernel by kernel, several times slower, after a warning.
    """

    def __init__(self, xp):
        self.xp, self.possible = xp, None
        self.draws, self.graphs = {}, {}  # of each step, by its name

    def __call__(self, step):
        """Do what ``step`` does: a method of the GAN, discriminator_step, generator_step or simultaneous_step."""
        gan, name = step.__self__, step.__name__
        if self.possible is None:
            self._prepare(gan)
        rows = self._set(gan, name)
        if name not in self.draws:
            self._first(step, rows)
            return
        for draw in self.draws[name]:
            draw.next()
        if self.possible and name not in self.graphs:
            with self._or_give_up():
                self.graphs[name] = self._record(step, rows)
        if self.possible:
            self.graphs[name].launch()  # on the current stream, as all that is done between the steps
        else:
            with self._from_the_device(gan):
                step(*rows)

    def _prepare(self, gan):
        xp = self.xp
        self.of_D, self.of_G = Numbers(gan.dtype, xp), Numbers(gan.dtype, xp)
        self.possible = True
        with self._or_give_up():
            self.stream = xp.cuda.Stream(non_blocking=True)  # the default one cannot be recorded
            self.aside = xp.cuda.Stream(non_blocking=True)
            self.pool = xp.cuda.MemoryPool()  # what a graph allocates must stay where it is, and unused by others
            self.cublas, self.cublas_aside = CuBLAS(xp, self.stream), CuBLAS(xp, self.aside)
            self.grads = [(grad.data.ptr, grad.data.ptr + grad.nbytes) for grad in (gan.grad_D.flat, gan.grad_G.flat)]

    def _set(self, gan, name):
        """Put the real rows of this step and its numbers where the graph finds them; returns the arguments of step."""
        if name != "discriminator_step":
            self.of_G.set(gan.numbers_G())
        if name == "generator_step":
            return ()
        self.of_D.set([*gan.numbers_D(), gan.penalty_weight()])
        gan.batches.next(out=gan.tape_D_real.x)
        return (gan.tape_D_real.x,)

    def _first(self, step, rows):
        """Do the step on the stream that it will be recorded on, in its turn among those of the current one."""
        gan, draws = step.__self__, []
        if self.possible:
            current = self.xp.cuda.get_current_stream()
            self.stream.wait_event(current.record())
            with self.stream, self._from_the_device(gan, draws), self._own_products(gan):
                step(*rows)
            current.wait_event(self.stream.record())
        else:
            with self._from_the_device(gan, draws):
                step(*rows)
        self.draws[step.__name__] = [Ahead(self.xp, *draw) for draw in draws]

    def _record(self, step, rows):
        gan = step.__self__
        with self.stream, self._from_the_device(gan), self._own_products(gan):
            with self.xp.cuda.using_allocator(self.pool.malloc):
                self.stream.begin_capture()
                try:
                    step(*rows)
                finally:
                    graph = self.stream.end_capture()
        return graph

    @contextmanager
    def _or_give_up(self):
        try:
            yield
        except Exception as error:
            self.possible = False
            warnings.warn(
                f"a step cannot be recorded as a CUDA graph ({type(error).__name__}: {error}), so training goes on "
                "kernel by kernel, several times slower",
                stacklevel=5,
            )

    @contextmanager
    def _from_the_device(self, gan, draws=None):
        """A step in this block finds its numbers on the device, and its random numbers there already; or it draws
        them, and ``draws`` notes how."""
        *of_D, penalty_weight = self.of_D.arrays
        gan.numbers_D, gan.numbers_G, gan.penalty_weight = (
            lambda: of_D,
            lambda: self.of_G.arrays,
            lambda: penalty_weight,
        )
        noise, dropout = gan.rng.noise, gan.rng.dropout
        gan.rng.noise, gan.rng.dropout = Drawn(noise, draws), Drawn(dropout, draws)
        try:
            yield
        finally:
            del gan.numbers_D, gan.numbers_G, gan.penalty_weight  # the methods appear again
            gan.rng.noise, gan.rng.dropout = noise, dropout

    @contextmanager
    def _own_products(self, gan):
        """Products by the own cuBLAS; those of a gradient's, for which nothing waits before the end of the backward
        pass, on a stream of their own beside it."""

        def backward(net, *args, **options):
            self.forked = False
            dx = type(net).backward(net, *args, **options)
            if self.forked:
                self.stream.wait_event(self.aside.record())
            return dx

        matmul, self.xp.matmul = self.xp.matmul, self._matmul
        for net in (gan.G, gan.D):
            net.backward = functools.partial(backward, net)
        try:
            yield
        finally:
            self.xp.matmul = matmul
            for net in (gan.G, gan.D):
                del net.backward

    def _matmul(self, a, b, out):
        if not any(start <= out.data.ptr < end for start, end in self.grads):
            return self.cublas.matmul(a, b, out)
        self.forked = True
        self.aside.wait_event(self.stream.record())
        with self.aside:
            return self.cublas_aside.matmul(a, b, out)


class Numbers:
    """Numbers on the device, each in an array (1,) that kernels read; the host sets all of them by one launch."""

    def __init__(self, dtype, xp):
        self.dtype, self.xp, self.arrays = dtype, xp, []

    def set(self, numbers):
        if not self.arrays:
            self.arrays = [self.xp.empty(1, self.dtype) for _ in numbers]
            given, kept, copied = (
                [form.format(i) for i in range(len(numbers))] for form in ("T x{0}", "T y{0}", "y{0} = x{0}")
            )
            self.copy = self.xp.ElementwiseKernel(
                ", ".join(given), ", ".join(kept), "; ".join(copied), name="set_numbers"
            )
        self.copy(*numbers, *self.arrays)


class Drawn:
    """In place of a random generator: it draws and notes that in a list, or, without one, has nothing left to do."""

    def __init__(self, rng, draws):
        self.rng, self.draws = rng, draws

    def standard_normal(self, dtype, out):
        self._note(self.rng.standard_normal, dtype, out)

    def random(self, dtype, out):
        self._note(self.rng.random, dtype, out)

    def _note(self, draw, dtype, out):
        if self.draws is not None:
            draw(dtype=dtype, out=out)
            self.draws.append((draw, out))


class Ahead:
    """A draw into an array, made for many steps at once: it takes a GPU 20 µs, however few the numbers are."""

    def __init__(self, xp, draw, out):
        self.xp, self.draw, self.out = xp, draw, out
        draws, most = AHEAD
        self.length, self.block, self.left = max(1, min(draws, most // out.nbytes)), None, 0

    def next(self):
        """Put the next numbers into the array."""
        if not self.left:
            if self.block is None:
                self.block = self.xp.empty((self.length, *self.out.shape), self.out.dtype)
            self.draw(dtype=self.out.dtype, out=self.block)
            self.left = self.length
        self.left -= 1
        self.out[...] = self.block[self.left]


class CuBLAS:
    """Products of matrices on one stream, float32 (with TF32 if CuPy would use it) or float64."""

    def __init__(self, xp, stream):
        xp.matmul(xp.ones((2, 2)), xp.ones((2, 2)))  # loads the library
        maps = Path("/proc/self/maps").read_text()
        self.library = ctypes.CDLL(re.search(r"\S+/libcublas\.so\S*", maps).group())  # the one that CuPy has loaded
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
        tf32 = os.environ.get("CUPY_TF32") == "1"
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
