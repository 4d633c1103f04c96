"""Which process on which machine: what locks and temporary names record."""

from __future__ import annotations

import os
import socket
import sys


def host() -> str:
    return socket.gethostname()


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs. Where one cannot ask without harm (Windows), the answer is yes."""
    if sys.platform == "win32":  # os.kill(pid, 0) would send Ctrl-C there
        return True
    try:
        os.kill(max(pid, 0) or 2**31, 0)  # 0 and below mean groups of processes
    except (ProcessLookupError, OverflowError):  # a number that no process has
        return False
    except PermissionError:
        return True
    return True
