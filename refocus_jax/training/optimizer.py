"""AdamW as VAR uses it (docs/var_facts.md): weight decay by parameter name, schedules in fractions of the run."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

# Names of the matrices that weight decay applies to. It does not apply to anything else (biases, norms, positions,
# levels, temperatures, codes). Shapes cannot tell them apart, because stacked vectors look like matrices.
DECAYED = frozenset({"kernel", "qkv", "convolution", "class_embedding"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW with VAR's schedule.

    Attributes:
      learning_rate: The peak learning rate.
      b1: The decay of the first moment.
      b2: The decay of the second moment.
      weight_decay: The weight decay at the start of the run.
      weight_decay_end: The weight decay at the end of the run; it changes along a half cosine.
      clip: The largest global gradient norm.
      warmup: The fraction of the run in which the learning rate rises linearly to the peak.
      warmup_initial: The learning rate at the start, as a fraction of the peak.
      flat: The fraction of the steps after warm-up that stay at the peak.
      final: The learning rate at the end, as a fraction of the peak, after a linear decay.
    """

    learning_rate: float
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.05
    weight_decay_end: float = 0.05
    clip: float = 2.0
    warmup: float = 0.02
    warmup_initial: float = 0.005
    flat: float = 0.05
    final: float = 0.1


def learning_rate(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Makes the schedule over `steps` updates: linear warm-up, flat at the peak, linear decay."""
    peak, warm = settings.learning_rate, max(1, round(settings.warmup * steps))
    flat = round(settings.flat * (steps - warm))
    return optax.join_schedules(
        [optax.linear_schedule(settings.warmup_initial * peak, peak, warm),
         optax.constant_schedule(peak),
         optax.linear_schedule(peak, settings.final * peak, max(1, steps - warm - flat))],
        [warm, warm + flat])


def decay_mask(params):
    """Marks the leaves that weight decay applies to with True."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def make(settings: OptimizerSettings, steps: int) -> optax.GradientTransformation:
    """Makes the optimizer for a run of `steps`; it first clips gradients by their global norm."""

    def weight_decay(step):
        progress = jnp.clip(step / steps, 0, 1)
        end = settings.weight_decay_end
        return end + (settings.weight_decay - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.scale_by_adam(settings.b1, settings.b2),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(learning_rate(settings, steps)))
