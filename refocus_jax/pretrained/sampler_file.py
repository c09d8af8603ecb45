"""A trained sampler as one file, independent of our models: StableHLO for CPU, TPU and CUDA, and the weights.

    sampler = pretrained.load_sampler("sampler.zip")
    tokens, images = sampler(labels=[0, 1, 2, 3], seed=0, start=0)     # K maps (4, p, p) int32; (4, h, w, 3) in [-1, 1]

The file holds `sampler.stablehlo` (jax.export), `weights.npz` and `settings.json`: whoever has jax can call it, with
the weights in their order as first argument. jax promises to read it for at least six months.
"""

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from refocus_jax.models.bound import Bound
from refocus_jax.pretrained.models import Generator
from refocus_jax.sampling import decode

PLATFORMS = ("cpu", "tpu", "cuda")


def export(generator: Generator, out: str | os.PathLike, batch: int,
           settings: decode.SamplingSettings) -> None:
    """Writes the sampler of one batch size; the file appears complete or not at all."""
    model = generator.tokenizer.model
    # Only what sampling reads: no encoder, no alias tokenizer.
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
    np.savez(weights, **{f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(leaves)})
    content = {"batch": batch, "num_classes": generator.network.num_classes, "class_names": generator.class_names,
               "sampling": dataclasses.asdict(settings), "platforms": PLATFORMS}
    temporary = Path(f"{out}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("sampler.stablehlo", program.serialize())
            archive.writestr("weights.npz", weights.getvalue())
            archive.writestr("settings.json", json.dumps(content, indent=2))
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def load_sampler(path: str | os.PathLike) -> Callable[[Sequence[int], int, int], tuple[list[jax.Array], jax.Array]]:
    """The sampler of a file: (labels, seed=0, start=0) to token maps and images in [-1, 1].

    They are those of `Generator.sample`; it takes as many labels as the file's batch, and `start` is the number of the
    first.

    Raises:
      ValueError: the file is damaged, or not an exported sampler.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = json.loads(archive.read("settings.json"))
            program = jax_export.deserialize(bytearray(archive.read("sampler.stablehlo")))
            with np.load(io.BytesIO(archive.read("weights.npz")), allow_pickle=False) as weights:
                leaves = [jnp.asarray(weights[name]) for name in sorted(weights.files)]
            if len(program.in_avals) != len(leaves) + 3:
                raise ValueError("it is of another version of the program; export it again")
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged file does to the readers
        raise ValueError(f"{path} is not an exported sampler, or it is damaged: {error}") from error
    call = jax.jit(program.call)

    def sampler(labels: Sequence[int], seed: int = 0, start: int = 0):
        labels = np.asarray(labels)
        if labels.shape != (content["batch"],) or labels.min() < 0 or labels.max() > content["num_classes"]:
            raise ValueError(f"labels are {labels.tolist()}; this sampler takes {content['batch']} of 0 to "
                             f"{content['num_classes'] - 1}")
        return call(leaves, jnp.asarray(labels, jnp.int32), *(jnp.asarray(n, jnp.uint32) for n in (seed, start)))

    return sampler
