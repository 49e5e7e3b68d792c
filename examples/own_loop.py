"""PPO as a loop of your own: generate, score, make_experience and update are public and usable alone.

Run it with `python examples/own_loop.py POLICY_FOLDER PROMPTS_FILE`.
"""

import sys
from collections.abc import Sequence

from nearstep import PPOConfig, RunInputs, State, assemble, generate, make_experience, update


def brevity(completions: Sequence[str], **columns: object) -> list[float]:
    """A reward of your own: shorter is better."""
    return [-len(text) / 100 for text in completions]


def main(policy: str, prompts_file: str, updates: int = 3) -> list[float]:
    config = PPOConfig(
        model_name_or_path=policy,
        dataset_name=prompts_file,
        response_length=16,
        per_device_train_batch_size=8,
        total_episodes=8 * updates,
        learning_rate=1e-4,
    )
    run, state = assemble(config, RunInputs(reward_funcs=[brevity])), State()
    history = []
    for prompts in run.prompts.batches(after=0, until=updates):
        state.begin_update()
        rollout = generate(prompts, run, version=state.update)
        scores = run.rewards(prompts, rollout)
        experience = make_experience(rollout, scores, run, state, prompts=prompts)
        _, steps = update(experience, run.schedule.phases(state.update), run)
        run.learners.end_update()
        state.end_update(run.batch, steps, config.max_broken_updates)
        history.append(float(scores.total.mean()))
        print(f"update {state.update}: mean score {history[-1]:.3f}")
    return history


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:3])
