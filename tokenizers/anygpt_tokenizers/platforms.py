"""Which devices JAX may look for: where `libtpu` is only there to compile, no TPU."""

import glob
import importlib.metadata
import importlib.util
import os
import sys

# A TPU's, of any generation, and those of the GPUs that JAX knows.
_DEVICE_FILES = "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia*", "/dev/dxg", "/dev/kfd"
# What Cloud TPU, GKE or a user says of a TPU, or of another plugin.
_VARIABLES = (
    "CLOUD_TPU_TASK_ID",
    "JAX_FORCE_TPU_INIT",
    "PJRT_NAMES_AND_LIBRARY_PATHS",
    "TPU_ACCELERATOR_TYPE",
    "TPU_NAME",
    "TPU_WORKER_HOSTNAMES",
    "TPU_WORKER_ID",
)
_GPU_PLUGINS = "xla_cuda", "xla_rocm"


def skip_absent_tpu() -> None:
    """Lets JAX use the CPU where `libtpu` is installed and nothing speaks of an accelerator.

    JAX would ask libtpu for its TPUs all the same, which fills the terminal with errors and a stack trace.
    Whatever speaks of a TPU, of a GPU or of a wish of the user leaves JAX as it is. Call it before the first
    use of a device; processes that this one starts inherit it.
    """
    jax = sys.modules.get("jax")
    chosen = os.environ.get("JAX_PLATFORMS") or (jax and jax.config.jax_platforms)  # jax itself finds TPUs
    if not chosen and importlib.util.find_spec("libtpu") and not _accelerator_possible():
        os.environ["JAX_PLATFORMS"] = "cpu"
        if jax:
            jax.config.update("jax_platforms", "cpu")


def _accelerator_possible() -> bool:
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return (
        any(glob.glob(pattern) for pattern in _DEVICE_FILES)
        or any(os.environ.get(name) for name in _VARIABLES)
        or any(not plugin.name.startswith(_GPU_PLUGINS) for plugin in plugins)
    )
