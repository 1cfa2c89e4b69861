"""English for the emoji's labels: which take "a", "an" or nothing, and what two of them are called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_PLAIN = str.maketrans("’‘“”", "''\"\"")

# "flag: Japan" is how a list is sorted, not how people speak.
_COLONS = (
    (re.compile(r"flag: (.*)"), r"flag of \1"),
    (re.compile(r"keycap: (.*)"), r"keycap \1"),
    (re.compile(r"family: (.*)"), r"family of \1"),
    (re.compile(r"(kiss|couple with heart): (.*), (.*)"), r"\1, \2 and \3"),
    (re.compile(r"(man|woman|person): bald"), r"bald \1"),
    (re.compile(r"(man|woman|person): beard"), r"\1 with a beard"),
    (re.compile(r"(man|woman|person): (.* hair)"), r"\1 with \2"),
    (re.compile(r"(.*): facing right"), r"\1 facing right"),
)
# What follows the noun that takes the plural: "pot of food".
_TAIL = re.compile(
    r" (?:with|without|of|in|on|at|over|under|behind|showing|facing|tilted|pointed|fluttering|holding|savoring|vomiting"
    r"|screaming|exhaling|blowing|curving|done|not done)\b.*"
)
_CLOCK = re.compile(r".*(o'clock|-thirty)")
_THING_GROUPS = frozenset({"animals-nature", "food-drink", "travel-places", "activities", "objects", "smileys-emotion"})
_PEOPLE_SUBGROUPS = frozenset({"person", "person-role", "person-fantasy"})
_SHAPE_SUBGROUPS = frozenset({"geometric"})

_NAMES = frozenset({"zodiac", "math", "warning"})  # subgroups whose labels are names, not things
_NO_ARTICLE = frozenset({
    "bread", "baguette bread", "bacon", "butter", "salt", "soap", "popcorn", "ice", "sushi", "spaghetti", "oden",
    "dango", "sake", "mate", "garlic", "broccoli", "cooked rice", "curry rice", "shaved ice", "fried shrimp",
    "ginger root", "coral", "fog", "dna", "american football", "rugby football", "badminton", "tennis", "bowling",
    "ping pong", "lacrosse", "field hockey", "ice hockey", "canned food", "money with wings", "high voltage",
    "pouring liquid", "performing arts", "potable water", "baggage claim", "passport control", "customs",
    "left luggage", "falafel", "currency exchange", "information", "milky way", "cinema", "wireless", "cooking",
    "camping", "foggy", "breast-feeding", "wood", "horse racing", "construction", "ZZZ", "om", "yin yang", "locked",
    "unlocked", "locked with key", "locked with pen", "dashing away", "rolling on the floor laughing",
    "nail polish", "lipstick", "mount fuji", "Statue of Liberty", "Tokyo tower", "thumbs up", "thumbs down",
    "Santa Claus", "Mrs. Claus", "Mx Claus", "mobile phone off", "input numbers", "input symbols",
    "palms up together", "input latin letters", "input latin lowercase", "input latin uppercase", "nut and bolt",
    "bow and arrow", "star-struck", "fork and knife", "fork and knife with plate", "hammer and pick",
    "hammer and wrench", "skull and crossbones", "star and crescent", "vibration mode", "place of worship",
    "registered",
})  # fmt: skip
# Nouns that don't stand at the end, where the plural is formed.
_UNCOUNTED = frozenset({
    "chart increasing", "chart decreasing", "chart increasing with yen", "speaker low volume", "speaker medium volume",
    "speaker high volume", "page facing up", "airplane arrival", "airplane departure", "luggage", "light rail",
    "breast-feeding", "building construction", "yarn",
})  # fmt: skip
_ALSO_PLURAL = frozenset({"people", "men", "women", "skis", "footprints"})
_ONE_THOUGH_S = ("ss", "us", "is", "os", "lens", "Claus", "Pisces", "Aries")
_IRREGULAR = {
    "bison": "bison", "blowfish": "blowfish", "buffalo": "buffaloes", "child": "children", "deer": "deer",
    "die": "dice", "elf": "elves", "fish": "fish", "foot": "feet", "goose": "geese", "jellyfish": "jellyfish",
    "knife": "knives", "leaf": "leaves", "mango": "mangoes", "moose": "moose", "mosquito": "mosquitoes",
    "mouse": "mice", "ox": "oxen", "person": "people", "potato": "potatoes", "scarf": "scarves", "sheaf": "sheaves",
    "shrimp": "shrimp", "squid": "squid", "superhero": "superheroes", "tomato": "tomatoes", "tooth": "teeth",
    "tornado": "tornadoes", "volcano": "volcanoes", "wolf": "wolves",
}  # fmt: skip
_AN_BY_SOUND = re.compile(r"hour|x-ray|SOS\b")
_SPOKEN_AS_A = re.compile(r"uni|ufo|one\b|eu|ewe", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noun:
    """What a subject is called: "red apple", "a red apple", "red apples". `plural` is None for what isn't counted."""

    bare: str
    single: str
    plural: str | None


@lru_cache(maxsize=4096)
def noun(label: str, group: str | None, subgroup: str | None) -> Noun:
    """The forms of an emoji's label, in plain ASCII punctuation."""
    bare = label.translate(_PLAIN)
    for pattern, words in _COLONS:
        bare = pattern.sub(words, bare)
    head = _TAIL.sub("", bare)
    last = head.rpartition(" ")[2]
    many = last in _ALSO_PLURAL or head.split(" ")[0] in _ALSO_PLURAL or _ends_plural(last)
    if group == "flags" and label.startswith("flag:"):
        return Noun(bare=bare, single=f"the {bare}", plural=None)
    if many or bare in _NO_ARTICLE or subgroup in _NAMES or group is None or _CLOCK.fullmatch(bare):
        return Noun(bare=bare, single=bare, plural=None)
    countable = (
        " and " not in head
        and bare not in _UNCOUNTED
        and (
            group in _THING_GROUPS
            or subgroup in _SHAPE_SUBGROUPS
            or (subgroup in _PEOPLE_SUBGROUPS and head.split(" ")[0] not in ("man", "woman", "person"))
        )
    )
    plural = f"{head.removesuffix(last)}{plural_of(last)}{bare[len(head) :]}" if countable else None
    return Noun(bare=bare, single=with_article(bare), plural=plural)


def with_article(phrase: str) -> str:
    """ "a horse", "an astronaut", "a unicorn"."""
    vowel = phrase[0].lower() in "aeiou" and not _SPOKEN_AS_A.match(phrase)
    return f"an {phrase}" if vowel or _AN_BY_SOUND.match(phrase) else f"a {phrase}"


def plural_of(word: str) -> str:
    """The plural of a noun, by the rules of spelling or the list of exceptions."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("man") and word != "human":
        return word.removesuffix("man") + "men"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + "s"


def _ends_plural(word: str) -> bool:
    return word.endswith("s") and not word.endswith(_ONE_THOUGH_S)
