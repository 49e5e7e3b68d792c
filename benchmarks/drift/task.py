"""The stability benchmark's task: sort letters. Answers are right or wrong; a small model can get all of them right."""

import random
from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nearstep.common.random_streams import stream_seed
from nearstep.demo.batches import TokenGroup
from nearstep.demo.supervised import ModelSize, new_policy, train_policy

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIZE = ModelSize(hidden=64, layers=2, heads=4, intermediate=128)
SUPERVISED_BATCH = 64


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each letter, an arrow between question and answer, <eos> and <pad>."""
    words = [*LETTERS, ">", "<eos>", "<pad>"]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")


def questions(count: int, length: int, seed: int) -> list[str]:
    """Prompts such as `d a c >`, letters drawn with repetition."""
    draws = random.Random(stream_seed(seed, "stability/questions"))
    return [" ".join([*draws.choices(LETTERS, k=length), ">"]) for _ in range(count)]


def answer(question: str) -> str:
    """The letters of a question in order."""
    return " ".join(sorted(question.removesuffix(" >").split()))


def with_slips(text: str, rate: float, draws: random.Random) -> str:
    """The letters of `text`, each with probability `rate` another one: how the beginner's teachers write."""
    return " ".join(draws.choice(LETTERS) if draws.random() < rate else letter for letter in text.split())


def is_right(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
    """The reward: 1 for the sorted letters and nothing else, 0 for anything else."""
    pairs = zip(prompts, completions, strict=True)
    return [float(completion.strip() == answer(prompt)) for prompt, completion in pairs]


def beginner(length: int, steps: int, slips: float, seed: int) -> PreTrainedModel:
    """A policy that has learned to sort from teachers who slip, and slips as they do."""
    words = tokenizer()
    draws = random.Random(stream_seed(seed, "stability/slips"))
    model = new_policy(words, SIZE, seed=seed)
    groups = []
    for question in questions(steps * SUPERVISED_BATCH, length, seed=seed):
        ids, told = words([question, with_slips(answer(question), slips, draws)])["input_ids"]
        groups.append(TokenGroup(ids, [[*told, words.eos_token_id]]))
    train_policy(model, groups, batch_groups=SUPERVISED_BATCH, seed=seed)
    return model
