"""A tensor's card: what it says is true, and it leaves no trace."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lightwell
from lightwell.errors import TraceError
from lightwell.glass import card as cards
from lightwell.glass.card import card
from lightwell.glass.wording import languages, say

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


def seen(the_card, expression):
    (row,) = [row for row in the_card.seen if row.expression == expression]
    return row


def test_rank_in_words():
    shapes = [(), (3,), (3, 4), (2, 3, 4), (1, 2, 3, 4)]
    ranks = [card(torch.zeros(shape)).facts["rank"] for shape in shapes]
    assert ranks == ["scalar", "vector", "matrix", "3-dimensional tensor", "4-dimensional tensor"]
    assert str(card(torch.zeros(3, 4))).startswith("matrix of float32, shape (3, 4), on cpu")
    assert lightwell.card is card


def test_facts_of_a_view():
    base = torch.zeros(12)
    facts = card(base[2:10:2]).facts
    assert facts["strides"] == [2]
    assert facts["offset"] == 2
    assert not facts["contiguous"]
    assert facts["bytes"] == 16
    assert facts["storage_bytes"] == 48
    assert facts["view_of"] == {"shape": [12], "strides": [1]}
    assert card(base).facts["view_of"] is None
    assert "looks into a tensor of shape (12,)" in str(card(base[2:]))
    assert "others may look into it" in str(card(base[2:].detach()))
    assert card(torch.zeros(3, 1).expand(3, 4)).facts["overlapping"]


def test_facts_about_gradients():
    w = torch.nn.Parameter(torch.ones(3))
    y = w * 2
    assert card(y).facts["grad_fn"] == "MulBackward0"
    assert "made by MulBackward0" in str(card(y))
    assert card(w).facts["grad_shape"] is None
    assert card(w).facts["kinds"] == ["parameter", "leaf"]
    y.sum().backward()
    assert card(w).facts["grad_shape"] == [3]
    assert "not tracked" in str(card(w.detach()))


def test_statistics_and_what_is_not_finite():
    s = card(torch.tensor([0.0, 3.0, -4.0, math.nan, math.inf, -math.inf, -math.inf])).statistics
    assert (s["minimum"], s["maximum"], s["zeros"]) == (-4.0, 3.0, 1)
    assert s["rms"] == pytest.approx(math.sqrt(25 / 3))
    assert (s["nan"], s["inf"], s["minus_inf"]) == (1, 1, 2)
    assert "no: 1 NaN, 1 +Inf, 2 -Inf" in str(card(torch.tensor([math.nan, math.inf, -math.inf, -math.inf])))
    assert card(torch.tensor([True, False, True])).statistics["mean"] == pytest.approx(2 / 3)
    assert card(torch.zeros(0, 3)).statistics is None


def test_values_are_shortened():
    assert card(torch.arange(4)).values == [0, 1, 2, 3]
    assert card(torch.arange(100)).values == [0, 1, 2, None, 97, 98, 99]
    deep = card(torch.zeros(5, 100, 100)).values
    assert deep[1:] == [None]
    assert len(deep[0]) == len(deep[0][0]) == 7
    assert card(torch.tensor(2.5)).values == 2.5
    assert "[0  1  2  ...  97  98  99]" in str(card(torch.arange(100)))


def test_python_numbers_take_the_dtype_that_pytorch_gives_them():
    whole, half = card(torch.arange(3)), card(torch.zeros(3, dtype=torch.bfloat16))
    assert [seen(whole, e).dtype for e in ("t + 1", "t * 0.5", "t / 2", "t == 0")] == [
        "int64",
        "float32",
        "float32",
        "bool",
    ]
    assert [seen(half, e).dtype for e in ("t + 1", "t * 0.5")] == ["bfloat16", "bfloat16"]
    assert [seen(whole, f"torch.tensor({n})").dtype for n in ("1", "0.5")] == ["int64", "float32"]


def test_shapes_and_memory_are_those_that_were_seen():
    straight, turned = card(torch.zeros(3, 4)), card(torch.zeros(4, 3).T)
    assert seen(straight, "t.view(-1)").memory == "same_memory"
    assert seen(turned, "t.view(-1)").memory == "refused"
    assert "view size is not compatible" in seen(turned, "t.view(-1)").refusal
    assert seen(straight, "t.reshape(-1)").memory == "same_memory"
    assert seen(turned, "t.reshape(-1)").memory == "own_memory"
    assert seen(straight, "t.contiguous()").memory == "same_object"
    assert seen(turned, "t.contiguous()").strides == [4, 1]
    assert seen(straight, "t.T").strides == [1, 4]
    assert seen(straight, "t @ t.T").shape == [3, 3]
    assert seen(straight, "t[0]").writes_through is True
    assert seen(straight, "t[[0]]").writes_through is False
    assert seen(straight, "t[t != 0]").shape == [0]
    assert seen(straight, "t.to(torch.float32)").memory == "same_object"
    assert seen(straight, "t.to(torch.float64)").memory == "own_memory"
    assert seen(card(torch.tensor(5)), "t.item()").dtype == "Python int"
    assert seen(card(torch.tensor(5)), "t @ t").memory == "refused"
    assert seen(card(torch.zeros(2, 3, 4)), "t @ t.mT").shape == [2, 3, 3]


def test_numpy_and_writing_are_refused_where_pytorch_refuses():
    assert seen(card(torch.zeros(2, 3)), "t.numpy()").memory == "same_memory"
    assert seen(card(torch.zeros(2, dtype=torch.bfloat16)), "t.numpy()").memory == "refused"
    assert "requires grad" in seen(card(torch.zeros(2, requires_grad=True)), "t.numpy()").refusal
    assert seen(card(torch.zeros(2)), "t.mul_(0.5)").memory == "written"
    assert seen(card(torch.arange(2)), "t.mul_(0.5)").memory == "refused"
    assert "leaf" in seen(card(torch.zeros(2, requires_grad=True)), "t.add_(1)").refusal
    assert seen(card(torch.zeros(2, 1).expand(2, 3)), "t.add_(1)").memory == "refused"
    computed = torch.zeros(2, requires_grad=True) * 2
    assert seen(card(computed), "t.add_(1)").memory == "written"
    assert seen(card(computed), "t.numpy()").memory == "refused"


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    t = torch.arange(math.prod(shape) * 2).reshape(*shape, 2).to(dtype)[..., 0]
    t = t.permute(draw(st.permutations(range(t.dim()))))
    if t.dim() and draw(st.booleans()):
        t = t[:: draw(st.integers(1, 3))]
    wants_grad = draw(st.booleans()) and (dtype.is_floating_point or dtype.is_complex)
    return t.requires_grad_(wants_grad) if wants_grad and t.is_leaf else t


@given(tensors())
def test_any_tensor_has_a_card_and_is_left_alone(t):
    before, version, state = t.detach().clone(), t._version, torch.random.get_rng_state()
    the_card = card(t)
    assert t._version == version
    assert torch.equal(t.detach(), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert t.grad is None
    json.dumps(the_card.to_dict(), default=str)
    assert the_card.title in str(the_card)
    assert "<table>" in the_card._repr_html_()
    assert "\x1b" not in str(the_card)
    assert "\x1b" in the_card.draw(color=True)
    for row in the_card.seen:
        if row.writes_through is not None:
            assert row.writes_through is (row.memory == "same_memory")


def test_a_large_tensor_costs_little(monkeypatch):
    monkeypatch.setattr(cards, "STAND_IN", 100)
    monkeypatch.setattr(cards, "MEASURED", 200)
    monkeypatch.setattr(cards, "SAMPLED", 50)
    t = torch.arange(1000.0).reshape(20, 50).T
    large = card(t)
    assert large.stand_in == "meta"
    assert large.statistics["measured"] == 50
    assert large.statistics["maximum"] == 999
    small = {row.expression: row for row in card(torch.zeros(3, 2).T).seen}
    for row in large.seen:
        assert row.memory == small[row.expression].memory  # a stand-in without numbers behaves the same
    huge = torch.zeros(1).expand(10**6, 10**6)
    assert card(huge).facts["elements"] == 10**12  # four terabytes, were they laid out


def test_unusual_tensors():
    for t in (
        torch.zeros(2, 3, device="meta"),
        torch.eye(3).to_sparse(),
        torch.zeros(2, 2, dtype=torch.float8_e4m3fn),
        torch.ones(2, dtype=torch.complex64).conj(),
    ):
        the_card = card(t)
        assert the_card.title in str(the_card)
    assert card(torch.eye(3).to_sparse()).seen == []
    assert "without numbers" in card(torch.zeros(2, device="meta")).facts["kinds"]
    with torch.inference_mode():
        assert "inference mode" in card(torch.zeros(2)).facts["kinds"]


def test_what_is_not_a_tensor():
    with pytest.raises(TraceError, match=r"expected a torch.Tensor, got list\. torch\.as_tensor"):
        card([1, 2])


def test_sentences_have_keys_and_languages():
    assert "en" in languages()
    assert say("card.fact.memory") == "memory"
    with pytest.raises(KeyError, match=r"card\.nothing"):
        say("card.nothing")
    with pytest.raises(lightwell.UserError, match="expected a language out of"):
        say("card.fact.memory", "xx")
