"""The layout: nothing overlaps, time runs down, the stream is straight, and five thousand nodes take no time."""

import random
import sys
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwell.glass.layout import ENTRY, EXIT, Box, Node, arrange, boxes, pack


def transformer(layers: int, chain: int = 4):
    """A residual network of the shape of GPT-2, as nodes and edges."""
    nodes, edges = [], []

    def add(path, *sources):
        nodes.append(Node(len(nodes), path))
        edges.extend((source, len(nodes) - 1) for source in sources)
        return len(nodes) - 1

    x = add((), add(("tok_emb",)), add(("pos_emb",)))
    for layer in range(layers):
        block = ("blocks", str(layer))
        y = add((*block, "attn", "qkv"), add((*block, "norm1"), x))
        y = add((*block, "attn"), *[add((*block, "attn"), y) for _ in range(3)])
        for _ in range(chain):
            y = add((*block, "attn"), y)
        x = add(block, x, add((*block, "attn", "out"), y))
        y = add((*block, "mlp", "up"), add((*block, "norm2"), x))
        x = add(block, x, add((*block, "mlp", "down"), add((*block, "mlp"), y)))
    add((), add(("head",), add(("final_norm",), x)))
    return nodes, edges


def inside(inner, outer):
    return (
        outer.x <= inner.x
        and outer.y <= inner.y
        and inner.x + inner.width <= outer.x + outer.width + 1e-6
        and inner.y + inner.height <= outer.y + outer.height + 1e-6
    )


def apart(a, b):
    return a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y or b.y + b.height <= a.y


def key(child):
    return child.key if isinstance(child, Box) else child.id


@st.composite
def programs(draw):
    n = draw(st.integers(1, 40))
    chance = random.Random(draw(st.integers(0, 2**20)))
    nodes = [Node(i, tuple(chance.choice("abc") for _ in range(chance.randrange(4)))) for i in range(n)]
    edges = [(a, b) for b in range(n) for a in range(b) if chance.random() < 2 / n]
    folded = {name for name in "abc" if chance.random() < 0.3}
    return nodes, edges, folded


@given(programs())
def test_any_program_has_a_picture_without_overlaps(program):
    nodes, edges, folded = program
    root = arrange(nodes, edges)
    places = pack(root, lambda box: box.name not in folded)
    shown = [root]
    for box in shown:
        if box is not root and box.name in folded:
            assert not any(key(child) in places for child in box.children)
            continue
        shown.extend(child for child in box.children if isinstance(child, Box))
        for child in box.children:
            assert inside(places[key(child)], places[box.key])
        for a, b in combinations(box.children, 2):
            assert apart(places[key(a)], places[key(b)])
        for a, b, track in box.arrangement.edges:
            assert -1 <= track < box.arrangement.tracks
            if a >= 0 and b >= 0:
                assert places[key(box.children[a])].y < places[key(box.children[b])].y
    everything = pack(root)
    assert {node.id for node in nodes} <= everything.keys()
    for source, target in edges:
        assert everything[source].y < everything[target].y  # time runs down


@given(programs())
def test_every_edge_can_be_followed_through_the_boxes(program):
    nodes, edges, _ = program
    root = arrange(nodes, edges)
    reached: dict[object, set[object]] = {}  # ports: (box, child number, ENTRY or EXIT)
    port_of = {}
    for box in boxes(root):
        for number, child in enumerate(box.children):
            port_of[key(child)] = (box.key, number)
            if isinstance(child, Box):
                port_of[child.key, ENTRY], port_of[child.key, EXIT] = (child.key, ENTRY), (child.key, EXIT)
        for a, b, _ in box.arrangement.edges:
            reached.setdefault((box.key, a), set()).add((box.key, b))
    for box in boxes(root)[1:]:
        reached.setdefault(port_of[box.key], set()).add((box.key, ENTRY))
        reached.setdefault((box.key, EXIT), set()).add(port_of[box.key])
    for source, target in edges:
        seen, stack = set(), [port_of[source]]
        while stack:
            port = stack.pop()
            if port not in seen:
                seen.add(port)
                stack.extend(reached.get(port, ()))
        assert port_of[target] in seen


def test_the_stream_is_a_straight_line():
    nodes, edges = transformer(3)
    root = arrange(nodes, edges)
    places = pack(root)
    block = next(box for box in boxes(root) if box.key == "/blocks/1")
    names = [child.name if isinstance(child, Box) else "add" for child in block.children]
    assert names == ["norm1", "attn", "add", "norm2", "mlp", "add"]
    lanes = [lane for _, lane in block.arrangement.cells]
    assert lanes == [1, 1, 0, 1, 1, 0]
    additions = [places[child.id] for child in block.children if isinstance(child, Node)]
    assert additions[0].x == additions[1].x


def test_what_every_block_reads_does_not_bend_the_stream():
    """Rotary positions go into each block, but no gradient comes back from them."""
    nodes = [Node(0, ()), Node(1, ()), *(Node(k, ("blocks", str(k))) for k in range(2, 6))]
    stream = [(0, 2), (2, 3), (3, 4), (4, 5)]
    places = pack(arrange(nodes, [*stream, *((1, k) for k in range(2, 6))], marked=set(stream)))
    assert len({places[f"/blocks/{k}"].x for k in range(2, 6)}) == 1


def test_blocks_that_are_alike_share_their_arrangement():
    nodes, edges = transformer(12)
    root = arrange(nodes, edges)
    blocks = [box for box in boxes(root) if box.key.count("/") == 2 and box.key.startswith("/blocks/")]
    assert len(blocks) == 12
    assert len({box.number for box in blocks}) == 1
    again = arrange(nodes, edges)
    assert pack(again) == pack(root)


def test_a_module_called_twice_is_two_boxes():
    nodes = [Node(0, ("a",)), Node(1, ("b",)), Node(2, ("a",))]
    assert [box.key for box in boxes(arrange(nodes, [(0, 1), (1, 2)]))] == ["", "/a", "/b", "/a#2"]


def test_many_parallel_operations_stay_narrow():
    nodes = [Node(i, ()) for i in range(300)]
    places = pack(arrange(nodes, []))
    assert places[""].width < 2000


def test_folding_changes_only_what_it_must():
    nodes, edges = transformer(3)
    root = arrange(nodes, edges)
    places = pack(root, lambda box: not box.key.startswith("/blocks/"))
    assert places["/blocks/0"].width == places["/blocks/2"].width
    assert "/blocks/0/attn" not in places
    assert places[""].height < pack(root)[""].height / 3


def calls_of(work) -> int:
    """How many function calls some work takes: a clock that no busy machine disturbs."""
    count = 0

    def called(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("alike", [True, False], ids=["blocks alike", "blocks all different"])
def test_work_grows_in_step_with_the_nodes(alike):
    def work(layers):
        nodes, edges = transformer(layers, chain=9)
        if not alike:
            longest = random.Random(0)
            for layer in range(layers):
                for _ in range(longest.randint(0, layers)):
                    nodes.append(Node(len(nodes), ("blocks", str(layer), "mlp")))
                    edges.append((nodes[-1].id - 1, nodes[-1].id))
        places = pack(arrange(nodes, edges))
        assert len(places) >= len(nodes)
        return len(nodes)

    sizes = {layers: work(layers) for layers in (40, 80)}
    calls = {layers: calls_of(lambda layers=layers: work(layers)) for layers in sizes}
    assert calls[80] / calls[40] < 1.2 * sizes[80] / sizes[40]
