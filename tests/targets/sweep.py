"""What becomes of a class of transformers here: equal, refused in one line, or not to be built."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from dspark.drafters.lookup import LookupDrafter
from dspark.errors import DSparkError
from dspark.targets.load import load_target
from tests.targets.reference import KnownText, decoded
from tests.targets.tiny_configs import tiny_config

PLACE = {"device": torch.device("cpu"), "dtype": torch.float32}
PROMPT = [*range(3, 14), *range(3, 14), 50, 60]  # repeats itself, for the lookup
COUNT = 14
LARGEST = 6_000_000  # weights; what stays larger has sizes that were not made small
SPREADS = (0.8, 0.4, 0.2, 0.1)  # what one family needs makes another explode
MANY = 5  # different tokens in a text that shows enough
DOUBT = 1e-3  # standard deviations; logits nearer than that are the same


class UnbuildableError(Exception):
    """transformers itself cannot make it tiny, or write with it."""


def outcome(model_type: str, folder: Path) -> tuple[str, str]:
    """(equal, refused, unbuildable or wrong) and why."""
    try:
        wanted = _written(_build(model_type), folder)
    except UnbuildableError as error:
        return "unbuildable", str(error)
    try:
        wrong = [way for way, found in _ways(folder, wanted) if found != wanted]
    except DSparkError as error:
        assert "\n" not in error.message, error.message
        return "refused", error.message
    return ("wrong", ", ".join(wrong)) if wrong else ("equal", "")


def _ways(folder: Path, wanted: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    target = load_target(folder, tap_layers=(), **PLACE)
    known = KnownText([*PROMPT, *wanted])
    for way, drafter, chunk in (
        ("plain", None, 512),
        ("chunks", None, 8),
        ("lookup", LookupDrafter(), 512),
        ("drafts", known, 8),
    ):
        found, accepted = decoded(target, PROMPT, COUNT, drafter, chunk)
        assert drafter is not known or found != wanted or accepted >= COUNT // 3
        yield way, found


def _build(model_type: str) -> Any:
    try:
        config = tiny_config(model_type)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        size = sum(parameter.numel() for parameter in model.parameters())
        if size > LARGEST:
            raise UnbuildableError(f"it still has {size:,} weights")
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    except UnbuildableError:
        raise
    except Exception as error:
        raise UnbuildableError(_line(error)) from error


def _written(model: Any, folder: Path) -> tuple[int, ...]:
    """Saves the model with weights whose text is beyond doubt, and tells the text."""
    try:
        best = (False, 1, 0.0)  # a token over and over would show nothing
        for spread in SPREADS:
            _spread(model, spread)
            found, margin, is_calm = _generated(model)
            if margin > DOUBT:
                best = max(best, (is_calm, len(set(found)), spread))
            if best[0] and best[1] >= MANY:
                break
        _spread(model, best[2])
        model.save_pretrained(folder)
        found = _generated(model)[0]
    except Exception as error:
        raise UnbuildableError(_line(error)) from error
    if best[1] == 1:
        raise UnbuildableError("with no weights that were tried is its text beyond doubt")
    return found


def _spread(model: Any, spread: float) -> None:
    """Tables less: a tied one would write its own input over and over."""
    torch.manual_seed(0)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, spread / 3 if id(parameter) in tables else spread)


def _generated(model: Any) -> tuple[tuple[int, ...], float, bool]:
    """Greedy tokens, by how much the nearest other one failed, and whether rounding is far below.

    What rounding does is seen by one pass over the whole: in a deep model it may grow to anything.
    """
    ids = torch.tensor([PROMPT])
    model.generation_config = GenerationConfig()  # some families force a last token
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=COUNT,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        whole = model(input_ids=out.sequences[:, :-1], use_cache=False).logits[0, -COUNT:]
    logits = torch.cat(out.logits)
    first, second = logits.topk(2).values.T
    margin = ((first - second) / logits.std(dim=-1)).min()
    unrest = ((whole - logits).abs().amax(dim=-1) / logits.std(dim=-1)).max()
    found = tuple(out.sequences[0, len(PROMPT) :].tolist())
    return found, float(margin), bool(margin > 10 * unrest)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
