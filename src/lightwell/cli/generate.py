"""`lightwell generate`: let a run write."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import typer

from lightwell.cli.common import JSON, in_utf8, make_app, not_utf8, piped, say, show_json
from lightwell.errors import UserError

AT_ONCE = 32  # prompts
RULE = "-" * 72

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
    prompts: Path = typer.Option(None, help="A file with a prompt on each line; all are written on at once."),
    quantize: str = typer.Option(None, help="int8 or bf16 weights: less memory, faster for large models; CPU only."),
    json: bool = JSON,
) -> None:
    """Stream text from a run."""
    from lightwell.trained import load

    if prompts is not None and prompt is not None:
        raise UserError(f"expected a prompt or --prompts, got both: {prompt!r} and {prompts}.", "Leave one out.")
    together = None if prompts is None else lines_of(prompts)
    opened = load(run, device=device)
    words = None
    if together is None and (prompt is not None or json or not sys.stdin.isatty()):
        words = in_utf8(prompt if prompt is not None else "" if sys.stdin.isatty() else piped().rstrip("\n"))
    if quantize is not None:
        opened.quantize(quantize)
    opened.only_write()
    write = partial(
        opened.write, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, stop=stop, truncate_prompt=truncate_prompt,
    )  # fmt: skip

    def write_all(prompts: list[str]) -> None:
        began, n_tokens, texts = time.perf_counter(), 0, []
        for begin in range(0, len(prompts), AT_ONCE):
            some = prompts[begin : begin + AT_ONCE]
            generation = write(some, seed=seed + begin)
            texts += generation.finish()
            n_tokens += sum(map(len, generation.ids))
            if not json:
                print("".join(f"{words}{text}\n{RULE}\n" for words, text in zip(some, generation.texts)), end="")
        if json:
            rate = round(n_tokens / (time.perf_counter() - began), 2)
            show_json({"texts": texts, "tokens": n_tokens, "tokens_per_second": rate})

    def write_one(words: str) -> None:
        began, n_tokens, text = time.perf_counter(), 0, ""
        pieces = write([words], seed=seed)
        if not json:
            print(words, end="", flush=True)
        for (piece,) in pieces:
            n_tokens, text = n_tokens + 1, text + piece
            if not json:
                print(piece, end="", flush=True)
        seconds = time.perf_counter() - began
        if json:
            show_json({"text": text, "tokens": n_tokens, "tokens_per_second": round(n_tokens / seconds, 2)})
        else:
            print()

    if together is not None:
        write_all(together)
        return
    if words is not None:
        write_one(words)
        return
    say("Type a prompt and press Enter; Ctrl-D ends.")
    while True:
        try:
            write_one(in_utf8(input("> ")))
        except EOFError:
            print()  # the shell's own prompt gets a line of its own
            return
        except UserError as error:  # the next prompt may do
            say(str(error))


def lines_of(path: Path) -> list[str]:
    """The lines of a file that are not empty. Raises UserError if there is none, or it cannot be read."""
    from lightwell.data.sources import unreadable

    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError:
        raise not_utf8() from None
    if not lines:
        raise UserError(f"expected a prompt in each line of {path}, got none.", "Write one, or give it as PROMPT.")
    return lines
