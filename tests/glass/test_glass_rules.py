"""Every row of the chain rule's table, checked five ways, and the checks checked by rows that are wrong on purpose."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path as FilePath

import pytest
import torch
from glass_rule_checks import (
    Recorder,
    by_autograd,
    check_against_autograd,
    check_by_differences,
    check_formula,
    check_index_map,
    complaints,
    jacobian,
    mutations,
    places,
    upstream_for,
)
from glass_rule_examples import EXAMPLES, VARIANTS, Draw, aten, run
from torch.nn import functional

from lightwell.errors import TraceError
from lightwell.glass import formula as formulas
from lightwell.glass.call import Call
from lightwell.glass.rules import RULES, Rule, find
from lightwell.glass.rules_page import counted, page
from lightwell.glass.wording import say

SAMPLES = EXAMPLES | VARIANTS
DERIVATIVES = sorted(name for name in EXAMPLES if RULES[name].kind == "derivative")

# Kernels of accelerators; their rows are those of kernels that run here, under another name.
ELSEWHERE = {
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_batch_norm_no_update",
    "_native_batch_norm_legit_no_training",
    "convolution_overrideable",
    "cudnn_convolution",
    "mkldnn_convolution",
}
# PyTorch has no derivative of these here; the other checks hold.
NO_AUTOGRAD = {
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "copy",
    "native_channel_shuffle",
}
# PyTorch computes with a constant in single precision (1/6, 1/alpha, 1e-12), even in float64.
SINGLE_PRECISION = {"hardsigmoid": 1e-7, "celu": 1e-7, "binary_cross_entropy, sure": 1e-7}
# The output whose derivative is meant, where it is not the first.
OUTPUT = {"_linalg_slogdet": 1}


@pytest.fixture(autouse=True)
def _same_numbers_on_one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def sample(name: str, seed: int = 0) -> tuple[Rule, Call]:
    call = SAMPLES[name](Draw(seed))
    rule = find(call.op)
    assert rule is not None
    return rule, call


def test_every_row_has_an_example_under_its_own_name() -> None:
    wanted = {name for name, rule in RULES.items() if rule.kind == "derivative"} - ELSEWHERE
    assert len(wanted) > 200
    assert wanted <= set(EXAMPLES)
    assert all(sample(name)[0].name == name for name in EXAMPLES)


@pytest.mark.parametrize("name", [n for n in SAMPLES if RULES.get(n, RULES["add"]).kind != "zero"])
def test_differences_agree(name: str) -> None:
    rule, call = sample(name)
    assert check_by_differences(rule, call, OUTPUT.get(name, 0)) == []


@pytest.mark.parametrize("name", [n for n in SAMPLES if n not in NO_AUTOGRAD])
def test_autograd_agrees(name: str) -> None:
    rule, call = sample(name)
    assert check_against_autograd(rule, call, tolerance=SINGLE_PRECISION.get(name, 1e-9)) == []


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n not in ("gt", "argmax")])
def test_formula_says_what_the_code_does(name: str) -> None:
    rule, call = sample(name)
    assert check_formula(rule, call) == []


@pytest.mark.parametrize("name", SAMPLES)
def test_index_map_is_what_the_operation_reads(name: str) -> None:
    rule, _ = sample(name)
    assert check_index_map(rule, lambda seed: SAMPLES[name](Draw(seed)), OUTPUT.get(name, 0)) == []


@pytest.mark.parametrize("name", DERIVATIVES)
def test_wrong_rows_are_found_out(name: str) -> None:
    rule, call = sample(name)
    output, wrong = OUTPUT.get(name, 0), 0
    measured: dict = {}
    for what, mutant in mutations(rule, call, output):
        assert check_by_differences(mutant, call, output, measured), f"differences did not see: {what}"
        assert check_formula(mutant, call), f"the formula did not see: {what}"
        if name not in NO_AUTOGRAD:
            assert check_against_autograd(mutant, call), f"autograd did not see: {what}"
        wrong += 1
    assert wrong >= 2


@pytest.mark.parametrize("name", DERIVATIVES)
def test_wrong_formulas_are_found_out(name: str) -> None:
    rule, call = sample(name)
    equations = formulas.parse(rule.formula)
    jacobians: dict = {}
    for i, equation in enumerate(equations):
        left, right = equation.text.split("=", 1) if equation.rows is None else _sides(equation.text)
        if not isinstance(call.get(rule.paths(call)[equation.of]), torch.Tensor | list) or right.strip() == "0":
            continue
        for wrong in (f"1.01 * ({_body(right)})", f"-({_body(right)})"):
            texts = [e.text for e in equations]
            texts[i] = f"{left} = {wrong}{_rest(right)}"
            assert check_formula(rule, call, "; ".join(texts), jacobians), texts[i]


def _sides(text: str) -> tuple[str, str]:
    match = re.match(r"(d\w+(?:\[[^]]*\])?/d\w+(?:\[[^]]*\])?)\s*=(.*)", text, re.DOTALL)
    assert match is not None
    return match[1], match[2]


def _body(right: str) -> str:
    return right.split(" with ")[0]


def _rest(right: str) -> str:
    return right[len(_body(right)) :]


@pytest.mark.parametrize("name", ["mul", "mm", "_softmax", "native_layer_norm", "embedding", "convolution", "sum"])
def test_wrong_index_maps_are_found_out(name: str) -> None:
    rule, call = sample(name)
    path = next(iter(jacobian(rule, call)))

    def with_one_less(call: Call, out: tuple[int, ...]) -> dict:
        read = rule.index_map(call, out)
        return read | {path: read[path][1:]}

    def elsewhere(call: Call, out: tuple[int, ...]) -> dict:
        read = rule.index_map(call, out)
        return read | {path: torch.zeros_like(read[path])}

    for wrong in (with_one_less, elsewhere):
        assert check_index_map(replace(rule, index_map=wrong), lambda seed: EXAMPLES[name](Draw(seed)), most=8)


# Kinks: where no derivative exists, the row takes PyTorch's choice.

KINKS: dict[str, Callable[[], Call]] = {
    "relu": lambda: run(aten.relu.default, torch.zeros(1).double()),
    "leaky_relu": lambda: run(aten.leaky_relu.default, torch.zeros(1).double()),
    "prelu": lambda: run(aten._prelu_kernel.default, torch.zeros(1).double(), torch.ones(1).double()),
    "elu": lambda: run(aten.elu.default, torch.zeros(1).double(), 2.0),
    "softplus": lambda: run(aten.softplus.default, torch.tensor([2.0]).double(), 1.0, 2.0),
    "hardtanh": lambda: run(aten.hardtanh.default, torch.tensor([-1.0, 1]).double()),
    "relu6": lambda: run(aten.relu6.default, torch.tensor([0.0, 6]).double()),
    "hardsigmoid": lambda: run(aten.hardsigmoid.default, torch.tensor([-3.0, 3]).double()),
    "hardswish": lambda: run(aten.hardswish.default, torch.tensor([-3.0, 3]).double()),
    "softshrink": lambda: run(aten.softshrink.default, torch.tensor([-0.5, 0.5]).double()),
    "hardshrink": lambda: run(aten.hardshrink.default, torch.tensor([-0.5, 0.5]).double()),
    "threshold": lambda: run(aten.threshold.default, torch.tensor([0.5]).double(), 0.5, 3.0),
    "abs": lambda: run(aten.abs.default, torch.zeros(1).double()),
    "pow, 0 to the 0": lambda: run(aten.pow.Tensor_Tensor, torch.zeros(1).double(), torch.zeros(1).double()),
    "clamp": lambda: run(aten.clamp.default, torch.tensor([-1.0, 1]).double(), -1.0, 1.0),
    "clamp, bounds crossed": lambda: run(
        aten.clamp.Tensor, torch.tensor([0.0, 1, 2]).double(), torch.ones(3).double(), torch.zeros(3).double()
    ),
    "clamp_min": lambda: run(aten.clamp_min.Tensor, torch.ones(1).double(), torch.ones(1).double()),
    "clamp_max": lambda: run(aten.clamp_max.Tensor, torch.ones(1).double(), torch.ones(1).double()),
    "maximum": lambda: run(aten.maximum.default, torch.ones(1).double(), torch.ones(1).double()),
    "minimum": lambda: run(aten.minimum.default, torch.ones(1).double(), torch.ones(1).double()),
    "fmax": lambda: run(aten.fmax.default, torch.ones(1).double(), torch.ones(1).double()),
    "fmin": lambda: run(aten.fmin.default, torch.ones(1).double(), torch.ones(1).double()),
    "fmax, of nan": lambda: run(
        aten.fmax.default, torch.tensor([torch.nan, 1]).double(), torch.tensor([1, torch.nan]).double()
    ),
    "copysign": lambda: run(aten.copysign.Tensor, torch.zeros(1).double(), torch.ones(1).double()),
    "sinc": lambda: run(aten.sinc.default, torch.zeros(1).double()),
    "atan2": lambda: run(aten.atan2.default, torch.zeros(1).double(), torch.zeros(1).double()),
    "special_i1": lambda: run(aten.special_i1.default, torch.zeros(1).double()),
    "special_i1e": lambda: run(aten.special_i1e.default, torch.zeros(1).double()),
    "xlogy": lambda: run(aten.xlogy.Tensor, torch.zeros(2).double(), torch.tensor([0.0, -1]).double()),
    "logit, outside": lambda: run(aten.logit.default, torch.tensor([-0.5, 0.01, 1.5]).double(), 0.1),
    "nan_to_num": lambda: run(aten.nan_to_num.default, torch.tensor([torch.nan, torch.inf, 1]).double()),
    "norm of 0": lambda: run(aten.linalg_vector_norm.default, torch.zeros(3).double()),
    "1-norm": lambda: run(aten.linalg_vector_norm.default, torch.tensor([0.0, 2]).double(), 1),
    "largest norm, tied": lambda: run(aten.linalg_vector_norm.default, torch.tensor([1.0, -1]).double(), float("inf")),
    "dist of equals": lambda: run(aten.dist.default, torch.ones(3).double(), torch.ones(3).double()),
    "std of equals": lambda: run(aten.std.correction, torch.ones(3).double()),
    "prod with one 0": lambda: run(aten.prod.default, torch.tensor([2.0, 0, 3]).double()),
    "prod with two 0": lambda: run(aten.prod.default, torch.tensor([2.0, 0, 0]).double()),
    "cumprod with 0": lambda: run(aten.cumprod.default, torch.tensor([2.0, 0, 3, 0, 4]).double(), 0),
    "amax, tied": lambda: run(aten.amax.default, torch.tensor([1.0, 3, 3]).double()),
    "max, tied": lambda: run(aten.max.default, torch.tensor([1.0, 3, 3]).double()),
    "max.dim, tied": lambda: run(aten.max.dim, torch.tensor([1.0, 3, 3]).double(), 0),
    "median, tied": lambda: run(aten.median.default, torch.tensor([1.0, 3, 3, 3, 4]).double()),
    "topk, tied": lambda: run(aten.topk.default, torch.tensor([1.0, 3, 3]).double(), 1),
    "cummax, tied": lambda: run(aten.cummax.default, torch.tensor([1.0, 3, 3]).double(), 0),
    "max_pool2d, tied": lambda: run(aten.max_pool2d_with_indices.default, torch.ones(1, 2, 2).double(), [2, 2]),
    "smooth_l1_loss": lambda: run(
        aten.smooth_l1_loss.default, torch.tensor([-1.0, 1, 0]).double(), torch.zeros(3).double()
    ),
    "huber_loss": lambda: run(aten.huber_loss.default, torch.tensor([-1.0, 1, 0]).double(), torch.zeros(3).double()),
    "binary_cross_entropy, sure": lambda: run(
        aten.binary_cross_entropy.default, torch.tensor([0.0, 1]).double(), torch.tensor([1.0, 1]).double()
    ),
    "embedding, padding": lambda: run(aten.embedding.default, torch.ones(3, 2).double(), torch.tensor([0, 2, 2]), 2),
    "nll_loss, nothing counts": lambda: run(
        aten.nll_loss_forward.default, torch.ones(1, 2).double(), torch.tensor([-100]), None, 1, -100
    ),
}


@pytest.mark.parametrize("name", KINKS)
def test_at_kinks_rows_choose_as_pytorch_does(name: str) -> None:
    call = KINKS[name]()
    rule = find(call.op)
    assert rule is not None
    assert check_against_autograd(rule, call, tolerance=SINGLE_PRECISION.get(name, 1e-9)) == []


def test_the_determinant_of_a_singular_matrix_has_a_derivative() -> None:
    """Here the row stays with mathematics: PyTorch's own gradient is 0, which differences refute."""
    call = run(aten._linalg_det.default, torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]).double())
    rule = find(call.op)
    assert rule is not None
    assert check_by_differences(rule, call) == []
    assert rule.local(call, (0,), (), (0, 0)) == pytest.approx(5 * 9 - 6 * 8)


def test_kinks_are_words_or_readable_equations() -> None:
    stated = {rule.kink for rule in RULES.values() if rule.kink}
    assert len(stated) > 10
    for kink in stated - {"ties", "margin reached exactly"}:
        for equation in kink.split(";"):
            left, right = equation.split("=")
            formulas.parse_expression(left)
            formulas.parse_expression(right)


# Rows, columns and single entries of the Jacobian.


@pytest.mark.parametrize("name", ["mul", "mm", "_softmax", "native_layer_norm", "convolution", "cat", "addmm"])
def test_rows_columns_and_entries_are_one_jacobian(name: str) -> None:
    rule, call = sample(name)
    for path, whole in jacobian(rule, call).items():
        for place in places(call.get(path)):
            column = rule.column(call, path, place)
            assert torch.allclose(column, whole[(..., *place)], rtol=1e-14, atol=1e-15)
        out, place = places(call.outputs[0])[-1], places(call.get(path))[0]
        assert rule.local(call, path, out, place) == whole[out + place].item()


def test_an_entry_without_dependence_is_zero() -> None:
    rule, call = sample("argmax")
    assert rule.local(call, (0,), (), (0, 0)) == 0.0
    rule, call = sample("mul")
    assert not rule.column(call, (5,), (0,)).any()


def test_no_upstream_gives_no_gradient() -> None:
    rule, call = sample("mul")
    assert rule.backward(call, (None,)) == {}


def test_gradients_have_the_shape_and_dtype_of_their_inputs() -> None:
    call = run(aten.mul.Tensor, torch.ones(2, 1, 3), torch.ones(4, 1, dtype=torch.float64))
    gradients = find(call.op).backward(call, (torch.ones(2, 4, 3, dtype=torch.float64),))  # type: ignore[union-attr]
    assert gradients[(0,)].shape == (2, 1, 3)
    assert gradients[(0,)].dtype == torch.float32
    assert gradients[(1,)].shape == (4, 1)
    assert gradients[(1,)].dtype == torch.float64


def test_rows_cut_their_inputs_off_from_autograd() -> None:
    x = torch.ones(2, requires_grad=True)
    call = run(aten.mul.Tensor, x, x)
    gradients = find(call.op).backward(call, (torch.ones(2),))  # type: ignore[union-attr]
    assert not any(gradient.requires_grad for gradient in gradients.values())


# Finding rows.


def test_overloads_and_in_place_twins_share_a_row_unless_they_mean_something_else() -> None:
    assert find(aten.add_.Tensor) is find(aten.add.Scalar) is RULES["add"]
    assert find(aten.max.dim) is RULES["max.dim"]
    assert find(aten.max.default) is RULES["max"]
    assert find(aten.div.Tensor_mode) is RULES["div.Tensor_mode"]


def test_no_row_is_no_rule() -> None:
    assert find(aten._linalg_svd.default) is None
    assert find(torch.ops.prims.sin.default) is None


def test_scatter_with_a_reduction_is_refused() -> None:
    call = run(aten.scatter.reduce, torch.ones(2), 0, torch.tensor([0]), torch.ones(1), reduce="add")
    with pytest.raises(TraceError, match="reduce='add'"):
        find(call.op).backward(call, (torch.ones(2),))  # type: ignore[union-attr]


def test_dropout_inside_of_an_attention_kernel_is_refused() -> None:
    rule, call = sample("_scaled_dot_product_flash_attention")
    dropped = call.with_inputs({})
    dropped = replace(call, args=(*call.args, 0.1))
    with pytest.raises(TraceError, match="without dropout"):
        rule.backward(dropped, upstream_for(call, torch.Generator()))


# Models: nothing that they run in forward is without a row.


def _operations(model: torch.nn.Module, *inputs: torch.Tensor) -> set[str]:
    with Recorder() as seen:
        model(*inputs)
    missing = {str(call.op) for call in seen.calls if find(call.op) is None}
    assert len(seen.calls) > 20
    return missing


@pytest.mark.parametrize("drop_rate", [0.0, 0.1])
def test_gpt2_has_no_operation_without_a_row(drop_rate: float) -> None:
    from lightwell.config.gpt import GPTConfig
    from lightwell.model.gpt2 import GPT2

    config = GPTConfig(vocab_size=11, context_length=6, emb_dim=8, n_heads=2, n_layers=1, drop_rate=drop_rate)
    ids = torch.randint(11, (2, 6))
    assert _operations(GPT2(config), ids, ids) == set()


def test_the_modern_family_has_no_operation_without_a_row() -> None:
    from lightwell.config.gpt import ModernConfig
    from lightwell.model.modern import Modern

    config = ModernConfig(vocab_size=11, context_length=6, emb_dim=8, n_heads=4, n_kv_heads=2, n_layers=1)
    ids = torch.randint(11, (2, 6))
    assert _operations(Modern(config), ids, ids) == set()


class _Calls(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.scaled_dot_product_attention(x, x[:, :2], x[:, :2], is_causal=True, enable_gqa=True)
        x = functional.rms_norm(functional.dropout(x, 0.2), (4,)) + functional.gelu(x, approximate="tanh")
        x = functional.scaled_dot_product_attention(x, x, x, is_causal=True, dropout_p=0.1)
        return functional.cross_entropy(x.reshape(-1, 4), torch.arange(24) % 4)


def test_whole_chains_agree_with_autograd_call_by_call() -> None:
    x = torch.randn(2, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    with Recorder() as seen:
        _Calls()(x)
    assert any("flash" in call.name for call in seen.calls)
    compared = 0
    for call in seen.calls:
        rule = find(call.op)
        assert rule is not None, call.op
        if call.float_inputs() and rule.kind != "zero":
            assert check_against_autograd(rule, call) == [], call.op
            compared += 1
    assert compared > 30


# Words and pages.


def test_every_row_has_its_sentence_and_no_sentence_is_without_a_row() -> None:
    keys = {rule.sentence.removeprefix("rules.") for rule in RULES.values()}
    texts = tomllib.loads((files("lightwell.glass") / "texts" / "en" / "rules.toml").read_text(encoding="utf-8"))
    assert keys == set(texts)
    for rule in RULES.values():
        sentence = say(rule.sentence)
        assert sentence[0].isupper()
        assert sentence.endswith(".")


def test_latex_is_balanced() -> None:
    for rule in RULES.values():
        assert rule.latex.count("{") == rule.latex.count("}"), rule.name
        assert rule.latex.count(r"\left") == rule.latex.count(r"\right"), rule.name
        assert not re.search(r"_\w+_\{", rule.latex.replace(r"\_", "")), rule.name  # an index of an index
        assert rule.latex.startswith(r"\frac{\partial")


def test_at_least_120_operations_have_a_derivative() -> None:
    assert counted() >= 120
    assert counted() == len({RULES[name].sentence for name in RULES if RULES[name].kind == "derivative"})


def test_the_list_in_the_docs_is_up_to_date() -> None:
    written = (FilePath(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -c \"from lightwell.glass.rules_page import write; write('docs/rules.md')\""


def test_gradients_that_differ_are_said_to() -> None:
    one, two = {(0,): torch.ones(2)}, {(0,): torch.ones(3)}
    assert complaints(one, one, 1e-9) == []
    assert complaints(one, two, 1e-9)
    assert complaints({}, one, 1e-9)
    assert by_autograd(run(aten.gt.Tensor, torch.ones(2), torch.ones(2)), [None]) is None
