"""Conditional GANs: the labels' way into both networks, out of the data, and through a saved run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from minigan import GAN, MiniganError, checkpoint, load, metrics, runs
from minigan.__main__ import main
from minigan.data import from_array
from train import main as train

SMALL = dict(
    generator="16, relu", discriminator="16, leaky_relu 0.2", latent_dim=3, batch_size=12, conditional=True,
    backend="numpy",
)  # fmt: skip
CENTRES = {-1: (0.0, 5.0), 4: (3.0, 0.0), 7: (-3.0, -1.0)}  # of the labelled clouds; unequal shares


def clouds(n=600, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(list(CENTRES), n, p=[0.5, 0.3, 0.2])
    return from_array(np.array([CENTRES[c] for c in labels]) + 0.2 * rng.standard_normal((n, 2)), labels)


def test_real_rows_bring_their_labels_and_generated_ones_share_them():
    data = clouds()
    gan = GAN(**SMALL, r1=0.1).build(data)
    assert (gan.G.n_in, gan.G.n_out, gan.D.n_in) == (3 + 3, 2, 2 + 3)
    gan.discriminator_step()
    x = data.denormalise(gan.tape_D.x[:12, :2])
    nearest = np.abs(x[:, None] - np.array(list(CENTRES.values()))).sum(2).argmin(1)
    assert np.array_equal(gan.tape_D.x[:12, 2:], np.eye(3)[nearest])  # columns in the order of the labels
    assert np.array_equal(gan.tape_D.x[12:, 2:], gan.tape_D.x[:12, 2:])
    assert np.array_equal(gan.tape_D.x[12:, :2], gan.tape_G.out)
    labels = gan.tape_D.x[:12, 2:].copy()
    gan.generator_step()
    assert np.array_equal(gan.tape_G.x[:, 3:], labels) and np.array_equal(gan.tape_DG.x[:, 2:], labels)
    assert np.array_equal(gan.tape_DG.x[:, :2], gan.tape_G.out)


def test_a_fourier_layer_leaves_the_labels_as_they_are():
    gan = GAN(**SMALL | {"discriminator": "dropout 0.9, fourier 2, 4, tanh, fourier 1, 3"}).build(clouds())
    gan.discriminator_step()
    first, second = gan.D.layers[1], gan.D.layers[4]
    assert (first.n_out, second.n_out) == (5 * 2 + 3, 3 * 4)  # behind weights nothing is a label any more
    buffers = gan.tape_D.buffers
    assert np.array_equal(buffers[1].out[:, 10:], buffers[0].out[:, 2:])
    assert np.array_equal(buffers[1].out[:, 2:4], np.sin(buffers[0].out[:, :2]))


def test_a_stream_of_gaussians_is_labelled_by_its_modes():
    data = load("ring")
    gan = GAN(**SMALL).build(data)
    gan.train_step()
    x, labels = data.denormalise(gan.tape_D.x[:12, :2]), gan.tape_D.x[:12, 2:].argmax(1)
    assert np.abs(x - data.modes[labels]).max() < 6 * data.sigma
    assert len(set(labels)) > 2 and (gan.tape_D.x[:, 2:].sum(1) == 1).all()


def test_the_two_moons_are_told_apart_from_end_to_end():
    data, t = load("moons"), np.linspace(0, np.pi, 200)
    upper, lower = np.stack([np.cos(t), np.sin(t)], 1), np.stack([1 - np.cos(t), 0.5 - np.sin(t)], 1)
    for moon, label in ((upper, 0), (lower, 1)):
        for shift in (-0.15, 0.0, 0.15):  # three standard deviations of the noise
            assert (data.label_of(moon + [0, shift], np) == label).all()
    x = data.real_samples(4000, seed=0)
    assert data.label_shares == {0: 0.5, 1: 0.5} and abs(data.label_of(x, np).mean() - 0.5) < 0.03
    gan = GAN(**SMALL).build(data)
    gan.train_step()
    x, hot = data.denormalise(gan.tape_D.x[:12, :2]), gan.tape_D.x[:12, 2:]
    assert np.array_equal(hot, np.eye(2)[data.label_of(x, np)])


def test_labels_may_be_texts(tmp_path):
    ints = clouds()
    names = np.array(["pear", "apple", "fig"])[np.searchsorted(list(CENTRES), ints.labels)]
    data = from_array(ints.X, names)
    assert list(data.label_shares) == ["apple", "fig", "pear"]
    assert data.label_shares["pear"] == ints.label_shares[-1]
    gan = GAN(**SMALL | {"batch_size": 64}, steps=800, lr=0.05, r1=0.1).fit(data)
    checkpoint.save(tmp_path, gan)
    gan = checkpoint.load(tmp_path, data)[0]
    assert gan.data.label_shares == checkpoint.load(tmp_path)[0].data.label_shares == data.label_shares
    for label, centre in zip(("pear", "apple", "fig"), CENTRES.values(), strict=True):
        assert np.abs(gan.sample(200, seed=0, labels=label).mean(0) - centre).max() < 0.8
    labels = gan.draw_labels(50, np.random.default_rng(0))
    assert metrics.label_agreement(data, gan.sample(50, seed=1, labels=labels), labels) > 0.9
    with pytest.raises(MiniganError, match="no label 4: give one of apple, fig, pear"):
        gan.sample(2, labels=4)
    with pytest.raises(MiniganError, match=r"labels of shape \(3,\) do not fit 2 rows"):
        gan.sample(2, labels=["fig", "fig", "pear"])
    again = from_array(ints.X, np.array(["7", "-1", "0", "7"] * 150))  # whole numbers, whoever wrote them as texts
    assert list(again.label_shares) == [-1, 0, 7] and again.labels.dtype == np.int64
    for codes in (["007", "7"], ["+3", "4"], ["-0", "0"]):  # texts: as numbers they would be others, or the same
        postcodes = from_array(ints.X, np.array(codes * 300, object))
        assert list(postcodes.label_shares) == sorted(codes)
        gan = GAN(**SMALL).build(postcodes)
        checkpoint.save(tmp_path, gan)
        assert checkpoint.load(tmp_path)[0].data.label_shares == postcodes.label_shares
    for codes in ([10**18, 2**63 - 1], [str(2**63), "1"]):  # as large as 64 bits hold, and larger
        numbers = from_array(ints.X, np.array(codes * 300))
        assert list(numbers.label_shares) == sorted(codes)
        checkpoint.save(tmp_path, GAN(**SMALL).build(numbers))
        assert checkpoint.load(tmp_path)[0].data.label_shares == numbers.label_shares


def test_pictures_judge_each_point_with_the_label_of_its_place():
    for data, names in ((clouds(), list(CENTRES)), (load("moons"), [0, 1])):
        gan = GAN(**SMALL).build(data)
        x = data.real_samples(50, seed=0)
        labels = metrics.labels_nearby(data, x)
        assert set(labels.tolist()) == set(names)
        assert np.array_equal(runs.judge(gan, data)(x), gan.probability(x, labels))
        assert not np.array_equal(gan.probability(x, labels), gan.probability(x))
    assert (metrics.labels_nearby(clouds(), clouds().X) == clouds().labels).all()
    plain = GAN(**SMALL | {"conditional": False}).build(data)
    assert np.array_equal(runs.judge(plain, data)(x), plain.probability(x))


def test_labels_that_mix_words_and_whole_numbers_stay_texts(tmp_path):
    data = from_array(clouds().X, np.array(["1", "other", "007"] * 200))
    assert list(data.label_shares) == ["007", "1", "other"]
    checkpoint.save(tmp_path, GAN(**SMALL).build(data))
    gan = checkpoint.load(tmp_path)[0]
    assert gan.data.label_shares == data.label_shares
    assert np.array_equal(gan.sample(3, seed=0, labels=1), gan.sample(3, seed=0, labels="1"))


def test_labels_that_look_like_other_numbers_can_be_asked_for(tmp_path, capsys):
    data = from_array(clouds().X, np.array(["+5", "abc", "007"] * 200))
    checkpoint.save(tmp_path, GAN(**SMALL).build(data))
    for label in ("007", "+5"):
        assert main(["sample", str(tmp_path), "--label", label, "-n", "3", "-o", str(tmp_path / "x.npz")]) == 0
        assert load(tmp_path / "x.npz").X.shape == (3, 2)
        with np.load(tmp_path / "x.npz") as file:
            assert file["labels"].tolist() == [label] * 3
    assert main(["sample", str(tmp_path), "--label", "7", "-o", str(tmp_path / "x.npz")]) == 2
    assert "has no label 7: give one of +5, 007, abc" in capsys.readouterr().err
    numbers = GAN(**SMALL).build(clouds())
    with pytest.raises(MiniganError, match="labels are whole numbers, not texts such as '4': give one of -1, 4, 7"):
        numbers.sample(2, labels="4")


def test_a_run_that_knew_no_labels_goes_on_with_data_that_have_some(tmp_path):
    data = clouds()
    checkpoint.save(tmp_path, GAN(**SMALL | {"conditional": False}).build(from_array(data.X, name=data.name)))
    assert checkpoint.load(tmp_path, data)[0].data.labels is not None
    with pytest.raises(MiniganError, match="not what the run"):
        checkpoint.load(tmp_path, clouds(seed=1))


def test_it_learns_which_label_is_where():
    data = clouds()
    gan = GAN(**SMALL | {"batch_size": 64}, steps=1500, lr=0.05, r1=0.1).fit(data)
    for label, centre in CENTRES.items():
        assert np.abs(gan.sample(200, seed=0, labels=label).mean(0) - centre).max() < 0.6
    labels = np.random.default_rng(0).permutation(list(CENTRES) * 100)
    right = metrics.label_agreement(data, gan.sample(300, seed=0, labels=labels), labels)
    wrong = metrics.label_agreement(data, gan.sample(300, seed=0, labels=labels), labels[::-1])
    assert right > 0.97 and wrong < 0.6
    share = (gan.sample(2000, seed=0)[:, 1] > 3).mean()  # without labels: as often as the data
    assert abs(share - 0.5) < 0.05
    x = data.X[:50]
    mean = sum(data.label_shares[c] * gan.probability(x, c) for c in CENTRES)
    assert np.allclose(gan.probability(x), mean) and gan.probability(x, data.labels[:50]).mean() > mean.mean()


def test_real_rows_say_how_often_a_label_can_be_found(capsys, tmp_path, monkeypatch):
    data = clouds()
    assert metrics.real_label_agreement(data) > 0.98
    apart = from_array(np.array([[0, 0], [1, 0], [9, 0], [10, 0]]) * [1, 1e-3] + [0, 5], [0, 0, 1, 1])
    assert metrics.real_label_agreement(apart) == 1.0  # each by the other of its class, and not by itself
    noise = np.random.default_rng(1).standard_normal((200, 2)) * [0.01, 1000]
    wide = from_array(noise + np.arange(200)[:, None] % 2 * [1, 0], np.arange(200) % 2)
    assert metrics.real_label_agreement(wide) > 0.95  # in the network's units: in its own the wide column decides
    X = np.random.default_rng(0).standard_normal((600, 2))
    blind = from_array(X, np.arange(600) % 2)  # labels that have nothing to do with x
    assert abs(metrics.real_label_agreement(blind) - 0.5) < 0.07
    monkeypatch.chdir(tmp_path)
    np.savez("blind.npz", X=X, labels=np.arange(600) % 2)
    tiny = "--generator 4,relu --discriminator 4,relu --steps 2 --batch-size 8 --quiet --out a".split()
    assert train(["--data", "blind.npz", "--conditional", *tiny]) == 0
    assert main(["evaluate", "a"]) == 0
    assert re.search(r"^label as asked for .* real rows 0\.[45]", capsys.readouterr().out, re.M)


def test_labels_are_drawn_as_often_as_the_data_have_them():
    gan = GAN(**SMALL).build(clouds())
    labels = gan.draw_labels(20_000, np.random.default_rng(0))
    for label, share in gan.data.label_shares.items():
        assert abs((labels == label).mean() - share) < 0.02
    mnist_like = load("digits")
    assert list(mnist_like.label_shares) == list(range(10)) and abs(sum(mnist_like.label_shares.values()) - 1) < 1e-9


def test_labels_to_look_at_come_class_by_class():
    points = GAN(**SMALL).build(clouds()).labels_to_look_at(1000)  # as often as the data have them
    images = GAN(**SMALL).build(load("digits")).labels_to_look_at(100)  # equally often: a row of ten for each
    assert np.array_equal(images, np.repeat(np.arange(10), 10)) and np.array_equal(points, np.sort(points))
    for label, share in clouds().label_shares.items():
        assert abs((points == label).mean() - share) <= 0.001


def test_the_judge_of_a_stream_is_its_nearest_mode():
    data = load("ring")
    assert metrics.label_agreement(data, data.modes, np.arange(8)) == 1.0
    assert metrics.label_agreement(data, data.modes, np.arange(8)[::-1]) == 0.0


def test_a_saved_one_samples_without_its_data(tmp_path):
    gan = GAN(**SMALL).build(clouds())
    for _ in range(12):
        gan.train_step()
    checkpoint.save(tmp_path, gan)
    again, _, _ = checkpoint.load(tmp_path)
    labels = np.repeat(list(CENTRES), 5)
    assert np.array_equal(again.sample(15, seed=1, labels=labels), gan.sample(15, seed=1, labels=labels))
    assert np.array_equal(again.sample(15, seed=1), gan.sample(15, seed=1))


@pytest.mark.parametrize(
    "do, said",
    [
        (lambda gan: gan.sample(3, labels=5), "no label 5: give one of -1, 4, 7"),
        (lambda gan: gan.decode(np.zeros((2, 3), np.float32)), "needs labels"),
        (lambda gan: GAN(**SMALL).build(np.zeros((20, 2))), "needs labels and 'array' has none"),
        (lambda gan: GAN(**SMALL | {"conditional": False}).build(clouds()).sample(2, labels=4), "knows no labels"),
        (lambda gan: GAN(conditional="yes"), "conditional is 'yes'"),
        (lambda gan: GAN(**SMALL).build(from_array(np.eye(30), np.arange(30))), "30 different labels in 30 rows"),
    ],
)
def test_what_it_refuses(do, said):
    with pytest.raises(MiniganError, match=said):
        do(GAN(**SMALL).build(clouds()))


def test_the_command_line(tmp_path, capsys):
    run = str(tmp_path / "run")
    small = "--steps 30 --batch-size 20 --generator 8,relu --discriminator 8,relu --quiet".split()
    assert train(["--conditional", "--gif", "--out", run, *small]) == 0
    assert 0 <= json.loads((tmp_path / "run/scores.json").read_text())["label_agreement"] <= 1
    out = tmp_path / "sevens.npy"
    assert main(["sample", run, "-n", "6", "--label", "7", "-o", str(out)]) == 0
    gan = checkpoint.load(run)[0]
    assert np.array_equal(np.load(out), gan.sample(6, seed=0, labels=7))
    assert main(["evaluate", run]) == 0 and "label as asked for" in capsys.readouterr().out
    assert main(["sample", run, "--label", "11", "-o", str(out)]) == 2
    assert "digits has no label 11" in capsys.readouterr().err
    plain = str(tmp_path / "plain")
    assert train(["--out", plain, *small]) == 0
    assert main(["sample", plain, "--label", "7", "-o", str(out)]) == 2
    assert "knows no labels; leave --label out" in capsys.readouterr().err
    roll = str(tmp_path / "roll")
    assert train(["--data", "swiss-roll", "--conditional", "--out", roll, *small]) == 2
    assert "'swiss-roll' has none" in capsys.readouterr().err and not (tmp_path / "roll").exists()


def test_the_labels_of_samples_do_not_depend_on_their_z(tmp_path, monkeypatch):
    """One stream for both would give uniform z of one sign to each of two labels."""
    checkpoint.save(tmp_path, GAN(**SMALL | {"latent_dim": 2, "prior": "uniform"}).build(load("moons")))
    seen, decode = [], GAN.decode
    monkeypatch.setattr(GAN, "decode", lambda gan, z, *rest: seen.append((z, rest[1])) or decode(gan, z, *rest))
    assert main(["sample", str(tmp_path), "-n", "4000", "-o", str(tmp_path / "out.npz")]) == 0
    z, labels = seen[0]
    assert np.abs(np.corrcoef(z.T, labels)[2, :2]).max() < 0.08


def test_a_table_with_a_column_of_labels_from_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, names = clouds(), {-1: "pear", 4: "apple", 7: "fig"}
    rows = [f"{x:.3f},{names[c]},{y:.3f}" for (x, y), c in zip(data.X, data.labels.tolist(), strict=True)]
    Path("fruit.csv").write_text("width,kind,height\n" + "\n".join(rows))
    small = "--conditional --steps 10 --batch-size 20 --generator 8,relu --discriminator 8,relu --quiet".split()
    assert train(["--data", "fruit.csv", "--label-column", "kind", "--gif", "--out", "run", *small]) == 0
    assert train(["--resume", "run", "--steps", "13", "--quiet"]) == 0
    gan = checkpoint.load("run")[0]
    assert main(["sample", "run", "-n", "20", "-o", "out.csv"]) == 0
    header, *lines = Path("out.csv").read_text().splitlines()
    assert header == "width,height,kind"
    x, labels = np.array([line.split(",")[:2] for line in lines], np.float32), [line.split(",")[2] for line in lines]
    assert set(labels) == set(names.values())
    assert np.array_equal(x, gan.sample(20, seed=0, labels=np.array(labels)))
    assert main(["sample", "run", "-n", "4", "--label", "fig", "-o", "figs.npz"]) == 0
    assert not capsys.readouterr().err
    assert main(["sample", "run", "-o", "x.npy"]) == 0 and "no place for their labels" in capsys.readouterr().err
    assert train(["--data", "out.csv", "--label-column", "3", "--out", "again", *small]) == 0
    assert main(["sample", "again", "-n", "2", "-o", "two.csv"]) == 0
    assert Path("two.csv").read_text().startswith("width,height,label\n")  # its number was given, no name
    Path("named.csv").write_text(Path("two.csv").read_text().replace("width,height", "label,class"))
    assert train(["--data", "named.csv", "--label-column", "3", "--out", "named", *small, "--batch-size", "2"]) == 0
    assert main(["sample", "named", "-n", "2", "-o", "named-2.csv"]) == 0
    assert Path("named-2.csv").read_text().startswith("label,class,label_\n")  # no name twice
    figs = load("figs.npz")  # what sample writes can be trained on
    assert figs.labels.tolist() == ["fig"] * 4 and np.array_equal(figs.X, gan.sample(4, seed=0, labels="fig"))
    assert main(["sample", "run", "-o", "out.png"]) == 0 and main(["evaluate", "run"]) == 0
    assert main(["sample", "run", "--label", "plum", "-o", "out.csv"]) == 2
    assert "fruit.csv has no label plum: give one of apple, fig, pear" in capsys.readouterr().err
    assert train(["--data", "fruit.csv", "--out", "no", *small]) == 2
    assert "name one of labels with --label-column" in capsys.readouterr().err and not Path("no").exists()
