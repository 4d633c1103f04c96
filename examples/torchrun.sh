#!/bin/sh
# One machine, all its GPUs (or, without GPUs, N processes on the CPU: GPUS=2 sh examples/torchrun.sh).
#
#   TEXT=notes/ RUN=runs/notes MINUTES=60 sh examples/torchrun.sh
#
# A process that dies is started again together with the others, up to MAX_RESTARTS times; the run goes on from its last
# good checkpoint, since the same command continues an unfinished run in --out. Ctrl-C saves and ends.
set -eu
TEXT=${TEXT:?the text to train on}
RUN=${RUN:?the folder of the run}
GPUS=${GPUS:-gpu}
MAX_RESTARTS=${MAX_RESTARTS:-3}

exec torchrun --standalone --nproc-per-node "$GPUS" --max-restarts "$MAX_RESTARTS" \
    -m lightwell pretrain "$TEXT" --out "$RUN" --minutes "${MINUTES:-60}" "$@"
