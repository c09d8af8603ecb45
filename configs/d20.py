"""ReFocus-VAR d20 on ImageNet at 256 px: 606.2 M parameters with 8192 codes.

    python -m refocus_jax.main --config=configs/d20.py --workdir=runs/d20 --config.data.source=tfds:imagenet2012

Not trained by us: parameter count and shapes are tested, results are not known.
"""

from configs import common


def get_config(argument=None):
    c = common.get_config()
    common.depth(c, 20)
    c.mesh.fsdp = 4  # one device alone cannot hold the state; --config.mesh.fsdp=1 where it can
    return common.apply_arguments(c, argument, var_recipe=lambda c: common.var_epochs(c, 250, 768))
