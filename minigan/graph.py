"""On a GPU: an iteration of Algorithm 1 as one CUDA graph, recorded once and from then on launched as a whole.

An iteration is some seventy small kernels, and Python takes several times as long to launch one as the GPU to run it.
What a graph replays is fixed: the kernels, their addresses, and the numbers passed to them. So everything that changes
from one to the next is put on the device before the launch: real rows; learning rates, momentum and the penalty's
weight, in arrays that the kernels read; random numbers, drawn for many iterations at once.

A graph also knows which kernel needs what of which other. Those that need not wait for each other are recorded on
streams of their own, and the GPU runs them side by side.

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
AHEAD = 64, 32 << 20  # iterations to draw for at once, and bytes that this may take, for each array


class Replay:
    """Does the iterations of one GAN: the first one kernel by kernel, which compiles them, then as a graph.

    Where they cannot be recorded all are done kernel by kernel, several times slower, after a warning. What may change
    in the middle of training is what ``Inputs`` sets, and what makes another kind of iteration, which is recorded anew.

    update: what the GAN's tapes are made for.
    """

    def __init__(self, xp, update):
        self.xp, self.update, self.lanes = xp, update, None
        self.inputs, self.graphs = {}, {}  # of each kind of iteration

    def __call__(self, iteration):
        """Do what ``iteration`` does, the method update_networks of the GAN."""
        gan = iteration.__self__
        if self.lanes is None:
            self.lanes = self._prepare()
        if not self.lanes:
            iteration()
            return
        kind = gan.update, gan.k, gan.loss, gan.has_r1, gan.r2
        known = self.inputs.get(kind)
        inputs = known or Inputs(gan)
        inputs.set(gan)
        if not known:
            self._first(gan, inputs, iteration)
            self.inputs[kind] = inputs
            return
        if kind not in self.graphs:
            self.graphs[kind] = self._record(gan, inputs, iteration)
        if self.graphs[kind]:
            self.graphs[kind].launch()  # on the current stream, as all that is done between the iterations
            return
        self.lanes = ()
        with contextlib.ExitStack() as stack:
            inputs.give(stack, gan)
            iteration()

    def _prepare(self):
        """Two lanes to record on; none, if that is not possible."""
        try:
            self.pool = self.xp.cuda.MemoryPool()  # what a graph allocates must stay where it is, unused by others
            return Lane(self.xp), Lane(self.xp)
        except Exception as error:
            warn(error)
            return ()

    def _first(self, gan, inputs, iteration):
        """Do the first iteration of its kind on the streams that it will be recorded on, in its turn among what the
        current one does, and note how it draws its random numbers."""
        current, stream, draws = self.xp.cuda.get_current_stream(), self.lanes[0].stream, []
        stream.wait_event(current.record())
        try:
            with stream, contextlib.ExitStack() as stack:
                inputs.give(stack, gan, functools.partial(Noted, draws))
                self._own_passes(stack, gan, recording=False)
                iteration()
        finally:
            for lane in self.lanes:  # all of them, after an error
                for stream in (lane.stream, lane.dW, lane.db):
                    current.wait_event(stream.record())
        inputs.draws = Draws(self.xp, draws)

    def _record(self, gan, inputs, iteration):
        """The graph of an iteration, or None, if it is not possible after all."""
        stream, allocator = self.lanes[0].stream, self.xp.cuda.using_allocator(self.pool.malloc)
        with stream, allocator, contextlib.ExitStack() as stack:
            inputs.give(stack, gan, functools.partial(Given, inputs))
            self._own_passes(stack, gan, recording=True)
            try:
                stream.begin_capture()
                iteration()
                return stream.end_capture()
            except BaseException as error:
                with contextlib.suppress(Exception):
                    stream.end_capture()
                if not isinstance(error, Exception):
                    raise
                warn(error)

    def _own_passes(self, stack, gan, recording):
        """Until ``stack`` ends the passes launch fewer kernels than in layers.py, and more of them side by side."""
        self.lane, self.grad, self.recording = self.lanes[0], (0, 0), recording
        for net in (gan.G, gan.D):
            self._products(stack, net)
            self._biases(stack, net)
        if gan.update == "alternating":
            self._early_samples(stack, gan)
        elif self.update == gan.update and not gan.r2:  # R2 is computed on the tape of G's gradient
            self._both_backward(stack, gan)

    def _products(self, stack, net):
        """Products go to cuBLAS directly; those for a gradient, which nothing needs before the end of the backward
        pass, run beside it, dW on one stream and db on another."""

        def backward(dout, tape, grad=None, need_dx=True):
            self.grad = (0, 0) if grad is None else (grad.flat.data.ptr, grad.flat.data.ptr + grad.flat.nbytes)
            dx = type(net).backward(net, dout, tape, grad, need_dx)
            if grad is not None:
                for stream in (self.lane.dW, self.lane.db):
                    self.lane.stream.wait_event(stream.record())
            return dx

        def matmul(a, b, out):
            if not self.grad[0] <= out.data.ptr < self.grad[1]:
                return self.lane.products.matmul(a, b, out)
            stream = self.lane.db if a.ndim == 1 else self.lane.dW
            stream.wait_event(self.lane.stream.record())
            with stream:
                return b.sum(axis=0, out=out) if a.ndim == 1 else self.lane.gradients.matmul(a, b, out)

        replace(stack, net, "backward", backward)
        for layer in net.layers:
            if layer.shapes:
                replace(stack, getattr(layer, "affine", layer), "matmul", matmul)

    def _biases(self, stack, net):
        """An activation adds the bias of the layer before it."""
        for (layer, p), (after, _) in pairwise(zip(net.layers, net.params.layers, strict=True)):
            if type(layer) is Linear and type(after) in ACTIVATIONS.values():
                product = lambda x, p, c, rng=None, layer=layer: layer.matmul(x, p[0], out=c.out)
                replace(stack, layer, "forward", product)
                replace(stack, after, "forward", functools.partial(after.forward_biased, p[1]))

    def _early_samples(self, stack, gan):
        """The samples of the generator's step depend on nothing that D learns before it: they are made beside it, as
        soon as those of D's last step are in D's input."""
        generate, forward, left, early = gan._generate, gan.D.forward, gan.k, []

        def forward_D(*arguments):
            nonlocal left
            left -= 1
            if left == 0:
                with self._other_lane(self.lane.stream.record()):
                    early.append(generate())
            return forward(*arguments)

        def samples():
            if not early:
                return generate()
            self.lane.stream.wait_event(self.end)
            return early.pop()

        replace(stack, gan.D, "forward", forward_D)
        replace(stack, gan, "_generate", samples)

    def _both_backward(self, stack, gan):
        """The backward passes of a simultaneous step run side by side: G's, through D, and D's."""
        backward_G, backward_D = gan._backward_G, gan._backward_D

        def first(tape):
            self.start = self.lane.stream.record()
            backward_G(tape)

        def second():
            with self._other_lane(self.start):
                backward_D()
            self.lane.stream.wait_event(self.end)

        replace(stack, gan, "_backward_G", first)
        replace(stack, gan, "_backward_D", second)

    @contextlib.contextmanager
    def _other_lane(self, start):
        """Do this block on the other lane, when the event ``start`` has come; ``self.end`` is the event of its end.

        Of the first iteration all waits for it: there both lanes draw from one generator, whose state is on the device.
        """
        here, self.lane = self.lane, self.lanes[1]
        self.lane.stream.wait_event(start)
        try:
            with self.lane.stream:
                yield
        finally:
            self.end, self.lane = self.lane.stream.record(), here
        if not self.recording:
            here.stream.wait_event(self.end)


def replace(stack, owner, name, new):
    """Let ``owner.name`` be ``new`` until ``stack`` ends."""
    if name in vars(owner):
        stack.callback(setattr, owner, name, vars(owner)[name])
    else:
        stack.callback(vars(owner).pop, name, None)  # the class's appears again
    setattr(owner, name, new)


def warn(error):
    """Say why nothing can be recorded."""
    warnings.warn(
        f"a step cannot be recorded as a CUDA graph ({type(error).__name__}: {error}), so training goes on kernel by "
        "kernel, several times slower",
        stacklevel=2,
    )


class Lane:
    """A stream for one pass, and two beside it for what gives a gradient."""

    def __init__(self, xp):
        self.stream, self.dW, self.db = (xp.cuda.Stream(non_blocking=True) for _ in range(3))
        self.products, self.gradients = CuBLAS(xp, self.stream), CuBLAS(xp, self.dW)


class Inputs:
    """What changes from one iteration to the next, where a graph finds it."""

    def __init__(self, gan):
        xp, place = gan.xp, gan.tape_D_real.x
        self.xp, self.draws = xp, None
        steps = gan.k if gan.update == "alternating" else 1
        # The real rows of each of D's steps; of a single one in D's input itself.
        self.rows = [place] if steps == 1 else [xp.empty(place.shape, place.dtype) for _ in range(steps)]
        self.row = xp.zeros(1, "int64")  # of what has been drawn
        self.arrays = self.kernel = None

    def set(self, gan):
        """Put there what the next iteration needs. The numbers, and the row to read random numbers from, are set by
        one kernel."""
        for rows in self.rows:
            gan.batches.next(out=rows)
        row = self.draws.next_row() if self.draws else 0
        groups = [[gan.penalty_weight()], *(gan.numbers_D() for _ in self.rows), gan.numbers_G()]
        if self.arrays is None:
            self.arrays = [[self.xp.empty(1, gan.dtype) for _ in group] for group in groups]
            names = [(f"x{i}", f"y{i}") for i in range(sum(map(len, groups)))]
            self.kernel = self.xp.ElementwiseKernel(
                ", ".join(["int64 drawn", *(f"T {x}" for x, _ in names)]),
                ", ".join(["int64 row", *(f"T {y}" for _, y in names)]),
                "; ".join(["row = drawn", *(f"{y} = {x}" for x, y in names)]),
                name="set_inputs",
            )
        self.kernel(row, *sum(map(list, groups), []), self.row, *sum(self.arrays, []))

    def give(self, stack, gan, generator=lambda rng: rng):
        """Until ``stack`` ends the GAN reads its inputs here; ``generator`` stands before its random generators."""
        weight, *of_D, of_G = self.arrays
        rows, of_D = iter(self.rows), iter(of_D)

        def next_rows(out):
            given = next(rows)
            if len(self.rows) > 1:  # else they are there
                out[...] = given

        replace(stack, gan.batches, "next", next_rows)
        replace(stack, gan, "penalty_weight", lambda: weight[0])
        replace(stack, gan, "numbers_D", lambda: next(of_D))
        replace(stack, gan, "numbers_G", lambda: of_G)
        if self.draws:
            self.draws.rewind()
        for name in ("noise", "dropout"):
            replace(stack, gan.rng, name, generator(getattr(gan.rng, name)))


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


class Draws:
    """The random numbers of many iterations, drawn at once: a draw takes a GPU 20 µs, however few the numbers are.

    noted: (draw, out) for each draw of an iteration, in its order. A row of a block is one iteration's.
    """

    def __init__(self, xp, noted):
        draws, most = AHEAD
        self.rows = max(1, min([draws, *(most // out.nbytes for _, out in noted)]))
        self.row = self.rows  # the next one must be drawn
        self.blocks = [(draw, xp.empty((self.rows, *out.shape), out.dtype), out.data.ptr) for draw, out in noted]
        self.xp = xp

    def next_row(self):
        self.row += 1
        if self.row >= self.rows:
            for draw, block, _ in self.blocks:
                draw(dtype=block.dtype, out=block)
            self.row = 0
        return self.row

    def rewind(self):
        """An iteration begins: ``place`` is about to be called for each of its draws."""
        self.left = list(self.blocks)

    def place(self, out, row):
        """Put the numbers of that row, an array (1,), into ``out``."""
        _, block, place = self.left.pop(0) if self.left else (None, None, None)
        if place != out.data.ptr:
            raise ValueError("it draws other random numbers than the iteration before it")
        self.xp.take(block.reshape(self.rows, -1), row, axis=0, out=out.reshape(1, -1))


class Given:
    """In place of a random generator: gives what has been drawn ahead."""

    def __init__(self, inputs, rng):
        self.inputs = inputs

    def standard_normal(self, dtype, out):
        self.inputs.draws.place(out, self.inputs.row)

    def random(self, dtype, out):
        self.inputs.draws.place(out, self.inputs.row)


class CuBLAS:
    """Products of matrices on one stream, float32 (with TF32 if CUPY_TF32 asks CuPy for it) or float64."""

    def __init__(self, xp, stream):
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
