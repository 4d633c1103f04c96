"""Looking into a run's model: what it does with a text, where a gradient comes from, whether every gradient is right.

Composes the glass box with a run, for the commands `trace`, `explain`, `verify` and `diagnose`.

    T  tokens of the text (the separator first)    L  layers    H  heads    V  vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightwell.api import Run, load
from lightwell.errors import UserError
from lightwell.show.table import draw_table

EXAMPLE_TEXT = "The light falls into the well."


@dataclass(frozen=True)
class Inside:
    """What a model does with a text. Row t is about predicting token t + 1 from tokens 0 to t; tensors on the CPU.

    tokens: their text. ids (T,). embedding_norms (T,). attention (L, H, T, T): to whom each token looks.
    lens (L, T): the token that each layer would predict. lens_probability (L, T): how sure. losses (T - 1,) in nats.
    next_tokens: what follows the text, (token, probability), likeliest first. token_gradients (T,): norm of the
    gradient of the mean loss at each token's embedding. head_gradients (L, H): the same at each head's output.
    """

    tokens: list[str]
    ids: Tensor
    embedding_norms: Tensor
    attention: Tensor
    lens: list[list[str]]
    lens_probability: Tensor
    losses: Tensor
    next_tokens: list[tuple[str, float]]
    token_gradients: Tensor
    head_gradients: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists."""
        return {key: value.tolist() if isinstance(value, Tensor) else value for key, value in vars(self).items()}

    def draw(self) -> str:
        """Tables for a terminal."""
        names = [show_token(token) for token in self.tokens]
        layers = len(self.lens)
        rows = []
        for t, name in enumerate(names):
            loss = f"{self.losses[t - 1]:.2f}" if t else ""
            lens = [
                f"{show_token(self.lens[layer][t])} {self.lens_probability[layer, t]:.0%}" for layer in range(layers)
            ]
            rows.append([t, name, int(self.ids[t]), loss, f"{self.token_gradients[t]:.4f}", *lens])
        headers = ["", "token", "id", "loss", "gradient", *(f"layer {n + 1} predicts" for n in range(layers))]
        looks = []
        for layer, heads in enumerate(self.attention):
            for head, pattern in enumerate(heads):
                share, where = pattern[-1].max(dim=0)
                gradient = f"{self.head_gradients[layer, head]:.4f}"
                looks.append([layer + 1, head + 1, f"{names[int(where)]} ({share:.0%})", entropy(pattern), gradient])
        following = ", ".join(f"{show_token(token)} {share:.1%}" for token, share in self.next_tokens)
        return "\n\n".join(
            [
                "Each token: how surprising it was (nats), how much the mean loss would change with it, and what each\n"
                "layer would say comes next (logit lens)\n" + draw_table(rows, headers=headers),
                "Each head: where the last token looks most, how spread its looks are (nats), its gradient's norm\n"
                + draw_table(looks, headers=["layer", "head", "last token looks at", "entropy", "gradient"]),
                f"After the text: {following}",
            ]
        )


def entropy(pattern: Tensor) -> str:
    """Mean entropy of the rows of an attention pattern (T, T), in nats."""
    return f"{torch.special.entr(pattern).sum(-1).mean():.2f}"


def show_token(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·") or "∅"


class _AttentionWatch(TorchFunctionMode):
    """Keeps queries, keys and outputs of every attention product of a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.patterns: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is F.scaled_dot_product_attention:
            q, k = args[0].detach(), args[1].detach()  # (1, H, T, D), (1, G, T, D)
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
            scores = q @ k.mT / q.shape[-1] ** 0.5
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            self.patterns.append(scores.masked_fill(future, -torch.inf).softmax(-1)[0])
            result.retain_grad()
            self.outputs.append(result)
        return result


def look_inside(run: Run, text: str = EXAMPLE_TEXT, top: int = 5) -> Inside:
    """Run a text through a run's model, forward and backward, and gather what happened. The model stays as it was.

    Raises UserError for a text without two tokens or longer than the context.
    """
    model: Any = run.model
    tokenizer = run.tokenizer
    ids = [tokenizer.separator_id, *tokenizer.encode(text)]
    if not 2 <= len(ids) <= run.model_config.context_length:
        raise UserError(
            f"expected a text of 1 to {run.model_config.context_length - 1} tokens, got {len(ids) - 1}.",
            "Give a part of it.",
        )
    before = {name: parameter.grad for name, parameter in model.named_parameters()}
    x = torch.tensor([ids], device=run.device.torch_device)
    embedded: list[Tensor] = []
    streams: list[Tensor] = []
    watch = _AttentionWatch()
    with ExitStack() as stack, torch.enable_grad():
        stack.callback(_restore, model, before)
        stack.callback(model.tok_emb.register_forward_hook(_keep(embedded)).remove)
        for block in model.blocks:
            stack.callback(block.register_forward_hook(_keep(streams)).remove)
        with watch:
            logits = model(x)[0]  # (T, V)
        losses = F.cross_entropy(logits[:-1], x[0, 1:], reduction="none")
        losses.mean().backward()
    with torch.no_grad():
        lens = torch.stack([model.head(model.final_norm(stream))[0].softmax(-1) for stream in streams])  # (L, T, V)
        sure, likeliest = lens.max(dim=-1)
        share, following = logits[-1].softmax(-1).topk(min(top, logits.shape[-1]))
    return Inside(
        tokens=[_text(tokenizer, i) for i in ids],
        ids=x[0].cpu(),
        embedding_norms=embedded[0].detach()[0].norm(dim=-1).cpu(),
        attention=torch.stack(watch.patterns).cpu(),
        lens=[[_text(tokenizer, i) for i in layer] for layer in likeliest.tolist()],
        lens_probability=sure.cpu(),
        losses=losses.detach().cpu(),
        next_tokens=[(_text(tokenizer, i), p) for i, p in zip(following.tolist(), share.tolist())],
        token_gradients=_gradient(embedded[0])[0].norm(dim=-1).cpu(),
        head_gradients=torch.stack([_gradient(y)[0].flatten(1).norm(dim=-1) for y in watch.outputs]).cpu(),
    )


def _text(tokenizer: Any, i: int) -> str:
    return "∎" if i == tokenizer.separator_id else tokenizer.token_bytes(i).decode("utf-8", errors="replace")


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def _keep(kept: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    return hook


def _restore(model: nn.Module, gradients: dict[str, Tensor | None]) -> None:
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name]


def trace_step(run: Run, text: str, level: str = "dissect", open_attention: bool = False) -> Any:
    """A trace of one forward and backward pass of a run's model on a text."""
    from lightwell.glass.capture import trace

    ids = [run.tokenizer.separator_id, *run.tokenizer.encode(text)][: run.model_config.context_length + 1]
    if len(ids) < 2:
        raise UserError("expected a text of at least one token, got an empty one.")
    tensor = torch.tensor([ids], device=run.device.torch_device)
    before = {name: parameter.grad for name, parameter in run.model.named_parameters()}
    try:
        for parameter in run.model.parameters():
            parameter.grad = None
        with trace(level, open_attention=open_attention) as t:  # type: ignore[arg-type]
            loss, n = run.model(tensor[:, :-1], tensor[:, 1:])
            (loss / n).backward()
    finally:
        _restore(run.model, before)
    return t


def explain_parameter(path: str | Path, name: str, index: tuple[int, ...] | None, text: str, **options: Any) -> Any:
    """Where the gradient of a run's parameter, or of one element of it, comes from on a text."""
    run = load(path, device="cpu")
    parameters = dict(run.model.named_parameters())
    if name not in parameters:
        import difflib

        near = difflib.get_close_matches(name, parameters, n=1)
        raise UserError(f"expected a parameter's name, got {name!r}.", f"Did you mean {near[0]}?" if near else "")
    t = trace_step(run, text)
    return t.explain(parameters[name], index=index, **options)


def diagnose_run(path: str | Path) -> Any:
    """Is a run's training healthy? From the measurements that were stored while it trained."""
    from lightwell.glass.diagnose import Readings, diagnose
    from lightwell.store.database import RunDatabase
    from lightwell.store.run_folder import DATABASE, open_run

    folder = open_run(Path(path), need_checkpoint=False)
    if not (folder.path / DATABASE).exists():
        raise UserError(f"expected measurements of training in {path}, found none.", "An imported model has no past.")
    vocab_size = folder.config.get("model", {}).get("vocab_size")
    with RunDatabase(folder.path / DATABASE, read_only=True) as database:
        return diagnose(Readings.of_run(database, vocab_size))


def verify_run(path: str | Path, text: str = EXAMPLE_TEXT, **options: Any) -> Any:
    """Every gradient of a run's model on a text, three ways."""
    return trace_step(load(path, device="cpu"), text).verify(**options)
