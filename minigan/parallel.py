"""Several MPI processes that train one GAN: together they give the weights of one process.

    mpiexec -n 4 python train.py --batch-size 256

All draw the random numbers that one process alone would. What they then divide is (``Ranks.divide``)

- the columns of every layer, on the CPUs of one machine, if the networks are wide (``Columns``, and columns.py): each
  process has all rows of a batch, and what they compute lies in memory that all of them see;
- else the rows of each batch (``Ranks``; data parallelism): N processes of batch B/N, and after each backward pass
  their flat gradients are averaged. On the CPUs of one machine nothing is sent for it: gradients, θ and the optimiser's
  state lie in memory that all see, and each updates its own part of θ. On several machines, on GPUs, or where there is
  too little of such memory, each flat gradient is averaged by an all-reduce, and each process updates its own θ.

So all hold equal weights, always. Beside that, by rows, a report's few numbers are averaged, and train.py asks after
each step whether a signal, or the time to save, has come for one of them.
"""

import math
import os
import sys
import time
import traceback

import numpy as np

from minigan.backend import CACHE_LINE, Backend, empty, empty_batch
from minigan.columns import LAYERS, ColumnMLP
from minigan.errors import MiniganError
from minigan.mlp import MLP
from minigan.optim import CACHE_PIECE

LOOKS, NAP = 1000, 50e-6  # at whether the others have come, 50 µs in all; then seconds to sleep before each other one
WAITING = 60_000  # waiting layer by layer costs as much as passing on so many numbers: measured
SHARED_MEMORY = "/dev/shm"  # where Linux keeps it. In a container it may be little; the system ends who writes beyond

# What the usual MPI launchers (Open MPI, MPICH and its relatives) tell a process: how many of it there are.
SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")


class Agreed(int):
    """An exit code that all processes return, so that nobody needs to be ended."""


class Alone:
    """One process: nothing to share. What the GAN uses unless it is told otherwise."""

    rank, size, local_rank, local_size = 0, 1, None, 1
    part, parts = 0, 1  # of the rows of each batch: this process's, and how many there are

    def use(self, backend):
        """Average the arrays of this Backend from now on."""

    def divide(self, layers_G, layers_D, batch_size, dtype):
        """How these networks are trained by all processes together: what the GAN calls its ``team``."""
        return self

    def network(self, layers, xp, dtype):
        """A network of these layers."""
        return MLP(layers, xp, dtype)

    def share(self, rng, parts=1):
        """The generator to draw this process's rows from. parts=2: its rows are real ones above fake ones."""
        return rng

    def share_memory(self, params, state, grad):
        """Prepare ``descend`` for a network: its weights and a gradient, both Vectors, and its optimiser's state."""

    def descend(self, optimizer, params, grad, numbers):
        """θ ← optimiser(θ, the mean of all processes' ``grad``), with the optimiser's ``numbers`` for this step."""
        optimizer.update(params.flat, grad.flat, *numbers)

    def average(self, array):
        """Replace a device array, on every process, by its mean over those of all rows."""

    def any(self, number):
        """The largest of the processes' numbers: how a signal that reached one of them stops all."""
        return number

    @property
    def cores(self):
        """How many of its machine's cores are for this process."""
        return max(1, (os.cpu_count() or 1) // self.local_size)


class Ranks(Alone):
    """One of several MPI processes. ``MPI`` is mpi4py's module. ``local_rank``: its number among the ``local_size`` of
    its machine. The arrays of CuPy are staged through the host."""

    def __init__(self, MPI, comm):
        self.MPI, self.comm = MPI, comm
        self.rank, self.size = self.part, self.parts = comm.Get_rank(), comm.Get_size()
        self._buffers, self._number = {}, np.zeros(1, np.int64)
        here = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = here.Get_rank(), here.Get_size()
        here.Free()
        self._meeting = None
        self._shared = {}  # {a gradient's Vector: (the mean of all, this process's part)}

    def use(self, backend):
        """Raises MiniganError if some processes found a GPU that works, and others none."""
        self.backend = backend
        if self.any(backend.xp is np) and self.any(backend.xp is not np):
            raise MiniganError("some of the processes have a GPU that works and others have none; use --backend numpy")

    def divide(self, layers_G, layers_D, batch_size, dtype):
        """By columns of the layers, on the CPUs of one machine, if less is passed on so between the processes: each
        number on the tapes, and they wait for it. By rows of the batch it is a gradient for each weight.
        """
        widths = [sum(getattr(layer, "affine", layer).n_out for layer in layers) for layers in (layers_G, layers_D)]
        on_tapes = batch_size * (widths[0] + 3 * widths[1])  # D sees 2m rows in its own step, m in G's
        layers = layers_G + layers_D
        weights = sum(math.prod(shape) for layer in layers for shape in layer.shapes)
        possible = self.backend.xp is np and all(type(layer) in LAYERS for layer in layers)
        if not possible or weights < on_tapes + WAITING:
            return self
        # θ and two vectors of the optimiser; four arrays of each layer, and for R1 and R2 some of them once more.
        nbytes = (3 * weights + 6 * on_tapes) * np.dtype(dtype).itemsize
        return Columns(self, nbytes) if self._can_share(nbytes) else self

    def share(self, rng, parts=1):
        return _Share(rng, self, parts)

    def share_memory(self, params, state, grad):
        """Let θ and the optimiser's state lie in memory that all processes see, and each one's gradient beside it.

        Nothing changes for processes on several machines, with GPUs, or where there is too little such memory. The MPI
        library never gets it back, and MPICH crashes after some thousand GANs.
        """
        if self.backend.xp is not np:
            return
        vectors, like = [params.flat, *state.values()], params.flat
        lines, of_line = math.ceil(like.nbytes / CACHE_LINE), CACHE_LINE // like.itemsize
        if not self._can_share((self.size + len(vectors)) * lines * CACHE_LINE):
            return
        # The first process has room for what all have in common, too.
        own = 1 + len(vectors) if self.rank == 0 else 1
        window = self.window(own * lines * CACHE_LINE)
        memory = [np.frombuffer(window.Shared_query(rank)[0], like.dtype) for rank in range(self.size)]
        memory = [part.reshape(-1, lines * of_line)[:, : like.size] for part in memory]
        memory[self.rank][0] = grad.flat  # a system gives memory when it is written to: now, when there is enough
        grad.lie_in(memory[self.rank][0])
        self.move(params, state, memory[0][1:])
        # Two processes that write to the same line of a cache would wait for each other.
        start, end = (lines * rank // self.size * of_line for rank in (self.rank, self.rank + 1))
        self._shared[grad] = _Mean([part[0] for part in memory]), slice(start, end)

    def descend(self, optimizer, params, grad, numbers):
        """On one machine each process does its own part of θ; what it needs of the others' gradients it reads there.

        As in ZeRO, stage 1 (Rajbhandari et al. 2020, arXiv 1910.02054), where the parts are sent around.
        """
        if grad not in self._shared:
            self.average(grad.flat)
            super().descend(optimizer, params, grad, numbers)
            return
        mean, part = self._shared[grad]
        self.meet()  # all gradients are complete
        optimizer.update(params.flat, mean, *numbers, part=part)
        self.meet()  # all of θ is new

    def move(self, params, state, common):
        """Let the weights and the optimiser's state lie in ``common``: vectors, one for each, that all see."""
        if self.rank == 0:
            for new, vector in zip(common, (params.flat, *state.values()), strict=True):
                new[...] = vector
        self.meet()  # nobody reads, or writes again, before all is there
        params.lie_in(common[0])
        state.update(dict(zip(state, common[1:], strict=True)))

    def window(self, nbytes):
        """Memory that all processes of one machine see, ``nbytes`` of it from this one; all of them have to call it."""
        return self.MPI.Win.Allocate_shared(nbytes, 1, comm=self.comm)

    def meet(self):
        """Wait for all processes of this machine; then each sees what the others have written before."""
        if self._meeting is None:
            self._meeting = _Meeting(self.window(CACHE_LINE), self.rank, self.size)
        self._meeting.wait()

    def _can_share(self, size):
        """Whether all processes can have ``size`` bytes of memory in common and leave as many for others."""
        import shutil  # with it comes all of compression: not when minigan is imported

        enough = not os.path.isdir(SHARED_MEMORY) or shutil.disk_usage(SHARED_MEMORY).free >= 2 * size
        return not self.any(not (self.local_size == self.size and enough))

    def average(self, array):
        host = self.backend.to_host(array)
        self.comm.Allreduce(self.MPI.IN_PLACE, host)
        host *= 1 / self.size
        if host is not array:
            array[...] = self.backend.to_device(host)

    def any(self, number):
        self._number[0] = number
        self.comm.Allreduce(self.MPI.IN_PLACE, self._number, self.MPI.MAX)
        return int(self._number[0])

    def buffer(self, like, rows):
        """An array with ``rows`` rows and otherwise like ``like``, made once."""
        key = rows, like.shape, like.dtype
        if key not in self._buffers:
            self._buffers[key] = empty_batch(self.backend.xp, (rows, *like.shape[1:]), like.dtype)
        return self._buffers[key]


class Columns(Alone):
    """The processes of one machine, each of which does its columns of every layer for all rows: see columns.py.

    All of them draw and report the same numbers, so there is nothing to share or to average.
    """

    def __init__(self, ranks, nbytes):
        """nbytes: about what the arrays of one GAN take that all see; it is asked for at once, and for more if need be.

        The MPI library never gets it back, and MPICH crashes when it has been asked some two thousand times.
        """
        self.ranks, self.rank, self.size, self.wait = ranks, ranks.rank, ranks.size, ranks.meet
        self._nbytes, self._left = nbytes, np.empty(0, np.uint8)

    def columns(self, n):
        """This process's of n columns."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def network(self, layers, xp, dtype):
        return ColumnMLP(layers, self, dtype)

    def memory(self, nbytes):
        """So many bytes of memory, an array, that all processes see; it begins with a cache line."""
        lines = math.ceil(nbytes / CACHE_LINE) * CACHE_LINE
        if lines > len(self._left):
            window = self.ranks.window(max(lines, self._nbytes) + CACHE_LINE if self.rank == 0 else 0)
            memory = np.frombuffer(window.Shared_query(0)[0], np.uint8)
            self._left = memory[-memory.ctypes.data % CACHE_LINE :]
        piece, self._left = self._left[:nbytes], self._left[lines:]
        return piece

    def share_memory(self, params, state, grad):
        vectors = params.flat, *state.values()
        self.ranks.move(params, state, [self.memory(vector.nbytes).view(vector.dtype) for vector in vectors])

    def descend(self, optimizer, params, grad, numbers):
        """Each process updates its rows of every W, of which it has the gradient; the last one also b, behind them.

        Nobody else reads them meanwhile: backward passes need no others, forward and tangent passes end with a wait.
        """
        start = 0
        for (n_in, n_out), _ in filter(None, params.shapes):
            rows, last = self.columns(n_in), n_out if self.rank == self.size - 1 else 0
            optimizer.update(
                params.flat, grad.flat, *numbers,
                part=slice(start + rows.start * n_out, start + rows.stop * n_out + last),
            )  # fmt: skip
            start += (n_in + 1) * n_out
        self.wait()


class _Meeting:
    """A barrier, where the processes of a machine wait for each other. ``window`` has a cache line of each.

    MPI's own way is to look without a pause. Where another program has a core for itself for a while, the process that
    waits then keeps the other core from the one that is late: with a busy program on one of two cores a step by columns
    took 15 times as long as on an idle machine, with naps it takes 3 times as long.
    """

    def __init__(self, window, rank, size):
        self.window, self.turn = window, 0
        turns = [memoryview(window.Shared_query(i)[0]).cast("B").cast("q") for i in range(size)]
        self.mine, self.others = turns[rank], turns[:rank] + turns[rank + 1 :]
        self.mine[0] = 0
        window.Fence()

    def wait(self):
        self.turn += 1
        self.mine[0] = self.turn
        for turn in self.others:
            looks = 0
            while turn[0] < self.turn:
                looks += 1
                if looks > LOOKS:
                    time.sleep(NAP)
        self.window.Fence()  # all are there: no wait, but now what they have written is to be seen


class _Mean:
    """The mean of several vectors, asked for slice by slice: each stays in the caches, and the whole is nowhere."""

    def __init__(self, vectors):
        self.vectors = vectors
        self.out = empty(np, (min(len(vectors[0]), CACHE_PIECE),), vectors[0].dtype)

    def __getitem__(self, piece):
        first, second, *others = (vector[piece] for vector in self.vectors)
        mean = np.add(first, second, out=self.out[: len(first)])
        for other in others:
            mean += other
        mean *= 1 / len(self.vectors)
        return mean


class _Share:
    """A random generator that draws for the whole batch and keeps the rows of one process."""

    def __init__(self, rng, ranks, parts):
        self.rng, self.ranks, self.parts = rng, ranks, parts

    def standard_normal(self, dtype, out):
        self._rows(self.rng.standard_normal, dtype, out)

    def random(self, dtype, out):
        self._rows(self.rng.random, dtype, out)

    def _rows(self, draw, dtype, out):
        size, m = self.ranks.size, len(out) // self.parts
        whole = self.ranks.buffer(out, len(out) * size)
        draw(dtype=dtype, out=whole)
        out.reshape(self.parts, m, -1)[...] = whole.reshape(self.parts, size, m, -1)[:, self.ranks.rank]


def guarded(main):
    """Run main() and return its exit code; if it fails on some of several processes, end them all.

    Without this the others would wait for ever where they next meet. If all fail, each ends by itself: MPICH does not
    give back the shared memory of those that are ended.
    """
    try:
        code = main()
    except BaseException as error:
        if not isinstance(error, SystemExit) and _connected():
            traceback.print_exc()
            _abort(1)
        raise
    if code in (2, 130, 141) and not isinstance(code, Agreed) and _connected() and not _all_come():
        _abort(code)
    return code


def _all_come(seconds=1):
    """Whether all processes come here within so many seconds."""
    request, until = sys.modules["mpi4py.MPI"].COMM_WORLD.Ibarrier(), time.monotonic() + seconds
    while not request.Test():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def _connected():
    return launched() > 1 and "mpi4py.MPI" in sys.modules


def _abort(code):
    sys.stderr.flush()
    sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(code)


def launched():
    """How many processes an MPI launcher has started, 1 without one."""
    return max([1] + [int(os.environ[v]) for v in SIZE_VARIABLES if os.environ.get(v, "").isdigit()])


def connect():
    """The Ranks of this process, or Alone without an MPI launcher. Raises MiniganError if mpi4py is missing.

    NumPy's BLAS gets this process's share of the cores: with a thread for each, all would be in each other's way.
    """
    if launched() == 1:
        return Alone()
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise MiniganError(
            f"{launched()} MPI processes were started and mpi4py cannot be used ({error}); "
            "pip install mpi4py, or start a single process without mpiexec"
        ) from error
    ranks = Ranks(MPI, MPI.COMM_WORLD) if MPI.COMM_WORLD.Get_size() > 1 else Alone()
    Backend("numpy").set_threads(ranks.cores)
    return ranks
