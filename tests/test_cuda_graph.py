"""The training step that is replayed as a CUDA graph: on NumPy the same step without one, on a GPU the real thing."""

import numpy as np
import pytest

from benchmarks.cuda_graph import GraphedGAN
from benchmarks.peers import WORKLOADS
from minigan import MiniganError, checkpoint, load
from minigan.gan import GAN

CHANGING = dict(steps=500, lr_end=0.5, lr_D=0.005, momentum_end=0.7, r1_end=0.01, average=0.9)  # in every step


def both(name, backend="numpy"):
    start = WORKLOADS[name].small().gan()
    options = {**start.options(), **CHANGING, "backend": backend}
    return GAN(**options).build(start.data), GraphedGAN(**options).build(start.data)


@pytest.mark.parametrize("name", WORKLOADS)
def test_it_is_the_same_training(name):
    gan, graphed = both(name)
    for _ in range(len(gan.data.X) // gan.batch_size + 30):  # into the second epoch
        gan.train_step()
        graphed.train_step()
    weights = lambda gan: (gan.G.theta, gan.D.theta, gan.averaged.flat)
    for one, other in zip(weights(gan), weights(graphed), strict=True):
        assert np.allclose(one, other, rtol=0, atol=1e-6)  # the table holds the rates in float32, R1's among them
    assert gan.report() == pytest.approx(graphed.report(), rel=1e-5)


def test_a_training_goes_on_without_the_graph(tmp_path):
    gan, graphed = both("paper")
    for _ in range(10):
        gan.train_step()
        graphed.train_step()
    checkpoint.save(tmp_path, graphed)
    again = checkpoint.load(tmp_path, gan.data)[0]
    for _ in range(10):
        gan.train_step()
        again.train_step()
    assert np.array_equal(gan.G.theta, again.G.theta)


def test_what_changes_on_the_host_cannot_be_replayed():
    for data, options in (
        ("ring", {}),
        ("digits", {"optimizer": "adam"}),
        ("digits", {"k": 2}),
        ("digits", {"dtype": "float64"}),
    ):
        with pytest.raises(ValueError, match="finite data set, SGD, k = 1"):
            GraphedGAN(**options, backend="numpy").build(load(data))


@pytest.mark.gpu
@pytest.mark.parametrize("name", WORKLOADS)
def test_the_graph_does_what_the_kernels_do(name):
    try:
        gan, graphed = both(name, "cupy")
    except MiniganError as error:
        pytest.skip(str(error))
    start = gan.G.theta.get()
    for _ in range(20):
        gan.train_step()
        graphed.train_step()
    assert graphed.graph is not None
    change = np.linalg.norm(gan.G.theta.get() - start)
    assert np.linalg.norm(gan.G.theta.get() - graphed.G.theta.get()) < 1e-3 * change
