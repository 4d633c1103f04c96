"""Where everything in the picture of a trace goes: linear time, no search, the same picture every time.

General graph drawing is slow because it has to find out what we already know: the order in which things ran, which
module each belongs to, and that blocks repeat. So:

- Operations of a module that ran one after another are a *box*; boxes nest as modules do. A module called twice is two
  boxes. Time runs downwards, therefore no edge inside a box ever points up.
- Inside a box a child's *layer* (row) is the longest path that leads to it.
- Its *lane* (column) is handed on: of all that read a value, the one furthest down inherits its lane, and before all
  others those that a gradient came back from. In a residual network that is the addition at the end of the branch: the
  stream is a straight line, branches stand beside it, and so does what every block reads but nobody learns.
- An edge that passes over rows that are not its own runs in a *track* at the left of its box.
- Boxes of the same structure are arranged once and share the arrangement.

`pack` turns layers and lanes into coordinates for any choice of open and folded boxes; the page does the same in its
script when somebody folds a box. Backward needs no layout: it is the mirror image, drawn beside the forward edges.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

NODE_WIDTH, NODE_HEIGHT = 168.0, 34.0
ROW_GAP, LANE_GAP, PADDING, HEADER, TRACK = 26.0, 22.0, 12.0, 24.0, 9.0
MOST_LANES, MOST_TRACKS = 8, 12
ENTRY, EXIT = -1, -2  # in place of a child: the top and the bottom edge of the box


@dataclass(frozen=True)
class Node:
    """An operation, in the order of execution: `path` holds the modules around it, outermost first."""

    id: int
    path: tuple[str, ...]
    height: float = NODE_HEIGHT


@dataclass(frozen=True)
class Arrangement:
    """How the children of a box stand: (layer, lane) of each, and the edges between them as (from, to, track).

    Children are numbered in order of execution, ENTRY and EXIT stand for the box's edges; track -1 is a direct line.
    """

    cells: tuple[tuple[int, int], ...]
    edges: tuple[tuple[int, int, int], ...]
    tracks: int
    lanes: int
    layers: int


@dataclass(eq=False)
class Box:
    """A module, or one call of it, with what is inside. Boxes with the same `number` share their arrangement."""

    name: str
    key: str
    children: list[Box | Node] = field(default_factory=list)
    links: dict[tuple[int, int], bool] = field(default_factory=dict)  # (from, to) -> whether marked
    arrangement: Arrangement | None = None
    number: int = -1


@dataclass(frozen=True)
class Rect:
    """Left, top, width, height in pixels, absolute."""

    x: float
    y: float
    width: float
    height: float


def arrange(
    nodes: Sequence[Node], edges: Sequence[tuple[int, int]], marked: Container[tuple[int, int]] = frozenset()
) -> Box:
    """The root box of all nodes (in order of execution), everything inside it arranged.

    edges: (id of the node that made a value, id of a node that reads it), the first before the second in the order.
    marked: those edges along which a gradient came back; a link of a box is marked if it carries one of them.
    """
    root, places = _nest(nodes)
    for edge in edges:
        _link(root, places[edge[0]], places[edge[1]], edge in marked)
    _arrange_box(root, {})
    return root


def boxes(root: Box) -> list[Box]:
    """The root and all boxes in it, outer before inner, in order of execution."""
    found = [root]
    for box in found:
        found.extend(child for child in box.children if isinstance(child, Box))
    return found


def pack(root: Box, is_open: Callable[[Box], bool] = lambda box: True) -> dict[str | int, Rect]:
    """Coordinates of every visible box (by key) and node (by id); the children of a folded box are not visible."""
    sizes: dict[str, tuple[float, float]] = {}
    for box in reversed(boxes(root)):
        sizes[box.key] = _size(box, sizes) if is_open(box) or box is root else (NODE_WIDTH, NODE_HEIGHT)
    found: dict[str | int, Rect] = {root.key: Rect(0, 0, *sizes[root.key])}
    stack = [root]
    while stack:
        box = stack.pop()
        if not (is_open(box) or box is root):
            continue
        corner = found[box.key]
        for child, rect in zip(box.children, _places(box, sizes), strict=True):
            moved = Rect(corner.x + rect.x, corner.y + rect.y, rect.width, rect.height)
            found[_key(child)] = moved
            if isinstance(child, Box):
                stack.append(child)
    return found


def _key(child: Box | Node) -> str | int:
    return child.key if isinstance(child, Box) else child.id


def _nest(nodes: Sequence[Node]) -> tuple[Box, dict[int, list[int]]]:
    """The tree of boxes, and for each node the child numbers that lead to it from the root.

    A box stays open as long as what runs is inside its module; when that comes back later, it is another box.
    """
    root = Box("", "")
    open_boxes = [root]
    calls: dict[str, int] = {}
    places: dict[int, list[int]] = {}
    for node in nodes:
        depth = 0
        while depth < min(len(open_boxes) - 1, len(node.path)) and open_boxes[depth + 1].name == node.path[depth]:
            depth += 1
        del open_boxes[depth + 1 :]
        for name in node.path[depth:]:
            path = f"{open_boxes[-1].key}/{name}"
            calls[path] = calls.get(path, 0) + 1
            box = Box(name, path if calls[path] == 1 else f"{path}#{calls[path]}")
            open_boxes[-1].children.append(box)
            open_boxes.append(box)
        open_boxes[-1].children.append(node)
        places[node.id] = [len(box.children) - 1 for box in open_boxes]
    return root, places


def _link(root: Box, source: list[int], target: list[int], mark: bool) -> None:
    """An edge, in each box it passes: from its source out to the edge of the box, across, and in to its target."""
    common, box = 0, root
    while source[common] == target[common]:
        inner = box.children[source[common]]
        assert isinstance(inner, Box)
        box, common = inner, common + 1
    _note(box, (source[common], target[common]), mark)
    for inner, child in _descend(box, source[common:]):
        _note(inner, (child, EXIT), mark)
    for inner, child in _descend(box, target[common:]):
        _note(inner, (ENTRY, child), mark)


def _note(box: Box, link: tuple[int, int], mark: bool) -> None:
    box.links[link] = box.links.get(link, False) or mark


def _descend(box: Box, place: list[int]) -> Iterator[tuple[Box, int]]:
    for child, next_child in pairwise(place):
        inner = box.children[child]
        assert isinstance(inner, Box)
        yield inner, next_child
        box = inner


def _arrange_box(root: Box, known: dict[object, tuple[int, Arrangement]]) -> None:
    """Arranges inner boxes before outer ones; a box whose children and links are those of a known one takes it over."""
    for box in reversed(boxes(root)):
        shape = tuple(child.number if isinstance(child, Box) else -child.height for child in box.children)
        links = tuple(sorted(box.links.items()))
        if (shape, links) not in known:
            known[shape, links] = len(known), _arrangement(len(box.children), dict(links))
        box.number, box.arrangement = known[shape, links]


def _arrangement(n: int, links: Mapping[tuple[int, int], bool]) -> Arrangement:
    inner = [(a, b) for a, b in links if a >= 0 and b >= 0]
    before: list[list[int]] = [[] for _ in range(n)]
    after: list[list[int]] = [[] for _ in range(n)]
    for a, b in inner:
        before[b].append(a)
        after[a].append(b)
    depth = [0] * n
    for child in range(n):
        depth[child] = 1 + max((depth[a] for a in before[child]), default=-1)

    def heir_of(source: int, readers: Iterable[int]) -> int | None:
        return max(readers, key=lambda reader: (links[source, reader], depth[reader], -reader), default=None)

    heir = [heir_of(child, readers) for child, readers in enumerate(after)]
    first = heir_of(ENTRY, [b for a, b in links if a == ENTRY and b >= 0])
    cells = _cells(n, before, heir, first)
    layers = 1 + max((layer for layer, _ in cells), default=-1)
    edges, tracks = _routed(list(links), cells, layers)
    return Arrangement(tuple(cells), edges, tracks, 1 + max((lane for _, lane in cells), default=-1), layers)


def _cells(n: int, before: list[list[int]], heir: list[int | None], first: int | None) -> list[tuple[int, int]]:
    """(layer, lane) of each child. A lane is held for the heir of the last one in it, lane 0 at first for `first`."""
    cells: list[tuple[int, int]] = []
    held_for: list[int | None] = [first]  # by lane
    last: list[int] = [-1]  # by lane: the layer of the last child in it
    for child in range(n):
        layer = 1 + max((cells[a][0] for a in before[child]), default=-1)
        inherited = [lane for lane, holder in enumerate(held_for) if holder == child]
        free = [lane for lane, holder in enumerate(held_for) if holder is None]
        fitting = [lane for lane in free if last[lane] < layer]
        if inherited:
            lane = min(inherited)
        elif fitting:
            lane = fitting[0]
        elif free and len(held_for) >= MOST_LANES:
            lane = min(free, key=lambda k: last[k])  # too wide: further down
        else:
            lane = len(held_for)
            held_for.append(None)
            last.append(-1)
        for other in inherited:
            held_for[other] = None
        layer = max(layer, last[lane] + 1)
        held_for[lane], last[lane] = heir[child], layer
        cells.append((layer, lane))
    return cells


def _routed(
    links: Sequence[tuple[int, int]], cells: Sequence[tuple[int, int]], layers: int
) -> tuple[tuple[tuple[int, int, int], ...], int]:
    """The edges with their tracks: -1 where a direct line crosses no child, else the first track free at those rows."""
    taken = set(cells)

    def row(child: int) -> int:
        return {ENTRY: -1, EXIT: layers}.get(child, cells[child][0] if child >= 0 else 0)

    def direct(a: int, b: int) -> bool:
        first, last = row(a), row(b)
        if last - first <= 1:
            return True
        lanes = {cells[c][1] for c in (a, b) if c >= 0}
        return len(lanes) == 1 and last - first <= 64 and not any((k, *lanes) in taken for k in range(first + 1, last))

    edges: list[tuple[int, int, int]] = []
    ends: list[int] = []
    for a, b in sorted(links, key=lambda link: (row(link[0]), row(link[1]), link)):
        if direct(a, b):
            edges.append((a, b, -1))
            continue
        track = next((k for k, end in enumerate(ends) if end <= row(a)), len(ends))
        track = min(track, MOST_TRACKS - 1)
        if track == len(ends):
            ends.append(-1)
        ends[track] = max(ends[track], row(b))
        edges.append((a, b, track))
    return tuple(edges), len(ends)


def _extents(box: Box, sizes: dict[str, tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The widths of a box's lanes and the heights of its layers, as its children need them."""
    assert box.arrangement is not None
    widths, heights = [0.0] * box.arrangement.lanes, [0.0] * box.arrangement.layers
    for child, (layer, lane) in zip(box.children, box.arrangement.cells, strict=True):
        width, height = sizes[child.key] if isinstance(child, Box) else (NODE_WIDTH, child.height)
        widths[lane], heights[layer] = max(widths[lane], width), max(heights[layer], height)
    return widths, heights


def _size(box: Box, sizes: dict[str, tuple[float, float]]) -> tuple[float, float]:
    assert box.arrangement is not None
    widths, heights = _extents(box, sizes)
    inside = sum(widths) + LANE_GAP * max(0, len(widths) - 1) + TRACK * box.arrangement.tracks
    return inside + 2 * PADDING, HEADER + sum(heights) + ROW_GAP * (len(heights) + 1)


def _places(box: Box, sizes: dict[str, tuple[float, float]]) -> list[Rect]:
    """Each child's place, measured from the corner of its box: in the middle of its lane, at the top of its layer."""
    assert box.arrangement is not None
    widths, heights = _extents(box, sizes)
    left, top = PADDING + TRACK * box.arrangement.tracks, HEADER + ROW_GAP
    lefts, tops = [], []
    for width in widths:
        lefts.append(left)
        left += width + LANE_GAP
    for height in heights:
        tops.append(top)
        top += height + ROW_GAP
    found = []
    for child, (layer, lane) in zip(box.children, box.arrangement.cells, strict=True):
        width, height = sizes[child.key] if isinstance(child, Box) else (NODE_WIDTH, child.height)
        found.append(Rect(lefts[lane] + (widths[lane] - width) / 2, tops[layer], width, height))
    return found
