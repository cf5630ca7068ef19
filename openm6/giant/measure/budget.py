"""A memory budget: its notation, and the bytes that this process holds of it.

The figures come from the operating system and cover the whole process: interpreter, libraries, tensors, buffers.
Files that the kernel caches are not included.
"""

from __future__ import annotations

import ctypes
import math
import platform
import re
import resource
import sys
from pathlib import Path

_UNITS = {
    "": 1,
    "b": 1,
    **{prefix + "b": 1000 ** (power + 1) for power, prefix in enumerate("kmgt")},
    **{prefix + "ib": 1024 ** (power + 1) for power, prefix in enumerate("kmgt")},
}

_STATUS = Path("/proc/self/status")


def parse_bytes(size: str | int) -> int:
    """Bytes of a size such as "12GiB", "6 GB", "512MiB", "1.5GiB" or 4096.

    KiB, MiB, GiB and TiB count in 1024s; kB, MB, GB and TB in 1000s; case does not matter. Raises
    `ValueError` if the size cannot be read or is below one byte.
    """
    text = str(size).strip()
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)", text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or isinstance(size, bool):
        raise ValueError(f"{size!r} is not a size: write a number and a unit, such as 12GiB, 6GB or 512MiB")
    count = math.floor(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    if count < 1:
        raise ValueError(f"a size must be at least one byte, which {size!r} is not")
    return count


def format_bytes(count: int) -> str:
    """Bytes in about three digits, in units of 1024: "1.50 GiB", "640 MiB", "12 B"."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger
    if unit == "B":
        return f"{count} B"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f} {unit}"


def format_least(count: int) -> str:
    """A size that `parse_bytes` reads, rounded up to whole MiB, so that `count` bytes fit."""
    return f"{-(-count // (1 << 20))}MiB"


def peak_resident_bytes() -> int:
    """Largest resident memory of this process so far, in bytes, measured by the operating system."""
    peak = _status_bytes("VmHWM")
    if peak is not None:
        return peak
    # ru_maxrss counts bytes on macOS and kB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Resident memory of this process now, in bytes; its peak if the system does not report the present value."""
    now = _status_bytes("VmRSS")
    return peak_resident_bytes() if now is None else now


def release_memory() -> int:
    """Hand the allocator's reserves back to the system. Returns the resident bytes afterwards.

    glibc keeps freed blocks of up to 32 MiB for reuse, and each thread's arena keeps its own. Call this when one
    phase has freed its memory and the next phase needs other sizes: after a model was released, or between the
    forward and the backward pass. With another C library it changes nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


def _status_bytes(key: str) -> int | None:
    """A field of /proc/self/status in bytes (the file counts in kB of 1024); None if there is no /proc."""
    try:
        match = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None
