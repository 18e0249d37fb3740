"""The hand-written gradients against numerical ones, and proof that the check itself can fail."""

import re

import numpy as np
import pytest

from minigan import gradcheck, losses
from minigan.layers import Fourier, LeakyReLU, Linear, Maxout, Tanh
from minigan.mlp import MLP, parse_layers


def test_every_gradient_in_the_table_passes():
    checks = list(gradcheck.run(count=200, seed=1))
    assert len(checks) > 30
    failed = [f"{c.name}, {c.method}: {c.error:.1e}" for c in checks if not c.passed]
    assert not failed


def test_random_networks_cover_every_layer_prior_loss_and_update():
    rng = np.random.default_rng(0)
    text = " ".join(str(gradcheck.random_options(rng)) for _ in range(200))
    words = "relu leaky_relu tanh sigmoid maxout dropout fourier normal uniform spherical signs minimax "
    words += "non-saturating simultaneous"
    found = set(re.findall(r"[\w-]+", text))
    assert "'conditional': True" in text and not set(words.split()) - found


START = losses.GradientPenalty.__init__
BREAKAGES = {
    "Linear forgets the batch's first row": (Linear, "_parameter_gradient", lambda self, dout, x, c, g: (
        self.xp.matmul(x[1:].T, dout[1:], out=g[0]), self.xp.matmul(c.ones, dout, out=g[1]))),
    "Linear forgets the bias": (Linear, "_parameter_gradient", lambda self, dout, x, c, g: (
        self.xp.matmul(x.T, dout, out=g[0]), g[1].fill(0))),
    "LeakyReLU passes everything": (LeakyReLU, "_times_derivative", lambda self, a, c, out: a),
    "Maxout takes the first piece": (Maxout, "to_winners", lambda self, dout, c, out: (
        out.fill(0), np.copyto(out[:, 0], dout), out)[2]),
    "Tanh's curvature has the wrong sign": (Tanh, "_second_derivative", lambda self, c: (
        self.xp.multiply(c.out, 2, out=c.e), self.xp.multiply(c.e, c.derivative, out=c.e))),
    "Fourier forgets the octaves": (Fourier, "backward", lambda self, dout, x, p, c, g=None, need_dx=True: (
        c.slope.fill(1), (self._by_group(dout) * c.slope).sum(axis=1, out=c.dx))[1]),
    "Fourier has no curvature": (Fourier, "backward_tangent", lambda self, e, delta, x, xdot, p, c, g, scratch, need_e:
        None if e is None else (c.slope * self._by_group(e)).sum(axis=1)),
    "R1 forgets the tangent's weights": (Linear, "backward_tangent",
        lambda self, e, delta, x, xdot, p, c, g, scratch, need_e: None),
    "R1 penalises the labels too": (losses.GradientPenalty, "__init__",
        lambda self, net, n, features=None, room=(): START(self, net, n)),
    "the cross-entropy forgets the labels": (losses, "cross_entropy_gradient",
        lambda logits, labels, out: np.exp(losses.log_softmax(logits)) / len(labels)),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_gradient_is_found(monkeypatch, name):
    layer, method, wrong = BREAKAGES[name]
    monkeypatch.setattr(layer, method, wrong)
    assert not all(c.passed for c in gradcheck.run(count=5))


def test_a_nan_never_passes():
    assert not gradcheck.Check("", "", float("nan"), 1.0).passed


def test_central_differences_of_a_known_function():
    x = np.array([[0.3, -1.2], [2.0, 0.7]])
    assert np.allclose(gradcheck.central_difference(lambda: (x**3).sum(), x), 3 * x**2, rtol=1e-8, atol=0)
    z = x.astype(complex)
    assert np.allclose(gradcheck.complex_step(lambda: np.sin(z).sum(), z), np.cos(x), rtol=1e-14, atol=0)


def test_kinks_are_seen():
    for text, distance in (("2, relu", 0.25), ("2, leaky_relu 0.2", 0.25), ("maxout 1x2", 0.75), ("2, tanh", np.inf)):
        net = MLP(parse_layers(text, 1, 1), dtype=np.float64)
        net.params.layers[0][1][...] = [-0.25, 0.5]
        tape = net.tape(1)
        net.forward(np.zeros((1, 1)), tape)
        assert gradcheck.kink_distance(net, tape) == distance


def test_a_tensor_too_small_to_judge_is_not_judged():
    net = MLP([Linear(2, 1)], dtype=np.float64)
    grad = net.vector()
    assert gradcheck.worst_error(grad, np.full(3, 1e-9), np.asarray, judgeable=1e-3) is None
    assert gradcheck.worst_error(grad, np.full(3, 1e-2), np.asarray, judgeable=1e-3) == 1.0
    assert gradcheck.worst_error(grad, np.zeros(3), np.asarray, judgeable=1e-3) == 0.0
    for found, error in ((1e-16, None), (1e-9, 1.0)):  # behind a saturated tanh; a wrong one
        grad.flat[...] = found
        assert gradcheck.worst_error(grad, np.zeros(3), np.asarray, judgeable=1e-3) == error
