"""Ten steps of training beside a second implementation: textbook, float64, nothing shared with the library.

It makes every array anew, keeps no tape, writes the losses in D(x) as the 2014 paper does, loops over layers, runs
the real and the fake rows apart, and builds R1's gradient from the explicit Jacobian, row by row.
"""

import numpy as np
import pytest

from minigan.gan import GAN

SLOPE = 0.2  # of D's LeakyReLU; G has ReLU, slope 0


def forward(layers, x, slope):
    """Inputs and pre-activations of all layers, and the output, for a list of [W, b]."""
    inputs, values = [], []
    for i, (W, b) in enumerate(layers):
        inputs.append(x)
        a = x @ W + b
        values.append(a)
        x = a if i == len(layers) - 1 else np.where(a > 0, a, slope * a)
    return inputs, values, x


def backward(layers, inputs, values, dout, slope):
    """(gradient of every [W, b], gradient of the input) from the gradient of the output."""
    gradients = []
    for i in reversed(range(len(layers))):
        if i < len(layers) - 1:
            dout = dout * np.where(values[i] > 0, 1.0, slope)
        gradients.insert(0, [inputs[i].T @ dout, dout.sum(0)])
        dout = dout @ layers[i][0].T
    return gradients, dout


def sigmoid(s):
    return 1 / (1 + np.exp(-s))


def r1_gradient(layers, x, gamma):
    """d/dW of gamma / 2m * sum over rows of |J|², where J = A W B is the gradient of D's logit in the row x.

    J is a product of matrices: W_1 S_1 W_2 S_2 ... W_L, with S the slopes on a diagonal. For one of them, A W B with A
    all that comes before and B all that comes after, the derivative of |A W B|²/2 is Aᵀ (A W B) Bᵀ.
    """
    total = [[np.zeros_like(W), np.zeros_like(b)] for W, b in layers]
    for row in x:
        _, values, _ = forward(layers, row[None], SLOPE)
        slopes = [np.diag(np.where(a[0] > 0, 1.0, SLOPE)) for a in values[:-1]] + [np.eye(1)]
        chain = [(W, S) for (W, _), S in zip(layers, slopes, strict=True)]
        for i in range(len(chain)):
            A = np.eye(len(row))
            for W, S in chain[:i]:
                A = A @ W @ S
            B = chain[i][1]
            for W, S in chain[i + 1 :]:
                B = B @ W @ S
            J = A @ chain[i][0] @ B
            total[i][0] += gamma / len(x) * A.T @ J @ B.T
    return total


def discriminator_gradient(G, D, x_real, z, gamma):
    """Of -(mean log D(x) + mean log(1 - D(G(z)))) + R1."""
    m = len(x_real)
    x_fake = forward(G, z, 0.0)[2]
    inputs, values, s = forward(D, x_real, SLOPE)
    p = sigmoid(s)
    real, _ = backward(D, inputs, values, -1 / p / m * p * (1 - p), SLOPE)
    inputs, values, s = forward(D, x_fake, SLOPE)
    p = sigmoid(s)
    fake, _ = backward(D, inputs, values, 1 / (1 - p) / m * p * (1 - p), SLOPE)
    parts = [real, fake, r1_gradient(D, x_real, gamma)]
    return [[sum(part[i][j] for part in parts) for j in range(2)] for i in range(len(D))]


def generator_gradient(G, D, z, loss):
    """Of -mean log D(G(z)), or of mean log(1 - D(G(z))), through D."""
    inputs_G, values_G, x_fake = forward(G, z, 0.0)
    inputs, values, s = forward(D, x_fake, SLOPE)
    p = sigmoid(s)
    dp = -1 / p / len(z) if loss == "non-saturating" else -1 / (1 - p) / len(z)
    _, dx = backward(D, inputs, values, dp * p * (1 - p), SLOPE)
    return backward(G, inputs_G, values_G, dx, 0.0)[0]


def descend(layers, velocity, gradient, lr, momentum):
    """New (layers, velocity)."""
    velocity = [
        [momentum * v - lr * g for v, g in zip(vs, gs, strict=True)] for vs, gs in zip(velocity, gradient, strict=True)
    ]
    return [[a + v for a, v in zip(p, vs, strict=True)] for p, vs in zip(layers, velocity, strict=True)], velocity


@pytest.mark.parametrize("loss", ["non-saturating", "minimax"])
@pytest.mark.parametrize("update, k", [("alternating", 1), ("alternating", 2), ("simultaneous", 1)])
def test_ten_steps_equal_the_textbook(update, k, loss):
    steps, lr, lr_D, lr_end, momentum, momentum_end, r1, r1_end = 10, 0.2, 0.1, 0.1, 0.5, 0.9, 0.3, 0.1
    gan = GAN(
        generator="8, relu, 7, relu", discriminator="9, leaky_relu 0.2, 6, leaky_relu 0.2", latent_dim=3, steps=steps,
        batch_size=5, k=k, loss=loss, update=update, lr=lr, lr_D=lr_D, lr_end=lr_end, momentum=momentum,
        momentum_end=momentum_end, r1=r1, r1_end=r1_end, dtype="float64", backend="numpy", seed=3,
    ).build(np.random.default_rng(0).standard_normal((40, 4)))  # fmt: skip
    G, D = ([[a.copy() for a in p] for p in net.params.layers if p] for net in (gan.G, gan.D))
    start = np.concatenate([gan.G.theta, gan.D.theta])

    seen, draw_z, next_batch = [], gan.draw_z, gan.batches.next  # what the training draws, in its order

    def recorded_z():
        seen.append(draw_z().copy())
        return gan.tape_G.x

    def recorded_batch(out):
        next_batch(out)
        seen.append(out.copy())

    gan.draw_z, gan.batches.next = recorded_z, recorded_batch
    for _ in range(steps):
        gan.train_step()

    zeros = lambda layers: [[np.zeros_like(a) for a in p] for p in layers]
    velocity_G, velocity_D, draws = zeros(G), zeros(D), iter(seen)
    for t in range(steps):
        decay, m = 1 + (lr_end - 1) * t / steps, momentum + (momentum_end - momentum) * t / steps
        gamma = r1 + (r1_end - r1) * t / steps
        if update == "simultaneous":
            x, z = next(draws), next(draws)
            grad_D, grad_G = discriminator_gradient(G, D, x, z, gamma), generator_gradient(G, D, z, loss)
            D, velocity_D = descend(D, velocity_D, grad_D, lr_D * decay, m)
            G, velocity_G = descend(G, velocity_G, grad_G, lr * decay, m)
        else:
            for _ in range(k):
                x, z = next(draws), next(draws)
                D, velocity_D = descend(D, velocity_D, discriminator_gradient(G, D, x, z, gamma), lr_D * decay, m)
            G, velocity_G = descend(G, velocity_G, generator_gradient(G, D, next(draws), loss), lr * decay, m)
    assert next(draws, None) is None

    expected = np.concatenate([a.ravel() for net in (G, D) for p in net for a in p])
    trained = np.concatenate([gan.G.theta, gan.D.theta])
    assert np.abs(trained - expected).max() < 1e-10
    assert np.linalg.norm(trained - start) > 0.1  # and they have moved
