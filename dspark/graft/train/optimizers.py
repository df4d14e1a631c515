"""The optimizer of a head: AdamW, or Muon for its matrices and AdamW for all else."""

from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from dspark.config import GraftConfig
from dspark.models.head_module import HeadModule

Groups = list[dict[str, Any]]


class MuonAndAdamW:
    """Two optimizers that step together. Muon's updates have the size of AdamW's, so that both
    take one learning rate."""

    def __init__(self, matrices: Groups, others: Groups, config: GraftConfig) -> None:
        self._muon = torch.optim.Muon(
            matrices,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw = _adamw(others, config)

    @property
    def param_groups(self) -> Groups:
        return [*self._muon.param_groups, *self._adamw.param_groups]

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        for optimizer in (self._muon, self._adamw):
            optimizer.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        both: tuple[Optimizer, Optimizer] = (self._muon, self._adamw)
        for optimizer in both:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])


def make_optimizer(head: HeadModule, config: GraftConfig) -> Optimizer | MuonAndAdamW:
    """Groups carry `share`, their part of the learning rate. Tables with a row per token are apart:
    they memorise rare examples, and a row is no matrix to Muon."""
    tables = {"params": head.tables, "share": config.markov_learning_share}
    others = [p for p in head.parameters() if all(p is not table for table in head.tables)]
    if config.optimizer == "adamw":
        return _adamw([{"params": others, "share": 1.0}, tables], config)
    matrices = [p for p in others if p.dim() == 2 and min(p.shape) > 1]
    vectors = [p for p in others if all(p is not matrix for matrix in matrices)]
    groups = [{"params": vectors, "share": 1.0}, tables]
    return MuonAndAdamW([{"params": matrices, "share": 1.0}], groups, config)


def _adamw(groups: Groups, config: GraftConfig) -> AdamW:
    return AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )
