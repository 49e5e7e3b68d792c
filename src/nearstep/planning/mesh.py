"""How the processes of a planned run lie: which of them share weights, layers, and the tokens of rows."""

from dataclasses import dataclass

from nearstep.planning.quantities import NetworkSize


@dataclass(frozen=True)
class PlannedMesh:
    """How many processes share what. `shard`, `tensor` and `expert` divide weights, `sequence` the tokens of passes of
    training: of its partners each has rows of its own, and pieces may lie over them.

    zero_stage 2 divides gradients and moments over `shard`, but no weights; 3 and None all three.
    """

    replicate: int = 1
    shard: int = 1
    tensor: int = 1
    sequence: int = 1
    expert: int = 1
    zero_stage: int | None = None

    @property
    def devices(self) -> int:
        """All processes; experts and the tokens of rows lie over those that there are anyway."""
        return self.replicate * self.shard * self.tensor

    @property
    def row_groups(self) -> int:
        """Processes with rows of their own."""
        return self.replicate * self.shard

    @property
    def in_pieces(self) -> bool:
        """Whether weights are gathered around passes. Divided layers are pieces too, if of one process."""
        return (self.shard > 1 or self.tensor > 1) and self.zero_stage in (None, 3)

    def weight_pieces(self) -> int:
        """Processes that share a weight."""
        return self.tensor * (self.shard if self.in_pieces else 1)

    def gradient_pieces(self) -> int:
        """Processes that share a gradient."""
        return self.tensor * self.shard

    def moment_pieces(self) -> int:
        """Processes that share a moment of the optimizer, or a float32 master."""
        return self.tensor * self.shard

    def share(self, size: NetworkSize, pieces: int) -> float:
        """Of a network that lies in so many pieces: what is not divided among those that compute a layer together is
        on all of them, and of experts each has 1/expert where that is less."""
        every = max(1, size.count)
        experts = min(size.expert_weights, every) / every
        divided = 1.0 if size.divided_weights is None else min(1.0, size.divided_weights / every)
        common = max(0.0, 1 - max(divided, experts)) if self.tensor > 1 else 0.0
        rest = 1 - experts - common
        return rest / pieces + common * self.tensor / pieces + experts / max(pieces, self.expert)

    def of_whole(self) -> "PlannedMesh":
        """That of a network which every process holds whole."""
        return PlannedMesh(self.devices, sequence=self.sequence)

    def text(self) -> str:
        """As settings."""
        names = {"dp_replicate": self.replicate, "dp_shard": self.shard, "tp_size": self.tensor,
                 "sp_size": self.sequence, "ep_size": self.expert}  # fmt: skip
        found = [f"{name} {count}" for name, count in names.items() if count > 1]
        found += [] if self.zero_stage is None else [f"zero_stage {self.zero_stage}"]
        return ", ".join(found) or "one process"
