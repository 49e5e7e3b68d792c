"""max_length: prompt and response share so many tokens; do_sample = false: greedy, with log-probs of all tokens."""

import json

import pytest
import torch

from nearstep import ConfigError, DataError, PPOConfig, PPOTrainer, generate
from nearstep.rollout.transformers_engine import TransformersEngine
from tests.tiny import byte_tokenizer, tiny_causal_lm

TEXTS = ("ab", "abcdef", "abcdefghi")


class NoLimits(TransformersEngine):
    def capabilities(self):
        from dataclasses import replace

        return replace(super().capabilities(), limits=False)


@pytest.fixture
def trainer(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in TEXTS))

    def make(engine=None, **settings):
        config = PPOConfig(
            dataset_name=str(tmp_path / "prompts.jsonl"), output_dir=str(tmp_path / "out"), response_length=6,
            stop_token=None, batch_size=3, shuffle_dataset=False, num_sample_generations=0, use_cpu=True, **settings,
        )  # fmt: skip
        rewards = [lambda completions, **columns: [0.0] * len(completions)]
        return PPOTrainer(config, byte_tokenizer(), tiny_causal_lm(layers=1), reward_funcs=rewards, engine=engine)

    return make


def played(trainer):
    prompts = next(iter(trainer.recipe.prompts.batches(after=0, until=1)))
    return generate(prompts, trainer.recipe, version=1)


def test_a_response_behind_a_long_prompt_is_shorter(trainer):
    rollout = played(trainer(max_length=10))
    assert rollout.action_counts.tolist() == [6, 4, 1]
    assert not rollout.finished.any()


def test_a_prompt_that_leaves_no_token_is_named(trainer):
    with pytest.raises(DataError, match="at most 8 are allowed"):
        trainer(max_length=9)
    assert len(played(trainer(max_length=9, on_long_prompt="cut_left"))) == 3


def test_an_engine_without_limits_of_rows_is_refused_before_the_run(trainer):
    with pytest.raises(ConfigError, match="NoLimits keeps no limits of single rows"):
        trainer(engine=NoLimits, max_length=10)
    with pytest.raises(ConfigError, match="512 positions: max_length = 513 is more"):
        trainer(max_length=513)


def test_greedy_rollouts_take_the_most_probable_token_and_record_the_whole_distribution(trainer):
    with pytest.warns(UserWarning, match="do_sample = false: every response is the policy's most probable one"):
        run = trainer(do_sample=False, temperature=1.0)
    rollout = played(run)
    rows = rollout.tokens.split(rollout.row_lengths.tolist())
    recorded = rollout.logprobs.split(rollout.action_counts.tolist())
    for row, text, logprobs in zip(rows, TEXTS, recorded, strict=True):
        logits = run.model(row[None]).logits[0, len(text) - 1 : -1, :]  # of the tokens that were chosen
        expected = logits.log_softmax(-1).max(-1)
        assert row[len(text) :].tolist() == expected.indices.tolist()
        assert torch.allclose(logprobs, expected.values, atol=1e-4)
