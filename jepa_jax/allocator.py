"""Settings of the C allocator, which XLA takes its buffers from on a CPU.

XLA gives a step's temporary memory back at its end and asks for it again at the next. By default all of
it comes from the kernel anew each time, zeroed, in pages of 4 KiB: a fourth of the demo's time. So glibc
is asked for huge pages, and to keep what it was given back.
"""

import os
import pathlib
import platform
import sys
from collections.abc import Sequence

HUGE_PAGES = {"glibc.malloc.hugetlb": "1"}
# Large blocks come from the one heap that all threads share, and the heap never shrinks.
KEEP = {
    "glibc.malloc.arena_max": "1",
    "glibc.malloc.mmap_max": "0",
    "glibc.malloc.trim_threshold": str(2**40),
}
KERNEL_SWITCH = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
ACCELERATORS = ("accel[0-9]*", "vfio/[0-9]*", "nvidia[0-9]*")


def environment(
    environ: dict[str, str], kernel_switch: str, libc: str, accelerators: Sequence
) -> dict[str, str] | None:
    """The environment with these settings; None where it would change nothing.

    Args:
      environ: the present environment. A user's own values of the tunables are left alone.
      kernel_switch: contents of `KERNEL_SWITCH`, such as "always [madvise] never".
      libc: the C library's name.
      accelerators: of this machine. Where there are any, XLA's buffers are theirs, and the many threads
        of a host that decodes videos are better off with heaps of their own.
    """
    tunables = environ.get("GLIBC_TUNABLES", "")
    wanted = HUGE_PAGES if "[madvise]" in kernel_switch else {}
    if not accelerators:
        wanted = wanted | KEEP
    added = [f"{name}={value}" for name, value in wanted.items() if name not in tunables]
    if libc != "glibc" or not added:
        return None
    return {**environ, "GLIBC_TUNABLES": ":".join(filter(None, [tunables, *added]))}


def restart_with_settings() -> None:
    """Start this very command again, in the same process, where that changes a setting.

    glibc reads its tunables before any Python runs, so they cannot be set from inside.
    """
    try:
        kernel_switch = KERNEL_SWITCH.read_text()
    except OSError:  # not Linux, or a kernel without huge pages
        kernel_switch = ""
    accelerators = [path for pattern in ACCELERATORS for path in pathlib.Path("/dev").glob(pattern)]
    changed = environment(dict(os.environ), kernel_switch, platform.libc_ver()[0], accelerators)
    if changed is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)
