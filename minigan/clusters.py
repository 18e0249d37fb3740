"""Clusters found by k-means, to stand in for labels that nobody has given.

A GAN that is told which cluster it is to draw from has no need of bridges between separate parts of the data, and
gives each its share: Liu et al. 2020, arXiv 2006.10728, section 3, here with clusters of the data themselves (theirs
are of D's features, found anew as D learns).
"""

from dataclasses import replace

import numpy as np

from minigan.errors import MiniganError
from minigan.metrics import nearest_neighbours

ROWS = 10_000  # that the centres are found on
STREAM_ROWS = 100_000  # drawn of a stream to count the clusters' shares


def far_rows(X, k, rng):
    """k rows of X (N, features), the more likely chosen the farther they are from those before: k-means++.

    Arthur and Vassilvitskii 2007, section 2.2. If X has fewer than k different rows, some are chosen twice.
    """
    chosen = X[rng.integers(len(X), size=1)]
    squares = np.full(len(X), np.inf)
    while len(chosen) < k:
        squares = np.minimum(squares, nearest_neighbours(X, chosen[-1:])[1] ** 2)
        total = squares.sum()
        row = rng.choice(len(X), p=squares / total if total else None)
        chosen = np.concatenate([chosen, X[row : row + 1]])
    return chosen


def kmeans(X, k, rng, steps=100):
    """The centres (k, features) of k clusters of the rows of X (N, features), by Lloyd 1982 from ``far_rows``.

    Each step assigns every row to its nearest centre and moves the centres to the means of their rows, until no row
    changes sides. A centre that no row is nearest to stays where it is; if it ends so, its share is 0.
    """
    centres, before = far_rows(X, k, rng), None
    for _ in range(steps):
        nearest = nearest_neighbours(X, centres)[0]
        if before is not None and (nearest == before).all():
            break
        before = nearest
        for j in np.unique(nearest):
            centres[j] = X[nearest == j].mean(0)
    return centres


def find(data, k, seed):
    """The centres (k, features) of k clusters of a Dataset, float32, in the network's units.

    Raises MiniganError if among the rows looked at, ``ROWS`` at most, there are fewer than k different ones.
    """
    rows = data.normalise(data.real_samples(ROWS if data.X is None else min(ROWS, len(data.X)), seed))
    different = len(np.unique(rows, axis=0))
    if different < k:
        raise MiniganError(
            f"{k} clusters cannot be found in '{data.name}', whose rows are of {different} kinds; "
            f"use --clusters {different}" + (" or less" if different > 2 else "")
        )
    return kmeans(rows, k, np.random.default_rng([seed, 2])).astype(np.float32)  # 2: not the stream of the rows


def in_clusters(data, centres, shares=None):
    """The Dataset with the clusters around ``centres`` (k, features), in the network's units, in place of its labels.

    shares: {cluster: its share of the rows}; None counts them, of a stream among rows drawn for that.
    """

    def label_of(x, xp):
        """For streams: the cluster (n,) of each row x (n, features), in the data's units, of module xp."""
        x = (x - xp.asarray(data.shift)) / xp.asarray(data.scale)
        return xp.argmin(xp.square(x[:, None] - xp.asarray(centres)).sum(2), axis=1)

    labels = None if data.X is None else nearest_neighbours(data.normalise(data.X), centres)[0]
    if shares is None:
        counted = label_of(data.real_samples(STREAM_ROWS, seed=0), np) if labels is None else labels
        shares = dict(enumerate((np.bincount(counted, minlength=len(centres)) / len(counted)).tolist()))
    return replace(data, labels=labels, label_of=label_of, label_shares=shares)
