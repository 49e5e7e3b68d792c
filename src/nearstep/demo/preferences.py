"""What the reward model learns from: summaries of one post, ranked by a labeller who sees nothing but their flaws."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from nearstep.common.random_streams import stream_seed
from nearstep.demo.facts import FILLERS, Facts, Slot, another_value
from nearstep.demo.world import Post, Summary, summary_text

LABEL_NOISE = 0.4  # standard deviation of a grade around a draft's quality
JUST_NOTICEABLE = 0.5  # two grades that lie closer make no pair


class Flaw(StrEnum):
    """What can make a summary worse."""

    MISSING = "missing"
    INVENTED = "invented"
    RAMBLING = "rambling"
    UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Draft:
    """A summary in the making, with what its writer knows about it."""

    truth: Facts  # what the post tells
    right: Facts
    wrong: Facts
    rambling: int = 0  # sentences that say nothing new
    finished: bool = True

    @property
    def quality(self) -> float:
        """What a labeller who never errs would give."""
        return len(self.right) - 1.5 * len(self.wrong) - self.rambling - 2.0 * (not self.finished)


@dataclass(frozen=True)
class Ranking:
    """Summaries of one post and the labeller's grade for each, the higher the better."""

    prompt: str
    summaries: tuple[Summary, ...]
    grades: tuple[float, ...]

    def pairs(self) -> list[tuple[int, int]]:
        """Numbers (better, worse) of every two summaries that the labeller tells apart."""
        numbers = range(len(self.grades))
        return [(i, j) for i in numbers for j in numbers if self.grades[i] - self.grades[j] > JUST_NOTICEABLE]


def draw_rankings(seed: int, name: str, posts: Sequence[Post], noise: float = LABEL_NOISE) -> list[Ranking]:
    """For every post six drafts: unrelated ones, and copies of them that differ in one flaw."""
    rng = random.Random(stream_seed(seed, f"demo/{name}/rankings"))
    return [_ranking(post, noise, rng) for post in posts]


def _ranking(post: Post, noise: float, rng: random.Random) -> Ranking:
    clean = clean_draft(post.facts, rng)
    careless, another = (_careless(clean_draft(post.facts, rng), rng) for _ in range(2))
    other_flaw = rng.choice((Flaw.MISSING, Flaw.RAMBLING, Flaw.UNFINISHED))
    drafts = (
        clean,
        spoil(clean, Flaw.INVENTED, rng),
        spoil(clean, other_flaw, rng),
        careless,
        spoil(careless, Flaw.INVENTED, rng),
        another,
    )
    grades = tuple(draft.quality + rng.gauss(0.0, noise) for draft in drafts)
    return Ranking(post.prompt, tuple(write(draft, rng) for draft in drafts), grades)


def clean_draft(truth: Facts, rng: random.Random) -> Draft:
    """Any number of the facts, all of them right."""
    slots = rng.sample(list(truth), rng.randint(0, len(truth)))
    return Draft(truth, right={slot: truth[slot] for slot in slots}, wrong={})


def _careless(draft: Draft, rng: random.Random) -> Draft:
    for flaw in rng.sample((Flaw.INVENTED, Flaw.RAMBLING, Flaw.UNFINISHED), rng.choice((0, 0, 1, 2))):
        draft = spoil(draft, flaw, rng)
    return draft


def spoil(draft: Draft, flaw: Flaw, rng: random.Random) -> Draft:
    """The same draft with one more flaw, as far as it has facts to lose or room to invent some."""
    match flaw:
        case Flaw.MISSING:
            lost = rng.sample(list(draft.right), min(rng.choice((1, 1, 2)), len(draft.right)))
            return replace(draft, right=_without(draft.right, lost))
        case Flaw.INVENTED:
            return _invent(draft, rng)
        case Flaw.RAMBLING:
            return replace(draft, rambling=draft.rambling + rng.randint(1, 3))
        case Flaw.UNFINISHED:
            return replace(draft, finished=False)


def _invent(draft: Draft, rng: random.Random) -> Draft:
    """One or two more wrong facts: such as the post does not tell, where there are any, or right ones made wrong."""
    untold = [slot for slot in Slot if slot not in draft.truth and slot not in draft.wrong]
    source = untold if untold and (rng.random() < 0.7 or not draft.right) else list(draft.right)
    slots = rng.sample(source, min(rng.choice((1, 1, 2)), len(source)))
    invented = {slot: another_value(slot, draft.truth, rng) for slot in slots}
    return replace(draft, right=_without(draft.right, slots), wrong={**draft.wrong, **invented})


def _without(facts: Facts, slots: Sequence[Slot]) -> Facts:
    return {slot: value for slot, value in facts.items() if slot not in slots}


def write(draft: Draft, rng: random.Random) -> Summary:
    """The draft as text; an unfinished one breaks off in its second half, or lacks only its end."""
    text = summary_text({**draft.right, **draft.wrong})
    idle_sentences = [*(f" {sentence}" for sentence in FILLERS), text]
    text += "".join(rng.choice(idle_sentences) for _ in range(draft.rambling))
    if not draft.finished and rng.random() < 0.5:
        words = text.split(" ")
        text = " ".join(words[: rng.randint(len(words) // 2 + 1, len(words))])
    return Summary(text, draft.finished)
