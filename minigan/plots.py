"""Every picture the program makes: samples, training curves, and training as an animation.

Pictures are drawn in memory and put in place in one move, so a reader of the folder never meets half a file.
matplotlib is imported only when something is drawn, and only its object-oriented side (`Figure`, not
`pyplot`): no window, no display, no state shared with the caller. Arrays are NumPy arrays on the host.

A `dataset` here is anything with `features`, `image_shape` ((h, w), (h, w, 3) or None), `columns`, `density`,
`modes`, `sigma` (each may be None) and `real_samples(n, seed) -> (n, features)`.
"""

import io
import itertools
import math
import os
import warnings
from pathlib import Path

import numpy as np

# Okabe and Ito's palette: told apart in the common kinds of colour blindness, and in grey print.
REAL, FAKE, P_G, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#222222", "#666666"
DPI = 120
LOG_2 = math.log(2.0)
SMALL = (
    16  # grey images of up to this many pixels a side are drawn smoothed, but not in a GIF: grey ramps make it large
)
# Over the frame, never in it: a legend must not hide data.
LEGEND = dict(
    loc="lower left",
    bbox_to_anchor=(-0.02, 1.0),
    fontsize=9,
    frameon=False,
    borderaxespad=0.2,
    handlelength=1.8,
    columnspacing=1.2,
)


# ---- what the program calls --------------------------------------------------------------------------------


def samples(path, dataset, fake, probability=None, title=None, labels=None):
    """Draw generated samples the way their kind of data asks for, as one PNG.

    Images: a grid of the first samples (at most 100). One column: the densities of data and generator, D and
    the optimal D, as in Figure 1 of Goodfellow et al. (2014). Two columns: a scatter over D's surface. More
    columns: the first eight marginals and the two leading principal components of the real data.

    path         PNG file to write; its folder must exist, else OSError
    fake         (n, features) generated samples, in data units
    probability  callable, x (k, features) -> D(x) (k,) or (k, 1), in data units; used for one and two columns. If there
                 are labels it is D(x|c), c the label of the place x
    title        a line of text above the picture, or None
    labels       (n,) of a conditional generator, by which its points are coloured, with the names of the classes among
                 them or, where those would overlap, in a key beside; of images class by class the order is told
    """
    fake = _check(dataset, fake)
    if dataset.image_shape is not None:
        shown = [] if labels is None else labels[: images_shown(dataset.image_shape, len(fake))]
        order = [(str(label), len(list(run))) for label, run in itertools.groupby(shown)]  # and how many of each
        if len(order) == len(dict(order)) > 1:
            rows = all(count % math.ceil(math.sqrt(len(shown))) == 0 for _, count in order)
            listed = ", ".join(name if rows else f"{name} ({count})" for name, count in order)
            title = f"{title + '; ' if title else ''}in reading order: {listed}"
        return _write(path, _png(_captioned(_image_grid(dataset, fake, width=600), title)))
    d_values = None
    if probability is not None and dataset.features <= 2:
        d_values = probability(surface_grid(dataset))
    fig = _figure(dataset, _reference(dataset), fake, d_values, title, labels=labels)
    return _write(path, _png(_reduce(_named([fig], labels, DPI), 256)[0]))


def animate(path, dataset, frames, steps, probabilities=None, fps=12, labels=None):
    """Draw training as a GIF: one frame per snapshot of the same noise, the last one held for two seconds.

    path           GIF file to write; its folder must exist, else OSError
    frames         list of (n, features) arrays, generated from the same z at each snapshot
    steps          list of int, the training step of each frame; shown in the picture
    probabilities  list of D(x) on `surface_grid(dataset)`, one per frame, for one or two columns; or None
    fps            frames a second (a GIF counts in hundredths of a second)
    labels         as in `samples`, the same for every frame
    """
    if not len(frames) or len(frames) != len(steps):
        raise ValueError(
            f"animate needs one step per frame and at least one frame: got {len(frames)} frames and {len(steps)} steps"
        )
    if probabilities is not None and len(probabilities) != len(frames):
        raise ValueError(f"animate got {len(frames)} frames but {len(probabilities)} sets of D's values")
    frames = [_check(dataset, fake) for fake in frames]
    titles = [f"step {int(step):,}" for step in steps]
    if dataset.image_shape is not None:
        pictures = [
            _captioned(_image_grid(dataset, fake, width=230, most=49, smooth=False), title)
            for fake, title in zip(frames, titles, strict=True)
        ]
    else:
        real = _reference(dataset)
        values = [None] * len(frames) if probabilities is None else probabilities
        figures = [
            _figure(dataset, real, fake, d_values, title, small=True, labels=labels)
            for fake, d_values, title in zip(frames, values, titles, strict=True)
        ]
        pictures = _named(figures, labels, dpi=90)
    colors = 64 if labels is None else 192  # the key and the points of every class must keep theirs
    return _write(path, _gif(pictures, fps, colors))


def curves(path, metrics):
    """Draw a training log as one PNG: the game's value, D's answers, the losses, and the samples' spread.

    metrics  dict of equally long 1-D arrays: step, V, loss_D, loss_G, D_real, D_fake, lr; if present also
             grad_penalty, spread, spread_real. V is the estimate of Goodfellow et al. (2014), eq. 1, in nats;
             D_real and D_fake are the batch means of D(x) and D(G(z)). spread is the standard deviation of a
             generated batch: in data units beside spread_real, or over that of a real batch without it.
    Dashed lines are the values at equilibrium, where D = 1/2 everywhere: V = -log 4, D's loss 2 log 2 (= -V),
    G's loss log 2 (minimax: -log 2). Rows that are not finite leave a gap.
    """
    from matplotlib.figure import Figure

    metrics = {key: np.asarray(value, dtype=float) for key, value in metrics.items()}
    step = metrics["step"]
    if not len(step):
        raise ValueError("the training log has no rows: nothing to draw")
    panels = [_panel_value, _panel_answers, _panel_losses] + [_panel_spread] * ("spread" in metrics)
    fig = Figure(figsize=(7.5, 2.3 * len(panels)), layout="constrained")
    axes = fig.subplots(len(panels), 1, sharex=True)
    fig.get_layout_engine().set(h_pad=0.08)
    for ax, panel in zip(axes, panels, strict=True):
        _style(ax)
        panel(ax, step, metrics)
    label = "training step"
    if len(metrics.get("lr", ())):
        first, last = metrics["lr"][[0, -1]]
        label += f"   (learning rate {first:.3g}" + (f" falling to {last:.3g})" if last < first else ")")
    axes[-1].set_xlabel(label, fontsize=9)
    if len(step) > 1:
        axes[-1].set_xlim(step[0], step[-1])
    return _write(path, _figure_png(fig))


def surface_grid(dataset, n=100):
    """Points over the frame of the picture where D is drawn: float32 (n, 1), or (n*n, 2) for two columns.

    In two dimensions the first coordinate runs fastest: `values.reshape(n, n)` is indexed [y, x].
    """
    if dataset.features not in (1, 2):
        raise ValueError(f"D's surface can be drawn for 1 or 2 columns, not for {dataset.features}")
    lo, hi = _limits(_reference(dataset))
    axes = [np.linspace(a, b, n) for a, b in zip(lo, hi, strict=True)]
    return np.stack([g.ravel() for g in np.meshgrid(*axes)], axis=1).astype(np.float32)


def tile(images, columns=None, scale=1, gap=2):
    """Lay images out in reading order, each pixel blown up to scale x scale, white gaps between.

    images  (n, h, w) or (n, h, w, 3), values in [0, 1]; values outside are clipped, NaN is black
    Returns uint8 (H, W) or (H, W, 3), H = rows*h*scale + (rows - 1)*gap, W likewise. Columns: about sqrt(n).
    """
    n, h, w = images.shape[:3]
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    pixels = np.clip(np.nan_to_num(images, nan=0.0), 0.0, 1.0)
    pixels = np.rint(pixels * 255).astype(np.uint8).repeat(scale, axis=1).repeat(scale, axis=2)
    h, w = h * scale, w * scale
    out = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, *images.shape[3:]), 255, np.uint8)
    for i in range(n):
        y, x = i // columns * (h + gap), i % columns * (w + gap)
        out[y : y + h, x : x + w] = pixels[i]
    return out


# ---- one figure per kind of data ---------------------------------------------------------------------------


def _figure(dataset, real, fake, d_values, title, small=False, labels=None):
    """A matplotlib Figure of fake (n, features) beside real; `small` is the size for an animation."""
    draw = {1: _draw_line, 2: _draw_plane}.get(dataset.features, _draw_table)
    fig = draw(dataset, real, fake, d_values, 0.3 if title else 0.0, small, labels)
    if title:
        w, h = fig.get_size_inches()
        fig.text(0.1 / w, 1 - 0.07 / h, _plain(title), va="top", fontsize=11, color=INK)
    return fig


def _frame(width, height, left, right, bottom, top):
    """A Figure with one axes of width x height inside the given margins, all in inches.

    Fixed margins, no automatic layout: the frames of an animation must not jump with the length of a legend.
    """
    from matplotlib.figure import Figure

    w, h = left + width + right, bottom + height + top
    fig = Figure(figsize=(w, h))
    ax = fig.add_axes((left / w, bottom / h, width / w, height / h))
    _style(ax)
    return fig, ax


def _draw_line(dataset, real, fake, d_values, title_height, small, labels):
    """One column: p_data, p_g, D and the best D against this p_g (Goodfellow et al. 2014, Figure 1)."""
    lo, hi = _limits(real)
    x = np.linspace(lo[0], hi[0], 400)
    p_data = _kde(real[:, 0], x) if dataset.density is None else np.ravel(dataset.density(x))
    p_g, p_g_width = _kde(fake[:, 0], x), _kde_width(fake[:, 0], x)
    fig, ax = _frame(*((4.0, 2.3) if small else (5.2, 3.1)), 0.65, 0.65, 0.5, 0.5 + title_height)
    ax.plot(x, p_data, ":", color=INK, lw=2, label="$p_{data}$ real")
    ax.fill_between(x, p_g, color=P_G, alpha=0.12, lw=0)
    ax.plot(x, p_g, color=P_G, lw=2, label="$p_g$ generated" + _outside(fake, lo, hi))
    for which, color, name in _by_class(labels):  # p(x|c) p(c), which add up to p_g
        part = which.mean() * _kde(fake[which, 0], x, p_g_width)
        ax.plot(x, part, color=color, lw=1.2)
        _write_in(ax, name, (x[part.argmax()], part.max() / 2), color)
    # The data alone set the height: the frames of a film agree, and a collapsed generator runs off the top.
    ax.set(xlim=(lo[0], hi[0]), ylim=(0, 1.6 * p_data.max()))
    ax.set_xlabel(_shorten(_names(dataset)[0], 45), fontsize=9)
    ax.ticklabel_format(axis="y", scilimits=(-3, 4))
    right = ax.twinx()
    ax.set_ylabel("density" + _offset(ax.yaxis), fontsize=9)  # now: a twin shows the offset again
    _style(right)
    right.spines["right"].set_visible(True)
    total = p_data + p_g
    known = total > 1e-2 * total.max()  # elsewhere there is no sample to tell, and 0/0 would be noise
    optimal = np.where(known, p_data / np.where(known, total, 1.0), np.nan)
    right.plot(x, optimal, ":", color=GREY, lw=1.2, label="best D: $p_{data}/(p_{data}+p_g)$")
    if d_values is not None:
        d_values = np.ravel(d_values)
        right.plot(
            np.linspace(lo[0], hi[0], d_values.size), d_values, "--", color=REAL, lw=1.8, label=_name_of_D(labels)
        )
    right.axhline(0.5, color="#cccccc", lw=0.8, zorder=0)
    right.set(ylim=(0, 1.02), yticks=[0, 0.5, 1])
    right.set_ylabel(f"{_name_of_D(labels)}, probability of being real", fontsize=9, color=REAL)
    handles = ax.get_legend_handles_labels()[0] + right.get_legend_handles_labels()[0]
    ax.legend(handles=handles, ncol=2, **LEGEND)
    return fig


def _draw_plane(dataset, real, fake, d_values, title_height, small, labels):
    """Two columns: generated points over real ones, over D's surface in the colour of its vote."""
    from matplotlib.collections import EllipseCollection
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import AutoLocator

    lo, hi = _limits(real)
    side = 2.6 if small else 4.2
    longest = max(len(f"{v:g}") for v in AutoLocator().tick_values(lo[1], hi[1]))
    left = 0.72 + 0.09 * max(0, longest - 5)  # for the numbers of the second column
    fig, ax = _frame(side, side, left, 0.8 if d_values is None else 0.95, 0.5, 0.33 + title_height)
    if d_values is not None:
        n = math.isqrt(np.size(d_values))
        pale = LinearSegmentedColormap.from_list("votes", ["#F0B48C", "#FFFFFF", "#8CBFE0"])
        x, y = (np.linspace(a, b, n) for a, b in zip(lo, hi, strict=True))
        d_values = np.reshape(d_values, (n, n))
        surface = ax.contourf(x, y, d_values, np.linspace(0, 1, 13), cmap=pale, zorder=0)
        bar = fig.colorbar(surface, cax=ax.inset_axes((1.03, 0, 0.04, 1)), ticks=[0, 0.5, 1])
        bar.set_label(f"{_name_of_D(labels)}: 1 = real, 0 = generated", fontsize=9)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    _scatter(ax, real, fake, lo, hi, labels)
    if np.ptp(hi - lo) < 1e-6 * np.max(hi - lo):  # a square frame: both columns in one unit
        ax.set_aspect("equal")
        if dataset.modes is not None and dataset.sigma is not None:
            width = np.full(len(dataset.modes), 6.0 * dataset.sigma)
            ax.add_collection(
                EllipseCollection(
                    width,
                    width,
                    0 * width,
                    units="xy",
                    offsets=dataset.modes,
                    offset_transform=ax.transData,
                    facecolors="none",
                    edgecolors=INK,
                    linewidths=0.8,
                    zorder=4,
                )
            )
            ax.plot([], [], "o", mfc="none", mec=INK, mew=0.8, label="3σ of a mode")  # for the legend
    if longest > 5:
        ax.yaxis.set_major_formatter("{x:g}")
    _scatter_legend(ax, start=(0.04 - left) / side)
    for axis, name in zip((ax.xaxis, ax.yaxis), _names(dataset), strict=True):
        axis.set_label_text(_shorten(name, 28 if small else 45) + _offset(axis), fontsize=9)
    return fig


def _draw_table(dataset, real, fake, d_values, title_height, small, labels):
    """More columns: the marginals of the first eight, and all of them on the real data's principal axes."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.transforms import ScaledTranslation

    shown = min(8, real.shape[1])
    names = _shorten_all(_names(dataset)[:shown], 22)
    width, height = (8.0, 4.0) if small else (10.0, 4.6)
    fig = Figure(figsize=(width, height + title_height), layout="constrained")
    fig.get_layout_engine().set(rect=(0.01, 0, 0.99, height / (height + title_height)))
    left, right = fig.subfigures(1, 2, width_ratios=[1.35, 1])
    across = math.ceil(shown / 3)
    down = math.ceil(shown / across)
    grid = left.add_gridspec(down, across)
    # Beside points in the colours of their labels, real data are grey here too, and black is nobody's colour.
    real_color, fake_color = (REAL, FAKE) if labels is None else (GREY, INK)
    for i in range(shown):
        ax = left.add_subplot(grid[i // across, i % across])
        _style(ax)
        lo, hi = (v[0] for v in _limits(real[:, [i]], margin=0.1))
        bins = np.linspace(lo, hi, 31)
        looks = dict(color=real_color, alpha=0.35, fill=True), dict(color=fake_color, lw=1.3)
        for x, look in zip((real, fake), looks, strict=True):
            # Not density=True: what falls outside the frame must still count in the total.
            counts, _ = np.histogram(x[:, i][np.isfinite(x[:, i])], bins)
            ax.stairs(counts / (len(x) * (bins[1] - bins[0])), bins, **look)
        ax.set_title(names[i], fontsize=9, loc="left", pad=3)
        note = _outside(fake[:, [i]], [lo], [hi], share=True)
        ax.text(1, 1, note, transform=ax.transAxes, ha="right", va="top", fontsize=8, color=fake_color)
        ax.set(xlim=(lo, hi), ylim=(0, 1.15 * ax.get_ylim()[1]), yticks=[])
        ax.locator_params(axis="x", nbins=4)
        ax.spines["left"].set_visible(False)
    more = f": the first {shown} of {real.shape[1]} columns" if shown < real.shape[1] else ""
    left.suptitle(f"each column by itself{more}" + "\n" * (labels is not None), fontsize=10)
    if labels is not None:  # the legend on the right does not tell these colours: one of its own, on a line kept free
        below = left.transSubfigure + ScaledTranslation(0, -15 / 72, fig.dpi_scale_trans)
        place = dict(loc="upper center", bbox_to_anchor=(0.5, 1), bbox_transform=below)
        bars, line = Patch(color=real_color, alpha=0.35, lw=0), Line2D([], [], color=fake_color, lw=1.3)
        left.legend([bars, line], ["real", "generated, all labels"], ncol=2, **LEGEND | place).set_in_layout(False)

    mean, std = real.mean(axis=0), real.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    standard = (real - mean) / std
    variance, axes = np.linalg.eigh(standard.T @ standard)  # in rising order
    with np.errstate(invalid="ignore", over="ignore"):  # a broken generator is drawn too, and counted
        real_2d, fake_2d = ((x - mean) / std @ axes[:, :-3:-1] for x in (real, fake))
    ax = right.subplots()
    _scatter(ax, real_2d, fake_2d, *_limits(real_2d), labels, room=not small)
    _scatter_legend(ax)
    share = variance[:-3:-1] / max(variance.sum(), 1e-12)
    ax.set_xlabel(f"first principal axis ({share[0]:.0%} of the variance)", fontsize=9)
    ax.set_ylabel(f"second ({share[1]:.0%})", fontsize=9)
    right.suptitle("all columns together", fontsize=10)
    return fig


def _scatter(ax, real, fake, lo, hi, labels=None, room=True):
    """Real points large and pale below, generated points small above, coloured by their labels if there are any.

    What the frame hides is told in the legend if there is room for it, else in a corner of the frame.
    """
    from matplotlib.colors import to_rgb

    _style(ax)
    note = _outside(fake, lo, hi)
    if not room:
        ax.text(1, 1, note[2:-1], transform=ax.transAxes, ha="right", va="top", fontsize=8, color=INK)
        note = ""
    color, generated = (REAL, "generated") if labels is None else (GREY, "generated, by label")
    ax.scatter(*real.T, s=14, color=color, alpha=0.45, linewidths=0, zorder=2, label="real")
    colors = np.broadcast_to(to_rgb(FAKE), (len(fake), 3)).copy()
    for which, color, name in _by_class(labels):
        colors[which] = color
        _write_in(ax, name, np.median(fake[which], axis=0), color, above=11)
    ax.scatter(*fake.T, s=4, color=colors, alpha=0.75, linewidths=0, zorder=3, label=generated + note)
    ax.set(xlim=(lo[0], hi[0]), ylim=(lo[1], hi[1]))
    ax.locator_params(nbins=6)


def _by_class(labels):
    """(which samples, colour, name) of each class, in order; nothing if there are no labels. Too many have no names."""
    from matplotlib import colormaps

    classes = [] if labels is None else np.unique(labels)
    colors = colormaps["turbo"](np.linspace(0, 1, len(classes)))
    if len(classes) <= 10:
        colors = [*colormaps["tab10"].colors]
        colors[7] = (0.9, 0.75, 0.0)  # its grey is that of the real points
    names = [_plain(name) for name in _shorten_all(classes, 16)] if len(classes) <= 40 else [""] * len(classes)
    return [(labels == c, colors[i][:3], names[i]) for i, c in enumerate(classes)]


def _write_in(ax, name, place, color, above=0):
    """The name of a class at its place among the data, or so many points above it, readable on any ground."""
    from matplotlib.patheffects import withStroke

    if name and np.isfinite(place).all():
        halo = [withStroke(linewidth=2.5, foreground="white")]
        ax.annotate(
            name, place, (0, above), textcoords="offset points", ha="center", va="center", fontsize=10, weight="bold",
            color=color, path_effects=halo, zorder=5, annotation_clip=True, gid="class",
        )  # fmt: skip


def _named(figures, labels, dpi):
    """Pixels of the figures. Where names of classes stand on each other, or are too many, a key takes their place.

    It does so in all frames of a film if it has to in one, and stands beside them: all keep one size.
    """
    pictures = [_figure_pixels(fig, dpi) for fig in figures]
    if labels is None or (len(np.unique(labels)) <= 40 and not any(map(_names_collide, figures))):
        return pictures
    for fig in figures:
        for name in _class_names(fig):
            name.remove()
    key = _key(labels, len(pictures[0]), dpi)
    return [np.concatenate([_figure_pixels(fig, dpi), key], axis=1) for fig in figures]


def _class_names(fig):
    return fig.findobj(lambda artist: artist.get_gid() == "class")


def _names_collide(fig):
    """Whether a drawn figure shows names of classes that overlap."""
    boxes = [name.get_window_extent() for name in _class_names(fig) if name.axes.bbox.contains(*_middle(name))]
    return any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def _middle(name):
    """Where in the picture the thing is that a name belongs to: outside the frame matplotlib leaves the name out."""
    return name.axes.transData.transform(name.xy)


def _key(labels, height, dpi, most=12):
    """A dot in the colour of each class and its name, in one column: pixels (height, width, 3).

    Drawn apart from the picture that it is put beside, so that it does not change that one's layout.
    """
    from matplotlib.figure import Figure

    classes = np.unique(labels)
    shown = len(classes) if len(classes) <= most + 1 else most  # no line is saved by "and 1 more"
    fig = Figure(figsize=(5, height / dpi))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.axis("off")
    names = _shorten_all(classes, 24)
    for (_, color, _), name in zip(_by_class(labels)[:shown], names, strict=False):
        name = " " * name.startswith("_") + _plain(name)  # matplotlib leaves out what begins with an underscore
        ax.plot([], [], "o", ms=5, color=color, label=name)
    if shown < len(classes):
        ax.plot([], [], " ", label=f"… and {len(classes) - shown} more")
    place = dict(loc="center left", bbox_to_anchor=(0, 0.5), alignment="left", handlelength=1)
    ax.legend(title="label", title_fontsize=9, **LEGEND | place)
    pixels = _figure_pixels(fig, dpi)
    width = np.flatnonzero((pixels < 255).any(axis=(0, 2))).max() + dpi // 8
    return pixels[:, :width]


def _scatter_legend(ax, start=-0.02):
    look = dict(handletextpad=0.0, columnspacing=0.7, bbox_to_anchor=(start, 1.0))
    legend = ax.legend(ncol=3, **LEGEND | look)
    for dot in legend.legend_handles[:2]:
        dot.set(alpha=1, sizes=[28])


# ---- the panels of the training curves ---------------------------------------------------------------------


def _panel_value(ax, step, metrics):
    equilibrium = -2 * LOG_2
    ax.axhspan(equilibrium, equilibrium + 0.5, color=P_G, alpha=0.10, lw=0, zorder=0)
    _level(ax, equilibrium, "−log 4", INK)
    _line(ax, step, metrics["V"], INK, "V(D, G)")
    _head(
        ax,
        "Value of the game",
        "Healthy: in or near the green band, D a little ahead. Towards 0: D wins and G learns little.",
        "nats",
    )


def _panel_answers(ax, step, metrics):
    _level(ax, 0.5, "1/2", INK)
    _line(ax, step, metrics["D_real"], REAL, "on real, D(x)")
    _line(ax, step, metrics["D_fake"], FAKE, "on generated, D(G(z))")
    ax.set(ylim=(0, 1), yticks=[0, 0.5, 1])
    _head(
        ax,
        "Mean answer of D",
        "Healthy: blue above, orange below, neither near 1 or 0, where D is never fooled.",
        "probability",
    )


def _panel_losses(ax, step, metrics):
    _level(ax, 2 * LOG_2, "2 log 2", REAL, va="bottom")
    if np.any(metrics["loss_G"] > 0):
        _level(ax, LOG_2, "log 2", FAKE, va="top")
    else:  # only the minimax loss, mean log(1 - D(G(z))), is never positive
        _level(ax, -LOG_2, "−log 2", FAKE)
    _line(ax, step, metrics["loss_D"], REAL, "D's")
    _line(ax, step, metrics["loss_G"], FAKE, "G's")
    penalty = metrics.get("grad_penalty")
    if penalty is not None and np.any(penalty > 0):
        _line(ax, step, penalty, P_G, "gradient penalty")
    _head(
        ax,
        "Losses",
        "Healthy: both settle, between the dashed lines. They need not fall: the two are opponents.",
        "nats",
    )


def _panel_spread(ax, step, metrics):
    if "spread_real" in metrics:
        _line(ax, step, metrics["spread_real"], REAL, "real")
        unit = "std. deviation,\nnetwork units"
    else:
        _level(ax, 1.0, "real", REAL)
        unit = "generated / real"
    _line(ax, step, metrics["spread"], FAKE, "generated")
    ax.set_ylim(bottom=0)
    _head(
        ax,
        "Spread of a batch",
        "Healthy: the two agree. Generated far below real: G repeats itself (mode collapse).",
        unit,
    )


def _line(ax, step, y, color, label):
    """The log itself, pale, and its running mean over a fortieth of the run; gaps where it is not finite."""
    finite = np.isfinite(y)
    raw = np.where(finite, y, np.nan)
    width = len(y) // 40
    if width < 2:
        ax.plot(step, raw, color=color, lw=1.6, label=label, marker="o" if len(y) < 3 else None, ms=4)
        return
    box = np.ones(width)
    counts = np.convolve(finite, box, "same")
    mean = np.convolve(np.where(finite, y, 0.0), box, "same") / np.maximum(counts, 1)
    ax.plot(step, raw, color=color, lw=0.7, alpha=0.35)
    ax.plot(step, np.where(finite, mean, np.nan), color=color, lw=1.6, label=label)


def _level(ax, y, text, color, va="center"):
    ax.axhline(y, color=color, lw=0.9, ls=(0, (5, 3)), zorder=1)
    ax.text(1.006, y, text, transform=ax.get_yaxis_transform(), va=va, fontsize=9, color=color)


def _head(ax, title, hint, unit):
    """Title and legend on one line, the hint for the reader below them, all outside the data."""
    from matplotlib.transforms import ScaledTranslation

    line = ax.transAxes + ScaledTranslation(0, 13.5 / 72, ax.figure.dpi_scale_trans)
    ax.set_title(title, loc="left", fontsize=11, color=INK, pad=20)
    ax.annotate(
        hint,
        (0, 1),
        xytext=(0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8.5,
        color=GREY,
    )
    ax.set_ylabel(unit, fontsize=9)
    ax.legend(**LEGEND | dict(loc="lower right", bbox_to_anchor=(1, 1), bbox_transform=line), ncol=3)


# ---- small things shared -----------------------------------------------------------------------------------


def _check(dataset, fake):
    fake = np.asarray(fake)
    if fake.ndim != 2 or fake.shape[1] != dataset.features or not len(fake):
        raise ValueError(f"samples to draw must have shape (n, {dataset.features}), n > 0; got {fake.shape}")
    return fake


def _reference(dataset):
    """The same real samples for every picture, so that frames and limits agree: (2000 or all, features)."""
    return np.asarray(dataset.real_samples(2000 if dataset.X is None else min(2000, len(dataset.X)), 0))


def _limits(real, margin=0.22):
    """Frame (lo, hi), each (features,), around real (n, features); square for two columns alike in size."""
    lo, hi = np.percentile(real, [0.1, 99.9], axis=0)  # one stray row of a table must not set the scale
    span = np.where(hi > lo, hi - lo, 1.0)
    if len(span) == 2 and span.max() < 4 * span.min():
        span[:] = span.max()
    half = span * (0.5 + margin)
    return (lo + hi) / 2 - half, (lo + hi) / 2 + half


def _outside(x, lo, hi, share=False):
    """What the frame hides, as text for a legend: '' when every row of x lies inside."""
    n = len(x) - int(np.all((x >= lo) & (x <= hi), axis=1).sum())  # NaN counts as outside
    if share:
        return f"{n / len(x):.0%} outside" if n >= 0.01 * len(x) else ""
    return f" ({n} of {len(x)} outside)" if n else ""


def _name_of_D(labels):
    """What a picture shows of D: a conditional one judges each point with the label of its place."""
    return "D(x)" if labels is None else "D(x|c)"


def _kde_width(x, grid):
    """A third of Silverman's width (0.9), which suits a single bump and would blur the modes of a mixture."""
    x, dx = x[np.isfinite(x)].astype(float), grid[1] - grid[0]
    if not len(x):
        return dx
    q1, q3 = np.percentile(x, [25, 75])
    return max(0.3 * min(x.std(), (q3 - q1) / 1.34) * len(x) ** -0.2, dx)


def _kde(x, grid, width=None):
    """Gaussian kernel density of x (n,) on an even grid (k,); bins first, so large n costs little."""
    width = width or _kde_width(x, grid)
    x = x[np.isfinite(x)].astype(float)
    if not len(x):
        return np.zeros(len(grid))
    dx = grid[1] - grid[0]
    counts, _ = np.histogram(x, np.append(grid - dx / 2, grid[-1] + dx / 2))
    reach = min(math.ceil(4 * width / dx), len(grid) // 2 - 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * dx / width) ** 2)
    return np.convolve(counts, kernel / kernel.sum(), "same") / (len(x) * dx)


def _names(dataset):
    if dataset.columns is not None:
        return [_plain(str(name)) for name in dataset.columns]
    return ["x"] if dataset.features == 1 else [f"$x_{{{i + 1}}}$" for i in range(dataset.features)]


def _plain(text):
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def _shorten(text, most):
    return text if len(text) <= most else text[: most - 1] + "…"


def _shorten_all(texts, most):
    """Each cut to so many characters: at its end, or further in if that keeps apart what begins alike."""
    texts = [str(text) for text in texts]
    best = []
    for tail in range(most - 2):
        cut = [t if len(t) <= most else t[: most - 1 - tail] + "…" + t[len(t) - tail :] for t in texts]
        if len(set(cut)) > len(set(best)):
            best = cut
    return best


def _offset(axis):
    """What an axis leaves out of its numbers, such as ' (× 1e−34)', for its label: above the frame is the legend."""
    formatter = axis.get_major_formatter()
    formatter.set_locs(axis.get_majorticklocs())
    offset = formatter.get_offset()
    axis.get_offset_text().set_visible(False)
    return f" ({offset if offset[0] in '+−' else f'× {offset}'})" if offset else ""


def _style(ax):
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8.5, color=GREY, labelcolor=INK)


# ---- pixels and files --------------------------------------------------------------------------------------


def images_shown(shape, n, most=100):
    """How many of n images of this shape a picture shows, the first ones."""
    # Past this many values a PNG no longer stays below 300 kB: show fewer, larger images instead.
    shown = min(n, most, max(1, 250_000 // math.prod(shape)))
    return shown if shown == n else math.isqrt(shown) ** 2  # there are more to choose from: fill the square


def _image_grid(dataset, fake, width, most=100, smooth=True):
    """The first images as a square grid about `width` pixels wide: uint8 (H, W) or (H, W, 3)."""
    shape, n = dataset.image_shape, images_shown(dataset.image_shape, len(fake), most)
    side = math.ceil(math.sqrt(n))
    scale = min(12, max(1, round(width / (side * shape[1]))))
    images = fake[:n].reshape(n, *shape)
    if smooth and len(shape) == 2 and max(shape) <= SMALL:
        return tile(_smoothed(images, scale), side)
    return tile(images, side, scale)


def _smoothed(images, scale):
    """Enlarge by bicubic interpolation: the eye reads a digit of 8 x 8 pixels when it does not see the pixels."""
    from PIL import Image

    pixels = np.rint(np.clip(np.nan_to_num(images, nan=0.0), 0, 1) * 255).astype(np.uint8)
    size = (images.shape[2] * scale, images.shape[1] * scale)
    return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in pixels]) / 255


def _captioned(pixels, text):
    """White border, and the text above in matplotlib's own font, wrapped to the width of the picture."""
    border = 6
    if not text:
        return np.pad(pixels, [(border, border)] * 2 + [(0, 0)] * (pixels.ndim - 2), constant_values=255)
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 14)
    width = max(pixels.shape[1], 200)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    top = border + 20 * len(lines)
    size = (width + 2 * border, top + len(pixels) + border)
    canvas = Image.new("L" if pixels.ndim == 2 else "RGB", size, "white")
    canvas.paste(Image.fromarray(pixels), (border + (width - pixels.shape[1]) // 2, top))
    ImageDraw.Draw(canvas).text((border, border - 3), "\n".join(lines), fill=INK, font=font, spacing=4)
    return np.asarray(canvas)


def _figure_pixels(fig, dpi):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    fig.set_dpi(dpi)
    canvas = FigureCanvasAgg(fig)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # of a label in a script that the font lacks
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _figure_png(fig):
    return _png(_reduce([_figure_pixels(fig, DPI)], 256)[0])


def _png(picture):
    """A PIL image, or uint8 (H, W) or (H, W, 3), as the bytes of a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(buffer, "PNG", optimize=True, dpi=(DPI, DPI))
    return buffer.getvalue()


def _gif(pictures, fps, colors=64):
    """Pictures uint8 (H, W) or (H, W, 3) as the bytes of one GIF; few colours, small file."""
    from PIL import Image

    if pictures[0].ndim == 2:
        frames = [Image.fromarray(picture >> 4).convert("P") for picture in pictures]
        for frame in frames:
            frame.putpalette([17 * level for level in range(16) for _ in range(3)])
    else:
        frames = _reduce(pictures, colors)
    pause = max(20, round(100 / fps) * 10)  # ms; browsers slow anything shorter down
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        loop=0,
        optimize=True,
        duration=[pause] * (len(frames) - 1) + [2000],
    )
    return buffer.getvalue()


def _reduce(pictures, n):
    """Pictures uint8 (H, W, 3) as PIL images that share one palette of n colours: a third of the bytes."""
    from PIL import Image

    few = np.concatenate([pictures[i].reshape(-1, 3) for i in {0, len(pictures) // 2, len(pictures) - 1}])
    colors, _, counts = _colors(few)
    colors = colors[np.argsort(-counts, kind="stable")]
    # The plain areas keep their exact colour; the shades of lines and dots share the rest of the palette.
    exact, rest = colors[: n // 2], colors[n // 2 :]
    if len(rest):
        rest = Image.fromarray(rest[None]).quantize(n - n // 2, method=Image.Quantize.MEDIANCUT)
        rest = np.reshape(rest.getpalette(), (-1, 3))[: n - n // 2]
    palette = np.concatenate([exact, rest]).astype(np.uint8)
    images = []
    for picture in pictures:
        # Nearest entry by hand: Pillow's own search is coarse, and turns white into a tinted grey.
        colors, where, _ = _colors(picture.reshape(-1, 3))
        p = palette.astype(np.float32)
        nearest = np.argmin((p**2).sum(axis=1) - colors @ (2 * p.T), axis=1).astype(np.uint8)
        images.append(Image.fromarray(nearest[where].reshape(picture.shape[:2])).convert("P"))
        images[-1].putpalette(palette.tobytes())
    return images


def _colors(pixels):
    """Distinct colours (k, 3) of uint8 pixels (n, 3), the index of each pixel's colour (n,), counts (k,)."""
    codes = pixels @ np.array([1 << 16, 1 << 8, 1], np.int32)
    codes, where, counts = np.unique(codes, return_inverse=True, return_counts=True)
    return (codes[:, None] >> [16, 8, 0] & 0xFF).astype(np.uint8), where, counts


def _write(path, content):
    """Put bytes in place in one move: the old file or the whole new one, never a part."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
