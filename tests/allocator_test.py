"""When the trainer starts itself again with other allocator settings, and when it leaves well alone."""

import os
import subprocess
import sys

from jepa_jax.allocator import environment

MADVISE = "always [madvise] never\n"
HUGE = "glibc.malloc.hugetlb=1"
KEPT = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"


def test_asked_for_once_beside_other_tunables():
    first = environment({"A": "b"}, MADVISE, "glibc", [])
    assert first == {"A": "b", "GLIBC_TUNABLES": f"{HUGE}:{KEPT}"}
    assert environment(first, MADVISE, "glibc", []) is None
    other = environment({"GLIBC_TUNABLES": "glibc.malloc.check=3"}, MADVISE, "glibc", [])
    assert other["GLIBC_TUNABLES"] == f"glibc.malloc.check=3:{HUGE}:{KEPT}"


def test_a_users_own_values_stay():
    own = "glibc.malloc.arena_max=4:glibc.malloc.hugetlb=0"
    changed = environment({"GLIBC_TUNABLES": own}, MADVISE, "glibc", [])
    assert changed["GLIBC_TUNABLES"] == f"{own}:{KEPT.partition(':')[2]}"


def test_left_alone_where_it_would_change_nothing():
    for switch in ("[always] madvise never", "always madvise [never]", ""):
        assert environment({}, switch, "glibc", []) == {"GLIBC_TUNABLES": KEPT}
        assert environment({}, switch, "glibc", ["/dev/accel0"]) is None
    assert environment({}, MADVISE, "glibc", ["/dev/nvidia0"]) == {"GLIBC_TUNABLES": HUGE}
    assert environment({}, MADVISE, "", []) is None


def test_the_command_that_starts_again_is_the_same(tmp_path):
    """Arguments, process and exit status stay; it happens at most once."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from jepa_jax.allocator import restart_with_settings\n"
        "print(os.getpid(), 'start', flush=True)\n"
        "restart_with_settings()\n"
        "print(os.getpid(), sys.argv[1:], flush=True)\n"
        "sys.exit(3)\n"
    )
    environ = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environ["PYTHONPATH"] = os.getcwd()
    command = [sys.executable, str(program), "--a=b c", "d"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environ)
    lines = done.stdout.splitlines()
    assert done.returncode == 3, done.stderr
    assert 2 <= len(lines) <= 3
    assert len({line.split()[0] for line in lines}) == 1
    assert lines[-1].endswith("['--a=b c', 'd']")
