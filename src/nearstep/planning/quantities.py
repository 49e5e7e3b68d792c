"""What is known of the networks of a run before any is loaded: weights by type, and bytes of a pass by token."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Weights:
    """So many weights of one type."""

    count: int
    bytes_each: int
    trained: bool

    @property
    def bytes(self) -> int:
        """What they take as they were loaded."""
        return self.count * self.bytes_each


@dataclass(frozen=True)
class NetworkSize:
    """What a network adds to those that are there already: weights that it shares with them count there."""

    weights: tuple[Weights, ...]
    layer_weights: int  # of the largest layer
    outside_weights: int  # embedding, last norm, head
    token_weights: int  # that one token is multiplied with: no embedding, no head, of experts those that it goes to
    expert_weights: int  # of all experts
    head_weights: int  # of the output layer, whether it is the embedding too or not

    @property
    def count(self) -> int:
        """All weights."""
        return sum(each.count for each in self.weights)

    @property
    def trained(self) -> int:
        """Weights that train."""
        return sum(each.count for each in self.weights if each.trained)

    @property
    def bytes(self) -> int:
        """All weights as they were loaded."""
        return sum(each.bytes for each in self.weights)

    @property
    def bytes_each(self) -> int:
        """The type in which it computes: that of most weights."""
        return max(self.weights, key=lambda each: each.count).bytes_each if self.weights else 4


@dataclass(frozen=True)
class PassBytes:
    """Bytes for each token of a pass, of one layer on average and outside of layers; calls of kernels and keys too."""

    layers: int
    layer: float  # kept of a layer for the backward pass
    outside: float  # kept outside of layers
    states: float  # what goes from layer to layer, which is all that is kept of a layer that is recomputed
    working: float  # most that lives at once in a pass without gradients
    largest: float  # the largest single tensor
    cache: float  # keys and values, of all layers
    layer_calls: float
    outside_calls: float
    is_traced: bool = True  # else by rule of thumb

    def kept(self, *, recomputed: bool) -> float:
        """Bytes of a token at the end of a forward pass with gradients."""
        return self.layers * (self.states if recomputed else self.layer) + self.outside

    def backward(self, *, recomputed: bool) -> float:
        """Bytes beside these while the last layer goes back: its own activations, made again, and their gradients."""
        return (self.layer if recomputed else 0.0) + 2 * self.largest

    @property
    def calls(self) -> float:
        """Kernels that a forward pass calls."""
        return self.layers * self.layer_calls + self.outside_calls


@dataclass(frozen=True)
class PlannedNetwork:
    """A network of the run. What it shares with one before it (a trunk, frozen weights under adapters) counts there."""

    role: str  # policy, value, reference, teacher, reward
    name: str  # folder or hub name
    size: NetworkSize
    passes: PassBytes
    width: int  # of the states
    attention_width: int  # heads × width of a head
    vocabulary: int = 0  # logits of a token; 0 where it gives numbers instead
    trains: bool = False
    whole: bool = False  # on every process, however the others lie
    layer_by_layer: bool = True  # how it is gathered where it lies in pieces, else all at once
    on_policy: bool = False  # its passes are those of the policy: a head on its trunk
    weights_of_policy: bool = False  # it runs on the policy's weights, with adapters off or others
    copies: int = 1
    autocast: bool = False

    @property
    def compute_bytes(self) -> int:
        """Of a number in its products."""
        return 2 if self.autocast else self.size.bytes_each


@dataclass(frozen=True)
class PlannedRows:
    """The rows that a process has in an update, all as long as they may be, and how many it takes at a time."""

    rows: int
    prompt: int
    response: int
    micro_rows: int
    micro_tokens: int
    forward_rows: int
    generations: int = 1
    epochs: int = 4
    minibatches: int = 1
    critic_epochs: int | None = None  # of a critic that trains after the policy; None for together

    def tokens(self, rows: int) -> int:
        """Tokens that a network sees of so many rows: a prompt once, however many samples it has."""
        return -(-rows // self.generations) * self.prompt + rows * self.response

    def fitting(self, most: int) -> int:
        """Rows of a pass: at most so many, and within the budget of tokens; at least one."""
        rows = 1
        while rows < min(most, self.rows) and self.tokens(rows + 1) <= self.micro_tokens:
            rows += 1
        return rows

    @property
    def step_rows(self) -> int:
        """Rows of an optimizer step."""
        return max(1, -(-self.rows // self.minibatches))

    @property
    def pass_rows(self) -> int:
        """Rows of a pass forward and backward."""
        return self.fitting(min(self.micro_rows, self.step_rows))

    @property
    def passes(self) -> int:
        """Such passes in an optimizer step."""
        return -(-self.step_rows // self.pass_rows)

    @property
    def decoding_rows(self) -> int:
        """Rows that are generated at a time."""
        return min(self.forward_rows, self.rows)

    def seen(self, rows: int) -> int:
        """Pairs of a token and one that it attends to."""
        prompts = -(-rows // self.generations) * self.prompt * (self.prompt + 1) // 2
        return prompts + rows * (self.response * self.prompt + self.response * (self.response + 1) // 2)


@dataclass(frozen=True)
class PlannedMesh:
    """How many processes share what. `shard`, `tensor` and `expert` divide weights, `sequence` the tokens of a row.

    zero_stage 1 and 2 divide moments, and moments with gradients, over `shard`, but no weights; 3 and None all three.
    """

    replicate: int = 1
    shard: int = 1
    tensor: int = 1
    sequence: int = 1
    expert: int = 1
    zero_stage: int | None = None

    @property
    def devices(self) -> int:
        """All processes; experts lie over those that share rows anyway."""
        return self.replicate * self.shard * self.tensor * self.sequence

    @property
    def row_groups(self) -> int:
        """Processes with rows of their own."""
        return self.replicate * self.shard

    @property
    def in_pieces(self) -> bool:
        """Whether weights are gathered around passes."""
        return self.shard > 1 and self.zero_stage in (None, 3)

    def weight_pieces(self) -> int:
        """Processes that share a weight."""
        return self.tensor * (self.shard if self.in_pieces else 1)

    def gradient_pieces(self) -> int:
        """Processes that share a gradient."""
        return self.tensor * (1 if self.zero_stage == 1 else self.shard)

    def moment_pieces(self) -> int:
        """Processes that share a moment of the optimizer, or a float32 master."""
        return self.tensor * self.shard

    def share(self, size: NetworkSize, pieces: int) -> float:
        """Of a network that lies in so many pieces: 1/pieces, and of experts 1/expert where that is less."""
        every = max(1, size.count)
        experts = min(size.expert_weights, every) / every
        return (1 - experts) / pieces + experts / max(pieces, self.tensor * self.expert)

    def text(self) -> str:
        """As settings."""
        names = {"dp_replicate": self.replicate, "dp_shard": self.shard, "tp_size": self.tensor,
                 "sp_size": self.sequence, "ep_size": self.expert}  # fmt: skip
        found = [f"{name} {count}" for name, count in names.items() if count > 1]
        found += [] if self.zero_stage is None else [f"zero_stage {self.zero_stage}"]
        return ", ".join(found) or "one process"
