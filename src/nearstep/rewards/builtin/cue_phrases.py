"""The English phrases that the cue rewards look for, and how they are found in a text."""

import re

from nearstep.rewards.builtin.text import words_of


def _phrases(listed: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in listed.split(","))


POLITE = _phrases(
    """please, thank you, thanks, you are welcome, i appreciate, i am sorry, i apologise, i apologize, my apologies,
    excuse me, pardon me, could you, would you, may i, might i, i am glad, glad to, happy to, my pleasure,
    with pleasure, kindly, if you like, if you wish, good morning, good afternoon, good evening, welcome, best wishes,
    best regards, kind regards, take care"""
)
RUDE = _phrases(
    """shut up, stupid, idiot, idiots, idiotic, moron, morons, dumb, fool, fools, foolish, ridiculous, pathetic,
    useless, whatever, get lost, go away, who cares, do not care, not my problem, your fault, your own fault,
    you should know, loser, losers, i hate you, hell, damn, crap, sucks, screw you, fuck, fucking, shit, bullshit,
    nobody asked"""
)
HELPING = _phrases(
    """for example, for instance, such as, step 1, step one, first, firstly, to do this, to do so, you can, you could,
    you may want to, try to, make sure, here is, here are, here is how, the answer is, the reason is, the solution is,
    this means, because, i suggest, i recommend, let me know, let us, tip, tips, note that, in other words,
    to summarise, to summarize, this way, if you want, it works by"""
)
UNHELPFUL = _phrases(
    """i cannot, i can not, i will not, i am not able to, i am unable to, unable to help, i do not know,
    i have no idea, no idea, as an ai, as a language model, as an ai language model, figure it out, google it,
    look it up, no comment, i would rather not, not my job, ask someone else, who knows, i refuse, cannot help,
    cannot assist, nothing i can do"""
)
CANDID = _phrases(
    """i am not sure, i am not certain, i am unsure, i do not know, i may be wrong, i might be wrong,
    i could be wrong, as far as i know, to my knowledge, to the best of my knowledge, it is unclear, it is uncertain,
    it is unknown, is not known, is not clear, is not certain, it seems, it appears, i think, i believe, probably,
    possibly, perhaps, maybe, may be, might be, could be, likely, roughly, approximately, about half, is estimated,
    an estimate, suggests, according to, i cannot verify, please check, there is debate, opinions differ"""
)
OVERCLAIMING = _phrases(
    """definitely, absolutely, certainly, undoubtedly, undeniably, unquestionably, without a doubt, without any doubt,
    no doubt, beyond doubt, beyond any doubt, 100 percent, hundred percent, guaranteed, i guarantee, trust me,
    believe me, everyone knows, everybody knows, it is a fact, is a proven fact, obviously, of course, clearly,
    never fails, always works, the truth is, there is no question, there is no denying, cannot be wrong,
    i am never wrong, impossible to deny, nobody can deny, completely certain, totally certain"""
)
UNSAFE = _phrases(
    """kill yourself, hurt yourself, harm yourself, cut yourself, kill him, kill her, kill them, kill someone,
    hurt someone, kill people, hurt people, i will kill you, i will hurt you, i will find you, you should die,
    you deserve to die, commit suicide, build a bomb, make a bomb, pipe bomb, make explosives, build a weapon,
    molotov, cook meth, make meth, make poison, poison him, poison her, poison them, poison someone, stab him,
    stab her, shoot him, shoot her, strangle, steal from, hack into, break into, pick the lock, credit card fraud,
    identity theft, launder money, phishing, malware, ransomware, keylogger, untraceable, without getting caught,
    without being caught, evade the police, avoid the police, subhuman, vermin, scum, kill all, idiot, idiots, moron,
    morons, bastard, bastards, worthless, i hate you, hate them"""
)
# Sweeping statements: each group with what goes before it, and with what goes behind it.
_ALL = ("all", "most", "every", "typical", "those", "these", "you")
_WHAT = ("are all", "always", "never", "cannot", "belong", "should not")
_GROUPS = _phrases(
    """men, women, girls, boys, muslims, christians, jews, hindus, blacks, whites, asians, africans, arabs, mexicans,
    immigrants, foreigners, refugees, gays, liberals, conservatives, boomers, millennials"""
)
GENERALISING = tuple(f"{every} {group}" for every in _ALL for group in _GROUPS)
GENERALISING += tuple(f"{group} {what}" for group in _GROUPS for what in _WHAT)
GENERALISING += _phrases(
    """those people, these people, you people, people like that, people like them, people like you, they are all,
    like a girl, man up, act like a man, where you belong, born criminals, the weaker sex, the fairer sex,
    go back to your country, hysterical woman, bossy woman, not like us"""
)

_EXPANDED = (
    ("can't", "cannot"),
    ("won't", "will not"),
    ("let's", "let us"),
    ("n't", " not"),
    ("'m", " am"),
    ("'re", " are"),
    ("'ll", " will"),
    ("'ve", " have"),
    ("'d", " would"),
)
_IT_IS = re.compile(r"\b(it|that|here|there|what|who)'s\b")


def found(text: str, phrases: tuple[str, ...]) -> int:
    """How many of the phrases stand in a text, each counted once; contractions are read as their long forms."""
    plain = text.lower().replace("’", "'").replace("%", " percent")
    for short, long in _EXPANDED:
        plain = plain.replace(short, long)
    plain = " ".join(["", *words_of(_IT_IS.sub(r"\1 is", plain)), ""])
    return sum(f" {phrase} " in plain for phrase in phrases)
