"""Looking into a run's model: what it does with a text, where a gradient comes from, whether every gradient is right.

Composes the glass box with a run, for the commands `trace`, `explain`, `verify` and `diagnose`.

    T  tokens of the text (the separator first)    L  layers    H  heads    V  vocabulary
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightwell.errors import UserError
from lightwell.runtime.observer import Progress
from lightwell.show.bars import draw_bars
from lightwell.show.heat import draw_heat
from lightwell.show.table import draw_table
from lightwell.show.terminal import paint, visible_width
from lightwell.show.units import json_ready, percent
from lightwell.trained import Run, load

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
        """Everything as plain lists; a number that is not finite is None."""
        return json_ready({key: v.tolist() if isinstance(v, Tensor) else v for key, v in vars(self).items()})

    @property
    def finite(self) -> bool:
        """Whether the losses and gradients are numbers. If not, `check_step` says where the first one was born."""
        return all(bool(x.isfinite().all()) for x in (self.losses, self.token_gradients, self.head_gradients))

    def require_heads(self, heads: Sequence[tuple[int, int]]) -> None:
        """Raise UserError for a (layer, head), counted from 1, that is not there."""
        L, H = self.head_gradients.shape
        for layer, head in heads:
            if not (1 <= layer <= L and 1 <= head <= H):
                raise UserError(f"expected a head from 1.1 to {L}.{H}, got {layer}.{head}.", "Choose one of those.")

    def draw(self, color: bool = False, width: int = 100, heads: Sequence[tuple[int, int]] = ()) -> str:
        """Tables and maps for a terminal. heads: (layer, head), counted from 1, whose attention is drawn; left out, the
        one that the loss listens to most. Raises UserError for a head that is not there.
        """
        self.require_heads(heads)
        H = self.head_gradients.shape[1]
        loudest = divmod(int(self.head_gradients.nan_to_num(0).argmax()), H)
        chosen = [(layer - 1, head - 1) for layer, head in heads] or [loudest]
        parts = [
            ("The text, token by token", self._tokens(color, width), _TOKENS),
            ("What each layer would say comes next (logit lens)", self._lens(color, width), _LENS),
            ("The heads", self._heads(color, width), _HEADS),
            *((f"Layer {n + 1}, head {h + 1}", self._pattern(n, h, color, width), _PATTERN) for n, h in chosen),
            ("After the text", self._following(color, width), ""),
        ]
        drawn = []
        for title, body, explained in parts:
            words = [paint(line, "dim", color) for line in textwrap.wrap(explained, min(width, 100))]
            drawn.append("\n".join([paint(title, "bold", color), *words, "", body] if words else [title, "", body]))
        return "\n\n".join(drawn)

    def _tokens(self, color: bool, width: int) -> str:
        rows = []
        for t, name in enumerate(map(show_token, self.tokens)):
            loss = float(self.losses[t - 1]) if t else math.nan
            said = [f"{loss:.2f}", percent(math.exp(-loss), 1)] if t else ["", ""]
            norms = [f"{float(self.embedding_norms[t]):.2f}", f"{float(self.token_gradients[t]):.4f}"]
            rows.append([str(t), name, str(int(self.ids[t])), *said, *norms])
        headers = ["", "token", "id", "loss", "was given", "embedding", "gradient"]
        table = draw_table(rows, headers, "rlrrrrr", color, width)
        return f"{table}\n\nmean loss {float(self.losses.mean()):.4f} nats per token"

    def _lens(self, color: bool, width: int) -> str:
        names = [show_token(token) for token in self.tokens]
        room = (width - max(map(visible_width, names)) - 2) // 16
        layers = _spread(len(self.lens), max(1, room))
        rows = [
            [name, *(f"{show_token(self.lens[n][t])} {self.lens_probability[n, t]:.0%}" for n in layers)]
            for t, name in enumerate(names)
        ]
        return draw_table(rows, ["after", *(f"layer {n + 1}" for n in layers)], color=color, width=width)

    def _heads(self, color: bool, width: int) -> str:
        L, H = self.head_gradients.shape
        sizes = self.head_gradients.tolist()
        rows, columns = [f"layer {n + 1}" for n in range(L)], [f"head {h + 1}" for h in range(H)]
        fits = width >= H * 8 + 10
        drawn = draw_heat(sizes, rows, columns if fits else [], color, numbers=fits, width=width, max_rows=64)
        loud = self.head_gradients.nan_to_num(0).flatten().argsort(descending=True, stable=True)[:LOUDEST].tolist()
        names = [show_token(token) for token in self.tokens]
        listed = []
        for layer, head in (divmod(place, H) for place in loud):
            pattern = self.attention[layer, head]
            share, where = pattern[-1].max(dim=0)
            looks = f"{names[int(where)]} ({share:.0%})"
            listed.append([f"{layer + 1}.{head + 1}", f"{sizes[layer][head]:.4f}", entropy(pattern), looks])
        headers = ["head", "gradient", "entropy", f"the last token, {names[-1]}, looks most at"]
        return f"{drawn}\n\n{draw_table(listed, headers, 'lrrl', color, width)}"

    def _pattern(self, layer: int, head: int, color: bool, width: int) -> str:
        names = [show_token(token) for token in self.tokens]
        return draw_heat(self.attention[layer, head].tolist(), names, names, color, width=width, max_rows=64)

    def _following(self, color: bool, width: int) -> str:
        shares: dict[str, float] = {}
        for token, share in self.next_tokens:
            name = show_token(token)
            alike = sum(other.split(" #")[0] == name for other in shares)  # parts of characters have no names
            shares[f"{name} #{alike + 1}" if alike else name] = share
        return draw_bars(shares, min(width, 72), color, lambda share: percent(share, 1))


LOUDEST = 8  # heads listed
_TOKENS = (
    "loss: how surprised the model was by the token, in nats; was given: the probability it had given it; embedding: "
    "length of the token's vector; gradient: how much the mean loss changes with that vector."
)
_LENS = "The stream after each layer, read as if it were the last: the likeliest next token and its probability."
_HEADS = (
    "The size of the loss's gradient at each head's output: how much the loss listens to it. entropy: how spread its "
    "looks are, in nats; 0 looks at one token only."
)
_PATTERN = "Each row is a token, and its shares go to the tokens that it looks at: itself and those before it."


def _spread(n: int, most: int) -> list[int]:
    """At most `most` of n places, evenly spread, the last one among them."""
    return sorted({n - 1 - k * n // most for k in range(min(n, most))}) if n > most else list(range(n))


def entropy(pattern: Tensor) -> str:
    """Mean entropy of the rows of an attention pattern (T, T), in nats."""
    return f"{torch.special.entr(pattern).sum(-1).mean():.2f}"


def show_token(text: str) -> str:
    """A token with its blanks made visible."""
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

    Raises UserError for an empty text, and for one longer than the context.
    """
    model: Any = run.model
    tokenizer = run.tokenizer
    ids = _ids(run, text, run.model_config.context_length)
    x = torch.tensor([ids], device=run.device.torch_device)
    embedded: list[Tensor] = []
    streams: list[Tensor] = []
    watch = _AttentionWatch()
    with ExitStack() as stack, gradients_set_aside(model), torch.enable_grad():
        stack.callback(model.tok_emb.register_forward_hook(_keep(embedded)).remove)
        for block in model.blocks:
            stack.callback(block.register_forward_hook(_keep(streams)).remove)
        with watch:
            logits = model(x)[0]  # (T, V)
        losses = F.cross_entropy(logits[:-1], x[0, 1:], reduction="none")
        losses.mean().backward()
    with torch.no_grad():
        V = tokenizer.vocab_size  # a model may have rows for more
        scores = torch.stack([model.head(model.final_norm(stream))[0] for stream in streams])
        lens = scores.softmax(-1)[..., :V]  # (L, T, V)
        sure, likeliest = lens.max(dim=-1)
        share, following = logits[-1].softmax(-1)[:V].topk(min(top, V))
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


@contextmanager
def gradients_set_aside(model: nn.Module) -> Iterator[None]:
    """In the `with` block no parameter has a gradient (backward adds to what is there); then each has its own again."""
    before = {parameter: parameter.grad for parameter in model.parameters()}
    try:
        for parameter in before:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in before.items():
            parameter.grad = gradient


def _ids(run: Run, text: str, most: int) -> list[int]:
    """The separator and the text, `most` tokens; of EXAMPLE_TEXT as much of it as that allows. Raises UserError for an
    empty text and for one that is too long."""
    ids = [run.tokenizer.separator_id, *run.tokenizer.encode(text)]
    if len(ids) < 2 or (len(ids) > most and text != EXAMPLE_TEXT):
        raise UserError(
            f"expected a text of 1 to {most - 1} tokens, got {len(ids) - 1}.",
            "Give a part of it." if len(ids) > 1 else 'For instance --text "Once upon a time".',
        )
    return ids[:most]


def trace_step(run: Run, text: str) -> Any:
    """A trace of one forward and backward pass of a run's model on a text."""
    from lightwell.glass.capture import trace

    tensor = torch.tensor([_ids(run, text, run.model_config.context_length + 1)], device=run.device.torch_device)
    with gradients_set_aside(run.model), trace() as t:
        loss, n = run.model(tensor[:, :-1], tensor[:, 1:])
        (loss / n).backward()
    return t


def save_step(run: Run, text: str, path: str | Path, *, seconds: float = 60, progress: Progress | None = None) -> Any:
    """A step of a run's model on a text as a file (.html, .json or .dot), its gradients checked for so many seconds."""
    from lightwell.glass.export import path_of

    path = path_of(path)
    t = trace_step(run, text)
    checked = t.verify(seconds=seconds, progress=progress) if seconds and path.suffix != ".dot" else None
    return t.save(path, verification=checked, title=f"{run.path.name}: {text}")


def explain_parameter(path: str | Path, name: str, index: tuple[int, ...] | None, text: str, **options: Any) -> Any:
    """Where the gradient of a run's parameter, or of one element of it, comes from on a text."""
    run = load(path, device="cpu")
    parameters = dict(run.model.named_parameters())
    if name not in parameters:
        import difflib

        near = difflib.get_close_matches(name, parameters, n=1)
        some = ", ".join(list(parameters)[:4])
        raise UserError(
            f"expected a parameter's name, got {name!r}.",
            f"Did you mean {near[0]}?" if near else f"There are {len(parameters)}: {some} and so on.",
        )
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


@dataclass(frozen=True)
class StepCheck:
    """One step on a text: whether a NaN or an infinity is born in it, and what lower precision costs it."""

    origins: Any  # glass.origin.Origins
    precision: Any  # glass.precision.Precision; None if the step is not finite

    def to_dict(self) -> dict[str, Any]:
        precision = None if self.precision is None else self.precision.to_dict()
        return {"origins": self.origins.to_dict(), "precision": precision}

    def draw(self, color: bool = False, width: int | None = None) -> str:
        """Words and a table."""
        parts = [str(self.origins)]
        if self.precision is not None:
            parts.append(self.precision.draw(color, width))
        return "\n\n".join(parts)


def check_step(run: Run, text: str = EXAMPLE_TEXT) -> StepCheck:
    """Run a step of a run's model on a text: where a NaN is born, and the same step in three precisions."""
    from lightwell.glass.precision import precision_audit

    found = trace_step(run, text).origins()
    ids = torch.tensor([_ids(run, text, run.model_config.context_length + 1)])
    audit = None if found.births else precision_audit(run.model, _mean_loss, ids[:, :-1], ids[:, 1:])
    return StepCheck(found, audit)


def _mean_loss(model: Any, ids: Tensor, targets: Tensor) -> Tensor:
    loss, n = model(ids, targets)
    return loss / n


def verify_run(path: str | Path, text: str = EXAMPLE_TEXT, **options: Any) -> Any:
    """Every gradient of a run's model on a text, three ways."""
    return trace_step(load(path, device="cpu"), text).verify(**options)
