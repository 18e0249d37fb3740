"""A GAN whose training step is one CUDA graph: recorded once, then replayed with a single launch.

    gan = GraphedGAN(**options).build(data)      # then as any GAN: train_step, report, sample

What a graph replays is fixed: the kernels, their addresses and the numbers passed to them. So what changes from step
to step lies on the device: the number of the step within an epoch, and a table of the rates of every step of it. Only
finite data sets and SGD are possible; Adam's powers and streams of data change on the host.

CuPy refuses to record calls of cuBLAS (cupy issue 6290), though cuBLAS itself allows it; ``CuBLAS`` below calls it with
a handle and a workspace of its own.
"""

import ctypes
import re
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from minigan.gan import GAN

WORKSPACE = 32 << 20  # bytes: what cuBLAS itself takes on Hopper, and it may not allocate while recording


class CuBLAS:
    """Products of float32 matrices on one stream."""

    def __init__(self, cupy, stream, tf32=False):
        cupy.matmul(cupy.ones((2, 2), np.float32), cupy.ones((2, 2), np.float32))  # loads the library
        maps = Path("/proc/self/maps").read_text()
        self.library = ctypes.CDLL(re.search(r"\S+/libcublas\.so\S*", maps).group())  # the one that CuPy has loaded
        self.handle = ctypes.c_void_p()
        self.workspace = cupy.cuda.alloc(WORKSPACE)
        self.one, self.zero = ctypes.c_float(1), ctypes.c_float(0)
        self.call("cublasCreate_v2", ctypes.byref(self.handle))
        self.call("cublasSetStream_v2", self.handle, ctypes.c_void_p(stream.ptr))  # this resets the workspace
        self.call("cublasSetWorkspace_v2", self.handle, ctypes.c_void_p(self.workspace.ptr), ctypes.c_size_t(WORKSPACE))
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
        size, pointer, by = ctypes.c_int, ctypes.c_void_p, ctypes.byref
        self.call(
            "cublasSgemm_v2", self.handle, b_op, a_op, size(n), size(m), size(k), by(self.one),
            pointer(b.data.ptr), b_step, pointer(a.data.ptr), a_step, by(self.zero), pointer(out.data.ptr), out_step,
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


class GraphedGAN(GAN):
    """A GAN on CuPy that trains by replaying a graph; on NumPy it runs the same step without one, for tests."""

    tf32, cublas = False, None

    @staticmethod
    def possible(options, data):
        """Whether the options of a GAN and its data allow a graph."""
        o = {"optimizer": "sgd", "k": 1, "dtype": "float32"} | options
        return data.X is not None and (o["optimizer"], o["k"], o["dtype"]) == ("sgd", 1, "float32")

    def build(self, X, **options):
        if self.xp is not np:
            self.stream = self.xp.cuda.get_current_stream()
            if not self.stream.ptr:  # the default one, which cannot be recorded
                self.stream = self.xp.cuda.Stream(non_blocking=True)
                self.stream.use()  # everything of this process, from now on
            self.pool, self.cublas = self.xp.cuda.MemoryPool(), CuBLAS(self.xp, self.stream, self.tf32)
        super().build(X, **options)
        if not self.possible(self.options(), self.data):
            raise ValueError("a graph needs a finite data set, SGD, k = 1 and float32")
        xp = self.xp
        self.graph, self.recording, self.length = None, False, len(self.data.X) // self.batch_size
        self.i = xp.zeros(1, np.int64)  # the step within the epoch
        self.arange = xp.arange(self.batch_size, dtype=np.int64)
        self.order = xp.empty(len(self.data.X), np.int64)
        self.table = xp.empty((self.length, 4), self.dtype)
        self.now = xp.empty((1, 4), self.dtype)  # this step's row of it
        return self

    def update_networks(self):
        if self.step % self.length == 0:
            self._next_epoch()
        if self.xp is np or self.step < 2:  # the first ones compile what they need
            self._update_on_device()
        else:
            self.graph = self.graph or self._record()
            self.graph.launch(self.stream)
        self.batches.position += self.batch_size  # for ``checkpoint``

    def _next_epoch(self):
        """A new order of the rows, and the rates of its steps."""
        self.order[...] = self.backend_used.to_device(self.rng.order.permutation(len(self.data.X)))
        start, table = self.step, np.empty((self.length, 4), self.dtype)
        for i, row in enumerate(table):
            self.step = start + i
            row[:] = self.learning_rate(self.lr), self.learning_rate(self._lr_D()), self._momentum(), self._r1()
        self.step = start
        self.table[...] = self.backend_used.to_device(table)
        self.i[...] = 0
        self.batches.order, self.batches.position = self.order, 0

    def _record(self):
        self.stream.begin_capture()
        try:
            self._update_on_device()
        finally:
            graph = self.stream.end_capture()
        return graph

    def _update_on_device(self):
        self.recording = True
        try:
            with self._own_products(), self._own_memory():
                self.xp.take(self.table, self.i, axis=0, out=self.now, **self.batches.take_options)
                self.rows = self.xp.take(self.order, self.arange + self.i * self.batch_size)
                super().update_networks()
                self.i += 1
        finally:
            self.recording = False

    @contextmanager
    def _own_products(self):
        batches, matmul = self.batches, self.xp.matmul
        batches.next = lambda out: self.xp.take(batches.X, self.rows, axis=0, out=out, **batches.take_options)
        if self.cublas:
            self.xp.matmul = self.cublas.matmul
        try:
            yield
        finally:
            self.xp.matmul = matmul
            del batches.next

    def _own_memory(self):
        """Temporary arrays of the graph lie where no array made later can come to lie."""
        return nullcontext() if self.xp is np else self.xp.cuda.using_allocator(self.pool.malloc)

    def _lr_D(self):
        return self.lr if self.lr_D is None else self.lr_D

    def learning_rate(self, lr):
        if not self.recording:
            return super().learning_rate(lr)
        return self.now[0, :1] if lr == self.lr else self.now[0, 1:2]

    def _momentum(self):
        return self.now[0, 2:3] if self.recording else super()._momentum()

    def _r1(self):
        return self.now[0, 3:4] if self.recording else super()._r1()
