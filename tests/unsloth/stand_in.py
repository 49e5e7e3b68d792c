"""What stands in for unsloth where it is not installed: its two calls, with the names and the habits of the real ones.

`test_real` holds the names against the real package.
"""

import random
from types import ModuleType

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class FastLanguageModel:
    """As its CPU backend of 2026.10: transformers' model and peft's LoRA, and what it changes beside."""

    asked: dict[str, object] = {}  # noqa: RUF012 - of the last load
    loads_dtype: torch.dtype | None = None  # in place of what is asked for, as on a GPU without bfloat16

    @classmethod
    def from_pretrained(
        cls, model_name, max_seq_length=2048, dtype=None, load_in_4bit=True, trust_remote_code=False, revision=None,
        use_gradient_checkpointing="unsloth", use_exact_model_name=False, offload_embedding="auto",
        tokenizer_name=None, use_safetensors=None,
    ):  # fmt: skip
        cls.asked = {
            "max_seq_length": max_seq_length, "load_in_4bit": load_in_4bit, "exact": use_exact_model_name,
            "checkpointing": use_gradient_checkpointing,
        }  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_name or model_name)
        model = AutoModelForCausalLM.from_pretrained(
            model_name, dtype=cls.loads_dtype or dtype, use_safetensors=use_safetensors
        )
        model.config.pad_token_id = tokenizer.pad_token_id
        model._saved_temp_tokenizer = tokenizer
        model.config.use_cache = False
        print("Unsloth: a banner")
        return model, tokenizer

    @classmethod
    def get_peft_model(
        cls, model, r=16, target_modules=None, lora_alpha=16, lora_dropout=0.0, bias="none", use_rslora=False,
        use_gradient_checkpointing="unsloth", random_state=3407, **more,
    ):  # fmt: skip
        from peft import LoraConfig, get_peft_model

        cls.asked = {"checkpointing": use_gradient_checkpointing}
        model.config.use_cache = False
        random.seed(random_state)
        np.random.seed(random_state)  # which takes 32 bits alone
        torch.manual_seed(random_state)
        seven = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        chosen = LoraConfig(
            r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, bias=bias, use_rslora=use_rslora,
            target_modules=seven if target_modules is None else target_modules, task_type="CAUSAL_LM", **more,
        )  # fmt: skip
        return get_peft_model(model, chosen)


def stand_in(device: str = "cpu") -> ModuleType:
    """A module to be put in the place of unsloth."""
    module = ModuleType("unsloth")
    module.__version__, module.DEVICE_TYPE = "2026.10.9", device
    module.FastLanguageModel = type("FastLanguageModel", (FastLanguageModel,), {})
    return module
