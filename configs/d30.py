"""ReFocus-VAR d30 on ImageNet at 256 px: 2017.9 M parameters with 8192 codes.

    python -m refocus_jax.main --config=configs/d30.py --workdir=runs/d30 --config.data.source=tfds:imagenet2012

Not trained by us: parameter count and shapes are tested, results are not known.
"""

from configs import common


def get_config(argument=None):
    c = common.get_config()
    common.depth(c, 30)
    c.generator.gamma_init = 1e-5
    c.generator_optimizer.update(learning_rate=8e-5, final=0.01, weight_decay_end=0.08)
    c.mesh.fsdp = 4  # one device alone cannot hold the state; --config.mesh.fsdp=1 where it can
    return common.apply_arguments(c, argument, var_recipe=lambda c: common.var_epochs(c, 350, 1024))
