"""Adversarial terms of stage 1: hinge losses and VQGAN's adaptive weight with an upper bound."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialSettings:
    """Settings of the adversarial loss.

    Attributes:
      weight: The weight of the loss; 0 trains without a discriminator.
      start: The step at which the loss begins.
      cap: The upper bound of the adaptive weight.
    """

    weight: float = 0.5
    start: int = 20_000
    cap: float = 100.0


def discriminator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """Computes the discriminator's hinge loss, averaged over patches."""
    return 0.5 * (jax.nn.relu(1 - real_logits).mean() + jax.nn.relu(1 + fake_logits).mean())


def generator_loss(fake_logits: jax.Array) -> jax.Array:
    """Computes the generator's loss: the negative mean logit of its images."""
    return -fake_logits.mean()


def adaptive_weight(head: Callable, head_params, features_bhwc: jax.Array, reconstruction_loss: Callable,
                    adversarial_loss: Callable, cap: float) -> jax.Array:
    """Computes the ratio of two losses' gradient norms at the decoder's last convolution, to balance the losses.

    Args:
      head: The last convolution, (head_params, features) -> image.
      head_params: Its parameters.
      features_bhwc: Its inputs.
      reconstruction_loss: image -> scalar.
      adversarial_loss: image -> scalar.
      cap: The upper bound of the ratio.

    Returns:
      The norm of the reconstruction loss's gradient divided by that of the adversarial loss, without a gradient.
    """
    image, pull_back = jax.vjp(lambda p: head(p, jax.lax.stop_gradient(features_bhwc)), head_params)

    def norm(loss):
        gradient, = pull_back(jax.grad(loss)(jax.lax.stop_gradient(image)))
        return jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient)))

    ratio = norm(reconstruction_loss) / (norm(adversarial_loss) + 1e-6)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0, cap))
