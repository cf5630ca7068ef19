import json
import platform
import subprocess
import sys

import pytest

from openm6.train import memory


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("model name\t: A\nflags\t\t: fpu avx512f avx512_bf16 avx512vl\n", True),
        ("model name\t: A\nflags\t\t: fpu amx_tile amx_bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16 dgh\n", True),
        ("model name\t: amx_bf16 in name only\nflags\t\t: fpu avx512f not_bf16\n", False),
        ("", False),
    ],
)
def test_cpuinfo_bf16(cpuinfo, expected):
    assert memory.cpuinfo_has_bf16(cpuinfo) is expected


def test_machine_reads_the_processor(monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Example 9000\nflags\t\t: fpu avx512_bf16\n")
    monkeypatch.setattr(memory, "_CPUINFO", cpuinfo)
    facts = memory.machine()
    assert facts["processor"] == "Example 9000"
    assert facts["native_bf16"] is True
    assert int(facts["cores"]) >= 1
    assert int(facts["memory_bytes"]) > memory.resident_bytes()
    assert json.loads(json.dumps(facts)) == facts


# With malloc itself: NumPy asks the kernel for huge pages, which hides how often a block is faulted in.
_COUNT_FAULTS = """
import ctypes, resource, sys
from openm6.train.memory import keep_large_blocks
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
kept = keep_large_blocks() if sys.argv[1] == "keep" else False
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(48 << 20)))
    ctypes.memset(block, 1, 48 << 20)
    libc.free(block)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize("libc", ["glibc", "musl"])
def test_keep_large_blocks_removes_page_faults(libc, monkeypatch):
    if libc == "musl" or platform.libc_ver()[0] != "glibc":
        monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
        monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("must not touch another C library"))
        assert memory.keep_large_blocks() is False
        return

    def run(mode):
        out = subprocess.run(
            [sys.executable, "-c", _COUNT_FAULTS, mode], capture_output=True, text=True, check=True
        )
        kept, faults = out.stdout.split()
        return kept == "True", int(faults)

    (kept, few), (_, many) = run("keep"), run("default")
    assert kept
    assert few * 4 < many
