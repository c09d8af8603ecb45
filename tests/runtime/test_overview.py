"""What a run says of its parameters before its first step."""

import jax
import jax.numpy as jnp

from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime import overview


def test_the_terminal_shows_the_parts_of_networks_and_the_file_all_arrays(tmp_path, capsys):
    params = {"student": {"block": {"qkv": jnp.zeros((3, 4)), "bias": jax.ShapeDtypeStruct((5,), jnp.float32)},
                          "head": jnp.zeros((7,))}}
    overview.announce("generator", params, mesh_lib.make_mesh(data=1, fsdp=2), tmp_path / "generator")
    said, written = capsys.readouterr().err, (tmp_path / "generator" / "parameters.txt").read_text()
    assert said.startswith("generator: 2 x cpu in 1 process(es), mesh data 1, fsdp 2.")
    assert "| student/block | (17,) | float32 | 17   |" in said and "| student/head  | (7,)" in said
    assert "student/block/qkv" in written and "student/block/bias" in written and "student/block/qkv" not in said
    assert "Total: 24" in said and "Total: 24" in written
