"""Layers, networks, losses, optimisers: values, shapes, dtypes, and what must not change."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

from minigan import backend, losses, optim
from minigan.backend import CACHE_LINE, empty, zeros
from minigan.errors import MiniganError
from minigan.layers import Dropout, LeakyReLU, Maxout, ReLU
from minigan.mlp import MLP, parse_layers

OPENBLAS = backend.of_numpys_openblas("cblas_saxpby")[0] is not None
EVERY_LAYER = "fourier 2, 6, tanh, dropout 0.8, maxout 5x3, 4, sigmoid, 4, leaky_relu 0.2, 3, relu"


def network(text=EVERY_LAYER, n_in=3, n_out=1, dtype=np.float32, seed=0):
    net = MLP(parse_layers(text, n_in, n_out), dtype=dtype)
    net.initialise(np.random.default_rng(seed))
    return net


def test_views_share_memory_with_theta_and_cover_it():
    net = network()
    for i, views in enumerate(net.params.layers):
        for view in views:
            assert np.shares_memory(view, net.theta)
            view[...] = i + 1
    assert (net.theta > 0).all()
    assert net.theta.size == sum(v.size for views in net.params.layers for v in views)


def test_forward_equals_the_formulas():
    net = network("4, relu, maxout 3x2", n_in=2, dtype=np.float64)
    (W1, b1), _, (W2, b2), (W3, b3) = net.params.layers
    x = np.random.default_rng(1).standard_normal((5, 2))
    b1[...], b2[...], b3[...] = 0.1, -0.2, 0.3
    h = np.maximum(x @ W1 + b1, 0)
    a = h @ W2 + b2
    h = np.maximum(a[:, :3], a[:, 3:])
    assert np.allclose(net.forward(x, net.tape(5)), h @ W3 + b3, atol=1e-14)


def test_each_tape_keeps_its_own_pass():
    net = network(dtype=np.float64)
    rng = np.random.default_rng(2)
    x1, x2, dout = rng.standard_normal((3, 4, 3))[0], rng.standard_normal((4, 3)), rng.standard_normal((4, 1))
    tape1, tape2, alone, after = net.tape(4), net.tape(4), net.vector(), net.vector()
    net.forward(x1, tape1)
    net.backward(dout, tape1, alone)
    net.forward(x1, tape1)
    net.forward(x2, tape2)  # what the public NumPy GANs get wrong: the fake pass over the real one
    net.backward(dout, tape1, after)
    assert np.array_equal(alone.flat, after.flat)


def test_the_caller_may_change_x_after_the_forward_pass():
    net = network(dtype=np.float64)
    x, dout, tape = np.ones((4, 3)), np.ones((4, 1)), net.tape(4)
    grads = []
    for spoil in (False, True):
        net.forward(x, tape)
        if spoil:
            x[...] = 99
        grads.append(net.vector())
        net.backward(dout, tape, grads[-1])
    assert np.array_equal(grads[0].flat, grads[1].flat)


def test_backward_computes_only_what_is_asked_for():
    net = network("dropout 0.8, 5, relu", dtype=np.float64)
    tape, grad = net.tape(4), net.vector()
    net.forward(np.random.default_rng(0).standard_normal((4, 3)), tape)
    for c in tape.buffers:
        c.dx[...] = 7
    net.backward(np.ones((4, 1)), tape, grad, need_dx=False)
    assert (tape.buffers[0].dx == 7).all() and (tape.buffers[1].dx == 7).all()  # nothing below the first weights
    before = grad.flat.copy()
    assert net.backward(np.ones((4, 1)), tape).shape == (4, 3)
    assert np.array_equal(grad.flat, before)


def test_a_slice_of_a_tape_is_a_view():
    net = network(dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((6, 3))
    tape = net.tape(6)
    net.forward(x, tape)
    both = net.backward(np.ones((6, 1)), tape).copy()
    assert np.allclose(net.backward(np.ones((2, 1)), tape[4:]), both[4:], rtol=1e-12)
    assert np.shares_memory(tape[4:].out, tape.out)


def arrays(tape):
    """Every array of a tape but the vectors."""
    for c in tape.buffers:
        for name, value in vars(c).items():
            if name == "affine":
                yield from vars(value).values()
            else:
                yield value


def test_a_wide_batch_lies_column_by_column_and_all_of_one_shape_lie_alike():
    tape = network(n_in=5).tape(3)
    found = set()
    for a in filter(lambda a: a.ndim > 1, [tape.x, *arrays(tape)]):
        wide = a.reshape(3, -1) if a.shape[1:] != (1,) else a
        assert np.shares_memory(wide, a)
        assert wide.flags.f_contiguous if wide.shape[1] > 3 else wide.flags.c_contiguous
        found.add((a.ndim, wide.flags.c_contiguous))
    assert found == {(2, True), (2, False), (3, False)}


@pytest.mark.parametrize("rows", [3, 40])
def test_arrays_begin_with_a_cache_line(rows):
    net = network(n_in=5)
    tape, adam = net.tape(rows), optim.Adam(net.theta)
    penalty = losses.GradientPenalty(net, rows)
    found = [tape.x, net.theta, net.vector().flat, adam.buffer, *adam.state.values(), penalty.xdot]
    found += [a for a in arrays(tape) if a.ndim > 1]
    assert all(a.ctypes.data % CACHE_LINE == 0 for a in found) and len(found) > 40


@pytest.mark.parametrize("shape, order", [((7,), "C"), ((0, 3), "C"), ((3, 0), "F"), ((5, 3, 2), "C"), ((3, 5), "F")])
@pytest.mark.parametrize("dtype", [bool, np.float32, np.complex128])
def test_empty_arrays_have_room_for_what_they_are_asked_for(shape, order, dtype):
    a, around = empty(np, shape, dtype, order), [np.ones(shape, dtype) for _ in range(9)]
    assert (a.shape, a.dtype, a.flags.writeable) == (shape, np.dtype(dtype), True)
    assert a.flags.f_contiguous if order == "F" else a.flags.c_contiguous
    a[...] = 0
    assert not a.any() and all(b.all() for b in around) and a.base.nbytes >= a.nbytes
    assert (zeros(np, shape, dtype) == 0).all()


def test_few_rows_and_many_give_the_same_gradients():
    """However their arrays lie: 4 rows are wide here, but for the narrowest layers, and 40 long."""
    net = network(dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((40, 3))
    whole, dx_whole = gradients(net, x)
    parts = [gradients(net, x[i : i + 4]) for i in range(0, 40, 4)]
    assert np.allclose(np.mean([grad for grad, _ in parts], 0), whole, rtol=1e-10, atol=1e-14)
    assert np.allclose(np.concatenate([dx for _, dx in parts]) / 10, dx_whole, rtol=1e-10, atol=1e-16)


def gradients(net, x):
    """(gradient of the mean of the outputs and R1, dx of the first) for rows x."""
    tape, grad = net.tape(len(x)), net.vector()
    net.forward(x, tape)
    dx = net.backward(np.full((len(x), 1), 1 / len(x)), tape, grad).copy()
    losses.GradientPenalty(net, len(x)).add_gradient(tape, 0.3, grad)
    return grad.flat, dx


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_pass_keeps_the_dtype_and_its_inputs(dtype):
    net = network(dtype=dtype)
    tape, grad, scratch = net.tape(4), net.vector(), net.vector()
    x, dout = np.ones((4, 3), dtype), np.ones((4, 1), dtype)
    out = net.forward(x, tape, np.random.default_rng(0))
    dx = net.backward(dout, tape, grad)
    losses.GradientPenalty(net, 4).add_gradient(tape, 0.1, grad)
    for c in tape.buffers:
        for name, array in vars(c).items():
            if isinstance(array, np.ndarray) and array.dtype != bool:
                assert array.dtype == dtype, name
    assert {out.dtype, dx.dtype, grad.flat.dtype, scratch.flat.dtype} == {np.dtype(dtype)}
    assert (x == 1).all() and (dout == 1).all()


def test_maxout_gives_a_tie_to_one_piece_only():
    layer = Maxout(2, 1, 3)
    net = MLP([layer], dtype=np.float64)
    tape, grad = net.tape(1), net.vector()
    net.forward(np.ones((1, 2)), tape)  # all pieces are 0
    net.backward(np.ones((1, 1)), tape, grad)
    assert grad.layers[0][1].tolist() == [1, 0, 0]


def test_a_relu_ends_below_and_not_above():
    x = np.array([[-3e38, -1, 0, 1, 3e38]], np.float32)
    for slope in (0, 0.2):
        layer = ReLU(5) if slope == 0 else LeakyReLU(5, slope)
        c = layer.buffers(1, np.float32)
        assert np.array_equal(layer.forward(x, (), c), np.where(x > 0, x, np.float32(slope) * x))
        assert np.array_equal(layer.backward(x, x, (), c), np.where(x > 0, x, np.float32(slope) * x))


def test_a_leaky_relu_at_zero_takes_the_lower_branch():
    net = MLP([LeakyReLU(3, 0.2)], dtype=np.float64)
    tape = net.tape(1)
    net.forward(np.array([[-1.0, 0.0, 1.0]]), tape)
    assert net.backward(np.ones((1, 3)), tape).tolist() == [[0.2, 0.2, 1.0]]


def test_r1_of_the_examples_worked_out_by_hand_in_the_mathematics():
    text = (Path(__file__).parents[1] / "docs" / "math.md").read_text(encoding="utf-8")
    program = text.split("```python")[1].split("```")[0]
    promised = program.split("# [[4.]] [")[1].split("]")[0]
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(program, names)
    assert names["norms"].item() / 2 == 4
    assert names["grad"].flat.tolist() == [float(number) for number in promised.split()]

    net = network("1, sigmoid", n_in=1, dtype=np.float64)
    net.theta[...] = 2, np.log(3) - 6, 16, 0
    tape, grad = net.tape(1), net.vector()
    net.forward(np.array([[3.0]]), tape)
    norms = losses.GradientPenalty(net, 1).add_gradient(tape, 1.0, grad)
    assert norms.item() / 2 == pytest.approx(18)
    assert grad.flat == pytest.approx([-36, -18, 2.25, 0])


def test_dropout_keeps_the_share_and_the_mean():
    net = MLP([Dropout(1000, 0.8)], dtype=np.float32)
    tape = net.tape(200)
    out = net.forward(np.ones((200, 1000), np.float32), tape, np.random.default_rng(0))
    assert set(np.unique(out).round(6)) == {0, 1.25}
    assert abs((out > 0).mean() - 0.8) < 0.003
    assert (net.forward(np.ones((200, 1000), np.float32), tape) == 1).all()  # none outside training


def test_initialisation_has_the_variance_it_claims():
    for scheme, expected in (("he", 2 / 300), ("glorot", 2 / 500), (0.05, 0.05**2 / 3)):
        net = MLP(parse_layers("", 300, 200), dtype=np.float64)
        net.theta[...] = 7
        net.initialise(np.random.default_rng(0), scheme)
        W, b = net.params.layers[0]
        assert abs(W.var() / expected - 1) < 0.02 and not b.any()


@pytest.mark.parametrize(
    "text",
    "8, rulu|0|-3|leaky_relu 2|leaky_relu 1|leaky_relu -0.1|dropout 0|dropout 1.5|dropout x|maxout 4|maxout 0x2|"
    "relu 3 4|1.5|fourier 0|fourier 17".split("|"),
)
def test_a_layer_that_is_not_understood_is_named(text):
    with pytest.raises(MiniganError, match="is not understood"):
        parse_layers(text, 2, 1)


# -- Losses --------------------------------------------------------------------------------------------


def test_an_undecided_discriminator_has_value_minus_log_4():
    s = np.zeros((6, 1))
    assert losses.value(s, s) == pytest.approx(-np.log(4), abs=1e-15)
    assert losses.DiscriminatorLoss(3, dtype=np.float64)(s) == pytest.approx(2 * np.log(2), abs=1e-15)
    assert losses.generator_loss(s) == pytest.approx(np.log(2)) == -losses.generator_loss(s, "minimax")


def test_value_is_minus_two_bce():
    s = np.random.default_rng(0).standard_normal((10, 1)) * 5
    labels = np.repeat([1, 0], 5)[:, None]
    assert abs(losses.value(s[:5], s[5:]) + 2 * losses.bce(s, labels)) < 1e-12
    D = losses.sigmoid(s)
    assert abs(losses.value(s[:5], s[5:]) - np.log(D[:5]).mean() - np.log(1 - D[5:]).mean()) < 1e-12


def test_gradients_in_terms_of_D():
    s = np.random.default_rng(0).standard_normal((8, 1)) * 3
    D, out = losses.sigmoid(s), np.empty_like(s)
    ds = losses.DiscriminatorLoss(4, dtype=np.float64).gradient(s, out)
    assert np.allclose(ds, np.concatenate([D[:4] - 1, D[4:]]) / 4, rtol=1e-12, atol=0)
    assert np.allclose(losses.generator_gradient(s, out, "minimax"), -D / 8, rtol=1e-12, atol=0)
    assert np.allclose(losses.generator_gradient(s, out), (D - 1) / 8, rtol=1e-12, atol=0)


def test_the_non_saturating_gradient_is_stronger_by_the_odds_against():
    s = np.full((1, 1), np.log(1e-4 / (1 - 1e-4)), np.float32)  # D = 1e-4
    strong, weak = (losses.generator_gradient(s, np.empty_like(s), kind).item() for kind in losses.LOSSES)
    assert strong / weak == pytest.approx((1 - 1e-4) / 1e-4, rel=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_a_thousand_are_exact(dtype):
    s = np.array([[1000.0], [-1000.0], [1000.0], [-1000.0]], dtype)
    loss = losses.DiscriminatorLoss(2, dtype=dtype)
    assert loss(s) == 1000  # (0 + 1000)/2 for real and (1000 + 0)/2 for fake
    assert loss.gradient(s, np.empty_like(s)).ravel().tolist() == [0, -0.5, 0.5, 0]
    assert losses.sigmoid(s).ravel().tolist() == [1, 0, 1, 0]
    assert losses.generator_loss(s, "minimax").dtype == dtype


# -- Optimisers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("blas", [True, False])
@pytest.mark.parametrize("dtype, rtol, atol", [("float64", 1e-12, 1e-14), ("float32", 1e-6, 1e-6)])
@pytest.mark.parametrize("size", [5, optim.CACHE_PIECE, 2 * optim.CACHE_PIECE + 7])
def test_sgd_is_the_papers_update(size, dtype, rtol, atol, blas, monkeypatch):
    if not blas:
        monkeypatch.setattr(backend, "of_numpys_openblas", lambda name: (None, None))
    rng = np.random.default_rng(0)
    theta = rng.standard_normal(size).astype(dtype)
    expected, v = theta.astype(float), np.zeros(size)
    sgd = optim.SGD(theta)
    assert (sgd.axpby is not None) == (size > optim.CACHE_PIECE and OPENBLAS and blas)
    for momentum in (0.7, 0.0, 0.5):
        grad = rng.standard_normal(size).astype(dtype)
        v = momentum * v - 0.1 * grad.astype(float)
        expected = expected + v
        sgd.step(theta, grad, 0.1, momentum)
    assert np.allclose(theta, expected, rtol=rtol, atol=atol)
    assert np.allclose(sgd.state["velocity"], v, rtol=rtol, atol=atol)


@pytest.mark.skipif(not OPENBLAS, reason="this NumPy has another BLAS")
def test_axpby_is_numpys_three_passes_to_rounding():
    for dtype, tolerance in (("float64", 1e-15), ("float32", 1e-7)):
        x, y = np.random.default_rng(0).standard_normal((2, 1001)).astype(dtype)
        expected, axpby = 0.25 * x.astype(float) - 2 * y.astype(float), backend.Axpby(np.dtype(dtype))
        axpby(np.float32(0.25), x[1:-1], -2, y[1:-1])
        assert y[1:-1] == pytest.approx(expected[1:-1], rel=10 * tolerance, abs=10 * tolerance)
        assert abs(y[[0, -1]] - expected[[0, -1]]).min() > 0.1  # only what it was given
    with pytest.raises(NotImplementedError, match="axpby for complex128"):
        backend.Axpby(np.dtype(complex))


def test_adam_is_algorithm_1_of_its_paper():
    rng = np.random.default_rng(0)
    theta = rng.standard_normal(50)
    expected, m, v, power = theta.copy(), 0, 0, 1
    adam = optim.Adam(theta)
    for t, beta1 in enumerate([0.9, 0.9, 0.8, 0.7, 0.5], start=1):  # β₁ may follow a schedule
        grad = rng.standard_normal(50) * 1e-7  # so small that ε counts
        m, v, power = beta1 * m + (1 - beta1) * grad, 0.999 * v + 0.001 * grad**2, power * beta1
        expected -= 0.01 * (m / (1 - power)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        adam.step(theta, grad, 0.01, beta1)
    assert np.allclose(theta, expected, rtol=1e-11, atol=1e-13)


def test_a_linear_schedule_reaches_its_end_and_stays():
    assert [optim.linear(1.0, 0.5, t, 10) for t in (0, 5, 10, 20)] == [1.0, 0.75, 0.5, 0.5]


def test_the_penalty_works_in_the_room_it_is_given_if_that_is_large_enough():
    net = MLP(parse_layers("5, tanh, 4", 3, 1), np, np.float64)
    net.initialise(np.random.default_rng(0))
    tape, grads = net.tape(6), []
    for room in (np.zeros(0), np.zeros(4 * 5 + 3), np.zeros(4 * 5 + 4), np.zeros(99)):
        net.forward(np.random.default_rng(1).standard_normal((6, 3)), tape)
        grads.append(net.vector())
        losses.GradientPenalty(net, 6, room=room).add_gradient(tape, 0.3, grads[-1])
        assert room.any() == (len(room) >= 24)
    assert all(np.array_equal(grad.flat, grads[0].flat) for grad in grads)
