"""Loads the parameters of a config's networks from workdirs, folders to hand over, VAR's files or installed files."""

import os
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from refocus_jax.config import build, saved
from refocus_jax.models import official_var
from refocus_jax.pretrained.loading import MODEL, TOKENIZER, is_model_folder, located, weight_file
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime import weight_files
from refocus_jax.runtime.checkpoint import Checkpoints
from refocus_jax.runtime.files import read_json
from refocus_jax.training import loop


class Found(NamedTuple):
    """Loaded parameters.

    Attributes:
      params: The parameters.
      step: The step of the checkpoint that they were restored from; None if they are from a file.
    """

    params: Any
    step: int | None = None


def _check_fit(source: str, found: Any, expected: Any, names: dict[str, str]) -> None:
    """Raises a ValueError if two modules differ in some attributes; `names` maps these to the names of settings."""
    problems = [f"{name} is {getattr(found, attribute)!r}, the config's {getattr(expected, attribute)!r}"
                for attribute, name in names.items() if getattr(found, attribute) != getattr(expected, attribute)]
    if problems:
        raise ValueError(f"{source} does not fit the config: {'; '.join(problems)}. Change the config, or give another "
                         "file; parameters that do not fit are never silently initialized instead")


def tokenizer(c: ConfigDict, source: str, mesh) -> Found:
    """Loads the `DualTokenizer` parameters of a workdir's latest checkpoint, or of files, see `weight_file`.

    Raises:
      FileNotFoundError: There is no such file or checkpoint.
      ValueError: It does not fit the config.
    """
    if weight_file(source, TOKENIZER):
        return Found(mesh_lib.put_whole(structure_tokenizer(c, source), mesh_lib.replicated(mesh)))
    with Checkpoints(os.path.join(source, "tokenizer", "checkpoints")) as checkpoints:
        restored = checkpoints.restore(_tokenizer_template(c, mesh), partial=True)
        return Found(restored["params"], checkpoints.latest_step())


def check_tokenizer(c: ConfigDict, workdir: str, mesh) -> None:
    """Raises what `tokenizer` would raise for a workdir, without reading arrays."""
    with Checkpoints(os.path.join(workdir, "tokenizer", "checkpoints")) as checkpoints:
        checkpoints.check_fit(_tokenizer_template(c, mesh), partial=True)


def replicated(params: Any) -> Any:
    """Moves parameters from the host to all devices, each of which holds all of them."""
    return mesh_lib.put_whole(params, mesh_lib.replicated(mesh_lib.make_mesh()))


def structure_tokenizer(c: ConfigDict, source: str) -> Any:
    """Reads the parameters of a file with VAR's names, or in a folder to hand over, on the host.

    Args:
      c: The config that they must fit.
      source: The file or folder.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It does not fit the config.
    """
    if c.generator.teacher.enabled:
        raise ValueError(f"tokenizer.pretrained is {source}, which has no alias tokenizer, and "
                         "generator.teacher.enabled is True; set generator.teacher.enabled=False, or leave "
                         "tokenizer.pretrained out to train tokenizers")
    expected = build.tokenizer(c).structure
    found, params = official_var.import_tokenizer(
        weight_files.read(_file(source, TOKENIZER), official_var.is_tokenizer), c.grid_sizes,
        c.tokenizer.model.norm_groups)
    # The file does not say whether scales add up. In VAR they do; a folder's config.json tells.
    residual = not is_model_folder(source) or saved.read(located(source))[0].tokenizer.model.residual
    _check_fit(source, found.autoencoder, expected.autoencoder, {
        name: f"tokenizer.model.{name}" for name in ("channels", "channel_multipliers", "num_residual_blocks")})
    _check_fit(source, found.quantizer.clone(residual=residual), expected.quantizer, {
        name: f"tokenizer.model.{name}" for name in ("vocab_size", "latent_channels", "num_phi", "residual")})
    return {"structure": params}


def _tokenizer_template(c: ConfigDict, mesh) -> Any:
    params = jax.eval_shape(build.tokenizer_task(c).init, jax.random.key(0)).params
    return {"params": mesh_lib.abstract(params, mesh_lib.replicated(mesh))}


def student(c: ConfigDict, num_classes: int, source: str, mesh, *, any_classes: bool = False,
            step: int | None = None) -> Found:
    """Loads the student's parameters of a workdir's checkpoint (their average if kept), or of files.

    Args:
      c: The config that they must fit.
      num_classes: The number of classes that they must have.
      source: The workdir, or what holds files, see `weight_file`.
      mesh: The mesh of devices to load them on.
      any_classes: Whether the source may have any number of classes.
      step: The step of the workdir's checkpoint; default the latest.

    Raises:
      FileNotFoundError: There is no such file or checkpoint.
      ValueError: It does not fit the config.
    """
    if weight_file(source, MODEL):
        return Found(on_mesh(student_of_file(c, num_classes, source, any_classes), mesh))
    with Checkpoints(os.path.join(source, "generator", "checkpoints")) as checkpoints:
        template = _student_template(c, num_classes, source, checkpoints, mesh, any_classes)
        restored = checkpoints.restore(template, step=step, partial=True)
        params = restored["average"] if "average" in restored else restored["params"]["student"]
        return Found(params, checkpoints.latest_step() if step is None else step)


def check_student(c: ConfigDict, num_classes: int, workdir: str, mesh, *, any_classes: bool = False) -> None:
    """Raises what `student` would raise for a workdir, without reading arrays."""
    with Checkpoints(os.path.join(workdir, "generator", "checkpoints")) as checkpoints:
        template = _student_template(c, num_classes, workdir, checkpoints, mesh, any_classes)
        checkpoints.check_fit(template, partial=True)


def student_of_file(c: ConfigDict, num_classes: int, source: str, any_classes: bool) -> Any:
    """Reads a student under VAR's names, from a file or a folder, on the host; raises the same errors as `student`."""
    expected = build.student(c, num_classes)
    found, params = official_var.import_transformer(
        weight_files.read(_file(source, MODEL), official_var.is_transformer), c.grid_sizes, c.generator.model.num_heads)
    _check_fit(source, found, expected, {"vocab_size": "tokenizer.model.vocab_size",
                                         "latent_channels": "tokenizer.model.latent_channels",
                                         "architecture": "generator.architecture"} | {
        name: f"generator.model.{name}" for name in ("depth", "width", "num_heads", "qk_norm", "shared_modulation")})
    _check_classes(source, found.num_classes, num_classes, any_classes)
    return params


def _file(source: str, name: str) -> str:
    return weight_file(source, name) or source  # what is missing is named by whoever reads it


def on_mesh(params: Any, mesh) -> Any:
    """Moves parameters from the host to the devices of a mesh, divided as a training keeps them."""
    return mesh_lib.put_whole(params, mesh_lib.parameter_shardings(mesh, params))


def _student_template(c: ConfigDict, num_classes: int, source: str, checkpoints: Checkpoints, mesh,
                      any_classes: bool) -> Any:
    described = read_json(os.path.join(source, "config.json"))
    source_classes = len(described["class_names"]) if described else num_classes
    _check_classes(source, source_classes, num_classes, any_classes)
    params = loop.abstract_state(build.generator_task(c, source_classes), mesh).params["student"]
    # Whether there is an average depends on the source's config, not on `c`.
    return {"average": params} if "average" in checkpoints.parts() else {"params": {"student": params}}


def _check_classes(source: str, found: int, expected: int, any_classes: bool) -> None:
    if found != expected and not any_classes:
        raise ValueError(f"{source} does not fit the config: it has {found} classes, and the data {expected}. Set "
                         "generator.init_classes=new to initialize their embedding again, or give data with its "
                         "classes")


def perceptual(c: ConfigDict) -> Any:
    """Loads the parameters of the perceptual network, which stage 1 uses frozen; None if there is no such network.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is damaged or belongs to another network.
    """
    if build.tokenizer_task(c).frozen_shapes is None:
        return None
    chosen = build.perceptual_network(c)
    assert chosen is not None  # as the task has one
    try:
        return chosen.load()
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"tokenizer.perceptual_network is {c.tokenizer.perceptual_network!r}: {error}; or set "
                          "tokenizer.perceptual_network=none") from error
