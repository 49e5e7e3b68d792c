"""In real runs, rewards in worker processes begin before the last row is generated; none is left if it fails."""

import time
from dataclasses import dataclass, replace
from typing import Any

import pytest

from nearstep import PPOTrainer
from nearstep.training.state import State
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.trainer.test_failing_rewards import children
from tests.training.runs import PROMPTS, settings

REWARDS = """
import pathlib

def score(completion_ids, **columns):
    (ids,) = completion_ids
    (pathlib.Path(__file__).parent / "scored").touch()
    return [sum(token < 100 for token in ids) / len(ids)]
"""
LIMIT_SECONDS = 60.0


@dataclass
class Waits:
    """The engine of a run, whose last row does not end before a reward has been asked about another."""

    inner: Any
    folder: Any
    waited: int = 0
    fails: bool = False

    def load(self, policy, version):
        self.inner.load(policy, version)

    def capabilities(self):
        return self.inner.capabilities()

    def close(self):
        self.inner.close()

    def generate(self, prompts, settings, row_ended=None):
        scored, left = self.folder / "scored", len(prompts)
        scored.unlink(missing_ok=True)

        def told(row, ids, finished):
            nonlocal left
            left -= 1
            if left == 0:
                began = time.monotonic()
                while not scored.exists():
                    assert time.monotonic() - began < LIMIT_SECONDS
                    time.sleep(0.01)
                self.waited += 1
                if self.fails:
                    raise RuntimeError("the engine fails")
            row_ended(row, ids, finished)

        return self.inner.generate(prompts, settings, told)


@pytest.fixture
def trainer(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)
    prompts = [{"prompt": text} for text in PROMPTS]
    trainer = PPOTrainer(
        args=settings(tmp_path / "run", reward_workers=2, total_episodes=16, num_ppo_epochs=1),
        processing_class=byte_tokenizer(),
        model=tiny_causal_lm(),
        reward_funcs=f"{tmp_path / 'rewards.py'}:score",
        train_dataset=prompts,
        eval_dataset=prompts[:2],
    )
    trainer.recipe = replace(trainer.recipe, engine=Waits(trainer.recipe.engine, tmp_path))
    yield trainer
    trainer.recipe.rewards.close()


@pytest.mark.slow
def test_rewards_begin_while_rows_are_generated_in_evaluation_as_well(trainer):
    trainer.train()
    assert trainer.recipe.engine.waited == 4  # what the start answers, two updates and an evaluation


def test_evaluation_is_the_same_where_nothing_begins_early(trainer):
    engine, evaluator = trainer.recipe.engine, trainer.recipe.evaluator
    metrics = evaluator.evaluate(engine, State())
    assert engine.waited == len(evaluator.sets[0].chunks) == 1
    silent = evaluator.evaluate(engine.inner, State())
    assert metrics == silent
    assert len(evaluator.samples(engine, State())) == len(evaluator.sample_prompts)
    assert engine.waited == 2


def test_an_engine_that_fails_leaves_no_process(trainer):
    before = children()
    trainer.recipe.engine.fails = True
    with pytest.raises(RuntimeError, match="the engine fails"):
        trainer.train()
    assert children() - before == set()
