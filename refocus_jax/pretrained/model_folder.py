"""A trained generator as a folder to hand over: without optimizer, teacher and Orbax.

    model.safetensors      the student, under VAR's names
    tokenizer.safetensors  its structure tokenizer, under the names of VAR's VQVAE
    config.json            the settings of the run, without paths, and the names of the classes

Each file of weights also loads on its own, here and in PyTorch's VAR code. `load_generator(FOLDER)` reads all of it.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from refocus_jax.config import build, saved
from refocus_jax.config import ranges as r
from refocus_jax.config.base import SETTINGS
from refocus_jax.models import official_var
from refocus_jax.pretrained import parameters, pytorch
from refocus_jax.pretrained.loading import MODEL, TOKENIZER, is_model_folder
from refocus_jax.pretrained.models import Generator, Tokenizer
from refocus_jax.runtime import weight_files
from refocus_jax.runtime.files import write_json


def write(generator: Generator, workdir: str, folder: Path, dtype: str) -> None:
    """Writes the weights and config.json of a workdir's generator.

    Args:
      generator: The generator.
      workdir: The workdir that it was loaded from.
      folder: The folder; made if missing.
      dtype: The data type of the weights in the files: float32, float16 or bfloat16.

    Raises:
      ValueError: The folder holds something else.
    """
    if folder.exists() and not is_model_folder(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"export.output is {folder}, which holds something else; give a new folder, or one that was "
                         "exported before")
    c, class_names = saved.read(workdir)
    lines = pytorch.constructors(generator.network, generator.tokenizer.model.structure)
    metadata = {"made_by": "refocus_jax", "pytorch": lines}
    tokenizer = generator.tokenizer
    for name, arrays in (
            (TOKENIZER, official_var.export_tokenizer(tokenizer.model.structure, tokenizer.params["structure"])),
            (MODEL, official_var.export_transformer(generator.network, generator.params))):
        weight_files.write(folder / name, {
            key: array.astype(jnp.dtype(dtype)) if array.dtype == np.float32 else array for key, array in arrays.items()
        }, metadata)
    write_json(folder / "config.json", json.loads(without_paths(c).to_json()) | {"class_names": list(class_names)})


def without_paths(c: ConfigDict) -> ConfigDict:
    """Returns a config in which no setting names a folder of this machine; `data.source` keeps its last part."""
    c = c.copy_and_resolve_references()
    kind, colon, path = c.data.source.partition(":")
    c.update_from_flattened_dict({name: setting.default for name, setting in SETTINGS.items()
                                  if r.is_path(setting.range)})
    c.data.source = f"{kind}{colon}{Path(path).name}"
    return c


def _read(folder: Path) -> tuple[ConfigDict, Sequence[str]]:
    c, class_names = saved.read(folder)
    c.generator.model.attention = "prefix"  # runs on all devices; they may differ from those of the training
    c.generator.teacher.enabled = False
    return c, class_names


def tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """Loads the tokenizer of a folder.

    Raises:
      FileNotFoundError: A file is missing.
      ValueError: A file is damaged, or does not fit the config.json.
    """
    c, _ = _read(Path(folder))
    params = parameters.structure_tokenizer(c, str(folder))
    return Tokenizer(model=build.tokenizer(c), params=parameters.replicated(params))


def generator(folder: str | os.PathLike) -> Generator:
    """Loads the generator of a folder; raises the same errors as `tokenizer`."""
    c, class_names = _read(Path(folder))
    params = parameters.student_of_file(c, len(class_names), str(folder), any_classes=False)
    return Generator(network=build.student(c, len(class_names)), params=parameters.replicated(params),
                     tokenizer=tokenizer(folder), class_names=tuple(class_names))
