"""A strict stand-in for CuPy 14, on NumPy: code that runs on it uses only what CuPy has, as CuPy has it.

    strict_cupy.install(monkeypatch)

It offers the few names that minigan needs, with CuPy's signatures, so anything else is an error. And it refuses

    what CuPy refuses          np.ndarray and device arrays in one operation, np.asarray(device array), where=,
                               matmul(out=) that is not C-contiguous or of another dtype, size and out that differ
    what costs time silently   copies that CuPy makes of an argument that overlaps ``out`` or is not contiguous,
                               iteration over an array, an index that lies on the host
    what goes wrong silently   random(out=) without a size, which fills ``out`` with one number; a random stream
                               that depends on the model of the GPU; overlapping copies; ``empty`` memory that is
                               read before it is written (it holds NaN)

The first kind raises what CuPy raises, the others Refused. ``counts`` counts what a GPU would be asked to do, and
in a block ``with no_sync():`` every read that makes the host wait raises Refused. ``calls`` keeps how everything was
called, so that a test can hold it against the signatures of the real package.

A stream that captures does nothing: it writes down what is asked of it, with the arrays and the numbers of that moment,
and a launch of the graph does it. As on a GPU, nothing can be copied to or from the host meanwhile, nor cuBLAS be used.
What streams have written down side by side each launch does in another order, so that a missing wait is noticed.
"""

import contextlib
import functools
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import numpy as np

from minigan import graph

counts = Counter()  # launches, allocations, uploads (host to device), downloads, waits
calls = set()  # (name, number of positional arguments, names of keywords, dtypes of the arrays among the arguments)
_waiting_allowed = True
order = []  # (stream that waits, stream that it waits for), and ("launch", stream) of a graph, while nothing captures
_captured = None  # what streams that capture have written down: (function, numbers of those before it, stream)


class Refused(AssertionError):
    """Something that CuPy would do, but slowly or wrongly."""


@contextlib.contextmanager
def no_sync():
    """In this block every wait for the device raises. Yields a Counter that holds the block's counts at its end."""
    global _waiting_allowed
    before, done = counts.copy(), Counter()
    _waiting_allowed = False
    try:
        yield done
    finally:
        _waiting_allowed = True
        done.update({name: n for name in counts if (n := counts[name] - before[name])})


def _wait(kind):
    if _captured is not None:
        raise Refused(f"while a stream captures: {kind}")
    counts[kind] += 1
    if not _waiting_allowed:
        raise Refused(f"the host waits for the device: {kind}")


def _recorded(function=None, *, name=None):
    """Keep in ``calls`` how a function was called."""
    if function is None:
        return functools.partial(_recorded, name=name)
    name = name or function.__qualname__

    @functools.wraps(function)
    def wrapper(*args, **options):
        dtypes = tuple(a.dtype.char if isinstance(a, ndarray) else None for a in args)
        calls.add((name, len(args), frozenset(options), dtypes))
        return function(*args, **options)

    return wrapper


# -- Arrays ------------------------------------------------------------------------------------------------


def _do(run, launches=1):
    """Do what so many kernels do, or write it down."""
    counts["launches"] += launches
    if _captured is None:
        run()
    else:
        stream = get_current_stream()
        if stream.after is None:
            raise Refused("what is done on a stream that does not capture")
        _captured.append((run, stream.after, stream))
        stream.after = {len(_captured) - 1}


def _new(compute, launches=1):
    """A device array that has just been allocated and written by so many kernels."""
    counts["allocations"] += 1
    host = np.array(compute())
    _do(functools.partial(_write, host, compute) if _captured is not None else _nothing, launches)
    return ndarray(host)


def _nothing():
    pass


def _write(to, compute):
    to[...] = compute()


def _host(value):
    """The memory of an operand: a device array or a number."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, (bool, int, float, complex, np.generic)):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def _same_memory(a, b):
    return a.ctypes.data == b.ctypes.data and a.shape == b.shape and a.strides == b.strides


def _contiguous(a):
    return a.flags.c_contiguous or a.flags.f_contiguous


class ndarray:
    """An array on the device: an array that NumPy knows nothing about."""

    __slots__ = ("_host",)
    __array_ufunc__ = None  # NumPy's operators and functions refuse it
    __hash__ = None

    def __init__(self, host):
        self._host = host

    def __array__(self, *args, **options):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_function__(self, *args):
        raise TypeError("A function of NumPy was given a device array.")

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(lambda self: self._host.flags)
    data = property(lambda self: SimpleNamespace(ptr=self._host.ctypes.data))
    T = property(lambda self: ndarray(self._host.T))

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        raise Refused("iteration over a device array is one small operation for each element")

    # Reading a value waits until the device has computed it.

    def item(self):
        _wait("downloads")
        return self._host.item()

    def tolist(self):
        _wait("downloads")
        return self._host.tolist()

    def get(self):
        _wait("downloads")
        return self._host.copy()

    def __bool__(self):
        return bool(self.item())

    def __int__(self):
        return int(self.item())

    def __float__(self):
        return float(self.item())

    def __complex__(self):
        return complex(self.item())

    def __repr__(self):
        return repr(self.get())

    def __format__(self, spec):
        return format(self.get(), spec)

    # Indexing with numbers and slices gives a view; with an integer array on the device, rows.

    def _view(self, key):
        key = key if isinstance(key, tuple) else (key,)
        for k in key:
            if not (k is None or k is Ellipsis or isinstance(k, (slice, int, np.integer)) and not isinstance(k, bool)):
                raise Refused(f"an index of type {type(k)} makes a copy from the host, or waits for the device")
        return self._host[key if Ellipsis in key else (*key, Ellipsis)]  # with an Ellipsis, also one element is a view

    def __getitem__(self, key):
        if isinstance(key, ndarray) and key.dtype.kind in "iu":
            return take(self, key, axis=0)
        return ndarray(self._view(key))

    def __setitem__(self, key, value):
        to = self._view(key)
        if isinstance(value, np.ndarray):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        value = _host(value)
        if isinstance(value, np.ndarray):
            if _same_memory(to, value):
                return  # a[i:j] += b ends with a[i:j] = a[i:j], which CuPy notices
            if np.may_share_memory(to, value):
                raise Refused("a copy between overlapping parts of an array")
        if to.size:  # CuPy launches nothing for an empty array
            _do(lambda: _write(to, lambda: value))

    @_recorded
    def fill(self, value):
        self[...] = value

    @_recorded
    def copy(self):
        return _new(lambda: self._host)

    @_recorded
    def astype(self, dtype, copy=True):
        return self if not copy and self.dtype == dtype else _new(lambda: self._host.astype(dtype))

    @_recorded
    def reshape(self, *shape):
        host = self._host.reshape(*shape)
        if self.size and not np.shares_memory(host, self._host):
            raise Refused("this reshape makes a copy")
        return ndarray(host)

    @_recorded
    def sum(self, axis=None, keepdims=False, out=None):
        return _reduced(self._host.sum, axis, out, keepdims)

    @_recorded
    def mean(self, axis=None, keepdims=False):
        return _reduced(self._host.mean, axis, None, keepdims)

    @_recorded
    def var(self, axis=None, keepdims=False):
        return _reduced(self._host.var, axis, None, keepdims)

    @_recorded
    def min(self, axis=None, keepdims=False):
        return _reduced(self._host.min, axis, None, keepdims)

    @_recorded
    def max(self, axis=None, out=None, keepdims=False):
        return _reduced(self._host.max, axis, out, keepdims)

    @_recorded
    def argmax(self, axis=None, out=None, dtype=None, keepdims=False):
        return _reduced(self._host.argmax, axis, out, keepdims)


def _reduced(function, axis, out, keepdims):
    compute = functools.partial(function, axis, keepdims=keepdims)
    if out is None:
        return _new(compute)
    _do(lambda: _write(out._host, compute))
    return out


# -- Operations --------------------------------------------------------------------------------------------


class Ufunc:
    """One element-wise function: ufunc(*arrays or numbers, out=None)."""

    def __init__(self, name):
        self.__name__, self.host = name, getattr(np, name)

    def __call__(self, *args, out=None):
        if len(args) != self.host.nin:
            raise TypeError(f"Wrong number of arguments for {self.__name__}")
        dtypes = tuple(a.dtype.char if isinstance(a, ndarray) else None for a in args)
        calls.add((self.__name__, len(args), frozenset(["out"] if out is not None else []), dtypes))
        hosts = [_host(a) for a in args]
        if not any(isinstance(a, ndarray) for a in args):
            raise Refused(f"{self.__name__} of plain numbers on the device")
        if out is not None and not isinstance(out, ndarray):
            raise TypeError("Output arguments type must be cupy.ndarray")
        if out is None:
            return _new(lambda: self.quietly(*hosts))
        for a in args:
            if isinstance(a, ndarray) and a is not out and np.may_share_memory(a._host, out._host):
                raise Refused(f"{self.__name__}: CuPy copies an argument first, because it overlaps out")
        _do(lambda: self.quietly(*hosts, out=out._host))
        return out

    def quietly(self, *args, **options):
        with np.errstate(all="ignore"):  # a GPU never warns
            return self.host(*args, **options)


UFUNCS = {
    name: Ufunc(name)
    for name in "absolute add copysign cos divide equal exp greater greater_equal hypot less less_equal log log1p "
    "logical_or maximum minimum multiply negative not_equal power sin sqrt square subtract tanh".split()
}


def _operator(name, reflected=False):
    ufunc = UFUNCS[name]
    if reflected:
        return lambda self, other: ufunc(other, self)
    return lambda self, other: ufunc(self, other)


for _symbol, _name in dict(add="add", sub="subtract", mul="multiply", truediv="divide", pow="power").items():
    setattr(ndarray, f"__{_symbol}__", _operator(_name))
    setattr(ndarray, f"__r{_symbol}__", _operator(_name, reflected=True))
    setattr(ndarray, f"__i{_symbol}__", lambda self, other, ufunc=UFUNCS[_name]: ufunc(self, other, out=self))
for _symbol, _name in dict(eq="equal", ne="not_equal", lt="less", le="less_equal", gt="greater").items():
    setattr(ndarray, f"__{_symbol}__", _operator(_name))
ndarray.__ge__ = _operator("greater_equal")
ndarray.__neg__ = lambda self: UFUNCS["negative"](self)


@_recorded
def matmul(a, b, out=None):
    if _captured is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    return _product(a, b, out)


def _product(a, b, out):
    if not (isinstance(a, ndarray) and isinstance(b, ndarray)):
        raise TypeError("matmul takes device arrays")
    if not (_contiguous(a._host) and _contiguous(b._host)):
        raise Refused("matmul: CuPy copies an argument first, because it is not contiguous")
    result = np.result_type(a.dtype, b.dtype)
    if out is not None:
        if not isinstance(out, ndarray):
            raise TypeError("`out` must be a tuple or `cupy.ndarray`")
        if out.dtype != result or not out._host.flags.c_contiguous:
            raise ValueError("Output array must be C-contiguous and of the result's dtype")
        if any(np.may_share_memory(out._host, x._host) for x in (a, b)):
            raise Refused("matmul: CuPy writes into another array first, because out overlaps an argument")
    # cuBLAS has no product of two vectors for CuPy's use: it multiplies them into a new array and sums that.
    scalar = (a.ndim == 1 or len(a) == 1) and (b.ndim == 1 or b.shape[1] == 1)
    counts["allocations"] += scalar
    if out is None:
        return _new(lambda: np.matmul(a._host, b._host), launches=1 + scalar)
    _do(lambda: np.matmul(a._host, b._host, out=out._host), 1 + scalar)
    return out


@_recorded
def take(a, indices, axis=None, out=None):
    if not isinstance(indices, ndarray):
        raise Refused("take: indices on the host are copied to the device")
    if not _contiguous(a._host):
        raise Refused("take from an array that is not contiguous")
    compute = functools.partial(np.take, a._host, indices._host, axis=axis)
    if out is None:
        return _new(compute)
    if out.dtype != a.dtype:
        raise TypeError("Output dtype mismatch")
    if out.shape != compute().shape:
        raise ValueError("Output shape mismatch")
    _do(lambda: _write(out._host, compute))
    return out


def _hosts(arrays):
    if not all(isinstance(a, ndarray) for a in arrays):
        raise TypeError("Only cupy arrays can be concatenated")
    return [a._host for a in arrays]


@_recorded
def stack(tup, axis=0):
    return _new(functools.partial(np.stack, _hosts(tup), axis))


@_recorded
def concatenate(tup, axis=0):
    return _new(functools.partial(np.concatenate, _hosts(tup), axis))


@_recorded
def sort(a, axis=-1):
    return _new(functools.partial(np.sort, _host(a), axis))


@_recorded
def argmin(a, axis=None):
    return _new(functools.partial(np.argmin, _host(a), axis))


@_recorded
def where(condition, x, y):
    return _new(functools.partial(np.where, _host(condition), _host(x), _host(y)))


class ElementwiseKernel:
    """Statements in C, ended by ";", that happen to be Python too; every name in them is one element."""

    def __init__(self, in_params, out_params, operation, name="kernel"):
        pairs = lambda params: [param.split() for param in params.split(",")]
        self.types = {name: kind for kind, name in pairs(in_params) + pairs(out_params)}
        names = lambda params: [name for _, name in pairs(params)]
        self.inputs, self.outputs, self.name = names(in_params), names(out_params), name
        self.statements = [statement.strip() for statement in operation.split(";")]

    def __call__(self, *args):
        if len(args) != len(self.inputs) + len(self.outputs):
            raise TypeError(f"Wrong number of arguments for {self.name}")
        values = dict(zip(self.inputs + self.outputs, map(_host, args), strict=True))
        types = {"int64": np.dtype("int64")}
        for name, a in values.items():
            if isinstance(a, np.ndarray) and types.setdefault(self.types[name], a.dtype) != a.dtype:
                raise TypeError(f"Type is mismatched. {name}")
        values = {
            name: a if isinstance(a, np.ndarray) else types[self.types[name]].type(a) for name, a in values.items()
        }
        _do(functools.partial(self.run, values))
        return args[-1] if len(self.outputs) == 1 else args[len(self.inputs) :]

    def run(self, values):
        after, dtype = dict(values), values[self.outputs[-1]].dtype
        functions = {"sqrt": np.sqrt, "exp": np.exp, "tanh": np.tanh, "max": np.maximum}
        functions["T"] = lambda value: np.asarray(value).astype(dtype)
        with np.errstate(all="ignore"):
            for statement in self.statements:
                exec(statement, functions, after)
        for name in self.outputs:
            values[name][...] = after[name]


# -- Creation and copies -----------------------------------------------------------------------------------


@_recorded
def empty(shape, dtype=float):
    host = np.empty(shape, dtype)
    host.fill(np.nan if host.dtype.kind in "fc" else 1)
    return _new(lambda: host, launches=0)


@_recorded
def zeros(shape, dtype=float):
    return _new(lambda: np.zeros(shape, dtype))


@_recorded
def ones(shape, dtype=float):
    return _new(lambda: np.ones(shape, dtype))


@_recorded
def arange(stop):
    return _new(lambda: np.arange(stop))


@_recorded
def full(shape, fill_value, dtype=None):
    return _new(lambda: np.full(shape, _host(fill_value), dtype))


@_recorded
def empty_like(a):
    return empty(a.shape, a.dtype)


@_recorded
def zeros_like(a):
    return zeros(a.shape, a.dtype)


@_recorded
def asarray(a):
    if isinstance(a, ndarray):
        return a
    if not isinstance(a, np.ndarray):
        raise Refused(f"asarray of {type(a)}")
    if _captured is not None:
        raise Refused("while a stream captures: uploads")
    counts["uploads"] += 1
    return _new(lambda: a, launches=0)


@_recorded
def asnumpy(a):
    if not isinstance(a, ndarray):
        raise Refused("asnumpy of something that is on the host already")
    return a.get()


# -- Random numbers ----------------------------------------------------------------------------------------


class XORWOW:
    """The stand-in draws from NumPy's SFC64, so that a run on it can be compared with one on NumPy."""

    @_recorded(name="random.XORWOW")
    def __init__(self, seed=None, *, size=-1):
        if not isinstance(seed, (int, np.random.SeedSequence)):
            raise Refused("a random generator needs a seed")
        if size < 256 or size % 256:
            raise Refused("without a size, a multiple of 256, the stream depends on the model of the GPU")
        self.host = np.random.SFC64(seed)


class Generator:
    def __init__(self, bit_generator):
        if not isinstance(bit_generator, XORWOW):
            raise TypeError("a bit generator of CuPy's is needed")
        self.host = np.random.Generator(bit_generator.host)

    def _draw(self, draw, size, dtype, out):
        dtype = np.dtype(dtype)
        if dtype.char not in "fd":
            raise TypeError(f"Unsupported dtype {dtype.name}")
        if out is None:
            return self._drawn(draw, size, dtype=dtype)
        if out.dtype != dtype:
            raise TypeError("Supplied output array has the wrong type.")
        if not _contiguous(out._host):
            raise ValueError("Supplied output array is not contiguous, writable or aligned.")
        if size is not None and (size if isinstance(size, tuple) else (size,)) != out.shape:
            raise ValueError("size must match out.shape when used together")
        _do(lambda: _write(out._host, lambda: draw(out.shape, dtype=dtype)))
        return out

    def _drawn(self, draw, *args, launches=1, **options):
        if _captured is not None:
            raise Refused("the stand-in cannot write down a draw into a new array")
        return _new(lambda: draw(*args, **options), launches)

    @_recorded(name="random.Generator.standard_normal")
    def standard_normal(self, size=None, dtype=np.float64, out=None):
        return self._draw(self.host.standard_normal, size, dtype, out)

    @_recorded(name="random.Generator.random")
    def random(self, size=None, dtype=np.float64, out=None):
        if out is not None:
            if size is None:
                raise Refused("random(out=) without a size: CuPy draws one number and fills out with it")
            counts["allocations"] += 1  # it draws into a new array and copies that
            counts["launches"] += 1
        return self._draw(self.host.random, size, dtype, out)

    @_recorded(name="random.Generator.integers")
    def integers(self, low, high=None, size=None):
        return self._drawn(self.host.integers, low, high, size, launches=2)


class Device:
    """One of two GPUs; arrays do not know on which they are."""

    current = 0

    @_recorded(name="cuda.Device.__init__")
    def __init__(self, device=None):
        self.id = device

    @_recorded(name="cuda.Device.use")
    def use(self):
        Device.current = self.id


# -- Streams and graphs ------------------------------------------------------------------------------------


class Stream:
    """Everything is done at once, on whatever stream, unless one captures: then what the current one is matters."""

    null = None  # the default one, below
    current = []
    after = None  # while it captures: the numbers of what must be done before what comes next

    @_recorded(name="cuda.Stream.__init__")
    def __init__(self, *, non_blocking=False):
        self.ptr = id(self)

    def __enter__(self):
        self.current.append(self)
        return self

    def __exit__(self, *exception):
        self.current.pop()

    def synchronize(self):
        _wait("waits")

    @_recorded(name="cuda.Stream.record")
    def record(self):
        return SimpleNamespace(after=self.after, captured=_captured, stream=self)

    @_recorded(name="cuda.Stream.wait_event")
    def wait_event(self, event):
        """A stream that waits for one that captures captures too."""
        if _captured is None:
            order.append((self, event.stream))
            return
        if event.captured is not _captured or event.after is None:
            raise RuntimeError("cudaErrorStreamCaptureIsolation")
        self.after = (self.after or set()) | event.after
        _capturing.append(self)

    @_recorded(name="cuda.Stream.begin_capture")
    def begin_capture(self):
        global _captured
        if self is Stream.null:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if get_current_stream() is not self:
            raise Refused("what is done on another stream would not be captured")
        _captured, self.after = [], set()
        _capturing[:] = [self]

    @_recorded(name="cuda.Stream.end_capture")
    def end_capture(self):
        global _captured
        captured, _captured = _captured, None
        joined, left = set(), list(self.after)
        while left:
            if (number := left.pop()) not in joined:
                joined.add(number)
                left += captured[number][1]
        for stream in _capturing:
            stream.after = None
        if len(joined) < len(captured):
            raise RuntimeError("cudaErrorStreamCaptureUnjoined")
        return Graph(captured)


_capturing = []
Stream.null = Stream()


def get_current_stream():
    return Stream.current[-1] if Stream.current else Stream.null


class Graph:
    """Each launch takes another of the orders that are possible: one stream goes on as far as it can, then another."""

    def __init__(self, captured):
        self.captured, self.rng = captured, np.random.default_rng(0)

    def launch(self):
        """At a few random moments the stream in front goes to the end of the queue (Burckhardt et al. 2010)."""
        counts["launches"] += 1
        order.append(("launch", get_current_stream()))
        queue = list({id(stream): stream for _, _, stream in self.captured}.values())
        self.rng.shuffle(queue)
        left, moments = set(range(len(self.captured))), set(self.rng.integers(len(self.captured), size=3))
        while left:
            ready = [i for i in left if not self.captured[i][1] & left]
            number = min(ready, key=lambda i: queue.index(self.captured[i][2]))
            run, _, stream = self.captured[number]
            if len(left) in moments:
                queue.remove(stream)
                queue.append(stream)
            run()
            left.remove(number)

    def longest_chain(self):
        """How many launches there are that must wait for each other."""
        length = []
        for _, after, _ in self.captured:
            length.append(1 + max([length[i] for i in after], default=0))
        return max(length)


class CuBLAS:
    """In place of graph.CuBLAS, which calls the library itself."""

    def __init__(self, cupy, stream):
        self.stream = stream

    def matmul(self, a, b, out):
        if get_current_stream() is not self.stream:
            raise Refused("a product on another stream than the handle's")
        return _product(a, b, out)


# -- The module --------------------------------------------------------------------------------------------

FUNCTIONS = (
    matmul, take, stack, concatenate, sort, argmin, where, arange, empty, zeros, ones, full, empty_like, zeros_like,
    asarray, asnumpy,
)  # fmt: skip


def module(available=True):
    """What ``import cupy`` shall give. ``available``: whether there is a GPU."""
    cupy = ModuleType("cupy")
    cupy.__version__ = "14-stand-in"
    cupy.ndarray, cupy.float32, cupy.float64, cupy.abs = ndarray, np.float32, np.float64, UFUNCS["absolute"]
    vars(cupy).update(UFUNCS)
    vars(cupy).update({function.__name__: function for function in FUNCTIONS})
    cupy.ElementwiseKernel = ElementwiseKernel
    cupy.random = SimpleNamespace(Generator=Generator, XORWOW=XORWOW)
    cupy.cuda = SimpleNamespace(
        is_available=lambda: available,
        Device=Device,
        runtime=SimpleNamespace(
            getDeviceProperties=lambda device: {"name": b"strict stand-in" + b", the second" * device},
            getDevice=lambda: Device.current,
            getDeviceCount=lambda: 2,
        ),
        get_current_stream=get_current_stream,
        Stream=Stream,
        MemoryPool=lambda: SimpleNamespace(malloc=None),
        using_allocator=lambda allocator: contextlib.nullcontext(),
    )
    return cupy


def install(monkeypatch):
    """Make ``import cupy`` find the stand-in, and graphs its products."""
    monkeypatch.setitem(sys.modules, "cupy", module())
    monkeypatch.setattr(graph, "CuBLAS", CuBLAS)
    monkeypatch.setattr(sys.modules[__name__], "_captured", None)
    monkeypatch.setattr(Device, "current", 0)


def names():
    """The dotted name of everything that the stand-in offers."""
    cupy = module()
    top = [name for name in vars(cupy) if not name.startswith("__") and name not in ("random", "cuda")]
    methods = [f"ndarray.{name}" for name in vars(ndarray) if not name.startswith("_")]
    operators = [f"ndarray.{name}" for name in vars(ndarray) if name.startswith("__") and callable(vars(ndarray)[name])]
    return [
        *top, *methods, *operators, "random.XORWOW", "random.Generator.standard_normal", "random.Generator.random",
        "random.Generator.integers", "cuda.is_available", "cuda.runtime.getDeviceProperties", "cuda.get_current_stream",
        "cuda.runtime.getDevice", "cuda.runtime.getDeviceCount", "cuda.Device.use",
        "cuda.Stream", "cuda.Stream.synchronize", "cuda.Stream.record", "cuda.Stream.wait_event", "cuda.Graph.launch",
        "cuda.Stream.begin_capture", "cuda.Stream.end_capture", "cuda.MemoryPool.malloc", "cuda.using_allocator",
    ]  # fmt: skip
