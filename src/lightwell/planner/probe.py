"""Does a step really fit into memory? Tried in a process of its own, which may die of it.

Nothing is raised on a CPU when memory runs out: the system ends a process, and not always the guilty one. So the step
is made by a child that asks to be the one. It takes some seconds.

    python -m lightwell.planner.probe < CONFIG.json     # one step; prints the peak of resident memory in bytes
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from lightwell.config.run import RunConfig, parse, to_raw
from lightwell.runtime.memory import peak_bytes

STARTS = 5.0  # seconds that such a process takes to begin


def peak_of_a_step(config: RunConfig, threads: int, timeout: float) -> int | None:
    """Bytes of resident memory that one step of a complete config takes at its peak, all but the interpreter's own;
    None if the system ended the process.

    Raises subprocess.TimeoutExpired after `timeout` seconds: that tells of a busy machine, nothing of its memory.
    """
    # -P: not from the working folder, where a user may have a random.py
    command = [sys.executable, "-P", "-m", "lightwell.planner.probe", str(threads)]
    try:
        done = subprocess.run(
            command, input=json.dumps(to_raw(config)), capture_output=True, text=True, timeout=timeout, check=True
        )
    except subprocess.CalledProcessError:
        return None
    return int(done.stdout)


def main() -> None:
    import torch

    from lightwell.planner.fit import rows_at_once
    from lightwell.planner.step_time import Trial
    from lightwell.runtime.device import choose_device

    with suppress(OSError):  # not on every system, and not needed
        Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(int(sys.argv[1]))
    config = parse(json.load(sys.stdin))
    began = peak_bytes() or 0
    Trial(config, choose_device("cpu", config.runtime.dtype), rows_at_once(config)).step()
    sys.stdout.write(str((peak_bytes() or 0) - began))  # to the process that asked


if __name__ == "__main__":
    main()
