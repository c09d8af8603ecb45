"""AdamW as VAR uses it (docs/var_facts.md): decay by parameter name, schedules in fractions of the run."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

# Matrices that decay. Everything else (biases, norms, positions, levels, temperatures, codes) does not: by name,
# since stacked vectors look like matrices.
DECAYED = frozenset({"kernel", "qkv", "class_embedding"})


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with VAR's schedule.

    Attributes:
      learning_rate: peak. b1, b2: decay of the moments. weight_decay: at the start; weight_decay_end: at the end, along
      a half cosine. clip: largest global gradient norm. warmup: fraction of the run, from warmup_initial times the
      peak. flat: fraction of what is left at the peak, then linear to final times the peak.
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
    """Warm-up, flat, linear: multiples of the peak over `steps` updates."""
    peak, warm = settings.learning_rate, max(1, round(settings.warmup * steps))
    flat = round(settings.flat * (steps - warm))
    return optax.join_schedules(
        [optax.linear_schedule(settings.warmup_initial * peak, peak, warm),
         optax.constant_schedule(peak),
         optax.linear_schedule(peak, settings.final * peak, max(1, steps - warm - flat))],
        [warm, warm + flat])


def decay_mask(params):
    """Which leaves decay: True for the kernels."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def make(settings: OptimizerSettings, steps: int) -> optax.GradientTransformation:
    """The update rule for a run of `steps`; clips by global norm first."""

    def weight_decay(step):
        progress = jnp.clip(step / steps, 0, 1)
        end = settings.weight_decay_end
        return end + (settings.weight_decay - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.scale_by_adam(settings.b1, settings.b2),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(learning_rate(settings, steps)))
