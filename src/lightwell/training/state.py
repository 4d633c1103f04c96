"""All that changes while training, beside the weights and the optimizer's moments: it fits in a page of JSON.

A decision is something a run chose on its way (how many steps, which data to pass over). The list only grows; it is
saved with each checkpoint and obeyed on resume, so that step n is a function of (config, seed, n, decisions).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

Decision = dict[str, Any]  # {"step": when it was taken, "kind": what it is about, ...}


@dataclass
class TrainState:
    """`step`: finished steps. `tokens`: tokens trained on. `seconds`: spent training, over all sittings."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    decisions: list[Decision] = field(default_factory=list)
    bad_steps: int = 0  # bad steps in a row, up to now
    recent_losses: list[float] = field(default_factory=list)  # for telling a spike from the usual
    owed: list[str] = field(default_factory=list)  # what was due at this step and not done when it was saved
    best_loss: float | None = None  # of held-out evaluations so far
    best_step: int | None = None
    evaluations_since_best: int = 0

    def decide(self, kind: str, **details: Any) -> Decision:
        """Take a decision now."""
        decision = {"step": self.step, "kind": kind, **details}
        self.decisions.append(decision)
        return decision

    def decided(self, *kinds: str) -> Decision | None:
        """The last decision of these kinds."""
        return next((decision for decision in reversed(self.decisions) if decision["kind"] in kinds), None)

    @property
    def data_step(self) -> int:
        """Which batch the next step takes: the step's own number, past every window of data that was skipped."""
        return self.step + sum(d["batches"] for d in self.decisions if d["kind"] == "skip" and d["at"] <= self.step)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def become(self, raw: dict[str, Any]) -> None:
        """Take over what `to_json` gave, from this version or an older one."""
        for key, value in asdict(TrainState(**raw)).items():
            setattr(self, key, value)
