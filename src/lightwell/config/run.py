"""What a run is: every section of its config, with what each key means. `None`: the planner or a rule decides.

A run's config is one TOML file with these sections. `parse` takes the merged request (preset, file, flags) and gives a
checked `RunConfig`; what a run finally used is the same class with nothing left to decide.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from lightwell.config.check import Problems, Strict, problems
from lightwell.config.gpt import GPTConfig, ModelConfig, ModernConfig, Rate, Size
from lightwell.errors import ConfigError

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Long = Annotated[int, Field(gt=0, le=10**15)]  # steps or tokens of a run
Sequences = Annotated[int, Field(gt=0, le=2**20)]
Share = Annotated[float, Field(ge=0, le=1)]
FAMILIES: dict[str, type[GPTConfig] | type[ModernConfig]] = {"gpt2": GPTConfig, "modern": ModernConfig}


class RunSection(Strict):
    name: str | None = None  # of the run; left out: from the text
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1337  # of everything random


class ModelSection(Strict):
    """Sizes of the model: those given are fixed, the planner chooses the rest. config/gpt.py says what they mean."""

    family: Literal["gpt2", "modern"] = "modern"
    vocab_size: Size | None = None
    context_length: Size | None = None
    emb_dim: Size | None = None
    n_heads: Size | None = None
    n_layers: Size | None = None
    hidden_dim: Size | None = None
    drop_rate: Rate | None = None
    tie_embeddings: bool | None = None
    qkv_bias: bool | None = None
    n_kv_heads: Size | None = None
    head_dim: Size | None = None
    rope_theta: Positive | None = None
    norm_eps: Positive | None = None

    @classmethod
    def cross_checks(cls, values: dict[str, Any]) -> Problems:
        family = FAMILIES.get(values.get("family", ""))
        if family is None:
            return []
        given = {key: value for key, value in values.items() if value is not None}
        foreign = [key for key in given if key not in family.model_fields]
        found = [(key, f'not a key of the family "{given["family"]}"') for key in foreign]
        whole = {"head_dim": None, "n_kv_heads": None} if family is ModernConfig else {}
        return found + family.cross_checks(whole | given)

    def missing(self) -> list[str]:
        """The sizes that are still to be chosen."""
        return [key for key in ("context_length", "emb_dim", "n_heads", "n_layers") if getattr(self, key) is None]

    def complete(self, vocab_size: int | None = None) -> ModelConfig:
        """The model's own config, with the tokenizer's `vocab_size`. Raises ConfigError when sizes are missing."""
        given = {key: value for key, value in self.model_dump().items() if value is not None}
        if vocab_size is not None:
            given["vocab_size"] = vocab_size
        return FAMILIES[self.family](**given)


class TokenizerSection(Strict):
    kind: Literal["bpe", "bytes", "chars", "gpt2"] = "bpe"
    path: str | None = None  # GPT-2's own files, for kind = "gpt2"

    @classmethod
    def cross_checks(cls, values: dict[str, Any]) -> Problems:
        if values.get("kind") == "gpt2" and not values.get("path"):
            return [("path", 'expected the folder with vocab.json and merges.txt for kind = "gpt2", got none')]
        return []


class DataSection(Strict):
    val: list[str] = Field(default_factory=list)  # held-out texts; empty: a part of the text is held out
    limit_bytes: Size | None = None  # read at most so much text, chosen by the seed


class OptimizerSection(Strict):
    name: Literal["muon", "adamw"] = "muon"  # muon: Muon for matrices inside the blocks, AdamW for the rest
    learning_rate: Positive | None = None  # AdamW's peak rate; left out: a rule (rates.py)
    muon_learning_rate: Positive | None = None  # Muon's peak rate; left out: a rule
    weight_decay: NonNegative | None = None  # on matrices only; left out: a rule
    beta1: Rate | None = None  # AdamW's; left out: 0.8 beside Muon, 0.9 alone
    beta2: Rate = 0.95
    eps: Positive = 1e-8
    momentum: Rate = 0.9  # Muon's


class ScheduleSection(Strict):
    name: Literal["wsd", "cosine", "constant"] = "wsd"  # wsd: warm-up, stable, decay
    warmup: Share = 0.02  # share of the steps over which the rate rises from 0
    decay: Share = 0.6  # share of the steps, at the end, over which the rate of "wsd" falls
    final: Share = 0.0  # the last rate as a share of the peak

    @classmethod
    def cross_checks(cls, values: dict[str, Any]) -> Problems:
        if values.get("name") == "wsd" and values.get("warmup", 0) + values.get("decay", 0) > 1:
            return [("decay", f"expected warmup + decay of at most 1, got {values['warmup'] + values['decay']:g}")]
        return []


class BudgetSection(Strict):
    """How long to train: one of the three. None at all: 10 minutes."""

    steps: Long | None = None
    tokens: Long | None = None
    minutes: Annotated[float, Field(gt=0, le=10**7)] | None = None
    most_tokens: Size | None = None  # end sooner than the minutes: a short text is learned by heart; left out: a rule

    @classmethod
    def cross_checks(cls, values: dict[str, Any]) -> Problems:
        given = [key for key in ("steps", "tokens", "minutes") if values.get(key) is not None]
        if len(given) > 1:
            return [(given[1], f"expected one budget, got {' and '.join(given)}")]
        return []


class TrainSection(Strict):
    batch_size: Sequences | None = None  # per step, over all processes and micro-batches
    micro_batch_size: Size | None = None  # sequences at once in one process; left out: as many as fit
    init: Literal["bigram", "random"] | None = None  # counted embeddings, copying heads; left out: where modern, untied
    clip: NonNegative = 1.0  # largest norm of the whole gradient; 0: no limit
    eval_every: Size | None = None  # steps between held-out evaluations; left out: ten over the run
    eval_tokens: Size | None = None  # tokens of each evaluation on the way; left out: 0.5% of all tokens
    sample_every: Size | None = None  # steps between samples; left out: with each evaluation
    prompts: list[str] = Field(default_factory=lambda: [""])  # what the samples begin with
    sample_tokens: Size = 80
    early_stop: bool = True  # end when the held-out loss has risen for some evaluations (small texts)

    @classmethod
    def cross_checks(cls, values: dict[str, Any]) -> Problems:
        batch, micro = values.get("batch_size"), values.get("micro_batch_size")
        if batch and micro and batch % micro:
            return [("micro_batch_size", f"expected a divisor of batch_size = {batch}, got {micro}")]
        return []


class CheckpointSection(Strict):
    every: Size | None = None  # steps; left out: about 2% of the run, from 10 s to 5 minutes, is at risk
    keep: Size = 3  # the last so many; the best and pinned ones stay besides


class GuardSection(Strict):
    """What to do when numbers go bad. A step with a non-finite loss or gradient never changes the weights."""

    patience: Size = 3  # bad steps in a row before going back to the last good checkpoint
    spikes: Literal["event", "rewind"] = "event"  # a sudden jump of the loss: note it, or go back as well
    spike_z: Positive = 6.0  # robust z-score of the loss from which a step counts as a spike
    window: Size = 64  # steps over which "usual" is measured


class RuntimeSection(Strict):
    device: str = "auto"  # auto, cpu, cuda, cuda:N, mps
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of matrix products; weights stay float32
    compile: bool | None = None  # torch.compile; left out: if a trial says that it pays
    parallel: Literal["auto", "data", "sharded"] = "auto"  # many processes: copies of the model, or shards of it
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    checkpoint_activations: bool = False  # recompute each block's activations in the backward pass: less memory


class GlassSection(Strict):
    pulse_every: Count | None = None  # steps between measurements of every layer; 0: never; left out: 50 a run
    snapshot_every: Count = 0  # steps between pages in snapshots/ that show a whole step, replayed; 0: none


class RunConfig(Strict):
    """A whole run."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    tokenizer: TokenizerSection = TokenizerSection()
    data: DataSection = DataSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    budget: BudgetSection = BudgetSection()
    train: TrainSection = TrainSection()
    checkpoint: CheckpointSection = CheckpointSection()
    guard: GuardSection = GuardSection()
    runtime: RuntimeSection = RuntimeSection()
    glass: GlassSection = GlassSection()


def parse(raw: dict[str, Any]) -> RunConfig:
    """A checked RunConfig from nested dictionaries. Raises ConfigError with every problem."""
    sections = {}
    found = problems_of_run(raw)
    if found:
        raise ConfigError(found, "`lightwell presets nano` prints a whole config that works.")
    for name, values in raw.items():
        section = RunConfig.model_fields[name].annotation
        assert section is not None
        sections[name] = section(**values)
    return RunConfig(**sections)


def problems_of_run(raw: dict[str, Any]) -> Problems:
    """Every problem of a run's raw config, as (dotted key, sentence)."""
    found = problems(RunConfig, raw)
    model, train = (part if isinstance(part := raw.get(name), dict) else {} for name in ("model", "train"))
    if train.get("init") == "bigram" and model.get("tie_embeddings") is True:
        found.append(("train.init", 'expected "random" where model.tie_embeddings is true, got "bigram"'))
    return found


def to_raw(config: RunConfig) -> dict[str, Any]:
    """Nested dictionaries for TOML: what is None (still to be decided) is left out, as are empty sections."""
    raw = {}
    for name, section in config.model_dump().items():
        given = {key: value for key, value in section.items() if value is not None}
        if given:
            raw[name] = given
    return raw


def what_decides(config: RunConfig) -> dict[str, Any]:
    """The keys, as `to_raw` has them, by which a run's numbers come out as they do: another value is another run."""
    raw = to_raw(config)
    raw["train"] = {key: value for key, value in raw["train"].items() if key not in ("prompts", "sample_tokens")}
    raw["run"] = {"seed": config.run.seed}
    return {name: section for name, section in raw.items() if name not in ("checkpoint", "runtime", "glass")}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each key of two nested dictionaries that has another value, as "section.key: before -> now"."""

    def said(config: dict[str, Any], section: str, key: str) -> str:
        value = config.get(section, {}).get(key)
        return "left out" if value is None else str(value)

    return [
        f"{section}.{key}: {said(before, section, key)} -> {said(now, section, key)}"
        for section in sorted(before.keys() | now.keys())
        for key in sorted(before.get(section, {}).keys() | now.get(section, {}).keys())
        if before.get(section, {}).get(key) != now.get(section, {}).get(key)
    ]


def changed(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """A copy with some keys of some sections replaced: `changed(config, train={"batch_size": 8})`, checked again."""
    raw = to_raw(config)
    for name, values in sections.items():
        raw[name] = {key: value for key, value in (raw.get(name, {}) | values).items() if value is not None}
    return parse(raw)
