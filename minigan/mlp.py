"""A multilayer perceptron over one flat parameter vector, and the tapes its passes write on.

``theta`` is one contiguous array; every W and b is a view of it. A gradient is another vector of the
same length with the same views. So an optimiser's step, a copy and an average are a few operations on whole vectors,
a checkpoint has one array for each network, and a finite difference perturbs theta[i].
"""

import math
from types import SimpleNamespace

import numpy as np

from minigan.backend import empty_batch, zeros
from minigan.errors import MiniganError
from minigan.layers import Dropout, Fourier, LeakyReLU, Linear, Maxout, ReLU, Sigmoid, Tanh

ACTIVATIONS = {"relu": ReLU, "leaky_relu": LeakyReLU, "tanh": Tanh, "sigmoid": Sigmoid}


class Vector:
    """A flat vector over all parameters of a network: ``flat`` (size,), and ``layers``, its views.

    ``layers[i]`` is (W, b) for a layer with parameters and () for one without. With ``overlapping`` there is room for
    one layer at a time: the views of all begin at 0; in ``room``, a vector, if that is given and long enough.
    """

    def __init__(self, layers, xp, dtype, overlapping=False, room=()):
        self.shapes, self.overlapping = [layer.shapes for layer in layers], overlapping
        sizes = [sum(map(math.prod, shapes)) for shapes in self.shapes]
        size = max(sizes) if overlapping else sum(sizes)
        self.lie_in(room[:size] if 0 < size <= len(room) else zeros(xp, (size,), dtype))

    def lie_in(self, flat):
        """Let ``flat`` (size,) be this vector from now on, with whatever it holds."""
        self.flat, self.layers, start = flat, [], 0
        for shapes in self.shapes:
            views, start = [], 0 if self.overlapping else start
            for shape in shapes:
                end = start + math.prod(shape)
                views.append(flat[start:end].reshape(shape))
                start = end
            self.layers.append(tuple(views))


class Tape:
    """What one forward pass leaves for the passes after it, for a batch of ``n`` rows.

    ``x`` (n, in) is the input and may be written to directly; ``out`` (n, out) the output. The caller holds
    the tape, so a second batch on a second tape cannot overwrite what the first one still needs.
    ``tape[rows]`` is the same tape seen through a slice of its rows: views, no copies. A forward pass with dropout
    needs a whole tape: NumPy draws only into arrays in one piece, and raises ValueError for others.
    """

    def __init__(self, x, buffers):
        self.x, self.buffers, self.out = x, buffers, buffers[-1].out
        self.inputs = [x] + [c.out for c in buffers[:-1]]  # of every layer, in order
        self.deltas = [None] * len(buffers)  # the gradient that the last backward pass sent into each layer's output

    def __getitem__(self, rows):
        return Tape(self.x[rows], [_rows(c, rows) for c in self.buffers])


def _rows(c, rows):
    """A layer's buffers seen through a slice of their rows."""
    views = {k: _rows(v, rows) if isinstance(v, SimpleNamespace) else v[rows] for k, v in vars(c).items()}
    return SimpleNamespace(**views)


def replaced(c, left, new):
    """A layer's buffers with new(name, array) in place of every array, but for those with a name in ``left``."""
    result = {}
    for name, a in vars(c).items():
        if name in left:
            result[name] = a
        else:
            result[name] = replaced(a, left, new) if isinstance(a, SimpleNamespace) else new(name, a)
    return SimpleNamespace(**result)


class MLP:
    """Layers one after another. Shapes: x (n, n_in) -> (n, n_out).

    ``params`` is the Vector of weights, ``theta`` its flat array.
    """

    def __init__(self, layers, xp=np, dtype=np.float32):
        self.layers, self.xp, self.dtype = layers, xp, np.dtype(dtype)
        self.n_in, self.n_out = layers[0].n_in, layers[-1].n_out
        self.params = self.vector()
        # The lowest layer with weights: the parameter gradient needs no backward pass below it.
        self._lowest = min((i for i, layer in enumerate(layers) if layer.shapes), default=len(layers))

    @property
    def theta(self):
        return self.params.flat

    def vector(self):
        """A new Vector of zeros with this network's shapes: a gradient, a velocity, an average."""
        return Vector(self.layers, self.xp, self.dtype)

    def scratch(self, room=()):
        """Room for the gradient of one layer at a time, as R1's last pass needs it; in ``room`` if there is enough."""
        return Vector(self.layers, self.xp, self.dtype, True, room)

    def tape(self, n):
        """A new Tape for batches of n rows."""
        x = empty_batch(self.xp, (n, self.n_in), self.dtype)
        return Tape(x, [layer.buffers(n, self.dtype) for layer in self.layers])

    def training_tape(self, n):
        """A Tape to train on. Other than ``tape`` where several processes train one network, see columns.py."""
        return self.tape(n)

    def tape_for_backward(self, tape):
        """``tape``, some rows of another whose forward pass is done: a Tape with the same x and what ``forward`` left.

        What the other passes write lies in one piece there: some rows of an array that lies column by column do not,
        and NumPy takes three times as long over them. On a GPU it lies apart, so that G's and D's passes can run at the
        same time.
        """

        def new(name, a):
            in_one_piece = a.flags.c_contiguous or a.flags.f_contiguous
            return a if self.xp is np and in_one_piece else empty_batch(self.xp, a.shape, a.dtype, wide=True)

        buffers = [replaced(c, left, new) for c, left in zip(tape.buffers, self.left_by_forward(), strict=True)]
        return Tape(tape.x, buffers)

    def left_by_forward(self):
        """The names of what ``forward`` leaves for the other passes in each layer's buffers."""
        return [("out", "ones", *getattr(layer, "leaves", ())) for layer in self.layers]

    def initialise(self, rng, scheme="he"):
        """Draw W on the host, so that every backend starts from equal weights; b = 0.

        ``scheme``: "he" (W ~ N(0, 2/in), He et al. 2015, eq. 10), "glorot" (U(±sqrt(6/(in+out))), Glorot and
        Bengio 2010, eq. 16), or a number a for U(±a), as the 2014 paper's code has it.
        """
        for layer, p in zip(self.layers, self.params.layers, strict=True):
            if not p:
                continue
            W, b = p
            if scheme == "he":
                values = rng.standard_normal(W.shape) * math.sqrt(2 / layer.n_in)
            else:
                bound = math.sqrt(6 / (layer.n_in + layer.n_out)) if scheme == "glorot" else float(scheme)
                values = rng.uniform(-bound, bound, W.shape)
            W[...] = self.xp.asarray(values.astype(self.dtype))
            b[...] = 0

    def forward(self, x, tape, rng=None, params=None):
        """The output (n, n_out) for x (n, n_in), written on ``tape``.

        rng draws the dropout masks; None means no dropout. ``params`` replaces the network's own weights.
        x is copied to the tape, so that it may be changed afterwards; but not if it is ``tape.x`` itself.
        """
        if x is not tape.x:
            tape.x[...] = x
        x = tape.x
        for layer, p, c in zip(self.layers, (params or self.params).layers, tape.buffers, strict=True):
            x = layer.forward(x, p, c, rng)
        return x

    def backward(self, dout, tape, grad=None, need_dx=True):
        """Given dL/d(out) (n, n_out): dL/dθ into ``grad`` (overwritten) if given; returns dL/dx (n, n_in), or with
        need_dx=False nothing of use.

        D's own loss needs only the first; G's loss, which goes through D, and the gradient penalty only the second.
        """
        for i in reversed(range(0 if need_dx else self._lowest, len(self.layers))):
            g = grad.layers[i] if grad is not None else None
            below = need_dx or i > self._lowest
            tape.deltas[i] = dout
            dout = self.layers[i].backward(dout, tape.inputs[i], self.params.layers[i], tape.buffers[i], g, below)
        return dout

    def tangent(self, xdot, tape):
        """The directional derivative of the output along xdot (n, n_in); after ``backward`` on the same tape."""
        for layer, p, c in zip(self.layers, self.params.layers, tape.buffers, strict=True):
            xdot = layer.tangent(xdot, p, c)
        return xdot

    def backward_tangent(self, xdot, tape, grad, scratch):
        """Add to ``grad`` the gradient of sum(dout * tangent(xdot)), with xdot and the last backward's dout constant.

        A layer passes down ``e``, the part that reaches the value itself; it is None (zero) until the first layer with
        curvature, from above.
        """
        e = None
        xdots = [xdot] + [c.tangent for c in tape.buffers[:-1]]
        for i in reversed(range(len(self.layers))):
            e = self.layers[i].backward_tangent(
                e, tape.deltas[i], tape.inputs[i], xdots[i], self.params.layers[i], tape.buffers[i],
                grad.layers[i], scratch.layers[i], need_e=i > self._lowest,
            )  # fmt: skip


def parse_layers(text, n_in, n_out, output=None, xp=np, beside=0):
    """Layers from a text such as "dropout 0.8, maxout 240x5, 128, leaky_relu 0.2, tanh".

    A number is a Linear layer of that width. A Linear layer to n_out, and ``output`` (the name of an
    activation) if given, are added at the end. The last ``beside`` of the n_in columns are labels, which a Fourier
    layer passes on, until weights have mixed them with the others. Raises MiniganError, naming the word that was
    not understood.
    """
    layers, width = [], n_in
    for part in filter(None, (part.strip() for part in text.split(","))):
        mixed = any(layer.shapes for layer in layers)
        layers.append(_parse_layer(part, width, xp, 0 if mixed else beside))
        width = layers[-1].n_out
    layers.append(Linear(width, n_out, xp))
    if output:
        layers.append(ACTIVATIONS[output](n_out, xp=xp))
    return layers


def _parse_layer(part, width, xp, beside):
    try:
        match part.split():
            case [units] if units.isdigit() and int(units) > 0:
                return Linear(width, int(units), xp)
            case ["leaky_relu", slope] if 0 <= float(slope) < 1:
                return LeakyReLU(width, float(slope), xp)
            case ["fourier", octaves] if 0 < int(octaves) <= 16:
                return Fourier(width, int(octaves), xp, beside)
            case ["dropout", keep] if 0 < float(keep) <= 1:
                return Dropout(width, float(keep), xp)
            case ["maxout", size] if min(map(int, size.split("x"))) > 0:
                units, pieces = map(int, size.split("x"))
                return Maxout(width, units, pieces, xp)
            case [name]:
                return ACTIVATIONS[name](width, xp=xp)
    except (ValueError, KeyError):
        pass
    raise MiniganError(
        f"layer '{part}' is not understood; write layers as '256, relu', with a width, relu, leaky_relu 0.2, "
        "tanh, sigmoid, dropout KEEP (0-1], maxout UNITSxPIECES or fourier OCTAVES"
    )
