"""The settings of a chat that are changed while it goes on: by name, shown, and stored with it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from dspark.chat.backend import BackendInfo, ChatSettings
from dspark.config import Effort, SamplingConfig, Schedule, ScheduleConfig
from dspark.errors import InputError

DEFAULT = "default"
# Names that ollama's users know.
OTHER_NAMES = {"num_predict": "max_tokens", "temp": "temperature"}


@dataclass(frozen=True, slots=True)
class Setting:
    """`read` raises ValueError for a text that is no value of it."""

    values: str
    read: Callable[[str], Any]


def _number(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        number = float(text)
        if not least <= number <= most:
            raise ValueError
        return number

    return read


def _top_p(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise ValueError
    return float(text)


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise ValueError
        return number

    return read


def _schedule(text: str) -> ScheduleConfig:
    """A mode, or for `threshold` the least confidence of a draft that is verified."""
    modes = {mode: mode for mode in get_args(Schedule) if mode != "threshold"}
    if text in modes:
        return ScheduleConfig(mode=modes[text])
    return ScheduleConfig(mode="threshold", threshold=_number(0, 1)(text))


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError
    return text == "on"


def _effort(text: str) -> Effort:
    levels: Mapping[str, Effort] = {level: level for level in get_args(Effort)}
    if text not in levels:
        raise ValueError
    return levels[text]


SETTINGS: Mapping[str, Setting] = {
    "system": Setting("TEXT", str),
    "temperature": Setting("0 to 2, 0 is greedy", _number(0, 2)),
    "top_p": Setting("above 0, up to 1", _top_p),
    "top_k": Setting("a number, 0 is all", _whole(0, 2**31 - 1)),
    "seed": Setting("a number", _whole(0, 2**63 - 1)),
    "max_tokens": Setting("a number", _whole(1, 2**31 - 1)),
    "schedule": Setting("auto, async, full, or a confidence from 0 to 1", _schedule),
    "probabilities": Setting("on or off", _switch),
    "effort": Setting("low, medium, high or max, as far as the model has them", _effort),
}


def setting_name(name: str) -> str:
    """Raises InputError for an unknown one."""
    known = OTHER_NAMES.get(name, name).replace("-", "_").lower()
    if known not in SETTINGS:
        raise InputError(f"there is no setting {name[:20]}", f"There are {', '.join(SETTINGS)}.")
    return known


def changed(settings: ChatSettings, name: str, text: str) -> ChatSettings:
    """With one setting changed; "default" leaves it to the model. Raises InputError."""
    name = setting_name(name)
    value = None
    if text != DEFAULT:
        try:
            value = SETTINGS[name].read(text)
        except ValueError:
            raise InputError(
                f"{text[:20]!r} is not a value of {name}", f"It takes {SETTINGS[name].values}."
            ) from None
    if name == "system":
        return replace(settings, system=value or "")
    if name == "max_tokens":
        return replace(settings, stop=replace(settings.stop, max_tokens=value))
    if name == "schedule":
        return replace(settings, schedule=value or ScheduleConfig())
    if name == "probabilities":
        return replace(settings, probabilities=bool(value))
    if name == "effort":
        return replace(settings, effort=value)
    return replace(settings, sampling=replace(settings.sampling, **{name: value}))


def set_by_words(settings: ChatSettings, words: str) -> ChatSettings:
    """As `changed`, from "NAME VALUE" or ollama's "parameter NAME VALUE"."""
    name, _, value = words.removeprefix("parameter ").strip().partition(" ")
    value = value.strip().strip('"')
    if not name or not value:
        raise InputError(f"/set takes one of {', '.join(SETTINGS)}, and a value", "See /show.")
    return changed(settings, name, value)


def shown(settings: ChatSettings, info: BackendInfo | None) -> list[tuple[str, str]]:
    """Each setting and its value; `info` gives the model's own."""
    own = (info.sampling if info else None) or SamplingConfig()
    drawn = asdict(settings.sampling.over(own))
    lines = [("system", settings.system or "none")]
    for name in ("temperature", "top_p", "top_k", "seed"):
        is_chosen = getattr(settings.sampling, name) is not None
        value = "none" if drawn[name] is None else f"{drawn[name]:g}"
        lines.append((name, value if is_chosen else f"{value} (the model's own)"))
    lines[4] = ("seed", lines[4][1].removesuffix(" (the model's own)"))
    limit = settings.stop.max_tokens
    lines.append(("max_tokens", "no limit" if limit is None else f"{limit}"))
    lines.append(("schedule", _schedule_words(settings.schedule)))
    told = "told for each draft" if settings.probabilities else "not told"
    lines.append(("probabilities", told))
    lines.append(("effort", settings.effort or "the model's own"))
    return lines


def _schedule_words(schedule: ScheduleConfig | None) -> str:
    schedule = schedule or ScheduleConfig()
    if schedule.mode != "threshold":
        return schedule.mode
    return f"drafts with a confidence of at least {schedule.threshold:g}"


def as_json(settings: ChatSettings) -> str:
    """What is stored with a chat."""
    return json.dumps(
        {
            "system": settings.system,
            **asdict(settings.sampling),
            "max_tokens": settings.stop.max_tokens,
        }
    )


def from_json(text: str, given: ChatSettings) -> ChatSettings:
    """The stored settings where the command line has not given others."""
    try:
        stored = dict(json.loads(text))
    except (ValueError, TypeError):
        stored = {}
    settings = given
    for name in ("system", "temperature", "top_p", "top_k", "seed", "max_tokens"):
        if stored.get(name) in (None, "") or _is_given(given, name):
            continue
        try:
            settings = changed(settings, name, str(stored[name]))
        except InputError:
            continue  # written by a version that knew other values
    return settings


def _is_given(given: ChatSettings, name: str) -> bool:
    if name == "system":
        return bool(given.system)
    if name == "max_tokens":
        return given.stop.max_tokens is not None
    return getattr(given.sampling, name) is not None
