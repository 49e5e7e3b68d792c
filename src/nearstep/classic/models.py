"""Policies with a value head, by TRL's names up to 0.11: the head itself is made by the trainer, on the same trunk."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nearstep.common.errors import ConfigError, ModelError, shorten
from nearstep.common.given import given_adapters, given_model
from nearstep.common.random_streams import stream
from nearstep.common.spelling import nearest
from nearstep.common.telling import tell
from nearstep.common.trust import ALL, DEFAULT_TRUST, Trust
from nearstep.models.adapter_folders import holds_adapters
from nearstep.models.adapters import add_adapters, as_peft_model, is_adapted
from nearstep.models.distribution import Sampling, sampling_logprobs
from nearstep.models.load import load_adapted_policy, load_policy
from nearstep.models.trl_heads import TrlHead, stored_trl_head

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64, "auto": torch.float32}
QUANTISED = "a policy whose weights are packed goes to nearstep ppo by load_in_4bit, with adapters"
# What from_pretrained of TRL took besides: why it is not here, and the values that ask for nothing.
REFUSED: Mapping[str, tuple[str, tuple[object, ...]]] = {
    "load_in_8bit": (QUANTISED, (None, False)), "load_in_4bit": (QUANTISED, (None, False)),
    "quantization_config": (QUANTISED, (None,)),
    "reward_adapter": ("score responses by a reward model of its own, merged, and give the scores to step", (None,)),
    "reward_adapter_name": ("score responses by a reward model of its own", (None, "reward_adapter")),
    "revision": ("download the revision and give its folder", (None, "main")),
    "state_dict": ("save the weights into a folder and give that", (None,)),
}  # fmt: skip
# What changes nothing here: where weights go and how they get there, and how a head that starts at zero would be drawn.
TOLD = (
    "device_map", "low_cpu_mem_usage", "attn_implementation", "use_flash_attention_2", "use_cache", "pad_token_id",
    "cache_dir", "token", "use_auth_token", "local_files_only", "use_safetensors", "is_trainable", "offload_folder",
    "v_head_init_strategy", "v_head_initializer_range", "summary_dropout_prob", "max_memory",
)  # fmt: skip


@dataclass(frozen=True)
class ValueHeadModel:
    """A policy on whose trunk a value head will stand: zero at first, or `head` as it was saved. `pretrained_model` is
    the policy."""

    pretrained_model: nn.Module
    head: TrlHead | None = None
    draws: torch.Generator = field(default_factory=lambda: stream(0, "respond_to_batch"))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | nn.Module,
        *,
        peft_config: Any = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        trust_remote_code: bool = False,
        seed: int = 0,
        **others: object,
    ) -> "ValueHeadModel":
        """A policy from a folder, a hub name or an object, with new adapters if `peft_config` asks for them. Adapters
        in a folder train on. A value head in the folder is read: `v_head.summary`, as TRL saved it.

        `others` are what TRL's method took: those that change nothing are told, others refused. Raises ModelError as
        loading does, and ConfigError.
        """
        _check(others)
        model = given_model(pretrained_model_name_or_path, "model")
        head = None
        if isinstance(model, str):
            trust = Trust(code=(ALL,)) if trust_remote_code else DEFAULT_TRUST
            load = load_adapted_policy if holds_adapters(model) else load_policy
            head = stored_trl_head(model)
            model = load(model, role="model", dtype=_type(torch_dtype if dtype is None else dtype), trust=trust)
        if model is None:
            raise ModelError("from_pretrained: give a folder, a hub name or a model")
        adapters = given_adapters(peft_config)
        if adapters is not None:
            model = add_adapters(as_peft_model(model), adapters, seed=seed)
        return cls(model, head, stream(seed, "respond_to_batch"))

    @property
    def config(self) -> Any:
        """The policy's configuration."""
        return self.pretrained_model.config

    @property
    def device(self) -> torch.device:
        """Where the policy lies; the trainer moves it."""
        return next(self.pretrained_model.parameters()).device

    def parameters(self) -> Iterator[nn.Parameter]:
        """The policy's."""
        return self.pretrained_model.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The policy's."""
        return self.pretrained_model.named_parameters()

    def generate(self, *inputs: Any, **settings: Any) -> Any:
        """transformers' own generation, on the policy."""
        return self.pretrained_model.generate(*inputs, **settings)  # type: ignore[operator]

    def to(self, *place: Any, **named: Any) -> "ValueHeadModel":
        """The same model: the trainer puts it where it computes."""
        return self

    def cuda(self) -> "ValueHeadModel":
        """The same model, likewise."""
        return self

    def eval(self) -> "ValueHeadModel":
        """The same model: dropout is always off."""
        return self

    def train(self, mode: bool = True) -> "ValueHeadModel":
        """The same model: dropout is always off."""
        return self

    def gradient_checkpointing_enable(self, *given: Any, **named: Any) -> None:
        """Recompute activations in the backward pass, as transformers does."""
        self.pretrained_model.gradient_checkpointing_enable(*given, **named)  # type: ignore[operator]

    def print_trainable_parameters(self) -> None:
        """How many numbers learn."""
        sizes = [(each.numel(), each.requires_grad) for each in self.parameters()]
        learned, every = sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)
        print(f"trainable params: {learned:,} || all params: {every:,} || trainable%: {100 * learned / every:.4f}")

    def save_pretrained(self, folder: str | Path) -> None:
        """The policy as a model folder, or its adapters where it has some; the head is saved by the trainer."""
        self.pretrained_model.save_pretrained(folder)  # type: ignore[operator]

    def push_to_hub(self, *given: Any, **named: Any) -> Any:
        """The policy, by transformers."""
        return self.pretrained_model.push_to_hub(*given, **named)  # type: ignore[operator]


class NoEncoderDecoder:
    """Stands for AutoModelForSeq2SeqLMWithValueHead, which scripts import beside the other and seldom use."""

    @classmethod
    def from_pretrained(cls, *given: object, **named: object) -> "NoEncoderDecoder":
        """Raises ModelError."""
        raise ModelError(
            "AutoModelForSeq2SeqLMWithValueHead: policies are decoders here; no encoder-decoder is trained"
        )


def create_reference_model(
    model: ValueHeadModel | nn.Module, num_shared_layers: int | None = None, pattern: str | None = None
) -> nn.Module:
    """A frozen copy of a policy as it is now. Raises ModelError for one with adapters: it needs no copy."""
    if num_shared_layers is not None or pattern is not None:
        raise ConfigError("create_reference_model: leave num_shared_layers out; a reference is whole here")
    policy = policy_in(model)
    if is_adapted(policy):
        raise ModelError("ref_model: leave it out. With adapters the reference is the policy with its adapters off")
    reference: nn.Module = copy.deepcopy(policy)
    return reference.requires_grad_(False).eval()


def policy_in(model: Any) -> Any:
    """The policy of a model with a value head; anything else as it is."""
    return model.pretrained_model if isinstance(model, ValueHeadModel) else model


@torch.no_grad()
def respond_to_batch(
    model: ValueHeadModel, queries: Tensor, txt_len: int = 20, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """`txt_len` sampled tokens for each row of `queries` [rows, tokens], at temperature 1; nothing ends them sooner.

    The draws are the model's own, by the seed that it was loaded with.
    """
    sampling, ids = Sampling(1.0, top_p, top_k), queries.to(model.device)
    for _ in range(txt_len):
        logits = model.pretrained_model(ids).logits[:, -1]
        chances = sampling_logprobs(logits, sampling).exp().cpu()
        drawn = torch.multinomial(chances, 1, generator=model.draws)
        ids = torch.cat([ids, drawn.to(ids.device)], dim=1)
    return ids[:, queries.shape[1] :]


class LengthSampler:
    """Lengths from `low` to `high` − 1, drawn by the seed: `sampler()` gives the next."""

    def __init__(self, low: int, high: int, seed: int = 0) -> None:
        if not 0 < low < high:
            raise ModelError(f"LengthSampler({low}, {high}): the first length must be above 0 and below the second")
        self.low, self.high, self.draws = low, high, stream(seed, "lengths")

    def __call__(self) -> int:
        """The next length."""
        return int(torch.randint(self.low, self.high, (), generator=self.draws))


def _check(others: Mapping[str, object]) -> None:
    """Raise ConfigError for what asks for something that is not here, and say what changes nothing."""
    for name, value in others.items():
        if name in REFUSED:
            why, nothing = REFUSED[name]
            if value not in nothing:
                raise ConfigError(f"from_pretrained: {name} = {shorten(value)}: {why}")
        elif name not in TOLD:
            near = nearest(name, ("peft_config", "torch_dtype", "trust_remote_code", *REFUSED, *TOLD))
            raise ConfigError(f"from_pretrained: unknown {name}" + (f"; did you mean {near}?" if near else ""))
    idle = [name for name in others if name in TOLD and others[name] is not None]
    if idle:
        tell(f"from_pretrained: {', '.join(idle)} change nothing here (docs/migrations/trl_classic.md)")


def _type(given: torch.dtype | str | None) -> torch.dtype:
    """Raises ConfigError for a type in which nothing is trained here."""
    found = TYPES.get(given.removeprefix("torch.")) if isinstance(given, str) else given or torch.float32
    if found not in TYPES.values():
        raise ConfigError(f"torch_dtype = {given}: float16 loses small gradients; give float32 or bfloat16")
    assert found is not None
    return found
