"""Words of the synthetic world: nouns and what they cover, attributes, relations, riddles and motions.

A noun covers kinds surely (``yes``) or arguably (``unsure``); a phrase is used only where nothing arguable is in the
picture. Sentences around these words are in ``wording``.
"""

from __future__ import annotations

from typing import NamedTuple

from sa2va.tiny.synthetic.shapes import KINDS


class Noun(NamedTuple):
    """A noun, its plural (empty where there is none), and the kinds it covers for sure or arguably."""

    one: str
    many: str
    yes: frozenset[str]
    unsure: frozenset[str] = frozenset()


class Riddle(NamedTuple):
    """Something said about an object without naming it.

    ``clauses`` follow "the thing" or "something"; ``questions`` ask for the object; kinds as in [`Noun`].
    """

    clauses: tuple[str, ...]
    questions: tuple[str, ...]
    yes: frozenset[str]
    unsure: frozenset[str] = frozenset()


_IRREGULAR = {"cross": "crosses", "fish": "fish", "butterfly": "butterflies"}


def _kind_noun(name: str) -> Noun:
    if KINDS[name].group == "letter":
        return Noun(f"letter {name}", "", frozenset({name}))
    return Noun(name, _IRREGULAR.get(name, name + "s"), frozenset({name}))


def _group(name: str) -> frozenset[str]:
    return frozenset(kind.name for kind in KINDS.values() if kind.group == name)


KIND_NOUNS: dict[str, Noun] = {name: _kind_noun(name) for name in KINDS}
GROUP_NOUNS: dict[str, Noun] = {
    "thing": Noun("thing", "things", frozenset(KINDS)),
    "object": Noun("object", "objects", frozenset(KINDS)),
    "shape": Noun("shape", "shapes", _group("shape"), _group("thing") | _group("letter")),
    "letter": Noun("letter", "letters", _group("letter")),
    "animal": Noun("animal", "animals", frozenset({"fish", "cat", "butterfly"}), frozenset({"face"})),
    "plant": Noun("plant", "plants", frozenset({"tree", "flower"}), frozenset({"mushroom", "apple"})),
    "vehicle": Noun("vehicle", "vehicles", frozenset({"car", "boat", "rocket"})),
    "moon": Noun("moon", "moons", frozenset({"crescent"})),
    "smiley": Noun("smiley", "smileys", frozenset({"face"})),
}

SIZE_WORDS = {"small": ("small", "small", "little"), "medium": ("medium", "medium"), "large": ("large", "large", "big")}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ORDINALS = ("first", "second", "third", "fourth", "fifth")
ARTICLES = ("a", "an", "A", "An", "the", "The")

RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "inside": ("inside", "in"),
    "behind": ("behind", "partly hidden by"),
    "front": ("in front of", "that covers part of"),
    "closest": ("closest to", "nearest to"),
    "between": ("between",),
}
ZONES: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "top left": ("in the top left corner", "at the top left"),
    "top right": ("in the top right corner", "at the top right"),
    "bottom left": ("in the bottom left corner", "at the bottom left"),
    "bottom right": ("in the bottom right corner", "at the bottom right"),
    "middle": ("in the middle", "in the center"),
}
EXTREMES: dict[str, tuple[str, ...]] = {
    "largest": ("largest", "biggest"),
    "smallest": ("smallest",),
    "left": ("leftmost",),
    "right": ("rightmost",),
    "top": ("topmost", "highest"),
    "bottom": ("lowest", "bottommost"),
}


def _riddle(kinds: str, unsure: str, clauses: str, questions: str) -> Riddle:
    return Riddle(
        tuple(clause.strip() for clause in clauses.split("/")),
        tuple(f"{question.strip()}?" for question in questions.split("/")),
        frozenset(kinds.split()),
        frozenset(unsure.split()),
    )


RIDDLES: tuple[Riddle, ...] = (
    _riddle("house", "boat", "that is a home / with a roof and a door", "What can you live in / Where do people live"),
    _riddle("fish", "boat", "that swims / that lives in water", "What can swim / Which animal lives in water"),
    _riddle(
        "umbrella",
        "hat house car mushroom",
        "that keeps you dry in the rain / you open when it rains",
        "What keeps you dry in the rain / What do you open when it rains",
    ),
    _riddle("car", "", "that drives on the road / with wheels", "What drives on the road / What has wheels"),
    _riddle("boat", "", "that sails on the sea / with a sail", "What sails on the sea / What has a sail"),
    _riddle("rocket", "", "that flies to the moon", "What flies to the moon / How do you get to the moon"),
    _riddle("car boat rocket", "", "that carries people", "What can carry people / What do you travel in"),
    _riddle("rocket butterfly", "cloud sun", "that can fly", "What can fly"),
    _riddle("tree", "", "with a trunk and leaves / that birds nest on", "What has a trunk / Where do birds nest"),
    _riddle("tree flower mushroom", "apple", "that grows in the ground", "What grows in the ground"),
    _riddle("flower", "", "you put in a vase / with petals", "What do you put in a vase / What has petals"),
    _riddle("cup", "", "you drink from / that holds tea", "What do you drink from / What holds tea"),
    _riddle("key", "", "that opens a lock", "What opens a lock / What do you need for a locked door"),
    _riddle("hat crown", "umbrella", "you wear on your head", "What can you wear on your head"),
    _riddle("crown", "", "that a king wears", "What does a king wear"),
    _riddle("cat", "", "that chases mice / that says meow", "What chases mice / Which animal says meow"),
    _riddle("cat butterfly fish", "face", "that is an animal", "Which animal do you see"),
    _riddle("butterfly", "", "that was once a caterpillar", "Which insect do you see / What was once a caterpillar"),
    _riddle("sun", "star", "that shines by day", "What shines by day / What makes the day bright"),
    _riddle("crescent star", "sun", "you see in the sky at night", "What do you see in the sky at night"),
    _riddle("cloud", "", "that brings rain", "What brings rain / Where does rain come from"),
    _riddle("apple", "fish mushroom", "you can eat", "What can you eat / Which fruit do you see"),
    _riddle("chair", "car boat", "you can sit on", "What can you sit on / Where can you rest"),
    _riddle("bell", "ring", "that rings", "What can ring / What makes a ringing sound"),
    _riddle("face", "cat", "that smiles", "What is smiling / What shows a smile"),
    _riddle("heart", "", "that stands for love", "What stands for love"),
    _riddle("arrow", "", "that points the way", "What points the way / What shows the direction"),
    _riddle("triangle", "A house", "with three sides", "What has three sides"),
    _riddle("hexagon", "", "with six sides", "What has six sides"),
    _riddle("square diamond", "house", "with four sides", "What has four sides"),
    _riddle("circle ring", "oval face sun apple hexagon flower", "that is round", "What is round"),
    _riddle("A", "", "that is the first letter of the alphabet", "What is the first letter of the alphabet"),
    _riddle("Z", "", "that is the last letter of the alphabet", "What is the last letter of the alphabet"),
    _riddle("A E", "", "that is a vowel", "Which letter is a vowel"),
)


class Motion(NamedTuple):
    """How a motion is told: ``clauses`` follow a noun ("that turns back"), ``verb`` a "does" or "which" question."""

    clauses: tuple[str, ...]
    plural: str
    verb: str
    third: str


MOTIONS: dict[str, Motion] = {
    "still": Motion(
        ("that does not move", "that stays where it is", "that stands still"),
        "that do not move",
        "stay",
        "does not move",
    ),
    "moves": Motion(("that moves", "that is moving"), "that move", "move", "moves"),
    "left": Motion(("that moves to the left", "moving left"), "that move to the left", "move left", "moves left"),
    "right": Motion(("that moves to the right", "moving right"), "that move to the right", "move right", "moves right"),
    "up": Motion(("that moves up", "moving up"), "that move up", "move up", "moves up"),
    "down": Motion(("that moves down", "moving down"), "that move down", "move down", "moves down"),
    "return": Motion(("that turns back", "that goes away and comes back"), "that turn back", "turn back", "turns back"),
    "circle": Motion(
        ("that moves in a circle", "that goes round"), "that move in a circle", "move in a circle", "moves in a circle"
    ),
    "bounce": Motion(
        ("that bounces off the edge",), "that bounce off the edge", "bounce off the edge", "bounces off the edge"
    ),
    "leave": Motion(
        ("that leaves the picture", "that moves out of the picture"),
        "that leave the picture",
        "leave the picture",
        "leaves the picture",
    ),
    "enter": Motion(
        ("that comes into the picture", "that enters the picture"),
        "that enter the picture",
        "enter the picture",
        "enters the picture",
    ),
    "appear": Motion(
        ("that appears later", "that is not there at first"), "that appear later", "appear later", "appears later"
    ),
    "vanish": Motion(("that disappears", "that vanishes"), "that disappear", "disappear", "disappears"),
    "grow": Motion(("that grows", "that gets larger"), "that grow", "grow", "grows"),
    "shrink": Motion(("that shrinks", "that gets smaller"), "that shrink", "shrink", "shrinks"),
}
PASS_BEHIND = ("that passes behind", "that moves behind", "that hides behind")
FASTEST = ("that moves fastest", "that is the fastest")
