"""An engine under its laws: built once, on a small policy, with settings that the laws share."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import Policy
from nearstep.rollout.build import make_engine
from nearstep.rollout.engine import Capabilities, EngineSettings, GenerationSettings, RolloutEngine
from nearstep.testing.world import PROMPTS, STOP_IDS, VOCABULARY, prompts_of
from nearstep.types import Rollout, TopLogprobs

VERSION, TOP_K = 4, 5
TOLERANCE = 1e-4
BUILT_FROM = EngineSettings(max_rows=3)
SETTINGS = GenerationSettings(Sampling(0.7), response_length=8, stop_ids=STOP_IDS, seed=0)
WITH_TOP = replace(SETTINGS, top_tokens=TOP_K)
ALL = list(range(len(PROMPTS)))


@dataclass
class Stage:
    """An engine, built once, and the policy that it samples from."""

    given: object
    tolerance: float
    policy: Policy
    built: list[RolloutEngine] = field(default_factory=list)

    @property
    def engine(self) -> RolloutEngine:
        """The engine; it has loaded the policy."""
        if not self.built:
            self.built.append(make_engine(self.given, BUILT_FROM))
        self.built[0].load(self.policy, VERSION)
        return self.built[0]

    @property
    def can(self) -> Capabilities:
        """What the engine says that it can do."""
        return self.engine.capabilities()

    @cached_property
    def rollout(self) -> Rollout:
        """The rollout of all prompts."""
        return self.play()

    def play(self, rows: Sequence[int] = ALL, settings: GenerationSettings = SETTINGS) -> Rollout:
        """The prompts with these numbers, after a fresh load."""
        return self.engine.generate(prompts_of(list(rows)), settings)

    def close(self) -> None:
        """Stop the engine."""
        for engine in self.built:
            engine.close()

    @torch.no_grad()
    def trainer_logprobs(self, rollout: Rollout) -> tuple[Float[Tensor, " actions"], Float[Tensor, "actions vocab"]]:
        """What the trainer computes for the sampled tokens, and for every token in their place."""
        everything = torch.arange(VOCABULARY).expand(len(rollout.actions), -1)
        whole = replace(rollout, top=TopLogprobs(everything, torch.zeros(everything.shape)))
        found = rollout_logprobs(self.policy, whole, SETTINGS.sampling)
        assert found.top is not None
        return found.sampled, found.top

    def gap(self, rollout: Rollout, sampling: Sampling) -> float:
        """The largest difference between recorded log-probs and those of the policy as it stands."""
        with torch.no_grad():
            now = rollout_logprobs(self.policy, rollout, sampling).sampled
        return float((rollout.logprobs - now).abs().max())
