"""NumPy or CuPy behind one name, ``xp``. The only file that names CuPy.

What differs between the two is here: which one is used, where arrays lie, random numbers, copies between host and
device, and waiting for the device; and in graph.py how a GPU does a whole iteration at once. All other files use
``xp``, and ask which it is only where one of the two is faster another way.
"""

import ctypes
import math
import os
from textwrap import shorten

import numpy as np

from minigan.errors import MiniganError

BACKENDS = ("auto", "numpy", "cupy")
CACHE_LINE = 64  # bytes, on the processors of our time; also the width of their widest registers


def empty(xp, shape, dtype, order="C"):
    """An uninitialised array; on a CPU in memory order ``order``, and it begins with a cache line.

    NumPy's own begin at any multiple of 16 bytes, and its element-wise functions then take up to twice as long to
    write to them.
    """
    return _aligned(np.empty, shape, dtype, order) if xp is np else xp.empty(shape, dtype)


def zeros(xp, shape, dtype):
    """An array of zeros that begins with a cache line, too."""
    return _aligned(np.zeros, shape, dtype) if xp is np else xp.zeros(shape, dtype)


def _aligned(make, shape, dtype, order="C"):
    """make: np.empty, or np.zeros, whose memory costs nothing until it is used. A line too much, and then a view."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = make(size + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + size].view(dtype).reshape(shape, order=order)


def empty_batch(xp, shape, dtype, wide=None):
    """An uninitialised array for a batch of n rows: (n, columns), or (n, groups, columns).

    On a CPU one that is wider than long (``wide``: or is to lie like one) lies in memory column by column (NumPy's
    order F), not row by row (order C): OpenBLAS takes 3 to 11 % less time for the matrix products of wide layers then.
    Arrays that meet in an element-wise pass should lie alike, or it takes several times as long. So groups, such as the
    pieces of maxout, go by the columns of one group: the arrays that they meet have so many.
    """
    if wide is None:
        wide = shape[0] < shape[-1]
    if xp is np and wide:
        return empty(xp, (shape[0], math.prod(shape[1:])), dtype, order="F").reshape(shape)
    return empty(xp, shape, dtype)


def of_numpys_openblas(name):
    """A function of the OpenBLAS inside NumPy, and its type of whole numbers; (None, None) with another BLAS."""
    library = ctypes.CDLL(np._core._multiarray_umath.__file__)
    for suffix, integer in (("64_", ctypes.c_int64), ("", ctypes.c_int)):
        if hasattr(library, f"scipy_{name}{suffix}"):
            return getattr(library, f"scipy_{name}{suffix}"), integer
    return None, None


class Axpby:
    """y ← a x + b y for vectors x and y in one piece, in one pass, where NumPy needs three.

    Raises NotImplementedError if there is no such function for ``dtype``.
    """

    def __init__(self, dtype):
        name, real = {"f": ("saxpby", ctypes.c_float), "d": ("daxpby", ctypes.c_double)}.get(dtype.char, ("", None))
        self.function, integer = of_numpys_openblas(f"cblas_{name}")
        if self.function is None:
            raise NotImplementedError(f"NumPy's BLAS has no axpby for {dtype}")
        vector = ctypes.c_void_p, integer  # and the step from one number to the next
        self.function.argtypes, self.function.restype = [integer, real, *vector, real, *vector], None

    def __call__(self, a, x, b, y):
        self.function(len(x), float(a), x.ctypes.data, 1, float(b), y.ctypes.data, 1)


class Backend:
    """An array module and what comes with it.

    ``name`` is "numpy" or "cupy", ``xp`` the module itself, ``device`` a description for people.
    """

    def __init__(self, name="auto", process=None):
        """Choose a backend: "numpy", "cupy", or "auto" (the GPU if there is one that works).

        process: the number of this process among several on one machine, which share its GPUs. None: one alone, which
        uses CuPy's current one.
        Raises MiniganError for an unknown name, or if "cupy" is asked for and cannot be used: a
        run that was meant for the GPU never falls back to the CPU silently.
        """
        if name not in BACKENDS:
            raise MiniganError(f"backend '{name}' does not exist; choose one of {', '.join(BACKENDS)}")
        cupy, reason = (None, "") if name == "numpy" else _usable_cupy(process)
        if name == "cupy" and cupy is None:
            raise MiniganError(f"backend 'cupy' cannot be used: {reason}; use --backend numpy")
        self.xp = cupy or np
        self.name = "cupy" if cupy else "numpy"
        self.device = f"GPU ({_name_of_gpu(cupy)})" if cupy else "CPU"
        if name == "auto" and cupy is None:
            self.device += f" (no GPU: {reason})"

    def generator(self, seed):
        """A random generator on the device, from a ``np.random.SeedSequence``.

        SFC64 is NumPy's fastest bit generator. On the GPU the stream of XORWOW with a fixed size does
        not depend on the model of the card, unlike CuPy's default. The two never give equal numbers.
        """
        if self.xp is np:
            return np.random.Generator(np.random.SFC64(seed))

        class Generator(self.xp.random.Generator):
            def random(self, size=None, dtype=np.float64, out=None):
                """CuPy fills ``out`` with one single number, unless it is told its shape."""
                return super().random(size if out is None else out.shape, dtype, out)

        return Generator(self.xp.random.XORWOW(seed, size=1 << 18))  # most draws in one kernel

    def set_threads(self, n):
        """Tell NumPy's own OpenBLAS to use n threads, unless an environment variable says how many.

        NumPy has no function for it, and the environment variable counts only before NumPy is imported. With another
        BLAS nothing happens.
        """
        if {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"} & set(os.environ):
            return
        set_num_threads, _ = of_numpys_openblas("openblas_set_num_threads")
        if set_num_threads:
            set_num_threads(n)

    def to_device(self, array):
        """A device array with the content of a host array (no copy on the CPU)."""
        return self.xp.asarray(array)

    def to_host(self, array):
        """A NumPy array with the content of a device array; on the GPU this waits for the device."""
        return array if isinstance(array, np.ndarray) else self.xp.asnumpy(array)

    def synchronize(self):
        """Wait until the device has done all its work, so that a clock can be read."""
        if self.xp is not np:
            self.xp.cuda.get_current_stream().synchronize()


def _name_of_gpu(cupy):
    return cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["name"].decode()


def _usable_cupy(process):
    """(cupy, "") if CuPy and a GPU work, else (None, why not). An installed CuPy may lack a driver or libraries."""
    try:
        import cupy

        if not cupy.cuda.is_available():
            return None, "CuPy finds no GPU or no driver"
        if process is not None:
            cupy.cuda.Device(process % cupy.cuda.runtime.getDeviceCount()).use()
        cupy.matmul(cupy.ones((2, 2)), cupy.ones((2, 2)))  # needs the compiler, its headers, and cuBLAS
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            return None, "CuPy is not installed"
        return None, f"CuPy does not work here ({type(error).__name__}: {shorten(str(error), 200)})"
    return cupy, ""
