"""Thirty bugs that PPO implementations have had, planted one after another: how many of them do the tests notice?

    python -m tests.mutants.planted [--goal 29]

Each is planted in a copy of the repository, and the tests that stand for its place run on it; those are the cheap ones,
so that a bug that only a long run shows counts as missed. The kinds are those of threads about other implementations.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.__main__ import REPOSITORY, copy_of, replace_text, run_tests

LIMIT_SECONDS = 600
CREDIT = ("tests/algorithm/test_advantages.py", "tests/training/test_experience.py")
LOSSES = ("tests/algorithm/test_losses.py", "tests/algorithm/test_divergences.py")
SUMS = ("tests/algorithm/test_kl_and_statistics.py",)
UPDATE = ("tests/training/test_update.py", "-k", "not learn", "-m", "slow or not slow")
RESUME = ("tests/checkpoint/test_resume.py", "-k", "joint or decoupled")


@dataclass(frozen=True)
class Bug:
    """A change of one place, which stands there once, and the tests that should notice."""

    name: str
    file: str  # below src/nearstep
    right: str
    wrong: str
    tests: tuple[str, ...]

    def planted(self, tree: Path) -> tuple[Path, str]:
        """The file, and its text with the bug. Raises ValueError where the place is not there exactly once."""
        path = tree / "src" / "nearstep" / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.right) != 1:
            raise ValueError(f"{self.name}: {self.file} has the place {text.count(self.right)} times")
        return path, text.replace(self.right, self.wrong)


BUGS = (
    # Credit
    Bug("GAE runs over the end of a row", "algorithm/advantages.py",
        "running = final_values.to(values.dtype), final_advantages.to(values.dtype)",
        "running = final_values.to(values.dtype), final_advantages.to(values.dtype) + values.sum()", CREDIT),
    Bug("mask off by one: the score lands one action early", "algorithm/shaping.py",
        "action_counts.cumsum(0) - 1)", "action_counts.cumsum(0) - 2)", CREDIT),
    Bug("lambda is left out", "algorithm/advantages.py", "gamma * lam * running", "gamma * running", CREDIT),
    Bug("the reward of a row that was cut off is that of one that ended", "training/credit.py",
        "rollout.finished & (rollout.action_counts < config.response_length)", "torch.ones_like(rollout.finished)",
        CREDIT),
    Bug("a truncated row is not bootstrapped", "training/credit.py",
        "rewarded.after_eos | ~episodes.finished if", "rewarded.after_eos if", CREDIT),
    Bug("the missing-EOS penalty goes to rows that ended", "algorithm/shaping.py",
        "torch.where(finished, scores, scores - missing_eos_penalty)",
        "torch.where(finished, scores - missing_eos_penalty, scores)", SUMS + CREDIT),
    Bug("returns are the advantages without the values", "algorithm/advantage_rules.py",
        "gaps + inputs.values)", "gaps)", CREDIT),
    Bug("groups are compared across prompts", "algorithm/advantages.py",
        "groups: Tensor = wide(totals).unflatten(0, (-1, group_size)) * here",
        "groups: Tensor = wide(totals).unflatten(0, (group_size, -1)).T * here",
        ("tests/algorithm/test_group_advantages.py",)),
    Bug("leave-one-out counts the row itself", "algorithm/advantages.py", "gaps * size / others", "gaps",
        ("tests/algorithm/test_group_advantages.py",)),
    # KL and statistics
    Bug("the KL has the other sign", "algorithm/kl.py",
        "        return -log_ratio\n", "        return log_ratio\n", SUMS),
    Bug("k3 of the other direction", "algorithm/kl.py",
        "log_ratio.expm1() - log_ratio", "(-log_ratio).expm1() + log_ratio", SUMS),
    Bug("the KL penalty is added to the reward", "training/experience.py",
        "other - kl_coef * penalised_kl", "other + kl_coef * penalised_kl", CREDIT),
    Bug("whitening counts what should not count", "algorithm/statistics.py",
        "torch.ones_like(exact) if counted is None else counted.double()", "torch.ones_like(exact)", SUMS),
    Bug("whitening on each process by itself", "algorithm/statistics.py",
        "squares = add_up(((exact - mean).square() * weights).sum())",
        "squares = ((exact - mean).square() * weights).sum()",
        (*SUMS, "tests/scale/test_two_processes.py")),
    Bug("the adaptive coefficient runs away from its target", "algorithm/kl.py",
        "kl / target - 1", "1 - kl / target", ("tests/algorithm/test_options.py",)),
    # Policy and critic
    Bug("the ratio is upside down", "algorithm/kl.py",
        "(wide(logprobs) - wide(old_logprobs)).clamp(", "(wide(old_logprobs) - wide(logprobs)).clamp(", LOSSES),
    Bug("clipped on the wrong side", "algorithm/trust_regions.py",
        "(advantages > 0) & (ratio > 1 + self.high)", "(advantages < 0) & (ratio > 1 + self.high)", LOSSES),
    Bug("the divergence mask has the wrong sign", "algorithm/trust_regions.py",
        "(advantages > 0) & (now > old)", "(advantages > 0) & (now < old)", LOSSES),
    Bug("the value loss takes the smaller error", "algorithm/losses.py",
        "torch.maximum((values - returns)", "torch.minimum((values - returns)", LOSSES),
    Bug("the value loss loses its half", "algorithm/losses.py",
        "(clipped - returns).square()) / 2", "(clipped - returns).square())", LOSSES),
    Bug("the mean of a micro-batch's mean", "training/objectives.py",
        "start=total / divisors.policy)", "start=total / len(micro.old_logprobs))", UPDATE),
    Bug("the gradient is not cut", "training/update.py",
        "if r.config.max_grad_norm is not None:", "if r.config.max_grad_norm is None:", UPDATE),
    Bug("a step that is not finite is taken", "training/update.py",
        "if not torch.isfinite(total):", "if False:", UPDATE),
    Bug("gradients of the last minibatch stay", "training/update.py",
        "    for learner in learners.values():\n        learner.free_gradients()\n    divisors",
        "    divisors", UPDATE),
    # Models and sampling
    Bug("temperature on one side alone", "rollout/transformers_engine.py",
        "sampling_logprobs(logits, settings", "sampling_logprobs(logits * 1.2, settings",
        ("tests/training/test_update.py", "-k", "r08")),
    Bug("the reference is the policy that learns", "models/roles.py",
        "self.policy.model.disable_adapter() if self.adapters_off", "self.idle.here() if self.adapters_off",
        ("tests/training/test_reference.py", "tests/models/test_roles_and_loading.py")),
    Bug("rewards read the stop token and what is hidden", "rewards/decoding.py",
        "[token for token in seen if token not in hidden]", "ids", ("tests/rewards/test_model.py",
        "tests/rewards/test_functions.py")),
    # Going on
    Bug("the optimizer begins anew on resume", "checkpoint/learner_state.py",
        'load_state_dict({"state": states, "param', 'load_state_dict({"state": {}, "param', RESUME),
    Bug("resume repeats an update of the data", "data/prompt_source.py",
        "if played is None else played\n", "if played is None else max(played - self.plan.prompts, 0)\n", RESUME),
    Bug("the critic's weights are not put back", "checkpoint/snapshot.py",
        "    for network, learner in wanted.items():\n",
        "    for network, learner in [*wanted.items()][:1]:\n", RESUME),
)  # fmt: skip


def main() -> int:
    """Plant each, count what is noticed, name what is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goal", type=int, default=29, help="bugs that must be noticed")
    goal, missed = parser.parse_args().goal, []
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_of(REPOSITORY, Path(folder) / "copy")
        for tests in dict.fromkeys(bug.tests for bug in BUGS):
            failure = run_tests(tree, tests, LIMIT_SECONDS)
            if failure is not None:
                print(f"without any bug: {failure}")
                return 2
        for number, bug in enumerate(BUGS, 1):
            began, (path, text) = time.monotonic(), bug.planted(tree)
            original = path.read_text(encoding="utf-8")
            replace_text(path, text)
            noticed_by = run_tests(tree, bug.tests, LIMIT_SECONDS)
            replace_text(path, original)
            missed += [bug.name] if noticed_by is None else []
            print(f"{number:2}  {time.monotonic() - began:4.0f} s  {bug.name}: {noticed_by or 'MISSED'}", flush=True)
    print(f"noticed: {len(BUGS) - len(missed)} of {len(BUGS)}")
    return 0 if len(BUGS) - len(missed) >= goal else 1


if __name__ == "__main__":
    raise SystemExit(main())
