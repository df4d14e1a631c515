"""Identity of the demo pair through the engine, if the pair is in the store."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from gpu_parts.setting import Record, Setting, attempt, summed

DEMO_TOKENS = 512


def demo_pair(setting: Setting) -> Iterator[Record]:
    """The engine itself, on the pair that comes with the project."""
    facts: Record = {"pair": "demo"}
    sessions: list[Any] = []
    failed = attempt(facts, lambda: open_demo(sessions))
    if not sessions:
        yield failed
        return
    from dspark.bench.prompts import own_prompts

    session = sessions[0]
    prompts = [
        session.encode_chat([{"role": "user", "content": prompt.text}]) for prompt in own_prompts()
    ]
    records = []
    for record in engine_arms(session, prompts, setting.deadline):
        records.append(record)
        yield facts | record
    yield facts | summed(records)


def open_demo(sessions: list[Any]) -> Record:
    from dspark.config import RuntimeConfig
    from dspark.engine.session import open_session
    from dspark.hub import locate
    from dspark.progress import follow

    files = locate("demo")
    if files is None or files.draft is None:
        return {"skipped": "the demo pair is not in the store (dspark pull demo)"}
    session = follow(open_session(files, RuntimeConfig(device="cuda", dtype="bfloat16")))
    sessions.append(session)
    return {}


def engine_arms(session: Any, prompts: list[list[int]], deadline: float) -> Iterator[Record]:
    """Plain decoding of all prompts, eight at a time; the other ways are held against it."""
    from dspark.config import ScheduleConfig

    texts: dict[int, tuple[int, ...]] = {}
    fixed = session.with_schedule(ScheduleConfig("full"))
    end = time.time() + 0.3 * (deadline - time.time())

    def write() -> Record:
        texts.update(answers_of(session, prompts, range(len(prompts)), 8, end, plain=True))
        written = sum(len(text) for text in texts.values())
        return {"arm": "plain", "requests": 8, "written": written}

    yield attempt({}, write)
    arms = [
        ("scheduler", 8), ("fixed blocks", 8), ("plain", 1), ("scheduler", 1), ("fixed blocks", 1)
    ]  # fmt: skip
    for index, (name, count) in enumerate(arms):
        until = time.time() + max(deadline - time.time(), 0.0) / (len(arms) - index)

        def held_against(name: str = name, count: int = count, until: float = until) -> Record:
            arm = fixed if name == "fixed blocks" else session
            found = answers_of(arm, prompts, sorted(texts), count, until, plain=name == "plain")
            differing = sum(
                sum(a != b for a, b in zip(found[i], texts[i], strict=False))
                + abs(len(found[i]) - len(texts[i]))
                for i in found
            )
            tokens = sum(len(text) for text in found.values())
            return {
                "tokens": tokens,
                "differing_tokens": differing,
                "ok": tokens > 0 and differing == 0,
            }

        yield attempt({"arm": name, "requests": count}, held_against)


def answers_of(
    session: Any,
    prompts: list[list[int]],
    indices: Sequence[int],
    num_requests: int,
    until: float,
    *,
    plain: bool,
) -> dict[int, tuple[int, ...]]:
    """Greedy answers to prompts, `num_requests` at a time, of those begun before `until`."""
    from dspark.config import SamplingConfig, StopConfig
    from dspark.engine.request import Request
    from dspark.events import Failed, Finished

    stop, answers = StopConfig(max_tokens=DEMO_TOKENS), {}
    for first in range(0, len(indices), num_requests):
        group = indices[first : first + num_requests]
        ids = {
            session.engine.submit(Request(tuple(prompts[i]), SamplingConfig(), stop, plain)): i
            for i in group
        }
        while session.engine.num_requests:
            for event in session.engine.step():
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Finished):
                    answers[ids[event.request_id]] = event.token_ids
        if time.time() > until:
            break
    session.close()  # its pages are another arm's
    return answers
