"""Several hosts as one run: how they find one another, and how they stop together."""

import argparse
import collections
import contextlib
import errno
import functools
import glob
import importlib.util
import itertools
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jepa_jax import flags
from jepa_jax.errors import first_line
from jepa_jax.sharding import batch_sharding

# Seconds after which a start says that it waits for other hosts.
_PATIENCE = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `initialize`."""
    environ = os.environ.get
    group = parser.add_argument_group("several hosts, where no cluster manager says so")
    group.add_argument("--coordinator", metavar="HOST:PORT", default=environ("JAX_COORDINATOR_ADDRESS"))
    group.add_argument("--processes", type=int, metavar="N", default=environ("JAX_NUM_PROCESSES"))
    group.add_argument("--process", type=int, metavar="I", default=environ("JAX_PROCESS_ID"))
    group.add_argument(
        "--heartbeat", type=flags.count, metavar="SECONDS", default=100, help="until a host is lost"
    )


def on_a_cluster(environ: Mapping[str, str]) -> bool:
    """Whether a manager that JAX knows runs several processes: Cloud TPU, GKE, SLURM or Open MPI.

    A laptop must not wait for others, so this asks for a number above one wherever there is one.
    """
    number = lambda name: int(environ.get(name, "1") or 1)
    tpu_hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES", "")
    several_tpu_hosts = len(tpu_hosts.split(",")) > 1
    several_slices = number("MEGASCALE_NUM_SLICES") > 1
    slurm = "SLURM_JOB_ID" in environ and number("SLURM_NTASKS") > 1 and "SLURM_STEP_NODELIST" in environ
    return several_tpu_hosts or several_slices or slurm or number("OMPI_COMM_WORLD_SIZE") > 1


def gpus_of_its_own(environ: Mapping[str, str]) -> list[int] | None:
    """The GPUs of a process that SLURM or Open MPI started: all for the only one of a machine, and the one
    that is all it sees. None leaves it to JAX, which gives the Ith process of a machine its Ith GPU."""
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", ""))
    if not tasks or "JAX_LOCAL_DEVICE_IDS" in environ:
        return None
    alone = all(node.split("(")[0] == "1" for node in tasks.split(","))
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    count = len(glob.glob("/dev/nvidia[0-9]*") if visible is None else [x for x in visible.split(",") if x])
    return list(range(count)) if count and (alone or count == 1) else None


def _may_have_others() -> bool:
    """A Cloud TPU machine whose metadata server knows the others. In Colab, Kaggle and containers nobody is
    to be asked: there the environment names them, or there are none."""
    told = ("TPU_SKIP_MDS_QUERY", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    return (
        bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
        and "tpu" in os.environ.get("JAX_PLATFORMS", "tpu")
        and not any(name in os.environ for name in told)
    )


def initialize(values: argparse.Namespace, *, stops_by_step: bool = False) -> None:
    """Join the other hosts of this run, if there are any. Before the first use of a device.

    Args:
      values: parsed flags of `add_arguments`.
      stops_by_step: the command calls `asked_to_stop`. JAX then takes SIGTERM, which does nothing by itself;
        all others end by it, as on one host.

    Raises:
      UsageError: only some of the flags, or impossible ones; or JAX was used before, as in a notebook, and
        there are others; or it cannot find out who they are; or there is no device, or not as many on every
        host.
    """
    if not jax.distributed.is_initialized():
        jax.config.update("jax_enable_preemption_service", stops_by_step)
    _join(values)
    check_devices()
    if jax.process_count() > 1:  # what hosts tell one another goes over connections of its own: see `connect`
        multihost_utils.sync_global_devices("joined")


def connect(mesh: Mesh) -> None:
    """Connect the hosts as steps over a mesh will want it. Before anything that may take one longer than
    another: with CPUs the first sum between devices does it, and half a minute after the first host it is an
    error, which would end a run whose hosts do not compile equally fast."""
    if jax.process_count() == 1 or jax.default_backend() != "cpu":
        return
    rows = batch_sharding(mesh)
    nothing = jax.make_array_from_process_local_data(rows, np.zeros(len(mesh.local_devices), np.float32))
    for axes in (*mesh.axis_names, mesh.axis_names):
        over = functools.partial(jax.lax.psum, axis_name=axes)
        total = jax.shard_map(over, mesh=mesh, in_specs=rows.spec, out_specs=rows.spec)
        jax.block_until_ready(jax.jit(total)(nothing))


@contextlib.contextmanager
def _saying_that_it_waits(place: str | None):
    """JAX says nothing while a host of the run has not started, and gives up after five minutes. Ctrl-C,
    which Python would see no sooner, ends the process until then: nothing has begun."""
    line = f"waiting for the other hosts of this run{f' at {place}' if place else ''}"
    waiting = threading.Timer(_PATIENCE, print, [line], {"file": sys.stderr, "flush": True})
    waiting.daemon = True
    waiting.start()
    in_main = threading.current_thread() is threading.main_thread()
    stoppable = in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if stoppable:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        waiting.cancel()
        if stoppable:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def check_devices() -> None:
    """Raise UsageError where JAX has nothing to compute on (JAX_PLATFORMS names what this machine lacks, or
    another process holds its TPU), or another number of devices on one host than on another."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter, without a word, of "cuda" and no GPU
        asked = jax.config.jax_platforms
        wanted = f"no device that JAX_PLATFORMS={asked} names" if asked else "no device to compute on"
        reason = f": {first_line(error)}" if str(error) else ""
        raise flags.UsageError(f"JAX finds {wanted}{reason}") from error
    hosts = sorted(collections.Counter(device.process_index for device in jax.devices()).items())
    if len({count for _, count in hosts}) > 1:  # with others JAX cannot even gather a number
        found = ", ".join(f"{count} of process {host}" for host, count in hosts[:8])
        raise flags.UsageError(f"all hosts must have as many devices, and there are {found}")


def _check_free(port: int) -> None:
    """Raise UsageError where this process cannot listen at the run's port. JAX dies of it without a word,
    or shares the port with the run that is there already, and hosts of the two find one another."""
    if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:  # it listens elsewhere
        return
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):  # gRPC finds its own way without IPv6
            return
        raise flags.UsageError(
            f"the first process of the run cannot listen at port {port} ({os.strerror(error.errno)}): end "
            "what does, an earlier run perhaps, or give all hosts another port"
        ) from error


def _join(values: argparse.Namespace) -> None:
    if jax.distributed.is_initialized():  # by an earlier command in this process
        return
    given = {name: getattr(values, name) for name in ("coordinator", "processes", "process")}
    named = [name for name, value in given.items() if value is not None]
    if 0 < len(named) < len(given):
        missing = ", ".join(f"--{name}" for name in given if name not in named)
        raise flags.UsageError(f"--{named[0]} goes with the other two flags of several hosts: add {missing}")
    if named:
        count, index = int(values.processes), int(values.process)
        if not 0 <= index < count:
            raise flags.UsageError(f"--process={index} is not one of the {count} from 0 to {count - 1}")
        address = re.fullmatch(r"([^/\s]+):([0-9]{1,5})", values.coordinator)
        if address is None or not 0 < int(address[2]) < 2**16:  # gRPC says nothing of it, or waits for ever
            raise flags.UsageError(f"--coordinator={values.coordinator!r} is no HOST:PORT")
        if index == 0:
            _check_free(int(address[2]))
        where = {"coordinator_address": values.coordinator, "num_processes": count, "process_id": index}
    elif on_a_cluster(os.environ) or _may_have_others():
        where = {}
    else:
        return
    # The library of collectives between processes on CPUs, which JAX does not turn on by itself; a client
    # without others would want them.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        with _saying_that_it_waits(values.coordinator):
            jax.distributed.initialize(
                **where,
                local_device_ids=gpus_of_its_own(os.environ),
                heartbeat_timeout_seconds=values.heartbeat,
            )
    except RuntimeError as error:
        if "before any JAX" not in str(error):
            raise
        jax.config.update("jax_cpu_collectives_implementation", None)
        # The devices are in use already: a TPU knows whether it is part of a pod.
        if where or jax.process_count() > 1:
            raise flags.UsageError(
                "JAX was used before the hosts of this run could find one another: start a new process"
            ) from error
    except (ValueError, OSError) as error:
        raise flags.UsageError(_who_are_the_others(first_line(error))) from error


def _who_are_the_others(reason: str) -> str:
    """A sentence where JAX cannot tell: it does not know each version of a manager (of Open MPI, 5), or no
    metadata server answers, or there is no library for this TPU, without which it does not look."""
    how = "give --coordinator, --processes and --process"
    if _may_have_others():
        if importlib.util.find_spec("libtpu") is None:
            return (
                "this machine has a TPU and libtpu, its library, is not installed: pip install "
                "'jepa_jax[tpu]', or set JAX_PLATFORMS=cpu to do without"
            )
        how = f"set TPU_SKIP_MDS_QUERY=1 if there are none, or {how}"
    return f"JAX cannot find out who the other hosts of this run are ({reason}): {how}"


def is_main() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def tell(line: str) -> None:
    """Print a line, of several hosts once. That nobody can read it ends no run."""
    if is_main():
        with contextlib.suppress(OSError):
            print(line)


@contextlib.contextmanager
def together():
    """No host goes on from here without the others. The body waits for none of them.

    Raises:
      UsageError: the body failed on another host; where it did, that exception is raised.
    """
    if jax.process_count() == 1:
        yield
        return
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = np.flatnonzero(multihost_utils.process_allgather(np.array(failure is not None)))
    if failure is not None:
        raise failure
    if len(failed):
        raise flags.UsageError(f"process {failed[0]} could not start, and has said why")


@contextlib.contextmanager
def main_first():
    """The first process runs the body before the others do: it prepares what they then find. No host goes
    on from here without the others.

    Raises:
      UsageError: the body failed on another host; where it did, that exception is raised.
    """
    if not is_main():
        multihost_utils.sync_global_devices("main_first")
    with together():
        try:
            yield
        finally:
            if is_main():
                multihost_utils.sync_global_devices("main_first")


def check_shared(workdir: epath.Path) -> None:
    """Raise UsageError, on every host, unless all of them can write into the folder and see what the first
    writes there: with one of its own for each, the first checkpoint would wait for ever, and what is made in
    parts would lack those of the others; for what one cannot write of a checkpoint Orbax waits 20 minutes,
    each time."""
    if jax.process_count() == 1:
        return
    # A name that nobody has looked for: file systems remember what was not there.
    number = int(multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32))))
    first, own = (workdir / f".probe-{number:08x}-{host}" for host in (0, jax.process_index()))
    try:
        with together():
            try:
                own.write_text("")
            except Exception as error:  # each store has errors of its own
                raise flags.UsageError(f"{workdir} cannot be written: {first_line(error)}") from error
        seen = multihost_utils.process_allgather(np.array(first.exists()))
    finally:
        with contextlib.suppress(Exception):
            own.unlink()
    if not seen.all():
        raise flags.UsageError(
            f"{workdir}: {np.sum(~seen)} of {len(seen)} hosts do not see what the first writes there: name "
            "a folder that all of them share"
        )


def _of_first(text: str) -> str:
    """The first process's text, on every host."""
    content = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    return multihost_utils.broadcast_one_to_all(np.resize(content, size)).tobytes().decode()


def check_alike(known: Mapping[str, str]) -> None:
    """Raise UsageError, on every host, unless all of them know the same by these names. Hosts that compute
    different things wait for one another for ever, or each goes on with parameters of its own."""
    if jax.process_count() == 1:
        return
    first = json.loads(_of_first(json.dumps(known)))
    others = [
        f"{name} is {first.get(name)} on process 0 and {known.get(name)} here"
        for name in sorted(first.keys() | known.keys())
        if first.get(name) != known.get(name)
    ]
    more = f" (and {len(others) - 3} more)" if len(others) > 3 else ""
    with together():
        if others:
            raise flags.UsageError(
                f"process {jax.process_index()} would compute something else: {'; '.join(others[:3])}{more}: "
                "start the same command, of the same version and on the same data, on all hosts"
            )


# Not steps: JAX says so at the number that follows the largest it was given, so of a notice before the first
# call at 1, and to a run that goes on from a later step it would never.
_calls = itertools.count(1)


def asked_to_stop() -> bool:
    """Whether some host got SIGTERM and this is the call at which all of them learn of it.

    To be called equally often on every host, at every step. JAX's coordination service carries the notice,
    but in a program whose first command that joined the hosts was one without steps.
    """
    carried = jax.process_count() > 1 and jax.config.jax_enable_preemption_service
    return carried and multihost_utils.reached_preemption_sync_point(next(_calls))


def end_at_once(status: int = 1) -> None:
    """End this process: what runs at a normal end would wait for hosts that are gone, or that
    wait for this one."""
    sys.stdout.flush()
    os._exit(status)


@contextlib.contextmanager
def ending_together(workdir=None):
    """A host that fails where others wait for it must not leave them, nor itself, waiting.

    Ends the process at once, with status 1 and a sentence; Ctrl-C with status 130.

    Args:
      workdir: where what was done is kept, if it is.
    """
    try:
        yield
    except KeyboardInterrupt:
        if jax.process_count() == 1:
            raise
        print("stopped", file=sys.stderr, flush=True)
        end_at_once(128 + signal.SIGINT)
    except Exception as error:
        if jax.process_count() == 1 or isinstance(error, flags.UsageError):
            raise
        reason = first_line(error)
        goes_on = f": it goes on from what was saved in {workdir}" if workdir else ""
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} stops, for another host was lost "
            f"or something failed here ({reason[:300]}); start the same command on all hosts again{goes_on}",
            file=sys.stderr,
            flush=True,
        )
        end_at_once()
