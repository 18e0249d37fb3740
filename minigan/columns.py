"""A network that several processes of one machine train together: each does its columns of every layer.

What every layer gives, and the gradient that is sent into it, lie in memory that all of them see. In a forward pass
each process writes its columns there, by its columns of W; in a backward pass by its rows of W, and what it has at the
end are its rows of dW. Each product needs all columns of what comes in, so there the processes wait for each other.
Nothing is summed over processes: the result is that of one alone. Elsewhere this is called tensor parallelism
(Shoeybi et al. 2019, arXiv 1909.08053).
"""

import functools
from types import SimpleNamespace

import numpy as np

from minigan.backend import empty_batch
from minigan.layers import Dropout, LeakyReLU, Linear, Maxout, ReLU, Sigmoid, Tanh
from minigan.mlp import MLP, Tape, replaced

LAYERS = Linear, Maxout, Dropout, LeakyReLU, ReLU, Sigmoid, Tanh  # a subclass may need other columns than its own
SEEN_BY_ALL = "out", "tangent", "dx", "e", "da", "de"  # of a layer's arrays; in the others each sees its own columns


def together(method):
    """A pass over a ColumnTape is done by all processes; over any other tape each does the MLP's on its own."""

    @functools.wraps(method)
    def choose(self, x, tape, *arguments, **named):
        chosen = method if isinstance(tape, ColumnTape) else getattr(MLP, method.__name__)
        return chosen(self, x, tape, *arguments, **named)

    return choose


class ColumnMLP(MLP):
    """An MLP, on a CPU, that the processes of ``team`` (a parallel.Columns) train together.

    Passes over a ``training_tape`` are called by all of them, in the same order and with equal arguments.
    """

    def __init__(self, layers, team, dtype):
        super().__init__(layers, np, dtype)
        self.team, self.stages = team, []
        for i, layer in enumerate(layers):
            halves = [layer.affine, Pick(layer)] if isinstance(layer, Maxout) else [layer]
            self.stages += [Stage(half, i, team) for half in halves]

    def training_tape(self, n):
        return self._in_common(self.tape(n), [()] * len(self.layers))

    def tape_for_backward(self, tape):
        return self._in_common(tape, self.left_by_forward())

    def _in_common(self, tape, left):
        """``tape`` with new arrays for all but what is ``left`` there, column by column; some of them all can see."""

        def new(name, a):
            if name in SEEN_BY_ALL:
                return self.team.memory(a.nbytes).view(a.dtype).reshape((len(a), -1), order="F").reshape(a.shape)
            return a if a.ndim == 1 else empty_batch(np, a.shape, a.dtype, wide=True)

        buffers = [replaced(c, names, new) for c, names in zip(tape.buffers, left, strict=True)]
        return ColumnTape(tape.x, buffers, self.stages)

    @together
    def forward(self, x, tape, rng=None, params=None):
        if x is not tape.x:
            tape.x[...] = x
        for stage, at in self._meeting(tape, forward=True):
            x, p = at.x if stage.product else at.x_own, stage.columns(params or self.params)
            draws = at.drawn is not None and rng and OwnColumns(rng, at.drawn, stage.ins)
            stage.layer.forward(x, p, at.own, draws)
        self.team.wait()
        return tape.out

    @together
    def backward(self, dout, tape, grad=None, need_dx=True):
        lowest, own = 0 if need_dx else self._lowest, dout[:, self.stages[-1].outs]
        for stage, at in self._meeting(tape, lowest=lowest):
            below = need_dx or stage.i > lowest
            at.delta = dout if stage.product else own
            stage.layer.backward(at.delta, at.x_own, stage.rows(self.params), at.own, stage.rows(grad), below)
            dout, own = at.dx, at.dx_own
        if need_dx:
            self.team.wait()
        return dout

    @together
    def tangent(self, xdot, tape):
        stage, at = tape.pairs[0]
        at.xdot, at.xdot_own = xdot, stage.own(xdot)
        for stage, at in self._meeting(tape, forward=True):
            stage.layer.tangent(at.xdot if stage.product else at.xdot_own, stage.columns(self.params), at.own)
        self.team.wait()
        return tape.buffers[-1].tangent

    @together
    def backward_tangent(self, xdot, tape, grad, scratch):
        """xdot: the one that the tangent pass before has seen."""
        e = own = None
        for stage, at in reversed(tape.pairs):
            if stage.product and e is not None:  # all else was complete at the end of the tangent pass
                self.team.wait()
            given = stage.layer.backward_tangent(
                e if stage.product else own, at.delta, at.x_own, at.xdot_own, stage.rows(self.params), at.own,
                stage.rows(grad), stage.rows(scratch), need_e=stage.i > self._lowest,
            )  # fmt: skip
            e, own = (None, None) if given is None else (at.e, at.e_own)

    def _meeting(self, tape, forward=False, lowest=0):
        """(stage, its place on the tape), from first to last or back to the ``lowest`` layer.

        All wait for each other before the first, when others may still read what a pass before this one has left, and
        before each that needs all columns of what comes in.
        """
        first = True
        for stage, at in tape.pairs if forward else reversed(tape.pairs):
            if stage.i < lowest:
                break
            if first or stage.product or (forward and stage.pieces):
                self.team.wait()
                first = False
            yield stage, at


class Stage:
    """What one process does of a layer, or of half of one, with the number ``i`` in its network.

    ``ins`` and ``outs``: its columns of what comes in and of what goes out.
    """

    def __init__(self, layer, i, team):
        self.layer, self.i, self.product = layer, i, isinstance(layer, Linear)
        self.ins, self.outs = team.columns(layer.n_in), team.columns(layer.n_out)
        self.pieces = getattr(layer, "pieces", None)  # only a Pick has any

    def columns(self, vector):
        """(W, b) for the forward pass: its columns of what goes out."""
        return [a[..., self.outs] for a in vector.layers[self.i]] if self.product else ()

    def rows(self, vector):
        """(W, b) for the backward pass: its rows of W, one for each of its columns of what comes in."""
        if not self.product or vector is None:
            return None
        W, b = vector.layers[self.i]
        return W[self.ins], b

    def own(self, a):
        """Its columns of what comes in, (n, in), or of each of the pieces that lie side by side there."""
        return a[:, self.ins] if self.pieces is None else a.reshape(len(a), self.pieces, -1)[..., self.ins]

    def own_array(self, name, a):
        """Its columns of one of the layer's arrays; a vector is for all of them."""
        return a if a.ndim == 1 else a[..., self.ins if name in ("dx", "e") else self.outs]


class Pick:
    """The second half of a Maxout: the maximum over the pieces of its product."""

    def __init__(self, maxout):
        self.maxout, self.pieces = maxout, maxout.pieces
        self.n_in = self.n_out = maxout.n_out  # columns of each piece

    def forward(self, x, p, c, rng=None):
        self.maxout.pick(x, c)

    def backward(self, dout, x, p, c, g=None, need_dx=True):
        self.maxout.to_winners(dout, c, c.da)

    def tangent(self, xdot, p, c):
        self.maxout.from_winners(xdot, c)

    def backward_tangent(self, e, delta, x, xdot, p, c, g, scratch, need_e):
        return None if e is None else self.maxout.to_winners(e, c, c.de)


class ColumnTape(Tape):
    """A Tape of which each process fills its columns. ``pairs``: each Stage, and what lies here for it."""

    def __init__(self, x, buffers, stages):
        super().__init__(x, buffers)
        self.pairs, tangent = [], None
        for stage in stages:
            c = buffers[stage.i]
            if isinstance(stage.layer, Pick):
                at = SimpleNamespace(dx=c.da.reshape(len(x), -1), e=c.de.reshape(len(x), -1), out=c.out)
            else:
                c = getattr(c, "affine", c)
                at = SimpleNamespace(dx=c.dx, e=c.e, out=c.out)
            at.x, at.xdot = x, tangent
            at.own = replaced(c, ("affine",), stage.own_array)
            at.x_own, at.dx_own, at.e_own = map(stage.own, (at.x, at.dx, at.e))
            at.xdot_own = None if tangent is None else stage.own(tangent)
            # NumPy draws in the order of memory, so this lies as it would for one process alone.
            at.drawn = empty_batch(np, x.shape, c.uniform.dtype) if isinstance(stage.layer, Dropout) else None
            self.pairs.append((stage, at))
            x, tangent = at.out, c.tangent


class OwnColumns:
    """A random generator that draws all columns, into ``drawn`` (n, all), and gives some of them."""

    def __init__(self, rng, drawn, columns):
        self.rng, self.drawn, self.columns = rng, drawn, columns

    def random(self, dtype, out):
        self.rng.random(dtype=dtype, out=self.drawn)
        out[...] = self.drawn[:, self.columns]
