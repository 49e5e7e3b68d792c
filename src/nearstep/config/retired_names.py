"""Why some settings of other libraries have no counterpart here: single ones, and whole families by their names."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Retired:
    """A setting without counterpart: why, what to do, and the values that lose nothing by being left out."""

    sentence: str
    harmless: tuple[object, ...] | None = None  # None: any value

    def is_harmless(self, value: object) -> bool:
        """Whether a run means the same without the setting; numbers and words may come as text."""
        return self.harmless is None or _plain(value) in self.harmless


def _plain(value: object) -> object:
    if not isinstance(value, str):
        return value
    words = {"true": True, "yes": True, "false": False, "no": False, "none": None, "null": None}
    if value.lower() in words:
        return words[value.lower()]
    try:
        return float(value)
    except ValueError:
        return value


LENGTH = "the length of a run is total_episodes = steps × batch_size"
COMPUTED = "it follows from the batch settings and the number of processes"
IN_PLACE = "data is prepared as it is read"
OWN_ENGINE = "responses are sampled by the policy itself, in this process; an engine of your own is named by engine"
SHARDED = "models are not sharded here; start several processes with torchrun"
PEFT = "what use_peft cannot say is said by a peft_config, given to PPOTrainer"
TRACKER = "report_to names the tracker; what else it should know is read from its own environment variables"
QUANTISED = "models are not quantised here; choose their type with dtype"

# Whole families of names, told by how they begin or by a word in them: the first that fits answers.
FAMILIES: tuple[tuple[re.Pattern[str], Retired], ...] = tuple(
    (re.compile(pattern), retired)
    for pattern, retired in (
        (r".*parallel.*(size|degree)|(pp|tp|cp|ep|sp|ulysses)(_size|_degree)?", Retired(SHARDED, (None, 1))),
        (r".*parallel.*", Retired(SHARDED, (None, False))),
        (r"(deepspeed|ds3?|zero|fsdp|megatron|colossalai|offload|ray|colocate)_.*", Retired(SHARDED, (None, False))),
        (r"zero(1|2|3)?", Retired(SHARDED, (None, False, 0))),
        (r"(vllm|sglang|tgi|rollout_engine|enable_sleep)_?.*", Retired(OWN_ENGINE, (None, False))),
        (r".*unsloth.*", Retired("there is one loop, on transformers' models", (None, False))),
        (r"(load_in|bnb|quantization|gptq|awq)_.*", Retired(QUANTISED, (None, False))),
        (r"(torch_compile|compile|inductor)_?.*", Retired("models are not compiled", (None, False))),
        (r"dataloader_.*", Retired(IN_PLACE, ())),
        (r"(fp8|fp16|amp)_.*", Retired("mixed precision is bf16 or none", (None, False))),
        (r"(wandb|swanlab|mlflow|comet|trackio|tensorboard)_.*", Retired(TRACKER, (None, False))),
    )
)
