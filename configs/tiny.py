"""Both stages on the photographs of the scikit-image wheel at 64 px, on a laptop's CPU.

    python -m refocus_jax.main --config=configs/tiny.py --workdir=runs/tiny
    python -m refocus_jax.main --config=configs/tiny.py:smoke --workdir=runs/smoke    # the same path in three minutes

What the first command printed on two shared cores, on 448 crops of the held-out quarters of the photographs; stage 2
drew its 8192 crops in another order then. Stage 1 took 7.4 minutes and stage 2, resumed in a second process, 6.7; about
27 CPU-minutes and 2.2 GB in all:

    tokenizer, step 2400       all   scale 1   scale 2   scale 3   scale 4
    psnr                     24.04
    thumbnail_psnr           22.85
    psnr_gain                1.189
    view_psnr                          18.58      21.3     22.94
    alias_explained                  0.06173   0.07308   0.08609
    alias_perplexity         35.95     34.96     41.43      33.7
    structure_perplexity     502.9     75.76     288.6     473.6     466.7
    latent_gap                        0.7037    0.4941    0.3421

    generator, step 900               all   scale 1   scale 2   scale 3   scale 4
    cross_entropy                   3.691     3.761      4.03      3.86     3.627
    accuracy                                 0.1429    0.1434    0.1582    0.1965
    bits_per_image                  452.7
    unigram_cross_entropy           5.374     3.871     5.192     5.492     5.379
    unigram_entropy                 5.249     3.124     4.847     5.344     5.284
    below_unigram_cross_entropy    0.3131
    below_unigram_entropy          0.2968
    teacher_minus_student/mean  -0.006545
    teacher_minus_student/low   -0.008452
    teacher_minus_student/high  -0.004663

So: 1.2 dB above the thumbnail, half of all codes in use, the student 31 % below a unigram model of scale and class. The
teacher is ahead of the student by 0.0065 nats per token of the last two scales (95 % interval 0.0047 to 0.0085 over
crops, which overlap in what they show): real and small, as alias tokens tell 6 to 9 % of the residual's energy
(docs/alias_tokenizer.md).

For comparison, VAR's pyramid with the same budget for stage 1 (`tiny.py:var --mode=tokenizer
--config.tokenizer.num_phi=4`): 0.61 dB above the thumbnail, perplexity 42 116 345 472 per scale and 502 over all.
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
    c.evaluation.update(count=64, reference_count=64)


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
    c.generator.update(depth=4, width=128, num_heads=4, drop_path_rate=0.0, remat="none", dtype="float32")
    c.generator_batch_size = 32
    c.generator_optimizer.update(learning_rate=1e-3)
    c.generator_training.update(steps=900, log_every=20, evaluate_every=450, save_every=200)
    c.sampling.update(top_k=0, top_p=0.95)
    c.evaluation.update(count=448, reference_count=448)
    c.report.reference = "docs/reference/tiny.json"
    return common.apply_arguments(c, argument, smoke=smoke)
