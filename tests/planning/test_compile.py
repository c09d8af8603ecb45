import jax
import jax.numpy as jnp
import pytest

from refocus_jax.models.attention import attention
from refocus_jax.planning import targets
from refocus_jax.planning.compile import compile_program, refusal
from refocus_jax.runtime import mesh as mesh_lib

GIB = 2**30


def test_what_a_compiler_says_when_it_refuses_is_understood():
    early = ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (210.06G) "
             "exceeds available HBM (15.75G).")
    late = "Ran out of memory in memory space hbm. Used 17.53G of 15.75G hbm. Exceeded hbm capacity by 1.78G."
    assert refusal(early) == (int(210.06 * GIB), int(15.75 * GIB))
    assert refusal(late) == (int(17.53 * GIB), int(15.75 * GIB))
    assert refusal("INTERNAL: something else") is None


def test_a_program_is_measured_on_a_machine_that_is_not_there():
    target = targets.load("gpu:a100:1x8")
    mesh = mesh_lib.make_mesh(target.devices, fsdp=4, data=2)
    weight = mesh_lib.abstract(jax.ShapeDtypeStruct((1024, 4096), jnp.float32),
                               mesh_lib.parameter_sharding(mesh, (1024, 4096)))

    def measure(batch):
        x = jax.ShapeDtypeStruct((batch, 1024), jnp.float32, sharding=mesh_lib.batch_sharding(mesh))
        jitted = jax.jit(lambda x, w: jnp.tanh(x @ w), out_shardings=mesh_lib.batch_sharding(mesh))
        return compile_program(target, jitted, (x, weight), weight)

    small, large = measure(64), measure(8 * 2**22)
    assert small.fits and small.state_bytes_per_chip == 1024 * 4096 * 4 // 4
    # At least the input, the whole weight and the output.
    assert small.peak_bytes_per_chip >= 4 * (8 * 1024 + 1024 * 4096 + 8 * 4096)
    assert small.collectives["all-gather"]["bytes"] == pytest.approx(4 * 1024 * 4096, rel=0.01)
    assert not large.fits and large.short_bytes_per_chip == large.peak_bytes_per_chip - target.chip.capacity_bytes


def test_cudnns_attention_is_planned_where_there_is_no_cudnn():
    target = targets.load("gpu:h100:1x8")
    mesh = mesh_lib.make_mesh(target.devices)
    x = jax.ShapeDtypeStruct((16, 2, 340, 64), jnp.bfloat16, sharding=mesh_lib.batch_sharding(mesh))

    def loss(q, k, v):
        return attention(q, k, v, (0, 84, 340), ((0, 84), (0, 340)), "cudnn").astype(jnp.float32).sum()

    with targets.cudnn_taken_for_granted():
        found = compile_program(target, jax.jit(jax.grad(loss)), (x, x, x), ())
    assert found.fits and not found.collectives  # every device needs only its own examples
