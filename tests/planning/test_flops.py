"""Our count of FLOPs, compared with XLA's on programs without loops and with itself on programs with loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.models.transformer import Transformer
from refocus_jax.planning import flops


def counted_by_xla(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def shape(*sides):
    return jax.ShapeDtypeStruct(sides, jnp.float32)


@pytest.mark.parametrize(("stride", "padding", "dilation"), [
    (1, "SAME", 1), (2, "SAME", 1), (2, ((0, 1), (0, 1)), 1), (1, "VALID", 1), (1, ((1, 1), (1, 1)), 2)])
def test_convolutions_and_their_gradients_are_counted_as_xla_does(stride, padding, dilation):
    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(image, kernel, (stride, stride), padding, lhs_dilation=(dilation, dilation),
                                            dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def gradient(image, kernel):
        return jax.grad(lambda *a: jnp.square(convolve(*a)).sum(), argnums=(0, 1))(image, kernel)

    arguments = shape(2, 17, 15, 64), shape(3, 3, 64, 96)
    for function in (convolve, gradient):
        assert flops.count(function, *arguments) == pytest.approx(counted_by_xla(function, *arguments), rel=5e-3)


def test_loops_calls_and_branches_count_as_often_as_they_run():
    a = shape(8, 8)
    once = 2 * 8**3
    assert flops.count(jnp.matmul, a, a) == once
    assert flops.count(jax.jit(jnp.matmul), a, a) == once
    assert flops.count(lambda a: jax.lax.scan(lambda x, _: (x @ a, None), a, None, length=5)[0], a) == 5 * once
    assert flops.count(lambda a: jax.lax.cond(a.sum() > 0, lambda: a @ a @ a, lambda: a @ a), a) == 2 * once
    assert flops.count(lambda a: (a @ a, (a @ a @ a).sum())[0], a) == once  # unused results are not computed
    # A checkpoint recomputes the forward pass.
    def loss(a):
        return jnp.sum(jnp.sin(jnp.sin(a @ a) @ a))
    once_more = jax.value_and_grad(jax.checkpoint(loss))
    assert flops.count(jax.value_and_grad(loss), a) < flops.count(once_more, a)


def step(depth):
    """Gradients of a small transformer, in which products dominate as they do in a large one."""
    network = Transformer(grid_sizes=(2, 4, 8), vocab_size=512, latent_channels=32, num_classes=10, depth=depth,
                          width=512, num_heads=8)
    arguments = jax.ShapeDtypeStruct((4,), jnp.int32), shape(4, 80, 32)
    params = jax.eval_shape(network.init, jax.random.key(0), *arguments)
    return jax.grad(lambda params, *a: jnp.square(network.apply(params, *a)[0]).sum()), (params, *arguments)


def test_a_training_step_is_counted_within_5_percent_of_xlas_count():
    """One block: XLA counts the body of a loop once."""
    function, arguments = step(1)
    assert flops.count(function, *arguments) == pytest.approx(counted_by_xla(function, *arguments), rel=0.05)


def test_blocks_count_alike():
    one, two, four = (flops.count(step(depth)[0], *step(depth)[1]) for depth in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one))
    # Per block and example: 12 d^2 products of weights for each of 84 tokens, three times; attention over prefixes; and
    # the six modulations.
    d, lengths = 512, np.square((2, 4, 8))
    forward = 2 * 12 * d**2 * lengths.sum() + 4 * d * np.sum(lengths * np.cumsum(lengths)) + 2 * 6 * d**2
    assert two - one == pytest.approx(3 * 4 * forward, rel=0.01)
