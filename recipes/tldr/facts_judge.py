"""A judge for the demo's world: it counts which facts of a post a summary states, and which it makes up."""

from nearstep.demo.judge import PATTERNS, judge
from nearstep.demo.world import Summary


def grade(prompt: str, answer: str, rubric: str | None) -> float:
    """Right facts less wrong ones and needless words; the facts are those that the post states."""
    post = prompt.split("POST:")[-1]
    facts = {slot: found[0] for slot, pattern in PATTERNS.items() if (found := pattern.findall(post))}
    return judge(facts, Summary(answer)).points
