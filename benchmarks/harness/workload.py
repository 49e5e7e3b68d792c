"""The work that both systems are given: models, tokenizer, prompts, response lengths. Imports neither of them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ModelSize:
    """A Llama: widths, layers, vocabulary."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool


SIZES: Mapping[str, ModelSize] = {
    "tiny": ModelSize(32, 64, 2, 2, 2, 512, tied=True),  # for tests of the harness
    "s": ModelSize(192, 512, 8, 6, 6, 32_000, tied=True),  # 10 M weights
    "m": ModelSize(512, 1408, 8, 8, 8, 32_000, tied=False),  # 58 M
    "l": ModelSize(2048, 8192, 16, 32, 8, 128_256, tied=True),  # 1.2 B, for a GPU
}

# The share of the limit that is the mean of a constant chance of ending; 11 % of the rows then reach the limit, and
# the mean response has 40 % of it.
HAZARD_SCALE = 0.448


@dataclass(frozen=True)
class Workload:
    """One row of the table: what is run on both sides."""

    name: str
    kind: Literal["ppo", "dppo", "rollout"]
    model: str = "s"
    dtype: str = "float32"
    rows: int = 32
    shortest_prompt: int = 16
    longest_prompt: int = 256
    generations: int = 1
    response_length: int = 128
    micro_rows: int = 8  # per_device_train_batch_size, its default in both
    epochs: int = 4
    trust_region: str = "clip"
    top_k: int = 20  # of the top-K divergences, its default in both
    vocabulary: int | None = None  # if other than the model's
    shared_trunk: bool = False
    adapters: bool = False  # of policy and critic, on one trunk that is frozen; nearstep's setting
    decode_graphs: bool = False  # nearstep's setting, for a GPU
    updates: int = 1  # of more than one the first is a warm-up
    device: str = "cpu"

    @property
    def size(self) -> ModelSize:
        """Widths of the models."""
        size = SIZES[self.model]
        return size if self.vocabulary is None else replace(size, vocabulary=self.vocabulary)

    @property
    def eos(self) -> int:
        """The stop token: the last but one of the vocabulary."""
        return self.size.vocabulary - 2

    @property
    def pad(self) -> int:
        """The padding token: the last of the vocabulary."""
        return self.size.vocabulary - 1

    def prompts(self) -> list[list[int]]:
        """Distinct prompts of evenly spread lengths in random order; each is answered `generations` times."""
        count = self.rows // self.generations
        draws = torch.Generator().manual_seed(1)
        span = self.longest_prompt - self.shortest_prompt
        lengths = [self.shortest_prompt + round(span * (number + 0.5) / count) for number in range(count)]
        order = torch.randperm(count, generator=draws).tolist()
        return [torch.randint(0, self.eos, (lengths[place],), generator=draws).tolist() for place in order]

    def response_lengths(self) -> list[int]:
        """Lengths as a constant chance of ending gives them, cut at the limit, in random order: mean 40 % of it."""
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(2)).tolist()
        scale = HAZARD_SCALE * self.response_length
        quantiles = [(place + 0.5) / self.rows for place in order]
        return [min(self.response_length, max(1, round(-scale * math.log1p(-q)))) for q in quantiles]


@dataclass(frozen=True)
class LengthPlan:
    """How long the response to each prompt is; one length for each of its samples."""

    by_prompt: Mapping[tuple[int, ...], tuple[int, ...]]

    @staticmethod
    def of(workload: Workload) -> "LengthPlan":
        """The plan of a workload."""
        lengths, each = workload.response_lengths(), workload.generations
        prompts = enumerate(workload.prompts())
        return LengthPlan({tuple(ids): tuple(lengths[number * each : (number + 1) * each]) for number, ids in prompts})

    def lengths(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """The lengths of these rows: the second row with the same prompt gets the prompt's second length."""
        seen: Counter[tuple[int, ...]] = Counter()
        planned = []
        for ids in map(tuple, prompts):
            planned.append(self.by_prompt[ids][seen[ids]])
            seen[ids] += 1
        return planned


def text_of(ids: Sequence[int]) -> str:
    """A prompt as text that the tokenizer turns back into the same ids."""
    return " ".join(f"w{token}" for token in ids)


def tokenizer(workload: Workload) -> PreTrainedTokenizerFast:
    """Words w0, w1, …, then EOS and PAD; padding on the left, which TRL needs."""
    vocabulary = {f"w{number}": number for number in range(workload.eos)}
    special = {"<eos>": workload.eos, "<pad>": workload.pad}
    core = Tokenizer(models.WordLevel(vocabulary | special, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>", padding_side="left")


def causal_model(workload: Workload, seed: int = 1) -> PreTrainedModel:
    """A random policy."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(_config(workload), dtype=DTYPES[workload.dtype]).to(workload.device)


def scalar_model(workload: Workload, seed: int) -> PreTrainedModel:
    """A random critic or reward model."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(_config(workload), dtype=DTYPES[workload.dtype])
    return model.to(workload.device)


def _config(workload: Workload) -> LlamaConfig:
    size = workload.size
    return LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=size.intermediate,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
        max_position_embeddings=2048, tie_word_embeddings=size.tied, num_labels=1, bos_token_id=None,
        eos_token_id=workload.eos, pad_token_id=workload.pad,
    )  # fmt: skip


def arbitrary_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that costs nothing and differs within every group."""
    return [float(sum(ids) % 7) for ids in completion_ids]
