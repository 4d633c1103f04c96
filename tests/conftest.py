"""For all tests: one thread per process, since several run side by side, and threads that sleep while they wait."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
