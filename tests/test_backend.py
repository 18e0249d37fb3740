"""NumPy or CuPy: which one is chosen, and that everything runs on CuPy's arrays as it does on NumPy's.

Without a GPU the second half runs on a strict stand-in for CuPy (see strict_cupy.py), with one also on the GPU:

    python -m pytest -m gpu
"""

import ctypes
import inspect
import io
import itertools
import re
import sys
import tokenize
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import strict_cupy

from benchmarks import gpu as gpu_benchmark
from benchmarks.gpu import KernelByKernel
from benchmarks.peers import WORKLOADS, disagreement
from minigan import GAN, MiniganError, checkpoint, gradcheck, graph, load
from minigan.backend import Backend
from minigan.batches import Batches
from minigan.data import from_array
from minigan.layers import Linear, Maxout, Sigmoid
from minigan.parallel import Alone, Ranks

ROOT = Path(__file__).parent.parent


# -- The choice --------------------------------------------------------------------------------------------


def test_threads_are_set_unless_the_environment_says_how_many(monkeypatch):
    given, names = [], ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    library = SimpleNamespace(scipy_openblas_set_num_threads64_=given.append)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: library)
    for name in names:
        monkeypatch.delenv(name, raising=False)
    Backend("numpy").set_threads(3)
    for name in names:
        with monkeypatch.context() as patch:
            patch.setenv(name, "2")
            Backend("numpy").set_threads(4)
    del library.scipy_openblas_set_num_threads64_  # another BLAS
    Backend("numpy").set_threads(5)
    assert given == [3]


def install(monkeypatch, tmp_path, how):
    """Make ``import cupy`` find nothing, a package that fails to be imported, or a stand-in that has no GPU,
    cannot compute, or works."""
    stand_in = strict_cupy.module(available=how != "no driver")
    if how == "not installed":
        stand_in = None
    if how == "no headers":
        stand_in.matmul = lambda a, b: exec("raise RuntimeError('Failed to find CUDA headers.\\nPlease')")
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    if how == "broken":
        (tmp_path / "cupy.py").write_text("raise ImportError('libcudart is missing.\\n\\n' + 'Details. ' * 99)\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "cupy")


REASONS = {
    "not installed": "CuPy is not installed",
    "no driver": "CuPy finds no GPU or no driver",
    "no headers": "Failed to find CUDA headers. Please",
    "broken": "ImportError: libcudart is missing. Details.",
}


@pytest.mark.parametrize("how", REASONS)
def test_without_a_gpu_auto_is_numpy_and_says_why(monkeypatch, tmp_path, how):
    install(monkeypatch, tmp_path, how)
    backend = Backend("auto")
    assert backend.name == "numpy" and backend.xp is np
    assert backend.device.startswith("CPU (no GPU: ") and REASONS[how] in backend.device


@pytest.mark.parametrize("how", REASONS)
def test_without_a_gpu_cupy_is_refused_in_one_sentence(monkeypatch, tmp_path, how):
    install(monkeypatch, tmp_path, how)
    with pytest.raises(MiniganError) as error:
        Backend("cupy")
    message = str(error.value)
    assert REASONS[how] in message and "use --backend numpy" in message
    assert "\n" not in message and len(message) < 400


def test_a_gpu_that_works_is_used(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, "works")
    for name in ("auto", "cupy"):
        backend = Backend(name)
        assert (backend.name, backend.device) == ("cupy", "GPU (strict stand-in)")
        assert backend.xp is sys.modules["cupy"]


def test_the_processes_of_a_machine_share_its_gpus(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, "works")
    monkeypatch.setattr(strict_cupy.Device, "current", 1)
    assert Backend().device == "GPU (strict stand-in, the second)"  # one alone: the current one, as it is
    devices = [Backend(process=process).device for process in range(3)]
    assert devices == [f"GPU (strict stand-in{which})" for which in ("", ", the second", "")]
    told = []
    gan = GAN(backend="cupy", ranks=SimpleNamespace(local_rank=1, use=told.append))
    assert gan.backend_used.device == devices[1] and told == [gan.backend_used]


def test_numpy_does_not_even_import_cupy(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, "broken")
    backend = Backend("numpy")
    assert (backend.name, backend.device) == ("numpy", "CPU") and backend.xp is np
    backend.synchronize()
    assert "cupy" not in sys.modules


def test_an_unknown_backend_is_refused():
    with pytest.raises(MiniganError, match="backend 'torch' does not exist; choose one of auto, numpy, cupy"):
        Backend("torch")


def test_on_numpy_nothing_is_copied():
    backend, x = Backend("numpy"), np.ones(3)
    assert backend.to_device(x) is x and backend.to_host(x) is x


def test_only_one_file_names_cupy():
    for path in [*ROOT.glob("minigan/*.py"), ROOT / "train.py"]:
        words = [
            token.string.strip("\"'")
            for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
            if token.type in (tokenize.NAME, tokenize.STRING)
        ]
        assert ("cupy" in words) == (path.name == "backend.py"), path


# -- The same training on both -----------------------------------------------------------------------------


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """A Backend on CuPy: the stand-in, or a GPU if there is one that works."""
    if request.param == "stand-in":
        strict_cupy.install(monkeypatch)
    return working_gpu()


def working_gpu():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Backend("cupy")
        except MiniganError as error:
            pytest.skip(str(error))


class FromHost:
    """A generator whose numbers are drawn on the host, so that both backends get the same ones."""

    def __init__(self, backend, seed):
        self.backend, self.rng = backend, np.random.default_rng(seed)

    def standard_normal(self, size=None, dtype=np.float64, out=None):
        return self._give(self.rng.standard_normal(size if out is None else out.shape, dtype), out)

    def random(self, size=None, dtype=np.float64, out=None):
        return self._give(self.rng.random(size if out is None else out.shape, dtype), out)

    def integers(self, low, high=None, size=None):
        return self._give(self.rng.integers(low, high, size), None)

    def _give(self, values, out):
        values = self.backend.to_device(values)
        if out is None:
            return values
        out[...] = values
        return out


def table():
    return from_array(np.random.default_rng(0).standard_normal((40, 3)) * [1, 5, 0.1] + 7)


def images():
    return from_array(np.random.default_rng(0).random((40, 3, 3)))


EVERY_LAYER = dict(
    generator="dropout 0.9, 6, relu, maxout 5x3, 5, sigmoid, 5, tanh",
    discriminator="dropout 0.8, fourier 2, maxout 6x2, 5, leaky_relu 0.2, 5, tanh, 5, sigmoid, dropout 0.5, 4, relu",
)
PLAIN = dict(generator="8, relu", discriminator="8, leaky_relu 0.2", r1=0.0)


def labelled():
    data = table()
    return from_array(data.X, np.arange(len(data.X)) % 3)


CASES = {
    "plain, ring": (PLAIN, "ring"),
    "plain, table, k = 3": ({**PLAIN, "k": 3}, table),
    "R1 and R2 through every layer, table": ({**EVERY_LAYER, "r1": 0.2, "r2": 0.1}, table),
    "the same, simultaneous": ({**EVERY_LAYER, "r1": 0.2, "r2": 0.1, "update": "simultaneous"}, table),
    "R1 through every layer, simultaneous, with labels": (
        {**EVERY_LAYER, "r1": 0.2, "update": "simultaneous", "conditional": True},
        labelled,
    ),
    "R2, simultaneous": ({**EVERY_LAYER, "r1": 0.0, "r2": 0.1, "update": "simultaneous"}, table),
    "with labels through every layer, k = 2": ({**EVERY_LAYER, "r1": 0.2, "k": 2, "conditional": True}, labelled),
    "Adam, uniform z, minimax, images": (
        {**EVERY_LAYER, "optimizer": "adam", "lr": 1e-3, "prior": "uniform", "loss": "minimax", "output_bias": "data"},
        images,
    ),
    "spherical z, float64, schedules, moons": (
        {**EVERY_LAYER, "prior": "spherical", "dtype": "float64", "momentum_end": 0.7, "r1_end": 0.0},
        "moons",
    ),
    "z of signs, ring": ({**PLAIN, "prior": "signs"}, "ring"),
    "with labels, R1, ring": ({**PLAIN, "conditional": True, "r1": 0.1}, "ring"),
    "with labels, moons": ({**PLAIN, "conditional": True}, "moons"),
    "with labels, table": ({**PLAIN, "conditional": True}, labelled),
    "clusters, R1, fourier, ring": ({**PLAIN, "clusters": 5, "r1": 0.1, "discriminator": "fourier 2, 6, relu"}, "ring"),
    "clusters, table": ({**PLAIN, "clusters": 3}, labelled),
    "no hidden layers, no average, swiss roll": (
        {"generator": "", "discriminator": "", "average": 0.0, "r1": 0.1},
        "swiss-roll",
    ),
}


def build(backend, case, kind=GAN, **changed):
    options, data = CASES[case]
    options = {"batch_size": 8, "latent_dim": 4, "lr": 0.02, "report_every": 5, "steps": 24, **options, **changed}
    return kind(**options, backend=backend).build(load(data) if isinstance(data, str) else data())


def same_draws(gan):
    for seed, purpose in enumerate(("stream", "noise", "dropout")):
        setattr(gan.rng, purpose, FromHost(gan.backend_used, seed))
    return gan


def same_data(gan):
    """A stream's rows from the host too: a GPU's sine, in float32, may differ from the host's in the last digit."""
    draw, rng = gan.data.draw, np.random.default_rng(9)
    if draw is not None:
        from_host = lambda n, there, xp: gan.backend_used.to_device(draw(n, rng, np))
        gan.batches.data = replace(gan.batches.data, draw=from_host)


def host(gan):
    """Everything that training changes, on the host, as float64."""
    arrays = {
        "G": gan.G.theta, "D": gan.D.theta, "average": gan.averaged.flat, "grad_G": gan.grad_G.flat,
        "grad_D": gan.grad_D.flat, **gan.optimizer_D.state, "x": gan.tape_D.x, "logits": gan.tape_D.out,
    }  # fmt: skip
    with np.errstate(invalid="ignore"):  # memory that no pass has written to yet
        return {name: gan.backend_used.to_host(array).astype(float) for name, array in arrays.items()}


def assert_equal(one, other, tolerance):
    one, other = host(one), host(other)
    for name in one:
        assert one[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance * abs(other[name]).max()), name


@pytest.mark.parametrize("case", CASES)
def test_a_step_from_equal_weights_and_draws_is_equal(device, case):
    gans = [same_draws(build(backend, case, KernelByKernel, seed=3)) for backend in ("cupy", "numpy")]
    assert np.array_equal(*[gan.backend_used.to_host(gan.D.theta) for gan in gans])  # drawn on the host
    for gan in gans:
        gan.train_step()
    assert_equal(*gans, 1e-10 if gans[0].dtype == "float64" else 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_training_and_everything_a_person_sees_is_equal(device, case):
    reports, samples, probabilities = [], [], []
    for backend in ("cupy", "numpy"):
        gan = same_draws(build(backend, case, KernelByKernel, seed=1, dtype="float64"))
        same_data(gan)
        while gan.step < gan.steps:
            gan.train_step()
            if gan.step % gan.report_every == 0 or gan.step == gan.steps:
                gan.history.append(gan.report())
        reports += [[v for report in gan.history for v in report.values()]]
        samples += [gan.sample(7, seed=5), gan.sample(3), gan.sample(7, seed=5, average=False)]
        probabilities += [gan.probability(gan.data.real_samples(9, seed=1))]
    assert all(isinstance(array, np.ndarray) for array in samples + probabilities)
    assert all(type(v) in (int, float) for v in reports[0])
    assert reports[0] == pytest.approx(reports[1], rel=1e-8, abs=1e-10)
    assert probabilities[0] == pytest.approx(probabilities[1], rel=1e-8)
    for ours, theirs in zip(samples[:3], samples[3:], strict=True):
        assert np.allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_of_equal_pieces_the_first_wins(device):
    layer = Maxout(3, 2, 4, device.xp)
    c, x = layer.buffers(5, "float64"), device.xp.ones((5, 3), "float64")
    W, b = device.xp.zeros((3, 8), "float64"), device.to_device(np.array([0, 0, 1, 0, 1, 2, 0, 2.0]))
    out, wins = device.to_host(layer.forward(x, (W, b), c)), device.to_host(c.wins)
    assert (out == [1, 2]).all()
    assert (wins == np.array([[0, 0], [1, 0], [0, 1], [0, 0]])).all()


@pytest.mark.parametrize("n", [1, 3, 1026])
def test_maxout_of_fewer_rows_than_pieces(device, n):
    nets = dict(generator="maxout 6x5", discriminator="maxout 6x5")
    gans = [GAN(**nets, backend=b).build(load("ring")) for b in ("cupy", "numpy")]
    x = gans[0].data.real_samples(n, seed=0)
    for ours, theirs in ([gan.probability(x) for gan in gans], [gan.sample(n, seed=1) for gan in gans]):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_every_gradient_is_right_on_the_device(device):
    checks = list(gradcheck.run(count=3, seed=2, backend=device))
    assert len(checks) > 20
    assert not [f"{c.name}, {c.method}: {c.error:.1e}" for c in checks if not c.passed]


def test_random_numbers_are_what_they_should_be(device):
    xp, rng = device.xp, device.generator(np.random.SeedSequence(7))
    for out in (xp.empty((400, 50), "float32"), xp.empty((400, 50), "float64")):
        rng.random(dtype=out.dtype, out=out)
        uniform = device.to_host(out)
        assert 0 <= uniform.min() and uniform.max() <= 1 and len(np.unique(uniform)) > 19_000
        assert uniform.mean() == pytest.approx(1 / 2, abs=0.01) and uniform.var() == pytest.approx(1 / 12, abs=0.002)
        rng.standard_normal(dtype=out.dtype, out=out)
        normal = device.to_host(out)
        assert normal.mean() == pytest.approx(0, abs=0.03) and normal.var() == pytest.approx(1, abs=0.05)
    which = np.bincount(device.to_host(rng.integers(0, 5, size=10_000)))
    assert len(which) == 5 and which.min() > 1800
    streams = [device.to_host(device.generator(np.random.SeedSequence(s)).random(9)) for s in (1, 1, 2)]
    assert np.array_equal(streams[0], streams[1]) and not np.array_equal(streams[0], streams[2])


@pytest.mark.parametrize("there, back", [("cupy", "numpy"), ("numpy", "cupy")])
@pytest.mark.parametrize("data", ["table", "ring"])
def test_a_checkpoint_goes_from_one_backend_to_the_other(device, tmp_path, there, back, data):
    data = table() if data == "table" else load("ring")
    options = {**EVERY_LAYER, "batch_size": 8, "r1": 0.1, "lr": 0.02, "optimizer": "adam", "report_every": 9}
    gan = GAN(**options, backend=there).build(data)
    for _ in range(13):
        gan.train_step()
    checkpoint.save(tmp_path, gan)
    loaded, _, note = checkpoint.load(tmp_path, data, backend=back)
    assert note == "" and (loaded.step, loaded.backend_used.name) == (13, back)
    of = [gan, loaded]
    for name, array in host(gan).items():
        assert name.startswith(("grad", "x", "logits")) or np.array_equal(array, host(loaded)[name]), name
    assert gan.optimizer_G.powers == loaded.optimizer_G.powers
    assert gan.sample(5, seed=2) == pytest.approx(loaded.sample(5, seed=2), rel=1e-4, abs=1e-4)
    rows = []
    for g in of:  # the same rows come next
        out = g.xp.empty((8, data.features), "float32")
        g.batches.next(out)
        rows.append(g.backend_used.to_host(out))
    assert np.array_equal(*rows)
    for _ in range(7):
        loaded.train_step()
    assert loaded.report()["step"] == 20


def test_a_checkpoint_goes_on_on_its_own_backend(device, tmp_path):
    gan = GAN(**PLAIN, batch_size=8, backend="cupy").build(table())
    for _ in range(5):
        gan.train_step()
    checkpoint.save(tmp_path, gan)
    loaded = checkpoint.load(tmp_path, table())[0]
    assert loaded.backend_used.name == "cupy"
    draws = [rng.standard_normal(9) for rng in (loaded.rng.stream, loaded.rng.noise, loaded.rng.dropout)]
    assert len({device.to_host(numbers).tobytes() for numbers in draws}) == 3  # streams of their own
    before = device.to_host(loaded.G.theta).copy()
    loaded.train_step()
    assert not np.array_equal(before, device.to_host(loaded.G.theta))


@pytest.mark.parametrize("name", gpu_benchmark.NAMES)
def test_the_benchmark_times_the_same_training(device, name):
    workload = WORKLOADS[name].small()
    ours = gpu_benchmark.MiniganOn(workload, "cupy")
    assert disagreement(ours, workload) < 1e-4
    assert ours.run(2) == 2 and ours.gan.step == 5


def test_processes_share_a_step_through_the_host(device):
    thetas = []
    for backend in (Backend("numpy"), device):
        comm = SimpleNamespace(
            Get_rank=lambda: 1, Get_size=lambda: 2, Allreduce=lambda op, a, *_: np.add(a, a, out=a),
            Split_type=lambda kind: SimpleNamespace(Get_rank=lambda: 0, Get_size=lambda: 1, Free=lambda: None),
        )  # fmt: skip
        ranks = Ranks(SimpleNamespace(IN_PLACE=None, MAX=None, COMM_TYPE_SHARED=None), comm)
        gan = same_draws(
            GAN(ranks=ranks, **EVERY_LAYER, batch_size=8, prior="uniform", backend=backend.name).build(table())
        )
        for _ in range(3):
            gan.train_step()
        thetas.append(backend.to_host(gan.D.theta))
        assert gan.report()["step"] == 3
    assert np.allclose(*thetas, rtol=1e-4, atol=1e-5)


def test_a_short_training_run_learns(device):
    data = from_array(np.random.default_rng(0).normal([5.0, -300.0], [0.5, 40.0], (2000, 2)))
    nets = dict(generator="32, relu", discriminator="32, leaky_relu 0.2", latent_dim=4)
    gan = GAN(**nets, steps=1500, lr=0.1, lr_end=0.05, r1=1.0, backend="cupy")
    x = gan.fit(data).sample(2000, seed=0)
    assert np.allclose(x.mean(0), [5, -300], atol=[0.1, 8])
    assert np.allclose(x.std(0), [0.5, 40], rtol=0.2)


# -- What a step asks of the device ------------------------------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch):
    strict_cupy.install(monkeypatch)
    return strict_cupy


@pytest.mark.parametrize("case", CASES)
def test_between_reports_nothing_waits_and_nothing_is_copied_but_the_order_of_the_epoch(stand_in, monkeypatch, case):
    # Of a stream: a mixture's centres go to the device with each block, and once more if it is labelled; the centres
    # of clusters, and whose they are, with shift and scale.
    monkeypatch.setattr(Batches, "BLOCK", 3)
    gan, epochs = build("cupy", case, average=0.9), 0
    for _ in range(24):
        order = gan.batches.order
        with stand_in.no_sync() as done:
            gan.train_step()
        begins = gan.batches.order is not order
        assert done["uploads"] <= begins * (1 + gan.conditional + 4 * bool(gan.clusters))
        epochs += begins
    assert epochs >= 4
    assert np.isfinite(list(gan.report().values())).all()  # memory of ``empty`` holds NaN until it is written


# What one training step of a standard workload asks of the GPU, with every report, average and new epoch left out.
# (launches, allocations). A launch costs some 5 to 10 µs of the host's time, and on a GPU these steps do little else:
# the numbers may only fall.
RING = dict(generator="128, relu, 128, relu", discriminator="128, leaky_relu 0.2, 128, leaky_relu 0.2")
PAPER = dict(
    generator="1200, relu, 1200, relu", prior="uniform", update="simultaneous",
    discriminator="dropout 0.8, maxout 240x5, dropout 0.5, maxout 240x5, dropout 0.5",
)  # fmt: skip
LAUNCHES = {
    "ring": (RING, (69, 1)),
    "ring, R1": ({**RING, "r1": 0.1}, (86, 1)),
    "ring, Adam": ({**RING, "optimizer": "adam"}, (69, 1)),
    "the paper's": (PAPER, (72, 5)),
    "smooth": (dict(generator="4, tanh", discriminator="4, sigmoid, 4, tanh"), (59, 1)),
}


def launches_of_a_step(options):
    """The most frequent counts of 9 steps."""
    gan = KernelByKernel(**{"r1": 0.0, "batch_size": 8, **options}, backend="cupy").build(table())
    gan.train_step()
    steps = []
    for _ in range(9):
        with strict_cupy.no_sync() as done:
            gan.train_step()
        steps.append((done["launches"], done["allocations"]))
    return Counter(steps).most_common(1)[0][0]


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_step_launches_no_more_kernels_than_it_did(stand_in, name):
    options, most = LAUNCHES[name]
    done = launches_of_a_step(options)
    assert all(n <= limit for n, limit in zip(done, most, strict=True)), f"(launches, allocations) are {done}"


# -- Steps that are replayed as graphs ---------------------------------------------------------------------

# Everything that can change from step to step changes.
CHANGING = dict(steps=60, lr_end=0.5, lr_D=0.03, lr_decay=1.001, momentum_end=0.9, r1_end=0.3, average=0.9)


class InTurn:
    """A generator whose draws begin again after so many: in an iteration each has other numbers, the same in all."""

    def __init__(self, backend, draws):
        self.backend, self.draws, self.drawn = backend, draws, 0

    def standard_normal(self, dtype, out):
        values = np.random.default_rng(self.drawn % self.draws).standard_normal(out.shape[-2:], dtype)
        self.drawn += 1
        out[...] = self.backend.to_device(values)


@pytest.mark.parametrize("k", [1, 3])
def test_every_draw_of_a_graph_is_its_own(device, k):
    graphed, plain = (
        always_the_same(build("cupy", "plain, table, k = 3", kind, dtype="float64", k=k))
        for kind in (GAN, KernelByKernel)
    )
    for gan in (graphed, plain):
        gan.rng.noise = InTurn(device, k + 1)
        for _ in range(5):
            gan.train_step()
    assert recorded(graphed)
    assert_equal(graphed, plain, 1e-7)


def test_a_graph_has_its_turn_on_the_users_stream(stand_in):
    gan, mine = build("cupy", "R1 through every layer, simultaneous, with labels"), strict_cupy.Stream()
    with mine:
        del strict_cupy.order[:]
        gan.train_step()
        lanes = [(lane.stream, lane.dW, lane.db) for lane in gan._do.lanes]
        first = strict_cupy.order.copy()
        assert first[0] == (lanes[0][0], mine)  # what the first iteration does comes after what is asked before it,
        assert {(mine, stream) for lane in lanes for stream in lane} <= set(first[-6:])  # and before what comes after
        gan.train_step()
        gan.train_step()
    assert strict_cupy.order[-1] == ("launch", mine)


def test_an_error_in_the_first_iteration_leaves_nothing_behind(stand_in):
    gan = build("cupy", "plain, table, k = 3")
    gan._descend_D = lambda: 1 / 0
    del strict_cupy.order[:]
    with pytest.raises(ZeroDivisionError):
        gan.train_step()
    current = strict_cupy.Stream.null
    streams = [stream for lane in gan._do.lanes for stream in (lane.stream, lane.dW, lane.db)]
    assert strict_cupy.order[-6:] == [(current, stream) for stream in streams]
    assert "next" not in vars(gan.batches) and "matmul" in vars(gan.G.layers[0]) and "backward" not in vars(gan.D)


def test_generators_are_drawn_from_in_one_order(stand_in):
    """In the first iteration: G's masks for its own step are drawn on one stream, D's on another, by one generator."""
    gan = build("cupy", "with labels through every layer, k = 2")
    drawn = []

    class Watched(FromHost):
        def random(self, size=None, dtype=np.float64, out=None):
            drawn.append((strict_cupy.get_current_stream(), len(strict_cupy.order)))
            return super().random(size, dtype, out)

    gan.rng.dropout = Watched(gan.backend_used, 0)
    gan.train_step()
    changes = [(a, b) for a, b in itertools.pairwise(drawn) if a[0] is not b[0]]
    assert len(changes) == 2
    for (before, i), (after, j) in changes:
        assert (after, before) in strict_cupy.order[i:j]


class Double(Sigmoid):
    """A layer of one's own: out = 2 x, by the functions that a subclass may replace."""

    def _forward(self, x, c):
        return self.xp.multiply(x, 2, out=c.out)

    def _derivative(self, c):
        c.derivative[...] = 2


def test_a_layer_that_is_no_activation_of_ours_gets_its_bias(device):
    class Shifted(Linear):
        def forward(self, x, p, c, rng=None):
            out = super().forward(x, p, c)
            out += 1
            return out

    gans = [build("cupy", "plain, table, k = 3", kind, dtype="float64", lr=1e-3) for kind in (GAN, KernelByKernel)]
    for gan in map(always_the_same, gans):
        gan.G.layers[1] = Double(8, device.xp)
        gan.tape_G.buffers[1] = gan.G.layers[1].buffers(8, "float64")
        gan.tape_G.inputs[2] = gan.tape_G.buffers[1].out
        gan.D.layers[0] = Shifted(3, 8, device.xp)
        gan.D.params.layers[0][1][...] = 0.5
        gan.G.params.layers[0][1][...] = 0.5
        for _ in range(5):
            gan.train_step()
    assert recorded(gans[0])
    assert_equal(*gans, 1e-7)


def recorded(gan):
    return len(gan._do.graphs) >= 1 and all(gan._do.graphs.values())


def always_the_same(gan):
    gan.rng.noise = gan.rng.dropout = gpu_benchmark.Always(gan.backend_used)
    return gan


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("case", CASES)
def test_graphs_train_as_the_kernels_do_one_by_one(device, case, optimizer):
    rates = {"lr": 0.001, "lr_D": 0.002} if optimizer == "adam" else {}
    options = {**CHANGING, "dtype": "float64", "optimizer": optimizer, **rates}
    graphed, plain = (always_the_same(build("cupy", case, kind, **options)) for kind in (GAN, KernelByKernel))
    for _ in range(20):  # several epochs, which with k = 3 begin in the middle of a step
        graphed.train_step()
        plain.train_step()
    assert_equal(graphed, plain, 1e-7)
    assert graphed.report() == pytest.approx(plain.report(), rel=1e-7, abs=1e-9)
    assert graphed.optimizer_D.powers == plain.optimizer_D.powers
    assert recorded(graphed)


@pytest.mark.parametrize("name", WORKLOADS)
def test_graphs_train_as_the_kernels_do_in_float32(device, name):
    start = WORKLOADS[name].small().gan()
    options = {**start.options(), **CHANGING, "backend": "cupy"}
    graphed, plain = (always_the_same(kind(**options).build(start.data)) for kind in (GAN, KernelByKernel))
    before = host(plain)["G"]
    for _ in range(20):
        graphed.train_step()
        plain.train_step()
    difference = np.linalg.norm(host(graphed)["G"] - host(plain)["G"])
    assert difference < 1e-3 * np.linalg.norm(host(plain)["G"] - before)


@pytest.mark.parametrize("case", ["plain, table, k = 3", "the same, simultaneous"])
def test_graphs_draw_fresh_numbers_at_every_step(device, monkeypatch, case):
    monkeypatch.setattr(graph, "AHEAD", (7, 1 << 20))
    gan = build("cupy", case, batch_size=40)
    masks = [c for c in gan.tape_D.buffers if hasattr(c, "uniform")]
    z, uniform = [], []
    for _ in range(20):
        gan.train_step()
        z.append(device.to_host(gan.z))
        uniform.append([device.to_host(c.uniform) for c in masks])
    z = np.array(z)
    assert len(np.unique(z)) == z.size
    assert z.mean() == pytest.approx(0, abs=0.1) and z.var() == pytest.approx(1, abs=0.1)
    for layer in zip(*uniform, strict=True):
        assert np.mean(layer) == pytest.approx(0.5, abs=0.05)
        assert len(np.unique(layer)) > 0.99 * np.size(layer)
    linear = next(layer for layer in gan.D.layers if layer.shapes)
    assert "backward" not in vars(gan.D) and getattr(linear, "affine", linear).matmul is device.xp.matmul  # again
    (inputs,) = gan._do.inputs.values()
    blocks = [block for _, block, _ in inputs.draws.blocks]
    assert {block.shape[0] for block in blocks} == {7}
    starts = [device.to_host(block).ravel()[:50] for block in blocks if block.dtype == blocks[0].dtype]
    assert not any(np.array_equal(a, b) for i, a in enumerate(starts) for b in starts[:i])


def test_what_is_drawn_ahead_has_its_limit(device):
    rng, xp = device.generator(np.random.SeedSequence(1)), device.xp

    def ahead(*shapes):
        return graph.Draws(xp, [(rng.random, xp.empty(shape, "float32")) for shape in shapes])

    assert ahead((8, 4)).rows == 64 and ahead((8, 4), (1024, 1025)).rows == 7  # 32 MB for the larger one
    large, out = ahead((3000, 3000)), []
    for _ in range(2):
        place, row = xp.empty((3000, 3000), "float32"), xp.zeros(1, "int64")
        large.blocks = [(draw, block, place.data.ptr) for draw, block, _ in large.blocks]
        assert large.next_row() == 0
        large.rewind()
        large.place(place, row)
        out.append(device.to_host(place))
    assert large.rows == 1 and (out[0] != out[1]).mean() > 0.99


def test_two_gans_in_turns_do_not_disturb_each_other(device):
    alone, first, second = (build("cupy", "the same, simultaneous", seed=s) for s in (1, 1, 2))
    for _ in range(6):
        alone.train_step()
    for _ in range(6):
        first.train_step()
        second.train_step()
        second.sample(3)
    assert_equal(first, alone, 1e-6)


def test_a_step_is_a_handful_of_launches(stand_in):
    gan = GAN(**RING, batch_size=8, backend="cupy").build(table())
    gan.train_step()
    gan.train_step()
    with strict_cupy.no_sync() as done:
        gan.train_step()
    assert done == {"launches": 5}  # rows, numbers, graph, two logits for report


# (kernels in the graph of an iteration, those of them that must wait for each other): what takes the time on a GPU.
CHAINS = {
    "ring": (RING, (57, 40)),
    "ring, k = 2": ({**RING, "k": 2}, (85, 63)),
    "ring, R1": ({**RING, "r1": 0.1}, (75, 58)),
    "the paper's": (PAPER, (56, 38)),
    "the paper's, R1": ({**PAPER, "r1": 0.1}, (80, 56)),
    "smooth": (dict(generator="4, tanh", discriminator="4, sigmoid, 4, tanh"), (49, 36)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_kernels_of_a_graph_wait_no_more_than_they_did(stand_in, name):
    options, most = CHAINS[name]
    gan = GAN(**{"r1": 0.0, "batch_size": 8, **options}, backend="cupy").build(table())
    gan.train_step()
    gan.train_step()
    (graph,) = gan._do.graphs.values()
    done = len(graph.captured), graph.longest_chain()
    assert all(n <= limit for n, limit in zip(done, most, strict=True)), f"(kernels, longest chain) are {done}"


@pytest.mark.parametrize("case", ["plain, table, k = 3", "with labels through every layer, k = 2"])
@pytest.mark.parametrize("where", ["no library", "while recording"])
def test_without_graphs_training_goes_on_and_says_so(stand_in, monkeypatch, where, case):
    def fails(*arguments):
        raise RuntimeError("a reason")

    if where == "no library":
        monkeypatch.setattr(graph.CuBLAS, "__init__", fails)
    else:
        monkeypatch.setattr(strict_cupy.Stream, "begin_capture", fails)
    options = {**CHANGING, "optimizer": "adam", "dtype": "float64", "lr": 0.001}
    kinds = GAN, KernelByKernel
    gan, plain = (always_the_same(build("cupy", case, kind, **options)) for kind in kinds)
    with pytest.warns(UserWarning, match=r"CUDA graph \(RuntimeError: a reason\)") as warned:
        for _ in range(5):
            gan.train_step()
    assert len(warned) == 1
    for _ in range(5):
        plain.train_step()
    assert_equal(gan, plain, 1e-7)
    assert np.isfinite(gan.sample(3)).all()


def test_ctrl_c_while_recording_gets_out(stand_in):
    gan = build("cupy", "plain, table, k = 3")
    gan.train_step()

    def stops(*arguments):
        raise KeyboardInterrupt

    another = build("cupy", "plain, table, k = 3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph.CuBLAS, "__init__", stops)
        with pytest.raises(KeyboardInterrupt):
            another.train_step()
    gan.optimizer_G.update = stops
    with pytest.raises(KeyboardInterrupt):
        gan.train_step()
    assert strict_cupy._captured is None
    del gan.optimizer_G.update
    gan.train_step()
    assert recorded(gan)


def test_an_error_of_the_data_leaves_adam_as_it_was(stand_in):
    gans = [build(backend, "plain, table, k = 3", optimizer="adam") for backend in ("cupy", "numpy")]
    for gan in gans:
        gan.train_step()
        before, gan.batches.next = list(gan.optimizer_D.powers), lambda out: 1 / 0
        with pytest.raises(ZeroDivisionError):
            gan.train_step()
        assert gan.optimizer_D.powers == before


@pytest.mark.parametrize(
    "change, start",
    [
        ({"r1": 2.0}, {"r2": 0.5}),
        ({"r2": 2.0}, {"r1": 0.5}),
        ({"loss": "minimax"}, {}),
        ({"k": 1}, {}),
        ({"update": "simultaneous"}, {}),
        ({"lr": 0.1, "momentum": 0}, {}),
    ],
)
def test_what_is_changed_in_the_middle_counts(device, change, start):
    options = {"dtype": "float64", "r1": 0.0, **start}
    kinds = GAN, KernelByKernel
    gans = [always_the_same(build("cupy", "plain, table, k = 3", kind, **options)) for kind in kinds]
    for gan in gans:
        for step in range(20):
            if step == 5:
                vars(gan).update(change)
            gan.train_step()
    assert_equal(*gans, 1e-7)


def test_products_for_a_gradient_run_beside_the_others(stand_in, monkeypatch):
    """And nothing else does: not those of R1, which are added to the gradient at once."""
    gan = build("cupy", "the same, simultaneous")
    gan.train_step()
    beside, others = [], []
    for lane in gan._do.lanes:
        for cublas, found in ((lane.products, others), (lane.gradients, beside)):
            monkeypatch.setattr(cublas, "matmul", lambda a, b, out, found=found: found.append(out) or out)
    gan.train_step()
    of = lambda out: [np.shares_memory(out._host, grad.flat._host) for grad in (gan.grad_G, gan.grad_D)]
    weights = [len([layer for layer in net.layers if layer.shapes]) for net in (gan.G, gan.D)]
    assert np.sum([of(out) for out in beside], axis=0).tolist() == weights  # their dW; and db are no products
    assert len(beside) == sum(weights) and not any(any(of(out)) for out in others) and others


class Gemm:
    """cuBLAS's gemm on the host, by its own rules: columns first, leading dimensions, transposed or not."""

    def __getattr__(self, name):
        return lambda *arguments: 0

    def cublasDgemm_v2(self, handle, a_op, b_op, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        m, n, k, lda, ldb, ldc = (size.value for size in (m, n, k, lda, ldb, ldc))

        def matrix(pointer, rows, columns, step):
            assert step >= max(1, rows)
            size = step * (columns - 1) + rows
            flat = np.ctypeslib.as_array((ctypes.c_double * size).from_address(pointer.value))
            return np.lib.stride_tricks.as_strided(flat, (rows, columns), (8, 8 * step))

        A = matrix(a, k, m, lda).T if a_op.value else matrix(a, m, k, lda)
        B = matrix(b, n, k, ldb).T if b_op.value else matrix(b, k, n, ldb)
        matrix(c, m, n, ldc)[...] = A @ B
        return 0


@pytest.mark.parametrize("n, n_in, n_out", list(itertools.product((1, 3), (1, 2, 5), (1, 4))))
def test_cublas_is_called_by_its_own_rules(n, n_in, n_out):
    products = graph.CuBLAS.__new__(graph.CuBLAS)
    products.library, products.handle = Gemm(), None
    products.of_dtype = {"d": ("cublasDgemm_v2", ctypes.c_double(1), ctypes.c_double(0))}
    rng = np.random.default_rng(0)
    x, W, dout = (rng.standard_normal(shape) for shape in ((n, n_in), (n_in, n_out), (n, n_out)))

    class Array(np.ndarray):
        data = property(lambda self: SimpleNamespace(ptr=self.ctypes.data))

    for a, b in ((x, W), (x.T, dout), (dout, W.T), (np.ones(n), dout), (np.asfortranarray(x), W)):
        out = np.full((a[..., :1] @ b[:1]).shape if a.ndim > 1 else b.shape[1:], np.nan)
        products.matmul(*(array.view(Array) for array in (a, b, out)))
        assert np.allclose(out, a @ b)
    with pytest.raises(ValueError, match="strides"):
        products.matmul(np.ones((4, 6))[::2, ::2].view(Array), np.ones((3, 2)).view(Array), np.ones((2, 2)).view(Array))


@pytest.mark.parametrize("tf32, mode", [(None, 0), ("0", 0), ("1", 3), ("2", 3)])
def test_cublas_gets_its_stream_workspace_and_precision(monkeypatch, tf32, mode):
    called, opened = [], []

    class Library:
        def __getattr__(self, name):
            return lambda *arguments: called.append((name, arguments)) and 0

    maps = (
        "7f00-7f01 r-xp 00000000 00:01 9   /home/my user/lib/libcublas.so.13\n7f02-7f03 r-xp 00000000 00:01 9   /x.so\n"
    )
    monkeypatch.setattr(graph.Path, "read_text", lambda path: maps)
    monkeypatch.setattr(graph.ctypes, "CDLL", lambda path: opened.append(path) or Library())
    monkeypatch.delenv("CUPY_TF32", raising=False)
    if tf32 is not None:
        monkeypatch.setenv("CUPY_TF32", tf32)
    xp = strict_cupy.module()
    xp.cuda.alloc = lambda size: SimpleNamespace(ptr=77, size=size)
    products = graph.CuBLAS(xp, SimpleNamespace(ptr=55))
    names = ["cublasCreate_v2", "cublasSetStream_v2", "cublasSetWorkspace_v2", "cublasSetMathMode"]
    assert opened == ["/home/my user/lib/libcublas.so.13"] and [name for name, _ in called] == names
    values = [[getattr(a, "value", None) for a in arguments[1:]] for _, arguments in called]
    assert values[1:] == [[55], [77, 32 << 20], [mode]]  # the stream first, for it takes the workspace away
    del products
    assert called[-1][0] == "cublasDestroy_v2"


def test_a_call_that_fails_says_which(monkeypatch):
    products = graph.CuBLAS.__new__(graph.CuBLAS)
    products.library = SimpleNamespace(cublasSetMathMode=lambda *arguments: 15)
    with pytest.raises(RuntimeError, match="cublasSetMathMode failed with status 15"):
        products.call("cublasSetMathMode", 3)


def test_an_activation_of_ones_own_is_not_its_parent_on_a_gpu(device):
    layer, to = Double(3, device.xp), device.to_device
    c, x = layer.buffers(4, "float32"), to(np.ones((4, 3), "float32"))
    assert (device.to_host(layer.forward(x, (), c)) == 2).all()
    assert (device.to_host(layer.backward(x, x, (), c)) == 2).all()


def test_only_a_gan_alone_on_a_gpu_is_recorded(stand_in):
    class Two(Alone):
        size = 2

    step = lambda gan: type(gan._do).__name__
    assert step(build("cupy", "plain, ring")) == "Replay"
    assert step(build("numpy", "plain, ring")) == "builtin_function_or_method"
    assert step(build("cupy", "plain, ring", KernelByKernel)) == "builtin_function_or_method"
    assert step(build("cupy", "plain, ring", ranks=Two())) == "builtin_function_or_method"


def test_what_a_graph_cannot_hold_is_noticed(stand_in):
    xp = sys.modules["cupy"]
    a, stream, number = xp.ones(3), xp.cuda.Stream(non_blocking=True), 2.0
    with stream:
        stream.begin_capture()
        a *= number
        for wrong in (lambda: float(a[0]), lambda: xp.asarray(np.ones(3)), lambda: xp.matmul(a, a)):
            with pytest.raises((strict_cupy.Refused, NotImplementedError)):
                wrong()
        recorded = stream.end_capture()
    assert a.get().tolist() == [1, 1, 1]  # nothing has been done yet
    number = 3.0
    for _ in range(2):
        recorded.launch()
    assert a.get().tolist() == [4, 4, 4]  # with the number of that moment


# -- The stand-in itself -----------------------------------------------------------------------------------


REFUSED = {
    "host and device in one operation": lambda xp, a, h: a + h,
    "and the other way round": lambda xp, a, h: h + a,
    "in place": lambda xp, a, h: a.__iadd__(h),
    "in place on the host": lambda xp, a, h: h.__iadd__(a),
    "a function of the device on the host's array": lambda xp, a, h: xp.exp(h),
    "a function of NumPy's on the device's array": lambda xp, a, h: np.exp(a),
    "another function of NumPy's": lambda xp, a, h: np.concatenate([a, a]),
    "out on the host": lambda xp, a, h: xp.exp(a, out=h),
    "out on the device": lambda xp, a, h: np.exp(h, out=a),
    "assignment": lambda xp, a, h: a.__setitem__(..., h),
    "assignment to the host": lambda xp, a, h: h.__setitem__(..., a),
    "conversion": lambda xp, a, h: np.asarray(a),
    "a list": lambda xp, a, h: xp.stack([a, h]),
    "an index on the host": lambda xp, a, h: a[np.array([0])],
    "a mask": lambda xp, a, h: a[a > 0],
    "iteration": lambda xp, a, h: list(a),
    "where=": lambda xp, a, h: xp.exp(a, out=a, where=True),
    "mode=": lambda xp, a, h: xp.take(a, a, mode="clip"),
    "errstate": lambda xp, a, h: xp.errstate,
    "out of matmul, not contiguous": lambda xp, a, h: xp.matmul(a, a, out=xp.empty((4, 2))[::2]),
    "out of matmul, of another dtype": lambda xp, a, h: xp.matmul(a, a, out=xp.empty((2, 2), "float32")),
    "out of matmul, an argument": lambda xp, a, h: xp.matmul(a, a, out=a),
    "out overlaps an argument": lambda xp, a, h: xp.add(a[:1], 1, out=a[1:]) and xp.add(a[:, :1], 1, out=a[:, 1:]),
    "random(out=) without a size": lambda xp, a, h: generator(xp).random(out=a),
    "another size than out's": lambda xp, a, h: generator(xp).standard_normal(3, out=a),
    "another dtype than out's": lambda xp, a, h: generator(xp).standard_normal(dtype="float32", out=a),
    "a stream that depends on the GPU": lambda xp, a, h: xp.random.XORWOW(1),
    "choice": lambda xp, a, h: generator(xp).choice(3),
    "normal": lambda xp, a, h: generator(xp).normal(),
    "permutation": lambda xp, a, h: generator(xp).permutation(3),
}


def generator(xp):
    return xp.random.Generator(xp.random.XORWOW(1, size=256))


@pytest.mark.parametrize("what", REFUSED)
def test_the_stand_in_refuses(stand_in, what):
    xp = sys.modules["cupy"]
    a, h = xp.ones((2, 2)), np.ones((2, 2))
    with pytest.raises((TypeError, ValueError, AttributeError, strict_cupy.Refused)):
        REFUSED[what](xp, a, h)


READS = {
    "float": float,
    "int": int,
    "bool": bool,
    "complex": complex,
    "repr": repr,
    "print": lambda a: print(a),
    "format": "{}".format,
    "item": lambda a: a.item(),
    "tolist": lambda a: a.tolist(),
    "get": lambda a: a.get(),
    "if": lambda a: 1 if a > 0 else 0,
    "to_host": lambda a: Backend("cupy").to_host(a),
    "synchronize": lambda a: Backend("cupy").synchronize(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_the_stand_in_notices_a_read_that_waits(stand_in, read):
    a = sys.modules["cupy"].ones(())
    read(a)
    with stand_in.no_sync(), pytest.raises(stand_in.Refused):
        read(a)


def test_a_step_that_waits_is_found(stand_in):
    gan = build("cupy", "plain, table, k = 3")
    gan._record_logits = lambda: float(gan.tape_D.out.mean())
    with stand_in.no_sync(), pytest.raises(stand_in.Refused):
        gan.train_step()


def test_the_stand_in_has_only_what_the_real_package_has(monkeypatch):
    """Names, and every call that training, reports, sampling and the gradient check make, against real signatures."""
    real = real_cupy()
    for name in strict_cupy.names():
        resolve(real, name)
    assert not hasattr(real, "errstate")

    strict_cupy.install(monkeypatch)
    strict_cupy.calls.clear()
    for case in CASES:
        gan = build("cupy", case)
        for _ in range(11):
            gan.train_step()
        gan.report()
        gan.sample(3)
    list(gradcheck.run(count=1, backend=Backend("cupy")))
    assert len(strict_cupy.calls) > 100
    for name, n_args, keywords, dtypes in strict_cupy.calls:
        function = resolve(real, name)
        if isinstance(function, real.ufunc):
            assert n_args == function.nin and keywords <= {"out", "dtype", "casting"}, name
            same_size = str.maketrans("lL", "qQ")  # two names of 64 bits
            loops = [loop.split("->")[0].translate(same_size) for loop in function.types]
            given = [d and d.translate(same_size) for d in dtypes]
            fits = [all(d in (None, c) for d, c in zip(given, loop, strict=True)) for loop in loops]
            assert any(fits), f"{name} {dtypes}"
        else:
            signature(function).bind(*[None] * n_args, **dict.fromkeys(keywords))


def test_the_real_package_without_a_driver_is_refused():
    if real_cupy().cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(MiniganError, match="CuPy finds no GPU or no driver"):
        Backend("cupy")


def real_cupy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("cupy", exc_type=ImportError)


def resolve(module, name):
    name = name.replace("random.XORWOW", "random.XORWOW.__init__")
    for part in name.split("."):
        module = getattr(module, part)
    return module


def signature(function):
    """Of a function, or of a method of cupy.ndarray, which has it in the first line of its docstring."""
    try:
        return inspect.signature(function)
    except ValueError:
        arguments = re.match(r"\w+\.\w+\((.*)\)", function.__doc__)[1]
        return inspect.signature(eval(f"lambda {arguments}: None"))


# -- On a GPU only -----------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_memory_stays_constant():
    pool = working_gpu().xp.get_default_memory_pool()
    gan = GAN(**EVERY_LAYER, r1=0.1, r2=0.1, prior="spherical", backend="cupy").build(load("digits"))
    used = []
    for _ in range(3):
        for _ in range(500):
            gan.train_step()
        gan.report()
        gan.sample(10)
        gan.backend_used.synchronize()
        used.append(pool.total_bytes())
    assert used[1] == used[2]
