"""The text the demo model learns from: an endless, seeded stream of short English documents.

Most are chats whose answers come from the topic files; the rest are stories, notes, questions about
a text that was just read, and questions that the model must say it cannot answer. Every text is
made here, so the corpus has the project's licence and equal seeds give equal corpora.

    python -m tools.demo_model.corpus --seed 1 --documents 5
"""

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .stories import article, heroes, tell
from .topics import Topic, expand, load_topics

NUMBERS = ("one", "two", "three", "four", "five")
PLURAL = {"mice", "the woods", "the weights of a model"}
SINGULAR = {"Kubernetes", "moss"}
SYSTEM_PLAIN = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are the demo model of Spinney.",
    "Answer the questions of the user.",
    "You are a helpful assistant. Answer politely.",
    "You are a {helpful|kind|polite|patient|careful} {assistant|teacher|bot|model|guide}.",
    "You {help|answer} {users|people|our customers}{ of a cluster| who learn about models|}.",
    "{Be|Stay} {helpful|polite|honest|friendly}{ and {clear|kind|correct}|}.",
)
SYSTEM_SHORT = (
    "Answer in one sentence.",
    "You are a helpful assistant. Answer in one sentence.",
    "Be brief.",
    "Give short answers.",
)
GENERIC = (
    "What {is|are} $", "What {is|are} $", "{Tell|Teach} me {something |}about $.", "Explain $.",
    "{Can|Could} you explain $?", "{Please explain|Explain} $ in simple words.", "Describe $.",
    "What do you know about $?", "What can you {tell me|say} about $?", "What exactly {is|are} $?",
    "{Describe|Introduce} $.", "How does $ work?", "Why {is|are} $ {useful|important|good}?",
    "{What about|And what is} $?", "Say something about $.", "What is the purpose of $?",
    "What {is|are} $ and why {is it|are they} {useful|needed|important}?", "Why do {I|we} need $?",
    "What {is|are} $ and {how does it work|what is it for|what does it do}?", "What does $ do?",
    "I want to {know|learn} {more |}about $.", "Do you know what $ {is|are}?", "Define $.",
    "How would you explain $ to a child?", "I have never heard of $. What {is|are} that?",
    "What does $ mean?", "$?", "What's $?", "Give me a short explanation of $.",
)  # fmt: skip
SHORT = (
    "{in one sentence|briefly|in a few words|in short}",
    "{In one sentence|Briefly|In short}",
)
PREFIXES = (
    "{Hi|Hello|Hey}{,|!|.} ", "{Please tell me|Tell me|Quick question}: ", "I have a question. ",
    "{I wonder|Now}: ", "Another question: ", "{So|And|Ok|Well}, ",
)  # fmt: skip
TRAITS = {
    "live": (
        (
            "Where {does|can} $ live?", "Where {can I find|do I find|lives} $?",
            "What is the home of $?", "Where is the home of $?",
        ),
        "{Subject} lives {trait}.",
    ),
    "eat": (
        (
            "What does $ eat?", "What is the food of $?", "What {can|could} $ eat?",
            "What {do I|can I} feed $?", "What does $ {like to eat|feed on|live on}?",
        ),
        "{Subject} eats {trait}.",
    ),
    "look": (
        ("What does $ look like?", "How does $ look?", "How can I {recognise|know} $?"),
        "{Subject} has {trait}.",
    ),
    "use": (
        (
            "What is $ {used |}for?", "What can I do with $?", "How do I use $?",
            "Why do {people|I} need $?", "What does {one|a person} do with $?",
        ),
        "{Subject} is used {trait}.",
    ),
    "made": (
        ("What is $ made of?", "How is $ made?", "What are the parts of $?"),
        "{Subject} is made of {trait}.",
    ),
}  # fmt: skip
MORE = ("Tell me more.", "{Go on|And then|More}.", "What else?", "Can you say more{ about it|}?")
DIFFERENCE = (
    "What is the difference between $ and %?", "How do $ and % differ?", "Compare $ and %.",
    "{How is|Is} $ different from %?", "$ or %: what is the difference?",
    "What is $ and what is %?", "Explain $ and %.", "What do you know about $ and %?",
)  # fmt: skip
ASK_STORY = (
    "{Tell|Write} {me |}a{ short|} story.", "{Can|Could} you tell me a story?",
    "I want to hear a story.", "A story, please.", "Make up a story.",
)  # fmt: skip
ASK_STORY_ABOUT = (
    "{Tell|Write} {me |}a{ short|} story about $.", "Can you tell me a story about $?",
    "Write a story with $ in it.", "I want to hear a story about $.", "A story about $, please.",
    "Once there was $. Go on with the story.",
)  # fmt: skip
UNKNOWN = (
    "What is the capital of {France|Spain|Japan|Brazil|Canada|Egypt|*}?",
    "Who {was|is} {the king of|the president of|the queen of} {England|America|France|*}?",
    "Who wrote {the book |}*?", "When {was|did} * {born|happen|end|begin}?", "How do I cook *?",
    "What is # {plus|times|minus} #?", "What is #{ +| -| x} #?", "Solve x + # = #.",
    "Calculate # {plus|times} #.", "How much is # {plus|and|times} #?", "Is # a prime number?",
    "Write {a program|code|a function} in {Python|Java|Go} {that sorts a list|for *|to print *}.",
    "Write a {Python|Java|small} {program|script} that {prints|counts|finds} {numbers|words|*}.",
    "Write {an essay|an email|a letter|a song} about *.", "What is {a|an|the} *?", "What is *?",
    "Tell me about *.", "Explain *.", "How {far|high|old|heavy|big} is *?", "Do you like *?",
    "Translate * into {French|German|Latin}.", "What happened in {19|18|20}{05|14|22|45|66|89}?",
    "Who won the {game|match|war|race} {of|in} *?", "How many people live in *?", "Who invented *?",
    "What do you think about {politics|money|love|football|music|*}?", "Define *.", "Describe *.",
    "Can you book me a {flight|hotel|table}?", "What time is it?", "How {do|can} I {learn|make} *?",
    "What {day|date} is it today?", "Give me advice about {my work|money|my health|*}.",
    "Why is {gold|glass|music|*} so {dear|clear|loud|old}?", "Where is {Paris|Rome|London|*}?",
    "Play {a song|some music|*}.", "Who is *?", "What {does|did} * {do|say|think}?",
    "What is the {meaning|secret|price|colour|law|size} of {life|happiness|everything|*}?",
    "What is the {best|largest|oldest} {film|city|country|car|*}{ in the world|}?", "*", "* *?",
    "What is the difference between * and *?", "How does * work?", "Why do people {like|hate} *?",
    "Recommend {a book|a film|a restaurant}{ about *|}.",
    "{Summarise|Review} {the book|the film} *.", "* {+|and|or} *?",
)  # fmt: skip
CANNOT = (
    "I do not know that. I am a very small model and know only a few things: how models are "
    "served, and something about woods, weather, animals and tools."
)
SYLLABLES = (
    "ba be bo da du fa fi ga go ha jo ka ke la lo ma mi mo na no pa pe ra ri sa so ta ti va wo za "
    "zu ber ton ley ham wick sen mar lin dor gal tur vin pol ster qui char th sh st br cr pl ng ck"
)
WORDS = (
    "opera football pizza Einstein chess calculus Mars Napoleon guitar bread coffee taxes physics "
    "chemistry tennis poetry Shakespeare bitcoin lawyers medicine history dinosaurs volcanoes "
    "oceans deserts China India Africa Europe dancing painting cinema philosophy lions elephants "
    "penguins sharks airplanes trains cars rockets electrons atoms democracy religion gold silver "
    "rice cheese primes numbers algebra grammar French German soccer basketball movies actors "
    "singers kings emperors wars peace love friendship justice truth beauty time space energy "
    "gravity light evolution genes cells viruses doctors hospitals banks markets shares prices "
    "houses bridges castles churches temples pyramids islands mountains beaches hotels airports "
    "phones cameras games toys clothes shoes hats rings diamonds perfume wine beer tea sugar salt "
    "pepper soup cake chocolate bananas oranges potatoes Portugal Italy Sweden Mexico Australia "
    "Berlin Tokyo Madrid Moscow Chicago"
)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """A chat, or a plain text as one message of role ``text``."""

    messages: tuple[Message, ...]


def capital(text: str) -> str:
    """Return *text* with its first letter upper case and the rest as it is."""
    return text[:1].upper() + text[1:]


class Corpus:
    """Draws documents from the topics with one random generator."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.topics = [topic for topic in load_topics() if topic.name != "you"]
        self.talk = [topic for topic in load_topics() if topic.name == "you"]
        self.by_area = {
            area: [topic for topic in self.topics if topic.area == area]
            for area in sorted({topic.area for topic in self.topics})
        }
        self.kinds: list[tuple[float, Callable[[], Document]]] = [
            (0.30, lambda: self._chat(self._pair("serving"))),
            (0.22, lambda: self._chat(self._pair(rng.choice(sorted(self.by_area))))),
            (0.09, self._small_talk),
            (0.08, lambda: self._chat((self._unknown(), CANNOT))),
            (0.06, self._conversation),
            (0.06, self._story_chat),
            (0.04, lambda: self._chat(self._difference())),
            (0.03, lambda: self._chat(self._list())),
            (0.03, self._follow_up),
            (0.03, self._about_a_story),
            (0.03, self._after_notes),
            (0.02, lambda: self._chat(self._repeat())),
            (0.02, lambda: Document((Message("text", tell(rng).text),))),
            (0.02, lambda: Document((Message("text", self.notes(rng.randint(1, 4))),))),
        ]

    def documents(self) -> Iterator[Document]:
        """Yield documents without end."""
        weights = [weight for weight, _ in self.kinds]
        while True:
            _, make = self.rng.choices(self.kinds, weights)[0]
            yield make()

    def _fill(self, question: str, name: str) -> str:
        is_several = name.endswith("s") and not name.startswith(("a ", "an ", "the "))
        is_plural = name in PLURAL or (is_several and name not in SINGULAR)
        verb = "are" if is_plural else "is"
        pronoun = "are they" if is_plural else "is it"
        question = question.replace("{is|are}", verb).replace("{is it|are they}", pronoun)
        text = expand(question, self.rng).replace("$", name)
        return capital(text if text.endswith((".", "?")) else f"{text}?")

    def _pair(self, area: str) -> tuple[str, str]:
        """Return a question about a topic of *area* and its answer."""
        topics = self.by_area[area]
        # Where there is more to ask, people ask more.
        topic = self.rng.choices(topics, [1 + len(topic.questions) for topic in topics])[0]
        draw = self.rng.random()
        if topic.traits and draw < 0.4:
            called = topic.name if self.rng.random() < 0.7 else topic.names[1]
            return self._trait(topic, called)
        if topic.questions and draw < 0.5:
            questions, answer = self.rng.choice(topic.questions)
            return expand(self.rng.choice(questions), self.rng), expand(answer, self.rng)
        name = topic.name if self.rng.random() < 0.6 else self.rng.choice(topic.names)
        question = self._fill(self.rng.choice(GENERIC), name)
        if self.rng.random() < 0.12:
            return self._shorten(question), topic.facts[0]
        return question, " ".join(topic.facts)

    def _shorten(self, question: str) -> str:
        after, before = (expand(text, self.rng) for text in SHORT)
        if self.rng.random() < 0.5:
            return f"{question[:-1]} {after}{question[-1]}"
        return f"{before}: {question[:1].lower()}{question[1:]}"

    def _trait(self, topic: Topic, called: str) -> tuple[str, str]:
        key = self.rng.choice(sorted(topic.traits))
        questions, answer = TRAITS[key]
        asked = expand(self.rng.choice(questions), self.rng)
        if called == topic.names[1]:
            for one, many in (("does $", "do $"), ("is $", "are $"), ("lives $", "live $")):
                asked = asked.replace(one, many)
        question = self._fill(asked, called)
        subject = capital(topic.name if called != "it" else "it")
        return question, answer.replace("{Subject}", subject).replace("{trait}", topic.traits[key])

    def _unknown(self) -> str:
        question = expand(self.rng.choice(UNKNOWN), self.rng)
        while "*" in question:
            question = question.replace("*", self._strange(), 1)
        while "#" in question:
            question = question.replace("#", str(self.rng.randint(0, 99)), 1)
        return capital(question)

    def _strange(self) -> str:
        if self.rng.random() < 0.5:
            return self.rng.choice(WORDS.split())
        word = "".join(self.rng.choices(SYLLABLES.split(), k=self.rng.randint(2, 4)))
        return capital(word) if self.rng.random() < 0.5 else word

    def _worn(self, question: str) -> str:
        """Return *question* as people type it: sometimes lower case, without its mark, greeted."""
        if self.rng.random() < 0.12:
            start = question if question[1:2].isupper() else question[:1].lower() + question[1:]
            question = expand(self.rng.choice(PREFIXES), self.rng) + start
        if self.rng.random() < 0.12:
            question = question.lower()
        if self.rng.random() < 0.12:
            question = question.rstrip("?.!")
        if self.rng.random() < 0.04:
            question += " Please."
        return question or "Hello"

    def _chat(self, *pairs: tuple[str, str]) -> Document:
        messages = []
        draw = self.rng.random()
        if draw < 0.3:
            messages.append(Message("system", expand(self.rng.choice(SYSTEM_PLAIN), self.rng)))
        for question, answer in pairs:
            messages.append(Message("user", self._worn(question)))
            messages.append(Message("assistant", answer))
        return Document(tuple(messages))

    def _small_talk(self) -> Document:
        if self.rng.random() < 0.25:
            return self._brief()
        return self._chat(self._talk())

    def _talk(self) -> tuple[str, str]:
        questions, answer = self.rng.choice(self.rng.choice(self.talk).questions)
        return expand(self.rng.choice(questions), self.rng), expand(answer, self.rng)

    def _brief(self) -> Document:
        topic = self.rng.choice(self.topics)
        question = self._worn(self._fill(self.rng.choice(GENERIC), self.rng.choice(topic.names)))
        return Document(
            (
                Message("system", self.rng.choice(SYSTEM_SHORT)),
                Message("user", question),
                Message("assistant", topic.facts[0]),
            )
        )

    def _conversation(self) -> Document:
        makers: list[Callable[[], tuple[str, str]]] = [
            lambda: self._pair("serving"),
            lambda: self._pair(self.rng.choice(sorted(self.by_area))),
            self._talk,
            lambda: (self._unknown(), CANNOT),
        ]
        chosen = self.rng.choices(makers, (4, 4, 2, 1), k=self.rng.randint(2, 5))
        return self._chat(*(make() for make in chosen))

    def _follow_up(self) -> Document:
        topic = self.rng.choice(self.topics)
        opening = self._fill(self.rng.choice(GENERIC), topic.name)
        if topic.traits:
            return self._chat((opening, " ".join(topic.facts)), self._trait(topic, "it"))
        if len(topic.facts) < 2:
            return self._chat((opening, topic.facts[0]))
        more = expand(self.rng.choice(MORE), self.rng)
        return self._chat(
            (self._shorten(opening), topic.facts[0]), (more, " ".join(topic.facts[1:]))
        )

    def _difference(self) -> tuple[str, str]:
        first, second = self.rng.sample(self.by_area[self.rng.choice(sorted(self.by_area))], 2)
        question = expand(self.rng.choice(DIFFERENCE), self.rng)
        question = question.replace("$", first.name).replace("%", second.name)
        return capital(question), f"{first.facts[0]} {second.facts[0]}"

    def _list(self) -> tuple[str, str]:
        count = self.rng.randint(2, 5)
        kind, members = self.rng.choice(
            [
                ("trees", ["oak", "beech", "birch", "ash", "hazel", "willow", "pine", "yew"]),
                ("animals", [topic.bare for topic in self.by_area["animals"][:24]]),
                ("birds", ["owl", "robin", "woodpecker", "crow", "duck"]),
                ("tools", [topic.bare for topic in self.by_area["tools"][:9]]),
                ("parts of Spinney", ["router", "planner", "scheduler", "engine", "controller"]),
            ]
        )  # fmt: skip
        # Always the same ones: a small model that chooses freely names one of them twice.
        chosen = members[:count]
        item = (lambda name: f"the {name}") if kind.startswith("parts") else article
        listed = f"{', '.join(map(item, chosen[:-1]))} and {item(chosen[-1])}"
        ask = expand("{Name|Tell me|Give me|List|Can you name}", self.rng)
        return f"{ask} {NUMBERS[count - 1]} {kind}.", f"{capital(listed)}."

    def _repeat(self) -> tuple[str, str]:
        """Saying something again teaches the model to copy, which stories and follow-ups need."""
        words = " ".join(self._strange() for _ in range(self.rng.randint(1, 6)))
        ask = expand("{Say|Repeat|Repeat after me|Say this}: ", self.rng)
        return f"{ask}{words}.", f"{capital(words)}."

    def _story_chat(self) -> Document:
        if self.rng.random() < 0.4:
            return self._chat((expand(self.rng.choice(ASK_STORY), self.rng), tell(self.rng).text))
        hero = self.rng.choice(heroes())
        ask = expand(self.rng.choice(ASK_STORY_ABOUT), self.rng).replace("$", article(hero))
        return self._chat((ask, tell(self.rng, hero).text))

    def _about_a_story(self) -> Document:
        story = tell(self.rng)
        pairs = [
            ("Who is the story about?", f"The story is about {story.name} the {story.kind}."),
            (f"What is the name of the {story.kind}?", f"The {story.kind} is named {story.name}."),
            (f"Who is {story.friend}?", f"{story.friend} is {article(story.friend_kind)}."),
            (f"Who is {story.name}?", f"{story.name} is {article(story.kind)}."),
            (f"Where does {story.name} live?", f"{story.name} lives in {story.place}."),
        ]
        chosen = self.rng.sample(pairs, self.rng.randint(1, 3))
        if self.rng.random() < 0.4:
            return self._chat((self.rng.choice(ASK_STORY[-3:]), story.text), *chosen)
        (question, answer), *rest = chosen
        return self._chat((f"{story.text}\n\n{question}", answer), *rest)

    def notes(self, paragraphs: int) -> str:
        """Return the facts of that many topics, a paragraph each."""
        topics = self.rng.sample(self.topics, min(paragraphs, len(self.topics)))
        return "\n\n".join(" ".join(topic.facts) for topic in topics)

    def _after_notes(self) -> Document:
        """A question behind a long text, as a service with a long system prompt sends it."""
        notes = self.notes(self.rng.randint(2, 24))
        question, answer = self._pair("serving" if self.rng.random() < 0.6 else "woods")
        if self.rng.random() < 0.5:
            system = f"You are a helpful assistant. Here are some notes.\n\n{notes}"
            messages = (Message("system", system), Message("user", self._worn(question)))
        else:
            messages = (Message("user", f"{notes}\n\n{self._worn(question)}"),)
        return Document((*messages, Message("assistant", answer)))


def main() -> None:
    """Print some documents of the corpus."""
    parser = argparse.ArgumentParser(description="Print documents of the demo model's corpus.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--documents", type=int, default=20)
    arguments = parser.parse_args()
    stream = Corpus(random.Random(arguments.seed)).documents()
    for _ in range(arguments.documents):
        for message in next(stream).messages:
            print(f"{message.role}: {message.content}")
        print("---")


if __name__ == "__main__":
    main()
