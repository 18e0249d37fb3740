"""The masked GAN: the masks' way into both networks, what is given stays, and what is filled in depends on it."""

import numpy as np
import pytest

from minigan import GAN, MiniganError, checkpoint, gradcheck, load
from minigan.data import from_array
from minigan.masked import MaskedGAN, draw_masks
from minigan.mlp import MLP

SMALL = dict(generator="16, relu", discriminator="16, leaky_relu 0.2", latent_dim=3, batch_size=12)


def table(n=300, seed=0):
    """Three columns in units of their own, the second nearly twice the first."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3))
    x[:, 1] = 2 * x[:, 0] + 0.2 * x[:, 1]
    return (x * [1, 3, 0.1] + [5, 0, -1]).astype(np.float32)


def trained(steps=20, **options):
    gan = MaskedGAN(**SMALL | options).build(table())
    for _ in range(steps):
        gan.train_step()
    return gan


def test_the_gradients_of_both_steps():
    checks = gradcheck.check_masked(seed=3)
    assert len(checks) == 4 and not [c for c in checks if not c.passed]


@pytest.mark.parametrize("update", ["alternating", "simultaneous"])
def test_both_networks_see_the_masks_and_what_is_given(update):
    gan = trained(update=update)
    assert (gan.G.n_in, gan.G.n_out, gan.D.n_in) == (3 + 3 + 3, 3, 3 + 3)
    x, mask = gan.tape_D.x[:12, :3], gan.tape_D.x[:12, 3:]
    assert set(mask.ravel().tolist()) == {0.0, 1.0}
    assert np.isin(x, gan.data.normalise(gan.data.X)).all()
    assert np.array_equal(gan.tape_G.x[:, 3:6], np.where(mask, x, 0)) and np.array_equal(gan.tape_G.x[:, 6:], mask)
    fake = gan.tape_DG.x if update == "alternating" else gan.tape_D.x[12:]
    assert np.array_equal(fake[:, 3:], mask) and np.array_equal(fake[:, :3], np.where(mask, x, gan.tape_G.out))
    assert np.array_equal(gan.tape_D.x[12:, :3][mask == 1], x[mask == 1]) and (gan.tape_D.x[12:, 3:] == mask).all()


def test_nothing_is_built_twice(monkeypatch):
    """Each network is drawn once, so that both are what GAN.build draws for nets of these sizes."""
    drawn, initialise = [], MLP.initialise
    monkeypatch.setattr(MLP, "initialise", lambda net, *args: drawn.append(net) or initialise(net, *args))
    gan = MaskedGAN(**SMALL).build(table())
    assert drawn == [gan.G, gan.D]


def test_each_minibatch_has_fresh_masks_and_each_step_fresh_z():
    gan, seen = MaskedGAN(**SMALL).build(table()), []
    for _ in range(3):
        gan.discriminator_step()
        seen.append((gan.tape_G.x[:, :3].copy(), gan.labels.copy()))
    gan.generator_step()
    assert np.array_equal(gan.labels, seen[-1][1])  # the same rows and masks as D's, other z
    zs = [z for z, _ in seen] + [gan.tape_G.x[:, :3]]
    assert not any(np.array_equal(a, b) for i, a in enumerate(zs) for b in zs[:i])
    assert not any(np.array_equal(seen[i][1], seen[i - 1][1]) for i in range(3))


def test_what_is_given_brings_G_no_gradient():
    gan = trained(5, masks=lambda rng, n, data: np.ones((n, data.features)))
    start = MaskedGAN(**SMALL).build(table())
    assert np.array_equal(gan.G.theta, start.G.theta) and not gan.grad_G.flat.any()
    gan = trained(5, masks=lambda rng, n, data: np.tile([1, 0, 1], (n, 1)))
    W, b = gan.grad_G.layers[-1]
    assert not b[[0, 2]].any() and not W[:, [0, 2]].any() and b[1] and W[:, 1].any()


def test_r1_is_of_the_columns_of_x_only():
    gan = trained(r1=0.5)
    assert (gan.penalty.xdot[:, :3] != 0).all() and not gan.penalty.xdot[:, 3:].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_given_comes_back_bit_for_bit(dtype):
    gan, x = trained(), table(50, seed=1).astype(dtype) / 3
    mask = np.random.default_rng(0).integers(0, 2, x.shape)
    full = gan.complete(x, mask, seed=0)
    assert full.shape == x.shape and (full[mask == 1] == x[mask == 1]).all() and (full[mask == 0] != x[mask == 0]).all()
    hidden = np.where(mask, x, np.nan)
    assert np.array_equal(gan.complete(hidden, mask == 1, seed=0), full)  # what is missing is not looked at
    one = gan.complete(x, [0, 1, 1], seed=0)
    assert np.array_equal(one, gan.complete(x, np.tile([0, 1, 1], (50, 1)), seed=0))
    assert not np.array_equal(full, gan.complete(x, mask, seed=0, average=False))


def test_seeds():
    one, same, other = trained(seed=4), trained(seed=4), trained(seed=5)
    assert np.array_equal(one.G.theta, same.G.theta) and not np.array_equal(one.G.theta, other.G.theta)
    assert np.array_equal(one.labels, same.labels) and not np.array_equal(one.labels, other.labels)
    x, mask = table(5), [1, 0, 0]
    assert np.array_equal(one.complete(x, mask, seed=1), same.complete(x, mask, seed=1))
    assert not np.array_equal(one.complete(x, mask, seed=1), one.complete(x, mask, seed=2))
    assert not np.array_equal(one.complete(x, mask), one.complete(x, mask))


def test_without_anything_given_it_is_a_plain_generator():
    gan = trained()
    x = gan.sample(6, seed=2)
    assert np.array_equal(x, gan.complete(np.zeros((6, 3), np.float32), [0, 0, 0], seed=2))
    assert np.array_equal(gan.probability(x), gan.probability(x, [0, 0, 0]))
    assert not np.array_equal(gan.probability(x), gan.probability(x, [1, 0, 1]))


def test_it_learns_what_the_rest_says():
    options = dict(batch_size=64, optimizer="adam", momentum=0.0, lr=0.003, lr_D=0.006, r1=0.3, steps=1000)
    gan = MaskedGAN(**SMALL | options)
    x = gan.fit(table(2000)).complete(table(500, seed=9), [0, 1, 0], seed=0)
    truth = table(500, seed=9)
    assert np.abs(x[:, 0] - truth[:, 0]).mean() < 0.35  # that of another row: 1.1
    assert abs(x[:, 2].std() / truth[:, 2].std() - 1) < 0.3 and abs(np.corrcoef(x[:, 2], truth[:, 2])[0, 1]) < 0.2


def test_masks_of_tables_and_of_images():
    rng = np.random.default_rng(0)
    mask = draw_masks(rng, 4000, from_array(table()))
    assert set(map(tuple, mask.tolist())) == set(np.ndindex(2, 2, 2)) and np.abs(mask.mean(0) - 0.5).max() < 0.05
    image = draw_masks(rng, 4000, load("digits")).reshape(-1, 8, 8)
    left, top = np.arange(8) < 4, np.arange(8)[:, None] < 4
    shares = [(image == half).all((1, 2)).mean() for half in (left, ~left, top, ~top)]
    assert np.abs(np.array(shares) - 1 / 8).max() < 0.03 and np.abs(image.mean(0) - 0.5).max() < 0.05
    colours = draw_masks(rng, 50, from_array(rng.random((4, 2, 5, 3)))).reshape(50, 10, 3)
    assert np.array_equal(colours, np.repeat(colours[:, :, :1], 3, axis=2)) and colours.any() and not colours.all()


@pytest.mark.parametrize(
    "do, said",
    [
        (lambda gan: MaskedGAN(conditional=True), "conditional False"),
        (lambda gan: MaskedGAN(clusters=3), "clusters 0"),
        (lambda gan: MaskedGAN(backend="auto"), "backend 'numpy'"),
        (lambda gan: MaskedGAN(masks="half"), "masks is 'half'"),
        (lambda gan: MaskedGAN(**SMALL).complete(table(2), [1, 0, 1]), "no networks yet"),
        (lambda gan: gan.complete(table(2)[0], [1, 0, 1]), r"x has shape \(3,\)"),
        (lambda gan: gan.complete(table(2), np.ones((3, 3))), r"mask \(3, 3\)"),
        (lambda gan: gan.complete(table(2), [1, 0.5, 0]), "neither 0 .missing. nor 1"),
        (lambda gan: gan.complete(table(2) * np.nan, [1, 0, 0]), "not finite where the mask is 1"),
    ],
)
def test_what_it_refuses(do, said):
    with pytest.raises(MiniganError, match=said) as error:
        do(MaskedGAN(**SMALL).build(table()))
    assert "\n" not in str(error.value)


def test_it_is_a_GAN_with_its_options():
    gan = trained(prior="signs", optimizer="adam", k=2)
    assert isinstance(gan, GAN) and np.isfinite(gan.report()["V"])
    assert np.isin(np.abs(gan.tape_G.x[:, :2]), 1).all()
    digits = load("digits")
    gan = MaskedGAN(**SMALL, output_bias="data").build(digits)
    assert np.allclose(1 / (1 + np.exp(-gan.G.params.layers[2][1])), digits.X.mean(0), atol=1e-6)


@pytest.mark.parametrize("masks", [lambda rng, n, data: rng.random((n, 3)), lambda rng, n, data: np.ones((n, 2))])
def test_masks_of_a_user_must_be_masks(masks):
    with pytest.raises(MiniganError, match=r"masks gave .* it must be \(12, 3\) of 0 \(missing\) and 1 \(given\)"):
        trained(1, masks=masks)


@pytest.mark.parametrize("x, mask", [(np.zeros(3), None), (np.zeros((4, 2)), None), (np.zeros((4, 3)), np.ones(4))])
def test_it_judges_rows_of_the_data_only(x, mask):
    with pytest.raises(MiniganError, match="give rows of 3 numbers"):
        trained(0).probability(x, mask)


def test_a_checkpoint_refuses_it(tmp_path):
    with pytest.raises(MiniganError, match="cannot hold a masked GAN"):
        checkpoint.save(tmp_path, trained(1))
    assert not list(tmp_path.iterdir())
