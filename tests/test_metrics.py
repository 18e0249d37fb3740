"""Every measure against a number known from elsewhere: brute force in float64, a formula, a hand count."""

import math
import re
import tracemalloc
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from minigan import load, metrics
from minigan.data import NAMES, from_array

RING = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], axis=1)
GRID = np.array([(x, y) for x in range(-4, 5, 2) for y in range(-4, 5, 2)], float)


def normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def mixture(modes, sigma, n, seed, width=1.0):
    rng = np.random.default_rng(seed)
    return modes[rng.integers(len(modes), size=n)] + width * sigma * rng.standard_normal((n, modes.shape[1]))


def gaussian(mean, sigma=1.0):
    return lambda x: np.exp(-0.5 * ((x - mean) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))


def distances(a, b):
    return np.linalg.norm(a.astype(np.float64)[:, None] - b.astype(np.float64)[None], axis=2)


# ---- distances ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [2, 40])
def test_squared_distances_match_brute_force_far_from_the_origin(features):
    a, b = normal(0, 70, features) + 100, normal(1, 50, features) + 100
    got = np.concatenate([d2.copy() for _, d2 in metrics.squared_distance_blocks(a, b, block=32)])
    np.testing.assert_allclose(got, distances(a, b) ** 2, rtol=2e-5)
    assert got.dtype == (np.float64 if features == 2 else np.float32)


def test_nearest_neighbours_match_brute_force_and_a_copy_is_at_exactly_zero():
    x, reference = normal(0, 60, 30), normal(1, 90, 30)
    x[7] = reference[33]
    index, distance = metrics.nearest_neighbours(x, reference, block=16)
    table = distances(x, reference)
    np.testing.assert_array_equal(index, table.argmin(axis=1))
    np.testing.assert_allclose(distance, table.min(axis=1), rtol=1e-12)
    assert index[7] == 33 and distance[7] == 0


# ---- precision, recall, density, coverage ------------------------------------------------------------------


def brute_force_prdc(real, fake, k):
    real_radii = np.sort(distances(real, real), axis=1)[:, k]  # column 0 is the point itself
    fake_radii = np.sort(distances(fake, fake), axis=1)[:, k]
    d = distances(real, fake)
    inside = d < real_radii[:, None]
    return {
        "precision": inside.any(axis=0).mean(),
        "recall": (d < fake_radii).any(axis=1).mean(),
        "density": inside.sum() / (k * len(fake)),
        "coverage": inside.any(axis=1).mean(),
    }


@pytest.mark.parametrize("n, m, k, features", [(100, 100, 5, 2), (130, 70, 3, 40), (40, 250, 1, 40), (700, 500, 5, 20)])
def test_prdc_matches_brute_force(n, m, k, features):
    real, fake = normal(2, n, features), 0.9 * normal(3, m, features) + 0.1
    scores = metrics.precision_recall_density_coverage(real, fake, k)
    assert scores == pytest.approx(brute_force_prdc(real, fake, k), abs=1e-12)
    assert all(type(value) is float for value in scores.values())


def test_prdc_by_hand():
    # k = 1. Radii of the reals 0, 1, 3, 7: 1, 1, 2, 4. Radii of the fakes .5, 6, 30: 5.5, 5.5, 24.
    # .5 lies in the balls of 0 and 1; 6 in that of 7 only (|6 - 3| = 3); 30 in none. All of 0, 1, 3 and 7 lie
    # within 5.5 of a fake.
    real, fake = np.array([[0.0], [1], [3], [7]]), np.array([[0.5], [6], [30]])
    scores = metrics.precision_recall_density_coverage(real, fake, k=1)
    assert scores == pytest.approx({"precision": 2 / 3, "recall": 1, "density": 1, "coverage": 3 / 4})


def test_prdc_of_equal_distributions_is_near_its_expectation():
    scores = metrics.precision_recall_density_coverage(normal(4, 1500, 2), normal(5, 1500, 2))
    assert scores["coverage"] == pytest.approx(1 - 2**-5, abs=0.015)
    assert scores["density"] == pytest.approx(1, abs=0.08)
    assert scores["precision"] > 0.95 and scores["recall"] > 0.95


@pytest.mark.parametrize("features", [2, 64])
def test_prdc_of_a_collapsed_and_of_a_far_sampler(features):
    real = normal(6, 600, features)
    collapsed = np.repeat(real[:1] + 1e-3, 600, axis=0)
    scores = metrics.precision_recall_density_coverage(real, collapsed)
    assert scores["precision"] == 1 and scores["recall"] == 0 and 0 < scores["coverage"] < 0.03
    far = metrics.precision_recall_density_coverage(real, normal(7, 600, features) + 50)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


@pytest.mark.parametrize("features", [2, 200, 784])
def test_prdc_is_not_fooled_by_rounding_where_duplicates_make_a_radius_zero(features):
    points = normal(8, 60, features) + 3
    real, fake = (np.repeat(rows, 6, axis=0) for rows in (points[:40], points[20:]))  # five at distance 0
    scores = metrics.precision_recall_density_coverage(real, fake)
    assert scores == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_kth_smallest_is_partitions_answer():
    for m, k in ((3000, 5), (6400, 40), (1000, 1), (650, 9), (64 * 7, 6), (30, 5)):
        d2 = normal(m, 20, m).round(1)  # rounded: many ties
        np.testing.assert_array_equal(metrics._kth_smallest(d2.copy(), k), np.sort(d2, axis=1)[:, k - 1])


def test_block_size_does_not_change_results():
    real, fake = normal(9, 300, 30), normal(10, 300, 30)
    first = metrics.precision_recall_density_coverage(real, fake, block=300)
    parzen = metrics.parzen_log_likelihood(real, fake[:150], fake[150:], block=300)
    for block in (1, 7, 64, 10_000):
        got = metrics.precision_recall_density_coverage(real, fake, block=block)
        assert got == pytest.approx(first, abs=1e-12)
        got = metrics.parzen_log_likelihood(real, fake[:150], fake[150:], block=block)
        assert got["mean"] == pytest.approx(parzen["mean"], rel=1e-5) and got["sigma"] == parzen["sigma"]


def test_memory_stays_at_a_few_blocks():
    x, y = normal(11, 4000, 20), normal(12, 4000, 20)  # a whole table: 64 MB
    for work in (
        metrics.precision_recall_density_coverage,
        metrics.nearest_neighbours,
        lambda a, b: metrics.parzen_log_likelihood(a, b[:1000], b),
    ):
        tracemalloc.start()
        work(x, y)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12e6, peak


# ---- Parzen window -----------------------------------------------------------------------------------------


def brute_force_parzen(x, samples, sigma):
    exponents = -(distances(x, samples) ** 2) / (2 * sigma**2)
    largest = exponents.max(axis=1, keepdims=True)
    log_mean = np.log(np.exp(exponents - largest).mean(axis=1)) + largest[:, 0]
    return log_mean - x.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))


def test_parzen_of_one_sample_is_its_gaussian():
    # one sample at 0, one test point at distance 5, sigma 1/2: -25 / (2/4) - 2 log(sqrt(2 pi) / 2)
    test = np.array([[3.0, 4.0]])
    scores = metrics.parzen_log_likelihood(np.zeros((1, 2)), np.ones((3, 2)), test, sigmas=[0.5])
    assert scores["mean"] == pytest.approx(-50 - math.log(math.pi / 2), rel=1e-14)
    assert scores["standard_error"] == 0 and scores["sigma"] == 0.5


@pytest.mark.parametrize("features", [3, 60])
def test_parzen_matches_brute_force_and_picks_sigma_on_validation(features):
    samples, validation, test = (0.3 * normal(seed, 200, features) + 1 for seed in (13, 14, 15))
    scores = metrics.parzen_log_likelihood(samples, validation, test)
    expected = [brute_force_parzen(validation, samples, sigma).mean() for sigma in metrics.PARZEN_SIGMAS]
    np.testing.assert_allclose(scores["per_sigma"], expected, rtol=1e-5, atol=1e-4)
    sigma = metrics.PARZEN_SIGMAS[int(np.argmax(expected))]
    assert scores["sigma"] == sigma and 0.1 < sigma < 1
    rows = brute_force_parzen(test, samples, sigma)
    assert scores["mean"] == pytest.approx(rows.mean(), rel=1e-5, abs=1e-4)
    assert scores["standard_error"] == pytest.approx(rows.std() / math.sqrt(200), rel=1e-4)


def test_parzen_reads_only_the_first_thousand_validation_rows():
    samples, validation = 0.2 * normal(16, 50, 4), 0.2 * normal(17, 1200, 4)
    first = metrics.parzen_log_likelihood(samples, validation, validation)
    validation[1000:] += 1e3
    assert metrics.parzen_log_likelihood(samples, validation, samples)["per_sigma"] == first["per_sigma"]


def test_parzen_does_not_underflow_far_away():
    samples, far = np.zeros((10, 784), np.float32), np.full((2, 784), 5, np.float32)
    got = metrics.parzen_log_likelihood(samples, far, far, sigmas=[0.1])["mean"]
    assert got == pytest.approx(-784 * 25 / 0.02 - 784 * math.log(0.1 * math.sqrt(2 * math.pi)), rel=1e-6)


# ---- modes -------------------------------------------------------------------------------------------------


def test_mode_coverage_of_a_perfect_sampler():
    runs = [metrics.mode_coverage(mixture(GRID, 0.05, 2500, seed), GRID, 0.05) for seed in range(20)]
    mean = {key: np.mean([run[key] for run in runs]) for key in runs[0]}
    assert mean["modes"] == mean["strict_modes"] == mean["total"] == 25
    assert mean["high_quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.0015)  # s.d. of the mean: .0005
    assert mean["reverse_kl"] == pytest.approx(24 / 5000, abs=0.001)  # s.d. of the mean: .0003
    assert mean["sigma_ratio"] == pytest.approx(1, abs=0.01)
    assert np.std([run["reverse_kl"] for run in runs]) == pytest.approx(0.0014, abs=0.0007)


def test_mode_coverage_of_a_collapsed_sampler():
    x = mixture(RING[3:4], 0.01, 2000, 0)
    scores = metrics.mode_coverage(x, RING, 0.01)
    assert scores["modes"] == scores["strict_modes"] == 1 and scores["total"] == 8
    assert scores["reverse_kl"] == pytest.approx(math.log(8), rel=1e-12)
    point = metrics.mode_coverage(np.repeat(RING[:1], 50, axis=0), RING, 0.01)
    assert point["sigma_ratio"] < 0.01 and point["high_quality"] == 1


def test_mode_coverage_with_missing_modes_and_a_starved_one():
    # 6 of 8 modes, of which one has 20 samples of 1000: below half its share of 125
    x = np.concatenate([np.repeat(RING[:5], 196, axis=0), np.repeat(RING[5:6], 20, axis=0)])
    scores = metrics.mode_coverage(x, RING, 0.01)
    assert (scores["modes"], scores["strict_modes"]) == (6, 5)
    expected = 0.98 * math.log(0.196 * 8) + 0.02 * math.log(0.02 * 8)
    assert scores["reverse_kl"] == pytest.approx(expected, rel=1e-12)


def test_mode_coverage_counts_only_samples_within_three_sigma():
    x = RING[[0, 0, 1, 1]] + np.array([[0.0299, 0], [0.0301, 0], [0, 0.031], [0, 1e-3]])
    scores = metrics.mode_coverage(x, RING, 0.01)
    assert scores["high_quality"] == 0.5 and scores["modes"] == 2
    assert math.isnan(scores["sigma_ratio"])  # no mode with two good samples
    assert metrics.mode_coverage(x + 0.1, RING, 0.01)["modes"] == 0


@pytest.mark.parametrize("width", [0.1, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("features", [1, 2, 3])
def test_sigma_ratio_is_the_width_of_the_modes_whatever_the_cut(width, features):
    modes = 10.0 * np.arange(4)[:, None] * np.ones(features)
    scores = metrics.mode_coverage(mixture(modes, 0.2, 20_000, 1, width), modes, 0.2)
    assert scores["sigma_ratio"] == pytest.approx(width, rel=0.03)


def test_sigma_ratio_is_taken_about_the_generated_modes_own_mean():
    off_centre = mixture(GRID + [0.05, 0], 0.05, 20_000, 2, width=0.5)
    assert metrics.mode_coverage(off_centre, GRID, 0.05)["sigma_ratio"] == pytest.approx(0.5, rel=0.03)


def test_ball_probability():
    assert metrics._ball_probability(1, 3) == pytest.approx(0.9973002039367398, rel=1e-13)
    assert metrics._ball_probability(2, 3) == pytest.approx(1 - math.exp(-4.5), rel=1e-13)
    assert metrics._ball_probability(3, 3) == pytest.approx(0.9707091134651118, rel=1e-13)
    assert metrics._ball_probability(4, 3) == pytest.approx(1 - 5.5 * math.exp(-4.5), rel=1e-13)
    # many dimensions: 1 - e^-x Σ x^k / k!, k < 32, in whole numbers
    x = Fraction(9, 2)
    exact = sum(x**k / math.factorial(k) for k in range(32, 90)) * Fraction(math.exp(-4.5))
    assert metrics._ball_probability(64, 3) == pytest.approx(float(exact), rel=1e-12)
    assert metrics._truncated_variance(64, 3) == pytest.approx(0.136, abs=5e-4)


# ---- distributions -----------------------------------------------------------------------------------------


def test_jensen_shannon_and_total_variation_of_known_pairs():
    p, q = [0.5, 0.5, 0, 0], [0, 0, 0.1, 0.9]
    assert metrics.jensen_shannon(p, p) == 0 and metrics.total_variation(p, p) == 0
    assert metrics.jensen_shannon(p, q) == pytest.approx(math.log(2), rel=1e-15)
    assert metrics.total_variation(p, q) == pytest.approx(1)
    # (1, 0) against (1/2, 1/2), m = (3/4, 1/4): log(4/3)/2 + (log(2/3)/2 + log(2)/2)/2 = 3/4 log(4/3)
    assert metrics.jensen_shannon([1, 0], [1, 1]) == pytest.approx(0.75 * math.log(4 / 3), rel=1e-14)
    assert metrics.total_variation([3, 1, 0], [1, 1, 2]) == pytest.approx(0.5)


def test_jensen_shannon_is_the_value_of_the_best_discriminator():
    p, q = np.random.default_rng(0).random((2, 20))
    p, q = p / p.sum(), q / q.sum()
    best = p / (p + q)
    value = (p * np.log(best)).sum() + (q * np.log(1 - best)).sum()
    assert value == pytest.approx(-math.log(4) + 2 * metrics.jensen_shannon(p, q), abs=1e-13)


def test_jensen_shannon_of_two_gaussians_matches_quadrature():
    p, q = gaussian(0), gaussian(1, 0.5)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    x, weights = 10 * nodes, 10 * weights
    m = (p(x) + q(x)) / 2
    expected = 0.5 * (weights * (p(x) * np.log(p(x) / m) + q(x) * np.log(q(x) / m))).sum()
    assert metrics.jensen_shannon_1d(p, q, -10, 10) == pytest.approx(expected, abs=1e-8)
    samples = 1 + 0.5 * normal(0, 50_000, 1)
    assert metrics.jensen_shannon_1d(p, samples, -10, 10) == pytest.approx(expected, abs=0.006)


def test_jensen_shannon_1d_of_samples():
    # a perfect sampler on [0, 1] in 50 cells: (50 - 1) / 8N on average
    uniform = np.random.default_rng(1).random(20_000)
    scores = metrics.jensen_shannon_1d(np.ones_like, uniform, 0, 1, bins=50)
    assert scores == pytest.approx(49 / 160_000, rel=0.5)
    # what lies outside the range is not lost: p is all inside, the samples all outside
    assert metrics.jensen_shannon_1d(np.ones_like, uniform + 2, 0, 1) == pytest.approx(math.log(2), abs=1e-12)
    assert metrics.jensen_shannon_1d(gaussian(0), normal(2, 20_000, 1), -1, 1) < 0.002
    assert metrics.jensen_shannon_1d(gaussian(0), gaussian(0), -1, 1) == 0
    with pytest.raises(ValueError, match="above 1"):
        metrics.jensen_shannon_1d(lambda x: 2 * np.ones_like(x), uniform, 0, 1)


# ---- labels ------------------------------------------------------------------------------------------------


def test_labels():
    real, labels = normal(18, 30, 20), np.arange(30) % 3
    found = metrics.nearest_labels(real[[4, 8, 9]] + 1e-3, real, labels)
    np.testing.assert_array_equal(found, [1, 2, 0])
    np.testing.assert_array_equal(metrics.label_histogram(np.array([0, 2, 2, 2]), 4), [0.25, 0, 0.75, 0])


# ---- evaluate ----------------------------------------------------------------------------------------------


def data_set(**changes):
    plain = {
        "name": "toy",
        "features": 2,
        "X": None,
        "labels": None,
        "modes": None,
        "sigma": None,
        "density": None,
        "image_shape": None,
        "normalise": lambda x: x / 2,
        "real_samples": lambda n, seed: normal(seed, n, 2),
    }
    return SimpleNamespace(**plain | changes)


def check_plain(scores):
    assert all(type(value) in (int, float) for value in scores.values()), scores
    return metrics.summary_lines(scores)


def test_evaluate_a_mixture():
    ring = data_set(modes=RING, sigma=0.01)
    assert metrics.how_many(ring) == 2500
    fake = mixture(RING, 0.01, 2500, 3)
    scores = metrics.evaluate(ring, fake)
    assert scores.items() >= metrics.mode_coverage(fake, RING, 0.01).items()
    assert scores["perfect_reverse_kl"] == pytest.approx(7 / 5000)
    assert scores["perfect_high_quality"] == pytest.approx(0.98889, abs=1e-5) and scores["n"] == 2500
    assert "precision" not in scores
    text = "\n".join(check_plain(scores))
    assert "8 of 8" in text and "perfect 0.989" in text


def test_evaluate_a_density():
    line = data_set(features=1, density=gaussian(0), real_samples=lambda n, seed: normal(seed, n, 1))
    assert metrics.how_many(line) == 10_000
    good, bad = (metrics.evaluate(line, scale * normal(20, 10_000, 1)) for scale in (1, 0.5))
    assert good["jsd"] == pytest.approx(good["perfect_jsd"], rel=0.4) and good["jsd"] < 0.002
    assert bad["jsd"] > 0.05
    assert any("JSD" in line for line in check_plain(good))


def test_evaluate_a_stream_without_modes():
    scores = metrics.evaluate(data_set(), normal(21, 2500, 2), reference=True)
    assert scores["n"] == 2500 and scores["coverage"] > 0.95 and scores["real_coverage"] > 0.95
    assert any("real against real" in line for line in check_plain(scores))
    assert not any("more than five times" in line for line in check_plain(scores))
    answers = data_set(real_samples=lambda n, seed: np.random.default_rng(seed).integers(1, 6, (n, 2)) * 1.0)
    scores = metrics.evaluate(answers, answers.real_samples(2500, 5), reference=True)
    assert scores["real_coverage"] == 0 and any("more than five times" in line for line in check_plain(scores))


def test_evaluate_finite_data_with_labels():
    rng = np.random.default_rng(22)
    centres = 8 * rng.standard_normal((4, 20))
    labels = rng.integers(4, size=400)
    X = (centres[labels] + rng.standard_normal((400, 20))).astype(np.float32)
    blobs = data_set(features=20, X=X, labels=labels)
    assert metrics.how_many(blobs) == 400
    own = rng.integers(3, size=400)  # the fourth class is missing
    scores = metrics.evaluate(blobs, (centres[own] + rng.standard_normal((400, 20))).astype(np.float32), reference=True)
    missing = np.mean(labels == 3)
    assert (scores["classes_present"], scores["classes"]) == (3, 4)
    assert scores["label_tv"] == pytest.approx(missing, abs=0.03)
    assert scores["coverage"] == pytest.approx(0.97 * (1 - missing), abs=0.06)
    assert scores["precision"] > 0.6 and scores["real_precision"] > 0.6 and scores["n"] == 400
    assert any("3 of 4" in line for line in check_plain(scores))
    by_class = centres[np.repeat(np.arange(4), 200)] + rng.standard_normal((800, 20))  # twice what is scored
    assert metrics.evaluate(blobs, by_class)["classes_present"] == 4
    again = metrics.evaluate(blobs, X, seed=1)
    assert again["precision"] == 1 and again["coverage"] == 1  # real against itself
    assert again == metrics.evaluate(blobs, X, seed=1)


def test_perfect_label_tv_is_what_true_labels_score():
    rng = np.random.default_rng(23)
    X = 20.0 * np.eye(10, 20)[rng.permutation(np.arange(1000) % 10)] + 0.1 * rng.standard_normal((1000, 20))
    blobs = data_set(features=20, X=X, labels=X[:, :10].argmax(axis=1))
    scores = [metrics.evaluate(blobs, 20.0 * np.eye(10, 20)[rng.integers(10, size=500)]) for _ in range(20)]
    assert np.mean([s["label_tv"] for s in scores]) == pytest.approx(scores[0]["perfect_label_tv"], rel=0.15)


# ---- images ------------------------------------------------------------------------------------------------


def rows_with(mean, covariance, n, seed):
    """n rows whose own mean and covariance are these, to rounding."""
    x = normal(seed, n, len(mean), dtype=np.float64)
    x -= x.mean(axis=0)
    to_unit = np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False).reshape(covariance.shape)))
    return x @ to_unit.T @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_known_gaussians():
    a, b = np.array([4.0, 1, 9]), np.array([1.0, 1, 25])
    x, y = rows_with([0, 0, 0], np.diag(a), 50, 30), rows_with([1, -2, 0], np.diag(b), 70, 31)
    assert metrics.frechet_distance(x, y) == pytest.approx(1 + 4 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-12)
    # Two covariances that do not commute: tr (AB)^1/2 = (tr AB + 2 (det AB)^1/2)^1/2 for 2 x 2 matrices
    A, B = np.array([[2.0, 1], [1, 3]]), np.array([[5.0, -2], [-2, 1]])
    overlap = math.sqrt(np.trace(A @ B) + 2 * math.sqrt(np.linalg.det(A @ B)))
    x, y = rows_with([3, 0], A, 50, 32), rows_with([0, 4], B, 40, 33)
    expected = 25 + np.trace(A) + np.trace(B) - 2 * overlap
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)
    assert metrics.frechet_distance(y, x) == pytest.approx(expected, rel=1e-12)
    line = rows_with([0], np.array([[4.0]]), 10, 34)
    assert metrics.frechet_distance(line, 3 * line + 5) == pytest.approx(25 + (6 - 2) ** 2, rel=1e-12)


def test_frechet_distance_of_equal_sets_is_0_and_far_from_0_they_keep_their_digits():
    x = normal(35, 300, 20)
    assert metrics.frechet_distance(x, x) < 1e-12
    assert metrics.frechet_distance(x[:10], x[:10][::-1]) < 1e-12  # fewer rows than features
    far = x.astype(np.float64) + 1e4
    assert metrics.frechet_distance(far, far + 0.001) == pytest.approx(20 * 0.001**2, rel=1e-4)


def test_frechet_distance_is_not_negative():
    """It is a sum of squares, but without the clamp at 0 rounding leaves some of these below it."""
    sets = [normal(seed, 40, 8) for seed in range(20)]
    assert all(metrics.frechet_distance(x, x[::-1]) >= 0 for x in sets)


def test_frechet_distance_knows_real_from_shrunken_and_collapsed():
    x, y = normal(36, 2000, 10), normal(37, 2000, 10)
    real, shrunken, collapsed = (metrics.frechet_distance(x, z) for z in (y, y / 2, y * 0))
    assert real < 0.05 < 2 < shrunken == pytest.approx(10 / 4, rel=0.05)
    assert collapsed == pytest.approx(10, rel=0.05)


def test_training_distance_of_copies_fresh_rows_and_blurred_copies():
    train, held_out, fresh = normal(38, 500, 8), normal(39, 300, 8), normal(40, 300, 8)
    assert metrics.training_distance_ratio(train[:100], train, held_out) == 0
    assert metrics.training_distance_ratio(fresh, train, held_out) == pytest.approx(1, abs=0.05)
    blurred = train[:300] + 0.01 * fresh
    unseen = np.median(distances(held_out, train).min(axis=1))
    by_hand = np.median(0.01 * np.linalg.norm(fresh.astype(np.float64), axis=1)) / unseen
    assert metrics.training_distance_ratio(blurred, train, held_out) == pytest.approx(by_hand, rel=1e-4)
    assert math.isnan(metrics.training_distance_ratio(fresh, train, train))


def test_label_scores_by_hand():
    p = np.array([[0.95, 0.05, 0, 0], [0.9, 0.1, 0, 0], [0.2, 0.7, 0.1, 0], [0, 0, 0, 1.0]])
    scores = metrics.label_scores(p, np.array([0.5, 0.25, 0.25, 0]))
    assert scores["accepted"] == 0.75  # .9 is enough, .7 is not
    assert scores["label_tv"] == 0.25  # a quarter has gone from class 2 to class 3
    assert scores["classes_present"] == 1  # class 1 has no accepted image, 2 none at all, and 3 is not in the data


class Nearest:
    """A stand-in for a trained Classifier: class i is near 4 times the i-th unit vector."""

    classes = np.arange(4) + 10

    def look(self, x):
        likelihood = np.exp(4 * np.asarray(x, np.float64)[:, :4])
        return likelihood / likelihood.sum(axis=1, keepdims=True), x[:, :5]

    def features(self, x):
        return self.look(x)[1]


def images(n, seed, classes=4):
    """(rows, labels) of `classes` equal classes."""
    labels = np.arange(n) % classes
    return (4 * np.eye(4, 12)[labels] + 0.3 * normal(seed, n, 12)).astype(np.float32), labels + 10


@pytest.fixture(scope="module")
def image_set():
    (X, labels), (X_test, labels_test) = images(1200, 41), images(400, 42)
    return data_set(features=12, X=X, labels=labels, X_test=X_test, labels_test=labels_test, X_valid=None)


def test_evaluate_images_a_perfect_sampler_scores_what_real_images_do(image_set):
    scores = metrics.evaluate_images(image_set, images(400, 43)[0], Nearest())
    assert (scores["classes_present"], scores["classes"]) == (4, 4)
    assert scores["label_tv"] == scores["real_label_tv"] == 0
    assert scores["accepted"] == scores["real_accepted"] == 1
    assert (
        0 < scores["frechet"] < 0.05 and 0 < scores["real_frechet"] < 0.05
    )  # the latter's classes are not quite equal
    assert scores["training_distance_ratio"] == pytest.approx(1, abs=0.05)
    assert scores["parzen"] == pytest.approx(scores["real_parzen"], abs=3 * scores["parzen_error"])
    assert all(type(value) in (int, float) for value in scores.values())


def test_evaluate_images_a_collapsed_sampler(image_set):
    scores = metrics.evaluate_images(image_set, images(400, 44, classes=1)[0], Nearest())
    assert (scores["classes_present"], scores["classes"]) == (1, 4)
    assert scores["label_tv"] == 0.75 and scores["real_label_tv"] == 0 and scores["accepted"] == 1
    # the mean is 4 (3/4, -1/4, -1/4, -1/4) away, and a real class's 4 x 4 covariance is 16 (I/4 - 1/16) + .09 I
    assert scores["frechet"] == pytest.approx(16 * 0.75 + 3 * (math.sqrt(4.09) - 0.3) ** 2, rel=0.02)
    assert scores["parzen"] < scores["real_parzen"] - 10


def test_evaluate_images_measures_against_the_shares_of_the_labels():
    def unbalanced(seed):  # shares of 5, 1, 1 and 1 eighths
        equal, first = images(200, seed), images(200, seed + 1, classes=1)
        return [np.concatenate(parts) for parts in zip(equal, first, strict=True)]

    (X, labels), (X_test, labels_test), (fake, _) = (unbalanced(seed) for seed in (50, 52, 54))
    data = data_set(features=12, X=X, labels=labels, X_test=X_test, labels_test=labels_test, X_valid=X_test)
    scores = metrics.evaluate_images(data, fake, Nearest())
    assert scores["label_tv"] == scores["real_label_tv"] == 0
    assert metrics.evaluate_images(data, images(400, 56)[0], Nearest())["label_tv"] == 3 / 8


def test_evaluate_images_a_sampler_that_copies_and_one_of_noise(image_set):
    copies = metrics.evaluate_images(image_set, image_set.X[-400:], Nearest())
    assert copies["training_distance_ratio"] == 0  # though all else is perfect
    assert copies["accepted"] == 1 and copies["frechet"] < 0.05
    noise = metrics.evaluate_images(image_set, normal(45, 400, 12), Nearest())
    assert noise["accepted"] < 0.8 and noise["frechet"] > 5 and noise["training_distance_ratio"] > 1.5


def test_evaluate_images_chooses_sigma_on_rows_kept_for_it(image_set):
    wide = data_set(**vars(image_set) | {"X_valid": 3 * image_set.X_test})
    narrow, wider = (metrics.evaluate_images(data, images(400, 46)[0], Nearest()) for data in (image_set, wide))
    assert narrow["parzen_sigma"] < wider["parzen_sigma"] == 1
    expected = metrics.parzen_log_likelihood(images(400, 46)[0], image_set.X[-200:], image_set.X_test)
    assert narrow["parzen"] == pytest.approx(expected["mean"], abs=1e-3)
    assert narrow["parzen_error"] == pytest.approx(expected["standard_error"], rel=1e-3)


def test_lines_for_images_and_published_values(image_set):
    fake = images(400, 47)[0]
    scores = metrics.evaluate(image_set, fake, reference=True) | metrics.evaluate_images(image_set, fake, Nearest())
    lines = dict(re.match(r"(.{21}\S*) +(.*)", line).groups() for line in check_plain(scores))
    lines = {name.strip(): rest for name, rest in lines.items()}
    assert re.match(r"0.0000 +held-out images 0.0000, perfect about 0", lines["label total variation"])
    assert re.match(r"1.000 +held-out images 1.000$", lines["accepted at p >= 0.9"])
    assert re.match(r"0.00\d+ +training images 0.0[1-4]", lines["Frechet distance"])
    assert "Goodfellow" not in lines["Parzen LL (nats)"]
    assert "225 +- 2" in metrics.summary_lines(scores, metrics.PUBLISHED["mnist"])[-1]
    scores = metrics.evaluate(data_set(modes=GRID, sigma=0.05), mixture(GRID, 0.05, 2500, 3))
    text = "\n".join(metrics.summary_lines(scores, metrics.PUBLISHED["grid-pacgan"]))
    for part in ("25 of 25 .*PacGAN4 24.8", "within 3 sigma .*perfect 0.989, PacGAN4 .936, VEEGAN", "KL .*PacGAN4 .04"):
        assert re.search(part, text), text


def test_published_values_belong_to_data_and_scores_that_exist():
    lines = {"modes", "high_quality", "reverse_kl", "parzen"}
    assert all(name in NAMES and set(values) <= lines for name, values in metrics.PUBLISHED.items())


# ---- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: metrics.precision_recall_density_coverage(x, x[:5]), "more than k rows"),
        (lambda x: metrics.precision_recall_density_coverage(x, x[:, :2]), "3 features and fake has 2"),
        (lambda x: metrics.nearest_neighbours(x[0], x), "shape"),
        (lambda x: metrics.mode_coverage(x * np.nan, x, 1.0), "60 values that are NaN"),
        (lambda x: metrics.mode_coverage(x, x, 0.0), "sigma must be positive"),
        (lambda x: metrics.parzen_log_likelihood(x, x, x, sigmas=[0.0]), "sigmas must be positive"),
        (lambda x: metrics.jensen_shannon([1, -1], [1, 1]), "finite weights"),
        (lambda x: metrics.total_variation([1], [1, 1]), "one shape"),
        (lambda x: metrics.jensen_shannon_1d(np.ones_like, x, 0, 1), "one feature"),
        (lambda x: metrics.nearest_labels(x, x, np.arange(3)), "one for each real row"),
        (lambda x: metrics.label_histogram(np.array([0, 4]), 4), "0 .. 3"),
        (lambda x: metrics.evaluate(data_set(features=2), x), "fake has 3 features"),
        (lambda x: metrics.frechet_distance(x, x[:1]), "two rows or more, got 20 and 1"),
        (lambda x: metrics.frechet_distance(x, x[:, :2]), "3 features and b has 2"),
        (lambda x: metrics.training_distance_ratio(x * np.inf, x, x), "NaN or infinite"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(normal(24, 20, 3))


# ---- mode collapse


@pytest.mark.parametrize("name", ["ring", "grid", "digits", "gaussians", "moons"])
def test_real_samples_show_no_sign_of_collapse(name):
    data = load(name)
    assert not any(metrics.collapse_signs(data, data.real_samples(1000, seed), seed=seed + 1) for seed in range(3))


def test_signs_of_collapse():
    ring, digits = load("ring"), load("digits")
    x = ring.real_samples(4000, seed=1)
    mode = metrics.nearest_neighbours(x, ring.modes)[0]
    assert metrics.collapse_signs(ring, x[mode > 4]) == ["5 of 8 modes are nearly empty"]
    assert metrics.collapse_signs(ring, x[mode > 0]) == ["1 of 8 modes is nearly empty"]
    spread, empty = metrics.collapse_signs(ring, x[mode == 4])
    assert spread.startswith("their spread is 0.03") and empty == "7 of 8 modes are nearly empty"
    assert metrics.collapse_signs(digits, digits.X[digits.labels != 3]) == ["1 of 10 classes is nearly empty"]
    moons = load("moons")
    x = moons.real_samples(1000, seed=0)
    assert metrics.collapse_signs(moons, x.mean(0) + 0.6 * (x - x.mean(0))) == []
    assert metrics.collapse_signs(moons, x[moons.label_of(x, np) == 1]) == ["1 of 2 classes is nearly empty"]
    assert len(metrics.collapse_signs(moons, x.mean(0) + 0.4 * (x - x.mean(0)))) == 1


def test_a_class_is_nearly_empty_below_a_quarter_of_its_own_share():
    digits = load("digits")
    threes, others = digits.X[digits.labels == 3], digits.X[digits.labels != 3]
    few, enough = (np.concatenate([others, threes[: len(threes) // part]]) for part in (6, 3))
    assert metrics.collapse_signs(digits, few) == ["1 of 10 classes is nearly empty"]
    assert metrics.collapse_signs(digits, enough) == []


def by_definition(real, fake, k=5):
    """The four measures in whole numbers, where a tie is a tie."""
    squares = lambda a, b: np.square(a[:, None].astype(np.int64) - b[None]).sum(2)
    radii = lambda x: np.sort(squares(x, x) + 10**9 * np.eye(len(x), dtype=np.int64))[:, k - 1]
    d2 = squares(fake, real)
    inside, around = d2 < radii(real), d2 < radii(fake)[:, None]
    return [inside.any(1).mean(), around.any(0).mean(), inside.sum() / (k * len(fake)), inside.any(0).mean()]


@pytest.mark.parametrize(
    "features, most, dtype", [(3, 4, float), (3, 4, np.float32), (20, 3, np.float32), (20, 200, np.float16)]
)
def test_a_tie_is_outside(features, most, dtype):
    real, fake = np.random.default_rng(0).integers(0, most, (2, 200, features))
    found = metrics.precision_recall_density_coverage(real.astype(dtype), fake.astype(dtype))
    np.testing.assert_allclose(list(found.values()), by_definition(real, fake), rtol=1e-12)


def test_large_numbers_score_as_small_ones():
    real, fake = normal(62, 300, 2).astype(np.float32), normal(63, 300, 2).astype(np.float32)
    measure = metrics.precision_recall_density_coverage
    assert measure(real * np.float32(1e20), fake * np.float32(1e20)) == measure(real, fake)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("factor", [-1e-3, -0.5, -3.0, -50.0])  # from all terms of a row to its own zero alone
def test_sums_of_exponentials_leave_out_nothing_that_counts(factor, dtype):
    x = np.abs(normal(64, 7, 500) * 30).astype(dtype)
    x -= x.min(axis=1, keepdims=True)
    exact = np.exp(factor * x.astype(np.float64)).sum(axis=1)
    found = metrics._sum_of_exponentials(x.copy(), factor)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, exact, rtol=3e-6 if dtype == np.float32 else 1e-12)


def test_recall_by_class_needs_more_rows_than_neighbours():
    x = normal(61, 11, 2)
    labels = np.repeat([0, 1], [metrics.NEIGHBOURS, metrics.NEIGHBOURS + 1])
    assert metrics.recall_by_class(from_array(x, labels), x, labels).tolist() == [0.0, 1.0]


def test_a_rare_class_is_due_its_own_share():
    labels = np.repeat([0, 1, 2], [1950, 48, 2])
    X = np.array([[0, 0], [9, 0], [0, 9]])[labels] + normal(60, 2000, 2)
    data = from_array(X, labels)
    for seed in range(5):
        assert metrics.collapse_signs(data, X, seed) == []
        assert metrics.collapse_signs(data, X[labels != 1], seed) == ["1 of 3 classes is nearly empty"]
        assert metrics.collapse_signs(data, X[:-2], seed) == []  # a seventh of all honest samples have none of the two


def test_one_value_that_is_not_a_number_is_named():
    x = np.zeros((20, 3))
    x[7, 1] = np.nan
    with pytest.raises(ValueError, match="1 values that are NaN"):
        metrics.mode_coverage(x, np.eye(3), 1.0)


def test_the_jsd_of_a_density_is_taken_a_tenth_beyond_the_real_samples():
    data = load("gaussian")
    fake, real = data.real_samples(2000, 5) + 0.2, data.real_samples(2000, 0)
    low, high = float(real.min()), float(real.max())
    margin = (high - low) / 10
    scores = metrics.evaluate(data, fake)
    for name, x in (("jsd", fake), ("perfect_jsd", real)):
        expected = metrics.jensen_shannon_1d(data.density, x, low - margin, high + margin)
        assert scores[name] == pytest.approx(expected)
