"""The page of a trace: its numbers are the trace's, it is one file, and a browser can click through it."""

import itertools
import json
import math
import re

import pytest
import torch
from glass_browser import Browser, missing
from hypothesis import given
from hypothesis import strategies as st

import lightwell
from lightwell.glass import layout
from lightwell.glass.page import page, to_dot, write_page
from lightwell.glass.page_data import PageData, arranged, corner, drawn
from lightwell.glass.reads import reads
from lightwell.glass.rules import find
from lightwell.model.build import GPT

SIZES = {"vocab_size": 23, "context_length": 8, "emb_dim": 8, "n_heads": 2, "n_layers": 2}


def traced(config=None, context=5):
    model = GPT(config or lightwell.GPTConfig(**SIZES), torch.Generator().manual_seed(0))
    ids = torch.randint(0, 23, (1, context), generator=torch.Generator().manual_seed(1))
    with lightwell.trace() as trace:
        loss, n = model(ids, ids)
        (loss / n).backward()
    return trace


@pytest.fixture(scope="module")
def trace():
    return traced()


@pytest.fixture(scope="module")
def verification(trace):
    return trace.verify().to_dict()


@pytest.fixture(scope="module")
def written(trace, verification, tmp_path_factory):
    return write_page(trace.to_dict(), tmp_path_factory.mktemp("page") / "step.html", verification=verification)


def shown(trace):
    """The operations that are in the page, in its order."""
    ids = {operation["id"] for operation in drawn(trace.to_dict())["operations"]}
    return [operation for operation in trace.operations if operation.id in ids]


def data_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_every_number_in_the_page_is_the_traces(trace, written):
    data = data_of(written)
    assert len(data["ops"]) == len(shown(trace)) > 60
    checked = 0
    for value in trace.values:
        said = data["values"].get(str(value.id))
        if said is None or not said["data"] or not value.readable:
            continue
        flat = value.read().reshape(-1)
        places = said.get("flat") or range(len(said["data"]))
        for place, number in zip(places, said["data"], strict=True):
            assert number == pytest.approx(float(flat[place]), rel=1e-4, abs=1e-30)
            checked += 1
    assert checked > 2000
    for operation, said in zip(shown(trace), data["ops"], strict=True):
        assert said["outputs"] == [v.id for v in operation.outputs]
        assert [i["value"] for i in said["inputs"]] == [v.id for v in operation.inputs.values()]


def test_gradients_and_sums_are_on_their_edges(trace, written):
    data = data_of(written)
    back = {id(o): [i["gradient"] for i in s["inputs"]] for o, s in zip(shown(trace), data["ops"], strict=True)}
    for edge in trace.edges:
        operation = trace.operations[edge.target]
        if id(operation) not in back:
            assert not edge.gradients
            continue
        there = back[id(operation)][list(operation.inputs).index(edge.path)]
        assert there == (edge.gradient.id if edge.gradient is not None else None)
    assert len(data["sums"]) == len(trace.fan_outs) == 5
    for fan_out in trace.fan_outs:
        said = data["sums"][str(fan_out.value.id)]
        parts = [sum(data["values"][str(gradient)]["data"]) for _, gradient in said["parts"]]
        assert sum(parts) == pytest.approx(sum(data["values"][str(said["total"])]["data"]), rel=1e-2, abs=1e-4)


def test_the_page_is_one_file_that_asks_for_nothing(written):
    text = written.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.findall(r"(?:src|href)=", text)
    assert not [u for u in re.findall(r"https?://[^\s\"'<]+", text) if u != "http://www.w3.org/2000/svg"]
    assert "{{" not in text


def test_names_in_a_trace_cannot_end_the_data(trace):
    dictionary = trace.to_dict()
    dictionary["notes"] = ["</script><script>alert(1)</script>"]
    text = page(dictionary, title="</title><b>")
    assert "</script><script>alert" not in text
    assert "<title>&lt;/title&gt;&lt;b&gt;</title>" in text
    assert "\\u003c/script>" in text


def test_every_operation_has_words(trace, verification):
    data = PageData(trace.to_dict(), verification).made()
    for operation in data["ops"]:
        assert operation["title"] in operation["words"]
        assert operation["words"].endswith(".")
        assert "{" not in operation["words"]
    verdicts = {operation["verdict"] for operation in data["ops"]}
    assert "agree" in verdicts
    assert all(operation["mark"] == "✓" for operation in data["ops"] if operation["verdict"] == "agree")
    assert all("three ways" in operation["words"] for operation in data["ops"] if operation["verdict"] == "agree")


def test_what_is_not_finite_or_not_kept_is_said():
    x = torch.tensor([1.0, math.nan, math.inf, -math.inf], requires_grad=True)
    with lightwell.trace() as trace:
        (x * 2).sum().backward()
    dictionary = trace.to_dict()
    first = next(v for v in dictionary["values"] if v["name"] == "x")
    made = PageData(dictionary, None).made()
    assert made["values"][str(first["id"])]["data"] == [1.0, "nan", "inf", "-inf"]
    assert "1 NaN" in made["values"][str(first["id"])]["stats"]
    first.update(elements=None, sample=None, statistics=None)
    assert PageData(dictionary, None).made()["values"][str(first["id"])]["data"] is None
    json.dumps(made, allow_nan=False)


@given(st.lists(st.integers(0, 40), max_size=4), st.integers(16, 256))
def test_a_corner_is_what_it_says(shape, most):
    places = corner(shape, most)
    assert len(places) <= most
    assert places == sorted(set(places))
    count = math.prod(shape)
    assert all(0 <= place < count for place in places)
    if count <= most:
        assert places == list(range(count))
    elif len(shape) > 1:
        columns = {place % shape[-1] for place in places}
        rows = {place // shape[-1] for place in places}
        assert len(columns) * len(rows) == len(places)


def test_patterns_are_what_the_rules_index_map_says(trace):
    asked = 0
    for operation in trace.operations:
        for path, read in reads(operation).items():
            if read.pattern is None or read.pattern == ["flat"] or "embedding" in operation.name:
                continue
            call = operation.kernel()
            out_shape, x = call.outputs[0].shape, call.get(path)
            for out in {tuple(n // 2 for n in out_shape), tuple(n - 1 for n in out_shape)}:
                told = {
                    tuple(place) for place in find(operation.op).index_map(call, out).get(path, torch.empty(0)).tolist()
                }
                ranges = [
                    range(n) if p == "*" else [out[p]] if isinstance(p, int) else range(min(out[int(p[2:])] + 1, n))
                    for p, n in zip(read.pattern, x.shape, strict=True)
                ]
                assert told == set(itertools.product(*ranges))
                asked += 1
    assert asked > 60


def test_only_what_autograd_keeps_for_itself_is_left_out():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with lightwell.trace() as t:
        y = x.sigmoid()
        (y + y.detach()).sum().backward()
        x.detach()
    names = [operation.name for operation in t.operations]
    left = [operation.name for operation in shown(t)]
    assert names.count("detach") >= 3
    assert left.count("detach") == 2  # those that the program called
    assert [name for name in names if name != "detach"] == [name for name in left if name != "detach"]


def test_dot_has_every_operation_and_edge(trace):
    dictionary = drawn(trace.to_dict())
    text = to_dot(dictionary)
    assert text.count("{") == text.count("}")
    assert len(re.findall(r"^\s*o\d+ \[label", text, re.MULTILINE)) == len(shown(trace))
    here = {operation.id for operation in shown(trace)}
    inner = [edge for edge in trace.edges if edge.source is not None and edge.target in here]
    assert len(re.findall(r"o\d+ -> o\d+;", text)) == len(inner)
    assert text.count("style=dashed") == sum(bool(edge.gradients) for edge in inner)
    assert '"cluster/blocks/0/attn"' in text


def test_other_phases_stand_apart():
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([w], lr=0.1)
    with lightwell.trace() as trace:
        (w * 2).sum().backward()
        optimizer.step()
    boxes = {box.key for box in layout.boxes(arranged(trace.to_dict()))}
    assert "/optimizer" in boxes


needs_browser = pytest.mark.skipif(bool(missing()), reason=missing() or "there is one")


@pytest.fixture(scope="module")
def browser(written, tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        browser.open(written)
        browser.settle()
        yield browser


@needs_browser
@pytest.mark.timeout(120)
class TestInABrowser:
    def test_it_opens_without_complaint_and_draws(self, browser):
        assert browser.console == []
        assert browser.count(".node") > 5
        assert browser.count(".edge.gradient") > 3
        assert browser.count("[role=tree] [role=treeitem]") > 10
        assert browser.run("return performance.getEntriesByType('resource').length") == 0

    def test_the_script_packs_as_python_does(self, browser, trace):
        root = arranged(drawn(trace.to_dict()))
        keys = [box.key for box in layout.boxes(root)]
        ids = [operation.id for operation in shown(trace)]
        for folded in (set(), {"/blocks/0", "/blocks/1/attn"}):
            expected = layout.pack(root, lambda box, folded=folded: box.key not in folded)
            script = (
                "lightwell.open.clear(); for (const i of arguments[0]) lightwell.open.add(i); return lightwell.pack()"
            )
            found = browser.run(script, [k for k, key in enumerate(keys) if key not in folded])
            for name, place in found.items():
                key = keys[int(name[1:])] if name[0] == "b" else ids[int(name[1:])]
                rect = expected[key]
                assert [place[c] for c in "xywh"] == pytest.approx([rect.x, rect.y, rect.width, rect.height])
            assert len(found) == len(expected)

    def test_a_click_on_an_operation_shows_its_numbers(self, browser, trace):
        gelu = next(k for k, o in enumerate(shown(trace)) if o.name == "gelu")
        browser.run(f"lightwell.choose({{op: {gelu}}})")
        browser.settle()
        browser.run(f"lightwell.choose({{op: lightwell.D.ops[{gelu}].makers[0]}})")
        browser.settle()
        browser.click(f"[data-op='{gelu}']")
        assert browser.text("#details h2") == "gelu"
        assert "three ways" in browser.text("#details")
        assert browser.text("#details .verdict").startswith("✓ agree")
        assert "dz/dx" in browser.text("#details .formula")
        assert browser.count("#details .value.grad .grid") == 2
        cells = browser.count("#details .grid > i")
        assert cells >= 4 * 5 * 16
        assert browser.count(".node.chosen") == 1
        assert browser.count("[aria-selected=true]") == 1

    def test_hovering_a_cell_lights_what_it_is_computed_from(self, browser, trace):
        product = next(k for k, o in enumerate(shown(trace)) if o.name == "mm")
        browser.run(f"lightwell.choose({{op: {product}}})")
        browser.settle()
        grids = browser.run(
            "return [...document.querySelectorAll('#details .grid')]"
            ".map((g, k) => { g.id = 'g' + k; return [g.place.way, g.place.k] })"
        )
        out = grids.index(["output", 0])
        browser.hover(f"#g{out} i[data-k='3']")
        told = browser.text("#told")
        assert told.startswith("z[0, 3] = ")
        assert "computed from x[0, :], w[:, 3]" in told
        x = grids.index(["input", 0])
        assert browser.count(f"#g{x} i.from") == 8
        back = grids.index(["downstream", 0])
        browser.hover(f"#g{back} i[data-k='9']")
        assert "dL/dx[1, 1] = " in browser.text("#told")
        assert "dL/dz[1, :]" in browser.text("#told")

    def test_folding_and_unfolding(self, browser):
        browser.click("#fold")
        few = browser.count("[role=treeitem]")
        browser.click("#unfold")
        assert browser.count("[role=treeitem]") > 3 * few
        browser.click("#fold")
        blocks = browser.run("return lightwell.D.boxes.findIndex(b => b.key === '/blocks')")
        assert browser.count(f".node.folded[data-box='{blocks}']") == 1
        browser.click(f".node.folded[data-box='{blocks}']")
        assert browser.count(f".box[data-box='{blocks}']") == 1
        assert browser.run(f"return lightwell.open.has({blocks})") is True
        browser.click(f".title[data-fold='{blocks}']")
        assert browser.run(f"return lightwell.open.has({blocks})") is False

    def test_the_keyboard_is_enough(self, browser):
        browser.click("#fold")
        browser.run("document.querySelector('[role=treeitem]').focus()")
        seen = []
        for _ in range(12):
            browser.press("down")
            seen.append(browser.run("return document.activeElement.dataset.item"))
            if browser.run("return document.activeElement.getAttribute('aria-expanded')") == "false":
                break
        assert len(set(seen)) == len(seen)
        browser.press("right")
        assert browser.run("return document.activeElement.getAttribute('aria-expanded')") == "true"
        browser.press("right")
        assert browser.run("return document.activeElement.getAttribute('aria-level')") == "2"
        browser.press("left", "left")
        assert browser.run("return document.activeElement.getAttribute('aria-expanded')") == "false"
        browser.click("#unfold")
        last = browser.run("return lightwell.D.ops.findIndex(op => op.title === 'gelu')")
        browser.run(f"lightwell.choose({{op: {last}}}, true)")
        browser.press("n")
        assert browser.run("return lightwell.chosen().op") == browser.run(f"return lightwell.D.ops[{last}].readers[0]")
        browser.press("p")
        assert browser.run("return lightwell.chosen().op") == last
        browser.press("g")
        assert browser.run("return document.activeElement.className").startswith("grid")
        browser.press("right")
        assert "dL/dz" in browser.text("#told")
        assert browser.run("return document.activeElement.tabIndex") == 0
        browser.press("\ue00c")  # Escape
        assert browser.run("return document.activeElement.getAttribute('role')") == "treeitem"

    def test_a_wrong_gradient_is_marked_not_only_by_colour(self, browser, trace, verification, tmp_path):
        wrong = json.loads(json.dumps(verification))
        row = next(r for r in wrong["rows"] if r["operation"] == "gelu")
        row["verdict"] = "disagree"
        browser.open(write_page(trace.to_dict(), tmp_path / "wrong.html", verification=wrong))
        browser.settle()
        browser.click("#unfold")
        place = [operation.id for operation in shown(trace)].index(row["operation_id"])
        browser.run(f"lightwell.choose({{op: {place}}})")
        browser.settle()
        assert browser.count(".node.disagree") == 1
        assert "✗" in browser.text(".node.disagree")
        assert browser.text("#details .verdict") == "✗ disagree"
        assert "DISAGREES" in browser.text("#details")


def large(layers: int):
    """The dictionary of a residual network with about 22 operations a layer, each value a small matrix."""
    operations, values, edges = [], [], []

    def add(module, *sources):
        k = len(operations)
        value = {"id": 2 * k, "name": "", "shape": [4, 4], "dtype": "float32", "producer": k, "sample": None}
        statistics = {
            "minimum": -1.0,
            "maximum": 1.0,
            "mean": 0.0,
            "rms": 0.5,
            "zeros": 0,
            "nan": 0,
            "inf": 0,
            "minus_inf": 0,
        }
        elements = [math.sin(k + j) for j in range(16)]
        values.append({**value, "statistics": statistics, "elements": elements})
        values.append({**value, "id": 2 * k + 1, "producer": None, "statistics": statistics, "elements": elements})
        inputs = [{"path": [j], "name": f"x{j}", "value": 2 * s} for j, s in enumerate(sources)]
        for j, s in enumerate(sources):
            edges.append(
                {"id": len(edges), "value": 2 * s, "source": s, "target": k, "path": [j], "gradients": {"0": 2 * s + 1}}
            )
        down = [{"path": [j], "value": 2 * s + 1} for j, s in enumerate(sources)]
        flows = [{"index": 0, "upstream": [2 * k + 1], "downstream": down}]
        operations.append(
            {"id": k, "name": "add", "phase": "forward", "call": "", "call_id": None, "module": module, "file": "m.py",
             "line": 1, "inputs": inputs, "outputs": [2 * k], "attributes": {}, "flows": flows, "rule": None}
        )  # fmt: skip
        return k

    x = add("embed")
    for layer in range(layers):
        y = x
        for _ in range(20):
            y = add(f"blocks.{layer}.branch", y)
        x = add(f"blocks.{layer}", x, y)
    modules = [{"path": path, "kind": "Module"} for path in {o["module"] for o in operations}]
    return {"modules": modules, "operations": operations, "values": values, "edges": edges, "fan_outs": [],
            "accumulations": [], "notes": []}  # fmt: skip


@needs_browser
@pytest.mark.timeout(120)
def test_five_thousand_operations_stay_light(tmp_path):
    dictionary = large(240)
    assert len(dictionary["operations"]) > 5000
    path = write_page(dictionary, tmp_path / "large.html")
    assert path.stat().st_size < 8_000_000
    with Browser(tmp_path) as browser:
        browser.open(path)
        browser.settle()
        assert 5 < browser.count(".node") < 300
        browser.click("#unfold")
        assert browser.count("[role=treeitem]") > 5000
        assert browser.count(".node") < 300  # only what is in view is drawn
        browser.run("lightwell.choose({op: 5000})")
        browser.settle()
        assert browser.count(".node.chosen") == 1
        assert (
            browser.run("const t = performance.now(); lightwell.choose({op: 4990}); return performance.now() - t")
            < 2000
        )
        assert browser.console == []
