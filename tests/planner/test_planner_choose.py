"""The planner fills in what is open around what is fixed, and prefers what it predicts to be best."""

from dataclasses import replace

import pytest
import torch

from lightwell.config.presets import PRESETS, preset
from lightwell.config.run import changed, parse, to_raw
from lightwell.errors import ConfigError, UserError
from lightwell.planner import choose as planner
from lightwell.planner import climb, fit, ladder, reading
from lightwell.planner.compiling import Compiled
from lightwell.planner.predict import effective_tokens, predict_bits_per_byte
from lightwell.planner.text import TextStatistics, typical_text
from lightwell.runtime.device import Device

CPU = Device(torch.device("cpu"), torch.float32)
TEXT = TextStatistics(tokens=4_000_000, difficulty=1.8, copying=0.88, vocabulary=512)


@pytest.fixture
def fake_speed(monkeypatch):
    """A machine whose steps take as long as their products at 20 GFLOP/s."""

    def seconds(config, device, **_):
        from lightwell.model.count import flops_per_token

        model = config.model.complete()
        return ladder.tokens_per_step(config) * flops_per_token(model, model.context_length)["total"] / 2e10

    def in_turns(configs, device, expected, limit):
        return [seconds(config, device) for config in configs]

    for room in (climb, reading, planner):
        monkeypatch.setattr(room, "measure_step_seconds", seconds)
    monkeypatch.setattr(climb, "measure_in_turns", in_turns)
    monkeypatch.setattr(
        planner, "try_compile", lambda config, device, step_seconds, left: Compiled(False, step_seconds)
    )


def chosen(seconds, raw=None, text=TEXT):
    return planner.choose(parse(raw or {}), 1024, text, CPU, 1e11, seconds)


def size(choice):
    return choice.config.model.emb_dim * choice.config.model.n_layers


def test_more_time_never_means_a_smaller_model(fake_speed):
    sizes = [size(chosen(seconds)) for seconds in (30, 120, 600, 3600, 36000)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


def test_a_short_text_means_a_small_model_however_long_the_time(fake_speed):
    sizes = [size(chosen(36000, text=replace(TEXT, tokens=n))) for n in (10_000, 50_000, 1_000_000)]
    assert sizes == sorted(set(sizes))


def test_a_short_text_has_short_windows_unless_they_are_fixed(fake_speed):
    short = replace(TEXT, tokens=200_000)
    assert chosen(3600, text=short).config.model.context_length <= planner.SHORT_WINDOW
    assert chosen(3600).config.model.context_length > planner.SHORT_WINDOW
    fixed = chosen(3600, {"budget": {"minutes": 60}, "model": {"context_length": 1024}}, text=short)
    assert fixed.config.model.context_length == 1024


def test_a_short_text_is_gone_through_a_few_times_and_that_is_said(fake_speed):
    text = replace(TEXT, tokens=50_000)
    choice = chosen(3600, text=text)
    assert choice.config.budget.most_tokens == choice.expected["tokens"] == climb.MOST_EPOCHS * text.tokens
    assert "ends before the minutes are over" in choice.reasons[-1]
    again = planner.choose(parse({}), 1024, text, CPU, 1e11, 3600, unpredicted="Of this nothing is predicted.")
    assert "ends before the minutes are over" in again.reasons[-1]
    assert "Of this nothing is predicted." in again.reasons
    assert not any("bits per byte" in reason for reason in again.reasons)
    assert set(again.expected) == {"tokens", "step_seconds"}
    longer = chosen(3600, {"budget": {"minutes": 60, "most_tokens": 10**6}}, text=text)
    assert longer.config.budget.most_tokens == longer.expected["tokens"] == 10**6
    assert "ends before" not in longer.reasons[-1]
    assert "ends before" not in chosen(60).reasons[-1]
    in_time = chosen(60).config.budget.most_tokens
    assert in_time == 2 * climb.MOST_EPOCHS * TEXT.tokens, "a machine that is faster than it seemed goes on"


def test_the_choice_has_nothing_left_open_and_says_why(fake_speed):
    choice = chosen(120)
    assert choice.config.model.missing() == []
    assert choice.config.train.batch_size
    assert len(choice.reasons) == 3
    neighbours = choice.expected["candidates"]
    assert len(neighbours) > 1
    for name, bits in neighbours.items():
        assert f"{name}: {bits:.3f}" in choice.reasons[1]
    assert f"Chosen: {ladder.name_of(choice.config)}" in choice.reasons[2]
    assert choice.expected["bits_per_byte"] == min(choice.expected["candidates"].values())


def test_held_out_text_that_is_no_secret_is_told(fake_speed):
    known = replace(TEXT, overlap=0.57)
    assert chosen(120, text=known).reasons[0].startswith("At least 57% of the held-out text stands word for word")
    assert chosen(120, text=replace(known, tokens=10**6)).reasons[0].startswith("57% of the held-out text")
    assert "57%" in chosen(None, {"budget": {"steps": 10}}, text=known).reasons[0]
    assert chosen(120).reasons[0].startswith("Measured")


FIXED = [
    {"model": {"n_layers": 3}},
    {"model": {"emb_dim": 96}},
    {"model": {"n_heads": 5}},
    {"model": {"context_length": 48}},
    {"model": {"family": "gpt2", "qkv_bias": True}},
    {"model": {"drop_rate": 0.25}},
    {"train": {"batch_size": 7}},
    {"train": {"batch_size": 8, "micro_batch_size": 2}},
    {"optimizer": {"name": "adamw", "learning_rate": 1e-3}},
    {"schedule": {"name": "cosine"}},
    {"tokenizer": {"kind": "bytes"}},
]


@pytest.mark.parametrize("fixed", FIXED, ids=str)
def test_what_is_fixed_stays_fixed_and_the_rest_is_planned(fake_speed, fixed):
    choice = chosen(300, fixed)
    raw = to_raw(choice.config)
    for section, values in fixed.items():
        assert {key: raw[section][key] for key in values} == values
    choice.config.model.complete(1024)
    assert choice.config.train.batch_size
    assert choice.expected["tokens"] > 0


def test_heads_are_wide_and_two_at_least():
    widths = {64: 2, 96: 2, 192: 2, 256: 2, 384: 3, 448: 2, 640: 5, 768: 6, 6: 1, 7: 1}
    assert {width: ladder.heads_of(width) for width in widths} == widths
    assert ladder.heads_of(768, "gpt2") == 12, "as GPT-2 has it"


def test_a_context_that_was_fixed_leaves_the_tokens_of_a_step_as_they_are():
    for context_length in (32, 100, 4096):
        rungs = [rung for rung in ladder.LADDER if rung != ladder.Rung(256, 2, 1024, 4)]  # then it is one with another
        made = ladder.rungs_for(parse({"model": {"context_length": context_length}}), 512).values()
        for rung, config in zip(rungs, made, strict=True):
            rows = ladder.tokens_per_step(config) / context_length
            assert rows == max(1, round(rung.batch_size * rung.context_length / context_length))


@pytest.mark.parametrize("seconds", [2, 300])
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_can_share_what_is_chosen(fake_speed, processes, seconds):
    for given in ({}, {"train": {"micro_batch_size": 5}}):
        train = planner.choose(parse(given), 1024, TEXT, CPU, 1e11, seconds, processes).config.train
        assert train.batch_size % (processes * (5 if given else 1)) == 0
        assert not given or train.micro_batch_size == 5
    alone, together = (planner.choose(parse({}), 1024, TEXT, CPU, 1e11, 300, n) for n in (1, processes))
    assert together.expected["step_seconds"] < alone.expected["step_seconds"] or size(together) > size(alone)


def test_a_model_that_was_fixed_gets_the_batch_of_the_rung_that_is_nearest():
    for (layers, width), batch in {(2, 192): 8, (2, 128): 8, (14, 768): 128, (3, 512): 8}.items():
        sizes = {"n_layers": layers, "emb_dim": width, "context_length": 512}
        (made,) = ladder.rungs_for(parse({"model": sizes}), 512).values()
        assert made.train.batch_size == batch, (layers, width)


def test_an_odd_width_is_one_that_no_head_takes():
    with pytest.raises(ConfigError, match=r"head_dim|n_heads|emb_dim"):
        chosen(300, {"model": {"emb_dim": 65}})


def test_however_little_time_is_left_the_smallest_model_is_taken(fake_speed):
    assert size(chosen(1.0)) == 2 * 64


def test_every_preset_is_planned_around(fake_speed):
    for name in PRESETS:
        raw = preset(name)
        choice = chosen(300, raw)
        kept = to_raw(choice.config)["model"] | {"vocab_size": raw["model"]["vocab_size"]}
        assert kept == kept | raw["model"]
        assert choice.config.train.batch_size == raw["train"]["batch_size"]


def test_a_batch_that_does_not_fit_is_split_until_it_does(fake_speed, monkeypatch):
    sizes = {"emb_dim": 256, "n_heads": 4, "n_layers": 4, "context_length": 256, "tie_embeddings": False}
    raw = {"model": sizes, "train": {"batch_size": 48}}
    config = changed(parse(raw), model={"vocab_size": 1024})

    def needed(rows):
        return fit.step_memory(config, rows, CPU)["total"]

    for rows in (48, 24, 12, 1):
        fitted = fit.split_to_fit(config, int(needed(rows) / fit.MEMORY_SHARE) + 1, CPU)
        assert (fitted.train.micro_batch_size or 48) == rows
    assert fit.split_to_fit(config, needed(1), CPU) is None
    monkeypatch.setattr(fit, "free_bytes", lambda: int(needed(16) / fit.MEMORY_SHARE) + 1)
    monkeypatch.setattr(fit, "peak_of_a_step", lambda *_, **__: 0)  # a busy machine would take too long for it
    assert chosen(300, raw).config.train.micro_batch_size == 16


def test_a_run_that_no_memory_is_free_for_is_refused_before_it_begins(monkeypatch):
    raw = {"model": {"emb_dim": 256, "n_heads": 4, "n_layers": 4, "context_length": 256}, "train": {"batch_size": 48}}
    config = changed(parse(raw), model={"vocab_size": 1024}, train={"micro_batch_size": 8})
    needed = fit.step_memory(config, 8, CPU)["total"]
    monkeypatch.setattr(fit, "free_bytes", lambda: needed + 1)
    fit.require_memory(config, CPU)
    monkeypatch.setattr(fit, "free_bytes", lambda: needed - 1)
    with pytest.raises(UserError, match="fits into"):
        fit.require_memory(config, CPU)
    monkeypatch.setattr(fit, "free_bytes", lambda: None)
    fit.require_memory(config, CPU)


def test_only_models_that_fit_into_memory_are_tried(fake_speed, monkeypatch):
    everything = chosen(36000)
    monkeypatch.setattr(fit, "free_bytes", lambda: 60_000_000)
    small = chosen(36000)
    assert size(small) < size(everything)
    assert "more than the free memory" in small.reasons[-1]


def test_a_complete_config_is_taken_as_it_is():
    model = {"emb_dim": 32, "n_heads": 2, "n_layers": 1, "context_length": 16}
    choice = chosen(60, {"model": model, "train": {"batch_size": 4}})
    assert {key: getattr(choice.config.model, key) for key in model} == model


def test_sizes_that_fit_no_rung_are_said():
    with pytest.raises(ConfigError):
        chosen(60, {"model": {"emb_dim": 64, "head_dim": 7}})


def test_a_huge_text_is_read_as_far_as_the_time_goes(fake_speed):
    def read(text_bytes, seconds, raw=None, processes=1):
        config = parse(raw or {})
        slower = reading.slowness(config, CPU, 1e11, seconds or 60.0)
        return reading.bytes_to_read(config, text_bytes, 1024, 1e11, seconds, slower, processes)

    for seconds in (60.0, 600.0, 6000.0):
        bytes_read = read(10**12, seconds)
        consumed = chosen(seconds, text=typical_text(10**9)).expected["tokens"] * 3
        assert consumed < bytes_read < 10 * max(reading.LEAST_READ, consumed)
    fixed = {"model": {"emb_dim": 512, "n_layers": 8, "n_heads": 8, "context_length": 512}}
    for raw, times in (({}, 2), (fixed, 4)):  # more processes also train a larger model, where it is open
        alone, among = (read(10**12, 6000.0, raw, n) for n in (1, 8))
        assert times * alone < among
    assert read(10**6, 60.0) is None
    assert read(10**12, None) is None
    assert read(10**12, 6000.0, fixed) < read(10**12, 6000.0), "a larger model sees less in the time"


def test_the_vocabulary_heeds_what_this_machine_will_see(monkeypatch):
    def vocab_size(step_seconds, raw=None, **given):
        monkeypatch.setattr(reading, "measure_step_seconds", lambda *_, **__: step_seconds)
        config = parse(raw or {})
        return reading.vocab_size_for(config, 10**8, 1e11, 60.0, reading.slowness(config, CPU, 1e11, 60.0), **given)

    assert vocab_size(0.01) > vocab_size(0.3) > vocab_size(10.0)
    assert vocab_size(0.3, processes=16) > vocab_size(0.3)
    assert vocab_size(0.1, {"model": {"vocab_size": 700}}) == 700
    assert vocab_size(None) == reading.vocab_size_for(parse({}), 10**8, 1e11, 60.0), "too large to try: as usual"
    large = parse({"model": {"emb_dim": 768, "n_layers": 12, "n_heads": 12, "context_length": 1024}})
    monkeypatch.setattr(reading, "measure_step_seconds", lambda *_, **__: pytest.fail("it takes too long"))
    assert reading.slowness(large, CPU, 1e11, 60.0) == reading.USUALLY


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
    assert predicted(text=replace(TEXT, difficulty=2.2)) > predicted()
    assert predicted(text=replace(TEXT, copying=0.99)) > predicted()
    assert predicted(text=replace(TEXT, far=0.7)) > predicted(), "what stands far off is copied later"
    assert predicted(text=replace(TEXT, phrases=1.4)) > predicted(), "phrases take more text to learn"
    assert predicted(d=1, text=replace(TEXT, guessing=3.5)) == 3.5


def test_a_trial_in_a_busy_moment_does_not_make_a_small_model_slower_than_a_large_one():
    timed = {4: None, 3: 0.3, 0: 0.1, 1: 0.5, 2: 0.2}
    assert climb.settled(timed) == {0: 0.1, 1: 0.2, 2: 0.2, 3: 0.3}
    assert climb.settled({2: None}) == {}


def test_neighbours_that_would_be_clearly_worse_are_reckoned_instead_of_timed(fake_speed, monkeypatch):
    timed, measure = [], climb.measure_step_seconds
    monkeypatch.setattr(climb, "measure_step_seconds", lambda *a, **o: timed.append(a[0]) or measure(*a, **o))
    choice = chosen(120)
    (said,) = [reason for reason in choice.reasons if reason.startswith("Predicted")]
    assert len(timed) == 1, "the likeliest; others beside it, in turns"
    assert 0 < said.count("(not timed)") < len(choice.expected["candidates"])
    assert f"{ladder.name_of(choice.config)}: {choice.expected['bits_per_byte']:.3f} after" in said


def test_a_rung_that_suits_a_text_badly_does_not_hide_the_one_below_it(fake_speed, monkeypatch):
    names = list(ladder.rungs_for(parse({}), 1024))
    bits = dict(zip(names, [2.0, 1.8, 1.5, 1.56, 1.52, 1.6]))
    monkeypatch.setattr(climb, "predicted", lambda config, *_: bits.get(ladder.name_of(config), 2.0))
    for place in (2, 4, 5):
        monkeypatch.setattr(climb, "likeliest", lambda *_, place=place: place)
        assert ladder.name_of(chosen(1200).config) == names[2]


def test_a_busy_moment_does_not_decide_between_models(fake_speed, monkeypatch):
    """Timed alone, the best model seems slow; beside another one, in turns, it does not."""
    quiet, measure = ladder.name_of(chosen(900).config), climb.measure_step_seconds

    def busy(config, device, **options):
        return measure(config, device) * (2 if ladder.name_of(config) == quiet else 1)

    monkeypatch.setattr(climb, "measure_step_seconds", busy)
    assert ladder.name_of(chosen(900).config) == quiet
    monkeypatch.setattr(climb, "measure_in_turns", lambda *_: None)
    assert ladder.name_of(chosen(900).config) != quiet


def test_steps_in_turns_are_made_where_there_is_time_and_room(monkeypatch):
    from lightwell.planner import step_time

    sizes = {"n_heads": 2, "n_layers": 1, "context_length": 16, "vocab_size": 300}
    configs = [parse({"model": sizes | {"emb_dim": width}, "train": {"batch_size": 8}}) for width in (32, 64)]
    few = changed(configs[0], train={"micro_batch_size": 2})
    seconds = step_time.measure_in_turns(configs, CPU, [0.01, 0.01])
    assert seconds is not None
    assert all(0 < each < 20 for each in seconds)
    assert step_time.measure_in_turns(configs, CPU, [0.01, 0.01], limit=0.05) is None
    assert step_time.measure_in_turns([few], CPU, [0.01]) is None
    monkeypatch.setattr(step_time, "free_bytes", lambda: 1000)
    assert step_time.measure_in_turns(configs, CPU, [0.01, 0.01]) is None
    monkeypatch.setattr(step_time, "free_bytes", lambda: None)  # not told by every system
    assert step_time.measure_in_turns(configs, CPU, [0.01, 0.01]) is not None


def test_nothing_above_what_is_too_large_to_try_is_tried(fake_speed, monkeypatch):
    tried, measure = [], climb.measure_step_seconds

    def up_to_192(config, device, **options):
        tried.append(config.model.emb_dim)
        return measure(config, device) if config.model.emb_dim < 192 else None

    monkeypatch.setattr(climb, "measure_step_seconds", up_to_192)
    choice = chosen(3600)
    assert choice.config.model.emb_dim == 128
    assert sorted(tried, reverse=True) == tried, "down to the first that can be tried"
    assert "192" not in choice.reasons[1]


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


def test_a_large_batch_is_timed_whole_where_there_is_room(monkeypatch):
    from lightwell.planner import step_time

    def rows_tried(limit):
        tried = []

        def seconds(config, device, rows, rounds, limit, length=None):
            tried.append(rows * (length or 16) / 16)
            return 0.5 + tried[-1]  # half a second however many there are, and a second for each

        monkeypatch.setattr(step_time, "_usual", seconds)
        return step_time.measure_step_seconds(parse(raw), CPU, limit=limit), tried

    raw = {
        "model": {"emb_dim": 32, "n_heads": 2, "n_layers": 1, "context_length": 16, "vocab_size": 300},
        "train": {"batch_size": 8},
    }
    assert rows_tried(100.0) == (8.5, [8])
    per_row = step_time.TRIAL_FLOPS / 4
    monkeypatch.setattr(step_time, "flops_per_token", lambda *_: {"total": per_row / 16})
    assert rows_tried(100.0) == (8.5, [4, 8])
    assert rows_tried(20.0) == (8.5, [4, 2])
    raw["train"]["micro_batch_size"] = 4
    assert rows_tried(100.0) == (8.5, [4, 2])
    del raw["train"]["micro_batch_size"]
    monkeypatch.setattr(step_time, "free_bytes", lambda: None)
    assert rows_tried(100.0) == (8.5, [4, 2])
    monkeypatch.setattr(step_time, "TRIAL_FLOPS", per_row)
    assert rows_tried(100.0) == (8.5, [1, 0.5])  # a single sequence, and half of it


def test_the_profile_says_where_the_time_goes(tmp_path):
    from lightwell.planner.profile import profile_steps

    raw = {
        "model": {"emb_dim": 32, "n_heads": 2, "n_layers": 1, "context_length": 16, "vocab_size": 300},
        "train": {"batch_size": 4},
    }
    found = profile_steps(parse(raw), CPU, tmp_path / "trace.json", rows=10_000)
    assert (tmp_path / "trace.json").stat().st_size > 1000
    shares = [operation["share"] for operation in found["operations"]]
    assert sum(shares) == pytest.approx(1), "of all of them; a user is shown the largest"
    assert shares == sorted(shares, reverse=True)
    assert found["tokens_per_second"] > 0
    assert any("mm" in operation["name"] for operation in found["operations"])


def test_a_model_that_compiling_makes_faster_is_expected_to_see_more(fake_speed, monkeypatch):
    plain = chosen(600)
    monkeypatch.setattr(
        planner, "try_compile", lambda config, device, step_seconds, left: Compiled(True, step_seconds / 2)
    )
    faster = chosen(600)
    assert faster.config.runtime.compile is True
    assert faster.expected["tokens"] == pytest.approx(2 * plain.expected["tokens"], rel=0.01)
    assert faster.expected["bits_per_byte"] < plain.expected["bits_per_byte"]
    assert plain.config.runtime.compile is False


def test_a_smaller_batch_keeps_to_what_fits_into_memory():
    """A batch is cut where there would be few steps; its micro-batches stay as small as memory wants them."""
    sizes = {"emb_dim": 64, "n_heads": 2, "n_layers": 2, "context_length": 64, "vocab_size": 512}
    config = parse({"model": sizes, "train": {"batch_size": 32, "micro_batch_size": 8}})

    def in_proportion(smaller):
        return smaller.train.batch_size / 32

    for steps, batch, micro in ((90, 28, 7), (75, 24, 8), (20, 6, None)):
        best = climb.Candidate("", config, 1.0, steps * 32 * 64, 1.0)
        cut = planner.with_steps_enough(best, TEXT, 1000.0, in_proportion).config.train
        assert (cut.batch_size, cut.micro_batch_size) == (batch, micro)


@pytest.mark.parametrize(("update", "rows"), [(0.0, 1), (0.1, 8), (0.4, 16), (0.9, 32)])
def test_a_batch_is_not_cut_where_most_of_a_step_is_the_update(update, rows):
    sizes = {"emb_dim": 64, "n_heads": 2, "n_layers": 2, "context_length": 64, "vocab_size": 512}
    best = climb.Candidate("", parse({"model": sizes, "train": {"batch_size": 32}}), 1.0, 3 * 32 * 64, 1.0)
    taken = []

    def measure(smaller):
        taken.append(update + (1 - update) * smaller.train.batch_size / 32)
        return taken[-1]

    cut = planner.with_steps_enough(best, TEXT, 3 / (1 - climb.OVERHEAD), measure)
    assert cut.config.train.batch_size == rows
    assert len(taken) == 1
    of_a_short_text = planner.with_steps_enough(best, TEXT, 1000.0, measure)
    assert of_a_short_text.config.train.batch_size == 1, "it is as many tokens in any case"
    assert rows == 32 or cut.step_seconds == pytest.approx(update + (1 - update) * rows / 32), "not what was hoped for"


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        ({"model": {"family": "gpt2"}}, "model.family = gpt2"),
        ({"optimizer": {"name": "adamw"}, "schedule": {"name": "cosine"}}, "adamw and schedule.name = cosine"),
        ({"model": {"context_length": 64}}, "windows of fewer than 128 tokens"),
    ],
)
def test_what_the_law_knows_nothing_of_is_not_predicted(fake_speed, raw, what):
    for seconds in (120, None):
        choice = chosen(seconds, raw | ({} if seconds else {"budget": {"steps": 10}}))
        assert "bits_per_byte" not in choice.expected
        assert choice.expected["tokens"] > 0
        (said,) = [reason for reason in choice.reasons if reason.startswith("Nothing is predicted")]
        assert what in said
        assert not any("bits per byte" in reason for reason in choice.reasons)
    assert any("fewer than 300,000 tokens" in reason for reason in chosen(1).reasons)
    assert "bits_per_byte" in chosen(1, text=replace(TEXT, tokens=100_000)).expected, "short texts have rows of few"


def test_a_model_with_hardly_any_steps_is_told_to_be_too_large(fake_speed):
    sizes = {"model": {"emb_dim": 1024, "n_layers": 16}}
    assert any("hardly anything is learned" in reason for reason in chosen(60, sizes).reasons)
    assert not any("hardly anything" in reason for reason in chosen(60).reasons)


def test_large_batches_are_for_long_texts(fake_speed):
    short, long = replace(TEXT, tokens=1_400_000), replace(TEXT, tokens=200_000_000)
    assert ladder.tokens_per_step(chosen(10**7, text=short).config) <= 8192
    assert ladder.tokens_per_step(chosen(10**7, text=long).config) > 8192


def test_a_step_that_takes_too_long_is_timed_once(monkeypatch):
    from lightwell.planner import step_time

    steps, now = [], [0.0]

    class Slow:
        def __init__(self, config, device, rows, length=None):
            self.tokens = rows * (length or config.model.context_length)

        def step(self):
            steps.append(self.tokens)
            now[0] += 5.0 + self.tokens
            return 5.0 + self.tokens

    monkeypatch.setattr(step_time, "Trial", Slow)
    monkeypatch.setattr(step_time.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(step_time, "TRIAL_FLOPS", 1e8)
    raw = {
        "model": {"emb_dim": 256, "n_heads": 2, "n_layers": 2, "context_length": 256, "vocab_size": 300},
        "train": {"batch_size": 4},
    }
    seconds = step_time.measure_step_seconds(parse(raw), CPU, limit=1.0)
    assert len(steps) == 2, "a part of one sequence, and half of that"
    assert steps[0] < 256
    assert seconds == pytest.approx(5.0 + 4 * 256)


def test_only_where_weights_fade_by_the_pass_a_run_may_take_twice_as_many():
    sizes = {"emb_dim": 64, "n_heads": 2, "n_layers": 2, "context_length": 64, "vocab_size": 512}
    most = climb.MOST_EPOCHS * TEXT.tokens
    for optimizer, limit in (({}, 2 * most), ({"weight_decay": 0.0}, most), ({"name": "adamw"}, most)):
        config = parse({"model": sizes, "train": {"batch_size": 8}, "optimizer": optimizer})
        assert planner.last_token(climb.Candidate("", config, 1.0, 10**6, 1.0), TEXT) == limit


def test_heads_of_keys_that_are_fixed_leave_the_ladder_whole():
    assert ladder.heads_of(64, n_kv_heads=4) == ladder.heads_of(640, n_kv_heads=4) == 4
    assert ladder.heads_of(1024, n_kv_heads=3) == 3, "none fits: the config says so"
    rungs = ladder.rungs_for(parse({"model": {"n_kv_heads": 4}}), 1024)
    assert len(rungs) == len(ladder.LADDER)


def test_several_processes_share_a_cpus_memory(monkeypatch):
    sizes = {"emb_dim": 256, "n_heads": 4, "n_layers": 4, "context_length": 256, "tie_embeddings": False}
    config = parse({"model": sizes | {"vocab_size": 1024}, "train": {"batch_size": 48}})
    each = fit.step_memory(fit.share_of(config, 4), 12, CPU)["total"]
    room = int(4 * each / fit.MEMORY_SHARE) + 4
    assert fit.split_to_fit(config, room, CPU, 4) == config, "twelve sequences in each"
    assert fit.split_to_fit(config, room // 2, CPU, 4).train.micro_batch_size < 12
    thirds = changed(config, train={"batch_size": 24, "micro_batch_size": 8})
    assert fit.share_of(thirds, 2).train.micro_batch_size == 6, "the largest part of 12 that is no larger than 8"
    monkeypatch.setattr(fit, "free_bytes", lambda: 4 * each)
    fit.require_memory(config, CPU, 4)
    monkeypatch.setattr(fit, "free_bytes", lambda: 4 * each - 1)
    with pytest.raises(UserError, match="fits into"):
        fit.require_memory(config, CPU, 4)
