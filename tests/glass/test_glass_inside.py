"""Looking into a run: what the commands trace, explain, verify and diagnose say is what the model does."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import lightwell
from lightwell import inside
from lightwell.cli.main import run as command
from lightwell.errors import UserError
from lightwell.inside import check_step, explain_parameter, look_inside, trace_step, verify_run
from lightwell.model.build import GPT
from lightwell.show.terminal import plain

TEXT = "a lamp in a well"
SMALL = ["model.emb_dim=16", "model.n_layers=2", "model.n_heads=2", "model.context_length=32", "train.batch_size=2"]


@pytest.fixture(scope="module", params=["gpt2", "modern"])
def path(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inside")
    (folder / "text.txt").write_text("The light falls into the well and the well gives it back. " * 99)
    (folder / "val.txt").write_text("Deep down there is a room, and in the room there is a lamp. " * 20)
    settings = [*SMALL, f"model.family={request.param}", "tokenizer.kind=bytes"]
    lightwell.pretrain(
        folder / "text.txt", val=folder / "val.txt", out=folder / "run", steps=3, device="cpu", settings=settings
    )
    return folder / "run"


@pytest.fixture
def run(path):
    return lightwell.load(path, device="cpu")


@pytest.fixture
def ids(run):
    return torch.tensor([[run.tokenizer.separator_id, *run.tokenizer.encode(TEXT)]])


def test_tokens_losses_and_probabilities_are_the_models(run, ids):
    found = look_inside(run, TEXT)
    logits = run.model(ids)[0].detach()
    assert found.ids.tolist() == ids[0].tolist()
    assert found.tokens == ["∎", *TEXT]
    assert torch.allclose(found.losses, F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none"))
    assert torch.allclose(found.lens_probability[-1], logits.softmax(-1).amax(-1))
    assert found.next_tokens[0][1] == pytest.approx(float(logits[-1].softmax(-1).max()), rel=1e-5)
    assert torch.allclose(found.embedding_norms, run.model.tok_emb(ids)[0].norm(dim=-1))


def test_the_lens_after_a_layer_is_a_model_without_the_layers_above(run, ids):
    found = look_inside(run, TEXT)
    run.model.blocks = run.model.blocks[:1]
    assert torch.allclose(found.lens_probability[0], run.model(ids)[0].softmax(-1).amax(-1), rtol=1e-4)


def test_rows_of_a_model_that_its_tokenizer_has_no_token_for_are_not_shown(run):
    padded = run.model_config.model_copy(update={"vocab_size": run.model_config.vocab_size + 7})
    run.model = GPT(padded).eval()
    with torch.no_grad():
        run.model.head.weight[-7:] = 100 * run.model.head.weight[-8]
    assert len(look_inside(run, TEXT).next_tokens) == 5


def test_tokens_that_look_alike_have_bars_of_their_own(run):
    found = replace(look_inside(run, TEXT), next_tokens=[("\ufffd", 0.8), ("\ufffd", 0.1), ("a", 0.05)])
    lines = found._following(False, 60).splitlines()
    assert [line.split()[-1] for line in lines] == ["80.0%", "10.0%", "5.0%"]


class Watching(TorchFunctionMode):
    """Attention written out, its patterns kept, its outputs changed by `bend(layer, y)`."""

    def __init__(self, bend=lambda layer, y: y):
        super().__init__()
        self.patterns, self.bend = [], bend

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        q, k, v = args[:3]
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        pattern = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
        self.patterns.append(pattern[0])
        return self.bend(len(self.patterns) - 1, pattern @ v)


def test_attention_is_that_of_the_written_out_softmax(run, ids):
    found = look_inside(run, TEXT)
    with Watching() as watching, torch.no_grad():
        run.model(ids)
    assert found.attention.shape == (2, 2, ids.shape[1], ids.shape[1])
    assert torch.allclose(found.attention, torch.stack(watching.patterns), atol=1e-6)
    assert torch.allclose(found.attention.sum(-1), torch.ones(2, 2, ids.shape[1]))


def test_gradients_of_tokens_and_heads_are_those_of_differences(run, ids):
    """The norm of a gradient is the steepest slope: measured along it, on the model in float64."""
    found = look_inside(run, TEXT)
    model = run.model.double()

    def loss(bend=lambda layer, y: y, push=None):
        handle = model.tok_emb.register_forward_hook(lambda module, x, y: y if push is None else y + push)
        with Watching(bend), handle:
            return F.cross_entropy(model(ids)[0, :-1], ids[0, 1:])

    push = torch.zeros(1, ids.shape[1], 16, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(push=push), push)
    with torch.no_grad():
        for t in (0, 3):
            way = torch.zeros_like(push)
            way[0, t] = slope[0, t] / slope[0, t].norm()
            measured = (loss(push=1e-5 * way) - loss(push=-1e-5 * way)) / 2e-5
            assert float(found.token_gradients[t]) == pytest.approx(float(measured), rel=1e-3)
    zero = torch.zeros(1, 2, ids.shape[1], 8, dtype=torch.float64, requires_grad=True)
    for layer in range(2):
        (slope,) = torch.autograd.grad(loss(lambda n, y, layer=layer: y + zero if n == layer else y), zero)
        with torch.no_grad():
            way = torch.zeros_like(zero)
            way[0, 1] = slope[0, 1] / slope[0, 1].norm()
            ends = [loss(lambda n, y, s=s, layer=layer: y + s * way if n == layer else y) for s in (1e-5, -1e-5)]  # noqa: B023
        assert float(found.head_gradients[layer, 1]) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-3)


def test_of_the_example_text_as_much_is_read_as_the_context_holds(tmp_path):
    (tmp_path / "text.txt").write_text("The light falls into the well and the well gives it back. " * 4000)
    small = [*SMALL, "model.context_length=16", "tokenizer.kind=bytes"]
    run = lightwell.pretrain(tmp_path / "text.txt", out=tmp_path / "run", steps=1, device="cpu", settings=small)
    assert len(look_inside(run).ids) == 16
    with pytest.raises(lightwell.UserError, match="expected a text of 1 to 15 tokens, got 17"):
        look_inside(run, "a" * 17)
    with pytest.raises(lightwell.UserError, match="expected a text of 1 to 15 tokens, got 0"):
        look_inside(run, "")


def test_the_model_stays_as_it_was(run):
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    kept = next(run.model.parameters())
    kept.grad = torch.ones_like(kept)
    look_inside(run, TEXT)
    trace_step(run, TEXT)
    check_step(run, TEXT)
    assert torch.equal(kept.grad, torch.ones_like(kept))
    assert [p.grad is None for p in run.model.parameters()].count(False) == 1
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    for module in run.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def test_texts_that_do_not_fit(run):
    for text in ("", "x" * 99):
        with pytest.raises(UserError, match="1 to 31 tokens"):
            look_inside(run, text)
    for text in ("", "x" * 99):
        with pytest.raises(UserError, match="1 to 32 tokens"):
            trace_step(run, text)


def test_where_there_is_but_one_key_nothing_is_wrong_with_a_gradient_of_nothing(run):
    """Softmax is 1 whatever queries and keys are; a float32 kernel leaves some rounding of what cancels."""
    t = trace_step(run, "x")
    assert not [row for row in t.verify().rows if row.verdict == "disagree"]
    assert not check_step(run, "x").precision.hurt("float32")


def test_a_parameter_that_is_not_there(path):
    with pytest.raises(UserError, match="a parameter's name") as caught:
        explain_parameter(path, "blocks.0.mlp.upp.weight", None, TEXT)
    assert caught.value.hint == "Did you mean blocks.0.mlp.up.weight?"


def test_every_gradient_of_the_run_agrees(path):
    assert verify_run(path, TEXT).agree


@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize("width", [60, 100])
def test_what_is_drawn_fits_and_says_everything(run, color, width):
    found = look_inside(run, TEXT)
    drawn = found.draw(color, width, [(1, 2), (2, 1)])
    assert ("\x1b[" in drawn) == color
    lines = plain(drawn).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for word in ("Layer 1, head 2", "Layer 2, head 1", "layer 2", f"mean loss {found.losses.mean():.4f}", "∎"):
        assert word in text
    assert len(re.findall(r"^\s*\d+\s+\S+\s+\d+ ", text, re.MULTILINE)) == len(found.tokens)


def test_a_head_that_is_not_there(run):
    with pytest.raises(UserError, match=r"1\.1 to 2\.2, got 3\.1"):
        look_inside(run, TEXT).draw(heads=[(3, 1)])


def test_a_step_that_is_not_finite_says_where(run):
    with torch.no_grad():
        run.model.blocks[1].mlp.up.weight[0] = 3e38
        (run.model.blocks[1].norm2.weight).fill_(1e3)
    found = look_inside(run, TEXT)
    assert not found.finite
    assert "None" not in found.draw()
    json.dumps(found.to_dict(), allow_nan=False)
    checked = check_step(run, TEXT)
    assert checked.origins.first.module == "blocks.1.mlp.up"
    assert checked.precision is None
    assert "blocks.1.mlp.up" in checked.draw()
    json.dumps(checked.to_dict(), allow_nan=False)


# ---- the commands ----


def said(capsys, *arguments):
    code = command(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return code, out, err


def test_trace(capsys, path, tmp_path):
    code, out, err = said(capsys, "trace", path, "--text", TEXT, "--head", "2.1")
    assert code == 0
    assert "Layer 2, head 1" in out
    assert "\x1b[" not in out  # no terminal
    code, out, err = said(capsys, "trace", path, "--text", TEXT, "--json", "--save", tmp_path / "x.json")
    data = json.loads(out)
    assert data["tokens"] == ["∎", *TEXT]
    assert len(data["attention"]) == len(data["head_gradients"]) == len(data["lens"]) == 2
    saved = json.loads((tmp_path / "x.json").read_text())
    assert saved["verification"]["agree"]
    assert str(tmp_path / "x.json") in err


def test_trace_saves_a_page_with_verdicts(capsys, path, tmp_path):
    assert said(capsys, "trace", path, "--text", TEXT, "--save", tmp_path / "x.html")[0] == 0
    page = (tmp_path / "x.html").read_text()
    assert '"agree"' in page
    assert TEXT in re.search("<title>(.*?)</title>", page)[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trace", "--save", "x.pt"), ".json, .html or .dot"),
        (("trace", "--head", "three"), "layer.head"),
        (("trace", "--head", "9.9"), "1.1 to 2.2"),
        (("trace", "--text", ""), "1 to 31 tokens"),
        (("explain", "blocks.0.mlp.up.weight", "--index", "1,x"), "whole numbers"),
        (("explain", "blocks.0.mlp.up.weight", "--index", "99,0"), "index"),
        (("explain", "nothing"), "a parameter's name"),
    ],
)
def test_mistakes_are_one_sentence(capsys, path, arguments, words):
    name, *rest = arguments
    code, out, err = said(capsys, name, path, *rest)
    assert code == 2
    assert out == ""
    assert words in err
    assert err.startswith("lightwell: ")
    assert "Traceback" not in err


def test_explain(capsys, path):
    code, out, _ = said(capsys, "explain", path, "blocks.0.mlp.up.weight", "--index", "1,2", "--text", TEXT)
    assert code == 0
    assert out.startswith("dL/dblocks.0.mlp.up.weight[1, 2] = ")
    code, out, _ = said(capsys, "explain", path, "tok_emb.weight", "--json")
    assert code == 0
    assert isinstance(json.loads(out), dict)


def test_verify_says_no_with_exit_code_4(capsys, path, monkeypatch):
    code, out, _ = said(capsys, "verify", path, "--text", TEXT)
    assert code == 0
    assert " 0 disagree" in out

    class Bent(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 1.01

    original = inside.load

    def bent(*arguments, **options):
        run = original(*arguments, **options)
        run.model.blocks[0].register_forward_hook(lambda module, x, y: Bent.apply(y))
        return run

    monkeypatch.setattr(inside, "load", bent)
    code, out, err = said(capsys, "verify", path, "--text", TEXT)
    assert code == 4
    assert "DISAGREE: Bent" in out
    assert "Bent" in err


def test_diagnose(capsys, path):
    code, out, _ = said(capsys, "diagnose", path)
    assert code == 0
    assert "steps" in out
    code, out, _ = said(capsys, "diagnose", path, "--text", TEXT)
    assert code == 0
    assert "every number that the trace kept is finite" in out
    assert "bfloat16" in out
    data = json.loads(said(capsys, "diagnose", path, "--text", TEXT, "--json")[1])
    assert data["step"]["origins"]["births"] == []
    assert len(data["step"]["precision"]["layers"]) == len(list(lightwell.load(path).model.parameters()))


def test_examples_need_no_run(capsys):
    for name in ("neuron", "mlp", "attention", "block"):
        code, out, _ = said(capsys, "explain", "--example", name)
        assert code == 0
        assert "agree" in out
    code, _, err = said(capsys, "explain", "--example", "nothing")
    assert code == 2
    assert "neuron" in err
