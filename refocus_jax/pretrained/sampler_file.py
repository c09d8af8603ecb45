"""Exports a trained sampler to one file that is independent of this package's models, and loads it again.

    sampler = pretrained.load_sampler("sampler.zip")
    tokens, images = sampler(labels=[0, 1, 2, 3], seed=0, start=0)     # K maps (4, p, p) int32; (4, h, w, 3) in [-1, 1]

The file holds `sampler.stablehlo` (of jax.export, for CPU, TPU and CUDA), `weights.npz` and `settings.json`. The
program can be called with jax alone, with the weights in their order as the first argument. JAX guarantees that later
versions can read it for at least six months.
"""

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from refocus_jax.models.bound import Bound
from refocus_jax.pretrained.models import Generator
from refocus_jax.runtime.files import atomically
from refocus_jax.sampling import decode

PLATFORMS = ("cpu", "tpu", "cuda")


def export(generator: Generator, out: str | os.PathLike, batch: int,
           settings: decode.SamplingSettings) -> None:
    """Writes a sampler of a fixed batch size; the file appears complete or not at all.

    Args:
      generator: The generator to export.
      out: The file.
      batch: The number of images that the sampler draws at a time.
      settings: How images are drawn.
    """
    model = generator.tokenizer.model
    # Only the parameters that sampling reads: without the encoder and the alias tokenizer.
    structure = generator.tokenizer.params["structure"]
    autoencoder = {name: structure["autoencoder"][name] for name in ("decoder", "post_quant_conv")}
    params = {"student": generator.params, "structure": {**structure, "autoencoder": autoencoder}}
    leaves, tree = jax.tree.flatten(params)

    def run(leaves, labels, seed, start):
        params = jax.tree.unflatten(tree, leaves)
        quantizer = Bound(model.structure.quantizer, params["structure"]["quantizer"])
        drawn = decode.sample(Bound(generator.network, params["student"]), quantizer, labels,
                              decode.sample_keys(seed, labels, start), settings)
        return drawn.tokens, model.decode(params, drawn.f_hat[-1])

    scalar = jax.ShapeDtypeStruct((), jnp.uint32)
    abstract = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    program = jax_export.export(jax.jit(run), platforms=PLATFORMS)(
        abstract, jax.ShapeDtypeStruct((batch,), jnp.int32), scalar, scalar)
    weights = io.BytesIO()
    arrays: dict[str, Any] = {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    np.savez(weights, **arrays)
    content = {"batch": batch, "num_classes": generator.network.num_classes, "class_names": generator.class_names,
               "sampling": dataclasses.asdict(settings), "platforms": PLATFORMS}
    with atomically(Path(out)) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("sampler.stablehlo", program.serialize())
        archive.writestr("weights.npz", weights.getvalue())
        archive.writestr("settings.json", json.dumps(content, indent=2))


def load_sampler(path: str | os.PathLike) -> Callable[[Sequence[int], int, int], tuple[list[jax.Array], jax.Array]]:
    """Loads an exported sampler.

    Args:
      path: The file.

    Returns:
      A function (labels, seed=0, start=0) -> (token maps, images in [-1, 1]). It draws the same samples as
      `Generator.sample`. It takes as many labels as the exported batch size; `start` is the number of the first sample.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is damaged, or is not an exported sampler.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = json.loads(archive.read("settings.json"))
            program = jax_export.deserialize(bytearray(archive.read("sampler.stablehlo")))
            with np.load(io.BytesIO(archive.read("weights.npz")), allow_pickle=False) as weights:
                leaves = [jnp.asarray(weights[name]) for name in sorted(weights.files)]
            if len(program.in_avals) != len(leaves) + 3:
                raise ValueError("it was exported by another version of the program; export it again")
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file may raise any error
        raise ValueError(f"{path} is not an exported sampler, or it is damaged: {error}") from error
    call = jax.jit(program.call)

    def sampler(labels: Sequence[int], seed: int = 0, start: int = 0):
        labels_b = np.asarray(labels)
        if labels_b.shape != (content["batch"],) or labels_b.min() < 0 or labels_b.max() > content["num_classes"]:
            raise ValueError(f"labels are {labels_b.tolist()}; this sampler takes {content['batch']} of 0 to "
                             f"{content['num_classes'] - 1}, or {content['num_classes']} for none")
        return call(leaves, jnp.asarray(labels_b, jnp.int32), *(jnp.asarray(n, jnp.uint32) for n in (seed, start)))

    return sampler
