"""Data-parallel training over MPI: N processes of batch B/N give the weights of one process of batch B.

    mpiexec -n 4 python train.py --batch-size 256

Each process draws the same random numbers as one process alone would, and keeps its own rows of them; after each
backward pass one all-reduce averages the flat gradient. So all hold equal weights, always. Beside that, only a report's
few numbers are averaged, and train.py asks after each step whether a signal, or the time to save, has come for one.
"""

import os
import sys
import traceback

from minigan.backend import empty_batch
from minigan.errors import MiniganError

# What the usual MPI launchers (Open MPI, MPICH and its relatives) tell a process: how many of it there are.
SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")


class Alone:
    """One process: nothing to share. What the GAN uses unless it is told otherwise."""

    rank, size = 0, 1

    def share(self, rng, parts=1):
        """The generator to draw this process's rows from. parts=2: its rows are real ones above fake ones."""
        return rng

    def average(self, array):
        """Replace a device array, on every process, by its mean over all processes."""

    def any(self, number):
        """The largest of the processes' numbers: how a signal that reached one of them stops all."""
        return number


class Ranks(Alone):
    """One of several MPI processes. ``MPI`` is mpi4py's module. The GAN sets ``backend``, the one whose arrays are
    averaged; CuPy's are staged through the host."""

    def __init__(self, MPI, comm):
        self.MPI, self.comm = MPI, comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self._buffers = {}

    def share(self, rng, parts=1):
        return _Share(rng, self, parts)

    def average(self, array):
        host = self.backend.to_host(array)
        self.comm.Allreduce(self.MPI.IN_PLACE, host)
        host *= 1 / self.size
        if host is not array:
            array[...] = self.backend.to_device(host)

    def any(self, number):
        return self.comm.allreduce(number, op=self.MPI.MAX)

    def buffer(self, like, rows):
        """An array with ``rows`` rows and otherwise like ``like``, made once."""
        key = rows, like.shape, like.dtype
        if key not in self._buffers:
            self._buffers[key] = empty_batch(self.backend.xp, (rows, *like.shape[1:]), like.dtype)
        return self._buffers[key]


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
    """Run main() and return its exit code; if it fails on one of several processes, end them all.

    Without this the others would wait for ever in their next all-reduce.
    """
    try:
        code = main()
    except BaseException as error:
        if not isinstance(error, SystemExit) and _connected():
            traceback.print_exc()
            _abort(1)
        raise
    if code in (2, 130, 141) and _connected():  # 143, a signal between two steps, ends all of them by itself
        _abort(code)
    return code


def _connected():
    return launched() > 1 and "mpi4py.MPI" in sys.modules


def _abort(code):
    sys.stderr.flush()
    sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(code)


def launched():
    """How many processes an MPI launcher has started, 1 without one."""
    return max([1] + [int(os.environ[v]) for v in SIZE_VARIABLES if os.environ.get(v, "").isdigit()])


def connect():
    """The Ranks of this process, or Alone without an MPI launcher. Raises MiniganError if mpi4py is missing."""
    if launched() == 1:
        return Alone()
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise MiniganError(
            f"{launched()} MPI processes were started and mpi4py cannot be used ({error}); "
            "pip install mpi4py, or start a single process without mpiexec"
        ) from error
    return Ranks(MPI, MPI.COMM_WORLD) if MPI.COMM_WORLD.Get_size() > 1 else Alone()
