import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from refocus_jax.planning import collectives
from refocus_jax.runtime import mesh as mesh_lib


def test_collectives_of_a_loop_count_as_often_as_it_runs():
    mesh = mesh_lib.make_mesh(data=1, fsdp=2)

    def run(x, weights):
        def body(x, weight):
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ weight), mesh_lib.batch_sharding(mesh)), None
        return jax.lax.scan(body, x, weights)[0].sum()

    x = jax.ShapeDtypeStruct((4, 64), jnp.float32, sharding=mesh_lib.batch_sharding(mesh))
    weights = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32,
                                   sharding=NamedSharding(mesh, PartitionSpec(None, None, "fsdp")))
    found = collectives.count(jax.jit(run).lower(x, weights).compile().as_text())
    assert found["all-gather"] == {"number": 5, "bytes": 5 * 64 * 64 * 4}
    assert found["all-reduce"] == {"number": 1, "bytes": 4}


# Texts of programs for GPUs and TPUs that differ from those for CPUs, shortened.
GPU = """HloModule jit_run, is_scheduled=true

%body.1 (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %ag = (bf16[768,288]{1,0}, bf16[768,2304]{1,0}) all-gather-start(%x), dimensions={1}
  %done = bf16[768,2304]{1,0} all-gather-done(%ag)
  %rs = ((f32[16,8]{1,0}, f32[4]{0}), (f32[8,8]{1,0}, f32[2]{0})) reduce-scatter-start(%y, %z), to_apply=%add
}

ENTRY %main (a: f32[8,8]) -> f32[8,8] {
  %w = (s32[], f32[8,8]) while(%t), condition=%cond.1, body=%body.1, backend_config={"known_trip_count":{"n":"10"}}
}
"""
TPU = """HloModule jit_run

%all-reduce-scatter.3 (p: f32[64,64]) -> f32[16,64] {
  %ar = f32[64,64]{1,0:T(8,128)} all-reduce(%p), to_apply=%add
}

%body.1 (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %f = f32[16,64]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
}

%cond.1 (p: (s32[], f32[8,8])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(24)
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.5), direction=LT
}

ENTRY %main.2 (a: f32[8,8]) -> f32[8,8] {
  %w = (s32[], f32[8,8]) while(%t), condition=%cond.1, body=%body.1
  %ar2 = (f32[3]{0}, f32[]) all-reduce(%u, %v), to_apply=%add
}
"""


def test_started_collectives_count_by_their_results():
    assert collectives.count(GPU) == {"all-gather": {"number": 10, "bytes": 10 * 768 * 2304 * 2},
                                      "reduce-scatter": {"number": 10, "bytes": 10 * (64 + 2) * 4}}


def test_a_tpus_reduce_scatter_and_loop_are_recognized():
    assert collectives.count(TPU) == {"reduce-scatter": {"number": 24, "bytes": 24 * 64 * 64 * 4},
                                      "all-reduce": {"number": 1, "bytes": 16}}
