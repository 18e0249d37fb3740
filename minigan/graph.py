"""On a GPU: a step of Algorithm 1 as one CUDA graph, recorded once and from then on launched as a whole.

A step is some dozens of small kernels, and Python takes several times as long to launch one as the GPU to run it.
What a graph replays is fixed: the kernels, their addresses, and the numbers passed to them. So the real rows are
written into D's input before it is launched, and the numbers that change from step to step, learning rates, momentum
and the penalty's weight, lie on the device, where the host sets them. Random numbers need nothing: the state of their
generators lies on the device.

CuPy refuses to record calls of cuBLAS (cupy issue 6290), though cuBLAS itself allows it; ``CuBLAS`` below calls it with
a handle and a workspace of its own.
"""

import ctypes
import os
import re
import warnings
import weakref
from contextlib import contextmanager
from pathlib import Path

WORKSPACE = 32 << 20  # bytes: what cuBLAS itself takes on Hopper, and it may not allocate while recording


class Replay:
    """Does the steps of one GAN: each the first time as it is, which compiles its kernels, then as a graph.

    Where graphs are not possible the steps are done as they are, several times slower, after a warning.
    """

    def __init__(self, xp):
        self.xp, self.graphs, self.possible = xp, {}, None

    def __call__(self, step):
        """Do what ``step`` does: a method of the GAN, discriminator_step, generator_step or simultaneous_step."""
        gan, name = step.__self__, step.__name__
        if self.possible is None:
            self._prepare(gan)
        rows = self._set(gan, name)
        if self.possible and name not in self.graphs:
            self.graphs[name] = None
            self._first(step, rows)
            return
        if self.possible and self.graphs[name] is None:
            with self._or_give_up():
                self.graphs[name] = self._record(step, rows)
        if self.possible:
            self.graphs[name].launch()  # on the current stream, as all that is done between the steps
        else:
            with self._numbers_on_the_device(gan):
                step(*rows)

    def _prepare(self, gan):
        xp = self.xp
        self.of_D, self.of_G = Numbers(gan.dtype, xp), Numbers(gan.dtype, xp)
        self.possible = True
        with self._or_give_up():
            self.stream = xp.cuda.Stream(non_blocking=True)  # the default one cannot be recorded
            self.pool = xp.cuda.MemoryPool()  # what a graph allocates must stay where it is, and unused by others
            self.cublas = CuBLAS(xp, self.stream)

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
        current = self.xp.cuda.get_current_stream()
        self.stream.wait_event(current.record())
        with self.stream, self._numbers_on_the_device(step.__self__), self._own_products():
            step(*rows)
        current.wait_event(self.stream.record())

    def _record(self, step, rows):
        with self.stream, self._numbers_on_the_device(step.__self__), self._own_products():
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
    def _numbers_on_the_device(self, gan):
        *of_D, penalty_weight = self.of_D.arrays
        gan.numbers_D, gan.numbers_G, gan.penalty_weight = (
            lambda: of_D,
            lambda: self.of_G.arrays,
            lambda: penalty_weight,
        )
        try:
            yield
        finally:
            del gan.numbers_D, gan.numbers_G, gan.penalty_weight  # the methods appear again

    @contextmanager
    def _own_products(self):
        matmul, self.xp.matmul = self.xp.matmul, self.cublas.matmul
        try:
            yield
        finally:
            self.xp.matmul = matmul


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
