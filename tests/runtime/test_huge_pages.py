import os
import subprocess
import sys

import pytest

from refocus_jax.runtime import huge_pages

PROGRAM = """
import os, sys
from refocus_jax.runtime import huge_pages
huge_pages._KERNEL = huge_pages.Path(sys.argv[1])
huge_pages.restart()
print(os.getpid(), sys.argv[2:], os.environ.get("GLIBC_TUNABLES"))
"""


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Stands for a kernel of this mode, on a system with glibc."""
    monkeypatch.setattr(huge_pages, "_KERNEL", tmp_path / "enabled")
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: ("glibc", "2.36"))
    return lambda mode: huge_pages._KERNEL.write_text(mode)


def test_the_environment_asks_for_large_pages_once(kernel):
    kernel("always [madvise] never\n")
    wanted = huge_pages.environment({"HOME": "/home/me"})
    assert wanted == {"HOME": "/home/me", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert huge_pages.environment(wanted) is None
    assert huge_pages.environment({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}) is None
    both = huge_pages.environment({"GLIBC_TUNABLES": "glibc.malloc.check=3"})
    assert both == {"GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.malloc.hugetlb=1"}


@pytest.mark.parametrize("mode", ["[always] madvise never", "always madvise [never]", None])
def test_a_kernel_that_gives_them_to_all_or_none_is_not_asked(kernel, mode):
    if mode:
        kernel(mode)
    assert huge_pages.environment({}) is None


def test_another_c_library_is_left_alone(kernel, monkeypatch):
    kernel("always [madvise] never")
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: ("", ""))
    assert huge_pages.environment({}) is None


@pytest.mark.skipif(huge_pages.platform.libc_ver()[0] != "glibc", reason="only glibc has large pages to ask for")
def test_a_program_starts_again_as_the_same_process_with_its_arguments(tmp_path):
    (tmp_path / "enabled").write_text("always [madvise] never")
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-X", "utf8", "-c", PROGRAM, str(tmp_path / "enabled"), "a b", "--c=1"]
    started = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert started.communicate(timeout=60)[0] == f"{started.pid} ['a b', '--c=1'] glibc.malloc.hugetlb=1\n"
