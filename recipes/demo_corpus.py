"""Prompts for the demo heads: many, different, reproducible, and none near a prompt that is measured.

python recipes/demo_corpus.py PROMPTS.jsonl --questions GSM8K_TRAIN.jsonl [--instructions FILE ...]
    [--keep-away FILE ...] [--answers ANSWERS.jsonl --tokens 10000000]

Needs `pip install reasoning-gym==0.1.25` (Apache-2.0). The questions of grade-school-math (MIT) come
as they are and with other numbers; functions of Python's standard library (PSF licence) as stubs to
be completed; requests from our own templates; tasks of reasoning-gym; demo_prompts.jsonl, which the
target wrote. --keep-away files are those that are measured: a prompt that shares eight words in a row
with one of them is left out, and so are reasoning-gym's tasks that were made from GSM8K's test.

With --answers the demo's target answers them, half greedily, half at temperature 1, until --tokens are
written. Stopped at any moment, the same command goes on.
"""

import argparse
import ast
import json
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

SEED = 20261128
SHARED_WORDS = 8  # in a row, with a measured prompt
NUMBER = re.compile(r"(?<![\w.,$%])(\d{1,3})(?![\w.,%])")
VARIANTS = 3  # of a question, with other numbers
TASKS_OF_EACH = 250
# what can be asked in a few lines; not gsm_symbolic, whose templates are questions of GSM8K's test
TASKS = """
aiw base_conversion basic_arithmetic bitwise_arithmetic caesar_cipher calendar_arithmetic chain_sum coin_flip
complex_arithmetic count_bits count_primes countdown decimal_chain_sum dice family_relationships
fraction_simplification gcd group_anagrams intermediate_integration knights_knaves lcm leg_counting
letter_counting number_filtering number_format number_sequence number_sorting palindrome_generation
polynomial_equations polynomial_multiplication power_function prime_factorization products
propositional_logic ransom_note sentence_reordering simple_equations simple_geometry simple_integration
spell_backward syllogism time_intervals word_ladder word_sequence_reversal word_sorting
""".split()
TOPICS = """
photosynthesis|black holes|the water cycle|inflation|compound interest|vaccines|the French Revolution|jazz|
plate tectonics|recycling|public libraries|learning a language|electric cars|bread baking|chess openings|
climate change|the Roman Empire|time management|a job interview|remote work|machine learning|databases|
unit testing|version control|recursion|sorting algorithms|hash tables|the internet|encryption|passwords|
healthy sleep|running a marathon|strength training|vegetarian cooking|houseplants|gardening in spring|
bicycle repair|budgeting|saving for retirement|renting a flat|moving house|travelling by train|camping|
photography|watercolour painting|playing the piano|writing poetry|science fiction|fairy tales|detective novels|
the human heart|the immune system|dinosaurs|whales|honey bees|rainforests|deserts|volcanoes|earthquakes|
solar energy|nuclear power|gravity|light|sound|magnets|atoms|the periodic table|acids and bases|fractions|
probability|statistics|geometry|algebra|democracy|human rights|supply and demand|small businesses|marketing|
customer service|teamwork|leadership|conflict at work|public speaking|note taking|studying for exams|
homework|kindergarten|grandparents|pets|dog training|cats|birds in winter|autumn|snow|the sea|mountains|rivers|
city parks|bridges|skyscrapers|medieval castles|ancient Egypt|the Renaissance|the Industrial Revolution|
space travel|Mars|the Moon landing|weather forecasts|maps|museums|theatre|film music|video games|board games|
football|tennis|swimming|yoga|meditation|coffee|tea|chocolate|cheese|spices|street food|breakfast|picnics
""".replace("\n", "").split("|")
REQUESTS = """
Explain {a} to a ten-year-old.|What is the difference between {a} and {b}?|Write a short story about {a}.|
Write a poem about {a}.|Give me five tips about {a}.|List the advantages and disadvantages of {a}.|
Summarize what one should know about {a} in three sentences.|Write an email to a friend about {a}.|
Write an outline of a talk about {a}.|What are common mistakes with {a}?|How does {a} affect everyday life?|
Write a dialogue between two people who disagree about {a}.|Make a table that compares {a} and {b}.|
Why is {a} important?|Write three quiz questions about {a}, with answers.|Describe {a} without using the word.|
What is the history of {a}?|Suggest a weekend plan that has to do with {a} and {b}.|
Write a product description that mentions {a}.|What questions should I ask an expert on {a}?|
Explain {a} step by step.|Write a blog post about {a} for beginners.|Rewrite this politely: {a} bores me.|
Act as a teacher and ask me about {a}.|How are {a} and {b} connected?|Write a haiku about {a}.|
Give me a week's plan to learn about {a}.|What would the world be like without {a}?|
Write a speech of one minute about {a}.|Name ten words that have to do with {a}.|
Write a letter to the editor about {a}.|Invent a slogan about {a}.|Classify these: {a}, {b}, {c}.
""".replace("\n", "").split("|")
STUB = "Complete the following Python function.\n\n```python\n{stub}\n```"
LONGEST = 1200  # characters of a prompt


def lines(path: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_text("utf-8").strip().split("\n")]


def with_other_numbers(question: str, draw: random.Random) -> str:
    """Each whole number below a thousand becomes another of about its size."""

    def other(match: re.Match[str]) -> str:
        value = int(match[1])
        return str(draw.randint(max(2, value // 2), max(4, 2 * value)))

    return NUMBER.sub(other, question)


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
        a, b, c = draw.sample(TOPICS, 3)
        yield draw.choice(REQUESTS).format(a=a, b=b, c=c)


def tasks() -> Iterator[str]:
    import reasoning_gym

    for name in TASKS:
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
    """Half of the prompts greedily, the others at temperature 1, in an order that mixes sources."""
    import dspark
    from dspark.config import EngineConfig
    from dspark.graft.data.answer_file import AnswerFile, prompt_digest
    from dspark.graft.data.write_answers import AnswerSettings, write_answers

    file = AnswerFile(path)
    known = file.read()
    written, answered = sum(len(a.answer_ids) for a in known), {a.prompt for a in known}
    missing = sorted((p for p in listed if p not in answered), key=prompt_digest)
    session = dspark.load("demo", draft="none", engine=EngineConfig(max_requests=32))
    while missing and written < tokens:
        some, missing = missing[:1024], missing[1024:]
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
        text = "".join(json.dumps({"prompt": p}, ensure_ascii=False) + "\n" for p in made)
        arguments.prompts.write_text(text, "utf-8")
    listed = lines(arguments.prompts)
    print(f"{len(listed):,} prompts")
    if arguments.answers:
        answer(listed, arguments.answers, arguments.tokens)


if __name__ == "__main__":
    main()
