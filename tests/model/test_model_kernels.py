"""The C kernels against what PyTorch says in several steps: values and gradients, and whole training steps."""

import os
import subprocess
import sys
import threading
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightwell.config.gpt import GPTConfig, ModernConfig
from lightwell.model.build import GPT
from lightwell.model.kernels import build, fused
from lightwell.model.loss import IGNORE
from lightwell.model.modern import rotate, rotation
from lightwell.model.norms import RMSNorm

needed = pytest.mark.skipif(build.library() is None, reason=f"no C kernels here: {build.why_not()}")
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of the largest number
DTYPES = [torch.float32, torch.bfloat16]


def numbers(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype).requires_grad_()


def assert_agree(plain, fast, *inputs, close):
    """Values, and gradients for one random direction, but for rounding."""
    expected, found = plain(*inputs), fast(*inputs)
    together = [result if isinstance(result, tuple) else (result,) for result in (expected, found)]
    directions = [torch.randn_like(part, dtype=torch.float32) for part in together[0]]
    gradients = [
        torch.autograd.grad(parts, inputs, [d.to(p.dtype) for d, p in zip(directions, parts)]) for parts in together
    ]
    for a, b in zip((*together[0], *gradients[0]), (*together[1], *gradients[1])):
        a, b = a.detach(), b.detach()
        assert a.shape == b.shape
        torch.testing.assert_close(b.float(), a.float(), rtol=0, atol=close * max(1.0, float(a.abs().max())))


@needed
@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 5, 8), (2, 33, 130)])
def test_rms_norm(shape):
    n = shape[-1]
    assert_agree(
        lambda x, w: F.rms_norm(x, (n,), w, 1e-6),
        lambda x, w: fused.rms_norm(x, w, 1e-6),
        numbers(*shape), numbers(n), close=1e-5,
    )  # fmt: skip


@needed
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 2), (2, 7, 3, 3, 6), (3, 20, 4, 2, 32)])
def test_heads(sizes, dtype):
    B, T, H, G, D = sizes
    turn = rotation(torch.arange(T)[None], D, 10_000.0, torch.float32)
    cos, sin = turn[0][0, :, 0], turn[1][0, :, 0]

    def plain(qkv, w_q, w_k):
        q, k, v = qkv.view(B, T, H + 2 * G, D).split((H, G, G), dim=2)
        q, k = (rotate(F.rms_norm(x.float(), (D,), w, 1e-6), turn) for x, w in ((q, w_q), (k, w_k)))
        return tuple(x.transpose(1, 2).to(dtype) for x in (q, k, v))

    assert_agree(
        plain,
        lambda qkv, w_q, w_k: fused.heads(qkv, w_q, w_k, cos, sin, 1e-6, (H, G)),
        numbers(B, T, (H + 2 * G) * D, dtype=dtype), numbers(D), numbers(D), close=CLOSE[dtype],
    )  # fmt: skip


@needed
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 3, 17, 8), (2, 2, 64, 32), (1, 2, 128, 4), (1, 2, 300, 16)])
def test_attend(shape, dtype):
    assert_agree(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        fused.attend,
        *(numbers(*shape, dtype=dtype).detach().roll(n).requires_grad_() for n in range(3)), close=2 * CLOSE[dtype],
    )  # fmt: skip


@needed
def test_attend_where_there_are_more_threads_than_heads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    inputs = [numbers(2, 3, 300, 16).detach().roll(n).requires_grad_() for n in range(3)]
    assert fused.attends(inputs[0])
    assert not fused.attends(numbers(1, 1, 2000, 4))
    assert_agree(lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True), fused.attend, *inputs, close=2e-5)
    monkeypatch.undo()
    assert fused.attends(numbers(2, 2, 2000, 4)) == (torch.get_num_threads() <= 4)


@needed
def test_attend_to_heads_that_lie_apart():
    """As GPT-2 has them: queries, keys and values of a token side by side; and a gradient that is one number."""

    def apart(attend):
        def of(qkv):
            q, k, v = qkv.view(2, 70, 3, 4, 20).permute(2, 0, 3, 1, 4)
            y = attend(q, k, v)
            return y.transpose(1, 2).reshape(2, 70, 80), y.sum().expand(3)

        return of

    plain = apart(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    assert_agree(plain, apart(fused.attend), numbers(2, 70, 240), close=2e-5)


@needed
def test_attention_has_its_room_whatever_the_default_dtype_is(monkeypatch):
    asked, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, **options: asked.append(options) or empty(*sizes, **options))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        fused.attend(*(numbers(1, 2, 70, 16, dtype=torch.float32) for _ in range(3)))
    finally:
        torch.set_default_dtype(before)
    assert asked == [{"dtype": torch.float32, "device": "cpu"}]


@needed
def test_attend_to_scores_far_apart():
    """Where softmax leaves nothing but one token, and where what comes later would be the largest by far."""
    q, k, v = (numbers(1, 2, 130, 16).detach().roll(n) for n in range(3))
    k = k * torch.linspace(1, 100, 130)[:, None]
    inputs = [x.requires_grad_() for x in (20 * q, k, v)]
    assert_agree(lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True), fused.attend, *inputs, close=2e-5)


@needed
@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu(dtype):
    gate, up = numbers(5, 37, dtype=dtype), numbers(37, 5, dtype=dtype).detach().T.contiguous().requires_grad_()
    with torch.no_grad():
        gate[0] *= 60  # where e^x leaves what float32 has
    assert_agree(lambda a, b: F.silu(a) * b, fused.swiglu, gate, up, close=CLOSE[dtype])


@needed
@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu(dtype):
    x = torch.cat([numbers(4, 37).detach(), torch.linspace(-200, 200, 37)[None], torch.linspace(-6, 6, 37)[None]])
    x = x.to(dtype).requires_grad_()
    assert_agree(lambda a: F.gelu(a, approximate="tanh"), fused.gelu, x, close=CLOSE[dtype])


@needed
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_less_target(dtype):
    logits, targets = 20 * numbers(9, 51).detach(), torch.arange(9) * 5
    targets[4] = IGNORE
    logits = logits.to(dtype)
    expected = logits.float().requires_grad_()
    losses = F.cross_entropy(expected, targets, ignore_index=IGNORE, reduction="none")
    losses.sum().backward()
    found = fused.softmax_less_target(logits, targets)
    torch.testing.assert_close(found, losses.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.float(), expected.grad, rtol=0, atol=CLOSE[dtype])


@needed
def test_a_number_that_is_none_stays_one():
    bad = torch.ones(3, 8)
    bad[1, 2] = torch.nan
    for dtype in DTYPES:
        assert torch.equal(fused.swiglu(bad.to(dtype), bad.to(dtype)).isnan(), bad.isnan())
        assert torch.equal(fused.gelu(bad.to(dtype)).isnan(), bad.isnan())
    assert fused.rms_norm(bad, torch.ones(8), 1e-6).isnan().sum(1).tolist() == [0, 8, 0]
    assert fused.softmax_less_target(bad.clone(), torch.zeros(3, dtype=torch.long)).isnan().tolist() == [0, 1, 0]
    assert fused.softmax_less_target(torch.full((1, 4), torch.inf), torch.zeros(1, dtype=torch.long)).isnan().all()
    beyond = torch.zeros(2, 4)
    assert fused.softmax_less_target(beyond, torch.tensor([60_000, 1])).isnan().tolist() == [True, False]
    assert beyond[0].tolist() == [0, 0, 0, 0]
    scores = numbers(2, 3, 8, 8).detach()
    scores[0, 0, 3, 3] = torch.nan
    assert fused.attend(scores, scores, scores).isnan().any()


SIZES = {"vocab_size": 61, "context_length": 16, "emb_dim": 24, "n_layers": 2}
FAMILIES = [
    ModernConfig(**SIZES, n_heads=4, n_kv_heads=2),
    ModernConfig(**SIZES, n_heads=3, tie_embeddings=False),
    GPTConfig(**SIZES, n_heads=3),
]


@needed
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("config", FAMILIES)
def test_whole_models(config, autocast):
    ids = torch.randint(61, (3, 16), generator=torch.Generator().manual_seed(1))
    targets = ids.roll(-1, 1)
    targets[:, -1] = IGNORE
    found = []
    for fast in (False, True):
        model = GPT(config, torch.Generator().manual_seed(0)).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), fused.fused(fast):
            assert fused.usable(ids.float()) == fast
            loss, _ = model(ids, targets)
            loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    close = 0.03 if autocast else 1e-5
    torch.testing.assert_close(found[1][0], found[0][0], rtol=close, atol=0)
    for name, expected in found[0][1].items():
        off = (found[1][1][name] - expected).norm() / expected.norm()
        assert off < close, name


@needed
def test_far_negative_numbers_pass_nothing_on():
    far = torch.tensor([[-1e4, -1e12, -1e13, -1e18]])
    for plain, fast in (
        (lambda x: F.gelu(x, approximate="tanh"), fused.gelu),
        (lambda x: F.silu(x) * 1.0, lambda x: fused.swiglu(x, torch.ones_like(x))),
    ):
        assert_agree(plain, fast, far.clone().requires_grad_(), close=1e-30)


@needed
def test_a_target_that_there_is_not_is_no_perfect_prediction():
    losses = fused.softmax_less_target(torch.zeros(4, 5), torch.tensor([0, -1, IGNORE, 5]))
    assert losses.isnan().tolist() == [False, True, False, True]
    narrow = fused.softmax_less_target(torch.zeros(3, 5), torch.tensor([4, 0, 2], dtype=torch.uint8))
    torch.testing.assert_close(narrow, torch.full((3,), 5.0).log())


@needed
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (FAMILIES[1], {"rms_norm": 5, "heads": 2, "attention": 2, "swiglu": 2, "softmax_less_target": 1}),
        (GPTConfig(**SIZES, n_heads=3, drop_rate=0.0), {"attention": 2, "gelu": 2, "softmax_less_target": 1}),
    ],
    ids=["modern", "gpt2"],
)
def test_usual_models_take_all_of_them(config, wanted, autocast, monkeypatch):
    """What C does not know is left to PyTorch; what a model usually is made of must not be, unnoticed."""
    taken, call = Counter(), fused._call
    monkeypatch.setattr(fused, "_call", lambda name, *arguments: taken.update([name]) or call(name, *arguments))
    ids = torch.zeros(2, 16, dtype=torch.long)
    with fused.fused(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, _ = GPT(config)(ids, ids)
    loss.backward()
    if autocast:
        wanted = {"causal_softmax" if name == "attention" else name: n for name, n in wanted.items()}
    backward = {f"{name}_backward": n for name, n in wanted.items() if name != "softmax_less_target"}
    assert taken == wanted | backward


@needed
def test_threads_do_not_change_the_bits():
    x, w, q = numbers(3, 50, 24), numbers(24), numbers(1, 5, 100, 24)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            normed, attended = fused.rms_norm(x, w, 1e-6), fused.attend(q, q, q)
            loss = normed.square().sum() + attended.square().sum()
            found.append((normed, attended, *torch.autograd.grad(loss, (x, w, q))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


def test_they_are_off_unless_asked_for_and_only_where_they_can_be():
    x = torch.ones(2)
    assert not fused.usable(x)
    with fused.fused():
        assert fused.usable(x) == (build.library() is not None)
        assert not fused.usable(x.double())
        assert not fused.usable(x.to("meta"))
        with fused.fused(False):
            assert not fused.usable(x)
    assert not fused.usable(x)


def with_gaps(model):
    model.blocks[0].norm1.weight = nn.Parameter(torch.arange(48.0)[::2])


def no_norm(model):
    model.blocks[0].attn.q_norm = model.blocks[0].attn.k_norm = nn.Identity()


def another_eps(model):
    model.blocks[0].attn.k_norm.eps = 1.0


def one_number(model):
    model.blocks[0].mlp.up = nn.Linear(24, 1)


@needed
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("change", [with_gaps, no_norm, another_eps, one_number, nn.Module.bfloat16])
def test_what_c_does_not_know_is_left_to_pytorch(change, autocast):
    """With the fast forms on, a model with other parts is what it is with them off."""
    model = GPT(FAMILIES[1], torch.Generator().manual_seed(1))
    change(model)
    ids = torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(2))
    losses = []
    for on in (False, True):
        with fused.fused(on), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, _ = model(ids, ids)
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.01 if autocast or change is nn.Module.bfloat16 else 1e-5)


@needed
def test_what_torch_takes_by_default_does_not_matter():
    model = GPT(FAMILIES[1], torch.Generator().manual_seed(1))
    ids = torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(2))
    with fused.fused():
        expected, _ = model(ids, ids)
        with torch.autocast("cpu", torch.float16):
            half, _ = model(ids, ids)
        torch.set_default_dtype(torch.bfloat16)
        try:
            found, _ = model(ids, ids)
        finally:
            torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(half, expected, rtol=1e-2, atol=0)


@needed
def test_a_norm_of_another_width_is_a_mistake_as_ever():
    with fused.fused(), pytest.raises(RuntimeError, match="shape"):
        RMSNorm(8, 1e-6)(torch.ones(4, 16))
    with pytest.raises(ValueError, match="expected 6 heads of 4 numbers"):
        fused.heads(
            torch.ones(1, 3, 23), torch.ones(4), torch.ones(4), torch.ones(3, 2), torch.ones(3, 2), 1e-6, (2, 2)
        )


@needed
def test_they_are_on_in_one_thread_alone():
    found = []
    with fused.fused():
        thread = threading.Thread(target=lambda: found.append(fused.usable(torch.ones(2))))
        thread.start()
        thread.join()
        assert fused.usable(torch.ones(2))
    assert found == [False]


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({"LIGHTWELL_KERNELS": "0"}, "LIGHTWELL_KERNELS=0"), ({"PATH": "/nonexistent"}, "there is no C compiler")],
)
def test_without_them_pytorch_does_it(environment, reason):
    code = (
        "import torch; from lightwell.model.kernels import build; from lightwell.model.loss import cross_entropy_sum;"
        " x = torch.zeros(2, 3, requires_grad=True);"
        " loss, n = cross_entropy_sum(x, torch.eye(4, 3), torch.tensor([0, 1])); loss.backward();"
        " print(x.grad.flatten().tolist(), build.library(), build.why_not())"
    )
    clean = {key: value for key, value in os.environ.items() if key != "LIGHTWELL_KERNELS"}
    done = subprocess.run([sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True)
    assert done.stdout.startswith("[-0.75, 0.25, 0.25, 0.25, -0.75, 0.25] None "), done.stderr
    if sys.platform.startswith("linux"):
        assert done.stdout.endswith(f"None {reason}\n")


@needed
@pytest.mark.timeout(60)  # compiles, and starts Python twice
def test_a_compiler_that_fails_and_a_cache_that_cannot_be_written(tmp_path):
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "cc").write_text('#!/bin/sh\n[ "$1" = --version ] && { echo cc; exit 0; }\necho no room >&2\nexit 1\n')
    (broken / "cc").chmod(0o755)
    code = "from lightwell.model.kernels import build; print(build.library(), build.why_not())"
    environment = os.environ | {"PATH": f"{broken}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "None the C compiler failed" in done.stdout
    assert "no room" in done.stdout
    environment = os.environ | {"XDG_CACHE_HOME": "/proc/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip().endswith("None"), done.stderr  # no reason against them: built for this process
    assert "CDLL" in done.stdout
