"""The three kinds of PPO run that AlignTune's guide shows, written for nearstep.

A reward model that is there, a reward model that functions teach first, and reward functions alone. AlignTune's names
(`model_name`, `reward_model_name`, `num_epochs`, `reward_functions`, `composite_weights`, …) are understood everywhere;
a warning says how the setting is called here. Its `backend` has no counterpart: there is one loop.

Run it with `python examples/from_aligntune.py POLICY REWARD_MODEL DATA OUTPUT`, all local folders; DATA may be hh-rlhf.
"""

import sys
from pathlib import Path

from nearstep import PPOConfig, PPOTrainer, RewardConfig, RewardModelTrainer
from nearstep.trainer import TrainOutput


def with_a_reward_model(policy: str, reward_model: str | Path, data: str, output: Path) -> TrainOutput:
    """Basic training."""
    trainer = PPOTrainer(
        PPOConfig(
            model_name_or_path=policy,
            dataset_name=data,
            reward_model_path=reward_model,
            num_train_epochs=1,
            batch_size=1,
            learning_rate=1e-6,
            response_length=32,
            output_dir=output,
        )
    )
    return trainer.train()


def with_a_reward_model_of_your_own(policy: str, data: str, output: Path) -> TrainOutput:
    """Functions teach a reward model, which then scores."""
    reward_trainer = RewardModelTrainer(
        RewardConfig(output_dir=output / "reward_model", num_texts=128, response_length=32),
        base_model_name=policy,
        reward_functions=["helpfulness", "safety", "coherence"],
        composite_weights=[0.4, 0.3, 0.3],
    )
    reward_model_path = reward_trainer.train()
    return with_a_reward_model(policy, reward_model_path, data, output / "ppo")


def with_reward_functions(policy: str, data: str, output: Path) -> TrainOutput:
    """Functions score by themselves; the critic then starts from the policy."""
    trainer = PPOTrainer(
        PPOConfig(
            model_name_or_path=policy,
            dataset_name=data,
            reward_funcs=("helpfulness", "safety"),
            reward_weights=(0.6, 0.4),
            num_train_epochs=1,
            batch_size=1,
            learning_rate=1e-6,
            response_length=32,
            output_dir=output,
        )
    )
    return trainer.train()


def main(policy: str, reward_model: str, data: str, output: str) -> list[TrainOutput]:
    """All three, one after the other, each in a folder of its own."""
    folder = Path(output)
    return [
        with_a_reward_model(policy, reward_model, data, folder / "reward_model_given"),
        with_a_reward_model_of_your_own(policy, data, folder / "reward_model_taught"),
        with_reward_functions(policy, data, folder / "functions"),
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
