"""`lightwell tokenize`: text as tokens."""

from __future__ import annotations

import sys

import typer

from lightwell.cli.common import JSON, in_utf8, make_app, piped, show_json

app = make_app()
_BACKGROUNDS = (24, 53, 22, 58, 17, 52)  # of the terminal's 256 colours: dark ones, so that words stay readable


@app.command(epilog='\b\nFor instance:\n  lightwell tokenize runs/notes-1 "Hello, world"')
def tokenize(
    source: str = typer.Argument(metavar="RUN|DATASET", help="Whose tokenizer: a run, a dataset or a tokenizer.json."),
    text: str = typer.Argument(None, help="The text; none: standard input."),
    json: bool = JSON,
) -> None:
    """Text as coloured tokens, with their ids."""
    from lightwell.show.terminal import one_line, wants_color
    from lightwell.tokenizer.load import load_tokenizer

    tokenizer = load_tokenizer(source)
    text = in_utf8(piped() if text is None else text)
    ids = tokenizer.encode(text)
    if json:
        show_json({"ids": ids, "tokens": [tokenizer.token_bytes(i).decode("utf-8", errors="replace") for i in ids]})
        return
    color = wants_color(sys.stdout)
    for place, i in enumerate(ids):
        piece = tokenizer.token_bytes(i).decode("utf-8", errors="backslashreplace")
        piece = "⏎\n".join(map(one_line, piece.split("\n")))
        if color:
            print(f"\x1b[48;5;{_BACKGROUNDS[place % len(_BACKGROUNDS)]}m{piece}\x1b[0m\x1b[2m{i}\x1b[0m", end=" ")
        else:
            print(f"{piece}|{i}", end=" ")
    n_bytes = len(text.encode())
    print(f"\n{len(ids):,} tokens, {n_bytes:,} bytes" + (f", {n_bytes / len(ids):.2f} bytes per token" if ids else ""))
