"""When the trainer starts itself again for larger memory pages, and when it leaves well alone."""

import os
import subprocess
import sys

import pytest

from jepa_jax.huge_pages import ASKED, environment, left_out

MADVISE = "always [madvise] never\n"


def test_asked_for_once_beside_other_tunables():
    first = environment({"A": "b"}, MADVISE, "glibc")
    assert first == {"A": "b", ASKED: "asked", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert environment(first, MADVISE, "glibc") is None
    # What glibc leaves of it to a Python that has more rights than its user.
    assert environment(first | {"GLIBC_TUNABLES": ""}, MADVISE, "glibc") is None
    other = environment({"GLIBC_TUNABLES": "glibc.malloc.check=3"}, MADVISE, "glibc")
    assert other["GLIBC_TUNABLES"] == "glibc.malloc.check=3:glibc.malloc.hugetlb=1"


def test_left_alone_where_it_would_change_nothing():
    assert environment({}, "[always] madvise never", "glibc") is None
    assert environment({}, "always madvise [never]", "glibc") is None
    assert environment({}, MADVISE, "") is None
    assert environment({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, MADVISE, "glibc") is None


@pytest.mark.parametrize("own", [{}, {"GLIBC_TUNABLES": "glibc.malloc.check=3"}])
def test_another_program_gets_what_the_user_set(monkeypatch, own):
    def tunables():
        program = f"import os; print([os.environ.get(k, '') for k in ('GLIBC_TUNABLES', '{ASKED}')])"
        command = [sys.executable, "-c", program]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    for name in ("GLIBC_TUNABLES", ASKED):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment(own, MADVISE, "glibc").items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with left_out():
        assert tunables() == str([own.get("GLIBC_TUNABLES", ""), ""])
    assert dict(os.environ) == before


@pytest.mark.parametrize("asked", [None, "0", "1"])
def test_what_the_user_asked_for_stays_for_every_program(monkeypatch, asked):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    monkeypatch.setenv(ASKED, asked) if asked else monkeypatch.delenv(ASKED, raising=False)
    with left_out():
        assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"


def test_the_command_that_starts_again_is_the_same(tmp_path):
    """Arguments, process and exit status stay; it happens at most once."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from jepa_jax.huge_pages import restart_with_huge_pages\n"
        "print(os.getpid(), 'start', flush=True)\n"
        "restart_with_huge_pages()\n"
        "print(os.getpid(), sys.argv[1:], flush=True)\n"
        "sys.exit(3)\n"
    )
    environ = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", ASKED)}
    environ["PYTHONPATH"] = os.getcwd()
    command = [sys.executable, str(program), "--a=b c", "d"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environ)
    lines = done.stdout.splitlines()
    assert done.returncode == 3, done.stderr
    assert 2 <= len(lines) <= 3
    assert len({line.split()[0] for line in lines}) == 1
    assert lines[-1].endswith("['--a=b c', 'd']")
