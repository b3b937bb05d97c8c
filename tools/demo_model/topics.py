"""What the demo model may know: topics read from the plain text files beside this module.

A file is a list of topics. A line ``# name / other name | key=value`` opens one; the lines after it
are its facts, each true alone and in this order together; ``? question / question`` with the
``= answer`` below it adds a question that deserves an answer of its own. ``{a|b|}`` anywhere stands
for one of the alternatives, drawn when the text is used.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

TEXTS = Path(__file__).with_name("texts")
_CHOICE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing that can be explained, with its own questions and its attributes."""

    area: str
    names: tuple[str, ...]
    facts: tuple[str, ...]
    questions: tuple[tuple[tuple[str, ...], str], ...]
    traits: dict[str, str]

    @property
    def name(self) -> str:
        """The name an answer uses, with its article: ``a fox``, ``prefill``."""
        return self.names[0]

    @property
    def bare(self) -> str:
        """The name without its article: ``fox``."""
        return re.sub(r"^(a|an|the) ", "", self.name)


def expand(text: str, rng: "random.Random") -> str:
    """Replace every ``{a|b}`` by one of its alternatives, inner ones first."""
    while (found := _CHOICE.search(text)) is not None:
        text = text[: found.start()] + rng.choice(found[1].split("|")) + text[found.end() :]
    return text.replace("\\n", "\n")


def load_topics(folder: Path = TEXTS) -> list[Topic]:
    """Return the topics of all files of *folder*, in order of file name and line."""
    return [
        _parse(path.stem, chunk.strip().split("\n"))
        for path in sorted(folder.glob("*.txt"))
        for chunk in re.split(r"^# ", path.read_text("utf-8"), flags=re.MULTILINE)[1:]
    ]


def _parse(area: str, lines: list[str]) -> Topic:
    head, *traits = lines[0].split(" | ")
    facts, questions, asked = [], [], ""
    for line in lines[1:]:
        if line.startswith("? "):
            asked = line[2:]
        elif line.startswith("= "):
            questions.append((tuple(_split(asked)), line[2:]))
        else:
            facts.append(line)
    pairs = (trait.split("=", 1) for trait in traits)
    return Topic(area, tuple(head.split(" / ")), tuple(facts), tuple(questions), dict(pairs))


def _split(questions: str) -> list[str]:
    return [question.strip() for question in questions.split(" / ")]
