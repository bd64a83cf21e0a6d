"""Large memory pages for the C allocator, which XLA takes its buffers from on a CPU.

XLA gives a step's temporary memory back at its end and asks for it again at the next. With pages of
4 KiB that is tens of thousands of page faults a step, a fourth of the demo's time.
"""

import contextlib
import os
import pathlib
import platform
import sys

TUNABLE = "glibc.malloc.hugetlb"
# Says that it was asked for: from a Python with capabilities of its own glibc takes the tunables away.
ASKED = "JEPA_JAX_HUGE_PAGES"
# Its value where this module has asked; a user may set it to anything else.
_BY_US = "asked"
KERNEL_SWITCH = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def environment(environ: dict[str, str], kernel_switch: str, libc: str) -> dict[str, str] | None:
    """The environment in which glibc asks for huge pages; None where it would change nothing.

    Args:
      environ: the present environment. A user's own setting of the tunable is left alone; `ASKED`, of any
        value, says that nothing is to be done.
      kernel_switch: contents of `KERNEL_SWITCH`, such as "always [madvise] never".
      libc: the C library's name.
    """
    tunables = environ.get("GLIBC_TUNABLES", "")
    asked = TUNABLE in tunables or ASKED in environ
    if libc != "glibc" or asked or "[madvise]" not in kernel_switch:
        return None
    return {**environ, ASKED: _BY_US, "GLIBC_TUNABLES": ":".join(filter(None, [tunables, f"{TUNABLE}=1"]))}


@contextlib.contextmanager
def left_out():
    """Processes that are started in here have the environment of before the restart: a program with an
    allocator of its own over glibc's, such as PyTorch, may be slower with huge pages."""
    asked, tunables = os.environ.get(ASKED), os.environ.get("GLIBC_TUNABLES", "")
    before = tunables.removesuffix(f"{TUNABLE}=1").removesuffix(":")
    if asked != _BY_US or before == tunables:
        yield
        return
    del os.environ[ASKED]
    os.environ["GLIBC_TUNABLES"] = before
    try:
        yield
    finally:
        os.environ |= {ASKED: asked, "GLIBC_TUNABLES": tunables}


def restart_with_huge_pages() -> None:
    """Start this very command again, in the same process, where that gives it huge pages.

    glibc reads its tunables before any Python runs, so they cannot be set from inside.
    """
    try:
        kernel_switch = KERNEL_SWITCH.read_text()
    except OSError:  # not Linux, or a kernel without them
        return
    changed = environment(dict(os.environ), kernel_switch, platform.libc_ver()[0])
    if changed is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)
