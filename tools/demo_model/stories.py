"""Short stories: plots with slots for a hero, a friend, a place, a season and a thing.

A plot is a list of beats; each beat offers several ways to say the same step, so that the order of
events always makes sense and the wording varies.
"""

from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING

from .topics import expand

if TYPE_CHECKING:
    import random

_HEROES = {
    "fox": ("red", "Bramble"), "badger": ("strong", "Rowan"), "hedgehog": ("shy", "Thistle"),
    "squirrel": ("quick", "Hazel"), "owl": ("wise", "Juniper"), "robin": ("cheerful", "Poppy"),
    "rabbit": ("careful", "Clover"), "hare": ("fast", "Sorrel"), "mouse": ("tiny", "Pip"),
    "mole": ("patient", "Moss"), "otter": ("playful", "Willow"), "frog": ("green", "Fern"),
    "crow": ("clever", "Ash"), "duck": ("slow", "Alder"), "bat": ("quiet", "Ivy"),
    "toad": ("old", "Nettle"), "deer": ("gentle", "Tansy"), "woodpecker": ("busy", "Teasel"),
}  # fmt: skip
"""Each kind of animal with how it is and its name: the wood has the same people in every story."""
_PLACES = (
    "a small wood beside a hill", "a spinney near a farm", "an old forest", "a green valley",
    "a wood behind the mill", "a meadow beside a brook",
)  # fmt: skip
_THINGS = ("lamp", "rope", "map", "key", "bucket", "spade", "bell", "basket", "blanket", "drum")
_OPENINGS = (
    "{Once upon a time|Long ago|Once}, there was $hero named $name who lived in $place.",
    "In $place {there lived|lived} $hero named $name.",
    "$name was $hero who lived in $place.",
)
_ENDINGS = (
    "{From that day on|After that}, $name and $friend {were|stayed} the best of friends.",
    "That night {$name slept well|the wood was quiet and everyone slept well}.",
    "{And so|So} $name learned that {it is good to ask for help|two can do more than one}.",
    "And $friend never forgot what $name had done.",
)
_PLOTS = {
    "storm": (
        "{One evening|One day in autumn} the wind grew strong and dark clouds came over the hill.",
        "$name heard $friend crying {in the rain|under a bush}. \"{My home is full of water|"
        "A branch fell on my home},\" said $friend.",
        "\"Come to my home,\" said $name. \"{It is small but dry|There is room for two}.\"",
        "{All night|For hours} the storm shook the trees, but the two sat {close together|beside "
        "a small fire} and told stories.",
        "In the morning the sun came out, and {they built a new home for $friend together|"
        "$name took a $thing and helped $friend to mend the house}.",
    ),
    "lost": (
        "{One morning|One day} $name could not find the $thing. \"{Where can it be|Who has seen my "
        "$thing}?\" asked $name.",
        "$name looked {under the leaves and behind the stones|in every corner}, but the $thing was "
        "not there.",
        "Then $name asked $friend. \"{I saw something shine|I saw something} {near the brook|under "
        "the old oak},\" said $friend.",
        "They went there together and looked {in the grass|between the roots}.",
        "There was the $thing! {A crow had carried it there|The wind had carried it there}.",
        "$name was so glad that $friend {got half of the berries|was invited to supper}.",
    ),
    "bridge": (
        "{One day in spring|After a long rain} the brook was so high that nobody could cross it.",
        "$friend stood on the other side and {called for help|could not go home}.",
        '$name thought for a while. "{We need a bridge|If we had a bridge, you could cross}," '
        "said $name.",
        "$name {found a long log|fetched a rope} and {pushed|pulled} with all strength, but it was "
        "too heavy.",
        "Then the other animals came, and together they laid a log across the water.",
        "$friend walked over it, step by step, and everyone cheered.",
    ),
    "winter": (
        "When autumn came, $name gathered {nuts and seeds|berries and nuts} from morning to night.",
        "$friend {laughed and played in the leaves|slept in the sun} and gathered nothing.",
        "Then {winter came with deep snow|the first snow fell}, and $friend was hungry.",
        "$friend knocked at the door. \"{I was foolish|I have nothing to eat},\" said $friend.",
        "$name {opened the door|smiled} and shared the food. \"{Next year we will gather together|"
        "There is enough for both of us},\" said $name.",
    ),
    "fog": (
        "{One night|One evening} a thick fog came down, and $name could not see the path.",
        "\"{I am lost|I do not know the way},\" said $name and sat down on a stone.",
        "Then {a small light moved between the trees|there was a sound between the trees}. It was "
        "$friend with a lamp.",
        "\"{Follow me|Hold on to me},\" said $friend. \"I know every tree in this wood.\"",
        "Slowly they walked from tree to tree until they {saw the door|stood before the home} of "
        "$name.",
    ),
    "seed": (
        "{In spring|One day} $name found a seed and put it into the soil {near the brook|beside "
        "the path}.",
        "Every day $name brought water, but {nothing grew|no leaf could be seen}.",
        '"{Give it time|Be patient}," said $friend.',
        "{One morning|After many days} a small green leaf came out of the ground.",
        "{Years went by|The years passed}, and the leaf became a tall {oak|beech|maple}.",
        "Then $name and $friend sat in its shade and {ate nuts|listened to the birds}.",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Story:
    """A story and what happened to be true in it."""

    text: str
    kind: str
    name: str
    friend_kind: str
    friend: str
    place: str


def article(noun: str) -> str:
    """Return *noun* behind the indefinite article that English wants."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def tell(rng: "random.Random", hero: str | None = None) -> Story:
    """Make up one story; its hero is of the kind *hero*, one of `heroes`, if given."""
    kind = hero or rng.choice(sorted(_HEROES))
    friend_kind = rng.choice(sorted(set(_HEROES) - {kind}))
    (nature, name), (_, friend) = _HEROES[kind], _HEROES[friend_kind]
    place = rng.choice(_PLACES)
    beats = [rng.choice(_OPENINGS), *_PLOTS[rng.choice(sorted(_PLOTS))], rng.choice(_ENDINGS)]
    beats.insert(1, f"{{{{Nearby|Not far away}} lived|$name had a friend,|One friend was}} "
                    f"$friend the {friend_kind}.")  # fmt: skip
    slots = {
        "hero": article(f"{nature} {kind}"),
        "name": name,
        "friend": friend,
        "place": place,
        "thing": rng.choice(_THINGS),
    }
    text = Template(" ".join(expand(beat, rng) for beat in beats)).substitute(slots)
    return Story(text, kind, name, friend_kind, friend, place)


def heroes() -> list[str]:
    """Return the kinds of animals that stories are told about."""
    return sorted(_HEROES)
