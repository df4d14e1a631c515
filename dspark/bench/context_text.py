"""Text that fills a context: a made-up market's ledger, of any length, the same in every run."""

import random
from collections.abc import Iterator

NAMES = ("Anna", "Boris", "Chidi", "Dana", "Emil", "Farah", "Goran", "Hana", "Ivo", "Jun")
GOODS = ("apples", "candles", "bricks", "lamps", "carpets", "kettles", "maps", "ropes", "seeds")
TOWNS = ("Lisbon", "Tartu", "Accra", "Quito", "Osaka", "Bergen", "Tunis", "Perth", "Lyon")
NOTES = (
    "It rained until noon.",
    "The scale was broken.",
    "A neighbour paid the rest.",
    "Nobody asked for a receipt.",
    "The cart came late.",
)


def ledger_lines() -> Iterator[str]:
    dice = random.Random(0)
    day = 0
    while True:
        day += 1
        seller, buyer = dice.sample(NAMES, 2)
        yield (
            f"Day {day}: {seller} sold {dice.randint(2, 97)} {dice.choice(GOODS)} to {buyer} in "
            f"{dice.choice(TOWNS)} for {dice.randint(3, 890)} coins. {dice.choice(NOTES)}"
        )
