"""What a family must do in each role, on a tiny model of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from nearstep import PPOTrainer
from nearstep.models.forward.forward import row_states
from nearstep.models.forward.layout import RowLayout
from nearstep.models.forward.trunk import masked_states
from nearstep.models.load import critic_from_trunk
from nearstep.models.reward_model import make_scorer
from nearstep.models.roles import make_critic, make_policy
from tests.families.tiny_families import NO_TRUNK, tiny_family_config
from tests.tiny import byte_tokenizer
from tests.training.runs import PROMPTS, low_ids, settings

PROBE = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
ROWS = [torch.tensor([5, 6, 7, 8, 9, 10]), torch.tensor([5, 6, 7, 3]), torch.tensor([9])]


@dataclass(frozen=True)
class Variant:
    """One way in which people bring a model of a family."""

    name: str
    config: Mapping[str, object] = field(default_factory=dict)
    run: Mapping[str, object] = field(default_factory=dict)
    pad: str = "<pad>"
    saved_as: torch.dtype | None = None  # None: given as an object, in float32
    adapters: bool = False
    several_eos: bool = False
    ratio_gap: float = 1e-4


VARIANTS = (
    Variant("plain"),
    Variant("tied the other way"),
    Variant("LoRA", adapters=True),
    Variant("several EOS, PAD is EOS, padded vocabulary", {"vocab_size": 288}, pad="<eos>", several_eos=True),
    Variant("checkpointing", run={"gradient_checkpointing": True}),
    Variant("float16 folder", saved_as=torch.float16),
    Variant("bfloat16 folder", saved_as=torch.bfloat16, run={"dtype": "bfloat16"}, ratio_gap=0.5),
)


def tiny_policy(kind: str, **changes: object) -> PreTrainedModel:
    """A random policy, its weights larger than usual so that its distributions are far from uniform."""
    torch.manual_seed(0)
    return _spread(AutoModelForCausalLM.from_config(tiny_family_config(kind, **changes)))


def tiny_scorer(kind: str) -> PreTrainedModel | None:
    """A random reward model or critic; None where transformers has no class with a scalar head."""
    config = tiny_family_config(kind)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return None
    torch.manual_seed(1)
    return _spread(AutoModelForSequenceClassification.from_config(config))


def _spread(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.mul_(4)
    return model.eval()


def adapters() -> LoraConfig:
    """On every linear layer but those that peft refuses in recurrent layers, or whose output it takes for a tensor.

    Made anew each time: peft writes the layers that it found into it.
    """
    return LoraConfig(r=2, target_modules="all-linear", exclude_modules=["out_proj", "conv1d", "o_a_proj", "router"])


def can_recompute(kind: str) -> bool:
    """Whether the family has layers that are made for gradient checkpointing."""
    return any(isinstance(layer, GradientCheckpointingLayer) for layer in tiny_policy(kind).modules())


def check_policy(kind: str, variant: Variant, folder: Path) -> None:
    """A whole run: ratio 1 and KL 0 at its first step, weights that move, a folder that transformers opens."""
    config = dict(variant.config)
    known = vars(tiny_family_config(kind))
    if variant.name.startswith("tied"):
        config["tie_word_embeddings"] = not known.get("tie_word_embeddings", True)
    if "vocab_size_per_layer_input" in known:
        config["vocab_size_per_layer_input"] = config.get("vocab_size", 258)
    if "output_router_logits" in known:
        config["output_router_logits"] = True
    model = tiny_policy(kind, **config)
    if variant.several_eos:
        model.generation_config.eos_token_id = [256, 3]
    tokenizer = byte_tokenizer(pad=variant.pad)
    given: PreTrainedModel | str = model
    if variant.saved_as is not None:
        given = str(folder / "given")
        model.to(variant.saved_as).save_pretrained(given)
        tokenizer.save_pretrained(given)
    trainer = PPOTrainer(
        args=settings(
            folder / "run", total_episodes=8, num_ppo_epochs=1, advantage="leave_one_out", num_generations=2,
            **variant.run,
        ),
        processing_class=tokenizer,
        model=given,
        train_dataset=[{"prompt": text} for text in PROMPTS],
        reward_funcs=[low_ids],
        peft_config=adapters() if variant.adapters else None,
    )  # fmt: skip
    before = [weights.detach().clone() for weights in trainer.model.parameters() if weights.requires_grad]
    trainer.train()
    after = [weights for weights in trainer.model.parameters() if weights.requires_grad]
    moved = sum(not torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert moved > len(after) / 4, f"{moved} of {len(after)} tensors moved"
    (first,) = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    assert first["val/ratio_max_gap_first"] < variant.ratio_gap, first["val/ratio_max_gap_first"]
    assert abs(first["objective/kl"]) < 6 * variant.ratio_gap, first["objective/kl"]
    _opens_again(trainer.model, folder / "run" / "policy")


@torch.no_grad()
def _opens_again(trained: PreTrainedModel, folder: Path) -> None:
    opened = AutoModelForCausalLM.from_pretrained(folder).eval()
    found, expected = (model.eval()(PROBE, use_cache=False).logits.float() for model in (opened, trained))
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def check_critic(kind: str) -> None:
    """A critic on a copy of the policy's trunk: every token gets what its row gets alone."""
    critic = make_critic(critic_from_trunk(tiny_policy(kind), 257))
    with torch.no_grad():
        assert not any(weights.any() for weights in critic.head.parameters())
        for weights in critic.head.parameters():
            torch.nn.init.normal_(weights)
        found = critic.head(row_states(critic, torch.cat(ROWS), torch.tensor([len(row) for row in ROWS])))
        alone = [critic.head(masked_states(critic.trunk, row[None], None)[0]) for row in ROWS]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-4 * float(found.abs().max()), rtol=0)


def check_scorer(kind: str) -> None:
    """A reward model: each row gets what it gets alone. Nothing where transformers has no class for it."""
    model, again = tiny_scorer(kind), tiny_scorer(kind)
    if model is None or again is None:
        return
    model.config.pad_token_id = 257
    with torch.no_grad():
        alone = torch.cat([model(row[None], use_cache=False).logits[:, 0] for row in ROWS])
    rows = [row.tolist() for row in ROWS]
    scores = make_scorer(again, role="reward_model", pad_token_id=257, max_tokens=64).score(rows)
    torch.testing.assert_close(scores, alone.float(), atol=1e-4 * float(alone.abs().max()), rtol=0)


def roles_of(kind: str, folder: Path) -> tuple[str, RowLayout]:
    """The roles that a family plays, and how its rows lie. Raises what a role raises."""
    layout: RowLayout = make_policy(tiny_policy(kind)).layout
    check_policy(kind, VARIANTS[0], folder)
    if kind in NO_TRUNK:
        return "policy, reference", layout
    check_critic(kind)
    if tiny_scorer(kind) is None:
        return "policy, reference, critic", layout
    check_scorer(kind)
    return "policy, reference, critic, reward model", layout
