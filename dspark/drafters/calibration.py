"""Sequential temperature scaling (STS; DSpark, DeepSeek 2026): c_k = sigmoid(z_k / T_k), with one
temperature per position. c_k still depends on the tokens before x_k only, so schedules stay
lossless.
"""

import torch

LARGEST_LOGIT = 15.0  # beyond about this, float32 probabilities no longer distinguish logits


def scaled_confidence(logits: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    """Logits [..., K] with K temperatures, or of one position [...] -> probabilities [...]."""
    return (logits / temperature).sigmoid()


def confidence_logits(confidences: torch.Tensor, temperatures: tuple[float, ...]) -> torch.Tensor:
    """The head's logits [N, K], from its confidences [N, K] after temperature scaling."""
    logits = confidences.double().logit().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    return logits * torch.tensor(temperatures, dtype=torch.float64)
