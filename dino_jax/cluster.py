"""Connects the processes of a command on several hosts, and says what they compute on."""

import os
from typing import Any

JOIN_SECONDS = 900  # in which all processes must have started; hundreds may import from one file system
END_SECONDS = 30 * 24 * 3600  # in which they must end: one may have more to do, and JAX's default of 300 would kill it


def join() -> None:
    """Connects the processes of a command on several hosts, one per host or per GPU, started by the same line on each.

    With DINO_JAX_DISTRIBUTED=1 on Cloud TPU, Slurm, Open MPI or Kubernetes they find each other; elsewhere
    JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID say where and how many.

    Raises:
      ValueError: for what is not a number, or addresses that cannot be.
      TimeoutError: when the others do not come.
    """
    import jax

    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not address and os.environ.get("DINO_JAX_DISTRIBUTED") != "1":
        return
    # On CPUs, programs dispatched ahead may reach their collectives in another order in each process and wait for ever.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    given: dict[str, Any] = {}
    if address and "JAX_NUM_PROCESSES" in os.environ:
        names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
        try:
            given = {argument: int(os.environ[name]) for argument, name in names.items()}
        except (KeyError, ValueError):
            values = " ".join(f"{name}={os.environ.get(name, '')}" for name in names.values())
            raise ValueError(f"{values}: with JAX_COORDINATOR_ADDRESS={address}, both must be whole numbers") from None
        given["coordinator_address"] = address
    try:
        jax.distributed.initialize(**given, initialization_timeout=JOIN_SECONDS, shutdown_timeout_seconds=END_SECONDS)
    except (RuntimeError, ValueError) as error:
        late = "DEADLINE_EXCEEDED" in str(error)
        kind = TimeoutError if late else ValueError
        raise kind(f"this process cannot join the others: {' '.join(str(error).split())}") from error


def check_one_process(name: str) -> None:
    """Raises ValueError when several processes are meant to run a command that knows of one."""
    if os.environ.get("JAX_COORDINATOR_ADDRESS") or os.environ.get("DINO_JAX_DISTRIBUTED") == "1":
        raise ValueError(
            f"{name} runs in one process, on all its devices: start it once, without DINO_JAX_DISTRIBUTED and "
            "JAX_COORDINATOR_ADDRESS"
        )


def describe_devices(devices: list, processes: int) -> str:
    """Says in a line what the command computes on."""
    kind = devices[0].device_kind if devices[0].device_kind != devices[0].platform else devices[0].platform.upper()
    many = f"{len(devices)} devices" if len(devices) > 1 else "1 device"
    return f"{many} ({kind})" + (f" in {processes} processes" if processes > 1 else "")
