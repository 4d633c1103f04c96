"""The pulse beside compiled models and several processes: no new graphs, nobody waits for anybody, the same bits."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from test_glass_pulse import GPT2, batch_of, fresh, mean_loss_of

from lightwell.glass.pulse import Pulse

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def train(model, forward, observer, steps=5):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(5)
    for step in range(1, steps + 1):
        batch = batch_of(step)
        wanted = observer is not None and observer.wants(step)
        if wanted:
            observer.before_forward(model, batch)
        mean_loss_of(forward, batch).backward()
        if wanted:
            observer.after_backward(model)
        optimizer.step()
        optimizer.zero_grad()
    if observer is not None:
        observer.at_end()


def test_a_compiled_model_is_not_compiled_again_and_trains_the_same():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    finished = []
    for observer in (None, Pulse(lambda step, rows: finished.append(rows), every=2)):
        torch._dynamo.reset()
        graphs.clear()
        model = fresh(GPT2)
        train(model, torch.compile(model, backend=backend, dynamic=False), observer)
        finished.append((len(graphs), model.state_dict()))
    (alone, weights), *rows, (watched, same) = finished
    assert alone == watched
    assert len(rows) == 3
    assert any(name == "saturated" for _, name, _ in rows[0])
    for name, value in weights.items():
        assert torch.equal(value, same[name]), name


def of_one_process(rank: int, port: int, kind: str, watched: bool, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = fresh(GPT2)
    rows = []
    if kind == "sharded":
        from torch.distributed.fsdp import fully_shard

        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        forward, everywhere = model, True
    else:
        forward, everywhere = torch.nn.parallel.DistributedDataParallel(model), False
    observer = Pulse(lambda step, found: rows.append(found), every=2) if watched and (everywhere or rank == 0) else None
    train(model, forward, observer)
    weights = {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).tolist()
        for name, value in model.state_dict().items()
        if name.endswith("norm1.weight")
    }
    if rank == 0:
        results.put((weights, rows))
    dist.barrier()
    dist.destroy_process_group()


def of_both(kind: str, watched: bool):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = processes.get_context("spawn")
    results = context.Queue()
    started = processes.spawn(of_one_process, (port, kind, watched, results), nprocs=2, join=False)
    found = results.get(timeout=300)
    started.join()
    return found


@pytest.mark.parametrize("kind", ["data", "sharded"])
def test_two_processes_train_the_same_with_and_without(kind):
    alone, _ = of_both(kind, watched=False)
    weights, rows = of_both(kind, watched=True)
    assert weights == alone
    names = {name for _, name, _ in rows[0]}
    assert {"weight_rms", "gradient_rms"} <= names
    assert ("saturated" in names) is (kind == "data")
    expected = fresh(GPT2).tok_emb.weight.detach().square().mean().sqrt().item()
    first = next(value for layer, name, value in rows[0] if (layer, name) == ("tok_emb.weight", "weight_rms"))
    assert first == pytest.approx(expected, rel=1e-4)
