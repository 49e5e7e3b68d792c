"""Evaluation and samples: the most probable token each time, whatever the sampling settings, with the weights as they
are, and a mean over every row."""

import json

import pytest
import torch
from transformers import TrainerCallback

from nearstep import PPOTrainer
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import PROMPTS, settings

STOPS = tuple(range(0, 258, 5))
HELD_OUT = ["xyz", "once upon", "Q", "why?", "tell me"]


def greedy(model, ids, longest=6):
    """The most probable token after another, by transformers' own forward pass."""
    response = []
    while len(response) < longest and not (response and response[-1] in STOPS):
        logits = model(input_ids=torch.tensor([ids + response]), use_cache=False).logits[0, -1]
        response.append(int(logits.argmax()))
    return response


def even_share(ids):
    return sum(token % 2 == 0 for token in ids) / len(ids)


class Plays(TrainerCallback):
    """Answers the evaluation prompts after every update, before evaluation does."""

    def __init__(self, model, tokenizer):
        self.model, self.prompts, self.responses = model, [tokenizer(text).input_ids for text in HELD_OUT], []
        self.start = self.answers()

    @torch.no_grad()
    def answers(self):
        return [greedy(self.model, ids) for ids in self.prompts]

    def on_step_end(self, args, state, control, **kwargs):
        self.responses.append(self.answers())


@pytest.mark.slow
def test_evaluation_and_samples_are_greedy(tmp_path):
    """Evaluated and sampled after each of two updates, with weights that move in between."""
    asked = {text: [] for text in HELD_OUT + PROMPTS}

    def reward(prompts, completion_ids, **kwargs):
        for text, ids in zip(prompts, completion_ids, strict=True):
            asked[text].append(list(ids))
        return [even_share(ids) for ids in completion_ids]

    config = settings(
        tmp_path, eval_steps=1, total_episodes=16, learning_rate=0.05, optim="sgd", stop_token_id=STOPS,
        temperature=1.3, num_sample_generations=2, local_rollout_forward_batch_size=2,
    )  # fmt: skip
    model, tokenizer = tiny_causal_lm(), byte_tokenizer()
    plays = Plays(model, tokenizer)
    PPOTrainer(
        args=config, processing_class=tokenizer, model=model, reward_funcs=reward, callbacks=[plays],
        train_dataset=[{"prompt": p} for p in PROMPTS], eval_dataset=[{"prompt": p} for p in HELD_OUT],
    ).train()  # fmt: skip
    first, second = plays.responses
    assert first != second  # the weights moved

    for text, *by_update in zip(HELD_OUT, plays.start, first, second, strict=True):
        assert {tuple(ids) for ids in asked[text]} == {tuple(ids) for ids in by_update}
        assert asked[text][-1] == by_update[-1]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    shown = [line["eval/objective/scores"] for line in lines if "eval/objective/scores" in line]
    assert shown == pytest.approx([sum(map(even_share, of)) / len(of) for of in plays.responses])
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    shown = [[tokenizer.decode(ids[:-1] if ids[-1] in STOPS else ids) for ids in of[:4]]
             for of in (plays.start, *plays.responses)]  # fmt: skip
    assert [sample["response"] for sample in samples] == [*shown[1], *shown[2]]
    assert [sample["start_response"] for sample in samples] == [*shown[0], *shown[0]]
    assert [sample["start_score"] for sample in samples] == pytest.approx(
        [even_share(ids) for ids in plays.start[:4]] * 2
    )
