"""A classifier that starts from a trained D, and examples/20: the labels it reads, the gradient of K + 1 classes."""

import numpy as np
import pytest
from test_claims import SCRIPTS, load_script

from minigan import GAN, gradcheck, load, losses
from minigan.classifier import Classifier
from minigan.data import from_array
from minigan.inference import Encoder
from minigan.mlp import MLP, parse_layers
from minigan.optim import Adam, linear

HIDDEN = "12, leaky_relu 0.2, 8, leaky_relu 0.2"
COPIED = 64 * 12 + 12 + 12 * 8 + 8  # weights of those layers, for 64 pixels
HIDDEN_20 = 64 * 128 + 128 + 128 * 128 + 128  # of those of the example


@pytest.fixture(scope="module")
def example():
    return load_script(next(path for path in SCRIPTS if path.stem.startswith("20")))


@pytest.fixture(scope="module")
def digits():
    data = load("digits")
    return data.X[:300], data.labels[:300]


@pytest.fixture(scope="module")
def gan(digits):
    """A GAN that has seen the images and no labels."""
    options = dict(generator="16, relu", discriminator=HIDDEN, init_D="he", steps=50)
    gan = GAN(**options).fit(from_array(digits[0].reshape(-1, 8, 8)))
    assert gan.data.labels is None
    return gan


def fit(digits, gan=None, hidden=HIDDEN, **options):
    return Classifier(hidden, **{"steps": 20, **options}).fit(*digits, start=gan and gan.D).net


def test_only_the_last_layer_is_drawn(digits, gan):
    net, scratch = fit(digits, gan, steps=0), fit(digits, steps=0)
    np.testing.assert_array_equal(net.theta[:COPIED], gan.D.theta[:COPIED])
    np.testing.assert_array_equal(net.theta[COPIED:], scratch.theta[COPIED:])
    assert (net.theta[:COPIED] != scratch.theta[:COPIED]).any()
    net.theta[...] = 0  # it was copied
    assert gan.D.theta.any()


def test_tune_is_the_rate_of_the_copied_layers(digits, gan):
    moved = [np.abs(fit(digits, gan, tune=tune).theta[:COPIED] - gan.D.theta[:COPIED]).mean() for tune in (0, 0.1, 1)]
    assert moved[0] == 0 < 5 * moved[1] < moved[2]
    net, last = fit(digits, gan, tune=0), fit(digits, gan, steps=0).theta[COPIED:]
    assert (net.theta[COPIED:] != last).all()


def test_dropout_may_differ_and_shapes_may_not(digits, gan):
    net = fit(digits, gan, "dropout 0.9, 12, leaky_relu 0.2, dropout 0.5, 8, leaky_relu 0.2", tune=0)
    np.testing.assert_array_equal(net.theta[:COPIED], gan.D.theta[:COPIED])
    for hidden in ("12, leaky_relu 0.2", "8, leaky_relu 0.2, 12, leaky_relu 0.2"):
        with pytest.raises(ValueError, match=r"weights \[.*\(12, 8\)\]: they must agree"):
            fit(digits, gan, hidden)


def test_without_a_start_it_is_one_adam_over_all_weights(digits):
    X, labels = digits
    net, rng = MLP(parse_layers(HIDDEN, 64, 10)), np.random.default_rng(0)
    net.initialise(rng)
    tape, grad, adam, order = net.tape(128), net.vector(), Adam(net.theta), []
    dlogits = np.empty_like(tape.out)
    for step in range(20):
        if len(order) < 128:
            order = rng.permutation(300)
        rows, order = order[:128], order[128:]
        losses.cross_entropy_gradient(net.forward(X[rows], tape, rng), labels[rows], dlogits)
        net.backward(dlogits, tape, grad)
        adam.step(net.theta, grad.flat, linear(0.002, 0, step, 20), 0.9)
    for tune in (0, 1):  # of no meaning here
        np.testing.assert_array_equal(fit(digits, tune=tune).theta, net.theta)


@pytest.fixture(scope="module")
def seen(example):
    """(X, labels) of 700 digits, a GAN and an Encoder in the example's shapes that have seen them without labels."""
    data = load("digits")
    X = data.X[:700]
    options = dict(generator="16, relu", discriminator=example.HIDDEN, init_D="he", average=0.0, steps=30)
    gan = GAN(**options).fit(from_array(X.reshape(-1, 8, 8)))
    encoder = Encoder(gan, layers=example.HIDDEN, steps=10).fit()
    assert gan.data.labels is None and encoder.data is gan.data
    return X, data.labels[:700], gan, encoder


@pytest.mark.parametrize("n", [100, 600])
def test_labels_outside_the_chosen_rows_are_never_read(seen, example, n):
    X, labels, gan, encoder = seen
    rows = np.random.default_rng(1).permutation(len(X))[:n]
    others = np.setdiff1d(np.arange(len(X)), rows)
    scrambled, wrong = labels.copy(), labels.copy()
    scrambled[others] = np.random.default_rng(2).integers(10, 99, len(others))
    wrong[rows[:50]] = wrong[rows[:50]][::-1]
    a, b, c = (example.train(X, y, rows, gan, encoder.E, 0, steps=10) for y in (labels, scrambled, wrong))
    assert list(a) == list(example.COLORS)
    for name in a:
        np.testing.assert_array_equal(a[name].net.theta, b[name].net.theta, err_msg=name)
        assert (a[name].net.theta != c[name].net.theta).any(), name


def test_every_method_starts_from_what_its_name_says(seen, example):
    """After one step of Adam no weight is further from D's or E's than the rate; fixed ones have not moved at all."""
    X, labels, gan, encoder = seen
    for name, classifier in example.train(X, labels, np.arange(600), gan, encoder.E, 0, steps=1).items():
        for net, start in {"D": gan.D.theta, "E": encoder.E.theta}.items():
            moved = np.abs(classifier.net.theta[:HIDDEN_20] - start[:HIDDEN_20]).max()
            if name.startswith(f"{net}'s"):
                assert moved == 0 if "fixed" in name else 0 < moved < 0.0041, name
            else:
                assert moved > 0.1, name


def test_log_sum_exp_is_d_of_k_plus_1_classes_and_its_gradients_are_right(example):
    rng = np.random.default_rng(0)
    net = MLP([*parse_layers("6, tanh, 5, leaky_relu 0.2", 3, 4), example.LogSumExp(4)], dtype=np.float64)
    net.initialise(rng)
    x, tape = rng.standard_normal((7, 3)), net.tape(7)
    logits = np.concatenate([net.forward(x, tape) * 0, tape.inputs[-1]], axis=1)  # the fake class has logit 0
    share = np.exp(losses.log_softmax(logits))
    np.testing.assert_allclose(losses.sigmoid(tape.out[:, 0]), 1 - share[:, 0], rtol=1e-12)

    penalty, scratch = losses.GradientPenalty(net, 7), net.vector()

    def loss():
        """The generator's loss, smooth in s, and R1 with γ = 0.3."""
        value = losses.generator_loss(net.forward(x, tape))
        return value + penalty.add_gradient(tape, 0.3, scratch).sum() / 2

    numerical = gradcheck.central_difference(loss, net.theta)
    grad, s = net.vector(), net.forward(x, tape)
    net.backward(losses.generator_gradient(s, np.empty_like(s)), tape, grad)
    assert gradcheck.relative_error(grad.flat, numerical) > 1e-3  # R1 counts
    penalty.add_gradient(tape, 0.3, grad)
    assert gradcheck.relative_error(grad.flat, numerical) < 1e-6
