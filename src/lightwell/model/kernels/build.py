"""Build the C files here with the machine's own compiler, once, and load them; two seconds, then a file in the user's
cache.

Where that is not possible (no compiler, not Linux) the answer is None, and training and generation take PyTorch's own
kernels: slower, with the same results but for rounding.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import torch  # noqa: F401  # its threads library is loaded from then on

FOLDER = Path(__file__).parent
SOURCES = tuple(FOLDER / name for name in ("rows.c", "attention.c", "one_token.c"))  # and the header they include
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wall")
WIDE = (
    ("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()
)  # compilers hesitate where AVX-512 is there
SWITCH = "LIGHTWELL_KERNELS"  # an environment variable: "0" to do without
LONGEST_BUILD = 60.0  # seconds


def library() -> ctypes.CDLL | None:
    """The functions of the C files, or None where they cannot be had (`why_not` says why)."""
    return _loaded()[0]


def built() -> str | None:
    """The name of the library that is used, after all that its bits depend on; None where there is none."""
    found = library()
    return Path(found._name).stem if found else None


def why_not() -> str | None:
    """Why the C kernels are not used, or None if they are."""
    return _loaded()[1]


@cache
def _loaded() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, built if need be, or the reason why there is none."""
    if os.environ.get(SWITCH) == "0":
        return None, f"{SWITCH}=0"
    if not sys.platform.startswith("linux"):
        return None, "they are only built on Linux"
    compiler, threads = _compiler(), _threads_library()
    if compiler is None:
        return None, "there is no C compiler"
    if threads is None:
        return None, "PyTorch's threads library was not found"
    try:
        with ExitStack() as stack:
            folder = _cache() or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            place = folder / _name(compiler, threads)
            if not place.exists() or not place.stat().st_size:
                _build(place, compiler, threads)
            return ctypes.CDLL(str(place)), None
    except subprocess.CalledProcessError as error:
        return None, f"the C compiler failed: {next(iter(error.stderr.strip().splitlines()), error)}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{type(error).__name__}: {error}"


def _compiler() -> str | None:
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def _threads_library() -> str | None:
    """The OpenMP library that PyTorch has loaded. A second one would bring a second pool of threads, in its way."""
    maps = Path("/proc/self/maps")  # names of the user's files are among them, which may not be UTF-8
    rows = [line.split(maxsplit=5) for line in maps.read_text(encoding="utf-8", errors="surrogateescape").splitlines()]
    files = sorted({row[5] for row in rows if len(row) == 6})
    return next((file for file in files if Path(file).name.startswith(("libgomp", "libiomp", "libomp"))), None)


def _name(compiler: str, threads: str) -> str:
    """Of the built library: after all that its bits depend on."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    texts = [file.read_bytes() for file in (*SOURCES, FOLDER / "numbers.h")]
    about = (texts, FLAGS + WIDE, version, threads, _processor())
    return f"kernels-{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}.so"


def _processor() -> str:
    """What -march=native looks at."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").split("\n") if info.exists() else []
    about = [line for line in lines if line.startswith(("model", "flags", "Features", "CPU part"))]
    return "\n".join([platform.machine(), *sorted(set(about))])


def _cache() -> Path | None:
    """A folder of the user's own (a library that others could write would be a way in), if it can be written."""
    place = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "lightwell"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return place if os.access(place, os.W_OK) else None


def _build(place: Path, compiler: str, threads: str) -> None:
    """Compile next to the place and move it there, so that two processes that do so at once do no harm."""
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        objects = [f"{folder}/{source.stem}.o" for source in SOURCES]
        compiled = f"{folder}/kernels.so"
        for command in (
            *([compiler, *FLAGS, *WIDE, "-c", str(source), "-o", made] for source, made in zip(SOURCES, objects)),
            [compiler, "-shared", *objects, threads, "-lm", "-o", compiled],  # not -fopenmp: that links another library
        ):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=LONGEST_BUILD)
        with open(compiled, "rb") as made:
            os.fsync(made.fileno())  # a power cut must not leave half of it
        os.replace(compiled, place)
