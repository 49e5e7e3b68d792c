"""The demo's world: the same seed gives the same posts, posts tell their facts, people's summaries are beatable."""

from nearstep.common.random_streams import stream_seed
from nearstep.demo.facts import VALUES, Slot
from nearstep.demo.judge import ShareOfFacts, judge
from nearstep.demo.preferences import Draft, Flaw, draw_rankings, spoil, write
from nearstep.demo.world import Summary, draw_posts, draw_references, summary_text


def rng(name="test"):
    import random

    return random.Random(stream_seed(0, name))


def test_the_same_seed_gives_the_same_world():
    posts = draw_posts(3, "a", 20)
    assert posts == draw_posts(3, "a", 20)
    assert posts != draw_posts(4, "a", 20)
    assert posts != draw_posts(3, "b", 20)
    assert draw_references(3, "a", posts) == draw_references(3, "a", posts)
    assert len({post.prompt for post in draw_posts(0, "many", 2000)}) > 1900


def test_posts_tell_their_facts_in_the_tldr_format():
    for post in draw_posts(0, "a", 200):
        assert post.prompt.startswith("SUBREDDIT: r/")
        assert "\n\nTITLE: " in post.prompt
        assert post.prompt.endswith("\n\nTL;DR:")
        assert all(value.lower() in post.prompt.lower() for value in post.facts.values())


FACTS = {
    Slot.AGE: "19", Slot.FEELING: "angry", Slot.WHO: "cousin", Slot.DEED: "sold my guitar", Slot.PLACE: "Seattle",
    Slot.QUESTION: "Am I wrong here",
}  # fmt: skip


def test_the_judge_counts_by_hand():
    best = judge(FACTS, Summary(summary_text(FACTS)))
    assert (best.right, best.wrong, best.excess_words, best.points) == (6, 0, 0, 6)
    some = judge(FACTS, Summary(" My cousin sold my guitar in Boston."))
    assert (some.right, some.wrong, some.points) == (2, 1, 1)
    assert judge(FACTS, Summary(" My cousin sold my guitar.", finished=False)).points == 1
    assert judge(FACTS, Summary(" word" * 42)).points == -1
    assert judge(FACTS, Summary("")).points == 0


def test_saying_a_thing_twice_counts_once_and_two_answers_are_one_wrong():
    assert judge(FACTS, Summary(" angry angry")).points == 1
    assert judge(FACTS, Summary(" angry sad")).points == 0


def test_people_leave_facts_out_so_they_can_be_beaten():
    posts = draw_posts(0, "a", 300)
    points = [
        judge(post.facts, summary).points for post, summary in zip(posts, draw_references(0, "a", posts), strict=True)
    ]
    best = [judge(post.facts, Summary(summary_text(post.facts))).points for post in posts]
    assert 2 < sum(points) / 300 < 4 < sum(best) / 300


def test_wilson_interval_by_hand():
    low, high = ShareOfFacts(wins=528, ties=0, count=1000).interval()
    assert (round(low, 3), round(high, 3)) == (0.497, 0.559)
    assert ShareOfFacts(wins=1, ties=2, count=4).value == 0.5


def test_every_flaw_makes_a_draft_worse_and_shows_in_its_text():
    clean = Draft(FACTS, right=dict(FACTS), wrong={})
    for flaw in Flaw:
        spoilt = spoil(clean, flaw, rng(flaw))
        assert spoilt.quality < clean.quality
        assert write(spoilt, rng(flaw)) != write(clean, rng(flaw))


def test_labellers_mostly_agree_with_the_judge_they_do_not_know():
    posts = draw_posts(0, "a", 200)
    agreed = disagreed = 0
    for post, ranking in zip(posts, draw_rankings(0, "a", posts), strict=True):
        assert ranking.prompt == post.prompt
        points = [judge(post.facts, summary).points for summary in ranking.summaries]
        for better, worse in ranking.pairs():
            assert ranking.grades[better] > ranking.grades[worse]
            agreed += points[better] > points[worse]
            disagreed += points[better] < points[worse]
    assert agreed > 5 * disagreed


def test_no_value_hides_in_another_of_its_kind():
    for values in VALUES.values():
        assert not [(a, b) for a in values for b in values if a != b and a.lower() in b.lower().split()]
