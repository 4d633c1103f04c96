"""`lightwell generate`: let a run write."""

from __future__ import annotations

import sys
import time

import typer

from lightwell.cli.common import JSON, in_utf8, make_app, piped, say, show_json
from lightwell.errors import UserError

app = make_app()


@app.command(epilog='\b\nFor instance:\n  lightwell generate runs/notes-1 "Once upon a time" --max-new-tokens 100')
def generate(
    run: str = typer.Argument(help="The run's folder."),
    prompt: str = typer.Argument(None, help="What to go on from; none, on a terminal: prompt after prompt."),
    max_new_tokens: int = typer.Option(
        200, min=1, help="Tokens to write. Past the context the last half of it is kept."
    ),
    temperature: float = typer.Option(0.9, min=0.0, help="0: always the likeliest token; 1: as the model believes."),
    top_k: int = typer.Option(None, min=1, help="Only among so many likeliest tokens."),
    top_p: float = typer.Option(None, help="Only among the likeliest that together have this probability."),
    min_p: float = typer.Option(None, help="Only those with this share of the likeliest one's probability."),
    repetition_penalty: float = typer.Option(1.0, help="Above 1: tokens already written become less likely."),
    stop: list[str] = typer.Option([], help="Stop before this text; may be repeated."),
    seed: int = typer.Option(0, help="Same seed, same text."),
    truncate_prompt: bool = typer.Option(
        False, "--truncate-prompt", help="Go on from the end of a prompt that is longer than the context."
    ),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1, mps."),
    quantize: str = typer.Option(None, help="int8 or bf16 weights: less memory, mostly faster; CPU only."),
    json: bool = JSON,
) -> None:
    """Stream text from a run."""
    from lightwell.trained import load

    opened = load(run, device=device)
    words = None
    if prompt is not None or json or not sys.stdin.isatty():
        words = in_utf8(prompt if prompt is not None else "" if sys.stdin.isatty() else piped().rstrip("\n"))
    if quantize:
        opened.quantize(quantize)
    opened.only_write()

    def write(words: str) -> None:
        began, n_tokens, text = time.perf_counter(), 0, ""
        pieces = opened.stream(
            words, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, stop=stop, seed=seed, truncate_prompt=truncate_prompt,
        )  # fmt: skip
        if not json:
            print(words, end="", flush=True)
        for piece in pieces:
            n_tokens, text = n_tokens + 1, text + piece
            if not json:
                print(piece, end="", flush=True)
        seconds = time.perf_counter() - began
        if json:
            show_json({"text": text, "tokens": n_tokens, "tokens_per_second": round(n_tokens / seconds, 2)})
        else:
            print()

    if words is not None:
        write(words)
        return
    say("Type a prompt and press Enter; Ctrl-D ends.")
    while True:
        try:
            write(in_utf8(input("> ")))
        except EOFError:
            print()  # the shell's own prompt gets a line of its own
            return
        except UserError as error:  # the next prompt may do
            say(str(error))
