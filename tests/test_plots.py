"""minigan.plots: every picture is written, whole, readable, and shows what it was given."""

import io
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from minigan import plots
from minigan.data import from_array

RNG = np.random.default_rng(0)
RING = 2 * np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], axis=1)


def make(features, draw, **more):
    """The least a dataset must be: draw(rng, n) -> (n, features)."""
    fields = dict(
        name="test",
        features=features,
        image_shape=None,
        X=None,
        columns=None,
        density=None,
        modes=None,
        sigma=None,
        real_samples=lambda n, seed: draw(np.random.default_rng(seed), n).astype(np.float32),
    )
    return SimpleNamespace(**fields | more)


def normal_density(x):
    return np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)


DATASETS = {
    "grey": make(64, lambda r, n: r.random((n, 64)), image_shape=(8, 8)),
    "colour": make(75, lambda r, n: r.random((n, 75)), image_shape=(5, 5, 3)),
    "line": make(1, lambda r, n: r.standard_normal((n, 1)), density=normal_density),
    "column": make(1, lambda r, n: r.standard_normal((n, 1)), columns=["height"]),
    "plane": make(2, lambda r, n: RING[r.integers(0, 8, n)] + 0.02 * r.standard_normal((n, 2)), modes=RING, sigma=0.02),
    "two columns": make(2, lambda r, n: r.standard_normal((n, 2)) * [1, 1000], columns=["age", "income"]),
    "table": make(4, lambda r, n: r.standard_normal((n, 4)) * [1, 5, 0, 1], columns=["a", "b", "same", "d"]),
    "wide table": make(11, lambda r, n: r.standard_normal((n, 11))),
}


def probability(x):
    return 0.5 + 0.5 * np.tanh(x.sum(axis=1, keepdims=True))


def log(rows, *more):
    columns = {key: 1 + RNG.random(rows) for key in ("V", "loss_D", "loss_G", "D_real", "D_fake", "lr", *more)}
    return columns | {"step": np.arange(1, rows + 1) * 10, "V": -columns["V"]}


def pixels(path):
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def assert_picture(path, least=150):
    shown = pixels(path)
    assert shown.shape[0] > least and shown.shape[1] > least
    assert shown.std() > 5, "the picture is blank"
    assert path.stat().st_size < 300_000
    assert [p.name for p in path.parent.iterdir()] == [path.name], "a temporary file was left behind"


@pytest.mark.parametrize("kind", DATASETS)
def test_samples_of_every_kind_of_data(kind, tmp_path):
    dataset = DATASETS[kind]
    fake = dataset.real_samples(200, 1) * 1.1
    plots.samples(tmp_path / "a.png", dataset, fake, probability, title="after 100 steps")
    assert_picture(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["line", "plane", "table"])
def test_labels_colour_the_samples(kind, tmp_path):
    dataset, shown = DATASETS[kind], []
    fake = dataset.real_samples(200, 1)
    for labels in (None, np.repeat(["a$", "b"], 100)):
        plots.samples(tmp_path / "a.png", dataset, fake, probability, labels=labels)
        assert_picture(tmp_path / "a.png")
        shown.append(pixels(tmp_path / "a.png").tobytes())
    assert shown[0] != shown[1]


def test_each_point_has_the_colour_of_its_label():
    from matplotlib.figure import Figure

    assert len({tuple(color) for _, color, _ in plots._by_class(np.arange(25))}) == 25
    x, ax = np.arange(8.0).reshape(4, 2), Figure().subplots()
    plots._scatter(ax, x, x, [0, 0], [9, 9], np.array(["a", "b", "a", "c"]))
    colors = ax.collections[-1].get_facecolors().tolist()
    assert colors[0] == colors[2] and len(set(map(tuple, colors))) == 3
    assert [text.get_text() for text in ax.texts] == ["a", "b", "c"]
    plots._scatter(ax, x, x, [0, 0], [9, 9], np.arange(4))
    assert len(ax.texts) == 3 + 4 and not any(name for _, _, name in plots._by_class(np.arange(41)))


def test_images_class_by_class_tell_their_order(tmp_path, monkeypatch):
    dataset, titles, caption = DATASETS["grey"], [], plots._captioned
    monkeypatch.setattr(plots, "_captioned", lambda pixels, text: titles.append(text) or caption(pixels, text))
    fake = dataset.real_samples(4, 1)
    for labels, title in ((["a", "a", "b", "c"], "t"), ([3, 3, 1, 1], None), ([1, 2, 1, 2], "t"), ([1] * 4, "t")):
        plots.samples(tmp_path / "a.png", dataset, fake, title=title, labels=np.array(labels))
    many = np.random.default_rng(0).random((200, fake.shape[1]))
    plots.samples(tmp_path / "a.png", dataset, many, title="t", labels=np.arange(200) // 50)  # 100 are shown
    assert titles.pop() == "t; in reading order: 0, 1" and plots.images_shown((64, 64, 3), 10**9) == 16
    assert titles == ["t; in reading order: a (2), b (1), c (1)", "in reading order: 3, 1", "t", "t"]


def test_a_new_picture_replaces_the_old_one(tmp_path):
    dataset = DATASETS["plane"]
    for fake in (np.zeros((5, 2)), dataset.real_samples(300, 1)):  # without D, without a title
        plots.samples(tmp_path / "a.png", dataset, fake)
        assert_picture(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["grey", "line", "plane", "table"])
@pytest.mark.filterwarnings("error")
def test_samples_of_a_broken_generator_are_drawn_too(kind, tmp_path):
    dataset = DATASETS[kind]
    for i, value in enumerate((1e9, np.nan)):
        path = tmp_path / str(i) / "a.png"
        path.parent.mkdir()
        plots.samples(path, dataset, np.full((50, dataset.features), value, np.float32))
        assert pixels(path).size


@pytest.mark.parametrize("rows", [1, 30])
def test_a_table_of_few_rows_is_not_asked_for_more(rows, tmp_path):
    X = np.random.default_rng(2).standard_normal((rows, 3)).astype(np.float32)

    def real_samples(n, seed):
        assert n <= rows
        return X[:n]

    dataset = make(3, None, X=X, real_samples=real_samples)
    plots.samples(tmp_path / "a.png", dataset, X * 1.1)
    assert_picture(tmp_path / "a.png")


def test_plain_colours_survive_the_palette():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:] = [211, 230, 243]
    picture[:8] = [240, 180, 140]
    picture[8:20] = 255
    picture[-4:] = np.random.default_rng(0).integers(0, 256, (4, 64, 3))
    shown = np.asarray(plots._reduce([picture], 64)[0].convert("RGB"))
    np.testing.assert_array_equal(shown[:60], picture[:60])


def test_what_the_frame_hides_is_counted():
    x = np.array([[0.0, 0.0], [2.0, 0.0], [np.nan, 0.0]])
    assert plots._outside(x, [-1, -1], [1, 1]) == " (2 of 3 outside)"
    assert plots._outside(x[:1], [-1, -1], [1, 1]) == ""


def test_density_estimate_is_a_density():
    grid = np.linspace(-6, 6, 400)
    estimate = plots._kde(np.random.default_rng(3).standard_normal(100_000), grid)
    assert estimate.sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-3)
    assert np.abs(estimate - normal_density(grid)).max() < 0.02
    half_hidden = plots._kde(np.array([0.0, 100.0]), grid)
    assert half_hidden.sum() * (grid[1] - grid[0]) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 3)])
def test_tile_keeps_reading_order_and_orientation(shape):
    images = np.linspace(0, 1, 5 * np.prod(shape)).reshape(5, *shape)
    out = plots.tile(images, columns=2, scale=4, gap=3)
    assert out.dtype == np.uint8 and out.shape == (3 * 12 + 2 * 3, 2 * 8 + 3, *shape[2:])
    for i in range(5):
        y, x = i // 2 * 15, i % 2 * 11
        for dy in (0, 3):  # both ends of a blown-up pixel
            np.testing.assert_array_equal(out[y + dy : y + 12 : 4, x + dy : x + 8 : 4], np.rint(images[i] * 255))
    assert (out[12:15] == 255).all() and (out[:, 8:11] == 255).all() and (out[30:, 11:] == 255).all()


def test_image_file_shows_the_first_samples_in_order(tmp_path):
    dataset = DATASETS["grey"]
    fake = np.repeat(np.arange(9)[:, None] / 10, 64, axis=1)
    plots.samples(tmp_path / "a.png", dataset, fake)
    shown = pixels(tmp_path / "a.png")[..., 0]
    side = shown.shape[0] / 3
    centres = shown[np.ix_(*[((np.arange(3) + 0.5) * side).astype(int)] * 2)]
    np.testing.assert_array_equal(centres.ravel(), np.rint(np.arange(9) / 10 * 255))


def test_surface_grid_is_ordered_as_documented():
    for kind, count in (("plane", 20 * 20), ("line", 20)):
        points = plots.surface_grid(DATASETS[kind], n=20)
        assert points.shape == (count, DATASETS[kind].features) and points.dtype == np.float32
    points = plots.surface_grid(DATASETS["plane"], n=20)
    x, y = points[:, 0].reshape(20, 20), points[:, 1].reshape(20, 20)
    assert (np.diff(x, axis=1) > 0).all() and (np.diff(y, axis=0) > 0).all()
    assert points.min() < -2.1 and points.max() > 2.1
    with pytest.raises(ValueError, match="1 or 2 columns, not for 4"):
        plots.surface_grid(DATASETS["table"])


def test_surface_is_drawn_the_right_way_up(tmp_path):
    """D = 1 (blue) above, 0 (orange) below: the picture's upper part must be the bluer."""
    plots.samples(tmp_path / "a.png", DATASETS["plane"], np.zeros((1, 2)), lambda x: (x[:, 1] > 0) * 1.0)
    shown = pixels(tmp_path / "a.png").astype(int)
    middle = shown[:, int(0.4 * shown.shape[1])]
    blue = middle[:, 2] - middle[:, 0]
    third = len(blue) // 3
    assert blue[60:third].mean() > 40 and blue[-third:-80].mean() < -40


@pytest.mark.parametrize("rows, more", [(1, ()), (5, ("spread",)), (200, ("grad_penalty", "spread", "spread_real"))])
def test_curves(rows, more, tmp_path):
    plots.curves(tmp_path / "c.png", log(rows, *more))
    assert_picture(tmp_path / "c.png", least=500)


def test_curves_of_the_minimax_loss(tmp_path):
    metrics = log(20)
    metrics["loss_G"] = -metrics["loss_G"]
    plots.curves(tmp_path / "c.png", metrics)
    assert_picture(tmp_path / "c.png")


@pytest.mark.filterwarnings("error")
def test_curves_of_a_run_that_diverged(tmp_path):
    metrics = log(200)
    for key in ("V", "loss_D", "loss_G"):
        metrics[key][150:] = np.nan
        metrics[key][149] = np.inf
    plots.curves(tmp_path / "c.png", metrics)
    assert_picture(tmp_path / "c.png")


def test_curves_need_a_row(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        plots.curves(tmp_path / "c.png", log(0))


@pytest.mark.parametrize("kind", ["grey", "colour", "line", "plane", "table"])
def test_animation(kind, tmp_path):
    dataset = DATASETS[kind]
    frames = [dataset.real_samples(30, seed) * 0.9 for seed in range(3)]
    probabilities = None
    if kind in ("line", "plane"):
        probabilities = [probability(plots.surface_grid(dataset) * k) for k in range(3)]
    path = tmp_path / "a.gif"
    plots.animate(path, dataset, frames, [0, 10, 1000], probabilities, fps=10)
    assert_picture(path, least=100)
    shown, pauses = [], []
    with Image.open(path) as film:
        assert film.n_frames == 3
        for i in range(3):
            film.seek(i)
            shown.append(np.asarray(film.convert("RGB")).astype(int))
            pauses.append(film.info["duration"])
    assert pauses == [100, 100, 2000]
    assert all(np.abs(shown[i] - shown[i + 1]).max() > 100 for i in range(2)), "the frames do not move"


def test_sixty_frames_of_digits_stay_small(tmp_path):
    dataset = DATASETS["grey"]
    noise = [np.random.default_rng(i).random((64, 64)) for i in range(60)]  # the worst case for a GIF
    plots.animate(tmp_path / "a.gif", dataset, noise, range(60))
    assert (tmp_path / "a.gif").stat().st_size < 1_000_000


def test_animation_says_what_does_not_match(tmp_path):
    frames = [np.zeros((5, 64))] * 2
    for steps, probabilities in (([1], None), ([1, 2], [np.zeros(3)])):
        with pytest.raises(ValueError, match="2 frames"):
            plots.animate(tmp_path / "a.gif", DATASETS["grey"], frames, steps, probabilities)
    with pytest.raises(ValueError, match=r"\(n, 64\), n > 0; got \(5, 63\)"):
        plots.samples(tmp_path / "a.png", DATASETS["grey"], np.zeros((5, 63)))
    assert not list(tmp_path.iterdir())


def test_nothing_half_written_when_a_picture_fails(tmp_path, monkeypatch):
    with pytest.raises(OSError):
        plots.curves(tmp_path / "vanished" / "c.png", log(5))
    assert not list(tmp_path.iterdir())

    target = tmp_path / "c.png"
    target.write_bytes(b"the last good picture")
    with pytest.raises(ZeroDivisionError):
        plots.samples(target, DATASETS["plane"], np.zeros((5, 2)), lambda x: 1 / 0)

    def full(source, destination):
        raise OSError("no space left on device")

    monkeypatch.setattr(plots.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        plots.curves(target, log(5))
    assert target.read_bytes() == b"the last good picture"
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]


def test_import_is_light_and_pyplot_is_never_touched(tmp_path):
    code = f"""
import sys
import numpy as np
from minigan import plots
from minigan.data import from_array
assert "matplotlib" not in sys.modules, "matplotlib imported too early"
log = {{k: np.linspace(0, 1, 9) for k in ("step", "V", "loss_D", "loss_G", "D_real", "D_fake", "lr")}}
plots.curves({str(tmp_path / "c.png")!r}, log)
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_same_input_gives_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        plots.samples(tmp_path / name, DATASETS["plane"], DATASETS["plane"].real_samples(50, 1), probability)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second and Image.open(io.BytesIO(first)).format == "PNG"


def test_dollar_signs_in_names_are_text(tmp_path):
    dataset = SimpleNamespace(**{**vars(DATASETS["table"]), "columns": ["a $x_$ b", "c$", "d", "e"]})
    plots.samples(tmp_path / "a.png", dataset, dataset.real_samples(20, 1), title="$_$ of $x^$")
    assert_picture(tmp_path / "a.png")


def test_the_densities_of_the_classes_add_up():
    rng = np.random.default_rng(0)
    labels = np.arange(900) % 3
    data = from_array((rng.standard_normal(900) + 3 * labels)[:, None], labels)
    _, p_g, *parts = (
        line.get_ydata() for line in plots._draw_line(data, data.X, data.X, None, 0.3, False, labels).axes[0].lines
    )
    assert len(parts) == 3
    np.testing.assert_allclose(sum(parts), p_g, atol=1e-12)


def test_no_class_has_the_grey_of_the_real_points():
    for _, color, _ in plots._by_class(np.arange(10)):
        assert np.ptp(color) > 0.2


@pytest.mark.parametrize("scale", [1e-4, 1e-3, 1.0, 1e5])
def test_the_label_of_the_second_column_is_on_the_picture(scale):
    data = from_array(np.random.default_rng(0).standard_normal((60, 2)) * [1, scale])
    data.columns = ["a" * 90, "b" * 90]
    fig = plots._draw_plane(data, data.X, data.X, None, 0.3, False, None)
    plots._figure_pixels(fig, 100)
    for label in (fig.axes[0].xaxis.label, fig.axes[0].yaxis.label):
        box = label.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= fig.bbox.width and box.y1 <= fig.bbox.height


def test_a_label_that_the_font_lacks_prints_nothing(tmp_path):
    rng = np.random.default_rng(0)
    data = from_array(rng.standard_normal((60, 2)), np.array(["\u65e5", "abc"] * 30))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.samples(tmp_path / "x.png", data, data.X, lambda x: x[:, 0], labels=data.labels)
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_both_halves_of_a_labelled_table_tell_their_colours():
    dataset, labels = DATASETS["wide table"], np.arange(200) % 3
    fake = dataset.real_samples(200, 1)
    left, right = plots._draw_table(dataset, fake, fake, None, 0.3, False, labels).subfigs
    bars, line = left.axes[0].patches
    legend = left.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["real", "generated, all labels"]
    assert legend.legend_handles[0].get_facecolor() == bars.get_facecolor()
    assert legend.legend_handles[1].get_color() == plots.INK and line.get_edgecolor()[:3] == (0x22 / 255,) * 3
    real_points = right.axes[0].collections[0].get_facecolor()[0]
    np.testing.assert_array_equal(real_points[:3], bars.get_facecolor()[:3])  # one colour for real, left and right
    assert not plots._draw_table(dataset, fake, fake, None, 0.3, False, None).subfigs[0].legends


def seen(monkeypatch):
    """The texts of each class's name in every figure as it is drawn, and those in every legend."""
    names, legends, draw = [], [], plots._figure_pixels

    def watched(fig, dpi):
        names.append([text.get_text() for text in plots._class_names(fig)])
        legends.append([text.get_text() for ax in fig.axes if ax.get_legend() for text in ax.get_legend().get_texts()])
        return draw(fig, dpi)

    monkeypatch.setattr(plots, "_figure_pixels", watched)
    return names, legends


@pytest.mark.parametrize("kind", ["line", "plane", "table"])
def test_names_that_would_overlap_stand_in_a_key(kind, tmp_path, monkeypatch):
    dataset = DATASETS[kind]
    names, legends = seen(monkeypatch)
    one_place = np.repeat(dataset.real_samples(50, 1), 4, axis=0)
    plots.samples(tmp_path / "a.png", dataset, one_place, title="t", labels=np.tile(["a$", "b", "c", "d"], 50))
    assert names == [[r"a\$", "b", "c", "d"], [], []]  # tried, the key, and the picture again
    assert legends[1] == [r"a\$", "b", "c", "d"]
    with_key = pixels(tmp_path / "a.png").shape
    plots.samples(tmp_path / "a.png", dataset, one_place, title="t")
    assert with_key[0] == pixels(tmp_path / "a.png").shape[0] and with_key[1] > pixels(tmp_path / "a.png").shape[1]


def test_names_that_do_not_overlap_stand_at_their_classes(tmp_path, monkeypatch):
    names, _ = seen(monkeypatch)
    plots.samples(tmp_path / "a.png", DATASETS["plane"], np.repeat(RING, 20, axis=0), labels=np.arange(160) // 20)
    assert names == [list("01234567")]


def test_a_key_of_many_classes_is_short(tmp_path, monkeypatch):
    fake, labels = np.tile(RING, (25, 1)), np.array([f"country number {i}" for i in range(50)] * 4)
    names, legends = seen(monkeypatch)
    plots.samples(tmp_path / "a.png", DATASETS["plane"], fake, labels=labels)
    assert len(legends[1]) == 13 and legends[1][-1] == "… and 38 more" and names[-1] == []
    plots.samples(tmp_path / "a.png", DATASETS["plane"], fake, labels=np.arange(200) % 13)
    assert legends[4] == [str(i) for i in range(13)]


def test_the_frames_of_a_film_have_a_key_in_all_or_in_none(tmp_path, monkeypatch):
    dataset, labels = DATASETS["plane"], np.arange(160) // 20
    names, legends = seen(monkeypatch)
    apart, together = np.repeat(RING, 20, axis=0), np.zeros((160, 2))
    plots.animate(tmp_path / "a.gif", dataset, [apart, together], [0, 1], labels=labels)
    assert len(names) == 5 and not any(names[2:]) and legends[2] == list("01234567")
    assert_picture(tmp_path / "a.gif")


def test_shortened_names_stay_apart():
    names = ["country number 12", "country number 13", "country number 1", "b"]
    assert plots._shorten_all(names, 16) == ["country number…2", "country number…3", "country number 1", "b"]
    assert plots._shorten_all(["a long name, and more", "b"], 8) == ["a long …", "b"]
    assert plots._shorten_all([7, "abcdefghi", "abcdefghi"], 5) == ["7", "abcd…", "abcd…"]


def test_a_film_of_a_table_tells_inside_the_frame_what_it_hides():
    from matplotlib.figure import Figure

    x = np.array([[0.0, 0.0], [2.0, 0.0]])
    for room in (True, False):
        ax = Figure().subplots()
        plots._scatter(ax, x, x, [-1, -1], [1, 1], room=room)
        hidden = "1 of 2 outside"
        assert (hidden in ax.collections[-1].get_label()) is room
        assert [text.get_text() for text in ax.texts] == ([] if room else [hidden])


@pytest.mark.parametrize("scale, shift, offset", [(3e4, 0, "× 1e−5"), (1e-30, 0, "× 1e29"), (1, 0, "")])
def test_the_offset_of_a_density_is_in_its_label(scale, shift, offset):
    check_offset(plots._draw_line, np.random.default_rng(0).standard_normal((60, 1)) * scale + shift, offset)


@pytest.mark.parametrize("scale, shift, offset", [(1e-34, 7e-34, "× 1e−34"), (1, 1e4, "+1e4"), (1, 0, "")])
def test_the_offset_of_a_column_is_in_its_label(scale, shift, offset):
    check_offset(plots._draw_plane, np.random.default_rng(0).standard_normal((60, 2)) * scale + shift, offset)


def check_offset(draw, X, offset):
    """matplotlib would write it over the frame, where the legend is."""
    data = make(X.shape[1], None, X=X, columns=["a", "b"][: X.shape[1]])
    fig = draw(data, X, X, None, 0.3, False, None)
    plots._figure_pixels(fig, 100)
    axis = fig.axes[0].yaxis
    assert f" ({offset})" in axis.label.get_text() if offset else "(" not in axis.label.get_text()
    assert axis.get_offset_text().get_text() == offset.removeprefix("× ")
    assert not (axis.get_offset_text().get_visible() and offset)


@pytest.mark.filterwarnings("error")
def test_names_that_begin_with_an_underscore_are_in_the_key():
    """matplotlib would leave them out, and warn if there are no others."""
    plots._key(np.array(["_a", "_b"]), 300, 100)


def test_long_names_of_columns_stay_apart():
    dataset = SimpleNamespace(
        **{**vars(DATASETS["table"]), "columns": [f"a very long column name {i}" for i in range(4)]}
    )
    real = dataset.real_samples(20, 1)
    left = plots._draw_table(dataset, real, real, None, 0.3, False, None).subfigs[0]
    assert [ax.get_title("left") for ax in left.axes] == [f"a very long column n…{i}" for i in range(4)]


def test_a_rare_class_keeps_its_colour_in_a_film(tmp_path):
    x = np.random.default_rng(0).standard_normal((400, 2))
    labels = np.where(np.arange(400) == 7, "unicorn", np.array(["blue", "green", "red"])[np.arange(400) % 3])
    values = [probability(plots.surface_grid(DATASETS["plane"]))]
    plots.animate(tmp_path / "a.gif", DATASETS["plane"], [x], [1], values, labels=labels)
    red = np.rint(np.array(plots._by_class(labels)[3][1]) * 255)
    assert (np.abs(pixels(tmp_path / "a.gif")[:, -150:] - red).max(axis=-1) <= 4).any()
