"""Loads tokenizers and generators from workdirs, folders to hand over, official VAR files, and this package."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from refocus_jax.focus import Pyramid
from refocus_jax.models import official_var
from refocus_jax.models.tokenizer import DualTokenizer
from refocus_jax.pretrained.models import Generator, Tokenizer
from refocus_jax.runtime import bucket, weight_files
from refocus_jax.runtime import mesh as mesh_lib

if TYPE_CHECKING:
    from ml_collections import ConfigDict

OFFICIAL_TOKENIZER = "vae_ch160v4096z32"  # the one that all official generators were trained on

# The files of a folder to hand over, see `model_folder`.
MODEL, TOKENIZER = "model.safetensors", "tokenizer.safetensors"
# The name of the model that comes with this package, in such a folder.
SMALL = "small"

# A workdir, a folder to hand over, an official file (.pth, .pt or .safetensors), arrays by official name, or SMALL.
Source = str | os.PathLike | Mapping[str, Any]


def load_config(workdir: str | os.PathLike) -> "tuple[ConfigDict, tuple[str, ...]]":
    """Loads the config that a workdir was made with, for any devices, and the names of its classes.

    Raises:
      FileNotFoundError: There is no config.json in it.
      ValueError: The config.json is damaged.
    """
    from refocus_jax.pretrained import workdirs

    return workdirs.config(located(workdir))


def located(source: str | os.PathLike) -> str:
    """Returns the path of a source. `SMALL` is the model that comes with this package, unless there is such a path."""
    if os.fspath(source) != SMALL or os.path.exists(SMALL):
        return os.fspath(source)
    return str(Path(__file__).with_name(SMALL))


def is_model_folder(source: str | os.PathLike) -> bool:
    """Returns whether a source is a folder that `--config.export.format=folder` has written, or `SMALL`."""
    return source != "" and all(Path(located(source), name).is_file() for name in (MODEL, "config.json"))


def weight_file(source: str, name: str) -> str | None:
    """Returns the file, or the file in a folder to hand over, that a source's weights are in; None for a workdir.

    Args:
      source: The source.
      name: MODEL or TOKENIZER, the file to take from a folder.
    """
    if is_model_folder(source):
        return str(Path(located(source), name))
    return source if weight_files.is_weight_file(source) else None


def _official_arrays(source: Source, fits: weight_files.Fits) -> Mapping[str, Any] | None:
    """Reads the arrays of an official source; None for a workdir."""
    if isinstance(source, Mapping):
        return source
    return weight_files.read(os.fspath(source), fits) if weight_files.is_weight_file(source) else None


def _expanded(source: Source) -> str | Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    if bucket.is_url(source):
        bucket.check_url("source", os.fspath(source))
        return bucket.stage(os.fspath(source), only_reads=True)
    return os.path.expanduser(located(source))


def _replicated(params: Any) -> Any:
    return jax.device_put(params, mesh_lib.replicated(mesh_lib.make_mesh()))


def _refuse(source: Source, **arguments: Any) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} given for {source}, whose config says them already; leave them out")


def load_tokenizer(source: Source, *, grid_sizes: Sequence[int] | None = None,
                   norm_groups: int | None = None) -> Tokenizer:
    """Loads the tokenizers of a workdir's latest checkpoint, or one tokenizer from a folder or an official source.

    Args:
      source: A workdir, a folder of `--config.export.format=folder`, "small" for the model that comes with this
        package, a file (`vae_ch160v4096z32.pth`, `.safetensors` with the same names, shards, or an entry of a training
        state: `FILE#trainer.vae_local`), or the arrays by name.
      grid_sizes: The sides of the token maps, only for an official source, whose arrays do not contain them; default
        VAR's ten scales.
      norm_groups: The groups of the group normalizations, only for an official source; default 32.

    Raises:
      FileNotFoundError: There is no such file, or the workdir has no config or no checkpoint of stage 1.
      ValueError: A file is damaged, or arrays are missing, unknown or of a wrong shape; all of them are listed.
    """
    source = _expanded(source)
    arrays = _official_arrays(source, official_var.is_tokenizer)
    if arrays is None:
        assert isinstance(source, str)  # only a path can be a workdir
        _refuse(source, grid_sizes=grid_sizes, norm_groups=norm_groups)
        if is_model_folder(source):
            from refocus_jax.pretrained import model_folder

            return model_folder.tokenizer(source)
        from refocus_jax.pretrained import workdirs

        return workdirs.tokenizer(source)
    structure, params = official_var.import_tokenizer(arrays, grid_sizes,
                                                        norm_groups or official_var.OFFICIAL_NORM_GROUPS)
    # VAR has no focus views: all its scales come from one encoding of the image itself.
    optics = Pyramid(grid_sizes=tuple(structure.quantizer.grid_sizes), stride=structure.autoencoder.stride, rho_max=1.0,
                     psf="none")
    model = DualTokenizer(optics=optics, structure=structure, alias=None, shared=False)
    return Tokenizer(model=model, params=_replicated({"structure": params}))


def _official_tokenizer(source: Source, tokenizer: Tokenizer | Source | None, grid_sizes) -> Tokenizer:
    """Loads an official generator's tokenizer: the given one, the official file next to it, or that in its own file."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if tokenizer is None:
        near = [] if isinstance(source, Mapping) else [
            Path(source).with_name(OFFICIAL_TOKENIZER + suffix) for suffix in weight_files.SUFFIXES]
        tokenizer = next((path for path in near if path.exists()), None)
    if tokenizer is None and not isinstance(source, Mapping):
        tokenizer = _tokenizer_of_training_state(source)
    if tokenizer is None:
        raise FileNotFoundError(f"an official generator needs its tokenizer: put {OFFICIAL_TOKENIZER}.pth next to it, "
                                "or give tokenizer= a file, arrays or the result of load_tokenizer")
    official = isinstance(tokenizer, Mapping) or weight_files.is_weight_file(tokenizer)
    return load_tokenizer(tokenizer, grid_sizes=grid_sizes if official else None)


def _tokenizer_of_training_state(source: str | os.PathLike) -> Mapping[str, Any] | None:
    """Reads the tokenizer of a file that holds several state dicts; None if the file holds none."""
    file, _, entry = os.fspath(source).rpartition("#")
    try:
        return weight_files.read(file if entry and not Path(source).exists() else source, official_var.is_tokenizer)
    except ValueError:
        return None


def load_generator(source: Source, *, tokenizer: Tokenizer | Source | None = None,
                   grid_sizes: Sequence[int] | None = None, num_heads: int | None = None,
                   step: int | None = None) -> Generator:
    """Loads the student of a workdir's checkpoint with its tokenizer, or a VAR from an official source.

    Args:
      source: A workdir, a folder of `--config.export.format=folder`, "small" for the model that comes with this
        package, a file (`var_d16.pth` ... `var_d36.pth`, `.safetensors` with the same names, shards, or a training
        state, whose fitting entry is taken unless one is named: `FILE#trainer.var_wo_ddp`), or the arrays by name.
      tokenizer: The tokenizer, only for an official generator; default the official file in the same folder.
      grid_sizes: The sides of the token maps, only for an official source, whose arrays may not contain them; default
        VAR's.
      num_heads: The number of attention heads, only for an official source; default VAR's.
      step: The step of the checkpoint, only for a workdir; default the latest.

    Raises:
      FileNotFoundError: There is no such file, or the workdir has no config or no such checkpoint of stage 2.
      ValueError: As for `load_tokenizer`; or generator and tokenizer do not fit each other, or were not trained
        together.
    """
    source = _expanded(source)
    arrays = _official_arrays(source, official_var.is_transformer)
    if arrays is None:
        assert isinstance(source, str)  # only a path can be a workdir
        _refuse(source, tokenizer=tokenizer, grid_sizes=grid_sizes, num_heads=num_heads)
        if is_model_folder(source):
            from refocus_jax.pretrained import model_folder

            _refuse(source, step=step)
            return model_folder.generator(source)
        from refocus_jax.pretrained import workdirs

        return workdirs.generator(source, step)
    if step is not None:
        raise ValueError(f"step is {step}, and the generator is an official file or arrays, which have no steps; leave "
                         "it out")
    network, params = official_var.import_transformer(arrays, grid_sizes, num_heads)
    tokenizer = _official_tokenizer(source, tokenizer, network.grid_sizes)
    quantizer = tokenizer.model.structure.quantizer
    for name in ("grid_sizes", "vocab_size", "latent_channels"):
        if getattr(network, name) != getattr(quantizer, name):
            raise ValueError(f"{name} is {getattr(network, name)} in the generator and {getattr(quantizer, name)} in "
                             "the tokenizer; give the tokenizer that it was trained on")
    return Generator(network=network, params=_replicated(params), tokenizer=tokenizer,
                     class_names=tuple(map(str, range(network.num_classes))))
