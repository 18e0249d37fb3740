"""How good are the samples? Mode coverage, Parzen window, precision/recall/density/coverage, JSD, Frechet distance.

Everything here runs on the host in NumPy: `x` and `fake` are host arrays of shape (N, features), in the
data's units unless said otherwise. A GAN has no likelihood to report, so each measure looks at samples from
one side only, and each can be fooled alone: high quality by shrunken modes, the Parzen window by blur,
precision by memorising. Read several, and beside what a perfect sampler scores at the same N (`summary_lines`
prints both).
"""

import math

import numpy as np

# Rows of a distance table held at once, 20 MB of float32 where it has 10,000 columns: the matrix product of fewer rows
# takes longer, and of more rows the passes after it, which then no longer find them in the cache.
BLOCK = 512
PARZEN_SIGMAS = np.logspace(-1, 0, 10)
PARZEN_ROWS = 16  # of such a table worked on at once, in several passes: they stay in the nearest cache
MAX_ROWS = 10_000
ENOUGH_DUE = 20  # samples due to a class: fewer than a quarter of them come by chance once in 60,000
STREAM_ROWS = 2_500
NEIGHBOURS = 5
CONFIDENT = 0.9  # a classifier's probability from which an image is taken for one of its classes

# What others report, by data set and score: PacGAN4 of Lin et al. 2018, VEEGAN of Srivastava et al. 2017, each in its
# own paper's table; for MNIST table 1 of Goodfellow et al. 2014. how_many gives the 2,500 points that PacGAN scores.
PUBLISHED = {
    "ring-pacgan": {"modes": "PacGAN4 7.8, VEEGAN 8", "high_quality": "PacGAN4 .959, VEEGAN .529"},
    "grid-pacgan": {
        "modes": "PacGAN4 24.8, VEEGAN 24.6",
        "high_quality": "PacGAN4 .936, VEEGAN .400",
        "reverse_kl": "PacGAN4 .04",
    },
    "mnist": {"parzen": "Goodfellow et al. 2014: 225 +- 2"},
    "mnist-paper": {"parzen": "Goodfellow et al. 2014: 225 +- 2"},
}


# ---- distances ---------------------------------------------------------------------------------------------


def _table(x, name):
    """`x` as an (N, features) array. ValueError unless it is 2-D, not empty and finite."""
    x = np.asarray(x)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(
            f"{name} must have shape (N, features) and not be empty, got {x.shape}; "
            f"flatten images with x.reshape(len(x), -1)"
        )
    if not np.isfinite(x).all():
        raise ValueError(
            f"{name} holds {np.size(x) - np.isfinite(x).sum()} values that are NaN or infinite: "
            f"the generator has diverged, or the data need cleaning"
        )
    return x


def _pair(a, b, name_a, name_b):
    a, b = _table(a, name_a), _table(b, name_b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{name_a} has {a.shape[1]} features and {name_b} has {b.shape[1]}; they must agree")
    return a, b


def _table_dtype(a, b):
    return np.dtype(np.float64) if a.shape[1] <= 16 else np.result_type(a, b, np.float32)


def squared_distance_blocks(a, b, block=BLOCK):
    """Yield `(rows, d2)`: d2[i, j] = |a[rows][i] - b[j]|^2, for `block` rows of `a` at a time.

    a (N, features), b (M, features); d2 (block or fewer, M), float32, or float64 if an input is float64 or
    there are 16 features or fewer (where it costs nothing and points lie closest together). d2 is one buffer,
    overwritten by the next step, and the caller may overwrite it too.

    |a - b|^2 = [-2a, 1, |a|^2] . [b, |b|^2, 1], so that one matrix product makes the whole table with no
    further pass over it. The sum cancels when a is near b: the error is a few eps * |a|^2, and may be
    negative. Both sides are therefore shifted by the mean of b, which leaves distances alone and makes |a|
    small. Nothing is clipped here; callers clip the few numbers that they keep.
    """
    features = a.shape[1]
    dtype = _table_dtype(a, b)
    centre = b.mean(axis=0, dtype=np.float64).astype(dtype)
    block = min(block, len(a))

    right = np.empty((len(b), features + 2), dtype)
    np.subtract(b, centre, out=right[:, :features])
    right[:, features] = _square_norms(right[:, :features])
    right[:, features + 1] = 1
    left = np.empty((block, features + 2), dtype)
    table = np.empty((block, len(b)), dtype)
    for start in range(0, len(a), block):
        rows = slice(start, min(start + block, len(a)))
        n = rows.stop - start
        shifted = left[:n, :features]
        np.subtract(a[rows], centre, out=shifted)
        left[:n, features + 1] = _square_norms(shifted)
        left[:n, features] = 1
        shifted *= -2
        yield rows, np.matmul(left[:n], right.T, out=table[:n])


def _square_norms(x):
    return np.einsum("ij,ij->i", x, x)


def nearest_neighbours(x, reference, block=BLOCK):
    """For each row of x the nearest row of reference: `(index (N,) int64, distance (N,) float64)`, Euclidean.

    x (N, features), reference (M, features). The distance is computed again from the pair itself, so that a
    copy has distance exactly 0, if no other row is equal to it but for the table's rounding: compare distances to
    training and to held-out data to see memorisation.
    Raises ValueError if shapes disagree or values are not finite.
    """
    x, reference = _pair(x, reference, "x", "reference")
    index, distance = np.empty(len(x), np.int64), np.empty(len(x))
    for rows, d2 in squared_distance_blocks(x, reference, block):
        d2.argmin(axis=1, out=index[rows])
        offset = np.subtract(x[rows], reference[index[rows]], dtype=np.float64)
        distance[rows] = np.sqrt(_square_norms(offset))
    return index, distance


# ---- precision, recall, density, coverage ------------------------------------------------------------------


def _kth_smallest(d2, k, group=64):
    """The k-th smallest value of each row of d2 (n, m) -> (n,); np.partition's answer, six times faster.

    The columns are split into groups. The k smallest values lie in the k groups with the smallest minima (or
    tie with values there): a value in any other group has k smaller ones, those minima. So only k groups need
    a partition.
    """
    width = d2.shape[1] // group
    if width <= k:
        return np.partition(d2, k - 1, axis=1)[:, k - 1]
    groups = d2[:, : width * group].reshape(len(d2), group, width)  # group w is [:, :, w]
    best = np.argpartition(groups.min(axis=1), k - 1, axis=1)[:, None, :k]
    candidates = np.take_along_axis(groups, best, axis=2).reshape(len(d2), -1)
    candidates = np.concatenate([candidates, d2[:, width * group :]], axis=1)
    return np.partition(candidates, k - 1, axis=1)[:, k - 1]


def _squared_radii(x, k, block):
    """NND_k^2, squared distance of each row to its k-th nearest other row, (N,), less its rounding; -inf where it is 0.

    Rows of whole numbers have many at exactly that distance, which are not strictly inside: rounding noise in either
    must not let them in. Where k duplicates make the true radius 0, -inf lets nobody in, whatever the noise.
    """
    dtype = _table_dtype(x, x)
    radii = np.empty(len(x), dtype)
    for rows, d2 in squared_distance_blocks(x, x, block):
        np.fill_diagonal(d2[:, rows], np.inf)  # a point is not its own neighbour
        radii[rows] = _kth_smallest(d2, k)
    off = np.subtract(x, x.mean(axis=0, dtype=np.float64), dtype=np.float64)
    radii -= 4 * np.finfo(dtype).eps * math.sqrt(x.shape[1]) * _square_norms(off)
    radii[radii <= 0] = -np.inf
    return radii


def precision_recall_density_coverage(real, fake, k=NEIGHBOURS, block=BLOCK):
    """How far samples and data share a support, by k-nearest-neighbour balls: dict of four floats.

    real (N, features), fake (M, features). With NND_k the distance to the k-th nearest neighbour in a point's
    own set:
        precision = share of fakes inside the ball of some real        (quality)
        recall    = share of reals inside the ball of some fake        (variety)
        density   = (1 / kM) sum over fakes of the number of real balls around them    (quality; 1 if equal)
        coverage  = share of reals whose ball holds a fake             (variety, not fooled by outlying fakes)
    "Inside" is strict. Precision, recall: Kynkaanniemi et al. 2019, section 2; density, coverage: Naeem et
    al. 2020, section 3, who advise N = M. If N = M is large and the distributions are equal, coverage is
    1 - 2^-k, .969 for k = 5; precision and recall depend on the dimension, so compare with real against real.
    Time: three N x N x features products and a quarter more. Memory, beside one copy of a set in float64:
    5 bytes x block x N, 26 MB for N = 10,000.
    Raises ValueError if shapes disagree, values are not finite, or a set has k rows or fewer.
    """
    real, fake = _pair(real, fake, "real", "fake")
    if k < 1 or min(len(real), len(fake)) <= k:
        raise ValueError(
            f"k = {k} neighbours need k >= 1 and more than k rows; got {len(real)} real and {len(fake)} fake, give "
            f"{max(k, 1) + 1} or more of each"
        )
    real_radii, fake_radii = _squared_radii(real, k, block), _squared_radii(fake, k, block)
    precise, pairs = 0, 0
    covered, recalled = np.zeros(len(real), bool), np.zeros(len(real), bool)
    mask = np.empty((min(block, len(fake)), len(real)), bool)
    for rows, d2 in squared_distance_blocks(fake, real, block):  # d2[j, i]: fake j, real i
        inside = np.less(d2, real_radii, out=mask[: len(d2)])
        pairs += int(np.count_nonzero(inside))
        precise += int(np.count_nonzero(inside.any(axis=1)))
        covered |= inside.any(axis=0)
        inside = np.less(d2, fake_radii[rows, None], out=mask[: len(d2)])
        recalled |= inside.any(axis=0)
    return {
        "precision": precise / len(fake),
        "recall": float(recalled.mean()),
        "density": pairs / (k * len(fake)),
        "coverage": float(covered.mean()),
    }


# ---- Parzen window -----------------------------------------------------------------------------------------


def _sum_of_exponentials(x, factor, least=-40):
    """The sums (n,) of exp(factor x) over the columns of x (n, M), float64; factor is negative, the least x of a row 0.

    Terms below e^least, less than rounding, are left out: among images nearly all are. And those of the smallest
    numbers that there are, further below, would take NumPy five times as long as others.
    """
    near = np.flatnonzero(x < least / factor)
    if len(near) < x.size // 8:  # few enough for it to pay to pick them out
        first_of_row = np.searchsorted(near, np.arange(0, x.size, x.shape[1]))
        return np.add.reduceat(np.exp(x.ravel()[near] * factor), first_of_row, dtype=np.float64)
    terms = np.multiply(x, factor)
    np.maximum(terms, 2 * least, out=terms)
    return (np.exp(terms, out=terms) @ np.ones(x.shape[1], x.dtype)).astype(np.float64)


def _log_parzen(x, samples, sigmas, block):
    """log (1/M) sum_j N(x_i; samples_j, sigma^2 I) for each sigma: (len(sigmas), N) float64."""
    result = np.empty((len(sigmas), len(x)))
    for rows, table in squared_distance_blocks(x, samples, block):
        for start in range(0, len(table), PARZEN_ROWS):
            # log-mean-exp: take out the largest exponent, the nearest sample's, for every sigma at once
            d2 = table[start : start + PARZEN_ROWS]
            nearest = d2.min(axis=1, keepdims=True)
            further = np.subtract(d2, nearest, out=d2)
            nearest = np.maximum(nearest[:, 0].astype(np.float64), 0)
            first = rows.start + start
            for i, sigma in enumerate(sigmas):
                mean = _sum_of_exponentials(further, -0.5 / sigma**2) / len(samples)
                result[i, first : first + len(d2)] = np.log(mean) - nearest / (2 * sigma**2)
    log_norm = x.shape[1] * np.log(np.asarray(sigmas) * math.sqrt(2 * math.pi))
    return result - log_norm[:, None]


def parzen_log_likelihood(samples, validation, test, sigmas=PARZEN_SIGMAS, block=BLOCK):
    """Parzen-window log-likelihood of `test` in nats, the measure of Table 1 in Goodfellow et al. 2014.

    LL(x) = log (1/M) sum_i N(x; samples_i, sigma^2 I)   (Breuleux, Bengio and Vincent 2011; `parzen_ll.py` of
    goodfeli/adversarial). samples (M, features), validation and test (N, features), all in the same units
    (the paper: pixels in [0, 1], M = 10,000). sigma is the one of `sigmas` with the best mean over
    validation[:1000].
    Returns dict: mean, standard_error (over test rows), sigma, per_sigma (list: validation mean for each of
    `sigmas`). A poor measure in many dimensions: it rewards blur; blurred models beat real images.
    Raises ValueError if shapes disagree, values are not finite, or a sigma is not positive.
    """
    samples, validation = _pair(samples, validation, "samples", "validation")
    samples, test = _pair(samples, test, "samples", "test")
    sigmas = [float(sigma) for sigma in sigmas]
    if not sigmas or min(sigmas) <= 0:
        raise ValueError(f"sigmas must be positive and at least one, got {sigmas}")
    per_sigma = _log_parzen(validation[:1000], samples, sigmas, block).mean(axis=1)
    sigma = sigmas[int(per_sigma.argmax())]
    log_likelihood = _log_parzen(test, samples, [sigma], block)[0]
    return {
        "mean": float(log_likelihood.mean()),
        "standard_error": float(log_likelihood.std() / math.sqrt(len(test))),
        "sigma": sigma,
        "per_sigma": per_sigma.tolist(),
    }


# ---- modes -------------------------------------------------------------------------------------------------


def _ball_probability(features, radius):
    """P(|z| < radius) for z ~ N(0, I): the regularised gamma function P(features / 2, radius^2 / 2).

    P(1, x) = 1 - e^-x, P(1/2, x) = erf(sqrt x), and upwards P(a + 1, x) = P(a, x) - x^a e^-x / Gamma(a + 1). Where
    that would cancel, the sum of what is taken away from there on: P(a, x) = sum over k of x^(a+k) e^-x / Gamma(a+k+1).
    """
    x, a = radius**2 / 2, features / 2
    if x < a + 1:
        p = term = math.exp(a * math.log(x) - x - math.lgamma(a + 1))
        while term > 1e-17 * p:
            a += 1
            term *= x / a
            p += term
        return p
    a, p = (0.5, math.erf(math.sqrt(x))) if features % 2 else (1.0, -math.expm1(-x))
    while a < features / 2:
        p -= math.exp(a * math.log(x) - x - math.lgamma(a + 1))
        a += 1
    return p


def _truncated_variance(features, radius):
    """Variance of one coordinate of z ~ N(0, I) given |z| < radius; .949 for radius 3 in the plane."""
    return _ball_probability(features + 2, radius) / _ball_probability(features, radius)


def _untruncate(variance, features, radius=3.0, largest=3.0):
    """The s <= largest for which N(0, s^2 I), cut at `radius`, has this coordinate variance (bisection)."""
    low, high = 1e-3, largest
    for _ in range(50):
        s = (low + high) / 2
        if s**2 * _truncated_variance(features, radius / s) < variance:
            low = s
        else:
            high = s
    return (low + high) / 2


def mode_coverage(x, modes, sigma):
    """Samples against a mixture of K equal Gaussians, by the protocol of VEEGAN and PacGAN (Lin et al. 2018).

    x (N, features), modes (K, features), sigma their standard deviation in the same units. A sample is of
    high quality if it lies within 3 sigma (Euclidean) of its nearest mode. Returns dict:
        modes         modes with at least one high-quality sample
        strict_modes  modes with at least half their share, N / 2K, of high-quality samples
        high_quality  share of high-quality samples; .989 in the plane for a perfect sampler
        reverse_kl    KL(p || uniform) in nats, p the shares of *all* samples by nearest mode;
                      (K - 1) / 2N on average for a perfect sampler, .0048 +- .0014 for K = 25, N = 2,500
        sigma_ratio   width of the generated modes over sigma; 1 if perfect, below 1 if modes have shrunk
                      (which high_quality rewards). From v = sum |x - m|^2 / (features * sum (n - 1)) over
                      high-quality x, m and n their mode's sample mean and number; the cut at 3 sigma, which
                      makes v too small, is undone by solving s^2 T(3 / s) = v / sigma^2 for s, T the variance
                      of a unit Gaussian cut at that radius, T(3) = .949 in the plane. At most 3; NaN if no
                      mode has two high-quality samples
        total         K
    Raises ValueError if shapes disagree, values are not finite, or sigma is not positive.
    """
    x, modes = _pair(x, modes, "x", "modes")
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    total, features = modes.shape
    nearest, distance = nearest_neighbours(x, modes)
    good = distance <= 3 * sigma
    counts = np.bincount(nearest[good], minlength=total)
    shares = label_histogram(nearest, total)
    occupied = shares[shares > 0]

    offsets = (x[good] - modes[nearest[good]]).astype(np.float64)
    means = np.stack([np.bincount(nearest[good], column, total) for column in offsets.T], axis=1)
    means = means / np.maximum(counts, 1)[:, None]
    freedom = np.maximum(counts - 1, 0).sum()
    scatter = _square_norms(offsets - means[nearest[good]]).sum()
    ratio = _untruncate(scatter / (features * freedom * sigma**2), features) if freedom else math.nan
    return {
        "modes": int((counts > 0).sum()),
        "strict_modes": int((counts >= len(x) / (2 * total)).sum()),
        "high_quality": float(good.mean()),
        "reverse_kl": max(float((occupied * np.log(occupied * total)).sum()), 0.0),
        "sigma_ratio": float(ratio),
        "total": total,
    }


# ---- distributions -----------------------------------------------------------------------------------------


def _shares(p, q):
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if p.shape != q.shape:
        raise ValueError(f"distributions must have one shape, got {p.shape} and {q.shape}")
    for weights in (p, q):
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise ValueError(
                "a distribution needs finite weights >= 0 with a positive sum; "
                f"the smallest is {weights.min(initial=math.inf)}, the sum {weights.sum()}"
            )
    return p / p.sum(), q / q.sum()


def total_variation(p, q):
    """Total variation 1/2 sum |p - q| of two discrete distributions (same shape), in [0, 1].

    Weights such as counts are normalised. Raises ValueError for negative, empty or unlike weights.
    """
    p, q = _shares(p, q)
    return 0.5 * float(np.abs(p - q).sum())


def jensen_shannon(p, q):
    """JSD(p, q) = KL(p || m)/2 + KL(q || m)/2, m = (p + q)/2, in nats: 0 if equal, ln 2 if disjoint.

    p, q: weights of discrete distributions (same shape; normalised here); 0 log 0 = 0. Theorem 1 of
    Goodfellow et al. 2014: max_D V = -log 4 + 2 JSD. Raises ValueError for negative, empty or unlike weights.
    """
    p, q = _shares(p, q)
    total = 0.0
    for w in (p, q):
        some = w > 0
        total += 0.5 * float((w[some] * np.log(2 * w[some] / (p + q)[some])).sum())
    return max(total, 0.0)


def _cell_masses(density, low, high, cells, points):
    """Mass of a density (function of an (n,) array) in each cell of [low, high] and outside: (cells + 1,)."""
    width = (high - low) / (cells * points)
    x = low + width * (np.arange(cells * points) + 0.5)  # midpoint rule
    mass = width * np.asarray(density(x), np.float64).reshape(cells, points).sum(axis=1)
    if not mass.sum() < 1.01:
        raise ValueError(f"the density's integral over [{low:.3g}, {high:.3g}] is {mass.sum():.3g}, above 1")
    return np.append(mass, max(1 - mass.sum(), 0.0))


def jensen_shannon_1d(density, other, low, high, bins=100):
    """JSD in nats between a 1-D density and samples, or between two densities.

    density: function, (n,) -> (n,), with integral 1. other: another such function, compared by quadrature on
    16 * bins cells of [low, high]; or samples, (N,) or (N, 1), compared in a histogram of `bins` cells. What
    lies outside [low, high] makes one more cell. A perfect sampler's histogram scores about
    (occupied cells - 1) / 8N, not 0.
    Raises ValueError for an empty range, a density of mass above 1, or samples not 1-D and finite.
    """
    if not low < high:
        raise ValueError(f"need low < high, got {low} and {high}")
    if callable(other):
        return jensen_shannon(
            _cell_masses(density, low, high, 16 * bins, 1), _cell_masses(other, low, high, 16 * bins, 1)
        )
    x = np.asarray(other)
    x = _table(x[:, None] if x.ndim == 1 else x, "samples")
    if x.shape[1] != 1:
        raise ValueError(f"samples must have one feature, got {x.shape[1]}")
    counts, _ = np.histogram(x, bins, (low, high))
    counts = np.append(counts, x.size - counts.sum())
    return jensen_shannon(_cell_masses(density, low, high, bins, 16), counts)


# ---- labels ------------------------------------------------------------------------------------------------


def nearest_labels(fake, real, labels):
    """Label of the nearest real row for each fake, (N,): a 1-NN classifier, 98 % right on the 8x8 digits.

    fake (N, features), real (M, features), labels (M,). Raises ValueError if shapes disagree or values are
    not finite.
    """
    labels = np.asarray(labels)
    if labels.shape != (len(real),):
        raise ValueError(f"labels must have shape ({len(real)},), one for each real row, got {labels.shape}")
    return labels[nearest_neighbours(fake, real)[0]]


def label_agreement(dataset, fake, labels, classifier=None):
    """Share of the samples in which a judge finds the label that they were asked for, a float.

    fake (N, features) in the data's units, labels (N,). The judge is the classifier; without one a stream's own
    rule, or the label of the nearest row of the data.
    """
    found = labels_nearby(dataset, fake) if classifier is None else classifier.predict(fake)
    return float((found == labels).mean())


def real_label_agreement(dataset, seed=0):
    """The same for real rows, at most 10,000, each judged by the nearest other one: below 1 where classes overlap."""
    some = np.random.default_rng(seed).permutation(len(dataset.X))[:MAX_ROWS]
    x, labels, nearest = dataset.normalise(dataset.X[some]), dataset.labels[some], np.empty(len(some), np.int64)
    for rows, d2 in squared_distance_blocks(x, x):
        np.fill_diagonal(d2[:, rows], np.inf)
        d2.argmin(axis=1, out=nearest[rows])
    return float((labels[nearest] == labels).mean())


def labels_nearby(dataset, x):
    """The label (N,) of each row of x (N, features), in data units: of its part of a stream, or of its nearest row."""
    if dataset.labels is None:
        return dataset.label_of(x, np)
    return nearest_labels(dataset.normalise(x), dataset.normalise(dataset.X), dataset.labels)


def recall_by_class(dataset, fake, labels, rows=500, seed=0):
    """Recall within each class of the data, (classes,) float64: does each class have its whole variety?

    fake (N, features) in the data's units, labels (N,) those of the samples. Of every class as many rows are taken on
    both sides, as many as there are but at most ``rows``; 0 where there are not more than NEIGHBOURS.
    """
    rng, found = np.random.default_rng(seed), []
    for label in dataset.label_shares:
        real, mine = (x[rng.permutation(np.flatnonzero(of == label))[:rows]] for x, of in
                      ((dataset.X, dataset.labels), (fake, labels)))  # fmt: skip
        n = min(len(real), len(mine))
        real, mine = dataset.normalise(real[:n]), dataset.normalise(mine[:n])
        found.append(precision_recall_density_coverage(real, mine)["recall"] if n > NEIGHBOURS else 0.0)
    return np.array(found)


def label_histogram(labels, n_classes):
    """Share of each class 0 .. n_classes - 1 among integer labels (N,): (n_classes,) float64, sum 1.

    Raises ValueError for no labels, or labels that are not integers in range.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers (N,), N > 0; got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(f"labels must lie in 0 .. {n_classes - 1}, got {labels.min()} .. {labels.max()}")
    return np.bincount(labels, minlength=n_classes) / len(labels)


# ---- mode collapse -----------------------------------------------------------------------------------------


def collapse_signs(dataset, fake, seed=0):
    """What speaks for mode collapse: phrases such as "3 of 8 modes are nearly empty"; none if nothing does.

    dataset: see data.py; fake (N, features), samples in its units, 500 or more. Looked for are a spread (the root of
    the mean variance of a column, in the network's units) below half of the real one, and modes or classes, by a
    stream's own rule or by the nearest real row, that have less than a quarter of the samples due to them, if
    these are ``ENOUGH_DUE`` or more: of fewer, chance alone may leave that little.
    `seed` picks the real rows.
    """
    most = len(fake) if dataset.X is None else min(len(fake), len(dataset.X))
    real = dataset.normalise(dataset.real_samples(most, seed))
    x = dataset.normalise(fake)
    spread, spread_real = (float(np.sqrt(rows.var(axis=0).mean())) for rows in (x, real))
    signs = []
    if spread < spread_real / 2:
        signs.append(f"their spread is {spread:.2g}, the real data's {spread_real:.2g}")
    if dataset.label_of is not None:
        found = dataset.label_of(fake, np)
        due = np.array(list(dataset.label_shares.values()))
        what = "classes" if dataset.modes is None else "modes"
    elif dataset.labels is not None:
        rows = np.random.default_rng(seed).permutation(len(dataset.X))[:MAX_ROWS]
        classes, labels = np.unique(dataset.labels[rows], return_inverse=True)
        found = nearest_labels(x, dataset.normalise(dataset.X[rows]), labels)
        due = label_histogram(labels, len(classes))
        what = "classes"
    else:
        return signs
    judged = due * len(fake) >= ENOUGH_DUE
    empty = int((judged & (label_histogram(found, len(due)) < due / 4)).sum())
    if empty:
        signs.append(f"{empty} of {len(due)} {what} {'are' if empty > 1 else 'is'} nearly empty")
    return signs


# ---- images through the eyes of a classifier ---------------------------------------------------------------


def frechet_distance(a, b):
    """d^2 = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2), the squared Frechet distance of two Gaussians.

    a (N, features), b (M, features); m their means, C their covariances (divided by N - 1), in float64. In the
    features of a classifier it is what Heusel et al. 2017, eq. 6, call FID with those of Inception; the
    formula is Dowson and Landau's, 1982. Finite samples of one distribution do not score 0, and few rows
    score more: compare at the same N with real against real.
    With C = R'R the trace of (C_a C_b)^1/2 is the sum of the singular values of R_a R_b'.
    Raises ValueError if shapes disagree, values are not finite, or a set has one row.
    """
    a, b = _pair(a, b, "a", "b")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs two rows or more, got {len(a)} and {len(b)}")
    offset = a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return max(float(offset @ offset + (root_a**2).sum() + (root_b**2).sum() - 2 * overlap), 0.0)


def _covariance_root(x):
    """R with R'R the covariance of x (N, features): sqrt(w) V' of its eigendecomposition V w V'."""
    covariance = np.cov(x, rowvar=False, dtype=np.float64).reshape(x.shape[1], -1)
    w, V = np.linalg.eigh(covariance)
    return np.sqrt(np.maximum(w, 0))[:, None] * V.T  # rounding makes small eigenvalues negative


def training_distance_ratio(fake, train, held_out):
    """Has the generator learnt rows by heart? Median distance of the fakes to their nearest training row, over
    that of held-out real rows: 0 for copies, 1 if fakes are as far from the training rows as unseen real ones.

    fake (N, features), train (M, features), held_out (L, features). NaN if half of held_out is in train.
    Raises ValueError if shapes disagree or values are not finite.
    """
    fakes, reals = (float(np.median(nearest_neighbours(x, train)[1])) for x in (fake, held_out))
    return fakes / reals if reals else math.nan


def label_scores(probabilities, target):
    """What a classifier says of a set of images: dict of

        classes_present  classes of target > 0 that hold an accepted image
        label_tv         total variation between the shares of the likeliest labels and ``target``
        accepted         share of images whose likeliest class has a probability of CONFIDENT or more

    probabilities (N, classes); target (classes,), the shares in the training data. Raises ValueError as
    ``label_histogram`` and ``total_variation`` do.
    """
    labels, confident = probabilities.argmax(axis=1), probabilities.max(axis=1) >= CONFIDENT
    counts = np.bincount(labels[confident], minlength=len(target))
    return {
        "classes_present": int(((counts > 0) & (target > 0)).sum()),
        "label_tv": total_variation(label_histogram(labels, len(target)), target),
        "accepted": float(confident.mean()),
    }


def evaluate_images(dataset, fake, classifier, seed=0):
    """Score generated images where the data have labels and held-out images: a flat dict of Python numbers.

    dataset: see data.py, with X, labels, X_test, labels_test and perhaps X_valid. fake (N, features): pixels in
    [0, 1]; up to 10,000 are scored, and as many real ones. classifier: a trained Classifier. Returns
        classes_present, classes, label_tv, accepted   see ``label_scores``
        frechet                  ``frechet_distance`` of fakes and held-out images, in its features
        training_distance_ratio  see there; of 2,500 rows of each
        parzen, parzen_error, parzen_sigma   ``parzen_log_likelihood`` of the held-out images, its standard error and
                                 sigma, chosen on X_valid, or else on the last sixth of X (up to 10,000 rows)
        real_label_tv, real_accepted   what held-out images score
        real_frechet, real_parzen      what training images score in place of fakes
    `seed` picks the rows. Raises ValueError as the measures do.
    """
    rng = np.random.default_rng(seed)
    n = min(len(fake), len(dataset.X_test), MAX_ROWS)
    fake = _table(fake, "fake")[rng.permutation(len(fake))[:n]]
    held_out = dataset.X_test[rng.permutation(len(dataset.X_test))[:n]]
    last = 0 if dataset.X_valid is not None else min(len(dataset.X) // 6, MAX_ROWS)
    train, validation = (dataset.X[: len(dataset.X) - last], dataset.X[-last:] if last else dataset.X_valid)
    some = train[rng.permutation(len(train))[:n]]

    target = (dataset.labels[:, None] == classifier.classes).mean(axis=0)
    p, features = classifier.look(fake)
    p_held_out, features_held_out = classifier.look(held_out)
    real = label_scores(p_held_out, target)
    scores = label_scores(p, target) | {"classes": int((target > 0).sum())}
    scores |= {"real_label_tv": real["label_tv"], "real_accepted": real["accepted"]}
    scores["frechet"] = frechet_distance(features, features_held_out)
    scores["real_frechet"] = frechet_distance(classifier.features(some), features_held_out)
    some_fake, some_held_out = fake[:STREAM_ROWS], held_out[:STREAM_ROWS]  # enough for a median; X may be long
    scores["training_distance_ratio"] = training_distance_ratio(some_fake, dataset.X, some_held_out)
    parzen, real_parzen = (parzen_log_likelihood(x, validation, dataset.X_test) for x in (fake, some))
    scores |= {"parzen": parzen["mean"], "parzen_error": parzen["standard_error"], "parzen_sigma": parzen["sigma"]}
    return scores | {"real_parzen": real_parzen["mean"]}


# ---- one call for a data set -------------------------------------------------------------------------------


def how_many(dataset):
    """How many samples `evaluate` wants: 10,000 in 1-D, len(X) up to 10,000 if finite, else 2,500."""
    if dataset.density is not None:
        return MAX_ROWS
    if dataset.modes is None and dataset.X is not None:
        return min(len(dataset.X), MAX_ROWS)
    return STREAM_ROWS


def evaluate(dataset, fake, seed=0, reference=False):
    """Score generated samples by the measures that fit the data: a flat dict of Python floats and ints.

    dataset: see data.py; used are features, X, labels, modes, sigma, density, real_samples and normalise.
    fake (N, features): samples in the data's units, `how_many(dataset)` of them. Chosen are:
        modes known        mode_coverage; perfect_high_quality, perfect_reverse_kl
        1-D density known  jsd; perfect_jsd
        finite X           precision, recall, density, coverage (k = 5, both sides as many rows, at most
                           10,000, in the network's units); with labels also classes_present, classes,
                           label_tv, perfect_label_tv
        other streams      precision, recall, density, coverage against 2,500 fresh real samples
    perfect_* is about what a perfect sampler scores (perfect_jsd: what as many real samples do). `n` is the
    number of samples scored.
    reference=True adds real_precision, ... : real against other real rows (halves of X if it is small).
    `seed` picks the real rows and samples.
    Raises ValueError if fake has the wrong shape, holds NaN or infinity, or has 5 rows or fewer.
    """
    fake = _table(fake, "fake")
    if fake.shape[1] != dataset.features:
        raise ValueError(f"fake has {fake.shape[1]} features, the data {dataset.features}")
    rng = np.random.default_rng(seed)
    scores = {"n": len(fake)}
    if dataset.modes is not None and dataset.sigma is not None:
        scores |= mode_coverage(fake, dataset.modes, dataset.sigma)
        scores["perfect_high_quality"] = _ball_probability(dataset.features, 3.0)
        scores["perfect_reverse_kl"] = (scores["total"] - 1) / (2 * len(fake))
    if dataset.density is not None and dataset.features == 1:
        real = dataset.real_samples(len(fake), seed)
        low, high = float(real.min()), float(real.max())
        margin = (high - low) / 10
        scores["jsd"] = jensen_shannon_1d(dataset.density, fake, low - margin, high + margin)
        scores["perfect_jsd"] = jensen_shannon_1d(dataset.density, real, low - margin, high + margin)
    if dataset.X is not None:
        scores |= _evaluate_finite(dataset, fake, rng, reference)
    elif "modes" not in scores and "jsd" not in scores:
        scores["n"] = n = min(len(fake), STREAM_ROWS)
        real = dataset.normalise(dataset.real_samples(2 * n, seed))
        scores |= precision_recall_density_coverage(real[:n], dataset.normalise(fake[:n]))
        if reference:
            scores |= _real_scores(real[:n], real[n:])
    return scores


def _evaluate_finite(dataset, fake, rng, reference):
    n = min(len(dataset.X), len(fake), MAX_ROWS)
    order = rng.permutation(len(dataset.X))
    # a random choice of fakes too: a conditional generator's may come class by class
    fake = dataset.normalise(fake[rng.permutation(len(fake))[:n]])
    real = dataset.normalise(dataset.X[order[:MAX_ROWS]])
    scores = {"n": n, **precision_recall_density_coverage(real[:n], fake)}
    if dataset.labels is not None:
        classes, labels = np.unique(dataset.labels, return_inverse=True)
        target = label_histogram(labels, len(classes))
        found = label_histogram(nearest_labels(fake, real, labels[order[:MAX_ROWS]]), len(classes))
        scores |= {"classes_present": int((found > 0).sum()), "classes": len(classes)}
        scores["label_tv"] = total_variation(found, target)
        # E|share - p| = sqrt(2 p (1 - p) / (pi n)) for a binomial count, nearly
        scores["perfect_label_tv"] = 0.5 * float(np.sqrt(2 * target * (1 - target) / (math.pi * n)).sum())
    half = min(len(order) // 2, n)
    if reference and half > NEIGHBOURS:
        scores |= _real_scores(
            dataset.normalise(dataset.X[order[:half]]), dataset.normalise(dataset.X[order[half : 2 * half]])
        )
    return scores


def _real_scores(real, other):
    scores = precision_recall_density_coverage(real, other)
    return {f"real_{name}": value for name, value in scores.items()}


def summary_lines(scores, published=None):
    """The scores of `evaluate` and `evaluate_images` as lines for a person, each with what a perfect sampler or real
    images would get, where known. published: what others report, {score: text}, such as one entry of PUBLISHED."""
    published = published or {}

    def line(name, value, *notes):
        return f"{name:<22}{value:<12}{', '.join(filter(None, notes))}".rstrip()

    def number(key, text="{}"):
        """The score in `text`, or nothing if there is none."""
        if scores.get(key) is None:
            return ""
        if math.isnan(scores[key]):
            return text.format("none")
        return text.format(f"{scores[key]:.4f}" if abs(scores[key]) < 0.1 else f"{scores[key]:.3f}")

    def row(key, name, *notes):
        return line(name, number(key), *notes, published.get(key))

    lines = [line("samples scored", str(scores["n"]))]
    if "modes" in scores:
        total = scores["total"]
        lines += [
            line("modes found", f"{scores['modes']} of {total}", published.get("modes")),
            line("  with half a share", f"{scores['strict_modes']} of {total}"),
            row("high_quality", "within 3 sigma", number("perfect_high_quality", "perfect {}")),
            row("reverse_kl", "reverse KL", number("perfect_reverse_kl", "perfect about {}")),
            row("sigma_ratio", "mode width / sigma", "perfect 1; less: shrunken modes"),
        ]
    if "jsd" in scores:
        lines.append(row("jsd", "JSD (nats)", number("perfect_jsd", "perfect about {}"), f"worst {math.log(2):.3f}"))
    for key in ("precision", "recall", "density", "coverage"):
        if key in scores:
            lines.append(row(key, key, number("real_" + key, "real against real {}")))
    if scores.get("real_coverage", 1) < 0.5:
        lines.append("rows that occur more than five times have no ball around them: these four do not suit such data")
    if "label_tv" in scores:
        real, perfect = number("real_label_tv", "held-out images {}"), number("perfect_label_tv", "perfect about {}")
        lines += [
            line("classes present", f"{scores['classes_present']} of {scores['classes']}"),
            row("label_tv", "label total variation", real, perfect),
        ]
    if "label_agreement" in scores:
        lines.append(row("label_agreement", "label as asked for", number("real_label_agreement", "real rows {}")))
    if "frechet" in scores:
        lines += [
            row("accepted", f"accepted at p >= {CONFIDENT}", number("real_accepted", "held-out images {}")),
            row("frechet", "Frechet distance", number("real_frechet", "training images {}")),
            row("training_distance_ratio", "distance to training", "held-out images 1; 0: learnt by heart"),
            row("parzen", "Parzen LL (nats)", f"+- {scores['parzen_error']:.1f} at sigma {scores['parzen_sigma']:.3f}",
                number("real_parzen", "training images {}")),
        ]  # fmt: skip
    return lines
