"""What is known of the networks of a run before any is loaded: weights by type, and bytes of a pass by token."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Weights:
    """So many weights of one type."""

    count: int
    bytes_each: int  # of the type in which they are computed with
    trained: bool
    packed: float | None = None  # bytes of each as it lies in memory, where it is another type
    small: int = 0  # of them in tensors that are too small for moments in bytes

    @property
    def bytes(self) -> int:
        """What they take as they were loaded."""
        return round(self.count * (self.bytes_each if self.packed is None else self.packed))


@dataclass(frozen=True)
class NetworkSize:
    """What a network adds to those that are there already: weights that it shares with them count there."""

    weights: tuple[Weights, ...]
    layer_weights: int  # of the largest layer
    outside_weights: int  # embedding, last norm, head
    token_weights: int  # that one token is multiplied with: no embedding, no head, of experts those that it goes to
    expert_weights: int  # of all experts
    head_weights: int  # of the output layer, whether it is the embedding too or not
    divided_weights: int | None = None  # of those that tensor parallel divides; None where all are taken to be
    largest_packed: int = 0  # of the largest layer that is unpacked to be computed with

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

    def with_divided(self, count: int) -> "NetworkSize":
        """The same, so many of whose weights tensor parallel divides."""
        return replace(self, divided_weights=count)


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
    inner: float = 0.0  # share of what a layer keeps that processes which compute it together divide

    def within(self, tensor: int) -> float:
        """What remains of a layer's own bytes on each of so many processes that compute it together."""
        return 1 - self.inner + self.inner / tensor

    def recomputed(self, every: int) -> int:
        """Layers that are computed again where every n-th is, the first among them; 0 for none."""
        return -(-self.layers // every) if every else 0

    def kept(self, every: int = 0, tensor: int = 1) -> float:
        """Bytes of a token at the end of a forward pass with gradients; `every` n-th layer is computed again."""
        again = self.recomputed(every)
        return again * self.states + (self.layers - again) * self.layer * self.within(tensor) + self.outside

    def backward(self, every: int = 0, tensor: int = 1) -> float:
        """Bytes beside these while a layer goes back: its own activations, made again, and their gradients."""
        return (self.layer * bool(every) + 2 * self.largest) * self.within(tensor)

    def dividing(self, inner: float) -> "PassBytes":
        """The same, of whose layers such a share is divided."""
        return replace(self, inner=inner)

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
    heads: int = 1  # of attention, which sequence parallel deals out
    tensor_sizes: tuple[int, ...] = (1,)  # so many processes may compute its layers together

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

    def fitting(self, most: int, partners: int = 1) -> int:
        """Rows of a pass: at most so many of each partner, and within their budgets of tokens; at least one."""
        rows, most = 1, min(most, self.rows) * partners
        while rows < most and self.tokens(rows + 1) <= self.micro_tokens * partners:
            rows += 1
        return rows

    @property
    def step_rows(self) -> int:
        """Rows of an optimizer step."""
        return max(1, -(-self.rows // self.minibatches))

    def pass_rows(self, partners: int = 1) -> int:
        """Rows of a pass forward and backward, of all partners that make it together."""
        return self.fitting(min(self.micro_rows, self.step_rows), partners)

    def passes(self, partners: int = 1) -> int:
        """Such passes in an optimizer step."""
        return -(-self.step_rows * partners // self.pass_rows(partners))

    @property
    def decoding_rows(self) -> int:
        """Rows that are generated at a time."""
        return min(self.forward_rows, self.rows)

    def seen(self, rows: int) -> int:
        """Pairs of a token and one that it attends to."""
        prompts = -(-rows // self.generations) * self.prompt * (self.prompt + 1) // 2
        return prompts + rows * (self.response * self.prompt + self.response * (self.response + 1) // 2)
