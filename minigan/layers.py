"""The layers, each a pair of hand-written passes: ``forward`` and ``backward``.

A layer object holds sizes, never data. Its parameters come in as ``p`` (views of the network's flat
vector), what a pass leaves for the next one lies in ``c`` (its place on a tape, see mlp.py), and
gradients go out through ``g`` (the same views of a gradient vector). Four passes:

    forward           x           -> out          the value
    backward          dL/dout     -> dL/dx        and dL/dp into g, each only if asked for (reverse mode, a vjp)
    tangent           xdot        -> outdot       the directional derivative (dout/dx) xdot (forward mode, a jvp)
    backward_tangent  e, delta    -> e below      backward through ``tangent`` (reverse over forward); R1 needs it

Of a layer's output, ``delta`` is the gradient that ``backward`` sent into it, and ``e`` the gradient that
reaches its value through the curvature of layers above (None: zero); ``scratch`` is a vector to work in.
``leaves`` names what ``forward`` writes to ``c`` beside ``out`` for the other passes, if it does.

All arrays have the batch as their first axis. ``n`` rows, ``in`` and ``out`` columns. Every array is
allocated once, in ``buffers`` (or where a tape needs others, see mlp.py), and each pass writes into it, so the passes
allocate nothing. How the arrays lie in memory changes only the speed: see ``backend.empty_batch``.

On a CPU the fastest way through an element-wise pass is a few vectorised functions; on a GPU it is a kernel of its own,
the same formula in C.
"""

from types import SimpleNamespace

import numpy as np

from minigan.backend import empty_batch


def batch_arrays(xp, dtype, **shapes):
    """Named uninitialised arrays for a batch. Memory that is never written costs nothing on a CPU."""
    return SimpleNamespace(**{name: empty_batch(xp, shape, dtype) for name, shape in shapes.items()})


def kernel_on_gpu(xp, inputs, outputs, operation):
    """A CuPy kernel that does ``operation`` for each element, None on NumPy; T: the arrays' type."""
    if xp is np:
        return None
    typed = lambda names: ", ".join(f"T {name}" for name in names.split())
    return xp.ElementwiseKernel(typed(inputs), typed(outputs), operation, name="layer")


class Linear:
    """out = x W + b, with W (in, out) and b (out,)."""

    def __init__(self, n_in, n_out, xp=np):
        self.n_in, self.n_out, self.xp, self.matmul = n_in, n_out, xp, xp.matmul
        self.shapes = (n_in, n_out), (n_out,)

    def buffers(self, n, dtype):
        c = batch_arrays(
            self.xp, dtype, out=(n, self.n_out), tangent=(n, self.n_out), dx=(n, self.n_in), e=(n, self.n_in)
        )
        c.ones = self.xp.ones(n, dtype)
        return c

    def forward(self, x, p, c, rng=None):
        W, b = p
        self.matmul(x, W, out=c.out)
        c.out += b
        return c.out

    def backward(self, dout, x, p, c, g=None, need_dx=True):
        if g is not None:
            self._parameter_gradient(dout, x, c, g)
        return self._input_gradient(dout, p, c.dx) if need_dx else None

    def tangent(self, xdot, p, c):
        return self.matmul(xdot, p[0], out=c.tangent)

    def backward_tangent(self, e, delta, x, xdot, p, c, g, scratch, need_e):
        """outdot = xdot W is linear in W too: dW += xdotᵀ delta. ``e`` is then an ordinary ``dout``."""
        self.matmul(xdot.T, delta, out=scratch[0])
        g[0][...] += scratch[0]
        if e is None:
            return None
        self._parameter_gradient(e, x, c, scratch)
        g[0][...] += scratch[0]
        g[1][...] += scratch[1]
        return self._input_gradient(e, p, c.e) if need_e else None

    def _parameter_gradient(self, dout, x, c, g):
        """dW = xᵀ dout (in, out), db = column sums of dout (a product with ones is the fastest sum)."""
        self.matmul(x.T, dout, out=g[0])
        self.matmul(c.ones, dout, out=g[1])

    def _input_gradient(self, dout, p, out):
        """dx = dout Wᵀ (n, in)."""
        if self.n_out == 1:
            return self._outer(dout, p[0].T, out)
        return self.matmul(dout, p[0].T, out=out)

    def _outer(self, a, b, out):
        """The same product for a layer with one output: a (n, 1) times b (1, in), an outer product.

        NumPy's matmul has no BLAS for it. Its dot has, if ``out`` lies row by row, or else is transposed.
        """
        if self.xp is not np or not (out.flags.c_contiguous or out.flags.f_contiguous):  # or some rows of a wide tape
            return self.xp.multiply(a, b, out=out)
        if out.flags.c_contiguous:
            return np.dot(a, b, out=out)
        np.dot(b.T, a.T, out=out.T)
        return out


class Maxout:
    """out = max over pieces j of (x W_j + b_j): Goodfellow et al., 2013, arXiv 1302.4389, eq. 2.

    W is (in, pieces * units) with the pieces side by side, so that all of them are one product.
    """

    leaves = ("wins",)

    def __init__(self, n_in, n_out, pieces, xp=np):
        self.n_in, self.n_out, self.pieces, self.xp = n_in, n_out, pieces, xp
        self.affine = Linear(n_in, pieces * n_out, xp)
        self.shapes = self.affine.shapes
        self.pick_kernel, self.tangent_kernel = (None, None) if xp is np else self._kernels()

    def buffers(self, n, dtype):
        shape, by_piece = (n, self.n_out), (n, self.pieces, self.n_out)
        c = batch_arrays(self.xp, dtype, out=shape, tangent=shape, piece=shape, wins=by_piece, da=by_piece, de=by_piece)
        c.affine = self.affine.buffers(n, dtype)
        # Linear has chosen how these lie by all its columns; the arrays that they meet went by the units.
        c.affine.out = empty_batch(self.xp, by_piece, dtype).reshape(n, -1)
        c.affine.tangent = empty_batch(self.xp, by_piece, dtype).reshape(n, -1)
        if self.xp is np:
            c.win, c.taken = empty_batch(np, shape, bool), empty_batch(np, shape, bool)
        return c

    def forward(self, x, p, c, rng=None):
        """Also notes which piece gave each unit its value, for all the passes that follow."""
        if self.pick_kernel:
            W, b = p
            a = self.affine.matmul(x, W, out=c.affine.out)
            self.pick_kernel(*self._pieces(a), *self._pieces(b[None]), c.out, *self._pieces(c.wins))
        else:
            self.pick(self._by_piece(self.affine.forward(x, p, c.affine)), c)
        return c.out

    def backward(self, dout, x, p, c, g=None, need_dx=True):
        da = self.to_winners(dout, c, c.da).reshape(len(dout), -1)
        return self.affine.backward(da, x, p, c.affine, g, need_dx)

    def tangent(self, xdot, p, c):
        return self.from_winners(self._by_piece(self.affine.tangent(xdot, p, c.affine)), c)

    def backward_tangent(self, e, delta, x, xdot, p, c, g, scratch, need_e):
        delta = c.da.reshape(len(c.da), -1)  # what the backward pass left there
        if e is not None:
            e = self.to_winners(e, c, c.de).reshape(len(e), -1)
        return self.affine.backward_tangent(e, delta, x, xdot, p, c.affine, g, scratch, need_e)

    def _by_piece(self, a):
        return a.reshape(len(a), self.pieces, self.n_out)

    def _pieces(self, a):
        """A view (n, units) of each piece."""
        a = self._by_piece(a)
        return [a[:, j] for j in range(self.pieces)]

    def pick(self, a, c):
        """The maximum of a (n, pieces, units), and wins[n, j, i] = 1 where piece j gave it to unit i, else 0; on a tie
        only the first one."""
        c.out[...] = a[:, 0]
        for j in range(1, self.pieces):
            self.xp.maximum(c.out, a[:, j], out=c.out)
        c.taken[...] = False
        for j in range(self.pieces):
            self.xp.equal(a[:, j], c.out, out=c.win)
            c.wins[:, j] = self.xp.greater(c.win, c.taken, out=c.win)
            self.xp.logical_or(c.taken, c.win, out=c.taken)

    def _kernels(self):
        """On a GPU: ``pick``, the biases included, and ``from_winners`` in one kernel each. For each unit it does all
        pieces, one after another; NumPy is several times slower that way round."""
        a, b, wins = ([f"{name}{j}" for j in range(self.pieces)] for name in ("a", "b", "win"))
        sums = [f"({x} + {bias})" for x, bias in zip(a, b, strict=True)]
        pick = [f"out = {sums[0]}", *(f"out = max(out, {value})" for value in sums[1:])]
        pick += [f"{wins[j]} = T({sums[j]} == out) * ({' - '.join(['1', *wins[:j]])})" for j in range(self.pieces)]
        tangent = " + ".join(f"{x} * {win}" for x, win in zip(a, wins, strict=True))
        return (
            kernel_on_gpu(self.xp, " ".join(a + b), " ".join(["out", *wins]), "; ".join(pick)),
            kernel_on_gpu(self.xp, " ".join(a + wins), "out", f"out = {tangent}"),
        )

    def to_winners(self, dout, c, out):
        """dout (n, units) where a piece gave a unit its value, else 0: (n, pieces, units)."""
        return self.xp.multiply(dout[:, None], c.wins, out=out)

    def from_winners(self, a, c):
        """(n, units): what a (n, pieces, units) has for the pieces that gave the units their values."""
        if self.tangent_kernel:
            return self.tangent_kernel(*self._pieces(a), *self._pieces(c.wins), c.tangent)
        self.xp.multiply(a[:, 0], c.wins[:, 0], out=c.tangent)
        for j in range(1, self.pieces):
            self.xp.multiply(a[:, j], c.wins[:, j], out=c.piece)
            self.xp.add(c.tangent, c.piece, out=c.tangent)
        return c.tangent


class Dropout:
    """Keeps each input with probability ``keep`` and divides it by ``keep``; with rng=None it does nothing.

    Inverted dropout: that of Srivastava et al., 2014, who multiply by ``keep`` afterwards instead. The mask of the
    last forward pass serves all passes that follow it.
    """

    shapes = ()
    leaves = ("mask",)

    def __init__(self, n_in, keep, xp=np):
        self.n_in = self.n_out = n_in
        self.keep, self.xp = keep, xp
        self.kernel = kernel_on_gpu(
            xp, "x uniform keep scale", "mask out", "mask = T(uniform < keep) * scale; out = x * mask"
        )

    def buffers(self, n, dtype):
        shape = n, self.n_in
        c = batch_arrays(self.xp, dtype, out=shape, tangent=shape, dx=shape, e=shape)
        c.uniform = empty_batch(self.xp, shape, np.float64 if np.dtype(dtype).itemsize > 4 else np.float32)
        c.kept = empty_batch(self.xp, shape, bool)
        c.mask = empty_batch(self.xp, shape, c.uniform.dtype)
        return c

    def forward(self, x, p, c, rng=None):
        if rng is None:
            c.mask[...] = 1
        else:
            rng.random(dtype=c.uniform.dtype, out=c.uniform)
            if self.kernel:
                self.kernel(x, c.uniform, self.keep, 1 / self.keep, c.mask, c.out)
                return c.out
            c.mask[...] = self.xp.less(c.uniform, self.keep, out=c.kept)
            c.mask *= 1 / self.keep
        return self.xp.multiply(x, c.mask, out=c.out)

    def backward(self, dout, x, p, c, g=None, need_dx=True):
        return self.xp.multiply(dout, c.mask, out=c.dx) if need_dx else None

    def tangent(self, xdot, p, c):
        return self.xp.multiply(xdot, c.mask, out=c.tangent)

    def backward_tangent(self, e, delta, x, xdot, p, c, g, scratch, need_e):
        return None if e is None else self.xp.multiply(e, c.mask, out=c.e)


class Fourier:
    """out = [x, sin x, cos x, sin 2x, cos 2x, sin 4x, cos 4x, ...] with so many octaves: a first layer for fine detail.

    A plain network learns what varies over short distances last (Tancik et al., 2020; the frequencies are those of
    Mildenhall et al., 2020, eq. 4, without their factor π). It has no parameters; x itself stays among the features.
    The last ``beside`` columns, one-hot labels for example, have no detail: they go through as they are.
    """

    shapes = ()

    def __init__(self, n_in, octaves, xp=np, beside=0):
        self.groups = 1 + 2 * octaves  # of n_x columns each: x, then a sine and a cosine of each octave
        self.n_x, self.n_waves = n_in - beside, (n_in - beside) * self.groups
        self.n_in, self.n_out = n_in, self.n_waves + beside
        self.octaves, self.xp = octaves, xp

    def buffers(self, n, dtype):
        like_x, like_out, by_group = (n, self.n_in), (n, self.n_out), (n, self.groups, self.n_x)
        c = batch_arrays(self.xp, dtype, out=like_out, tangent=like_out, dx=like_x, e=like_x)
        c.slope = empty_batch(self.xp, by_group, dtype, wide=n < self.n_out)
        c.product = empty_batch(self.xp, by_group, dtype, wide=n < self.n_out)
        return c

    def forward(self, x, p, c, rng=None):
        c.out[:, self.n_waves :] = x[:, self.n_x :]
        out, x = self._by_group(c.out), x[:, : self.n_x]
        out[:, 0] = x
        for k in range(self.octaves):
            angle = self.xp.multiply(x, 2.0**k, out=c.dx[:, : self.n_x])
            self.xp.sin(angle, out=out[:, 1 + 2 * k])
            self.xp.cos(angle, out=out[:, 2 + 2 * k])
        return c.out

    def backward(self, dout, x, p, c, g=None, need_dx=True):
        if not need_dx:
            return None
        out = self._by_group(c.out)
        c.slope[:, 0] = 1
        for k in range(self.octaves):
            self.xp.multiply(out[:, 2 + 2 * k], 2.0**k, out=c.slope[:, 1 + 2 * k])
            self.xp.multiply(out[:, 1 + 2 * k], -(2.0**k), out=c.slope[:, 2 + 2 * k])
        self.xp.multiply(self._by_group(dout), c.slope, out=c.product)
        c.product.sum(axis=1, out=c.dx[:, : self.n_x])
        c.dx[:, self.n_x :] = dout[:, self.n_waves :]
        return c.dx

    def tangent(self, xdot, p, c):
        self.xp.multiply(c.slope, xdot[:, None, : self.n_x], out=self._by_group(c.tangent))
        c.tangent[:, self.n_waves :] = xdot[:, self.n_x :]
        return c.tangent

    def backward_tangent(self, e, delta, x, xdot, p, c, g, scratch, need_e):
        """outdot = slope xdot depends on x: sin'' = -4ᵏ sin and cos'' = -4ᵏ cos; and e comes down as dout does."""
        if not need_e:
            return None
        out = self._by_group(c.out)
        c.product[:, 0] = 0
        for k in range(self.octaves):
            self.xp.multiply(out[:, 1 + 2 * k : 3 + 2 * k], -(4.0**k), out=c.product[:, 1 + 2 * k : 3 + 2 * k])
        c.product *= self._by_group(delta)
        c.product *= xdot[:, None, : self.n_x]
        if e is not None:
            c.slope *= self._by_group(e)
            c.product += c.slope
        return c.product.sum(axis=1, out=c.e)  # weights lie below, so none of its columns are ``beside``

    def _by_group(self, a):
        return a[:, : self.n_waves].reshape(len(a), self.groups, self.n_x)


class LeakyReLU:
    """out = max(x, slope x), element by element; 0 <= slope < 1."""

    shapes = ()

    def __init__(self, n_in, slope=0.2, xp=np):
        self.n_in = self.n_out = n_in
        self.slope, self.xp = slope, xp
        self.forward_kernel = kernel_on_gpu(xp, "x slope", "out", "out = max(x, slope * x)")
        self.biased_kernel = kernel_on_gpu(xp, "b slope", "x out", "x = x + b; out = max(x, slope * x)")
        self.backward_kernel = kernel_on_gpu(
            xp, "x dout slope", "derivative dx", "derivative = max(T(x > 0), slope); dx = dout * derivative"
        )

    def buffers(self, n, dtype):
        shape = n, self.n_in
        c = batch_arrays(self.xp, dtype, out=shape, tangent=shape, dx=shape, e=shape)
        if self.xp is np:
            c.positive = empty_batch(np, shape, bool)
        else:
            c.derivative = self.xp.empty(shape, dtype)
        return c

    def forward(self, x, p, c, rng=None):
        if self.forward_kernel:
            self.forward_kernel(x, self.slope, c.out)
            return c.out
        self.xp.multiply(x, self.slope, out=c.out)
        return self.xp.maximum(x, c.out, out=c.out)

    def forward_biased(self, b, x, p, c, rng=None):
        """On a GPU: add b (columns,) to x, and ``forward``, in one kernel."""
        self.biased_kernel(b, self.slope, x, c.out)
        return c.out

    def backward(self, dout, x, p, c, g=None, need_dx=True):
        """dx = dout where x > 0, else slope dout. Leaves where x > 0 for the passes that follow."""
        if self.backward_kernel:
            self.backward_kernel(x, dout, self.slope, c.derivative, c.dx)
            return c.dx
        np.greater(x, 0, out=c.positive)
        return self._times_derivative(dout, c, c.dx)

    def tangent(self, xdot, p, c):
        return self._times_derivative(xdot, c, c.tangent)

    def backward_tangent(self, e, delta, x, xdot, p, c, g, scratch, need_e):
        return None if e is None else self._times_derivative(e, c, c.e)  # no curvature

    def _times_derivative(self, a, c, out):
        """a φ'(x): a where x > 0, else slope a. ``a`` and ``out`` are different arrays.

        On a CPU the derivative is made in ``out``, for another array would have to be read from beyond the caches.
        ``clip`` is vectorised; a maximum with a number is not, and ``where`` or a product with a mask is slower still.
        """
        if self.backward_kernel:
            return self.xp.multiply(a, c.derivative, out=out)
        out[...] = c.positive  # the derivative: 1 where x > 0, else 0,
        if self.slope:
            out.clip(self.slope, 1, out=out)  # or else the slope
        return np.multiply(a, out, out=out)


class ReLU(LeakyReLU):
    """out = max(x, 0), element by element."""

    def __init__(self, n_in, xp=np):
        super().__init__(n_in, 0.0, xp)

    def forward(self, x, p, c, rng=None):
        if self.xp is np:
            return x.clip(0, np.inf, out=c.out)  # faster than a maximum with a number
        return self.xp.maximum(x, 0, out=c.out)


class _Smooth:
    """What Tanh and Sigmoid share: φ' and φ'' are functions of the output, and φ'' is not zero."""

    shapes = ()

    def __init__(self, n_in, xp=np):
        self.n_in = self.n_out = n_in
        self.xp = xp
        self.forward_kernel = self.backward_kernel = None
        if "ON_GPU" in vars(type(self)):  # a subclass has other formulas
            value, derivative = self.ON_GPU
            self.forward_kernel = kernel_on_gpu(xp, "x", "out", f"out = {value}")
            self.biased_kernel = kernel_on_gpu(xp, "b", "x out", f"x = x + b; out = {value}")
            self.backward_kernel = kernel_on_gpu(
                xp, "out dout", "derivative dx", f"derivative = {derivative}; dx = dout * derivative"
            )

    def forward(self, x, p, c, rng=None):
        if self.forward_kernel:
            self.forward_kernel(x, c.out)
            return c.out
        return self._forward(x, c)

    def forward_biased(self, b, x, p, c, rng=None):
        """On a GPU: add b (columns,) to x, and ``forward``, in one kernel."""
        self.biased_kernel(b, x, c.out)
        return c.out

    def buffers(self, n, dtype):
        shape = n, self.n_in
        return batch_arrays(self.xp, dtype, out=shape, tangent=shape, dx=shape, e=shape, derivative=shape)

    def backward(self, dout, x, p, c, g=None, need_dx=True):
        if self.backward_kernel:
            self.backward_kernel(c.out, dout, c.derivative, c.dx)
            return c.dx
        self._derivative(c)
        return self.xp.multiply(dout, c.derivative, out=c.dx)

    def tangent(self, xdot, p, c):
        return self.xp.multiply(xdot, c.derivative, out=c.tangent)

    def backward_tangent(self, e, delta, x, xdot, p, c, g, scratch, need_e):
        """outdot = φ'(x) xdot depends on x: its gradient there is delta φ''(x) xdot, and e φ'(x) joins it."""
        self._second_derivative(c)
        c.e *= delta
        c.e *= xdot
        if e is not None:
            c.derivative *= e
            c.e += c.derivative
        return c.e


class Tanh(_Smooth):
    """out = tanh(x), with φ' = 1 - out² and φ'' = -2 out φ'."""

    ON_GPU = "tanh(x)", "1 - out * out"

    def _forward(self, x, c):
        return self.xp.tanh(x, out=c.out)

    def _derivative(self, c):
        self.xp.multiply(c.out, c.out, out=c.derivative)
        self.xp.subtract(1, c.derivative, out=c.derivative)

    def _second_derivative(self, c):
        self.xp.multiply(c.out, -2, out=c.e)
        c.e *= c.derivative


class Sigmoid(_Smooth):
    """out = 1 / (1 + exp(-x)), with φ' = out (1 - out) and φ'' = (1 - 2 out) φ'."""

    ON_GPU = "T(0.5) * (1 + tanh(T(0.5) * x))", "(1 - out) * out"

    def _forward(self, x, c):
        """By tanh: σ(x) = (1 + tanh(x/2)) / 2 cannot overflow, and it is one vectorised function."""
        self.xp.multiply(x, 0.5, out=c.out)
        self.xp.tanh(c.out, out=c.out)
        c.out += 1
        c.out *= 0.5
        return c.out

    def _derivative(self, c):
        self.xp.subtract(1, c.out, out=c.derivative)
        c.derivative *= c.out

    def _second_derivative(self, c):
        self.xp.multiply(c.out, -2, out=c.e)
        c.e += 1
        c.e *= c.derivative
