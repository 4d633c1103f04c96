"""A saved trace is what docs/trace-format.md says, key by key and type by type, and its numbers are the step's."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import lightwell
from lightwell.errors import TraceError
from lightwell.model.build import GPT

PAGE = Path(__file__).parents[2] / "docs" / "trace-format.md"
SIZES = {"vocab_size": 19, "context_length": 8, "emb_dim": 8, "n_heads": 2, "n_layers": 1}
SIMPLE = {"integer": int, "string": str, "boolean": bool, "object": dict}


def schema():
    """Title of a section -> key -> type, as the page's tables have it."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    rows = r"^\| `(\w+)` \| ([^|]+) \|"
    return {text.splitlines()[0]: dict(re.findall(rows, text, re.MULTILINE)) for text in sections}


def check(value, kind, tables, where):
    """Raises AssertionError where a value is not of the type that the page gives."""
    if kind.endswith(" or null") and not kind.startswith("list of"):
        if value is not None:
            check(value, kind.removesuffix(" or null"), tables, where)
    elif kind.startswith("list of "):
        inner = kind.removeprefix("list of ")
        if where.endswith(("elements", "pattern", "reads")) and value is None:
            assert inner.endswith(" or null"), where
            return
        assert isinstance(value, list), where
        for i, item in enumerate(value):
            check(item, inner, tables, f"{where}[{i}]")
    elif " or " in kind:
        assert any(_fits(value, part, tables, where) for part in kind.split(" or ")), f"{where}: {value!r}"
    elif kind == "path":
        assert isinstance(value, list), where
        assert all(isinstance(part, int | str) for part in value), where
    elif kind == "number":
        assert value in ("nan", "inf", "-inf") or type(value) in (int, float), f"{where}: {value!r}"
    elif kind in SIMPLE:
        assert type(value) is SIMPLE[kind], f"{where}: {value!r} is no {kind}"
    else:
        assert set(value) == set(tables[kind]), where
        for key, item in value.items():
            check(item, tables[kind][key], tables, f"{where}.{key}")


def _fits(value, kind, tables, where):
    if kind == "null":
        return value is None
    try:
        check(value, kind, tables, where)
    except AssertionError:
        return False
    return True


def a_gpt():
    model = GPT(lightwell.GPTConfig(**SIZES, drop_rate=0.1), torch.Generator().manual_seed(0)).train()
    ids = torch.randint(0, 19, (2, 6), generator=torch.Generator().manual_seed(1))
    with lightwell.trace() as t:
        loss, n = model(ids, ids)
        (loss / n).backward()
    return t


def an_odd_one():
    """Everything that a GPT does not have: what is not finite, written in place, recomputed, twice differentiated."""

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    w = torch.tensor([1.0, -2.0, math.inf], requires_grad=True)
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with lightwell.trace() as t:
        y = Twice.apply(w).clone()
        y[0:2] += 1
        y = checkpoint(model, y.unsqueeze(0), use_reentrant=False)
        (first,) = torch.autograd.grad(y.sum(), w, create_graph=True)
        first.square().sum().backward()
        optimizer.step()
        torch.view_as_complex(torch.ones(2, 2)).abs()
    return t


def a_snapshot():
    w = torch.nn.Parameter(torch.randn(50, 200, generator=torch.Generator().manual_seed(0)))
    with lightwell.trace("snapshot", memory_limit_bytes=100) as t:
        (w @ w.T).tanh().sum().backward()
    return t


@pytest.mark.parametrize("make", [a_gpt, an_odd_one, a_snapshot])
def test_a_saved_file_is_what_the_page_says(make, tmp_path):
    t = make()
    path = t.save(tmp_path / "step.json", verification=t.verify(whole=False) if make is a_gpt else None)
    data = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    tables = schema()
    assert len(tables) >= 18
    assert {key: set(tables[key]) for key in ("edge", "sample")} == {
        "edge": {"id", "value", "source", "target", "path", "broadcast", "gradients"},
        "sample": {"indices", "elements"},
    }
    check(data, "The whole", tables, "trace")
    assert (data["format"], data["version"]) == ("lightwell-trace", 1)
    assert data == json.loads(json.dumps(t.to_dict() | {"verification": data["verification"]}))


def test_a_file_that_is_not_so_is_told_apart():
    tables = schema()
    good = a_snapshot().to_dict()
    for change in ({"version": "1"}, {"loss": 1.5}, {"more": 1}, {"edges": [{"id": 1}]}, {"notes": [1]}):
        with pytest.raises(AssertionError):
            check(good | change, "The whole", tables, "trace")


def test_numbers_of_a_file_are_those_of_the_step(tmp_path):
    t = a_gpt()
    data = json.loads(t.save(tmp_path / "x.json").read_text())
    checked = 0
    for value, said in zip(t.values, data["values"], strict=True):
        if said["elements"] is not None and value.readable and value.dtype != torch.bool:
            numbers = torch.tensor([float(x) for x in said["elements"]], dtype=value.dtype)
            same = (numbers == value.read().reshape(-1)) | numbers.isnan() & value.read().reshape(-1).isnan()
            assert same.all()  # what empty_like found in memory may be NaN
            checked += value.numel
    assert checked > 5000
    for edge in data["edges"]:
        operation = data["operations"][edge["target"]]
        assert edge["value"] in [i["value"] for i in operation["inputs"]]


def test_ids_are_positions():
    data = a_gpt().to_dict()
    for name in ("calls", "operations", "values", "edges"):
        assert [row["id"] for row in data[name]] == list(range(len(data[name])))


def test_every_value_that_is_referred_to_is_there():
    """Gradients that torch.autograd.grad gave back are values as well."""
    w = torch.ones(3, requires_grad=True)
    with lightwell.trace() as t:
        torch.autograd.grad((w.sin() * w.cos()).sum(), w)
    data = t.to_dict()
    assert data["fan_outs"]
    named = [f["total"] for f in data["fan_outs"]]
    named += [gradient for edge in data["edges"] for gradient in edge["gradients"].values()]
    assert len(named) > 5
    assert set(named) <= {value["id"] for value in data["values"]}


def test_infinities_are_words():
    data = an_odd_one().to_dict()
    w = next(value for value in data["values"] if value["name"] == "w")
    assert w["elements"] == [1.0, -2.0, "inf"]
    assert w["statistics"]["inf"] == 1


def test_an_ending_that_says_nothing_is_refused(tmp_path):
    with pytest.raises(TraceError, match=r"ends in \.json, \.html or \.dot, got 'step\.pt'"):
        a_snapshot().save(tmp_path / "step.pt")
    assert not list(tmp_path.iterdir())


def test_an_open_trace_is_not_saved(tmp_path):
    with lightwell.trace() as t, pytest.raises(TraceError, match="closed"):
        t.save(tmp_path / "step.json")


def test_all_three_endings(tmp_path):
    t = a_gpt()
    for ending, begins in {"json": "{", "html": "<!doctype html>", "dot": "digraph"}.items():
        assert t.save(tmp_path / f"step.{ending}").read_text(encoding="utf-8").lower().startswith(begins)
