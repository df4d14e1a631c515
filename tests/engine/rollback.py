"""What promise 3 asks of a target, whatever its cache."""

import torch

from dspark.targets.base import Target


def check_rollback(target: Target) -> None:
    """Refuse different numbers of rows round after round, and compare with a fresh prefill."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 60, (90,), generator=generator)
    slot, position = target.open(), 21
    with torch.inference_mode():
        target.prefill(slot, ids[:position])
        for round_index, kept in enumerate([1, 4, 2, 5, 1, 3, 5, 1]):
            wrong = torch.randint(0, 60, (5 - kept,), generator=generator)
            block = torch.cat([ids[position : position + kept], wrong])
            verified = target.verify([slot], [block])
            target.commit([slot], [kept])
            position += kept
            assert target.length(slot) == position
            fresh = target.prefill(target.open(), ids[:position])
            label = f"round {round_index}"
            kept_logits = verified.logits[kept - 1 : kept]
            torch.testing.assert_close(kept_logits, fresh.logits, atol=2e-4, rtol=2e-4, msg=label)
            torch.testing.assert_close(
                verified.taps[:kept], fresh.taps[-kept:], atol=2e-4, rtol=2e-4, msg=label
            )
