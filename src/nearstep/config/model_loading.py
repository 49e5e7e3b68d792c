"""What loads the policy, and what does not go together with unsloth as the loader."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nearstep.config.settings import Problem, Settings, option

WHOLE = ("embed_tokens", "lm_head")  # unsloth trains these whole where they are named as targets


@dataclass(frozen=True, kw_only=True)
class LoadingSettings(Settings):
    """Which library brings the policy's weights into memory."""

    model_loader: Literal["transformers", "unsloth"] = option(
        "transformers",
        "what loads the policy and puts its LoRA on. transformers: with peft; unsloth: its FastLanguageModel, which "
        "must be imported before transformers (this command does it; docs/unsloth.md)",
    )


def loading_problems(
    config: LoadingSettings,
    *,
    dtype: str,
    targets: tuple[str, ...] | None,
    modules_to_save: tuple[str, ...] | None,
    quant_type: str | None,
    divided_by: str | None,
    engine: str,
) -> Iterator[Problem]:
    """Settings that unsloth cannot keep. `quant_type` is None where nothing is packed in 4 bits."""
    if config.model_loader != "unsloth":
        return
    whole = [name for word in targets or () for name in word.split(",") if name in WHOLE]
    rules = {
        "dtype": (dtype == "float64", "= float64 is none of its types", "use float32 or bfloat16"),
        "lora_target_modules": (
            bool(whole), f"names {' '.join(whole)}, which it trains whole instead of by adapters", "leave them out",
        ),
        "lora_modules_to_save": (
            modules_to_save is not None,
            "trains copies, and it moves their originals off the device, where the reference with adapters off reads "
            "them",
            "leave it out",
        ),
        "bnb_4bit_quant_type": (quant_type == "fp4", "= fp4, and it packs nf4 alone", "leave it out"),
        "engine": (
            engine == "continuous_batching",
            "= continuous_batching keeps keys and values in pages, which its attention does not read",
            "use engine = transformers",
        ),
    }  # fmt: skip
    if divided_by is not None:
        rules[divided_by] = True, "deals weights out over processes, and its kernels read them whole", "leave one out"
    for name, (clashes, why, advice) in rules.items():
        if clashes:
            yield Problem(f"model_loader = unsloth: {name} {why}: {advice}", ("model_loader", name))
