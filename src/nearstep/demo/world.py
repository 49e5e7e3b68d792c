"""What the demo's posts look like, and how people summarise them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from nearstep.common.random_streams import stream_seed
from nearstep.demo.facts import FILLERS, SUBREDDITS, Facts, Slot, another_value, draw_facts

TELL = 1.0  # how often a post tells each kind of fact
# How often the writer of a summary mentions a fact that the post tells.
HABIT = {Slot.AGE: 0.25, Slot.FEELING: 0.3, Slot.WHO: 0.9, Slot.DEED: 0.85, Slot.PLACE: 0.4, Slot.QUESTION: 0.45}
MISTAKE = 0.1  # share of the summaries written by people that state one thing which the post does not


@dataclass(frozen=True)
class Post:
    """A post as a prompt (it ends with "TL;DR:"), and the facts that it tells."""

    prompt: str
    facts: Facts


@dataclass(frozen=True)
class Summary:
    """A completion: it begins with a space, and an EOS token follows if it is finished."""

    text: str
    finished: bool = True


def draw_posts(seed: int, name: str, count: int) -> list[Post]:
    """`count` posts from the random stream `name`."""
    rng = random.Random(stream_seed(seed, f"demo/{name}"))
    return [_post(rng) for _ in range(count)]


def draw_references(seed: int, name: str, posts: Sequence[Post]) -> list[Summary]:
    """One summary by a person for every post, from the random stream `name`."""
    rng = random.Random(stream_seed(seed, f"demo/{name}/references"))
    return [_reference(post, rng) for post in posts]


def _post(rng: random.Random) -> Post:
    facts = draw_facts(rng, TELL)
    sentences = [_event(facts, rng), *rng.sample(FILLERS, rng.randint(0, 2))]
    if Slot.AGE in facts:
        sentences.append(rng.choice(("I am {age}.", "I ({age}) need help.", "A bit about me: {age}.")))
    if Slot.FEELING in facts:
        sentences.append(rng.choice(("I feel {feeling}.", "It left me {feeling}.", "I am so {feeling} about it.")))
    rng.shuffle(sentences)
    if Slot.QUESTION in facts:
        question = rng.choice(("{question}?", "My question: {question}?", "So tell me. {question}?"))
        sentences.insert(rng.choice((0, len(sentences), len(sentences))), question)
    header = f"SUBREDDIT: r/{rng.choice(SUBREDDITS)}\n\nTITLE: {_title(facts, rng)}"
    return Post(f"{header}\n\nPOST: {' '.join(sentences)}\n\nTL;DR:".format(**_by_name(facts)), facts)


def _by_name(facts: Facts) -> dict[str, str]:
    return {slot.value: value for slot, value in facts.items()}


def _title(facts: Facts, rng: random.Random) -> str:
    titles = ["Need advice", "What now", "Long story"]
    titles += ["Problem with my {who}", "My {who} and me"] * (Slot.WHO in facts)
    titles += ["I feel {feeling}"] * (Slot.FEELING in facts)
    return rng.choice(titles)


def _event(facts: Facts, rng: random.Random) -> str:
    event = event_words(facts)
    sentences = (f"{event}.", f"So {event}.", f"Last week {event}.")
    if Slot.PLACE in facts:
        in_place = "It happened in {place}."
        sentences = (f"{event} in {{place}}.", f"I was in {{place}} when {event}.", f"{event}. {in_place}")
    sentence = rng.choice(sentences)
    return sentence[0].upper() + sentence[1:]


def event_words(facts: Facts) -> str:
    """Who did what, as a template; vague words stand where a fact is missing."""
    who = "my {who}" if Slot.WHO in facts else "someone"
    return f"{who} {{deed}}" if Slot.DEED in facts else f"{who} did something bad"


def summary_text(stated: Facts) -> str:
    """The sentence or two that state exactly these facts."""
    opening = {
        (True, True): "I ({age}) feel {feeling} because ",
        (True, False): "I ({age}) have a story: ",
        (False, True): "I feel {feeling} because ",
        (False, False): "",
    }[Slot.AGE in stated, Slot.FEELING in stated]
    place = " in {place}" if Slot.PLACE in stated else ""
    question = " {question}?" if Slot.QUESTION in stated else ""
    text = f"{opening}{event_words(stated)}{place}.{question}"
    return " " + (text[0].upper() + text[1:]).format(**_by_name(stated))


def _reference(post: Post, rng: random.Random) -> Summary:
    stated = {slot: value for slot, value in post.facts.items() if rng.random() < HABIT[slot]}
    if rng.random() < MISTAKE:
        slot = rng.choice(list(Slot))
        stated[slot] = another_value(slot, post.facts, rng)
    return Summary(summary_text(stated))
