"""Several processes give the weights of one. MPI itself is used where it is installed; a stand-in of threads always."""

import functools
import importlib.util
import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from minigan import GAN, MiniganError, checkpoint, columns, load, optim, parallel
from minigan.backend import CACHE_LINE, Backend
from minigan.mlp import MLP, parse_layers

OPTIONS = dict(generator="16, relu, dropout 0.9", discriminator="dropout 0.8, 16, leaky_relu 0.2, maxout 8x2",
               batch_size=12, latent_dim=8, steps=40, report_every=10, r1=0.1, backend="numpy")  # fmt: skip


@pytest.fixture(autouse=True)
def nap_at_once(monkeypatch):
    """A thread that only looks would keep the others from running."""
    monkeypatch.setattr(parallel, "LOOKS", 0)


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
            memories = exchange(memoryview(bytearray(nbytes + 8))[8:])  # it may begin anywhere
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
            assert one == pytest.approx(several, abs=1e-4)  # the spread is that of the whole batch, too


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


def test_processes_by_columns_send_nothing_and_take_memory_once(by_columns):
    threads = Threads(2)
    gan = by_threads(threads, lambda rank, ranks: GAN(ranks=ranks, **OPTIONS).fit(load("digits")))[0]
    assert set(threads.calls) == {1}  # whether all have a backend of one kind, and enough memory
    taken = sorted(threads.given)[::-1]
    assert taken[1:] == [CACHE_LINE, CACHE_LINE, 0]  # where they meet; the second process takes nothing else
    assert 2 * (gan.G.theta.nbytes + gan.D.theta.nbytes) < taken[0]


def test_more_memory_is_asked_for_if_need_be():
    def work(rank, ranks):
        team, pieces = parallel.Columns(ranks, 1000), []
        for nbytes in (500, 400, 200, 5000, 100):
            pieces.append(team.memory(nbytes))
            if rank == 1:
                pieces[-1][:] = len(pieces)
            team.wait()
        assert [len(piece) for piece in pieces] == [500, 400, 200, 5000, 100]
        assert not any(piece.ctypes.data % CACHE_LINE for piece in pieces)
        return [set(piece.tolist()) for piece in pieces]

    threads = Threads(2)
    assert by_threads(threads, work) == [[{1}, {2}, {3}, {4}, {5}]] * 2
    assert len([nbytes for nbytes in threads.given if nbytes > CACHE_LINE]) == 4


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


# -- By columns ----------------------------------------------------------------------------------------

EVERY_LAYER = dict(generator="16, relu, dropout 0.9, 3, tanh, maxout 5x3, 16, sigmoid",
                   discriminator="dropout 0.8, 16, leaky_relu 0.2, maxout 8x2, 5, tanh, 7, sigmoid")  # fmt: skip


@pytest.fixture
def by_columns(monkeypatch):
    """However small the networks are."""
    monkeypatch.setattr(parallel, "WAITING", -math.inf)


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("options", [
    {}, {"update": "simultaneous", "r2": 0.1}, {"optimizer": "adam", "lr": 1e-3, "k": 2}, {"r1": 0, "r2": 0.1},
    {"r1": 0, "clusters": 3}, {"conditional": True}, {"generator": "", "discriminator": "maxout 2x3"},
    {"generator": "maxout 12x1, maxout 5x1", "discriminator": "6, relu, maxout 12x1"},
    {"generator": "40, relu", "discriminator": "40, relu", "batch_size": 13},
])  # fmt: skip
def test_n_processes_by_columns_are_one_process(by_columns, options, size):
    """The same bits but for a last one: one process adds up the terms of each product in another order at most."""
    options = {**EVERY_LAYER, "dtype": "float64", "steps": 20, **options}
    data = "digits" if options.get("conditional") else "ring"
    alone, gans = GAN(**{**OPTIONS, **options}).fit(load(data)), trained_by_threads(size, data, **options)
    for gan in gans:
        assert type(gan.team) is parallel.Columns and gan.m == gan.batch_size
        for name in ("G", "D"):
            net, first, one = (getattr(g, name) for g in (gan, gans[0], alone))
            assert np.shares_memory(net.theta, first.theta) and np.ptp(one.theta) > 0
            assert np.allclose(net.theta, one.theta, rtol=1e-11, atol=1e-13)
        assert np.allclose(gan.averaged.flat, alone.averaged.flat, rtol=1e-11, atol=1e-13)
        assert gan.history == gans[0].history
    for one, several in zip(alone.history, gans[0].history, strict=True):
        assert one == pytest.approx(several, rel=1e-10)


def test_processes_by_columns_wait_where_they_must(by_columns, monkeypatch):
    """One that is late is waited for, wherever it is late: else another reads what it has not written yet."""
    options = {**EVERY_LAYER, "steps": 4, "report_every": 2, "r2": 0.1, "dtype": "float64"}
    alone = GAN(**{**OPTIONS, **options}).fit(load("ring"))
    meet, late, turns = parallel.Ranks.meet, np.random.default_rng(0).random((3, 1000)) < 0.3, [0, 0, 0]

    def then_be_late(self):
        meet(self)
        turns[self.rank] += 1
        if late[self.rank, turns[self.rank]]:
            time.sleep(0.003)

    monkeypatch.setattr(parallel.Ranks, "meet", then_be_late)
    for gan in trained_by_threads(3, "ring", **options):
        assert np.allclose(gan.G.theta, alone.G.theta, rtol=1e-11, atol=1e-13)
        assert np.allclose(gan.D.theta, alone.D.theta, rtol=1e-11, atol=1e-13)
    assert turns[0] == turns[1] == turns[2] < 1000


@pytest.mark.parametrize("size", [2, 3])
def test_who_waits_leaves_the_core_to_others(monkeypatch, size):
    """The MPI library's own way to wait does not: it is asked only when all are there."""
    naps, sleep = [0] * size, time.sleep

    def nap(seconds):
        assert seconds == parallel.NAP
        naps[int(threading.current_thread().name)] += 1
        sleep(seconds)

    def work(rank, ranks):
        ranks.meet()
        window, found = ranks._meeting.window, []
        fence = window.Fence
        window.Fence = lambda: (found.append(naps[rank]), fence())
        for late in range(size):
            naps[rank] = 0
            if rank == late:
                sleep(0.02)
            ranks.meet()
        return found

    monkeypatch.setattr(parallel.time, "sleep", nap)
    for rank, found in enumerate(by_threads(Threads(size), work)):
        assert len(found) == size and all(n > 5 for late, n in enumerate(found) if late != rank)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_passes_by_columns_wait_for_a_process_that_is_late_in_its_products(late):
    """Two backward passes over one tape, and what nothing is needed of stays as it was: not a number."""
    text = "dropout 0.7, 6, relu, maxout 4x2, 3, tanh, 3, relu"
    x, xdot, dout = (np.random.default_rng(i).standard_normal((7, n)) for i, n in enumerate((5, 5, 1)))

    def passes(net, tape, grads):
        out = net.forward(x, tape, np.random.default_rng(0)).copy()
        net.backward(dout, tape, grads[0], need_dx=False)
        below = tape.buffers[0].dx.copy(), tape.buffers[1].dx.copy()
        dx = net.backward(dout**2, tape, grads[1]).copy()
        outdot = net.tangent(xdot, tape).copy()
        net.backward_tangent(xdot, tape, grads[1], net.scratch())
        return (out, dx, outdot), grads, below, tape

    def work(rank, ranks):
        ranks.use(Backend("numpy"))
        team = parallel.Columns(ranks, 0)
        net = team.network(parse_layers(text, 5, 1), np, np.float64)
        net.initialise(np.random.default_rng(0))
        tape = net.training_tape(7)
        if rank == 0:
            for a in arrays_of(tape):
                a[...] = np.nan
        team.wait()
        be_late(net, rank == late)
        return passes(net, tape, [net.vector(), net.vector()])

    alone = MLP(parse_layers(text, 5, 1), dtype=np.float64)
    alone.initialise(np.random.default_rng(0))
    expected, expected_grads, *_ = passes(alone, alone.tape(7), [alone.vector(), alone.vector()])
    for rank, (results, grads, below, tape) in enumerate(by_threads(Threads(3), work)):
        for a, b in zip(results, expected, strict=True):
            assert np.abs(b).max() > 0 and np.allclose(a, b, rtol=1e-12, atol=1e-14)
        for grad, whole in zip(grads, expected_grads, strict=True):
            for mine, all_of_it in zip(filter(None, grad.layers), filter(None, whole.layers), strict=True):
                rows = parallel.Columns(SimpleNamespace(rank=rank, size=3, meet=None), 0).columns(len(mine[0]))
                assert np.allclose(mine[0][rows], all_of_it[0][rows], rtol=1e-12, atol=1e-14)
                assert np.allclose(mine[1], all_of_it[1], rtol=1e-12, atol=1e-14)
        assert all(np.isnan(a).all() for a in below)
        assert all(np.isnan(tape.buffers[i].e).all() for i in (1, 6, 7, 8))  # no curvature above, no weights below
        assert not np.isnan(tape.buffers[4].e).any()


def be_late(net, late):
    for layer in net.layers:
        if layer.shapes:
            product = getattr(layer, "affine", layer)
            product.matmul = lambda *a, **k: (late and time.sleep(0.002), np.matmul(*a, **k))[1]


def test_a_pass_by_columns_does_not_write_what_the_one_before_needs():
    def work(rank, ranks):
        ranks.use(Backend("numpy"))
        net = parallel.Columns(ranks, 0).network(parse_layers("", 5, 6, "sigmoid"), np, np.float64)
        tape, grad = net.training_tape(7), net.vector()
        net.forward(np.ones((7, 5)), tape)
        be_late(net, rank == 1)
        for dout in (1, 100):
            net.backward(np.full((7, 6), dout), tape, grad if dout == 1 else net.vector(), need_dx=False)
        return grad.layers[0][0]

    grads = by_threads(Threads(2), work)
    assert (grads[0][:2] == 7 / 4).all() and (grads[1][2:] == 7 / 4).all()


def arrays_of(tape):
    """Every matrix of a tape that numbers can be written to, but not its x."""
    for c in tape.buffers:
        for a in (*vars(c).values(), *vars(getattr(c, "affine", SimpleNamespace())).values()):
            if isinstance(a, np.ndarray) and a.ndim > 1 and a.dtype != bool:
                yield a


def test_a_tape_by_columns_lies_column_by_column(by_columns):
    """A process's columns are one piece then, also of a long batch; and no two processes' begin on one cache line."""
    for gan in trained_by_threads(2, "digits", batch_size=40, r2=0.1, steps=2):
        for tape in (gan.tape_G, gan.tape_DG, gan.tape_D, gan.tape_D_real, gan.tape_D_fake):
            assert type(tape) is columns.ColumnTape
            for a in arrays_of(tape):
                wide = a.reshape(len(a), -1)
                assert np.shares_memory(wide, a) and (wide.strides[0] == a.itemsize or wide.shape[1] == 1)
        for c in gan.tape_D.buffers:
            assert c.out.ctypes.data % CACHE_LINE == 0


def test_each_process_has_the_gradient_of_its_rows_only(by_columns):
    options = {
        "discriminator": "6, tanh, maxout 4x2",
        "generator": "5, relu",
        "steps": 1,
        "dtype": "float64",
        "r1": 0.1,
    }
    alone = GAN(**{**OPTIONS, **options}).fit(load("digits"))
    for rank, gan in enumerate(trained_by_threads(2, "digits", **options)):
        for mine, whole in zip(gan.grad_D.layers, alone.grad_D.layers, strict=True):
            if mine:
                rows = np.arange(len(mine[0])) * 2 // len(mine[0]) == rank  # the first half, or the second one
                assert np.allclose(mine[0][rows], whole[0][rows], rtol=1e-9, atol=1e-12) and not mine[0][~rows].any()
                assert np.allclose(mine[1], whole[1], rtol=1e-9, atol=1e-12) and whole[0][~rows].any()


def test_one_of_the_processes_can_sample_alone(by_columns):
    """On a tape of its own: it would wait for the others for ever."""

    def work(rank, ranks):
        gan = GAN(ranks=ranks, **OPTIONS).fit(load("ring"))
        return gan.sample(5, seed=1) if rank == 1 else gan

    gan, x = by_threads(Threads(2), work)
    assert np.array_equal(gan.sample(5, seed=1), x)
    assert gan.probability(x).shape == (5,)


def test_no_step_by_columns_allocates_after_the_first(by_columns):
    D = "dropout 0.8, 512, leaky_relu 0.2, maxout 300x2, 400, tanh"
    ranks = parallel.Ranks(MPI_OF_THREADS, Threads(1).seen_by(0))
    gan = GAN(ranks=ranks, generator="600, relu", discriminator=D, batch_size=128, r1=0.1, r2=0.1, backend="numpy")
    x = np.random.default_rng(0).standard_normal((2000, 600), np.float32)
    gan.build(x)
    for _ in range(5):
        gan.train_step()
    tracemalloc.start()
    for _ in range(3):
        gan.train_step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert type(gan.team) is parallel.Columns and peak < 100_000  # bytes; one row of a batch of 600 has 300 kB


def team_of(generator="600, relu, 600, relu", discriminator="600, relu", on_one_machine=True, **options):
    build = lambda rank, ranks: GAN(ranks=ranks, **{**OPTIONS, **options}).build(load("digits")).team
    options = {"generator": generator, "discriminator": discriminator, **options}
    teams = by_threads(Threads(2, on_one_machine), build)
    assert type(teams[0]) is type(teams[1])
    return type(teams[0])


def test_wide_networks_are_divided_by_columns_and_long_batches_by_rows(monkeypatch):
    assert team_of() is team_of(batch_size=50) is team_of(batch_size=7) is parallel.Columns
    assert team_of(batch_size=100) is parallel.Ranks
    assert team_of("60, relu", "60, relu", batch_size=2) is parallel.Ranks  # too few weights to wait for
    assert team_of(on_one_machine=False) is parallel.Ranks
    assert team_of("fourier 2, 600, relu, 600, relu") is parallel.Ranks
    monkeypatch.setattr(parallel, "LAYERS", tuple(layer for layer in parallel.LAYERS if layer.__name__ != "ReLU"))
    assert team_of() is parallel.Ranks  # who knows what it does
    assert team_of("600, tanh, 600, tanh", "600, sigmoid") is parallel.Columns


def test_gpus_go_by_rows(by_columns):
    def team(rank, ranks, xp):
        ranks.use(SimpleNamespace(xp=xp))
        return ranks.divide(*(parse_layers("6, relu", 5, 1) for _ in range(2)), 4, np.float32)

    for xp, kind in ((np, parallel.Columns), (SimpleNamespace(), parallel.Ranks)):
        assert {type(t) for t in by_threads(Threads(2), functools.partial(team, xp=xp))} == {kind}


def test_columns_need_shared_memory(monkeypatch):
    weights = 8 * 600 + 600 + 600 * 600 + 600 + 600 * 64 + 64 + 64 * 600 + 600 + 200 * 1 + 1
    on_tapes = 12 * (600 * 4 + 64 * 2 + 3 * (600 + 1))  # of a maxout all its pieces
    needed = 2 * 4 * (3 * weights + 6 * on_tapes)
    monkeypatch.setattr(parallel.os.path, "isdir", lambda path: True)
    for free, team in ((needed, parallel.Columns), (needed - 1, parallel.Ranks)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert team_of(discriminator="maxout 200x3") is team


def test_a_run_by_columns_goes_on_alone_bit_for_bit(tmp_path, by_columns):
    """It has all rows: also between two reports."""
    options = dict(steps=20, dtype="float64", lr_end=1.0)

    def until_13(rank, ranks):
        gan = GAN(ranks=ranks, **{**OPTIONS, **options}).build(load("digits"))
        while gan.step < 13:
            gan.train_step()
        return gan

    checkpoint.save(tmp_path, by_threads(Threads(2), until_13)[0])
    gan = checkpoint.load(tmp_path, load("digits"))[0]
    while gan.step < 20:
        gan.train_step()
    whole = GAN(**{**OPTIONS, **options}).fit(load("digits"))
    assert np.allclose(gan.G.theta, whole.G.theta, rtol=1e-11, atol=1e-13)
    assert gan.report() == pytest.approx(whole.history[-1], rel=1e-10)


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
        given = [nbytes for nbytes in threads.given if nbytes > CACHE_LINE]  # the others: where they meet
        took = sum(given[:2]), sum(given[2:])  # G's window is complete before D's is asked for
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
        ranks = parallel.Alone()
        ranks.size = ranks.parts = 5
        GAN(ranks=ranks, **OPTIONS).build(load("digits"))


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
@pytest.mark.parametrize("units", [16, 600], ids=["rows", "columns"])
def test_mpiexec_with_two_ranks_trains_the_same_weights(tmp_path, units):
    options = ["--data", "digits", "--steps", "20", "--batch-size", "16", "--report-every", "5", "--quiet",
               "--generator", f"{units}, relu",
               "--discriminator", f"{units}, leaky_relu 0.2, {units}, tanh"]  # fmt: skip
    script = os.path.join(os.path.dirname(__file__), "..", "train.py")
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    for name, command in (("one", [sys.executable]), ("two", [mpiexec(), "-n", "2", sys.executable])):
        out = str(tmp_path / name)
        subprocess.run([*command, script, *options, "--out", out], check=True, env=env, timeout=120)
    one, two = (np.load(tmp_path / name / "checkpoint.npz") for name in ("one", "two"))
    for theta in ("theta_G", "theta_D", "averaged"):
        assert np.allclose(one[theta], two[theta], rtol=1e-4, atol=1e-6)


def mpi_of(monkeypatch, size, here=1):
    """mpi4py's module as one of ``size`` processes finds it; and the codes given to Abort."""
    codes = []
    world = SimpleNamespace(
        Get_rank=lambda: 1,
        Get_size=lambda: size,
        Abort=codes.append,
        Split_type=lambda kind: machine_of(0, here),
        Ibarrier=lambda: SimpleNamespace(Test=lambda: False),
    )
    MPI = SimpleNamespace(COMM_WORLD=world, IN_PLACE=None, MAX="max", COMM_TYPE_SHARED=None)
    monkeypatch.setenv("PMI_SIZE", str(size))
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=MPI))
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", MPI)
    return MPI, codes


def test_a_process_that_fails_ends_the_others(monkeypatch, capsys):
    MPI, codes = mpi_of(monkeypatch, 2)
    clock = itertools.count(0, 0.1)
    monkeypatch.setattr(parallel.time, "monotonic", lambda: next(clock))

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
    MPI.COMM_WORLD.Ibarrier = lambda: SimpleNamespace(Test=iter([False, False, True]).__next__)  # the others, too
    assert parallel.guarded(lambda: 2) == 2 and codes == [1, 2, 130, 141]
    monkeypatch.setenv("PMI_SIZE", "1")  # alone
    assert parallel.guarded(lambda: 2) == 2
    with pytest.raises(OSError):
        parallel.guarded(fails)
    assert codes == [1, 2, 130, 141]


def test_two_processes_are_ranks_and_one_is_alone(monkeypatch):
    """Each gets threads for its share of the cores of its machine."""
    threads = []
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(Backend, "set_threads", lambda self, n: threads.append(n))
    for size, on_this_machine in ((2, 1), (3, 3), (20, 10)):
        MPI, _ = mpi_of(monkeypatch, size, on_this_machine)
        ranks = parallel.connect()
        assert isinstance(ranks, parallel.Ranks) and (ranks.rank, ranks.size, ranks.local_rank) == (1, size, 0)
    MPI.COMM_WORLD.Get_size = lambda: 1
    assert type(parallel.connect()) is parallel.Alone
    monkeypatch.setenv("PMI_SIZE", "x")
    assert type(parallel.connect()) is parallel.Alone
    assert threads == [8, 2, 1, 8]


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


@pytest.mark.parametrize("first, then", [(1, 2), (2, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("to_columns", [False, True])
def test_between_two_reports_any_number_of_processes_can_go_on(tmp_path, monkeypatch, first, then, to_columns):
    """The next report is then of the rows that the first of the processes before has seen."""
    options = dict(steps=20, dtype="float64", lr_end=1.0, report_every=10)

    def until(step, rank, ranks):
        if step == 13:
            gan = GAN(ranks=ranks, **{**OPTIONS, **options}).build(load("digits"))
        else:
            gan = checkpoint.load(tmp_path, load("digits"), ranks=ranks)[0]
        while gan.step < step:
            gan.train_step()
        return gan

    go = lambda step, size: by_threads(Threads(size), functools.partial(until, step))[0]
    gan = go(13, first) if first > 1 else until(13, 0, None)
    checkpoint.save(tmp_path, gan)
    if to_columns:
        monkeypatch.setattr(parallel, "WAITING", -math.inf)
    later = go(20, then) if then > 1 else until(20, 0, None)
    whole = GAN(**{**OPTIONS, **options}).fit(load("digits"))
    assert np.allclose(later.G.theta, whole.G.theta, rtol=1e-9, atol=1e-12)
    m, rows = gan.m, np.arange(later.m) % gan.m  # of the batch's first rows, those that are recorded
    for half in (0, 1):
        before, after = gan.record_D[:3, half * m :], later.record_D[:3, half * later.m : (half + 1) * later.m]
        assert np.array_equal(after, before[:, rows])
    assert np.array_equal(later.record_G[:3], gan.record_G[:3][:, rows])


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


@pytest.mark.skipif(mpiexec() is None, reason="pip install mpi4py mpich")
@pytest.mark.parametrize("of", ["all", "one"])
def test_a_mistake_ends_mpiexec_with_a_sentence_and_gives_memory_back(tmp_path, of):
    """Of one of the processes: the other one, which waits for it, has to be ended."""
    script = f"""
import os, sys, train
from minigan import GAN, MiniganError, load, parallel

def main(argv=None):
    gan = GAN(ranks=parallel.connect(), backend="numpy").build(load("ring"))
    if "{of}" == "all" or gan.ranks.rank == 1:
        sys.stderr.write("no good\\n")
        return 2
    gan.ranks.any(0)

sys.exit(parallel.guarded(main))
"""
    memory = lambda: set(os.listdir(parallel.SHARED_MEMORY)) if os.path.isdir(parallel.SHARED_MEMORY) else set()
    before, root = memory(), os.path.join(os.path.dirname(__file__), "..")
    job = subprocess.run(
        [mpiexec(), "-n", "2", sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert job.returncode and "no good" in job.stderr
    if of == "all":
        assert job.returncode == 2 and not memory() - before


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
