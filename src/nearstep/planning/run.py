"""What memory and time of a planned run depend on: its networks, its rows, how processes lie, what is kept where."""

from dataclasses import dataclass

from nearstep.planning.mesh import PlannedMesh
from nearstep.planning.quantities import NetworkSize, PlannedNetwork, PlannedRows


@dataclass(frozen=True)
class ZeroBuffers:
    """Numbers that an engine of DeepSpeed holds at most: of gradients in one message, of weights gathered (ZeRO-3)."""

    bucket: int = 500_000_000
    gathered: int = 1_000_000_000


@dataclass(frozen=True)
class PlannedRun:
    """All that memory and time depend on."""

    networks: tuple[PlannedNetwork, ...]
    rows: PlannedRows
    mesh: PlannedMesh
    every: int = 0  # n-th layer that is recomputed (gradient_checkpointing), 0 for none
    adam: bool = True
    eight_bit: bool = False  # moments in a byte each
    fused: bool = True
    masters: bool = True
    is_gpu: bool = True
    cuts: bool = False  # top_p or top_k
    own_engine: bool = True
    offloaded: tuple[str, ...] = ()  # roles that are in the host's memory while they do not compute
    zero: ZeroBuffers = ZeroBuffers()
    undivided: str | None = None  # the setting for which no weight or moment may be dealt out; None where it may

    def of(self, role: str) -> list[PlannedNetwork]:
        """The networks of a role."""
        return [network for network in self.networks if network.role == role]

    @property
    def policy(self) -> PlannedNetwork:
        """The network that is trained."""
        return self.of("policy")[0]

    @property
    def trained(self) -> list[PlannedNetwork]:
        """The networks with an optimizer."""
        return [network for network in self.networks if network.trains]

    def mesh_of(self, network: PlannedNetwork) -> PlannedMesh:
        """How a network lies: reward models, and roles that are to be whole, are whole on every process."""
        return self.mesh.of_whole() if network.whole else self.mesh

    def under_engine(self, network: PlannedNetwork) -> bool:
        """Whether DeepSpeed trains it."""
        return network.trains and not network.whole and self.mesh.zero_stage is not None and self.mesh.devices > 1

    def weights_of(self, network: PlannedNetwork) -> NetworkSize:
        """The weights that its passes run through: the policy's where it has few of its own."""
        return self.policy.size if network.weights_of_policy or network.on_policy else network.size

    @property
    def pass_rows(self) -> int:
        """Rows of a pass of training, of all processes that make it together."""
        return self.rows.pass_rows(self.mesh.sequence)

    @property
    def passes(self) -> int:
        """Such passes in an optimizer step."""
        return self.rows.passes(self.mesh.sequence)

    @property
    def pass_tokens(self) -> int:
        """Tokens of a pass of training that a process computes."""
        return -(-self.rows.tokens(self.pass_rows) // self.mesh.sequence)

    @property
    def pass_actions(self) -> int:
        """Actions of such a pass whose logits a process computes."""
        return -(-self.pass_rows * self.rows.response // self.mesh.sequence)
