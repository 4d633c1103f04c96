"""Tied embeddings: one matrix reads tokens in and scores them at the end (Press and Wolf 2017).

The weight is one tensor under two names. In a state dict it is stored once, as `tok_emb.weight`; loading one, with
`assign=True` too, leaves it one tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SHARED, SECOND_NAME = "tok_emb.weight", "head.weight"


def tie_head(model: nn.Module) -> None:
    """Makes `model.head.weight` the very tensor `model.tok_emb.weight`, and keeps it so through state dicts."""
    _share(model)
    model.register_state_dict_post_hook(_store_once)
    model.register_load_state_dict_pre_hook(_read_once)
    model.register_load_state_dict_post_hook(lambda module, _: _share(module))


def _share(model: nn.Module) -> None:
    model.get_submodule("head").weight = model.get_parameter(SHARED)


def _store_once(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    state.pop(prefix + SECOND_NAME, None)


def _read_once(
    module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any, __: bool, ___: Any, ____: Any, errors: list[str]
) -> None:
    shared, second = state.get(prefix + SHARED), state.get(prefix + SECOND_NAME)
    if shared is None:
        return  # torch reports it as missing
    if second is not None and not torch.equal(shared, second):
        errors.append(f"expected {SECOND_NAME} equal to {SHARED} in a model with tied embeddings, got other numbers")
    state[prefix + SECOND_NAME] = shared
