"""A small training as one of the processes that torchrun starts; with an accident, if one is asked for.

process_worker.py RUN DATASET KIND MICRO_BATCH STEPS [kill|stop|bad-weight|bad-gradients|full-disk|until-STEP]
"""

import math
import os
import signal
import sys
from pathlib import Path

import torch
from training_helpers import Float64, tiny

from lightwell.data.dataset import open_dataset
from lightwell.errors import SpaceError, StoppedEarly
from lightwell.runtime.observer import Observer
from lightwell.runtime.world import join_world, leave
from lightwell.store import background
from lightwell.store.checkpoints import list_checkpoints
from lightwell.store.database import RunDatabase
from lightwell.training.assemble import assemble
from lightwell.training.loop import run
from lightwell.training.record import NoRecord
from lightwell.training.saver import read_for_all
from lightwell.training.sharding import local


class Accident(Observer):
    """At step 12 of the first attempt, to the process of rank 1."""

    def __init__(self, what, world):
        self.what, self.world = what, world

    def wants(self, step):
        return step == 12 and self.world.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"

    def before_forward(self, model, batch):
        if self.what == "bad-weight":
            with torch.no_grad():
                local(model.get_parameter("tok_emb.weight"))[0, 0] = math.nan
            self.what = None
        elif self.what:
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[self.what])


def spoil_gradients(training, bad):
    """Those of the batches `bad`, on every process."""
    clip = training.replicas.clip_gradients
    training.replicas.clip_gradients = lambda largest: (
        clip(largest) * (math.nan if training.state.data_step in bad else 1.0)
    )


def refuse_to_save(last):
    """The disk is full when step `last` is to be saved."""
    write = background.write_checkpoint

    def refused(run, step, *rest):
        if step >= last:
            raise SpaceError("expected to write, got a full disk.")
        return write(run, step, *rest)

    background.write_checkpoint = refused


def main(path, dataset, kind, micro_batch, steps, accident=""):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    device = Float64(torch.device("cpu"), torch.float64)
    path = Path(path)
    config = tiny(
        steps=int(steps),
        model={"context_length": 16, "drop_rate": 0.0},
        train={"batch_size": 12, "micro_batch_size": int(micro_batch), "early_stop": False, "eval_every": 25},
        checkpoint={"every": 5},
        runtime={"parallel": kind},
    )
    with join_world() as world:
        record = NoRecord()
        if world.is_main:
            path.mkdir(exist_ok=True)
            record = RunDatabase(path / "run.sqlite")
        begun = world.on_main(lambda: bool(list_checkpoints(path)))
        checkpoint = read_for_all(path, world, print) if begun else None
        observers = [Accident(accident, world)] if accident in ("kill", "stop", "bad-weight") else []
        training = assemble(
            path, config, open_dataset(dataset), device, world, record, checkpoint=checkpoint, observers=observers
        )
        if accident == "bad-gradients":
            spoil_gradients(training, (12, 13, 14))
        if accident.startswith("until"):
            last = int(accident.split("-")[1])
            training.stop = lambda: "told to" if training.state.step == last else None
        if accident == "full-disk":
            refuse_to_save(int(steps))
        try:
            run(training)
        except StoppedEarly as error:
            (path / "stopped").write_text(error.message)
        if world.is_main:
            record.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
