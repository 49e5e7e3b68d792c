"""An engine that another one stands in for, once it is lost for good; only where the user asked for that."""

from dataclasses import dataclass

from nearstep.common.errors import LostEngineError
from nearstep.common.waiting import say
from nearstep.models.roles import Policy
from nearstep.rollout.engine import Capabilities, GenerationSettings, RolloutEngine, RowEnded, rest
from nearstep.types import Prompts, Rollout


@dataclass
class EngineWithFallback:
    """Asks `first` until it is lost, and `second` from then on. Both must be able to do the same."""

    first: RolloutEngine
    second: RolloutEngine
    name: str  # of the second, for the message
    policy: Policy | None = None
    version: int = 0
    lost: bool = False

    def capabilities(self) -> Capabilities:
        """Those of the first, which a run is checked against."""
        return self.first.capabilities()

    def load(self, policy: Policy, version: int) -> None:
        """See RolloutEngine.load."""
        self.policy, self.version = policy, version
        if not self.lost:
            try:
                self.first.load(policy, version)
                return
            except LostEngineError as error:
                self._give_up(error)
        self.second.load(policy, version)

    def generate(self, prompts: Prompts, settings: GenerationSettings, row_ended: RowEnded | None = None) -> Rollout:
        """See RolloutEngine.generate. Rows that the first had told of are not told of again."""
        told: set[int] = set()

        def tell(row: int, ids: list[int], finished: bool) -> None:
            if row_ended is not None and row not in told:
                told.add(row)
                row_ended(row, ids, finished)

        row_told = None if row_ended is None else tell
        if not self.lost:
            try:
                return self.first.generate(prompts, settings, row_told)
            except LostEngineError as error:
                self._give_up(error)
            assert self.policy is not None, "load() comes before generate()"
            self.second.load(self.policy, self.version)
        return self.second.generate(prompts, settings, row_told)

    def sleep(self) -> None:
        """See SleepingEngine.sleep."""
        rest(self.second if self.lost else self.first)

    def close(self) -> None:
        """See RolloutEngine.close."""
        try:
            self.first.close()
        finally:
            self.second.close()

    def _give_up(self, error: LostEngineError) -> None:
        self.lost = True
        say(f"{error}. From here on engine = {self.name} generates (engine_fallback)")
