"""Accelerators as the compiler wants them described, and the rates that their makers publish."""

import dataclasses
import math
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Facts about a chip, in the form of XLA's GpuTargetConfigProto.
_GPU = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
shared_memory_per_core: {shared} threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {units}
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth:.0f}
l2_cache_size: {cache} clock_rate_ghz: {clock} device_memory_size: {memory} shared_memory_per_block_optin: {optin}
cuda_compute_capability {{ major: {major} minor: {minor} }} registers_per_core_limit: 65536
registers_per_block_limit: 65536 }} runtime_version {{ major: 12 minor: 8 patch: 0 }} platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }} device_description_str: "{title}" """


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of chip.

    Attributes:
      title: as its maker calls it.
      platform: 'cuda' or 'tpu'.
      bandwidth: of its memory, bytes per second.
      rates: multiplications and additions per second, by precision, as convolutions have it by default: where there is
        a matrix unit for it, 'float32' is TF32 on a GPU, and bfloat16 on a TPU.
      details: the rest of the compiler's description.
    """

    title: str
    platform: str
    bandwidth: float
    rates: Mapping[str, float]
    details: Mapping[str, Any]

    @property
    def packages(self) -> tuple[str, ...]:
        """What compiling for it imports."""
        return ("jax_plugins.xla_cuda12", "nvidia.cuda_nvcc") if self.platform == "cuda" else ("libtpu",)

    @property
    def options(self) -> dict[str, str | bool]:
        """For the compiler. To choose by timing it would need the chip."""
        if self.platform == "tpu":
            return {}
        return {"xla_gpu_autotune_level": "0", "xla_gpu_cuda_data_dir": str(_nvcc())}

    def describe(self, devices: int) -> dict[str, Any]:
        """Arguments of `get_topology_desc` for that many chips, or somewhat more."""
        if self.platform == "tpu":
            return {"topology_name": f"{self.details['name']}:{_grid(devices)}"}
        hosts = math.ceil(devices / 8)
        facts = _GPU.format(title=self.title, bandwidth=self.bandwidth, **self.details)
        # slices x hosts x devices of each
        return {"topology_name": self.title, "target_config": facts, "topology": f"1x{hosts}x{devices // hosts}"}

    def prepare(self, devices: int) -> None:
        """Sets what the compiler's library reads from the environment."""
        if self.platform == "cuda":
            os.environ["PATH"] = f"{_nvcc() / 'bin'}{os.pathsep}{os.environ['PATH']}"  # where ptxas is
            return
        chips = max(devices, 4)
        for name, value in {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": f"{self.details['type']}-{chips}",
            "TPU_WORKER_HOSTNAMES": "localhost",
        }.items():
            os.environ.setdefault(name, value)


def _nvcc() -> Path:
    (folder,) = find_spec("nvidia.cuda_nvcc").submodule_search_locations
    return Path(folder)


def _grid(chips):
    """A rectangle of at least that many chips, as near to a square as slices are made."""
    side = max(math.ceil(math.log2(chips)), 2)
    return f"{2 ** (side // 2)}x{2 ** (side - side // 2)}"


TARGETS = {
    "h100": Target(
        "NVIDIA H100 80GB HBM3",
        "cuda",
        3352e9,
        {"float32": 495e12, "bfloat16": 989e12},
        {"cores": 132, "units": 128, "shared": 233472, "optin": 232448, "cache": 52428800, "clock": 1.98}
        | {"memory": 84929347584, "major": 9, "minor": 0},
    ),
    "a100": Target(
        "NVIDIA A100-SXM4-80GB",
        "cuda",
        2039e9,
        {"float32": 156e12, "bfloat16": 312e12},
        {"cores": 108, "units": 64, "shared": 167936, "optin": 166912, "cache": 41943040, "clock": 1.41}
        | {"memory": 85095874560, "major": 8, "minor": 0},
    ),
    "v100": Target(
        "Tesla V100-SXM2-16GB",
        "cuda",
        898e9,
        {"float32": 15.7e12, "bfloat16": 15.7e12},  # no matrix unit for either
        {"cores": 80, "units": 64, "shared": 98304, "optin": 98304, "cache": 6291456, "clock": 1.53}
        | {"memory": 16945512448, "major": 7, "minor": 0},
    ),
    "tpu_v4": Target("TPU v4", "tpu", 1228e9, {"float32": 275e12, "bfloat16": 275e12}, {"name": "v4", "type": "v4"}),
    "tpu_v5e": Target(
        "TPU v5e", "tpu", 819e9, {"float32": 197e12, "bfloat16": 197e12}, {"name": "v5e", "type": "v5litepod"}
    ),
    "tpu_v6e": Target(
        "TPU v6e", "tpu", 1640e9, {"float32": 918e12, "bfloat16": 918e12}, {"name": "v6e", "type": "v6e"}
    ),
}
