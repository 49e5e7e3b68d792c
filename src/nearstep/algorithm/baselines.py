"""What advantages are measured against: the critic's values, or the mean of the batch while those explain nothing."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nearstep.algorithm.advantage_rules import Advantage, Credit, CreditInputs
from nearstep.algorithm.advantages import gae


@dataclass(frozen=True)
class ExplainedBaseline:
    """The advantages of `rule` in updates in which the values explain some of the returns' variance; in the others the
    return less its mean over the batch.

    EV = 1 − Var(G − V) / Var(G) is taken over the actions of all scored rows of all processes, G being the discounted
    sum of what follows an action, with λ = 1 whatever the rule's λ: a λ below 1 mixes the values into what they are
    held against. EV ≤ 0 says that the values V are a worse baseline than one number, and the best one number is the
    mean of G. Then the advantage is G less that mean, also with λ = 1: there is nothing worth bootstrapping from. A row
    that was cut off keeps the value of its cut, where it is bootstrapped at all. The critic's targets stay the rule's.
    Source: EVPO (2604.19485).
    """

    rule: Advantage
    gamma: float = 1.0
    needs_critic: bool = True
    uses_token_rewards: bool = True

    def credit(self, inputs: CreditInputs) -> Credit:
        """Credit of the rule, with its advantages or with returns less their mean."""
        credit = self.rule.credit(inputs)
        returns = monte_carlo_returns(inputs, self.gamma)
        mean, explained = self._statistics(inputs, returns)
        fell_back = not explained > 0  # also where returns do not vary, and nothing is to be explained
        advantages = (returns - mean).to(credit.advantages.dtype) if fell_back else credit.advantages
        return replace(credit, advantages=advantages, explained_variance=explained, fell_back=fell_back)

    @staticmethod
    def _statistics(inputs: CreditInputs, returns: Tensor) -> tuple[float, float]:
        """Mean of the returns, and how much of their variance the values explain, over all processes."""
        counted = inputs.to_actions(inputs.scored).double()
        exact, residual = returns.double(), (returns - inputs.values).double()
        sums = [counted.sum(), (exact * counted).sum(), (residual * counted).sum()]
        count, total, residuals = inputs.add_up(torch.stack(sums)).tolist()
        if count == 0:
            return 0.0, 0.0
        mean, offset = total / count, residuals / count
        squares = [((exact - mean).square() * counted).sum(), ((residual - offset).square() * counted).sum()]
        spread, left = inputs.add_up(torch.stack(squares)).tolist()
        return mean, 1 - left / spread if spread > 0 else 0.0


def monte_carlo_returns(inputs: CreditInputs, gamma: float) -> Tensor:
    """Discounted sum of the rewards from every action on, and of what follows the row's last action."""
    return inputs.values + gae(
        inputs.rewards,
        inputs.values,
        inputs.action_counts,
        final_values=inputs.final_values,
        final_advantages=inputs.final_advantages,
        gamma=gamma,
        lam=1.0,
    )
