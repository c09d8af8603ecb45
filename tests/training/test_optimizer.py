"""Schedules, and weight decay by parameter name."""

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.training import optimizer


def test_schedule_warms_up_stays_and_falls():
    settings = optimizer.OptimizerSettings(learning_rate=2.0, warmup=0.1, warmup_initial=0.005, flat=0.1, final=0.1)
    rate = optimizer.learning_rate(settings, 1000)
    assert np.isclose(rate(0), 0.01) and np.isclose(rate(100), 2.0)  # 0.005 of the peak, then the peak
    assert np.isclose(rate(189), 2.0)  # flat for 10 % of the other 900
    assert np.isclose(rate(190), 2.0) and np.isclose(rate(595), 1.1) and np.isclose(rate(1000), 0.2)


def test_flat_is_a_share_of_the_steps_after_warm_up():
    """Warm-up and flat may be more than 1 in sum."""
    rate = optimizer.learning_rate(optimizer.OptimizerSettings(learning_rate=1.0, warmup=0.6, flat=0.5, final=0.0), 100)
    assert rate(59) < 1 and np.isclose(rate(60), 1) and np.isclose(rate(80), 1) and np.isclose(rate(90), 0.5)
    rate = optimizer.learning_rate(optimizer.OptimizerSettings(learning_rate=1.0, warmup=0.2, flat=1.0, final=0.0), 100)
    assert all(np.isclose(rate(step), 1) for step in range(20, 100))


def test_a_schedule_without_warm_up_begins_with_one_step_of_it():
    settings = optimizer.OptimizerSettings(learning_rate=1.0, warmup=0.0, warmup_initial=0.5, flat=0.0)
    rate = optimizer.learning_rate(settings, 10)
    assert np.isclose(rate(0), 0.5) and np.isclose(rate(1), 1.0) and np.isclose(rate(10), 0.1)


def test_decay_goes_by_name_not_by_rank():
    params = {"blocks": {"qkv": jnp.zeros((2, 3, 9)), "q_bias": jnp.zeros((2, 3)), "scale_mul": jnp.zeros((2, 1)),
                         "ada_gss": jnp.zeros((2, 6)),
                         "mixer": {"in_proj": {"kernel": jnp.zeros((2, 3, 9))}, "convolution": jnp.zeros((2, 4, 6)),
                                   **{name: jnp.zeros((2, 6)) for name in ("convolution_bias", "dt_bias", "a_log",
                                                                           "skip", "norm_scale")}},
                         "fc1": {"kernel": jnp.zeros((2, 3, 3)), "bias": jnp.zeros((2, 3))}},
              "position": jnp.zeros((5, 3)), "level_embedding": jnp.zeros((2, 3)), "class_embedding": jnp.zeros((2, 3))}
    mask = optimizer.decay_mask(params)
    assert mask["blocks"] == {"qkv": True, "q_bias": False, "scale_mul": False, "ada_gss": False,
                              "mixer": {"in_proj": {"kernel": True}, "convolution": True, "convolution_bias": False,
                                        "dt_bias": False, "a_log": False, "skip": False, "norm_scale": False},
                              "fc1": {"kernel": True, "bias": False}}
    assert (mask["position"], mask["level_embedding"], mask["class_embedding"]) == (False, False, True)


def test_weight_decay_follows_its_half_cosine():
    """With zero gradients the update is only the weight decay: -lr * wd(step) * parameter."""
    settings = optimizer.OptimizerSettings(learning_rate=1.0, weight_decay=0.05, weight_decay_end=0.08, warmup=0.0,
                                           flat=1.0)
    rule = optimizer.make(settings, 4)
    params = {"kernel": jnp.ones((2,)), "bias": jnp.ones((2,))}
    state, seen = rule.init(params), []
    for _ in range(5):
        updates, state = rule.update(jax.tree.map(jnp.zeros_like, params), state, params)
        seen.append(float(updates["kernel"][0]))
        assert (updates["bias"] == 0).all()
    rates = [optimizer.learning_rate(settings, 4)(i) for i in range(5)]
    # From 0.05 to 0.08, half way in the middle, and nearly flat at both ends.
    np.testing.assert_allclose(-np.array(seen) / np.array(rates), [0.05, 0.0543934, 0.065, 0.0756066, 0.08], rtol=1e-5)


def test_clipping_bounds_the_gradient():
    """Two steps, since Adam's first has no scale: a gradient of norm 500 counts as one of norm 2 in the second."""
    settings = optimizer.OptimizerSettings(learning_rate=1.0, clip=2.0, weight_decay=0.0, weight_decay_end=0.0)
    rule = optimizer.make(settings, 10)
    params = {"bias": jnp.zeros((2,))}

    def second_update(first_gradient):
        _, state = rule.update({"bias": jnp.array(first_gradient)}, rule.init(params), params)
        return rule.update({"bias": jnp.array([0.3, -0.4])}, state, params)[0]["bias"]

    np.testing.assert_allclose(second_update([300.0, 400.0]), second_update([1.2, 1.6]), rtol=1e-6)
    assert not np.allclose(second_update([0.6, 0.8]), second_update([1.2, 1.6]), rtol=1e-3)  # below the bound
