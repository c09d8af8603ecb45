"""Machines to plan for: TPU slices and GPU nodes that JAX can compile for without having them."""

import dataclasses
import os
import re
from collections.abc import Sequence
from unittest import mock

import jax
from jax.experimental import topologies

from refocus_jax.runtime import extras

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Facts about a chip.

    Attributes:
      capacity_bytes: The memory that a program may use. For TPUs, it is the number that their compiler reports when it
        refuses a program; for GPUs, JAX_GPU_FRACTION of the memory.
      peak_flops: Dense bfloat16 FLOPs per second (a multiply-add is two), from the maker's data sheet.
    """

    capacity_bytes: int
    peak_flops: float


# JAX reserves this fraction of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
JAX_GPU_FRACTION = 0.75

TPUS = {
    "v4": Chip(int(30.75 * GIB), 275e12),
    "v5e": Chip(int(15.75 * GIB), 197e12),
    "v5p": Chip(int(95.74 * GIB), 459e12),
    "v6e": Chip(int(31.25 * GIB), 918e12),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """What XLA's GPU compiler needs to know about a device, with the names of its `GpuTargetConfigProto`."""

    name: str
    compute_capability: int
    core_count: int
    shared_memory_per_core: int
    memory_bandwidth: int
    l2_cache_size: int
    clock_rate_ghz: float
    device_memory_size: int
    peak_flops: float

    def target_config(self) -> str:
        """Returns the device as a text proto; the constants in it are limits of CUDA that all these devices share."""
        return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared_memory_per_core}
  shared_memory_per_block_optin: {self.shared_memory_per_core - 1024}
  threads_per_core_limit: 2048
  core_count: {self.core_count}
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {self.memory_bandwidth}
  l2_cache_size: {self.l2_cache_size}
  clock_rate_ghz: {self.clock_rate_ghz}
  device_memory_size: {self.device_memory_size}
  cuda_compute_capability {{ major: {self.compute_capability} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{self.name}"
"""


_CUDNN_VERSION = 91000  # version 9.10, as in `target_config`, in cuDNN's notation


def cudnn_taken_for_granted():
    """Makes a context for tracing GPU programs, in which JAX does not check this machine's cuDNN."""
    return mock.patch("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: _CUDNN_VERSION)


GPUS = {
    "a100": Gpu(
        name="NVIDIA A100-SXM4-80GB", compute_capability=8, core_count=108, shared_memory_per_core=167936,
        memory_bandwidth=2039000000000, l2_cache_size=41943040, clock_rate_ghz=1.41, device_memory_size=84987740160,
        peak_flops=312e12),
    "h100": Gpu(
        name="NVIDIA H100 80GB HBM3", compute_capability=9, core_count=132, shared_memory_per_core=233472,
        memory_bandwidth=3352320000000, l2_cache_size=52428800, clock_rate_ghz=1.98, device_memory_size=84929347584,
        peak_flops=989e12),
}


# JAX's names of devices, as patterns. H200s compute like H100s.
_KINDS: dict[str, Chip | Gpu] = {r"TPU v4$": TPUS["v4"], r"TPU v5( lite|e)": TPUS["v5e"], r"TPU v5p?$": TPUS["v5p"],
          r"TPU v6( lite|e)": TPUS["v6e"], r"NVIDIA A100": GPUS["a100"], r"NVIDIA H[12]00(?! NVL| PCIe)": GPUS["h100"]}


def peak_flops(device_kind: str) -> float | None:
    """Returns the dense bfloat16 FLOPs per second of a device by JAX's name for it; None for unknown devices."""
    return next((chip.peak_flops for kind, chip in _KINDS.items() if re.match(kind, device_kind)), None)


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine to compile programs for.

    Attributes:
      name: Its name, as in `plan.topology`.
      platform: "tpu" or "gpu".
      chip: Facts about each of its chips.
      devices: Its devices, for which programs can be compiled; they cannot hold data.
    """

    name: str
    platform: str
    chip: Chip
    devices: Sequence[jax.Device]

    @property
    def compiler_options(self) -> dict[str, bool]:
        """Options for XLA: no Triton products on GPUs, because they are chosen by timing them on a device."""
        return {"xla_gpu_enable_triton_gemm": False} if self.platform == "gpu" else {}


def load(topology: str) -> Target:
    """Finds a machine by its name.

    Args:
      topology: The name: `tpu:v5e:4x4` (generation, shape of the slice) or `gpu:a100:1x8` (kind, hosts x GPUs per
        host).

    Raises:
      ValueError: The machine is unknown.
      ImportError: Its compiler is not installed.
    """
    platform, _, rest = topology.partition(":")
    kind, _, shape = rest.partition(":")
    known = {"tpu": [*TPUS], "gpu": [*GPUS]}.get(platform, [])
    sides = shape.split("x")
    if kind not in known or not all(side.isdecimal() and int(side) for side in sides) or (
            platform == "gpu" and len(sides) != 2):
        raise ValueError(f"plan.topology is {topology!r}; give tpu:KIND:SHAPE such as tpu:v5e:4x4, with KIND one of "
                         f"{', '.join(TPUS)}, or gpu:KIND:HOSTSxGPUS such as gpu:a100:1x8, with KIND one of "
                         f"{', '.join(GPUS)}")
    if platform == "tpu":
        extras.require(f"plan.topology is {topology!r}, which", "plan-tpu", {"libtpu": "libtpu"})
        # libtpu reads these when it is loaded: it must not look for a machine, and may run next to another plan.
        os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-4", TPU_WORKER_HOSTNAMES="localhost",
                          TPU_WORKER_ID="0", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
        # JAX uses both cores of a v4 chip as one device.
        megacore = {"chip_config_name": "megacore"} if kind == "v4" else {}
        try:
            description = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{shape}", **megacore)
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f"plan.topology is {topology!r}, which is not a slice of {kind} ({error}); give one that "
                             f"exists, such as {kind}:{'4x4x4' if kind in ('v4', 'v5p') else '4x4'}") from error
        return Target(topology, "tpu", TPUS[kind], description.devices)
    extras.require(f"plan.topology is {topology!r}, which", "plan-gpu", {"jax_cuda13_plugin": "jax-cuda13-plugin"})
    gpu, (hosts, gpus) = GPUS[kind], sides
    description = topologies.get_topology_desc(platform="cuda", target_config=gpu.target_config(),
                                               topology=f"{hosts}x1x{gpus}")
    chip = Chip(int(JAX_GPU_FRACTION * gpu.device_memory_size), gpu.peak_flops)
    return Target(topology, "gpu", chip, description.devices)
