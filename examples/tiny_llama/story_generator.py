"""Deterministic generator of small stories with long-range dependencies.

A story is a pure function of its seed. The cast (protagonist, pet, symbol, treasure, place,
counted food) is drawn first and every later sentence refers back to it, so a language model
that predicts the ending well has to remember the beginning. `facts` and `consistency` read
those references back out of any text, generated here or by a model.

    python examples/tiny_llama/story_generator.py --split heldout --count 200 --format jsonl
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

# Seeds of one split never occur in the other; `Cast.is_heldout` separates the texts as well.
SPLIT_SEEDS = {
    "train": range(1_000_000_000),
    "heldout": range(1_000_000_000, 2_000_000_000),
}
HELDOUT_MODULUS = 8


def _words(text: str) -> list[str]:
    return text.split()


GIRLS = _words(
    "Zoë Chloé Anaïs Inês Sofía Renée Maëlle Åsa Mia Lena Nora Ruby Alice Hannah Priya Yuki "
    "Amara Freya Ingrid Marta Ada Clara Daisy Elsa Fatima Grace Heidi Iris Jana Kira Leila Olga"
)
BOYS = _words(
    "José Søren Jürgen André Björn Łukasz Raúl Tomás Adam Ben Carl David Emil Finn George Hugo "
    "Ivan Jack Karim Leo Max Nico Omar Peter Ravi Sam Viktor Will Yusuf Kofi Kenji Mateo"
)
NAMES = GIRLS + BOYS

PETS = _words(
    "Biscuit Pepper Mochi Button Ziggy Pickle Noodle Waffle Truffle Maple Clover Pebble Cocoa "
    "Ginger Hazel Domino Captain Sparky Tofu Shadow Smokey Éclair Señor Brûlée"
)
SOUNDS = {  # animal -> what it did when it was excited
    "dog": "barked",
    "cat": "meowed",
    "parrot": "squawked",
    "goat": "bleated",
    "duck": "quacked",
    "pony": "neighed",
    "donkey": "brayed",
    "frog": "croaked",
    "rooster": "crowed",
    "hen": "clucked",
    "mouse": "squeaked",
    "goose": "honked",
    "wolf": "howled",
    "lion": "roared",
}
ANIMALS = list(SOUNDS)
COLOURS = _words("red blue green yellow purple orange silver golden white black pink brown")
TREASURES = _words(
    "kite scarf whistle lantern hat key drum flute umbrella ring bell ball cup book compass "
    "mitten marble feather ribbon spoon violin coin"
)
PLACES = _words(
    "market harbour forest castle library museum windmill meadow lighthouse station orchard "
    "beach theatre garden waterfall cave bakery river zoo fair"
)
EMOJI = list("🐝🌻🍄🚀🎈🐙🌙⭐⛵🦊🐢🌈🍓🎻🐳🌵🦋🍩🏰🔔🐌🌲🎁⚓")
SIGNS = _words("gate door wall fence mailbox roof")

NUMBERS = _words("one two three four five six seven eight nine")
FOODS = {  # plural -> singular
    "apples": "apple",
    "pears": "pear",
    "cookies": "cookie",
    "plums": "plum",
    "buns": "bun",
    "carrots": "carrot",
    "peaches": "peach",
    "muffins": "muffin",
    "figs": "fig",
    "pancakes": "pancake",
}
TRAITS = _words("kind curious brave shy clever cheerful patient quiet funny careful gentle merry")
RELATIVES = _words("grandmother grandfather aunt uncle cousin mother father sister brother")
STRANGERS = _words("baker sailor farmer teacher painter miller doctor gardener fisherman singer")
WEATHER = {  # adjective -> noun
    "rainy": "rain",
    "windy": "wind",
    "snowy": "snow",
    "foggy": "fog",
    "sunny": "sun",
    "stormy": "storm",
    "frosty": "frost",
}
TIMES = _words("morning afternoon day")
HOMES = (
    "on a quiet hill",
    "beside a wide lake",
    "in a tall tower",
    "above a small shop",
    "near an old bridge",
    "at the end of a long road",
    "in a little village",
    "by the sea",
)
HIDING_SPOTS = (
    "under a bench",
    "behind a barrel",
    "inside a hollow tree",
    "between the rocks",
    "on top of a wall",
    "next to a well",
    "under some leaves",
    "behind a cart",
    "in the tall grass",
    "beneath a ladder",
)
SAD = _words("sad worried upset sorry afraid")
GLAD = _words("happy proud glad calm thankful")


@dataclass(frozen=True)
class Cast:
    """What is fixed before the first sentence and must hold until the last one."""

    name: str
    pet: str
    animal: str
    colour: str
    treasure: str
    place: str
    symbol: str

    @classmethod
    def draw(cls, rng: random.Random) -> "Cast":
        lexicons = (NAMES, PETS, ANIMALS, COLOURS, TREASURES, PLACES, EMOJI)
        return cls(*(rng.choice(lexicon) for lexicon in lexicons))

    @property
    def is_heldout(self) -> bool:
        """Whether this cast is reserved for the held-out split.

        Every field is spelled out in the story, so two stories whose casts disagree here cannot
        be the same text, whatever their seeds.
        """
        checksum = (
            NAMES.index(self.name)
            + PETS.index(self.pet)
            + ANIMALS.index(self.animal)
            + COLOURS.index(self.colour)
            + TREASURES.index(self.treasure)
            + PLACES.index(self.place)
            + EMOJI.index(self.symbol)
        )
        return checksum % HELDOUT_MODULUS == 0


OPENING = (
    "{name} was a {trait} {child} who lived {home}.",
    "Once there was a {trait} {child} named {name}, and {sub} lived {home}.",
    "{home_capital} lived a {trait} {child} named {name}.",
    "Everyone knew {name}, the {trait} {child} who lived {home}.",
)
PET = (
    "{Sub} had a pet {animal} called {pet}.",
    "{Pos} best friend was a {animal} called {pet}.",
    "Every day {sub} played with {pet}, {pos} {animal}.",
)
SYMBOL = (
    "On the {sign} of the house {sub} had painted a {symbol}.",
    "There was a {symbol} on the {sign}, because {sub} loved to draw.",
    "{Pos} favourite drawing was the {symbol} on the {sign}.",
)
TREASURE = (
    "{Pos} {relative} had given {obj} {a_colour} {treasure}.",
    "{Sub} always carried {a_colour} {treasure}, a gift from {pos} {relative}.",
    "From {pos} {relative} {sub} had {a_colour} {treasure}.",
)
JOURNEY = (
    "One {weather} {time}, {name} packed {start} {foods} and walked to the {place} with {pet}.",
    "One {weather} {time}, {name} and {pet} went to the {place} with {start} {foods} in a bag.",
    (
        "It was a {weather} {time} when {name} put {start} {foods} in a bag and took {pet} to the "
        "{place}."
    ),
)
MEETING = (
    "There they met a {stranger} who was very hungry.",
    "At the {place} a hungry {stranger} was sitting alone.",
    "On the way they saw a {stranger} with nothing to eat.",
)
GIFT = (
    "{name} gave {given} of them to the {stranger}, so {left} {left_foods} {were} left.",
    "{Sub} shared {given} with the {stranger}, and {left} {left_foods} {were} left.",
    "So {name} took out {given} for the {stranger} and kept the other {left} {left_foods}.",
)
LOSS = (
    "Then {sub} saw that the {colour} {treasure} was gone.",
    "But suddenly the {colour} {treasure} was missing.",
    "When {sub} looked in {pos} pocket, the {colour} {treasure} was not there.",
)
WORRY = (
    '"Where is my {treasure}?" asked {name}, and {sub} felt {sad}.',
    "{name} felt {sad} and did not know what to do.",
    '{name} was {sad}. "We must find it," {sub} said.',
)
SEARCH = (
    "They looked everywhere in the {weather_noun}, and the {stranger} helped them.",
    "The {stranger} looked {wrong_spot}, but it was not there.",
    "First {name} looked {wrong_spot}, but found nothing.",
)
FOUND = (
    "Then {pet} the {animal} {sound} loudly, because the {colour} {treasure} was {spot}.",
    "At last the {animal} {sound}, for the {colour} {treasure} was {spot}.",
    "{pet} the {animal} ran ahead and {sound}, and there, {spot}, was the {colour} {treasure}.",
)
JOY = (
    '"Thank you, {pet}!" said {name}, and {sub} felt {glad} again.',
    "{name} hugged the {animal} and felt {glad}.",
    '"Good {animal}!" said the {stranger}, and {name} was {glad}.',
)
RETURN = (
    "In the evening they walked home from the {place} and ate the {left} {left_foods}.",
    (
        "They left the {place} when the {weather_noun} was gone, and {left} {left_foods} "
        "{were} still in the bag."
    ),
    "On the way back from the {place}, {name} and {pet} shared the {left} {left_foods}.",
)
WELCOME = (
    "When {name} saw the {symbol} on the {sign}, {sub} knew that {sub} was home.",
    "The {symbol} on the {sign} was waiting for them.",
    "{name} smiled at the {symbol} on the {sign}.",
)
TELLING = (
    "{Sub} told {pos} {relative} how the {animal} had found the {treasure}.",
    '"What a {trait} {child} you are," said {pos} {relative}.',
    "{Pos} {relative} laughed and said that the {animal} was very clever.",
)
CLOSING = (
    "That night {name} and {pet} slept well, with the {colour} {treasure} beside them.",
    "{name} put the {colour} {treasure} under {pos} pillow and said good night to {pet}.",
    "And {name} never lost the {colour} {treasure} again, for {pet} always watched over it.",
)


def story(seed: int) -> str:
    """Return the story of `seed`, one paragraph without line breaks."""
    heldout = seed in SPLIT_SEEDS["heldout"]
    if not heldout and seed not in SPLIT_SEEDS["train"]:
        raise ValueError(f"seed {seed} is in no split")
    rng = random.Random(seed)
    cast = Cast.draw(rng)
    while cast.is_heldout != heldout:
        cast = Cast.draw(rng)
    fields = _fields(cast, rng)

    backstory = [PET, SYMBOL, TREASURE]
    rng.shuffle(backstory)
    plot = [OPENING, *backstory, JOURNEY, MEETING, GIFT, LOSS, WORRY, SEARCH, FOUND, JOY]
    ending = [RETURN, WELCOME, TELLING, CLOSING]
    return " ".join(rng.choice(variants).format_map(fields) for variants in plot + ending)


def stories(split: str, count: int, start: int = 0) -> Iterator[str]:
    """Yield `count` stories of `split` ("train" or "heldout"), skipping the first `start`."""
    return map(story, islice(SPLIT_SEEDS[split], start, start + count))


def _fields(cast: Cast, rng: random.Random) -> dict[str, str]:
    girl = cast.name in GIRLS
    subject, possessive, objective = ("she", "her", "her") if girl else ("he", "his", "him")
    start = rng.randint(3, 9)
    given = rng.randint(1, min(3, start - 1))
    left = start - given
    foods = rng.choice(list(FOODS))
    weather = rng.choice(list(WEATHER))
    home = rng.choice(HOMES)
    spot, wrong_spot = rng.sample(HIDING_SPOTS, 2)
    return {
        **vars(cast),
        "a_colour": f"{'an' if cast.colour[0] in 'aeiou' else 'a'} {cast.colour}",
        "child": "girl" if girl else "boy",
        "sub": subject,
        "Sub": subject.capitalize(),
        "pos": possessive,
        "Pos": possessive.capitalize(),
        "obj": objective,
        "sound": SOUNDS[cast.animal],
        "start": NUMBERS[start - 1],
        "given": NUMBERS[given - 1],
        "left": NUMBERS[left - 1],
        "foods": foods,
        "left_foods": FOODS[foods] if left == 1 else foods,
        "were": "was" if left == 1 else "were",
        "weather": weather,
        "weather_noun": WEATHER[weather],
        "home": home,
        "home_capital": home[0].upper() + home[1:],
        "spot": spot,
        "wrong_spot": wrong_spot,
        "trait": rng.choice(TRAITS),
        "relative": rng.choice(RELATIVES),
        "stranger": rng.choice(STRANGERS),
        "sign": rng.choice(SIGNS),
        "time": rng.choice(TIMES),
        "sad": rng.choice(SAD),
        "glad": rng.choice(GLAD),
    }


def _any_of(words: list[str]) -> str:
    return r"\b(?:" + "|".join(words) + r")\b"


# The lexicons are disjoint and the templates use none of their words for anything else, so
# every match is a reference to the cast.
FACT_PATTERNS = {
    "name": re.compile(_any_of(NAMES)),
    "pet": re.compile(_any_of(PETS)),
    "animal": re.compile(_any_of(ANIMALS)),
    "colour": re.compile(_any_of(COLOURS)),
    "treasure": re.compile(_any_of(TREASURES)),
    "place": re.compile(_any_of(PLACES)),
    "symbol": re.compile("|".join(EMOJI)),
    "sign": re.compile("(?<=[Oo]n the )" + _any_of(SIGNS)),
    "relative": re.compile(_any_of(RELATIVES)),
    "stranger": re.compile(_any_of(STRANGERS)),
    "food": re.compile(_any_of([*FOODS, *FOODS.values()])),
    "number": re.compile(_any_of(NUMBERS)),
    "pronoun": re.compile(_any_of(["she", "her", "he", "his", "him"]), re.IGNORECASE),
}


def facts(text: str) -> dict[str, list[str]]:
    """Return every mention of each kind of fact, in reading order."""
    return {kind: pattern.findall(text) for kind, pattern in FACT_PATTERNS.items()}


def consistency(text: str) -> dict[str, bool]:
    """Return, for each kind of fact, whether a complete story keeps it to the end.

    Cast facts need at least two mentions, all equal. Numbers need the four mentions that the
    plot makes (packed, given, left, left again) with the right difference. Pronouns need to
    agree with the protagonist.
    """
    found = facts(text)
    found["food"] = [FOODS.get(word, word) for word in found["food"]]
    numbers = [NUMBERS.index(word) + 1 for word in found.pop("number")]
    pronouns = {word.lower() for word in found.pop("pronoun")}
    kept = {kind: len(words) >= 2 and len(set(words)) == 1 for kind, words in found.items()}

    kept["number"] = len(numbers) == 4 and numbers[0] - numbers[1] == numbers[2] == numbers[3]
    girl = bool(found["name"]) and found["name"][0] in GIRLS
    own = {"she", "her"} if girl else {"he", "his", "him"}
    kept["pronoun"] = bool(pronouns) and pronouns <= own
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description="Print stories of one split.")
    parser.add_argument("--split", choices=sorted(SPLIT_SEEDS), default="train")
    parser.add_argument("--count", type=int, default=10, help="number of stories")
    parser.add_argument("--start", type=int, default=0, help="stories of the split to skip")
    parser.add_argument("--format", choices=["txt", "jsonl"], default="txt")
    args = parser.parse_args()

    # The output is UTF-8 whatever the locale, because the stories are not ASCII.
    sys.stdout.reconfigure(encoding="utf-8")
    for text in stories(args.split, args.count, args.start):
        if args.format == "jsonl":
            print(json.dumps({"text": text}, ensure_ascii=False))
        else:
            print(text, end="\n\n")


if __name__ == "__main__":
    main()
