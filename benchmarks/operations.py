"""Where the time of a training step goes, operation by operation.

Every array of a built GAN is replaced by a view of the same memory whose class times what NumPy does with it:
functions, in-place operators and assignments alike. The library's code is not changed and runs as it is, only with
some microseconds of bookkeeping between the operations, outside the clock.
"""

import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from minigan.backend import Axpby


@dataclass(frozen=True)
class Operation:
    """One kind of operation of a step, its key: who asked for it, which function, on which shapes."""

    caller: str  # the method of the library
    function: str
    shapes: str
    bytes: int  # read plus written, each operand once, as if no cache held it
    flops: int  # of a matrix product; 0 for anything else


class Ledger:
    """Seconds of every operation, step by step."""

    def __init__(self):
        self.times = defaultdict(list)  # Operation -> seconds of every call

    def call(self, function, name, arguments, options, written, caller):
        """function(*arguments, **options), timed. It writes to the array ``written``; None: to what it returns."""
        arguments = [plain(a) for a in arguments]
        options = {key: plain(value) for key, value in options.items()}
        start = time.perf_counter()
        result = function(*arguments, **options)
        seconds = time.perf_counter() - start
        written = plain(result if written is None else written)
        read = [a for a in arguments if isinstance(a, np.ndarray) and not (name == "assign" and a is written)]
        shapes, flops = shape(written), 0
        size = sum(a.nbytes for a in read) + getattr(written, "nbytes", 0)
        if name == "matmul":
            a, b = read
            shapes, flops = f"{shape(a)} @ {shape(b)}", 2 * a.size * (b.size // len(b))
        elif name == "take":  # it reads the rows it takes, not the whole array
            size = 2 * written.nbytes + read[1].nbytes
        self.times[Operation(caller, name, shapes, size, flops)].append(seconds)
        return result


def shape(a):
    return "×".join(map(str, np.shape(a)))


class Timed(np.ndarray):
    """A view of an array whose every use is entered in ``ledger``."""

    ledger = None

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        if out is not None:
            options["out"] = tuple(plain(a) for a in out)
        function = getattr(ufunc, method)
        result = self.ledger.call(function, name, inputs, options, out and out[0], caller())
        return result if out is None else out[0]

    def __array_function__(self, function, types, arguments, options):
        result = self.ledger.call(function, function.__name__, arguments, options, options.get("out"), caller())
        return result if options.get("out") is None else options["out"]

    def __setitem__(self, key, value):
        target, value = plain(self), plain(value)
        place = target[key]
        if isinstance(value, np.ndarray) and isinstance(place, np.ndarray) and value.ctypes.data == place.ctypes.data:
            return  # the last part of a[i:j] += b, where NumPy, too, has nothing left to do
        if isinstance(place, np.ndarray):
            self.ledger.call(np.copyto, "assign", [place, value], {}, place, caller())
        else:
            target[key] = value


class TimedGenerator:
    """A random generator whose draws are entered in ``ledger``."""

    def __init__(self, generator):
        self.generator = generator

    def __getattr__(self, name):
        draw = getattr(self.generator, name)
        who = caller()

        def timed(*arguments, **options):
            out = options.get("out")
            return Timed.ledger.call(draw, name, arguments, options, out, who)

        return timed


def plain(a):
    return a.view(np.ndarray) if isinstance(a, Timed) else a


def caller():
    """The method, two frames up, that asked for the operation."""
    return sys._getframe(2).f_code.co_qualname


def instrument(value, seen=None):
    """``value`` with every array and random generator in it, at any depth, replaced by one that is timed."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return seen[id(value)][0]
    if isinstance(value, np.ndarray):
        result = value.view(Timed)
    elif isinstance(value, np.random.Generator):
        result = TimedGenerator(value)
    elif isinstance(value, Axpby):
        result = lambda a, x, b, y: Timed.ledger.call(value, "axpby", [a, x, b, y], {}, y, caller())
    elif isinstance(value, list | tuple):
        result = type(value)([instrument(v, seen) for v in value])
    elif isinstance(value, dict):
        result = {k: instrument(v, seen) for k, v in value.items()}
    else:
        result = value
    seen[id(value)] = result, value  # value is kept, so that its id stays its own
    if isinstance(value, SimpleNamespace) or type(value).__module__.startswith("minigan."):
        for k, v in list(vars(value).items()):
            setattr(value, k, instrument(v, seen))
    return result


def profile(workload, seconds=3.0):
    """A dict: µs of a plain step, and for every operation its calls and median µs per step."""
    gan = workload.gan()
    gan.train_step()
    before = _step_time(gan, seconds / 4)
    timed = workload.gan()
    instrument(timed)
    Timed.ledger = Ledger()
    for _ in range(3):
        timed.train_step()
    Timed.ledger.times.clear()
    steps, end = 0, time.perf_counter() + seconds / 2
    while steps < 5 or time.perf_counter() < end:
        timed.train_step()
        steps += 1
    after = _step_time(gan, seconds / 4)
    rows = []
    for operation, times in Timed.ledger.times.items():
        calls = len(times) / steps
        rows.append({**vars(operation), "calls": calls, "us": float(np.median(times)) * calls * 1e6})
    return {"step_us": min(before, after), "steps": steps, "operations": sorted(rows, key=lambda row: -row["us"])}


def _step_time(gan, seconds):
    """µs of one step without any instrument, the median."""
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        gan.train_step()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e6


def table(result, least=0.004):
    """``profile``'s result as lines of text; operations below the share ``least`` are only in the sums."""
    step, operations = result["step_us"], result["operations"]
    lines = [f"{'µs/step':>9} {'share':>6} {'calls':>6} {'kB/call':>8} {'GB/s':>6} {'GFLOP/s':>8}  operation"]
    for row in operations:
        if row["us"] >= least * step:
            one = row["us"] / row["calls"] * 1e-6  # seconds
            gflops = f"{row['flops'] / one / 1e9:.0f}" if row["flops"] else ""
            lines.append(
                f"{row['us']:9.1f} {row['us'] / step:6.1%} {row['calls']:6.3g} {row['bytes'] / 1e3:8.0f} "
                f"{row['bytes'] / one / 1e9:6.1f} {gflops:>8}  {row['caller']}: {row['function']} {row['shapes']}"
            )
    sums = defaultdict(float)
    for row in operations:
        sums["matrix products" if row["flops"] else row["caller"].split(".")[0]] += row["us"]
    lines += ["", f"{'µs/step':>9} {'share':>6}  in sum"]
    for part, us in sorted(sums.items(), key=lambda item: -item[1]):
        lines.append(f"{us:9.1f} {us / step:6.1%}  {part}")
    rest = step - sum(sums.values())
    lines.append(f"{rest:9.1f} {rest / step:6.1%}  what is left: Python between the operations")
    lines.append(f"{step:9.1f} {1:6.1%}  a step, timed without the instrument")
    return lines
