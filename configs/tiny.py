"""Both stages on the photographs of the scikit-image wheel at 64 px, on a laptop's CPU.

    python -m refocus_jax.main --config=configs/tiny.py --workdir=runs/tiny
    python -m refocus_jax.main --config=configs/tiny.py:smoke --workdir=runs/smoke    # the same path in two minutes
"""

from configs import common


def smoke(c):
    """A few steps of everything: for CI and notebooks. It learns next to nothing."""
    c.data.token_examples = 128
    c.data.validation_examples = 64
    c.tokenizer_training.update(steps=40, log_every=10, evaluate_every=40, save_every=20)
    c.adversarial.start = 20
    c.revival.every = 10
    c.generator_batch_size = 16
    c.generator_training.update(steps=60, log_every=10, evaluate_every=60, save_every=20)
    c.samples_per_class = 2


def get_config(argument=None):
    c = common.get_config()
    common.resolution(c, 64, (1, 2, 4, 8))
    c.data.update(source="photos", resize_ratio=0.0, num_workers=0, validation_examples=448, crops_per_image=32,
                  token_examples=8192)
    c.tokenizer.update(vocab_size=1024, latent_channels=16, num_phi=0, channels=16, channel_multipliers=(1, 1, 2, 2),
                       num_residual_blocks=1, norm_groups=4, dtype="float32")
    c.alias.update(vocab_size=128, latent_channels=8, channels=64, num_residual_blocks=1, norm_groups=8)
    c.adversarial.update(weight=0.05, start=2100)
    c.discriminator.update(channels=8, num_layers=2, norm_groups=2)
    c.tokenizer_batch_size = 8
    c.tokenizer_optimizer.update(learning_rate=2e-3, final=0.01)
    c.discriminator_optimizer.update(learning_rate=5e-4)
    c.tokenizer_training.update(steps=2400, log_every=20, evaluate_every=800, save_every=200)
    c.generator.update(depth=4, width=128, num_heads=4, drop_path_rate=0.0, remat=False, dtype="float32")
    c.generator_batch_size = 32
    c.generator_optimizer.update(learning_rate=1e-3)
    c.generator_training.update(steps=900, log_every=20, evaluate_every=450, save_every=200)
    c.sampling.update(top_k=0, top_p=0.95)
    return common.apply_arguments(c, argument, smoke=smoke)
