"""Clusters found in the data, to stand in for labels that nobody has given.

A GAN that is told which cluster it is to draw from has no need of bridges between separate parts of the data, and
gives each its share: Liu et al. 2020, arXiv 2006.10728, section 3, here with clusters of the data themselves (theirs
are of D's features, found anew as D learns).

k-means cuts space into convex parts of one size, and the digits are neither. So clusters can also be put together: from
many small parts by k-means, those first between which the data are densest.
"""

from dataclasses import replace

import numpy as np

from minigan.errors import MiniganError
from minigan.metrics import nearest_neighbours, squared_distance_blocks

ROWS = 10_000  # that the centres of clusters are found on
ROWS_OF_PARTS, STEPS_OF_PARTS = 60_000, 5  # of the many small parts of clusters: more rows, and roughly
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


def kmeans(X, centres, steps=100):
    """The centres (k, features) of k clusters of the rows of X (N, features), by Lloyd 1982 from those given.

    Each step assigns every row to its nearest centre and moves the centres to the means of their rows, until no row
    changes sides. A centre that no row is nearest to stays where it is; if it ends so, its share is 0.
    """
    centres, before = centres.copy(), None
    for _ in range(steps):
        side = nearest_neighbours(X, centres)[0]
        if before is not None and (side == before).all():
            break
        before = side
        for j in np.unique(side):
            centres[j] = X[side == j].mean(0)
    return centres


def two_nearest(X, centres):
    """(N, 2): the numbers of the nearest centre and of the next one, for each row of X (N, features)."""
    two = np.empty((len(X), 2), np.int64)
    for rows, squares in squared_distance_blocks(X, centres):
        for column in two[rows].T:
            squares.argmin(axis=1, out=column)
            np.put_along_axis(squares, column[:, None], np.inf, axis=1)
    return two


def average_linkage(two, parts, k):
    """To which of k clusters each of so many parts belongs (parts,), given ``two_nearest`` of the rows.

    Two parts are neighbours if rows lie between them, nearest to one and next to the other: Martinetz and Schulten
    1994, section 3. Their density is the number of such rows over the product of the parts' sizes. Again and again the
    two densest clusters are joined: average linkage, Sokal and Michener 1958, as rows and sizes add up. Raises
    ValueError if no two are neighbours any more.
    """
    between = np.zeros((parts, parts))
    np.add.at(between, (two[:, 0], two[:, 1]), 1)
    between += between.T
    size, cluster_of = np.bincount(two[:, 0], minlength=parts).astype(float), np.arange(parts)
    density = between / np.maximum(np.outer(size, size), 1)
    for left in range(parts, k, -1):
        i, j = np.unravel_index(density.argmax(), density.shape)
        if density[i, j] <= 0:
            raise ValueError(f"{left} parts have nothing between them")
        between[i] += between[j]  # cluster i takes j in; nothing is left of j that could be joined again
        between[:, i] += between[:, j]
        between[i, i] = between[j] = between[:, j] = 0
        size[i] += size[j]
        density[i] = density[:, i] = between[i] / np.maximum(size[i] * size, 1)
        density[j] = density[:, j] = 0
        cluster_of[cluster_of == j] = i
    return np.unique(cluster_of, return_inverse=True)[1]


def find(data, k, seed, parts=0):
    """(centres, cluster_of): k clusters of a Dataset. A row belongs to the cluster of its nearest centre.

    centres (k or more, features), float32, in the network's units; cluster_of (len(centres),), from 0 to k - 1. With
    parts, k-means makes so many, which are put together to k. Raises MiniganError if there are fewer different rows
    than centres, among ``ROWS`` or ``ROWS_OF_PARTS`` of them, or if the parts cannot be put together.
    """
    most = ROWS_OF_PARTS if parts else ROWS
    rows = data.normalise(data.real_samples(most if data.X is None else min(most, len(data.X)), seed))
    kinds = np.unique(rows, axis=0)
    for option, n in (("--clusters", k), ("--cluster-parts", parts)):
        if n > len(kinds):
            raise MiniganError(
                f"{n} clusters cannot be found in '{data.name}', whose rows are of {len(kinds)} kinds; "
                f"use {option} {len(kinds)}" + (" or less" if len(kinds) > 2 else "")
            )
    rng = np.random.default_rng([seed, 2])  # 2: not the stream of the rows
    if not parts:
        return kmeans(rows, far_rows(rows, k, rng)).astype(np.float32), np.arange(k)
    centres = kmeans(rows, kinds[rng.choice(len(kinds), parts, replace=False)], STEPS_OF_PARTS)
    two = two_nearest(rows, centres)
    used, two = np.unique(two, return_inverse=True)  # of rows that are nearly equal some parts get none
    if len(used) < k:
        raise MiniganError(
            f"{k} clusters cannot be made of {parts} parts of '{data.name}', only {len(used)} of which have rows; "
            f"use --clusters {len(used)} or less"
        )
    try:
        return centres[used].astype(np.float32), average_linkage(two.reshape(-1, 2), len(used), k)
    except ValueError as error:
        raise MiniganError(
            f"{parts} parts of '{data.name}' cannot be put together to {k} clusters: {error}; "
            "use more clusters, or --cluster-parts 0"
        ) from error


def nearest(x, centres, cluster_of):
    """The cluster (n,) of each row x (n, features), in the network's units, on the host."""
    return cluster_of[nearest_neighbours(x, centres)[0]]


def in_clusters(data, centres, cluster_of, shares=None):
    """The Dataset with its clusters, as ``find`` gives them, in place of its labels.

    shares: {cluster: its share of the rows}; None counts them, of a stream among rows drawn for that.
    """

    def label_of(x, xp):
        """For streams: ``nearest`` for rows x (n, features) in the data's units, on the device of module xp."""
        x = (x - xp.asarray(data.shift)) / xp.asarray(data.scale)
        return xp.asarray(cluster_of)[xp.argmin(xp.square(x[:, None] - xp.asarray(centres)).sum(2), axis=1)]

    of_host_rows = lambda X: nearest(data.normalise(X), centres, cluster_of)
    labels = None if data.X is None else of_host_rows(data.X)
    if shares is None:
        counted = of_host_rows(data.real_samples(STREAM_ROWS, seed=0)) if labels is None else labels
        shares = dict(enumerate((np.bincount(counted, minlength=cluster_of.max() + 1) / len(counted)).tolist()))
    return replace(data, labels=labels, label_of=label_of, label_shares=shares)
