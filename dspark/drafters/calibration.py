"""Sequential temperature scaling (STS; DeepSeek 2026): c_k = sigmoid((z_k + shift_k) / T_k).
The shifts are our addition. c_k still depends on the tokens before x_k only, so schedules stay
lossless.

Greedy requests and those that sample accept by different rules, so each kind has its own numbers.
"""

from collections.abc import Sequence
from math import tanh

import torch

from dspark.checkpoints.head_config import Calibration, HeadConfig

LARGEST_LOGIT = 15.0  # beyond about this, float32 probabilities no longer distinguish logits


class Calibrator:
    """A head's, for batches of both kinds of requests."""

    def __init__(self, config: HeadConfig, device: torch.device) -> None:
        """`table` [2, 2, K]: shifts and temperatures, of sampled and of greedy requests."""
        kinds = (config.sampled_calibration, config.greedy_calibration)
        self._rows = [(kind.shifts, kind.temperatures) for kind in kinds]
        self.table = torch.tensor(self._rows, device=device)

    def __call__(self, logits: torch.Tensor, are_greedy: Sequence[bool]) -> torch.Tensor:
        """logits [R, K] -> probabilities [R, K]."""
        own = self.table[[int(is_greedy) for is_greedy in are_greedy]]
        return scaled_confidence(logits + own[:, 0], own[:, 1])

    def of_rows(
        self, logits: Sequence[Sequence[float]], are_greedy: Sequence[bool]
    ) -> list[list[float]]:
        """As __call__, for the few numbers of lists."""
        found = []
        for row, is_greedy in zip(logits, are_greedy, strict=True):
            numbers = zip(row, *self._rows[int(is_greedy)], strict=True)
            scaled = [(z + shift) / t for z, shift, t in numbers]
            found.append([0.5 + 0.5 * tanh(z / 2) for z in scaled])  # exp would overflow
        return found


def scaled_confidence(logits: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    """Logits [..., K] with K temperatures, or of one position [...] -> probabilities [...]."""
    return (logits / temperature).sigmoid()


def confidence_logits(confidences: torch.Tensor, calibration: Calibration) -> torch.Tensor:
    """The head's logits [N, K], from its calibrated confidences [N, K]."""
    logits = confidences.double().logit().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    temperatures, shifts = (
        torch.tensor(numbers, dtype=torch.float64)
        for numbers in (calibration.temperatures, calibration.shifts)
    )
    return logits * temperatures - shifts
