"""Which of peft's methods fit: those whose whole effect lies in the layers, and can be added to their weights."""

from collections.abc import Mapping
from typing import Any

from nearstep.common.errors import ModelError

# Of each: rows packed are rows alone, merged weights give the same logits, and switched off the model is what it was.
METHODS = (
    "LORA", "ADALORA", "LOHA", "LOKR", "OFT", "BOFT", "HRA", "VERA", "VBLORA", "RANDLORA", "FOURIERFT", "IA3",
    "LN_TUNING", "TRAINABLE_TOKENS", "C3A", "WAVEFT", "DELORA", "GRALORA", "HIRA", "MISS", "SHIRA", "OSF", "ROAD",
)  # fmt: skip

_PROMPTS = "it puts virtual tokens or states before every row, outside the layers that are trained here"
_REASONS = {
    "PROMPT_TUNING": _PROMPTS,
    "MULTITASK_PROMPT_TUNING": _PROMPTS,
    "P_TUNING": _PROMPTS,
    "PREFIX_TUNING": _PROMPTS,
    "CPT": _PROMPTS,
    "CARTRIDGE": _PROMPTS,
    "ADAPTION_PROMPT": "it puts prompts into the attention, which cannot be added to weights",
    "POLY": "its layers need the number of a task with every row",
    "XLORA": "it weighs its adapters anew for every row",
}
_LORA_KINDS = {
    "alora_invocation_tokens": "adapters that begin at some tokens of a row (aLoRA) cannot be added to weights",
    "layer_replication": "layers that stand twice in the model share one place in its cache",
    "arrow_config": "it weighs other adapters anew for every token",
    "monteclora_config": "its weights are drawn anew in every pass, so ratios would not start at 1",
    "velora_config": "its gradients are not those of the loss",
    "kasa_config": "it changes the weights under the adapters, and its saved adapters would not fit them again",
    "use_qalora": "it is made for quantised weights",
    "use_bdlora": "it is made for engines that shard adapters",
    "megatron_config": "models are not sharded here",
}
_NEED_MORE = ("eva", "corda", "lora_ga", "loftq")


def check_method(peft_config: Any, role: str, *, fresh: bool = False) -> None:
    """Raise ModelError where adapters of this configuration do not fit; the error names method and reason.

    `fresh`: they are to be made here, so that the way they start counts too.
    """
    settings: Mapping[str, Any] = peft_config.to_dict()
    method = str(settings["peft_type"].value if settings["peft_type"] is not None else "none")
    reason = (
        None if method in METHODS else _REASONS.get(method, "nobody has proved that packed rows stay right with it")
    )
    if method == "LORA":
        reason = _lora_problem(settings) or (_start_problem(settings["init_lora_weights"]) if fresh else None)
    if reason is not None:
        raise ModelError(
            f"{role}: {type(peft_config).__name__} ({method}) does not fit: {reason}. Use LoraConfig (plain, use_dora "
            "or use_rslora), or another method whose adapters can be merged into the weights."
        )


def _lora_problem(settings: Mapping[str, Any]) -> str | None:
    """What is wrong with a kind of LoRA; None where nothing is."""
    for name, reason in _LORA_KINDS.items():
        if settings.get(name):
            return f"{name} is set, and {reason}"
    return None


def _start_problem(start: object) -> str | None:
    """What is wrong with a way to start LoRA's weights; None where nothing is."""
    if isinstance(start, str) and start in _NEED_MORE:
        return (
            f"init_lora_weights = {start!r} needs data or quantised weights, which peft is not given here; initialise "
            "the adapters yourself and pass the peft model"
        )
    if isinstance(start, str) and start.startswith("pissa_niter"):
        return (
            f"init_lora_weights = {start!r} draws at random what it takes from the weights, so the saved adapters "
            "would not fit them again; 'pissa' does not"
        )
    return None
