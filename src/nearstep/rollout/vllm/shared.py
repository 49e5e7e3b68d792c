"""One vLLM server for several processes of a run: one gives it the weights, and each asks for its own rows."""

from dataclasses import dataclass, replace
from uuid import uuid4

from nearstep.common.errors import NearstepError
from nearstep.models.roles import Policy
from nearstep.rollout.engine import Capabilities, GenerationSettings, RowEnded
from nearstep.rollout.vllm.server import VLLMServerEngine
from nearstep.scale.backend import Backend
from nearstep.types import Prompts, Rollout


@dataclass
class SharedServerEngine:
    """The engine of each process. All of them load together; the rows of one are no business of the others."""

    engine: VLLMServerEngine
    backend: Backend

    @staticmethod
    def of(engine: VLLMServerEngine, backend: Backend) -> "SharedServerEngine":
        """An engine of this process whose weights have the same mark on all; every process calls this."""
        return SharedServerEngine(replace(engine, mark=backend.gather(uuid4().hex[:8])[0]), backend)

    def capabilities(self) -> Capabilities:
        """See RolloutEngine.capabilities."""
        return self.engine.capabilities()

    def load(self, policy: Policy, version: int) -> None:
        """The first process gives the server the weights once no other has rows there; all raise what that raises."""
        self.backend.wait_for_all()
        problem: tuple[type[NearstepError], str] | None = None
        try:
            if self.backend.rank == 0:
                self.engine.load(policy, version)
        except NearstepError as error:
            problem = type(error), str(error)
        problem = self.backend.gather(problem)[0]
        if problem is not None:
            kind, message = problem
            raise kind(message)
        if self.backend.rank != 0:
            self.engine.follow(policy, version)

    def generate(self, prompts: Prompts, settings: GenerationSettings, row_ended: RowEnded | None = None) -> Rollout:
        """See RolloutEngine.generate."""
        return self.engine.generate(prompts, settings, row_ended)

    def close(self) -> None:
        """The first process takes the weights away; others may have ended long ago, and are not waited for."""
        if self.backend.rank == 0:
            self.engine.close()
