"""The small model that comes with the package: five kinds of flowers at 64 px.

    python -m refocus_jax.main --config=small --workdir=runs/small

It downloads nothing: prepare `tfds:tf_flowers`, or give other images by data.source. Both stages took two hours on two
cores that had other work too. docs/measurements/small.md has the numbers, and says how the model was exported.
"""

from refocus_jax.config import catalog
from refocus_jax.config.arguments import STUDENTS, apply, resolution


def get_config(argument=None):
    c = catalog.load("tiny")
    resolution(c, 64, (1, 2, 4, 8, 16), rho_max=24.0)
    c.data.update(source="tfds:tf_flowers", resize_ratio=1.0, flip=True, validation_examples=736, crops_per_image=1,
                  token_examples=5868)
    t, g = c.tokenizer, c.generator
    t.model.update(channels=32, channel_multipliers=(1, 1, 2), norm_groups=8)
    t.adversarial.start = 1800
    t.discriminator.channels = 16
    t.optimizer.learning_rate = 1.5e-3
    t.train.update(steps=2800, evaluate_every=700)
    g.model.update(depth=6, remat="products")
    g.teacher.num_alias_blocks = 1
    g.optimizer.update(learning_rate=1.5e-3, final=0.02)
    g.train.update(batch_size=16, steps=2500, evaluate_every=1250, save_every=250, ema_decay=0.998)
    c.sampling.cfg = 3.0
    c.evaluate.update(count=736, reference_count=736)
    c.report.reference = ""
    return apply(c, argument, architecture=STUDENTS)
