"""Both stages on the photographs of the scikit-image wheel at 64 px, on a laptop's CPU.

    python -m refocus_jax.main --config=tiny --workdir=runs/tiny
    python -m refocus_jax.main --config=tiny:smoke --workdir=runs/smoke    # the same steps in a few minutes

The grids have the paper's factors 8, 4 and 2, so the paper's largest radius of 12 pixels suits them. The first command
printed the following in a fresh clone (seed 0), measured on 448 crops of the held-out quarters of the photographs:

    tokenizer, step 2400       all   scale 1   scale 2   scale 3   scale 4
    psnr                     24.34
    thumbnail_psnr           22.85
    psnr_gain                1.484
    view_psnr                          21.55     25.61     25.56
    alias_explained                   0.1012     0.135    0.1234
    alias_perplexity          48.7     47.36     53.82     45.95
    alias_usage                  1    0.7812         1         1
    structure_perplexity     756.2     92.04       430     697.4     742.7
    structure_usage          0.999    0.1582    0.6143    0.9629     0.999
    latent_gap                        0.4014     0.545    0.5888

    generator, step 900               all   scale 1   scale 2   scale 3   scale 4
    cross_entropy                   4.778     4.157     4.634     4.839     4.781
    accuracy                                 0.1652    0.1044   0.08175   0.08677
    bits_per_image                  585.9
    unigram_cross_entropy           5.914     4.323     5.559     5.938     5.955
    unigram_entropy                 5.657     3.341     5.165     5.702     5.712
    below_unigram_cross_entropy    0.1921
    below_unigram_entropy          0.1553
    teacher_minus_student/mean  -0.006243
    teacher_minus_student/low   -0.007646
    teacher_minus_student/high  -0.004905

and `--mode=evaluate` afterwards, on 448 samples and 448 crops:

    tokenizer                        generator
    ssim                    0.6668   fd_efflite0               127.1   precision   0.1183
    reconstruction_fd_efflite0       kid_efflite0              0.049   recall     0.02679
                               108     standard_error       0.002346

So reconstructions are 1.5 dB better than the thumbnail, three quarters of the codes are effectively in use, and the
student's cross-entropy is 19 % below that of a unigram model of scale and class. The teacher is ahead of the student by
0.0062 nats per token of the last two scales (95 % interval 0.0049 to 0.0076 over crops, which overlap in what they
show). This difference is real but small: alias tokens explain only 10 to 14 % of the residual's energy
(docs/measurements/alias_tokenizer.md).

Seeds 1 and 2 gave 24.35 and 24.25 dB, 599.8 and 602.7 bits per image, teachers that are ahead by 0.0083 (0.0063 to
0.0104) and 0.0038 (0.0023 to 0.0052) nats, and distances of 127.1 and 127.5. Their curves are in
refocus_jax/reporting/references/tiny.json; `python -m benchmarks.reference compare --workdir runs/tiny` compares a run
with them. Runs on other processors may differ more than these three do: an earlier version of this config gave 24.28 dB
on one machine and 24.44 on another, with the same seed.

The three runs had one core each of a busy machine: seed 2 took 35 minutes, 33 minutes of processor time and 1.6 GiB of
memory, about half of the time for each stage. The first command on both cores, in another fresh clone and next to other
work, took 26 minutes with its installation and 33 minutes of processor time: 24.30 dB, 1.45 dB better than the
thumbnail, 579.6 bits per image, and a teacher that is ahead by 0.0069 (0.0049 to 0.0088) nats.

Before these runs, ρ_max was 3 pixels and the student had four heads of 32 channels. That version gave 24.47 dB, 591.1
bits per image, 0.0053 nats and a distance of 122.1 (seed 2), and took 15 minutes on two quiet cores (26 minutes of
processor time).

That version without the perceptual loss (docs/measurements/perceptual.md) was 1.19 dB better than the thumbnail with
an overall perplexity of 503, and with VAR's pyramid (`tiny:var --mode=tokenizer --config.tokenizer.model.num_phi=4`)
0.61 dB better with 502.
"""

from refocus_jax.config import base
from refocus_jax.config.arguments import STUDENTS, apply, resolution


def smoke(c):
    """Reduces everything to a few steps, for CI and notebooks; the models learn almost nothing."""
    c.data.update(token_examples=128, validation_examples=64)
    c.tokenizer.train.update(steps=40, log_every=10, evaluate_every=40, save_every=20)
    c.tokenizer.adversarial.start = 20
    c.tokenizer.revival.every = 10
    c.generator.train.update(batch_size=16, steps=60, log_every=10, evaluate_every=60, save_every=20,
                             samples_per_class=2)
    c.evaluate.update(count=64, reference_count=64)


def get_config(argument=None):
    c = base.get_config()
    resolution(c, 64, (1, 2, 4, 8), rho_max=12.0)
    c.data.update(source="photos", resize_ratio=0.0, num_workers=0, validation_examples=448, crops_per_image=32,
                  token_examples=8192)
    t, g = c.tokenizer, c.generator
    t.model.update(vocab_size=1024, latent_channels=16, num_phi=0, channels=16, channel_multipliers=(1, 1, 2, 2),
                   num_residual_blocks=1, norm_groups=4, dtype="float32", remat="none")
    t.alias.update(vocab_size=128, latent_channels=8, channels=64, num_residual_blocks=1, norm_groups=8)
    t.adversarial.update(weight=0.05, start=2100)
    t.discriminator.update(channels=8, num_layers=2, norm_groups=2)
    t.optimizer.update(learning_rate=2e-3, final=0.01)
    t.discriminator_optimizer.update(learning_rate=5e-4)
    t.train.update(batch_size=8, steps=2400, log_every=20, evaluate_every=800, save_every=200)
    g.model.update(depth=4, width=128, num_heads=2, drop_path_rate=0.0, remat="none", dtype="float32")
    g.optimizer.update(learning_rate=1e-3)
    g.train.update(batch_size=32, steps=900, log_every=20, evaluate_every=450, save_every=200)
    c.sampling.update(top_k=0, top_p=0.95)
    c.evaluate.update(count=448, reference_count=448)
    c.report.reference = "tiny"
    runs = {"full": (lambda c: None, "all steps"), "smoke": (smoke, "a few steps of everything, in minutes")}
    return apply(c, argument, architecture=STUDENTS, run=runs)
