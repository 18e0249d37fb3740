"""The mixture, the VAE and the VAE-GAN: densities against formulas, gradients, and proof that the checks can fail."""

import math

import numpy as np
import pytest

from minigan import gradcheck, load, mixture, vae
from minigan.data import from_array
from minigan.errors import Diverged, MiniganError
from minigan.mixture import GaussianMixture
from minigan.vae import VAE, VAEGAN

SMALL = dict(encoder_layers="8, tanh", decoder_layers="8, tanh", latent_dim=2, batch_size=16)


def three_clusters(n=600, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 2)) * [0.3, 1.0] + np.array([[-4, 0], [0, 3], [5, 0]])[rng.integers(0, 3, n)]


def model_checks(seed):
    yield from gradcheck.check_mixture(seed)
    for head, images in (("gaussian", False), ("gaussian", True), ("bernoulli", True)):
        yield from gradcheck.check_vae(head, images, seed)
    yield from gradcheck.check_vae_gan(seed)


# -- Gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_every_gradient_of_the_models_passes(seed):
    failed = [f"{c.name}, {c.method}: {c.error:.1e}" for c in model_checks(seed) if not c.passed]
    assert not failed


def test_the_table_of_gradients_holds_the_models():
    names = " ".join(c.name for c in gradcheck.run(count=1))
    for part in ("mixture", "gaussian: encoder", "images: decoder", "log_s2", "bernoulli", "VAE-GAN's step: G"):
        assert part in names


def spoil_last_term(function, factor=1.01):
    return lambda *arguments: factor * function(*arguments)


BREAKAGES = {
    "the KL's weight": (vae, "kl_to_prior"),
    "the likelihood's weight": (vae, "log_likelihood"),
    "the weights' normalisation": (mixture, "_normalised"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_gradient_is_found(monkeypatch, name):
    module, function = BREAKAGES[name]
    monkeypatch.setattr(module, function, spoil_last_term(getattr(module, function)))
    assert not all(c.passed for c in model_checks(0))


def test_noise_that_changes_between_passes_is_found(monkeypatch):
    """The reparametrised gradient is that of the loss with the same ε."""
    rng = np.random.default_rng(0)
    original = np.copyto
    monkeypatch.setattr(gradcheck.np, "copyto", lambda out, eps: original(out, eps + 1e-3 * rng.standard_normal()))
    assert not all(c.passed for c in gradcheck.check_vae("gaussian", False))


# -- Mixture -----------------------------------------------------------------------------------------------


def test_log_density_equals_the_formula():
    m = GaussianMixture(2).build(2)
    rng = np.random.default_rng(0)
    m.theta[...] = rng.standard_normal(m.theta.size)
    x, expected = rng.standard_normal((5, 2)), 0
    weights = np.exp(m.logits) / np.exp(m.logits).sum()
    for weight, mean, W in zip(weights, m.means, m.whiteners, strict=True):
        precision = W @ W.T
        squares = np.einsum("ni,ij,nj->n", x - mean, precision, x - mean)
        expected = expected + weight * np.exp(-squares / 2) * math.sqrt(np.linalg.det(precision)) / (2 * math.pi)
    assert np.allclose(m.log_density(x), np.log(expected), rtol=1e-12)
    assert np.allclose(m.responsibilities(x).sum(1), 1, atol=1e-14)


def test_log_density_does_not_underflow_far_away():
    m = GaussianMixture(3).fit(three_clusters())
    far = m.log_density(np.array([[1e5, 0.0], [0.0, -1e5]]))
    assert np.isfinite(far).all() and (far < -1e8).all()
    assert np.isfinite(m.responsibilities(np.array([[1e5, 0.0]]))).all()


@pytest.mark.parametrize("floor", [1e-6, 0.3])
def test_the_likelihood_never_falls_and_no_variance_is_below_the_floor(floor):
    m = GaussianMixture(4, floor, seed=1).fit(three_clusters(), tolerance=-1)
    assert len(m.history) == 201 and np.diff(m.history).min() > -1e-12
    assert (1 / np.linalg.svd(m.whiteners)[1] ** 2 >= floor * (1 - 1e-9)).all()


def test_em_stands_still_where_the_gradient_is_zero():
    X = three_clusters()
    m = GaussianMixture(3).fit(X, steps=500, tolerance=-1)
    assert np.abs(m.gradient(X).flat).max() < 1e-9
    m.means += 0.01
    assert np.abs(m.gradient(X).flat).max() > 1e-3


def test_em_finds_three_clusters_and_samples_from_them():
    X = three_clusters(6000)
    m = GaussianMixture(3).fit(X)
    order = np.argsort(m.means[:, 0])
    assert np.allclose(m.means[order], [[-4, 0], [0, 3], [5, 0]], atol=0.1)
    fake = m.sample(20_000, seed=1)
    assert fake.dtype == np.float32 and np.array_equal(fake, m.sample(20_000, seed=1))
    assert np.allclose(fake.mean(0), X.mean(0), atol=0.12)
    assert np.allclose(np.cov(fake.T), np.cov(X.T), rtol=0.03, atol=0.15)


def test_samples_of_a_mixture_have_its_weights_and_tilted_covariances():
    m = GaussianMixture(2).build(2)
    covariances = np.array([[[2.0, 1.2], [1.2, 1.0]], [[0.5, -0.6], [-0.6, 3.0]]])
    m.logits[...], m.means[...] = np.log([0.8, 0.2]), [[-20, 0], [20, 5]]
    m.whiteners[...] = np.linalg.cholesky(np.linalg.inv(covariances))  # far from symmetric
    x = m.sample(20_000)
    left = x[:, 0] < 0
    assert abs(left.mean() - 0.8) < 0.015
    for rows, covariance in zip((x[left], x[~left]), covariances, strict=True):
        assert np.allclose(np.cov(rows.T), covariance, atol=0.15)


def test_em_starts_by_k_means_plus_plus():
    """Rows 60 at 0, 36 at 1, one at 6. From 0 the one at 6 comes next with 36 / (36 + 36), from 1 with 25 / 85."""
    X = np.repeat([0.0, 1, 6], [60, 36, 1])[:, None]
    expected = (60 * 36 / 72 + 36 * 25 / 85 + 1) / 97  # 0.43; by distances not squared 0.13, by uniform rows 0.02
    chosen = [GaussianMixture(2, seed=seed).fit(X, steps=0).means.max() == 6 for seed in range(500)]
    assert abs(np.mean(chosen) - expected) < 0.08


def test_mixture_complains_in_one_sentence():
    for make in (
        lambda: GaussianMixture(2, floor=math.inf),
        lambda: GaussianMixture(2).log_density(np.zeros((4, 2))),
        lambda: GaussianMixture(2).sample(3),
        lambda: GaussianMixture(0),
        lambda: GaussianMixture(2, floor=0.0),
        lambda: GaussianMixture(5).fit(np.zeros((4, 2))),
        lambda: GaussianMixture(5).fit(np.zeros(4)),
    ):
        with pytest.raises(MiniganError):
            make()
    with pytest.raises(MiniganError, match="the data hold 1 values that are NaN"):
        GaussianMixture(2).fit(np.array([[0.0], [1.0], [np.nan]]))


def test_equal_rows_do_not_break_em():
    m = GaussianMixture(2).fit(np.ones((10, 3)))
    assert np.isfinite(m.log_density(np.ones((1, 3)))).all()


# -- VAE ---------------------------------------------------------------------------------------------------


def test_kl_to_the_prior_equals_its_integral():
    mu, log_sigma2 = np.array([[0.7]]), np.array([[-0.9]])
    z, step = np.linspace(-12, 12, 20001, retstep=True)
    log_q = -((z - 0.7) ** 2 / np.exp(-0.9) + math.log(2 * math.pi) - 0.9) / 2
    log_p = -(z**2 + math.log(2 * math.pi)) / 2
    assert abs(vae.kl_to_prior(mu, log_sigma2)[0] - (np.exp(log_q) * (log_q - log_p)).sum() * step) < 1e-9


def test_log_likelihood_of_both_heads_by_hand():
    x, out = np.array([[1.0, 0.0]]), np.array([[math.log(3), math.log(3)]])  # probabilities ¾, ¾
    assert abs(vae.log_likelihood(x, out, "bernoulli")[0] - math.log(0.75 * 0.25)) < 1e-14
    mean, log_s2 = np.array([[0.0, 2.0]]), np.array([math.log(4)])
    expected = -1 / 8 - 4 / 8 - math.log(2 * math.pi * 4)
    assert abs(vae.log_likelihood(x, mean, "gaussian", log_s2)[0] - expected) < 1e-14


def test_a_linear_vae_reaches_the_maximum_likelihood_of_probabilistic_pca():
    """Tipping and Bishop 1999: the best s² is the mean of the eigenvalues left out, and log p(x) is a Gaussian's."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2000, 2)) @ (rng.standard_normal((2, 5)) * 2) + 0.5 * rng.standard_normal((2000, 5))
    model = VAE("", "", 2, steps=8000, lr=0.01, lr_end=0.01, s=0.5, batch_size=100).fit(X)
    x = model.data.normalise(X).astype(np.float64)

    def log_density(covariance):
        squares = (x @ np.linalg.inv(covariance) * x).sum(1)
        log_p = -(squares + np.linalg.slogdet(covariance)[1] + 5 * math.log(2 * math.pi)) / 2
        return log_p - np.log(model.data.scale).sum()

    eigenvalues, axes = np.linalg.eigh(np.cov(x.T, bias=True))
    eigenvalues[:3] = eigenvalues[:3].mean()
    W = model.decoder.params.layers[0][0]
    own = log_density(W.T @ W + np.exp(model.log_s2) * np.eye(5))
    best = log_density(axes * eigenvalues @ axes.T)
    assert best.mean() - 0.01 < own.mean() < best.mean() + 1e-6
    assert np.abs(model.log_likelihood(X, draws=300) - own).mean() < 0.02
    assert abs(model.elbo(X, draws=100).mean() - own.mean()) < 0.02  # the bound is tight: the posterior is Gaussian


def test_the_bound_is_below_the_importance_weighted_one():
    model = VAE(**SMALL, steps=300).fit(three_clusters())
    x = three_clusters(seed=1)
    bounds = [model.elbo(x, 50).mean(), *(model.log_likelihood(x, k).mean() for k in (5, 500))]
    assert bounds == sorted(bounds) and bounds[2] - bounds[0] > 0.01


def test_the_bound_is_in_the_datas_units():
    x = three_clusters()
    one, ten = (VAE(**SMALL, steps=50).fit(scale * x) for scale in (1, 10))
    assert np.allclose(one.elbo(x), ten.elbo(10 * x) + 2 * math.log(10), atol=1e-3)


def test_a_constant_column_is_sampled_exactly_and_counts_by_its_own_unit():
    x = np.stack([np.random.default_rng(0).normal(size=100), np.full(100, 5.0)], axis=1)
    model = VAE(**SMALL).build(x)
    assert (model.sample(5, noise=True)[:, 1] == 5).all() and np.isfinite(model.elbo(x)).all()


def test_a_vae_is_reproducible_and_stays_in_float32():
    runs = [VAE(**SMALL, steps=60, seed=3).fit(three_clusters()) for _ in range(2)]
    assert np.array_equal(runs[0].sample(5), runs[1].sample(5))
    assert not np.array_equal(runs[0].sample(5), VAE(**SMALL, steps=60, seed=4).fit(three_clusters()).sample(5))
    model = runs[0]
    for array in (model.encoder.theta, model.log_s2, model.grad_log_s2, model.tape_decoder.out, model.dout_encoder):
        assert array.dtype == np.float32
    assert all(x.dtype == np.float32 for x in (model.sample(5), model.sample(5, noise=True)))
    assert runs[0].history[-1]["step"] == 60 and runs[0].history[-1]["s"] > 0


def test_reconstructions_and_samples_of_both_heads_on_images():
    X = load("digits").X[:300].reshape(-1, 8, 8)
    for head in vae.HEADS:
        model = VAE("64, relu", "64, relu", 8, head, steps=600).fit(X)
        error = np.square(model.reconstruct(X.reshape(300, 64)) - X.reshape(300, 64)).mean()
        assert error < 0.7 * X.var(0).mean()
        x = model.sample(9)
        assert x.shape == (9, 64) and 0 <= x.min() and x.max() <= 1
    assert set(np.unique(model.sample(9, noise=True))) == {0.0, 1.0}


def test_samples_with_noise_have_the_models_variance():
    model = VAE(**SMALL, steps=600).fit(three_clusters())
    spread = [model.sample(20_000, noise=noise).var(0).sum() for noise in (False, True)]
    expected = 2 * np.square(model.data.scale).mean() * math.exp(model.log_s2[0])
    assert abs((spread[1] - spread[0]) / expected - 1) < 0.3


def test_samples_with_noise_have_the_models_mean():
    X = load("digits").X[:300].reshape(-1, 8, 8)
    model = VAE(**SMALL, head="bernoulli", steps=200, lr=0.01).fit(X)
    means = [model.sample(5000, noise=noise).mean(0) for noise in (False, True)]
    assert np.abs(means[0] - means[1]).max() < 0.03 and means[0].min() < 0.25


@pytest.mark.parametrize("grad, expected", [(0.5, 0.2), (-2.0, -0.8), (100.0, 1.0), (-100.0, -1.0)])
def test_one_step_of_log_s2_is_2_over_features_times_the_gradient_and_at_most_lr(grad, expected):
    model = VAE(**SMALL, s=1.0, lr=0.01).build(np.random.default_rng(0).standard_normal((20, 5)))
    model.grad_log_s2[...] = grad
    model.descend("log_s2")
    assert model.log_s2[0] == pytest.approx(-0.01 * expected)


def test_fit_begins_again():
    model = VAE(**SMALL, steps=60, report_every=20).fit(three_clusters())
    history, sample = model.history, model.sample(5)
    model.fit(three_clusters())
    assert model.history == history and len(history) == 3 and np.array_equal(model.sample(5), sample)


def test_vae_complains_in_one_sentence():
    X = three_clusters()
    for make in (
        lambda: VAE(s="1"),
        lambda: VAE().elbo(X),
        lambda: VAE().log_likelihood(X),
        lambda: VAE().reconstruct(X),
        lambda: VAE(**SMALL).build(X).elbo(X[:, :1]),
        lambda: VAE(**SMALL).build(X).elbo(np.zeros((4, 3))),
        lambda: VAE(**SMALL).build(X).reconstruct(X[0]),
        lambda: VAEGAN(elbo_weight="1"),
        lambda: VAE(head="poisson"),
        lambda: VAE(latent_dim=0),
        lambda: VAE(s=0.0),
        lambda: VAE(lr=-1.0),
        lambda: VAE(encoder_layers="12, rel"),
        lambda: VAE(**SMALL, head="bernoulli").fit(X),
        lambda: VAE(batch_size=601).fit(X),
        lambda: VAE().sample(3),
        lambda: VAEGAN(update="simultaneous"),
        lambda: VAEGAN(prior="uniform"),
        lambda: VAEGAN(conditional=True),
        lambda: VAEGAN(clusters=4),
        lambda: VAEGAN(elbo_weight=-1.0),
    ):
        with pytest.raises(MiniganError):
            make()


@pytest.mark.parametrize("network", ["encoder", "decoder"])
def test_dropout_of_either_network_is_for_training_only(network):
    layers = {f"{name}_layers": "12, tanh" for name in ("encoder", "decoder")}
    with_dropout = layers | {f"{network}_layers": "12, tanh, dropout 0.5"}
    plain, other = (VAE(**options, steps=1).fit(three_clusters()) for options in (layers, with_dropout))
    assert not np.array_equal(plain.encoder.theta, other.encoder.theta)
    assert np.array_equal(other.reconstruct(three_clusters()), other.reconstruct(three_clusters()))
    child = VAEGAN(with_dropout["encoder_layers"], generator=with_dropout["decoder_layers"], steps=1)
    child.fit(three_clusters())
    assert (getattr(child.vae, f"tape_{network}").buffers[-2].mask == 0).any()


def test_a_vae_that_diverges_says_so():
    with pytest.raises(Diverged, match="lr=3.3"):
        VAE(**SMALL, optimizer="sgd", lr=10.0, steps=200).fit(three_clusters())


# -- VAE-GAN -----------------------------------------------------------------------------------------------


def small_vae_gan(**options):
    layers = dict(encoder_layers="8, relu", generator="8, relu", discriminator="8, relu")
    return VAEGAN(**layers, latent_dim=2, batch_size=16, steps=50, **options).build(from_array(three_clusters()))


def test_the_random_numbers_of_a_vae_are_not_those_of_a_gan():
    """In a VAE-GAN with a stream its rows would otherwise be functions of the z of the adversarial step."""
    gan = VAEGAN("64, relu", generator="64, relu", init_G="glorot", latent_dim=2, seed=3).build(load("ring"))
    first = [net.params.layers[0][0].ravel() for net in (gan.vae.encoder, gan.G)]  # both "glorot"
    assert abs(np.corrcoef(first)[0, 1]) < 0.3


def test_each_loss_reaches_its_own_network_only():
    gan = small_vae_gan()
    before = [net.theta.copy() for net in (gan.D, gan.G, gan.vae.encoder)]
    gan.discriminator_step()
    assert not np.array_equal(before[0], gan.D.theta)
    assert np.array_equal(before[1], gan.G.theta) and np.array_equal(before[2], gan.vae.encoder.theta)
    before = gan.D.theta.copy()
    gan.generator_step()
    assert np.array_equal(before, gan.D.theta)


@pytest.mark.parametrize("lr_encoder", [0.001, 0.01])
def test_a_generator_step_moves_G_once_the_encoder_and_s(lr_encoder):
    gan = small_vae_gan(elbo_weight=0.5, lr_encoder=lr_encoder)
    gan.generator_gradient()
    G, encoder, log_s2 = (theta.copy() for theta in (gan.G.theta, gan.vae.encoder.theta, gan.vae.log_s2))
    gan._descend_G()
    assert np.allclose(gan.G.theta, G - gan.lr * gan.grad_G.flat, rtol=0, atol=1e-6)  # SGD's first step
    assert np.abs(gan.vae.encoder.theta - encoder).max() == pytest.approx(lr_encoder, rel=1e-3)  # Adam's
    assert abs(gan.vae.log_s2 - log_s2)[0] == pytest.approx(lr_encoder, rel=1e-3)  # clipped


def test_nothing_adversarial_reaches_the_encoder():
    """Its gradient is that of the ELBO alone, whatever D is; G's depends on D."""
    grads = []
    for scale in (1, 100):
        gan = small_vae_gan()
        gan.D.theta[...] *= scale
        gan.generator_gradient()
        grads.append((gan.vae.grad_encoder.flat.copy(), gan.grad_G.flat.copy()))
    assert np.array_equal(grads[0][0], grads[1][0]) and np.abs(grads[0][0]).max() > 0
    assert not np.allclose(grads[0][1], grads[1][1])


def test_the_vae_and_the_gan_share_one_generator():
    gan = small_vae_gan()
    assert gan.vae.decoder is gan.G
    gan.fit(three_clusters())
    assert gan.vae.decoder is gan.G
    assert gan.sample(3).shape == (3, 2) and gan.reconstruct(np.zeros((4, 2))).shape == (4, 2)


def test_without_the_elbo_a_vae_gan_is_a_gan():
    from minigan.gan import GAN

    gan = small_vae_gan(elbo_weight=0.0)
    plain = GAN(generator="8, relu", discriminator="8, relu", latent_dim=2, batch_size=16, steps=50, backend="numpy")
    plain.build(gan.data)
    for _ in range(5):
        gan.train_step()
        plain.train_step()
    assert np.array_equal(gan.G.theta, plain.G.theta) and np.array_equal(gan.D.theta, plain.D.theta)
