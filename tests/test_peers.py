"""The benchmark's contenders do the same work: equal weights after equal draws, in float64 to rounding."""

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from benchmarks import operations, peers

SMALL = [w.small() for w in peers.WORKLOADS.values()]
by_workload = pytest.mark.parametrize("workload", SMALL, ids=lambda w: w.name)


def library(name):
    """The library, or a skipped test. What it warns of when it is imported is not our business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


@pytest.fixture
def torch():
    torch = library("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for networks this small
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def jax():
    jax = library("jax")
    jax.config.update("jax_disable_most_optimizations", True)  # it compiles in half the time
    with jax.enable_x64(True):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@by_workload
def test_pytorch_makes_the_same_steps(workload, torch):
    contender = peers.TorchEager(workload, "float64")
    assert peers.disagreement(contender, workload, dtype="float64") < 1e-11
    before = contender.theta()
    assert contender.run(2) == 2  # on its own draws
    for theta, old in zip(contender.theta(), before, strict=True):
        assert np.isfinite(theta).all() and (theta != old).any()


@by_workload
def test_pytorch_makes_the_same_steps_in_float32(workload, torch):
    assert peers.disagreement(peers.TorchEager(workload), workload) < 1e-4


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize("name", ["ring", "images-512-r1", "paper"])
def test_pytorch_makes_the_same_steps_as_one_graph(name, torch, monkeypatch):
    workload = peers.WORKLOADS[name].small()
    monkeypatch.setattr(peers.TorchCompile, "backend", "aot_eager")  # the same graph, without the C++ compiler
    assert peers.disagreement(peers.TorchCompile(workload, "float64"), workload, dtype="float64") < 1e-11


@by_workload
def test_jax_makes_the_same_steps(workload, jax):
    assert peers.disagreement(peers.Jax(workload, "float64"), workload, dtype="float64") < 1e-11


def test_jax_makes_the_same_steps_in_a_compiled_loop(jax):
    workload = peers.WORKLOADS["paper"].small()
    assert peers.disagreement(peers.JaxScan(workload), workload) < 1e-4


@pytest.mark.parametrize("contender", [peers.Jax, peers.JaxScan])
def test_jax_draws_for_itself(contender, jax):
    contender = contender(peers.WORKLOADS["paper"].small())
    before = contender.theta()
    assert contender.run(2) >= 2
    for theta, old in zip(contender.theta(), before, strict=True):
        assert theta.dtype == np.float32 and np.isfinite(theta).all() and (theta != old).any()


@by_workload
def test_several_processes_make_the_same_steps(workload):
    library("mpi4py")
    contender = peers.MiniganProcesses(workload, "float64", processes=2)
    try:
        assert peers.disagreement(contender, workload, dtype="float64") < 1e-11
        before = contender.theta()
        assert contender.run(2) == 2 and contender.process_time() > time.process_time()
        assert all((theta != old).any() for theta, old in zip(contender.theta(), before, strict=True))
    finally:
        contender.close()
    assert contender.job.returncode == 0


@pytest.mark.parametrize("option, value", [("momentum", 0.55), ("r1", 0.11), ("lr", 0.0101), ("loss", "minimax")])
def test_different_work_is_noticed(option, value):
    workload = peers.WORKLOADS["images-512-r1"].small()
    contender = peers.Minigan(workload)
    assert peers.disagreement(peers.Minigan(workload), workload) == 0
    setattr(contender.gan, option, value)
    assert peers.disagreement(contender, workload) > 1e-4


def test_the_products_are_those_of_one_step():
    workload = peers.WORKLOADS["ring"].small()
    products, m = peers.Products(workload), workload.batch_size
    G, D = 2 * (2 * 8 + 8 * 8 + 8 * 2), 2 * (2 * 8 + 8 * 8 + 8)  # floating-point operations for one row
    first, last_G, last_D = 2 * 2 * 8, 2 * 8 * 2, 2 * 8  # the lowest and the highest layers'
    forward = 2 * m * G + 3 * m * D
    weights = 2 * m * D + m * G
    inputs = 2 * m * (D - first - last_D) + m * (D - last_D) + m * (G - first)  # the last of D is no product
    assert products.flops() == forward + weights + inputs and last_G == first
    assert products.run(3) == 3


@by_workload
def test_the_profile_sees_everything_and_changes_nothing(workload, monkeypatch):
    monkeypatch.setattr(operations.Timed, "ledger", operations.Ledger())
    plain, timed = workload.gan(), workload.gan()
    operations.instrument(timed)
    for _ in range(3):
        plain.train_step()
        timed.train_step()
    for net in "GD":
        assert np.array_equal(getattr(plain, net).theta, getattr(timed, net).theta)
    seen = operations.Timed.ledger.times
    assert sum(o.flops * len(times) for o, times in seen.items() if o.shapes.count("×") == 2) == (
        3 * peers.Products(workload).flops()
    )
    width = workload.gan().D.layers[-1].n_in
    assert any(o.caller == "Linear.forward" and o.function == "add" for o in seen)  # an in-place operator
    assert any(o.caller == "SGD.on_cpu" and o.function == "subtract" for o in seen)
    assert any(o.function == "take" for o in seen) and any(o.caller == "draw_prior" for o in seen)
    score = next(o for o in seen if o.shapes.endswith(f"{width} @ {width}×1"))
    assert score.bytes == 4 * (2 * workload.batch_size * (width + 1) + width)
    lines = operations.table(operations.profile(workload, 0.02))
    assert "GFLOP/s" in lines[0] and "a step" in lines[-1]


def test_the_script_times_and_profiles(tmp_path):
    step = [sys.executable, Path(peers.__file__).with_name("step.py"), "--workloads", "ring", "--threads", "1"]
    file = tmp_path / "times.json"
    run = [*step, "--contenders", "products,minigan", "--rounds", "2", "--seconds", "0.02", "--json", file]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "products alone" in done.stdout and "GFLOP/s" in done.stdout
    times = json.loads(file.read_text())["results"][0]["contenders"]
    assert len(times["minigan"]["us"]) == 2 and times["minigan"]["ratios"] == [1, 1]
    assert times["products"]["us"][0] > 0 and times["minigan"]["differs"] == 0
    done = subprocess.run([*step, "--profile", "--seconds", "0.02"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "matrix products" in done.stdout, done.stderr
    done = subprocess.run([*step, "--workloads", "rng"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "'rng' is not one of ring" in done.stderr
