"""Adversarial terms of stage 1: hinge losses and the adaptive weight of VQGAN, capped."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class AdversarialSettings:
    """weight: 0 switches the discriminator off. start: step at which it begins. cap: of the adaptive weight."""

    weight: float = 0.5
    start: int = 20_000
    cap: float = 100.0


def discriminator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """Hinge loss, mean over patches."""
    return 0.5 * (jax.nn.relu(1 - real_logits).mean() + jax.nn.relu(1 + fake_logits).mean())


def generator_loss(fake_logits: jax.Array) -> jax.Array:
    return -fake_logits.mean()


def adaptive_weight(head: Callable, head_params, features_bhwc: jax.Array, reconstruction_loss: Callable,
                    adversarial_loss: Callable, cap: float) -> jax.Array:
    """Ratio of the two losses' gradients at the decoder's last convolution, so that neither drowns the other.

    Args:
      head: head(head_params, features) -> image, the last convolution alone.
      reconstruction_loss, adversarial_loss: image -> scalar.
      cap: upper bound of the ratio.
    """
    image, pull_back = jax.vjp(lambda p: head(p, jax.lax.stop_gradient(features_bhwc)), head_params)

    def norm(loss):
        gradient, = pull_back(jax.grad(loss)(jax.lax.stop_gradient(image)))
        return jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient)))

    ratio = norm(reconstruction_loss) / (norm(adversarial_loss) + 1e-6)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0, cap))
