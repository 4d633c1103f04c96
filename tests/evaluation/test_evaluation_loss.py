"""Loss and bits per byte, held to their definition written out one token at a time."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightwell.config.gpt import GPTConfig, ModernConfig
from lightwell.errors import DataError, UserError
from lightwell.evaluation import loss as room
from lightwell.evaluation.loss import evaluate_ids, evaluate_stream, evaluate_text
from lightwell.evaluation.report import UNITS, Evaluation, Window, summarise
from lightwell.model.build import GPT
from lightwell.tokenizer.simple import BytesTokenizer, CharTokenizer

TOKENIZER = BytesTokenizer()
SEPARATOR = TOKENIZER.separator_id
CONTEXT = 12
DOCUMENTS = ["The first document.", "", "A second one, with é and ☃.", "x" * 30]


@pytest.fixture(params=["gpt2", "modern"])
def model(request: pytest.FixtureRequest):
    sizes = {"vocab_size": 257, "context_length": CONTEXT, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "drop_rate": 0.5}
    config = GPTConfig(**sizes) if request.param == "gpt2" else ModernConfig(**sizes)
    model = GPT(config, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10)
    return model


def stream_of(documents: list[str], tokenizer=TOKENIZER) -> np.ndarray:
    return np.array([i for text in documents for i in (tokenizer.separator_id, *tokenizer.encode(text))], np.uint16)


def twin(model, ids: list[int]) -> list[tuple[float, int]]:
    """(loss in nats, token) of every token but the first, each alone after what it may be predicted from."""
    losses = []
    model.eval()
    for place, token in enumerate(ids[1:]):
        window_start = place - place % CONTEXT
        seen = [SEPARATOR, *ids[1:][window_start:place]]
        with torch.no_grad():
            logits = model(torch.tensor([seen]))[0, -1]
        losses.append((float(torch.logsumexp(logits, 0) - logits[token]), token))
    model.train()
    return losses


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_token_once_from_the_separator_or_what_is_before_it_in_its_window(model, batch_size: int) -> None:
    ids = stream_of(DOCUMENTS)
    result = evaluate_ids(model, ids, TOKENIZER.byte_lengths(), SEPARATOR, batch_size=batch_size)
    losses = twin(model, ids.tolist())
    nats = sum(loss for loss, _ in losses)
    n_bytes = sum(len(text.encode()) for text in DOCUMENTS)
    assert (result.tokens, result.bytes) == (len(ids) - 1, n_bytes) == (len(losses), n_bytes)
    assert result.loss == pytest.approx(nats / len(losses), rel=1e-10)
    assert result.perplexity == pytest.approx(math.exp(nats / len(losses)), rel=1e-9)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-10)


def test_a_text_and_a_stream_are_the_same(model) -> None:
    ids = stream_of(DOCUMENTS)
    stream = SimpleStream(ids, n_bytes=sum(len(text.encode()) for text in DOCUMENTS))
    direct = evaluate_ids(model, ids, TOKENIZER.byte_lengths(), SEPARATOR)
    assert evaluate_text(model, DOCUMENTS, TOKENIZER) == direct == evaluate_stream(model, stream, TOKENIZER)


class SimpleStream(SimpleNamespace):
    def __init__(self, ids: np.ndarray, n_bytes: int) -> None:
        super().__init__(ids=ids, n_bytes=n_bytes)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start < stop <= len(self)
        return self.ids[start:stop]


def test_bytes_are_those_of_the_original_text_whatever_the_tokens_say(model) -> None:
    """A reader that dropped a byte order mark and carriage returns leaves a stream of fewer bytes than the text had."""
    ids = stream_of(["four"])
    assert evaluate_stream(model, SimpleStream(ids, n_bytes=4), TOKENIZER).bytes == 4
    longer = evaluate_stream(model, SimpleStream(ids, n_bytes=8), TOKENIZER)
    assert longer.bytes == 8
    assert longer.bits_per_byte == evaluate_stream(model, SimpleStream(ids, n_bytes=4), TOKENIZER).bits_per_byte / 2


def test_tokens_of_several_bytes_count_all_of_them() -> None:
    tokenizer = CharTokenizer("é☃")
    config = GPTConfig(vocab_size=tokenizer.vocab_size, context_length=8, emb_dim=8, n_heads=1, n_layers=1)
    result = evaluate_text(GPT(config, torch.Generator().manual_seed(0)), ["é☃ab"], tokenizer)
    assert (result.tokens, result.bytes) == (4, 7)
    assert result.bits_per_byte == pytest.approx(result.loss * 4 / 7 / math.log(2))


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary() -> None:
    config = GPTConfig(vocab_size=257, context_length=8, emb_dim=8, n_heads=1, n_layers=1, tie_embeddings=False)
    model = GPT(config)
    torch.nn.init.zeros_(model.head.weight)
    result = evaluate_text(model, ["some text"], TOKENIZER)
    assert result.bits_per_byte == pytest.approx(math.log2(257), rel=1e-6)
    assert result.perplexity == pytest.approx(257, rel=1e-5)


def test_large_vocabularies_take_another_way_to_the_same_number(model, monkeypatch) -> None:
    whole = evaluate_text(model, DOCUMENTS, TOKENIZER)
    monkeypatch.setattr(room, "MAX_LOGITS", 1)
    pieces = evaluate_text(model, DOCUMENTS, TOKENIZER)
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-12)
    assert pieces.standard_error == whole.standard_error


def test_part_of_a_text_is_windows_spread_evenly(model) -> None:
    """Of ten windows 36 tokens are three: the first, the fourth, the seventh."""
    texts = ["".join(chr(ord("a") + (i * i) % 26) for i in range(CONTEXT * 10))]
    ids = stream_of(texts).tolist()
    losses = twin(model, ids)
    result = evaluate_text(model, texts, TOKENIZER, max_tokens=41)
    expected = [losses[w * CONTEXT + i][0] for w in (0, 3, 6) for i in range(CONTEXT)]
    assert (result.tokens, result.bytes) == (36, 36)
    assert result.loss == pytest.approx(sum(expected) / 36, rel=1e-10)
    assert evaluate_text(model, texts, TOKENIZER, max_tokens=1).tokens == CONTEXT
    assert evaluate_text(model, texts, TOKENIZER, max_tokens=10**9) == evaluate_text(model, texts, TOKENIZER)


def test_the_model_and_the_random_streams_are_left_alone(model) -> None:
    model.train()
    model.blocks[0].mlp.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first = evaluate_text(model, DOCUMENTS, TOKENIZER)
    assert first == evaluate_text(model, DOCUMENTS, TOKENIZER)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.parameters())


def test_progress_counts_tokens_to_the_end(model) -> None:
    calls: list[tuple[int, int | None, str]] = []
    result = evaluate_text(model, DOCUMENTS, TOKENIZER, batch_size=2, progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert done == sorted(set(done))
    assert calls[-1] == (result.tokens, result.tokens, "evaluating")


@pytest.mark.parametrize("documents", [[], [""], ["", "", ""]])
def test_no_text_is_said(model, documents: list[str]) -> None:
    with pytest.raises(DataError, match="Is the text empty"):
        evaluate_text(model, documents, TOKENIZER)


def test_ids_that_the_model_does_not_have_are_said(model) -> None:
    ids = np.array([SEPARATOR, 1, 300])
    with pytest.raises(UserError, match="expected token ids from 0 to 256, got 300"):
        evaluate_ids(model, ids, np.ones(400, np.int64), SEPARATOR)


def test_a_stream_without_its_separator_is_said(model) -> None:
    with pytest.raises(DataError, match="opened by the separator"):
        evaluate_ids(model, np.array([1, 2, 3]), TOKENIZER.byte_lengths(), SEPARATOR)


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_standard_error_is_that_of_a_ratio_over_blocks_of_4_kb() -> None:
    """Six windows of 2,048 bytes and a rest of 100 are three blocks, the rest joining the last."""
    nats = [900.0, 1100.0, 1500.0, 1300.0, 700.0, 800.0, 50.0]
    windows = [Window(x, 500, 2048 if i < 6 else 100) for i, x in enumerate(nats)]
    result = summarise(windows)
    bits = np.array([2000.0, 2800.0, 1550.0]) / math.log(2)
    sizes = np.array([4096, 4096, 4196])
    ratio = bits.sum() / sizes.sum()
    expected = math.sqrt(3 / 2 * ((bits - ratio * sizes) ** 2).sum()) / sizes.sum()
    assert result.bits_per_byte == pytest.approx(ratio)
    assert result.standard_error == pytest.approx(expected)


def test_the_standard_error_is_how_far_the_figure_varies() -> None:
    """Texts drawn from one source: the spread of their bits per byte is what each one alone claims, within a fifth."""
    random = np.random.default_rng(0)

    def text() -> Evaluation:
        sizes = random.integers(3000, 6000, 400)
        return summarise([Window(x, 1, s) for s, x in zip(sizes, sizes * random.normal(1.5, 0.3, 400))])

    results = [text() for _ in range(200)]
    spread = np.std([result.bits_per_byte for result in results])
    claimed = np.mean([result.standard_error for result in results])
    assert 0.8 < claimed / spread < 1.25


def test_one_block_has_no_standard_error() -> None:
    assert summarise([Window(10.0, 5, 4095), Window(10.0, 5, 4095)]).standard_error is None
    assert summarise([Window(10.0, 5, 4096), Window(10.0, 5, 4096)]).standard_error == 0.0


def test_the_dictionary_has_plain_numbers_and_units() -> None:
    figures = Evaluation(loss=2.0, bits_per_byte=1.0, standard_error=None, tokens=3, bytes=4).to_dict()
    assert figures["perplexity"] == pytest.approx(math.e**2)
    assert figures["standard_error"] is None
    assert set(figures["units"]) == set(figures) - {"units"} == set(UNITS)
    broken = Evaluation(loss=math.nan, bits_per_byte=math.inf, standard_error=0.1, tokens=3, bytes=4)
    assert [broken.to_dict()[name] for name in ("loss", "perplexity", "bits_per_byte")] == [None, None, None]


def test_the_sentence_has_the_figures() -> None:
    sentence = str(Evaluation(loss=2.0, bits_per_byte=1.25, standard_error=0.01, tokens=3000, bytes=4000))
    assert sentence == (
        "1.2500 ± 0.0100 bits per byte, loss 2.0000 nats per token, perplexity 7.389 (3,000 tokens, 4,000 bytes)"
    )
