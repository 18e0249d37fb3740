"""Learned inference: E reads z from x, G stays as it is."""

import numpy as np
import pytest

from minigan import GAN, gradcheck, load
from minigan.data import from_array
from minigan.errors import Diverged, MiniganError
from minigan.inference import Encoder
from minigan.masked import MaskedGAN

SMALL = dict(layers="16, relu", steps=20, batch_size=10)


def small_gan(X=None, **options):
    """A GAN on 40 rows of a table in units far from the network's, with random weights: nothing here needs a good G."""
    if X is None:
        X = 1000 + 50 * np.random.default_rng(0).standard_normal((40, 3))
    options = dict(generator="8, tanh", discriminator="8, relu", latent_dim=2, batch_size=10, backend="numpy") | options
    return GAN(**options).build(X)


def test_every_gradient_of_an_encoder_passes():
    checks = gradcheck.check_encoder()
    assert {c.method for c in checks} == set(gradcheck.LIMITS) and all(c.passed for c in checks)


def test_its_random_numbers_are_not_those_of_the_gan():
    gan = small_gan(seed=3, generator="64, tanh", latent_dim=3)
    encoder = Encoder(gan, layers="64, tanh", batch_size=10, seed=3).build()
    first = [net.params.layers[0][0].ravel() for net in (encoder.E, gan.G)]  # both "he"
    assert abs(np.corrcoef(first)[0, 1]) < 0.3


@pytest.mark.parametrize("wrong", ["z", "x"])
def test_a_broken_gradient_is_found(monkeypatch, wrong):
    right = Encoder.gradient

    def gradient(self):
        right(self)
        half = slice(None, len(self.z)) if wrong == "z" else slice(len(self.z), None)
        self.dz[half] = 0
        self.E.backward(self.dz, self.tape_E, self.grad, need_dx=False)

    monkeypatch.setattr(Encoder, "gradient", gradient)
    assert not any(c.passed for c in gradcheck.check_encoder())


def test_the_loss_by_hand():
    """Of 10 fresh z and 10 rows of the data, both terms a mean over rows and columns, in the network's units."""
    gan = small_gan()
    e = Encoder(gan, "5, tanh", batch_size=10, weight=3.0).build()
    e.draw()
    loss, z, x = e.forward(), e.z.copy(), gan.data.denormalise(e.tape_E.x[10:])
    by_z = np.square(e.encode(gan.decode(z)) - z).sum() / (10 * 2)
    by_x = np.square((e.reconstruct(x) - x) / gan.data.scale).sum() / (10 * 3)
    assert loss == pytest.approx(by_z + 3 * by_x, rel=1e-3) and e.error_z == pytest.approx(by_z, rel=1e-3)
    assert not np.array_equal(z, (e.draw(), e.z)[1])  # fresh z each time


def test_shapes_and_units():
    gan = small_gan()
    e = Encoder(gan, **SMALL).fit()
    x = gan.data.X[:7]
    z, again = e.encode(x), e.reconstruct(x)
    assert z.shape == (7, 2) and again.shape == (7, 3) and z.dtype == again.dtype == np.float32
    np.testing.assert_allclose(again, gan.decode(z), rtol=1e-6)
    assert np.abs(again - x).max() < 500 and np.abs(z).max() < 20  # x is about 1000: E sees it standardised


def test_it_learns_on_rows_of_the_training_data_only():
    """A finite set and a stream: each minibatch's lower half are rows of the data; all of them come."""
    gan = small_gan()
    e, seen = Encoder(gan, **SMALL).build(), []
    for _ in range(4):  # an epoch
        e.draw()
        seen += e.tape_E.x[10:].tolist()
    assert sorted(seen) == sorted(gan.data.normalise(gan.data.X).astype(np.float32).tolist())
    ring = Encoder(small_gan(load("ring")), **SMALL).build()
    ring.draw()
    assert np.allclose(np.linalg.norm(ring.tape_E.x[10:], axis=1), 3, atol=0.15)  # radius 2, scale 2/3


def test_nothing_of_the_gan_changes_and_its_averaged_weights_are_copied():
    gan, twin = (small_gan(seed=5) for _ in range(2))
    for g in (gan, twin):
        for _ in range(10):  # until there is an average
            g.train_step()
        g.averaged.flat[...] *= 0.5
    weights = [v.copy() for v in (gan.G.theta, gan.D.theta, gan.averaged.flat)]
    e = Encoder(gan, **SMALL).fit()
    assert all(map(np.array_equal, weights, (gan.G.theta, gan.D.theta, gan.averaged.flat)))
    assert np.array_equal(e.G.theta, weights[2]) and not np.array_equal(e.G.theta, weights[0])
    gan.train_step(), twin.train_step()  # neither its batches nor its random numbers were touched
    assert np.array_equal(gan.G.theta, twin.G.theta) and np.array_equal(gan.sample(3), twin.sample(3))
    for plain in (small_gan(average=0.0), small_gan()):
        plain.train_step()
        assert np.array_equal(Encoder(plain, **SMALL).build().G.theta, plain.G.theta)  # no average, or not yet


def test_the_seed_decides_and_fit_begins_again():
    gan = small_gan()
    a, b, c = (Encoder(gan, **SMALL, seed=seed).fit() for seed in (0, 0, 1))
    assert np.array_equal(a.E.theta, b.E.theta) and not np.array_equal(a.E.theta, c.E.theta)
    first = a.E.theta.copy()
    assert np.array_equal(a.fit().E.theta, first)


def test_dropout_takes_part_in_training_and_not_in_encoding():
    gan = small_gan()
    half, all_of_it = (Encoder(gan, f"16, relu, dropout {keep}", steps=5, batch_size=10).fit() for keep in (0.5, 1))
    assert not np.array_equal(half.E.theta, all_of_it.E.theta)
    assert np.array_equal(half.encode(gan.data.X), half.encode(gan.data.X))


def test_it_finds_z_of_a_known_generator():
    """G(z) = z A is invertible: E reads z, and G(E(x)) is x; with no weight on x, E(x) still learns from z alone."""
    A = np.array([[1.0, 0.5], [-0.5, 1.0]], np.float32)
    X = np.random.default_rng(1).standard_normal((500, 2)) @ A
    gan = small_gan(X, generator="", average=0.0)
    gan.G.params.layers[0][0][...] = A / gan.data.scale
    gan.G.params.layers[0][1][...] = -gan.data.shift / gan.data.scale
    z = np.random.default_rng(2).standard_normal((300, 2))
    for weight in (0.0, 1.0):
        e = Encoder(gan, "32, relu", steps=500, batch_size=50, lr=0.01, weight=weight).fit()
        assert np.square(e.encode(gan.decode(z)) - z).mean() < 0.02
        assert np.square(e.reconstruct(X) - X).mean() < 0.02 * X.var()


def test_the_weight_buys_reconstruction_of_real_rows():
    """Real rows lie off what a G with one latent number can make: E has to be told of them."""
    gan = small_gan(generator="", latent_dim=1)
    x = gan.data.X
    errors = []
    for weight in (0.0, 10.0):
        e = Encoder(gan, "32, relu", steps=400, batch_size=20, lr=0.01, weight=weight).fit()
        errors.append(np.square((e.reconstruct(x) - x) / gan.data.scale).mean())
    assert errors[1] < 0.97 * errors[0]


def test_the_prior_is_the_gans():
    e = Encoder(small_gan(prior="uniform"), **SMALL).build()
    draws = np.concatenate([(e.draw(), e.z.copy())[1] for _ in range(100)])
    assert np.abs(draws).max() <= 3**0.5 + 1e-6 and abs(draws.var() - 1) < 0.1


def test_images_keep_to_their_range():
    gan = small_gan(from_array(np.random.default_rng(0).random((20, 4)), image_shape=(2, 2)))
    gan.averaged.flat[...] *= 30
    again = Encoder(gan, **SMALL).fit().reconstruct(gan.data.X)
    assert 0 <= again.min() and again.max() <= 1 and again.std() > 0.1


def test_an_encoder_complains_in_one_sentence():
    gan = small_gan()
    labelled = from_array(np.zeros((20, 3)) + np.arange(20)[:, None], np.arange(20) % 2)
    for make, words in (
        (lambda: Encoder(GAN()), "no networks yet"),
        (lambda: Encoder(small_gan(labelled, conditional=True)), "labels, clusters or masks too"),
        (lambda: Encoder(MaskedGAN(latent_dim=2, batch_size=10).build(gan.data)), "labels, clusters or masks too"),
        (lambda: Encoder(gan, "16, rel"), "rel"),
        (lambda: Encoder(gan, steps=0), "steps"),
        (lambda: Encoder(gan, lr=-1.0), "lr"),
        (lambda: Encoder(gan, batch_size=10, seed=-1), "seed"),
        (lambda: Encoder(gan, batch_size=10, weight=-1.0), "weight"),
        (lambda: Encoder(gan, batch_size=10, weight="1"), "weight"),
        (lambda: Encoder(gan, batch_size=41), "use 40 or less"),
        (lambda: Encoder(gan, **SMALL).encode(gan.data.X), "call fit"),
        (lambda: Encoder(gan, **SMALL).reconstruct(gan.data.X), "call fit"),
        (lambda: Encoder(gan, **SMALL).build().encode(gan.data.X[:, :2]), "rows of 3 numbers"),
        (lambda: Encoder(gan, **SMALL).build().reconstruct(gan.data.X[0]), "rows of 3 numbers"),
    ):
        with pytest.raises(MiniganError, match=words):
            make()


def test_an_encoder_that_diverges_says_so():
    with pytest.raises(Diverged, match="try lr="):
        Encoder(small_gan(generator=""), "16, relu, 16, relu", steps=200, batch_size=10, lr=1e30).fit()
