"""The softmax cross-entropy, and the classifier that is trained with it."""

import numpy as np
import pytest

from minigan import load, losses
from minigan.classifier import ROWS, Classifier


def test_cross_entropy_of_two_classes_is_the_loss_of_a_discriminator():
    s = np.random.default_rng(0).standard_normal((7, 1)) * 5
    two, first = np.concatenate([s, np.zeros_like(s)], axis=1), np.zeros(7, int)
    assert losses.cross_entropy(two, first) == pytest.approx(losses.generator_loss(s), rel=1e-14)
    gradient = losses.cross_entropy_gradient(two, first, np.empty_like(two))
    np.testing.assert_allclose(gradient[:, :1], losses.generator_gradient(s, np.empty_like(s)), rtol=1e-12)
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_of_logits_of_a_thousand_is_exact(dtype):
    logits = np.array([[1000, -1000, 0], [-1000, -1000, -1000]], dtype)
    np.testing.assert_allclose(losses.log_softmax(logits), [[0, -2000, -1000], 3 * [-np.log(3)]], rtol=1e-6)
    assert losses.cross_entropy(logits, np.array([1, 2])) == pytest.approx((2000 + np.log(3)) / 2)
    gradient = losses.cross_entropy_gradient(logits, np.array([1, 2]), np.empty_like(logits))
    assert gradient.dtype == dtype
    np.testing.assert_allclose(gradient, [[0.5, -0.5, 0], [1 / 6, 1 / 6, -1 / 3]], rtol=1e-6, atol=1e-30)


@pytest.fixture(scope="module")
def digits():
    """The embedded digits in a random order: (three quarters, their labels, the rest, their labels)."""
    data = load("digits")
    order = np.random.default_rng(0).permutation(len(data.X))
    held_out, rest = np.split(order, [len(order) // 4])
    return data.X[rest], data.labels[rest], data.X[held_out], data.labels[held_out]


def test_it_learns_the_digits(digits):
    X, labels, x, x_labels = digits
    classifier = Classifier(steps=300).fit(X, labels)
    assert classifier.accuracy(x, x_labels) > 0.95
    p, features = classifier.look(x)
    assert p.dtype == features.dtype == np.float32 and p.shape == (len(x), 10) and features.shape == (len(x), 128)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(classifier.predict(x), p.argmax(axis=1))
    # what the last layer, a Linear one, sees
    W, b = classifier.net.params.layers[-1]
    np.testing.assert_allclose(np.exp(losses.log_softmax(features @ W + b)), p, rtol=1e-3, atol=1e-6)


def test_the_same_seed_gives_the_same_classifier(digits):
    X, labels, *_ = digits
    a, b, c = (Classifier("16, relu", steps=30, seed=seed).fit(X, labels).net.theta for seed in (0, 0, 1))
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a, b)
    assert (a != c).mean() > 0.9


def test_labels_of_any_value_rows_beyond_one_block_and_dropout():
    X = np.tile(np.eye(3, dtype=np.float32), (ROWS, 1))
    labels = np.tile([-7, 40, 1000], ROWS)
    classifier = Classifier("8, relu, dropout 0.9", steps=300).fit(X, labels)
    assert classifier.classes.tolist() == [-7, 40, 1000]
    np.testing.assert_array_equal(classifier.predict(X), labels)
    assert Classifier("8, relu, dropout 0.9", steps=300).fit(X[:3], labels[:3]).accuracy(X, labels) == 1  # small set
    # each epoch leaves out another row
    assert Classifier("8, relu", steps=300, batch_size=2).fit(X[:3], labels[:3]).accuracy(X, labels) == 1
    # dropout takes part in training; which rows come when does not depend on the share that it keeps
    kept = [Classifier(f"dropout {keep}, 8, relu", steps=5).fit(X, labels).net.theta for keep in (0.5, 1)]
    assert (kept[0] != kept[1]).mean() > 0.5
    with pytest.raises(ValueError, match="3000 rows have 2 labels"):
        Classifier().fit(X, labels[:2])
