"""Prompts for the demo heads: many, different, reproducible, none near one that is measured.

python recipes/demo_corpus.py PROMPTS.jsonl --questions GSM8K_TRAIN.jsonl
    [--instructions FILE ...] [--keep-away FILE ...] [--answers ANSWERS.jsonl --tokens 10000000]

Needs `pip install reasoning-gym==0.1.25` (Apache-2.0). The questions of grade-school-math (MIT)
come as they are and with other numbers; functions of Python's standard library (PSF licence) as
stubs to be completed; requests from the templates in demo_corpus.json; tasks of reasoning-gym
that can be put in a few lines; demo_prompts.jsonl, which the target wrote. --keep-away files are
those that are measured: a prompt that shares eight words in a row with one of them is left out.
gsm_symbolic is no task here: its templates are questions of GSM8K's test.

With --answers the demo's target answers them, half greedily, half at temperature 1, until --tokens
are written. Stopped at any moment, the same command goes on. The last 800 by digest are not
answered but written to PROMPTS.spared.jsonl, for calibrate_head.py. (Some of them are also among
the prompts of the demo head's first stage, and of some a variant with other numbers is answered.)
"""

import argparse
import ast
import json
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

from dspark.graft.data.answer_file import prompt_digest

SEED = 20261128
SHARED_WORDS = 8  # in a row
NUMBER = re.compile(r"(?<![\w.,$%])(\d{1,3})(?![\w.,%])")
VARIANTS = 3  # of a question, with other numbers
TASKS_OF_EACH = 250
WORDS = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
STUB = "Complete the following Python function.\n\n```python\n{stub}\n```"
LONGEST = 1200  # characters of a prompt
SPARED = 800  # prompts for the calibration


def lines(path: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_text("utf-8").strip().split("\n")]


def with_other_numbers(question: str, draw: random.Random) -> str:
    """Each whole number below a thousand becomes another of about its size."""

    def other(match: re.Match[str]) -> str:
        value = int(match[1])
        return str(draw.randint(max(2, value // 2), max(4, 2 * value)))

    return NUMBER.sub(other, question)


def write(path: Path, prompts: Iterable[str]) -> None:
    text = "".join(json.dumps({"prompt": p}, ensure_ascii=False) + "\n" for p in prompts)
    path.write_text(text, "utf-8")


def stubs() -> Iterator[str]:
    """Public functions of the standard library that say what they do, without their bodies."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"test", "tests", "idlelib", "site-packages", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (said := ast.get_docstring(node)):
                signature = f"def {node.name}({ast.unparse(node.args)}):"
                yield STUB.format(stub=f'{signature}\n    """{said}\n    """\n')


def requests(draw: random.Random, count: int) -> Iterator[str]:
    for _ in range(count):
        a, b, c = draw.sample(WORDS["topics"], 3)
        yield draw.choice(WORDS["requests"]).format(a=a, b=b, c=c)


def tasks() -> Iterator[str]:
    reasoning_gym = import_module("reasoning_gym")
    for name in WORDS["tasks"]:
        made = reasoning_gym.create_dataset(name, size=TASKS_OF_EACH, seed=SEED)
        for item in made:
            yield item["question"].strip()


def runs_of_words(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}


def prompts(
    questions: Iterable[str], others: Iterable[str], measured: Iterable[str]
) -> Iterator[str]:
    """All of them once, without those near a measured prompt."""
    draw = random.Random(SEED)
    asked = list(questions)
    changed = [with_other_numbers(q, draw) for q in asked for _ in range(VARIANTS)]
    away = set().union(*map(runs_of_words, measured))
    away -= runs_of_words(STUB)  # the instruction itself
    every = [*asked, *changed, *stubs(), *requests(draw, 12_000), *tasks(), *others]
    for prompt in dict.fromkeys(every):
        if len(prompt) <= LONGEST and not away & runs_of_words(prompt):
            yield prompt


def answer(listed: list[str], path: Path, tokens: int) -> None:
    """Half of the prompts greedily, the others at temperature 1."""
    import dspark
    from dspark.config import EngineConfig
    from dspark.graft.data.answer_file import AnswerFile
    from dspark.graft.data.write_answers import AnswerSettings, write_answers

    file = AnswerFile(path)
    known = file.read()
    written, answered = sum(len(a.answer_ids) for a in known), {a.prompt for a in known}
    if not answered <= set(listed):
        raise SystemExit(f"{path} has answers to other prompts, perhaps to spared ones")
    missing = [p for p in listed if p not in answered]
    session = dspark.load("demo", draft="none", engine=EngineConfig(max_requests=64))
    while missing and written < tokens:
        some, missing = missing[:3072], missing[3072:]
        for parity, temperature in ((0, 0.0), (1, 1.0)):
            settings = AnswerSettings(320, temperature, SEED)
            half = [p for p in some if prompt_digest(p)[-1] % 2 == parity]
            for new in file.append(write_answers(session, half, settings, 512)):
                written += len(new.answer_ids)
        print(f"{written:,} tokens, {len(missing):,} prompts left", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--instructions", type=Path, nargs="*", default=[])
    parser.add_argument("--keep-away", type=Path, nargs="*", default=[])
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    arguments = parser.parse_args()
    if not arguments.prompts.exists():
        own = Path(__file__).parent / "demo_prompts.jsonl"
        others = [p for file in (own, *arguments.instructions) for p in lines(file)]
        measured = [p for file in arguments.keep_away for p in lines(file)]
        made = prompts(lines(arguments.questions), others, measured)
        write(arguments.prompts, made)
    mixed = sorted(lines(arguments.prompts), key=prompt_digest)
    asked, spared = mixed[:-SPARED], mixed[-SPARED:]
    write(arguments.prompts.with_suffix(".spared.jsonl"), spared)
    print(f"{len(asked):,} prompts, {len(spared):,} spared")
    if arguments.answers:
        answer(asked, arguments.answers, arguments.tokens)


if __name__ == "__main__":
    main()
