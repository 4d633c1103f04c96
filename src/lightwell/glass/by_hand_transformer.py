"""Attention and a whole transformer block by hand: the parts of a GPT small enough to follow every number.

Matrices are lists of rows; `times`, `turned` and `plus` are all the linear algebra there is. Every function that goes
forward has a twin that goes back: it takes the gradient of its result and gives the gradient of its arguments.
Letters: T tokens, C channels, H hidden channels of the MLP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lightwell.glass.by_hand import Example, Factor, Line, Value, short, three_ways
from lightwell.glass.wording import say

Matrix = list[list[float]]
EPS = 1e-5


def times(a: Matrix, b: Matrix) -> Matrix:
    """The matrix product: each row of a with each column of b."""
    return [[sum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]


def turned(a: Matrix) -> Matrix:
    """Rows become columns."""
    return [list(column) for column in zip(*a)]


def plus(a: Matrix, b: Matrix) -> Matrix:
    return [[x + y for x, y in zip(*rows)] for rows in zip(a, b)]


def scaled(a: Matrix, by: float) -> Matrix:
    return [[x * by for x in row] for row in a]


def each(function: Callable[..., float], *matrices: Matrix) -> Matrix:
    """The function at each place of one or several matrices."""
    return [[function(*numbers) for numbers in zip(*rows)] for rows in zip(*matrices)]


def softmax(scores: list[float]) -> list[float]:
    """Shares that add up to 1. The highest score is taken off first, which changes no share and keeps exp small."""
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


@dataclass(frozen=True)
class Attended:
    """What causal attention leaves behind: scores and shares p are (T, T), of which the upper right is masked."""

    scores: Matrix
    p: Matrix
    out: Matrix


def attend(q: Matrix, k: Matrix, v: Matrix) -> Attended:
    """softmax(q k^T / sqrt(C)) v, each token looking at itself and those before it."""
    scale = 1 / math.sqrt(len(q[0]))
    scores = scaled(times(q, turned(k)), scale)
    p = [softmax(row[: t + 1]) + [0.0] * (len(row) - t - 1) for t, row in enumerate(scores)]
    return Attended(scores, p, times(p, v))


@dataclass(frozen=True)
class AttendedBack:
    """Gradients of attention's shares, scores and three inputs."""

    p: Matrix
    scores: Matrix
    q: Matrix
    k: Matrix
    v: Matrix


def attend_back(upstream: Matrix, q: Matrix, k: Matrix, v: Matrix, seen: Attended) -> AttendedBack:
    """upstream: the gradient of attention's result."""
    scale = 1 / math.sqrt(len(q[0]))
    dp = each(lambda d, share: d if share else 0.0, times(upstream, turned(v)), seen.p)
    average = [sum(d * share for d, share in zip(*rows)) for rows in zip(dp, seen.p)]
    dscores = [[share * (d - mean) for d, share in zip(*rows)] for *rows, mean in zip(dp, seen.p, average)]
    return AttendedBack(
        p=dp,
        scores=dscores,
        q=scaled(times(dscores, k), scale),
        k=scaled(times(turned(dscores), q), scale),
        v=times(turned(seen.p), upstream),
    )


@dataclass(frozen=True)
class Normed:
    """What LayerNorm leaves behind: x with mean 0 and size 1 in each row, and what each row was divided by."""

    hat: Matrix
    spread: list[float]
    out: Matrix


def norm(x: Matrix, gain: list[float], shift: list[float]) -> Normed:
    """LayerNorm over the channels of each token."""
    hats, spreads = [], []
    for row in x:
        mean = sum(row) / len(row)
        spread = math.sqrt(sum((value - mean) ** 2 for value in row) / len(row) + EPS)
        hats.append([(value - mean) / spread for value in row])
        spreads.append(spread)
    return Normed(hats, spreads, [[h * g + s for h, g, s in zip(row, gain, shift)] for row in hats])


def norm_back(upstream: Matrix, gain: list[float], seen: Normed) -> Matrix:
    """Back to x: what would only move the mean or the size of a row is taken out, since the norm takes it out."""
    result = []
    for d_out, hat, spread in zip(upstream, seen.hat, seen.spread):
        d = [value * g for value, g in zip(d_out, gain)]
        mean = sum(d) / len(d)
        along = sum(value * h for value, h in zip(d, hat)) / len(d)
        result.append([(value - mean - h * along) / spread for value, h in zip(d, hat)])
    return result


def gelu(x: float) -> float:
    """GELU in its tanh form, as GPT-2 has it."""
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x: float) -> float:
    bend = math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return 0.5 * (1 + bend) + 0.5 * x * (1 - bend**2) * inner


def attention(language: str = "en") -> Example:
    """One head over three tokens with two channels each."""

    def words(key: str) -> str:
        return say(f"by_hand.attention.{key}", language)

    inputs: dict[str, Value] = {
        "q": [[0.6, -0.2], [-0.4, 0.9], [1.2, 0.5]],
        "k": [[0.5, 0.3], [-0.7, 0.8], [0.9, -0.1]],
        "v": [[1.0, 0.0], [0.2, -0.6], [-0.5, 0.8]],
    }
    target = [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    seen = attend(q, k, v)
    upstream = each(lambda out, wanted: out - wanted, seen.out, target)
    back = attend_back(upstream, q, k, v, seen)
    root = math.sqrt(2)
    last = range(3)  # the last token sees all three

    def products(left: list[float], right: list[float], names: str) -> list[Factor]:
        pairs = enumerate(zip(left, right))
        return [Factor(names.format(j=j), f"{short(a)} x {short(b)}", a * b) for j, (a, b) in pairs]

    forward = [
        Line("S", "q k^T / sqrt(2)", seen.scores, "", words("S"), element=(2, 0), terms=_over_root(q[2], k[0])),
        Line("P", "softmax of each row of S up to the diagonal", seen.p, "", words("P")),
        Line(
            "out",
            "P v",
            seen.out,
            "",
            words("out"),
            element=(2, 0),
            terms=products(seen.p[2], _column(v, 0), "P[2,{j}] v[{j},0]"),
        ),
        Line("L", "half of the sum of (out - target)^2", half_square(seen.out, target), "", words("L")),
    ]
    average = sum(d * p for d, p in zip(back.p[2], seen.p[2]))
    share, d = seen.p[2][0], back.p[2][0]
    backward = [
        Line("dL/dout", "out - target", upstream, "", words("dout")),
        Line(
            "dL/dv",
            "P^T dL/dout",
            back.v,
            "",
            words("dv"),
            element=(0, 0),
            terms=products(_column(seen.p, 0), _column(upstream, 0), "token {j}"),
        ),
        Line(
            "dL/dP",
            "dL/dout v^T, where not masked",
            back.p,
            "",
            words("dP"),
            element=(2, 0),
            terms=products(upstream[2], v[0], "channel {j}"),
        ),
        Line(
            "dL/dS",
            "P * (dL/dP - the mean of dL/dP weighted by P)",
            back.scores,
            "",
            words("dS"),
            element=(2, 0),
            terms=[Factor("key 0", f"{short(share)} x ({short(d)} - {short(average)})", share * (d - average))],
        ),
        Line(
            "dL/dq",
            "dL/dS k / sqrt(2)",
            back.q,
            "",
            words("dq"),
            element=(2, 0),
            terms=[
                Factor(
                    f"key {j}",
                    f"{short(back.scores[2][j])} x {short(k[j][0])} / 1.4142",
                    back.scores[2][j] * k[j][0] / root,
                )
                for j in last
            ],
        ),
        Line(
            "dL/dk",
            "(dL/dS)^T q / sqrt(2)",
            back.k,
            "",
            words("dk"),
            element=(0, 0),
            terms=[
                Factor(
                    f"query {t}",
                    f"{short(back.scores[t][0])} x {short(q[t][0])} / 1.4142",
                    back.scores[t][0] * q[t][0] / root,
                )
                for t in last
            ],
        ),
    ]

    def torch_loss(given: Mapping[str, Tensor]) -> Tensor:
        q, k, v = (given[name][None, None] for name in "qkv")
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[0, 0]
        return (out - torch.tensor(target, dtype=torch.float64)).square().sum() / 2

    def loss_of(given: Mapping[str, Value]) -> float:
        return half_square(attend(given["q"], given["k"], given["v"]).out, target)

    gradients = {"q": back.q, "k": back.k, "v": back.v}
    return Example(
        name="attention",
        title=words("title"),
        intro=words("intro"),
        inputs=inputs | {"target": target},
        forward=forward,
        backward=backward,
        checks=three_ways(inputs, gradients, loss_of, torch_loss),
        closing=words("closing"),
        language=language,
    )


def half_square(out: Matrix, target: Matrix) -> float:
    return sum((o - t) ** 2 for rows in zip(out, target) for o, t in zip(*rows)) / 2


def _over_root(left: list[float], right: list[float]) -> list[Factor]:
    root = math.sqrt(len(left))
    return [
        Factor(f"channel {c}", f"{short(a)} x {short(b)} / {short(root)}", a * b / root)
        for c, (a, b) in enumerate(zip(left, right))
    ]


def _column(matrix: Matrix, index: int) -> list[float]:
    return [row[index] for row in matrix]


@dataclass(frozen=True)
class Passed:
    """What the block leaves behind on its way forward; names as on the sheet."""

    n1: Normed
    q: Matrix
    k: Matrix
    v: Matrix
    attended: Attended
    r: Matrix
    n2: Normed
    u: Matrix
    h: Matrix
    y: Matrix


def pass_block(x: Matrix, w: Mapping[str, Value]) -> Passed:
    """x (T, C) -> y (T, C): norm, attention, add; norm, MLP, add: GPT-2's layout with one head and fewer biases."""
    n1 = norm(x, w["g1"], w["s1"])
    q, k, v = (times(n1.out, w[name]) for name in ("Wq", "Wk", "Wv"))
    attended = attend(q, k, v)
    r = plus(x, times(attended.out, w["Wo"]))
    n2 = norm(r, w["g2"], w["s2"])
    u = times(n2.out, w["Wup"])
    h = each(gelu, u)
    return Passed(n1, q, k, v, attended, r, n2, u, h, plus(r, times(h, w["Wdown"])))


@dataclass(frozen=True)
class BlockBack:
    """Gradients of the block: of what is between (`d_...`), and of x and every weight (`gradients`)."""

    d_y: Matrix
    d_h: Matrix
    d_u: Matrix
    d_n2: Matrix
    through_mlp: Matrix
    d_r: Matrix
    d_heads: Matrix
    attended: AttendedBack
    d_n1: Matrix
    through_attention: Matrix
    gradients: dict[str, Value]


def block_back(d_y: Matrix, w: Mapping[str, Value], seen: Passed) -> BlockBack:
    """The same way back. Each addition hands its gradient on twice: along the stream, and into the branch."""
    d_h = times(d_y, turned(w["Wdown"]))
    d_u = each(lambda d, u: d * gelu_slope(u), d_h, seen.u)
    d_n2 = times(d_u, turned(w["Wup"]))
    through_mlp = norm_back(d_n2, w["g2"], seen.n2)
    d_r = plus(d_y, through_mlp)
    d_heads = times(d_r, turned(w["Wo"]))
    attended = attend_back(d_heads, seen.q, seen.k, seen.v, seen.attended)
    three = {"Wq": attended.q, "Wk": attended.k, "Wv": attended.v}
    *_, d_n1 = accumulate((times(d, turned(w[name])) for name, d in three.items()), plus)
    through_attention = norm_back(d_n1, w["g1"], seen.n1)
    gradients: dict[str, Value] = {
        "x": plus(d_r, through_attention),
        **{name: times(turned(seen.n1.out), d) for name, d in three.items()},
        "Wo": times(turned(seen.attended.out), d_r),
        "Wup": times(turned(seen.n2.out), d_u),
        "Wdown": times(turned(seen.h), d_y),
        "g1": [sum(column) for column in turned(each(lambda d, hat: d * hat, d_n1, seen.n1.hat))],
        "s1": [sum(column) for column in turned(d_n1)],
        "g2": [sum(column) for column in turned(each(lambda d, hat: d * hat, d_n2, seen.n2.hat))],
        "s2": [sum(column) for column in turned(d_n2)],
    }
    return BlockBack(d_y, d_h, d_u, d_n2, through_mlp, d_r, d_heads, attended, d_n1, through_attention, gradients)


def _waves(rows: int, columns: int, size: float, turn: float) -> Matrix:
    """Weights that look drawn at random and are the same everywhere."""
    return [[round(size * math.sin(turn + 1.7 * r + 2.9 * c), 2) for c in range(columns)] for r in range(rows)]


def block(language: str = "en") -> Example:
    """A transformer block over three tokens with four channels, MLP of six."""

    def words(key: str) -> str:
        return say(f"by_hand.block.{key}", language)

    x, target = _waves(3, 4, 1.0, 0.3), _waves(3, 4, 1.0, 2.0)
    w: dict[str, Value] = {
        **{name: _waves(4, 4, 0.6, turn) for turn, name in enumerate(("Wq", "Wk", "Wv", "Wo"), 1)},
        "Wup": _waves(4, 6, 0.6, 5),
        "Wdown": _waves(6, 4, 0.6, 6),
        "g1": [1.0, 1.1, 0.9, 1.0],
        "s1": [0.0, 0.1, -0.1, 0.0],
        "g2": [0.9, 1.0, 1.0, 1.1],
        "s2": [0.05, 0.0, 0.0, -0.05],
    }
    seen = pass_block(x, w)
    back = block_back(each(lambda y, t: y - t, seen.y, target), w, seen)
    inputs = {"x": x, **w}

    def paths(stream: Matrix, branch: Matrix, name: str) -> list[Factor]:
        return [
            Factor(words("stream"), short(stream[0][0]), stream[0][0]),
            Factor(name, short(branch[0][0]), branch[0][0]),
        ]

    slope = gelu_slope(seen.u[0][0])
    forward = [
        Line("n1", "(x - mean) / spread * g1 + s1, for each token", seen.n1.out, "", words("n1")),
        Line("P", "softmax(q k^T / sqrt(4)), with q = n1 Wq, k = n1 Wk", seen.attended.p, "", words("P")),
        Line("r", "x + (P v) Wo, with v = n1 Wv", seen.r, "", words("r")),
        Line("n2", "(r - mean) / spread * g2 + s2", seen.n2.out, "", words("n2")),
        Line("h", "gelu(n2 Wup)", seen.h, "", words("h")),
        Line("y", "r + h Wdown", seen.y, "", words("y")),
        Line("L", "half of the sum of (y - target)^2", half_square(seen.y, target), "", words("L")),
    ]
    backward = [
        Line("dL/dy", "y - target", back.d_y, "", words("dy")),
        Line("dL/dWdown", "h^T dL/dy", back.gradients["Wdown"], "", words("dWdown")),
        Line("dL/dh", "dL/dy Wdown^T", back.d_h, "", words("dh")),
        Line(
            "dL/du",
            "dL/dh * gelu'(u)",
            back.d_u,
            "",
            words("du"),
            element=(0, 0),
            terms=[Factor("slope", f"{short(back.d_h[0][0])} x {short(slope)}", back.d_u[0][0])],
        ),
        Line("dL/dr by the MLP", "back through the norm of dL/du Wup^T", back.through_mlp, "", words("through_mlp")),
        Line(
            "dL/dr",
            "dL/dy + what came through the MLP",
            back.d_r,
            "",
            words("dr"),
            element=(0, 0),
            terms=paths(back.d_y, back.through_mlp, words("mlp")),
        ),
        Line("dL/dS", "P * (dL/dP - the mean of dL/dP weighted by P)", back.attended.scores, "", words("dS")),
        Line("dL/dn1", "dL/dq Wq^T + dL/dk Wk^T + dL/dv Wv^T", back.d_n1, "", words("dn1")),
        Line(
            "dL/dx",
            "dL/dr + what came through attention",
            back.gradients["x"],
            "",
            words("dx"),
            element=(0, 0),
            terms=paths(back.d_r, back.through_attention, words("attention")),
        ),
    ]

    def torch_loss(given: Mapping[str, Tensor]) -> Tensor:
        functional = torch.nn.functional
        n1 = functional.layer_norm(given["x"], (4,), given["g1"], given["s1"], EPS)
        q, k, v = ((n1 @ given[name])[None, None] for name in ("Wq", "Wk", "Wv"))
        r = given["x"] + functional.scaled_dot_product_attention(q, k, v, is_causal=True)[0, 0] @ given["Wo"]
        n2 = functional.layer_norm(r, (4,), given["g2"], given["s2"], EPS)
        y = r + functional.gelu(n2 @ given["Wup"], approximate="tanh") @ given["Wdown"]
        return (y - torch.tensor(target, dtype=torch.float64)).square().sum() / 2

    def loss_of(given: Mapping[str, Value]) -> float:
        return half_square(pass_block(given["x"], given).y, target)

    return Example(
        name="block",
        title=words("title"),
        intro=words("intro"),
        inputs=inputs | {"target": target},
        forward=forward,
        backward=backward,
        checks=three_ways(inputs, back.gradients, loss_of, torch_loss),
        closing=words("closing"),
        language=language,
    )
