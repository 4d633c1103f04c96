"""Tokens per second of greedy generation at GPT-2 124M (random weights), against transformers' generate with its cache
and, where it is installed (`pip install ctranslate2`), CTranslate2 in int8.

    python benchmarks/generate.py [--rounds 3] [--threads 2] [--new-tokens 64] [--prompt 32] [--batch 1]

All sides hold the same weights (through our export); ours and transformers' must write the same tokens in float32, at
least where it is one text. Of several, written at once, tokens per second are those of all together.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import common

VOCAB_SIZE = 50257


def ours(folder: Path, prompts: list[list[int]], new_tokens: int, threads: int, weights: str) -> dict:
    from lightwell.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    import torch

    from lightwell.generation.engine import Engine
    from lightwell.generation.layout import lay_out
    from lightwell.generation.sample import Sampling
    from lightwell.interop.huggingface import import_model
    from lightwell.model.build import GPT
    from lightwell.tokenizer.simple import CharTokenizer

    torch.set_num_threads(threads)
    config, state, _ = import_model(folder)
    model = GPT(config).eval()
    model.load_state_dict(state)
    if weights != "float32":
        from lightwell.generation.quantize import quantize

        model = quantize(model, weights)
    lay_out(model)
    characters = "".join(map(chr, range(0x10000, 0x10000 + VOCAB_SIZE - 257)))  # any, so that each id is a token
    engine, likeliest = Engine(model, CharTokenizer(characters)), Sampling(temperature=0.0)
    times, ids = [], []
    for _ in range(3):
        start = time.perf_counter()
        if len(prompts) == 1:
            ids = [engine.generate_ids(prompts[0], max_new_tokens=new_tokens, sampling=likeliest)]
        else:
            generation = engine.stream(prompts, max_new_tokens=new_tokens, sampling=likeliest)
            generation.finish()
            ids = generation.ids
        times.append(time.perf_counter() - start)
    return {"tokens_per_second": sum(map(len, ids)) / min(times), "ids": ids}


def theirs(folder: Path, prompts: list[list[int]], new_tokens: int, threads: int) -> dict:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor(prompts)
    times, out = [], ids
    for _ in range(3):
        start = time.perf_counter()
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip
        times.append(time.perf_counter() - start)
    return {"tokens_per_second": len(prompts) * new_tokens / min(times), "ids": out[:, ids.shape[1] :].tolist()}


def ctranslate2_int8(folder: Path, prompts: list[list[int]], new_tokens: int, threads: int) -> dict:
    import ctranslate2

    generator = ctranslate2.Generator(
        str(folder / "ctranslate2"), compute_type="int8", inter_threads=1, intra_threads=threads
    )
    times, ids = [], []
    for _ in range(3):
        start = time.perf_counter()
        results = generator.generate_batch(
            [[f"t{n}" for n in prompt] for prompt in prompts], max_length=new_tokens, min_length=new_tokens,
            sampling_topk=1, end_token=[], include_prompt_in_result=False,
        )  # fmt: skip
        times.append(time.perf_counter() - start)
        ids = [result.sequences_ids[0] for result in results]
    assert all(len(text) == new_tokens for text in ids)
    return {"tokens_per_second": len(prompts) * new_tokens / min(times), "ids": ids}


def convert(folder: Path, vocab_size: int) -> None:
    """Our export to CTranslate2's int8. Its converter asks for a vocabulary: tokens t0, t1, ..."""
    import ctranslate2.converters
    from tokenizers import Tokenizer, models

    named = folder.with_name("named")
    shutil.copytree(folder, named)
    names = {f"t{n}": n for n in range(vocab_size)}
    Tokenizer(models.WordLevel(names, unk_token="t0")).save(str(named / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0", "bos_token": "t0", "eos_token": "t0"}
    (named / "tokenizer_config.json").write_text(json.dumps(about))
    converter = ctranslate2.converters.TransformersConverter(str(named))
    converter.convert(str(folder / "ctranslate2"), quantization="int8")


def export(folder: Path) -> None:
    import torch

    from lightwell.config.gpt import GPT_CONFIG_124M, GPTConfig
    from lightwell.interop.huggingface import export_model
    from lightwell.model.build import GPT

    config = GPTConfig(**GPT_CONFIG_124M)
    model = GPT(config, torch.Generator().manual_seed(0))
    export_model(config, model.state_dict(), None, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1, help="texts that are written at once")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    end = VOCAB_SIZE - 1  # GPT-2's separator, which opens each prompt, and is none of its other tokens
    prompts = [[end, *((7919 * n + 17 * row) % end for n in range(1, args.prompt))] for row in range(args.batch)]
    if args.side:
        side, folder = args.side[0], Path(args.side[1])
        if side.startswith("lightwell"):
            found = ours(folder, prompts, args.new_tokens, args.threads, side.split()[1])
        elif side == "ctranslate2 int8":
            found = ctranslate2_int8(folder, prompts, args.new_tokens, args.threads)
        else:
            found = theirs(folder, prompts, args.new_tokens, args.threads)
        print(json.dumps(found))
        return
    print(common.machine())
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "gpt2-124m"
        export(folder)
        names = ["lightwell float32", "lightwell bf16", "lightwell int8", "transformers"]
        if importlib.util.find_spec("ctranslate2"):
            convert(folder, VOCAB_SIZE)
            names.append("ctranslate2 int8")
        options = ("--threads", str(args.threads), "--new-tokens", str(args.new_tokens), "--prompt", str(args.prompt))
        options += ("--batch", str(args.batch))
        sides = {
            side: lambda side=side: common.run_side(__file__, *options, "--side", side, str(folder)) for side in names
        }
        found = common.in_turns(sides, args.rounds)
    rates = {side: common.median(rows, "tokens_per_second") for side, rows in found.items()}
    texts = zip(found["lightwell float32"][0]["ids"], found["transformers"][0]["ids"])
    same = sum(ours == theirs for ours, theirs in texts)
    print(f"texts that are the same as transformers' in float32: {same} of {args.batch}")
    if same < args.batch == 1:
        sys.exit("expected the same tokens as transformers' in float32, got others")
    for side, rate in rates.items():
        print(f"  {side:20} {rate:7.1f} tokens/s  {rate / rates['transformers']:5.2f} x transformers")


if __name__ == "__main__":
    main()
