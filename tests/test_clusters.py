"""Clusters found in the data, in place of labels."""

import json
import sys

import numpy as np
import pytest
from test_checkpoint import rewritten

from minigan import GAN, MiniganError, checkpoint, clusters, load, metrics
from minigan.__main__ import main
from minigan.data import from_array
from train import main as train

SMALL = dict(
    generator="16, relu", discriminator="16, leaky_relu 0.2", latent_dim=3, batch_size=32, clusters=3, backend="numpy"
)
PLACES = np.array([(0.0, 5.0), (3.0, 0.0), (-3.0, -1.0)])
SHARES = np.array([0.5, 0.3, 0.2])


def clouds(n=600, seed=0, labels=None):
    rng = np.random.default_rng(seed)
    return from_array(PLACES[rng.choice(3, n, p=SHARES)] + 0.2 * rng.standard_normal((n, 2)), labels, name="clouds")


def order(gan):
    """Which cluster is at which of PLACES."""
    return metrics.nearest_neighbours(PLACES, gan.data.denormalise(gan.centres))[0]


def kmeans(X, k, rng, **options):
    return clusters.kmeans(X, clusters.far_rows(X, k, rng), **options)


def test_kmeans_finds_what_is_apart_and_its_centres_are_means():
    X = clouds().X
    for seed in range(5):
        centres = kmeans(X, 3, np.random.default_rng(seed))
        nearest, distance = metrics.nearest_neighbours(PLACES, centres)
        assert sorted(nearest) == [0, 1, 2] and distance.max() < 0.1
    X = np.random.default_rng(0).random((500, 2))  # nothing is apart here
    centres = kmeans(X, 7, np.random.default_rng(1))
    nearest = metrics.nearest_neighbours(X, centres)[0]
    assert np.allclose(centres, [X[nearest == j].mean(0) for j in range(7)])


def test_the_first_rows_are_far_from_one_another():
    X = np.concatenate([np.zeros((998, 2)), [[1.0, 0.0]], [[0.0, 1.0]]])
    for seed in range(20):  # a row that is there already has no chance
        assert len(np.unique(clusters.far_rows(X, 3, np.random.default_rng(seed)), axis=0)) == 3


def test_a_centre_that_has_no_rows_stays_where_it_is():
    X = np.array([[0.0], [0.1], [10.0], [10.1], [50.0]])

    class Rigged:  # chooses one row three times: of equal centres the first takes all rows
        def integers(self, n, size):
            return np.array([0])

        def choice(self, n, p):
            return 0

    assert kmeans(X, 3, Rigged(), steps=1).tolist() == [[X.mean()], [0.0], [0.0]]
    assert np.isfinite(kmeans(X, 3, Rigged())).all()


def arcs(n=2000, seed=0):
    """Two half rings, one inside the other's opening, and which one each row belongs to."""
    rng = np.random.default_rng(seed)
    t, lower = np.pi * rng.random(n), rng.integers(0, 2, n)
    curve = np.stack([np.cos(t) + lower, np.sin(t) * (1 - 2 * lower) + 0.4 * lower], 1)
    return curve + 0.05 * rng.standard_normal((n, 2)), lower


def purity(cluster, labels):
    return sum(np.bincount(labels[cluster == c]).max() for c in np.unique(cluster)) / len(labels)


def found(data, *how):
    centres, cluster_of = clusters.find(data, *how)
    return cluster_of[metrics.nearest_neighbours(data.normalise(data.X), centres)[0]]


def test_parts_put_together_follow_the_shape_of_the_data():
    X, lower = arcs()
    data, digits = from_array(X), load("digits")
    assert purity(found(data, 2, 0), lower) < 0.95  # k-means cuts both in two
    assert purity(found(data, 2, 0, 40), lower) > 0.99
    assert found(data, 2, 0, 40).max() == 1 and len(np.unique(found(data, 5, 0, 40))) == 5
    for seed in range(3):
        assert (
            purity(found(digits, 12, seed, 150), digits.labels) > purity(found(digits, 12, seed), digits.labels) + 0.05
        )


def test_what_lies_densest_between_is_put_together_first():
    def rows(i, j, n):  # n rows nearest to part i and next to part j
        return np.full((n, 2), (i, j))

    two = np.concatenate(
        [rows(0, 1, 10), rows(1, 0, 2), rows(1, 2, 8), rows(2, 1, 92), rows(2, 3, 900), rows(3, 2, 990)]
    )
    # Rows between / pairs: 0 and 1 12/100, 1 and 2 100/9,920, 2 and 3 1,890/982,080; then {0, 1} and 2 100/19,840.
    assert clusters.average_linkage(two, 4, 4).tolist() == [0, 1, 2, 3]
    assert clusters.average_linkage(two, 4, 3).tolist() == [0, 0, 1, 2]
    assert clusters.average_linkage(two, 4, 2).tolist() == [0, 0, 0, 1]
    assert clusters.average_linkage(two, 4, 1).tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="2 parts have nothing between them"):
        clusters.average_linkage(np.concatenate([rows(0, 1, 5), rows(2, 3, 5)]), 4, 1)


def test_distances_are_those_of_the_network_s_units():
    data = from_array(clouds().X * [1, 1000] + [500, 0])
    gan = GAN(**SMALL | {"clusters": 7}).build(data)
    assert np.array_equal(gan.classes.labels, metrics.nearest_neighbours(data.normalise(data.X), gan.centres)[0])
    gan = GAN(**SMALL | {"clusters": 16}).build(load("grid"))
    gan.train_step()
    x, hot = gan.tape_D.x[:32, :2], gan.tape_D.x[:32, 2:]
    assert np.array_equal(hot.argmax(1), metrics.nearest_neighbours(x, gan.centres)[0]) and (hot.sum(1) == 1).all()


def test_clusters_go_where_labels_go_and_no_label_is_looked_at():
    data = clouds()
    gan = GAN(**SMALL, r1=0.1).build(data)
    assert (gan.G.n_in, gan.G.n_out, gan.D.n_in) == (3 + 3, 2, 2 + 3)
    gan.train_step()
    x, hot = data.denormalise(gan.tape_D.x[:32, :2]), gan.tape_D.x[:32, 2:]
    where = metrics.nearest_neighbours(x, PLACES)[0]
    assert np.array_equal(hot, np.eye(3)[order(gan)[where]]) and len(set(where)) == 3
    assert np.array_equal(gan.tape_D.x[32:, 2:], hot) and np.array_equal(gan.tape_G.x[:, 3:], hot)
    misled = GAN(**SMALL, r1=0.1).build(clouds(labels=np.arange(600) % 2))
    misled.train_step()
    assert np.array_equal(misled.G.theta, gan.G.theta)


def test_samples_come_from_each_cluster_by_its_share():
    gan = GAN(**SMALL, steps=1500, lr=0.05, r1=0.1).fit(clouds(6000))
    x = gan.sample(4000, seed=0)
    found = np.bincount(metrics.nearest_neighbours(x, PLACES)[0]) / 4000
    assert np.abs(found - SHARES).max() < 0.03
    for place, cluster in zip(PLACES, order(gan), strict=True):
        assert np.abs(gan.sample(200, seed=0, labels=cluster).mean(0) - place).max() < 0.4
    one_each = gan.probability(PLACES, labels=order(gan))
    assert np.allclose(gan.probability(PLACES), one_each)  # each row in its own cluster
    assert not np.allclose(gan.probability(PLACES, labels=np.roll(order(gan), 1)), one_each)


@pytest.mark.parametrize(
    "name, changed", [("digits", {}), ("ring", {"clusters": 16}), ("digits", {"cluster_parts": 20})]
)
def test_a_saved_run_goes_on_bit_for_bit_and_samples_without_its_data(tmp_path, name, changed):
    data, options = load(name), SMALL | changed
    whole = GAN(**options, steps=12).fit(data)
    half = GAN(**options, steps=12).build(data)
    for _ in range(6):
        half.train_step()
    checkpoint.save(tmp_path, half)
    again = checkpoint.load(tmp_path, data)[0]
    for _ in range(6):
        again.train_step()
    assert np.array_equal(again.G.theta, whole.G.theta) and np.array_equal(again.D.theta, whole.D.theta)
    alone = checkpoint.load(tmp_path)[0]
    assert np.array_equal(alone.sample(20, seed=1), half.sample(20, seed=1))
    x = data.real_samples(20, seed=0)
    assert np.array_equal(alone.probability(x), half.probability(x))
    with pytest.raises(MiniganError, match="not what the run"):
        checkpoint.load(tmp_path, clouds())


def test_from_the_command_line(tmp_path, capsys):
    np.save(tmp_path / "clouds.npy", clouds().X)
    run = tmp_path / "run"
    options = "--generator 8,relu --discriminator 8,relu --batch-size 16 --report-every 5 --quiet --gif".split()
    data = ["--data", str(tmp_path / "clouds.npy"), "--backend", "numpy"]
    assert train([*data, *options, "--clusters", "4", "--steps", "10", "--out", str(run)]) == 0
    assert json.loads((run / "config.json").read_text())["clusters"] == 4
    assert "label_agreement" not in json.loads((run / "scores.json").read_text())
    assert train(["--resume", str(run), "--steps", "12", "--quiet"]) == 0
    assert main(["sample", str(run), "-n", "30", "-o", str(tmp_path / "x.csv")]) == 0
    assert (tmp_path / "x.csv").read_text().splitlines()[0] == "x0,x1"  # clusters are nobody's labels
    assert main(["evaluate", str(run)]) == 0
    for wrong, sentence in (
        (["--clusters", "1"], "clusters is 1; it must be a whole number, 2 or more, or 0 for none"),
        (["--clusters", "4", "--conditional"], "clusters 4 stand in for labels, and conditional uses labels"),
        (["--clusters", "4", "--cluster-parts", "3"], "3 cluster-parts cannot be put together to 4 clusters"),
        (["--cluster-parts", "9"], "9 cluster-parts cannot be put together to 0 clusters; give 2 to 9 clusters"),
        (["--clusters", "4", "--cluster-parts", "601"], "use --cluster-parts 600 or less"),
        (["--clusters", "2", "--cluster-parts", "60"], "to 2 clusters: 3 parts have nothing between them"),
        (["--clusters", "601"], "601 clusters cannot be found in 'clouds.npy', whose rows are of 600 kinds"),
    ):
        capsys.readouterr()
        assert train([*data, *options, *wrong, "--out", str(tmp_path / "none")]) == 2
        assert sentence in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_a_person_who_waits_for_clusters_is_told_so(tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "clouds.npy", clouds().X)
    options = "--clusters 3 --cluster-parts 20 --steps 1 --batch-size 16 --backend numpy".split()
    for waits in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda waits=waits: waits)
        assert train(["--data", str(tmp_path / "clouds.npy"), *options, "--out", str(tmp_path / f"run{waits}")]) == 0
        first = capsys.readouterr().out.splitlines()[0]
        assert (first == "looking for 3 clusters in clouds.npy, by way of 20 parts") == waits


def test_clusters_of_a_checkpoint_that_make_no_sense_are_refused(tmp_path):
    gan = GAN(**SMALL, cluster_parts=20, steps=2).fit(load("digits"))
    checkpoint.save(tmp_path, gan)
    with np.load(tmp_path / checkpoint.NAME) as file:
        arrays = dict(file)
    rewritten(tmp_path, arrays)
    assert np.array_equal(checkpoint.load(tmp_path)[0].cluster_of, gan.cluster_of)
    of = gan.cluster_of
    for wrong in (None, of[1:], of[None], np.where(of == 2, 1, of), np.where(of == 2, 3, of)):
        rewritten(tmp_path, arrays, cluster_of=wrong)
        with pytest.raises(MiniganError, match="does not make sense|belongs to another run"):
            checkpoint.load(tmp_path)


def test_a_cluster_without_rows_has_no_share_and_a_column_of_its_own():
    centres = np.array([[0, 0], [1e6, 0]], np.float32)
    for data in (clouds(), load("ring")):
        classes = clusters.in_clusters(data, centres, np.arange(2))
        assert classes.label_shares == {0: 1.0, 1: 0.0} and classes.one_hot([0, 1]).tolist() == [[1, 0], [0, 1]]


def test_parts_may_be_more_than_the_rows_that_clusters_are_found_on(monkeypatch):
    monkeypatch.setattr(clusters, "ROWS", 50)
    assert found(clouds(), 3, 0, 100).max() == 2
    with pytest.raises(MiniganError, match="100 clusters cannot be found"):
        clusters.find(clouds(), 100, 0)


def test_parts_without_rows_are_no_clusters():
    rng = np.random.default_rng(0)
    X = rng.random((5, 20))[rng.integers(0, 5, 300)] + 1e-7 * rng.standard_normal((300, 20))  # as good as five rows
    with pytest.raises(MiniganError, match="only 8. of which have rows; use --clusters 8. or less"):
        clusters.find(from_array(X.astype(np.float32)), 90, 0, 100)


@pytest.mark.parametrize("name", ["ring", "moons"])
def test_a_row_of_a_stream_is_in_the_same_cluster_on_the_device(name):
    data = load(name)
    found = clusters.find(data, 4, seed=0)
    x = data.real_samples(500, seed=1)
    ours = clusters.in_clusters(data, *found).label_of(x, np)
    assert np.array_equal(ours, clusters.nearest(data.normalise(x), *found))
