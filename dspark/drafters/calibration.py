"""Sequential temperature scaling: c_k = sigmoid(z_k / T_k), one temperature for each slot.

c_k still depends on the tokens before x_k only, so that schedules stay lossless.
"""

import torch

LARGEST_LOGIT = 15.0  # a probability in float32 tells logits apart up to about here


def scaled_confidence(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits of one slot [...] -> probabilities [...]."""
    return (logits / temperature).sigmoid()


def confidence_logits(confidences: torch.Tensor, temperatures: tuple[float, ...]) -> torch.Tensor:
    """What the head said [N, K], from the confidences [N, K] that its temperatures made of it."""
    logits = confidences.double().logit().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    return logits * torch.tensor(temperatures, dtype=torch.float64)
