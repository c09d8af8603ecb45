"""Checks and measures one accelerator, the first of this machine, in about eight minutes at most.

    python -m benchmarks.accelerator --output=runs/accelerator
    python -m benchmarks.accelerator --output=runs/accelerator --parts sample train --seconds=900

On a CPU, or with --small, everything has the sizes of a test and takes a few minutes: this shows that every part runs,
and its times mean nothing. The parts, in the order in which they run:

  float32    results of d16 compared with those of this machine's CPU: tokens must be equal, and logits agree to 1e-3
  sample     images per second of d16, as tokens and decoded; d20 and d24 as tokens
  train      steps of stage 2 on tokens: d16, d12 and d24, each with the batch size that is fastest
  attention  the implementations side by side, for each scale and for all at once: forward and backward pass
  bfloat16   how far its results are from those of float32
  stage1     steps of stage 1 with the grids var10 and k4

Each program is compiled twice, with an empty cache and with the one that the first time left. Its memory is what the
device counted, next to the compiler's number that `--mode=plan` shows. Its share of the chip's peak counts the FLOPs
that the computation needs, without recomputation. Weights are random.

Every result is written at once, into accelerator.json and accelerator.md. A measurement that fails is one line among
the others. After --seconds, no further measurement begins. The command fails if a check failed. What the columns mean
is in docs/measurements/speed.md.

It needs jax, flax, optax (with absl, which optax brings) and numpy, and nothing else of what the package needs:
configs are not read, so neither ml_collections nor grain nor orbax are imported, and the perceptual network has random
weights too. No part has to be left out for want of a package.
"""
