"""The planner fills in what is open around what is fixed, and prefers what it predicts to be best."""

import pytest
import torch

from lightwell.config.run import parse
from lightwell.errors import ConfigError
from lightwell.planner import choose as planner
from lightwell.planner.predict import Text, difficulty, effective_tokens, predict_bits_per_byte
from lightwell.runtime.device import Device

CPU = Device(torch.device("cpu"), torch.float32)
TEXT = Text(tokens=4_000_000, difficulty=2.5)


@pytest.fixture
def fake_speed(monkeypatch):
    """A machine whose steps take as long as their products at 20 GFLOP/s."""

    def seconds(config, device, **_):
        from lightwell.model.count import flops_per_token

        model = config.model.complete()
        return planner.tokens_per_step(config) * flops_per_token(model, model.context_length)["total"] / 2e10

    monkeypatch.setattr(planner, "measure_step_seconds", seconds)


def chosen(seconds, raw=None, text=TEXT):
    return planner.choose(parse(raw or {}), 1024, text, CPU, 1e11, seconds)


def size(choice):
    return choice.config.model.emb_dim * choice.config.model.n_layers


def test_more_time_never_means_a_smaller_model(fake_speed):
    sizes = [size(chosen(seconds)) for seconds in (30, 120, 600, 3600, 36000)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


def test_short_text_means_a_smaller_model_than_long_text(fake_speed):
    assert size(chosen(3600, text=Text(50_000, 2.5))) <= size(chosen(3600, text=Text(10**9, 2.5)))


def test_the_choice_has_nothing_left_open_and_says_why(fake_speed):
    choice = chosen(120)
    assert choice.config.model.missing() == []
    assert choice.config.train.batch_size
    assert len(choice.reasons) == 3
    assert choice.expected["bits_per_byte"] <= 1.005 * min(choice.expected["candidates"].values())


@pytest.mark.parametrize("fixed", [{"n_layers": 3}, {"emb_dim": 96}, {"n_heads": 5}, {"context_length": 48}])
def test_what_is_fixed_stays_fixed(fake_speed, fixed):
    choice = chosen(300, {"model": fixed, "train": {"batch_size": 7}})
    assert {key: getattr(choice.config.model, key) for key in fixed} == fixed
    assert choice.config.train.batch_size == 7
    choice.config.model.complete(1024)


def test_a_complete_config_is_taken_as_it_is():
    model = {"emb_dim": 32, "n_heads": 2, "n_layers": 1, "context_length": 16}
    choice = chosen(60, {"model": model, "train": {"batch_size": 4}})
    assert {key: getattr(choice.config.model, key) for key in model} == model


def test_sizes_that_fit_no_rung_are_said():
    with pytest.raises(ConfigError):
        chosen(60, {"model": {"emb_dim": 64, "head_dim": 7}})


def test_vocabulary_grows_with_text_and_time():
    sizes = [planner.choose_vocab_size(10**exponent, 600.0) for exponent in range(4, 10)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 512
    assert planner.choose_vocab_size(10**9, 30.0) < planner.choose_vocab_size(10**9, 7200.0)


def test_a_huge_text_is_not_read_whole():
    assert planner.bytes_to_read(10**12, 60.0, 1e11) < 10**9
    assert planner.bytes_to_read(10**6, 60.0, 1e11) is None
    assert planner.bytes_to_read(10**12, None, 1e11) is None


def test_repeated_text_counts_less_and_less():
    assert effective_tokens(100, 1000) == 100
    worth = [effective_tokens(1000 * n, 1000) / (1000 * n) for n in (1, 2, 4, 16, 64)]
    assert worth == sorted(worth, reverse=True)
    assert worth[2] > 0.9  # four epochs are almost as good as new text
    assert worth[-1] < 0.3


def test_prediction_falls_with_size_and_text_and_rises_with_difficulty():
    def predicted(n=10**6, d=10**7, text=TEXT):
        return predict_bits_per_byte(n, d, text)

    assert predicted(n=10**7) < predicted()
    assert predicted(d=10**8) < predicted()
    assert predicted(text=Text(TEXT.tokens, 3.0)) > predicted()


def test_difficulty_tells_noise_from_repetition():
    noise = (
        torch.randint(256, (50_000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
    )
    assert difficulty(noise) > 7.9
    assert difficulty(b"the same line again\n" * 2500) < 0.2


def test_a_step_is_really_timed_and_a_giant_is_not_tried(monkeypatch):
    from lightwell.planner import step_time

    raw = {
        "model": {"emb_dim": 32, "n_heads": 2, "n_layers": 1, "context_length": 16, "vocab_size": 300},
        "train": {"batch_size": 8},
    }
    state = torch.random.get_rng_state()
    assert 0 < step_time.measure_step_seconds(parse(raw), CPU) < 20
    assert torch.equal(state, torch.random.get_rng_state())
    monkeypatch.setattr(step_time, "free_bytes", lambda: 1000)
    assert step_time.measure_step_seconds(parse(raw), CPU) is None


def test_the_profile_says_where_the_time_goes(tmp_path):
    from lightwell.planner.profile import profile_steps

    raw = {
        "model": {"emb_dim": 32, "n_heads": 2, "n_layers": 1, "context_length": 16, "vocab_size": 300},
        "train": {"batch_size": 4},
    }
    found = profile_steps(parse(raw), CPU, tmp_path / "trace.json")
    assert (tmp_path / "trace.json").stat().st_size > 1000
    assert sum(operation["share"] for operation in found["operations"]) > 0.5
    assert found["tokens_per_second"] > 0
    assert any("mm" in operation["name"] for operation in found["operations"])
