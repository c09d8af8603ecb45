"""What a run says before its first step: devices, mesh, its command, and a table of its parameters."""

import sys
import time
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview
from flax.traverse_util import flatten_dict, unflatten_dict

import refocus_jax
from refocus_jax.runtime import command_line
from refocus_jax.runtime.files import atomically, write_json


def machine(mesh: jax.sharding.Mesh) -> str:
    """Describes devices, processes and mesh in one line."""
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    device = mesh.devices.flat[0]
    return f"{mesh.size} x {device.device_kind} in {jax.process_count()} process(es), mesh {axes}"


def announce(name: str, params: Any, mesh: jax.sharding.Mesh, directory: str | Path) -> None:
    """Prints the machine and the parameter counts of each network's parts, and writes a full table to parameters.txt.

    Also writes made_on.json: the date, the machine, versions, and the settings of the command. Only process 0 prints,
    to standard error, and writes.

    Args:
      name: Name of the stage, printed first.
      params: Nested dictionaries of arrays or shapes.
      mesh: The device mesh.
      directory: Where parameters.txt is written.
    """
    if jax.process_index():
        return
    main = Path(sys.argv[0]).parts[-2:] == ("refocus_jax", "main.py")
    write_json(Path(directory) / "made_on.json", {
        "began": time.time(), "machine": machine(mesh), "refocus_jax": refocus_jax.__version__, "jax": jax.__version__,
        "settings": command_line.settings(sys.argv[1:]) if main else None})
    path = Path(directory) / "parameters.txt"
    with atomically(path) as temporary:
        temporary.write_text(parameter_overview.get_parameter_overview(params, include_stats=False) + "\n")
    print(f"{name}: {machine(mesh)}. Parameters, one by one in {path}:", file=sys.stderr)
    print(parameter_overview.get_parameter_overview(_summed(params), include_stats=False), file=sys.stderr, flush=True)


def _summed(params: Any) -> Any:
    """Cuts a tree off below its second level; each leaf's shape is the number of parameters below it."""
    sizes: dict[tuple[str, ...], Any] = {}
    for path, leaf in flatten_dict(params).items():
        counted = sizes.get(path[:2])
        size = leaf.size + (counted.size if counted else 0)
        sizes[path[:2]] = jax.ShapeDtypeStruct((size,), leaf.dtype)
    return unflatten_dict(sizes)
