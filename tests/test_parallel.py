"""Several processes give the weights of one. MPI itself is used where it is installed; a stand-in of threads always."""

import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from minigan import GAN, MiniganError, checkpoint, load, optim, parallel
from minigan.backend import Backend
from minigan.mlp import MLP, parse_layers

OPTIONS = dict(generator="16, relu, dropout 0.9", discriminator="dropout 0.8, 16, leaky_relu 0.2, maxout 8x2",
               batch_size=12, latent_dim=8, steps=40, report_every=10, r1=0.1, backend="numpy")  # fmt: skip


class Threads:
    """A communicator whose ranks are threads, ``on_one_machine`` or each on one of its own."""

    def __init__(self, size, on_one_machine=True):
        self.size, self.slots, self.barrier = size, [None] * size, threading.Barrier(size, timeout=10)
        self.on_one_machine, self.calls, self.given = on_one_machine, [], []

    def seen_by(self, rank):
        def exchange(value):
            self.slots[rank] = value
            self.barrier.wait()
            values = list(self.slots)
            self.barrier.wait()
            return values

        def Allreduce(_, array, op=np.sum):
            self.calls.append(len(array))
            array[...] = op(exchange(array.copy()), axis=0)

        def Allocate_shared(nbytes, unit, comm):
            memories = exchange(bytearray(nbytes))
            self.given.append(nbytes)
            return SimpleNamespace(Shared_query=lambda of: (memories[of], unit), Fence=self.barrier.wait)

        machine = machine_of(rank, self.size) if self.on_one_machine else machine_of(0, 1)
        return SimpleNamespace(
            Get_rank=lambda: rank, Get_size=lambda: self.size, Allreduce=Allreduce,
            Split_type=lambda kind: machine, Allocate_shared=Allocate_shared,
        )  # fmt: skip


def machine_of(rank, size):
    """The communicator of one machine's processes."""
    return SimpleNamespace(Get_rank=lambda: rank, Get_size=lambda: size, Free=lambda: None)


WINDOWS = SimpleNamespace(Allocate_shared=lambda nbytes, unit, comm: comm.Allocate_shared(nbytes, unit, comm))
MPI_OF_THREADS = SimpleNamespace(IN_PLACE=None, MAX=np.max, COMM_TYPE_SHARED=None, Win=WINDOWS)


def by_threads(threads, work):
    """work(rank, ranks) on a thread for each rank; what they return."""
    results = [None] * threads.size

    def one(rank):
        results[rank] = work(rank, parallel.Ranks(MPI_OF_THREADS, threads.seen_by(rank)))

    workers = [threading.Thread(target=one, args=(rank,), name=str(rank)) for rank in range(threads.size)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    return results


def trained_by_threads(size, data, on_one_machine=True, **options):
    threads = Threads(size, on_one_machine)
    fit = lambda rank, ranks: GAN(ranks=ranks, **{**OPTIONS, **options}).fit(load(data))
    return by_threads(threads, fit)


@pytest.mark.parametrize("on_one_machine", [True, False])
@pytest.mark.parametrize("data", ["digits", "ring"])
@pytest.mark.parametrize("options", [{}, {"update": "simultaneous"}, {"optimizer": "adam", "lr": 1e-3}])
def test_n_ranks_of_batch_b_over_n_are_one_process_of_batch_b(data, options, on_one_machine):
    alone = GAN(**{**OPTIONS, **options}).fit(load(data))
    for size in (2, 3):
        gans = trained_by_threads(size, data, on_one_machine, **options)
        for gan in gans:
            assert gan.m == 12 // size
            assert np.array_equal(gan.G.theta, gans[0].G.theta) and np.array_equal(gan.D.theta, gans[0].D.theta)
            assert np.array_equal(gan.averaged.flat, gans[0].averaged.flat)
            assert np.shares_memory(gan.G.theta, gans[0].G.theta) == (on_one_machine or gan is gans[0])
        assert np.allclose(gans[0].G.theta, alone.G.theta, rtol=2e-4, atol=2e-5)
        assert np.allclose(gans[0].D.theta, alone.D.theta, rtol=2e-4, atol=2e-5)
        for one, several in zip(alone.history, gans[0].history, strict=True):
            assert one["V"] == pytest.approx(several["V"], abs=1e-4)


def test_one_machine_or_several_give_the_same_bits():
    """Half of a sum of two is the same however it is found."""
    one, several = (trained_by_threads(2, "digits", here)[0] for here in (True, False))
    assert np.array_equal(one.G.theta, several.G.theta) and np.array_equal(one.D.theta, several.D.theta)


@pytest.mark.parametrize("on_one_machine", [True, False])
def test_ranks_without_averaging_drift_apart(monkeypatch, on_one_machine):
    """The tests above can fail."""
    monkeypatch.setattr(parallel.Ranks, "average", lambda self, array: None)
    monkeypatch.setattr(parallel._Mean, "__getitem__", lambda self, piece: self.vectors[0][piece])
    alone, gans = GAN(**OPTIONS).fit(load("digits")), trained_by_threads(2, "digits", on_one_machine)
    assert not np.allclose(gans[0].D.theta, alone.D.theta, rtol=2e-4, atol=2e-5)
    if not on_one_machine:
        assert not np.allclose(gans[0].D.theta, gans[1].D.theta, rtol=2e-4, atol=2e-5)


def test_processes_of_one_machine_send_no_gradients():
    for on_one_machine in (True, False):
        threads = Threads(2, on_one_machine)
        gan = by_threads(threads, lambda rank, ranks: GAN(ranks=ranks, **OPTIONS).fit(load("digits")))[0]
        assert (max(threads.calls) >= len(gan.D.theta)) != on_one_machine


def test_large_networks_are_updated_in_parts_and_pieces(monkeypatch):
    """Parts begin with a cache line, the last is shorter, or empty; a part is done piece by piece."""
    monkeypatch.setattr(optim, "CACHE_PIECE", 48)
    monkeypatch.setattr(parallel, "CACHE_PIECE", 48)
    for features, size in ((1, 2), (5, 3), (31, 4)):  # 2, 6 and 32 weights and biases; then many
        for units in ((), ("37, relu",)):
            net, expected = (MLP(parse_layers(", ".join(units), features, 1)) for _ in range(2))
            net.theta[...] = expected.theta[...] = np.arange(net.theta.size)
            grads = np.random.default_rng(0).standard_normal((size, net.theta.size)).astype(np.float32)
            sgd = optim.SGD(expected.theta)
            sgd.step(expected.theta, grads.mean(0), 0.1, 0.5)

            def work(rank, ranks, start=net.theta, features=features, units=units, grads=grads):
                ranks.use(Backend("numpy"))
                net = MLP(parse_layers(", ".join(units), features, 1))
                net.theta[...] = start
                grad, mine = net.vector(), optim.SGD(net.theta)
                ranks.share_memory(net.params, mine.state, grad)
                grad.flat[...] = grads[rank]
                ranks.descend(mine, net.params, grad, (0.1, 0.5))
                return net.theta.copy(), mine.state["velocity"].copy()

            for theta, velocity in by_threads(Threads(size), work):
                assert np.allclose(theta, expected.theta, rtol=1e-6, atol=1e-6)
                assert np.allclose(velocity, sgd.state["velocity"], rtol=1e-5, atol=1e-7)


def test_too_little_shared_memory_is_not_used(monkeypatch):
    """A container may have 64 MB of it, and whoever writes beyond is ended by the system."""
    free, disk = {}, "/dev/shm"

    def shared(there=True):
        """Whether two processes share memory, and how much each network took."""
        rank_of = lambda: int(threading.current_thread().name)
        usage = lambda path: SimpleNamespace(free=free[rank_of()]) if path == disk else pytest.fail(path)
        monkeypatch.setattr(parallel.os.path, "isdir", lambda path: there and path == disk)
        monkeypatch.setattr(shutil, "disk_usage", usage)
        threads = Threads(2)
        build = lambda rank, ranks: GAN(ranks=ranks, **{**OPTIONS, "optimizer": "adam"}).build(load("digits"))
        gans = by_threads(threads, build)
        took = sum(threads.given[:2]), sum(threads.given[2:])  # G's window is complete before D's is asked for
        return np.shares_memory(gans[0].D.theta, gans[1].D.theta), took, gans[0]

    free.update({0: 1 << 30, 1: 1 << 30})
    on, took, gan = shared()
    assert on
    for net, size in zip((gan.G, gan.D), took, strict=True):  # both gradients, theta, and Adam's two averages
        assert 0 <= size - 5 * net.theta.nbytes < 5 * 64
    needed = 2 * max(took)
    for ranks_have, on in (((needed,) * 2, True), ((needed - 1,) * 2, False), ((needed, needed - 1), False)):
        free.update(enumerate(ranks_have))
        assert shared()[0] == on
    assert shared(there=False)[0]  # not Linux: nobody knows


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(MiniganError, match="batch size 12 cannot be shared by 5 processes; use a multiple of 5"):
        GAN(ranks=SimpleNamespace(size=5, rank=0, local_rank=0, use=lambda backend: None), **OPTIONS).build(
            load("digits")
        )


def test_a_launcher_without_mpi4py_is_said(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "3")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(MiniganError, match="3 MPI processes were started and mpi4py cannot be used"):
        parallel.connect()
    monkeypatch.delenv("PMI_SIZE")
    assert isinstance(parallel.connect(), parallel.Alone)


def mpiexec():
    """The launcher beside this Python or on the path, or None."""
    if importlib.util.find_spec("mpi4py") is None:
        return None
    return shutil.which("mpiexec", path=os.path.dirname(sys.executable)) or shutil.which("mpiexec")


@pytest.mark.skipif(mpiexec() is None, reason="pip install mpi4py mpich")
def test_mpiexec_with_two_ranks_trains_the_same_weights(tmp_path):
    options = ["--data", "digits", "--steps", "20", "--batch-size", "16", "--report-every", "5", "--quiet",
               "--generator", "16, relu", "--discriminator", "16, leaky_relu 0.2"]  # fmt: skip
    script = os.path.join(os.path.dirname(__file__), "..", "train.py")
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    for name, command in (("one", [sys.executable]), ("two", [mpiexec(), "-n", "2", sys.executable])):
        out = str(tmp_path / name)
        subprocess.run([*command, script, *options, "--out", out], check=True, env=env, timeout=120)
    one, two = (np.load(tmp_path / name / "checkpoint.npz") for name in ("one", "two"))
    for theta in ("theta_G", "theta_D", "averaged"):
        assert np.allclose(one[theta], two[theta], rtol=1e-4, atol=1e-6)


def mpi_of(monkeypatch, size):
    """mpi4py's module as one of ``size`` processes finds it; and the codes given to Abort."""
    codes = []
    world = SimpleNamespace(
        Get_rank=lambda: 1, Get_size=lambda: size, Abort=codes.append, Split_type=lambda kind: machine_of(0, 1)
    )
    MPI = SimpleNamespace(COMM_WORLD=world, IN_PLACE=None, MAX="max", COMM_TYPE_SHARED=None)
    monkeypatch.setenv("PMI_SIZE", str(size))
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=MPI))
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", MPI)
    return MPI, codes


def test_a_process_that_fails_ends_the_others(monkeypatch, capsys):
    codes = mpi_of(monkeypatch, 2)[1]

    def fails():
        raise OSError("no disk")

    def leaves():
        raise SystemExit(3)

    with pytest.raises(OSError):
        parallel.guarded(fails)
    assert codes == [1] and "no disk" in capsys.readouterr().err
    for code in (2, 130, 141, 0, parallel.Agreed(130)):  # the last: a signal that all of them follow
        assert parallel.guarded(lambda code=code: code) == code
    with pytest.raises(SystemExit):
        parallel.guarded(leaves)
    assert codes == [1, 2, 130, 141]
    monkeypatch.setenv("PMI_SIZE", "1")  # alone
    assert parallel.guarded(lambda: 2) == 2
    with pytest.raises(OSError):
        parallel.guarded(fails)
    assert codes == [1, 2, 130, 141]


def test_two_processes_are_ranks_and_one_is_alone(monkeypatch):
    for size in (2, 3):
        MPI, _ = mpi_of(monkeypatch, size)
        ranks = parallel.connect()
        assert isinstance(ranks, parallel.Ranks) and (ranks.rank, ranks.size, ranks.local_rank) == (1, size, 0)
    MPI.COMM_WORLD.Get_size = lambda: 1
    assert type(parallel.connect()) is parallel.Alone
    monkeypatch.setenv("PMI_SIZE", "x")
    assert type(parallel.connect()) is parallel.Alone


def test_arrays_of_a_gpu_are_averaged_by_way_of_the_host():
    def Allreduce(_, array, op=None):
        array += 6 if op is None else {"max": 1}[op]

    comm = SimpleNamespace(
        Get_rank=lambda: 0, Get_size=lambda: 4, Allreduce=Allreduce, Split_type=lambda kind: machine_of(0, 4)
    )
    ranks = parallel.Ranks(SimpleNamespace(IN_PLACE=None, MAX="max", COMM_TYPE_SHARED=None), comm)
    ranks.any = lambda number: 0
    ranks.use(SimpleNamespace(xp=None, to_host=np.copy, to_device=np.asarray))
    del ranks.any
    array = np.array([2.0, 6.0])
    ranks.average(array)
    assert array.tolist() == [2, 3]
    assert ranks.any(15) == 16


def test_processes_with_and_without_a_gpu_do_not_mix():
    def sentence(rank, ranks, without):
        try:
            ranks.use(SimpleNamespace(xp=np if rank in without else None))
        except MiniganError as error:
            return str(error)

    for without in ((), (0, 1)):
        assert by_threads(Threads(2), functools.partial(sentence, without=without)) == [None, None]
    for without in ((0,), (1,)):
        one, other = by_threads(Threads(2), functools.partial(sentence, without=without))
        assert one == other and "--backend numpy" in one


def test_a_run_between_two_reports_needs_as_many_processes(tmp_path):
    gan = trained_by_threads(2, "digits")[0]
    gan.train_step = None
    gan.step += 3
    checkpoint.save(tmp_path, gan)
    with pytest.raises(MiniganError, match="between two reports by another number of processes"):
        checkpoint.load(tmp_path, gan.data)


@pytest.mark.parametrize("first, then", [(1, 2), (2, 1), (2, 3)])
def test_after_a_report_any_number_of_processes_can_go_on(tmp_path, first, then):
    options = dict(steps=20, dtype="float64", lr_end=1.0)

    def go_on(rank, ranks):
        gan = checkpoint.load(tmp_path, load("digits"), steps=30, ranks=ranks)[0]
        while gan.step < 30:
            gan.train_step()
        return gan

    alone = lambda: GAN(**{**OPTIONS, **options}).fit(load("digits"))
    checkpoint.save(tmp_path, alone() if first == 1 else trained_by_threads(first, "digits", **options)[0])
    gan = by_threads(Threads(then), go_on)[0] if then > 1 else go_on(0, None)
    whole = GAN(**{**OPTIONS, **options, "steps": 30}).fit(load("digits"))
    assert np.allclose(gan.G.theta, whole.G.theta, rtol=1e-9, atol=1e-12) and gan.step == 30


def signal_to_two(tmp_path, number):
    """Send it to mpiexec when two processes train; its exit code."""
    script = os.path.join(os.path.dirname(__file__), "..", "train.py")
    options = ["--data", "ring", "--steps", "1000000", "--batch-size", "8", "--report-every", "10",
               "--generator", "8, relu", "--discriminator", "8, relu", "--out", str(tmp_path / "run")]  # fmt: skip
    command = [mpiexec(), "-n", "2", sys.executable, script, *options]
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    job = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics, until = tmp_path / "run" / "metrics.csv", time.monotonic() + 30
    while not (metrics.exists() and metrics.read_text().count("\n") > 3) and time.monotonic() < until:
        time.sleep(0.05)
    job.send_signal(number)
    return job.wait(timeout=30)


@pytest.mark.skipif(mpiexec() is None, reason="pip install mpi4py mpich")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_mpiexec_saves(tmp_path, number):
    assert signal_to_two(tmp_path, number)  # Open MPI's exit code is its own
    assert 20 < checkpoint.load(tmp_path / "run")[0].step < 1_000_000
