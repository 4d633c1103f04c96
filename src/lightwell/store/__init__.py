"""The run folder: config, weights, optimizer, decisions, metrics; kept so that a run is never lost.

`checkpoint` writes and reads one checkpoint; `checkpoints` finds the newest good one and clears old ones away;
`background` saves while training goes on; `run_folder` is the folder around them; `database` holds what was measured.
"""
