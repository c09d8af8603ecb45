"""ReFocus-VAR d12 on ImageNet at 256 px: 136.3 M parameters with 8192 codes.

    python -m refocus_jax.main --config=configs/d12.py --workdir=runs/d12 --config.data.source=tfds:imagenet2012

Not trained by us: parameter count and shapes are tested, results are not known.
"""

from configs import common


def get_config(argument=None):
    c = common.get_config()
    common.depth(c, 12)
    return common.apply_arguments(c, argument, var_recipe=lambda c: common.var_epochs(c, 200, 768))
