"""Is this device right (operations, steps), and does resume hold here (resume)? `check.selftest` asks both."""
