"""Policies that the real unsloth loads without a GPU, in an environment that has it (`make unsloth`), and no other.

In one process, where it was imported first (`-p tests.unsloth.first`), and in processes that begin as a user's do.
"""

import ast
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.run import assemble
from nearstep.common.errors import ModelError
from nearstep.common.import_order import imported_before
from nearstep.common.trust import DEFAULT_TRUST
from nearstep.config.ppo import PPOConfig
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.load import load_adapted_policy
from nearstep.models.quantised import LAID_ANEW
from nearstep.models.roles import make_policy
from nearstep.models.unsloth_loading import adapt_by_unsloth, load_adapted_by_unsloth, load_by_unsloth
from nearstep.training.loop import train
from nearstep.training.state import State
from tests.tiny import byte_tokenizer, tiny_config
from tests.training.runs import PROMPTS, low_ids, play, settings

HERE = importlib.util.find_spec("unsloth") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not HERE, reason="unsloth is not installed: `make unsloth` makes a place for it"),
]
SIZES = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 256,
    "pad_token_id": 257,
}  # fmt: skip
LORA = ["q_proj", "v_proj", "down_proj"]
FLAGS = [
    "--response_length", "4", "--total_episodes", "8", "--per_device_train_batch_size", "4", "--num_ppo_epochs", "1",
    "--learning_rate", "1e-2", "--lr_scheduler_type", "constant", "--num_sample_generations", "0", "--use_cpu",
]  # fmt: skip


def world(top, config, dtype=torch.float32):
    """A policy's folder, and adapters over it that change something."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4.0)
    model.save_pretrained(top / "base")
    byte_tokenizer().save_pretrained(top / "base")
    model.name_or_path = str(top / "base")
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=LORA, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(top / "adapters")
    byte_tokenizer().save_pretrained(top / "adapters")
    (top / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in PROMPTS))
    return top


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return world(tmp_path_factory.mktemp("llama"), tiny_config())


def made(out, base, *, folder="base", parts=None, **changes):
    inputs = RunInputs(train_dataset=[{"prompt": text} for text in PROMPTS], reward_funcs=(low_ids,), **(parts or {}))
    named = {"model_name_or_path": str(base / folder), "use_cpu": True, "model_loader": "unsloth"}
    return assemble(settings(out, **(named | {"learning_rate": 1e-2} | changes)), inputs)


def test_it_came_first():
    assert imported_before("unsloth") == []


def test_both_ways_of_the_package_know_the_arguments_that_they_are_given():
    """What runs without a GPU by its signatures; what runs on one by its source, which cannot be imported here."""
    import unsloth

    given = {
        "from_pretrained": {
            "model_name", "max_seq_length", "dtype", "load_in_4bit", "use_gradient_checkpointing",
            "use_exact_model_name", "offload_embedding", "trust_remote_code",
        },
        "get_peft_model": {
            "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_gradient_checkpointing", "random_state",
            "target_modules",
        },
    }  # fmt: skip
    models = Path(unsloth.__file__).parent / "models"
    sources = {"from_pretrained": ("loader.py", "FastLanguageModel"), "get_peft_model": ("llama.py", "FastLlamaModel")}
    for name, asked in given.items():
        here = inspect.signature(getattr(unsloth.FastLanguageModel, name)).parameters
        assert asked <= set(here) or "kwargs" in here
        file, owner = sources[name]
        (found,) = (
            node for top in ast.parse((models / file).read_text()).body
            if isinstance(top, ast.ClassDef) and top.name == owner
            for node in top.body if isinstance(node, ast.FunctionDef) and node.name == name
        )  # fmt: skip
        known = {argument.arg for argument in (*found.args.args, *found.args.kwonlyargs)}
        assert asked <= known


@pytest.mark.parametrize(("kind", "dtype"), [
    ("llama", torch.float32), ("qwen3", torch.float32), ("gpt_neox", torch.float32), ("llama", torch.bfloat16),
])  # fmt: skip
def test_log_probs_and_gradients_are_those_of_transformers(kind, dtype, tmp_path):
    config = {"llama": LlamaConfig(**SIZES), "qwen3": Qwen3Config(**SIZES), "gpt_neox": tiny_config("gpt_neox")}[kind]
    global LORA
    before, LORA = LORA, ["query_key_value"] if kind == "gpt_neox" else LORA
    try:
        top = world(tmp_path, config)
    finally:
        LORA = before
    given = {"role": "model", "dtype": dtype, "trust": DEFAULT_TRUST}
    name = str(top / "adapters")
    found = []
    rollout = None
    for model in (load_adapted_policy(name, **given), load_adapted_by_unsloth(name, in_4bit=False, **given)):
        policy = make_policy(model, role="model")
        if rollout is None:
            recipe = assemble(
                settings(tmp_path / "run", model_name_or_path=name, use_cpu=True, dtype=str(dtype).split(".")[1]),
                RunInputs(train_dataset=[{"prompt": text} for text in PROMPTS], reward_funcs=(low_ids,)),
            )
            _, rollout, _ = play(recipe)
        logprobs = rollout_logprobs(policy, rollout, Sampling()).sampled
        logprobs.sum().backward()
        gradients = [weight.grad for weight in model.parameters() if weight.requires_grad]
        found.append((type(policy.layout), logprobs.detach(), gradients))
    (ours, first, wanted), (theirs, second, got) = found
    assert ours is theirs
    assert torch.equal(first, second)  # the same operations on the same numbers: on a CPU it is transformers' model
    assert len(wanted) == len(got) > 0
    assert all(map(torch.equal, wanted, got))


@pytest.mark.parametrize("trunk", ["separate", "shared", "adapter"])
def test_a_run_is_that_of_transformers(llama, tmp_path, trunk):
    runs = []
    for loader in ("transformers", "unsloth"):
        recipe = made(tmp_path / loader, llama, folder="adapters", model_loader=loader, critic_trunk=trunk)
        train(recipe, State())
        runs.append(dict(recipe.models.policy.model.named_parameters()))
    assert all(torch.equal(weight, runs[1][name]) for name, weight in runs[0].items())


def test_fresh_lora_learns_the_reference_is_the_adapter_off_and_folders_open_without_it(llama, tmp_path):
    recipe = made(tmp_path / "out", llama, use_peft=True, lora_r=4, critic_trunk="adapter", gradient_checkpointing=True)
    assert "The policy was loaded by unsloth" in recipe.introduction
    assert recipe.models.reference.adapters_off
    assert len(recipe.models.policy.model.peft_config["default"].target_modules) == 7
    train(recipe, State())
    recipe.checkpoint.save_final(State())
    out = tmp_path / "out"
    assert json.loads((out / "policy" / "config.json").read_text()).get("use_cache", True)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = recipe.models.policy.model(input_ids=ids).logits
    torch.save(expected, tmp_path / "expected.pt")
    opened = (
        "import sys, torch\n"
        "from peft import AutoPeftModelForCausalLM\n"
        "from transformers import AutoModelForCausalLM\n"
        "ids, wanted = torch.tensor([[5, 6, 7, 8]]), torch.load(sys.argv[2])\n"
        "for kind, name in ((AutoModelForCausalLM, 'policy'), (AutoPeftModelForCausalLM, 'policy_adapter')):\n"
        "    found = kind.from_pretrained(f'{sys.argv[1]}/{name}')(input_ids=ids).logits\n"
        "    print(float((found - wanted).abs().max() / wanted.abs().max()))\n"
        "assert 'unsloth' not in sys.modules\n"
    )
    done = started("-c", opened, str(out), str(tmp_path / "expected.pt"))
    assert max(map(float, done.stdout.split())) < 1e-5


def test_a_model_of_its_own_may_be_passed_as_it_is(llama, tmp_path):
    """As its guides make one, with its own gradient checkpointing on."""
    import unsloth

    model, _ = unsloth.FastLanguageModel.from_pretrained(
        str(llama / "base"), max_seq_length=512, dtype=torch.float32, load_in_4bit=False
    )
    model = unsloth.FastLanguageModel.get_peft_model(model, r=4, target_modules=LORA)
    parts = {"model": model, "tokenizer": byte_tokenizer()}
    recipe = made(tmp_path, llama, model_loader="transformers", parts=parts, critic_trunk="adapter")
    assert recipe.models.reference.adapters_off or recipe.models.reference is not None
    train(recipe, State())
    assert any(weight.any() for name, weight in model.named_parameters() if "lora_B" in name)


def test_four_bits_are_packed_here_too(tmp_path):
    wide = LlamaConfig(**(SIZES | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}))
    top = world(tmp_path / "wide", wide)
    recipe = made(tmp_path / "out", top, use_peft=True, lora_r=4, load_in_4bit=True, critic_trunk="adapter")
    assert any(not weight.is_floating_point() for weight in recipe.models.policy.model.parameters())
    assert recipe.models.reference.adapters_off
    found = [vars(layer)[LAID_ANEW] for layer in recipe.models.policy.model.modules() if LAID_ANEW in vars(layer)]
    assert found
    assert not any(found)
    train(recipe, State())


def test_four_bits_that_it_leaves_out_are_refused(llama, monkeypatch):
    """As it says itself on a processor on which bitsandbytes cannot."""
    monkeypatch.setattr("unsloth_zoo.cpu.loader.cpu_bnb_4bit_supported", lambda: False)
    with pytest.raises(ModelError, match="did not load the weights in 4 bits"):
        load_by_unsloth(str(llama / "base"), role="model", dtype=torch.float32, trust=DEFAULT_TRUST, in_4bit=True)


def test_the_global_generator_is_the_caller_s(llama):
    state = torch.get_rng_state()
    model = load_by_unsloth(
        str(llama / "base"), role="model", dtype=torch.float32, trust=DEFAULT_TRUST, in_4bit=False
    )  # fmt: skip
    adapt_by_unsloth(model, PPOConfig(use_peft=True, model_loader="unsloth", use_dora=True), seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def started(*words, rc=0, cwd=None):
    """A process that begins as a user's does."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, cwd=cwd, timeout=1500, check=False
    )
    assert done.returncode == rc, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def test_the_command_line_imports_it_first_saves_goes_on_and_resumes(llama, tmp_path):
    words = ["-m", "nearstep", "ppo", "--model_name_or_path", str(llama / "base"), "--dataset_name",
             str(llama / "prompts.jsonl"), "--reward_funcs", "length", "--model_loader", "unsloth", "--use_peft",
             "--lora_r", "4", "--save_steps", "1", *FLAGS]  # fmt: skip
    whole = started(*words, "--output_dir", str(tmp_path / "whole"))
    assert "The policy was loaded by unsloth" in whole.stderr + whole.stdout
    assert "should be imported before" not in whole.stderr
    started(*words, "--output_dir", str(tmp_path / "cut"))
    for late in (tmp_path / "cut").glob("checkpoint-2"):
        late.rename(tmp_path / "away")
    started(*words, "--output_dir", str(tmp_path / "cut"), "--resume", "auto")
    policies = [(tmp_path / run / "policy" / "model.safetensors").read_bytes() for run in ("whole", "cut")]
    assert policies[0] == policies[1]


CALL = """
from nearstep import create_rl_trainer
trainer = create_rl_trainer(
    model_name="base", dataset_name="prompts.jsonl", algorithm="ppo", backend="unsloth", reward_functions=["length"],
    num_epochs=1, batch_size=1, learning_rate=1e-6, response_length=3, num_generations=2, output_dir={out!r},
)
print(trainer.train().updates, trainer.recipe.config.model_loader)
"""


def test_the_snippet_of_the_guide_runs_as_it_is(llama, tmp_path):
    done = started("-c", CALL.format(out=str(tmp_path / "out")), cwd=llama)
    assert done.stdout.split()[-2:] == [str(len(PROMPTS)), "unsloth"]


def test_a_script_that_imports_transformers_first_is_told_so(llama, tmp_path):
    script = "import transformers, nearstep\nnearstep.create_rl_trainer('base', 'prompts.jsonl', backend='unsloth')"
    done = started("-c", script, rc=1, cwd=llama)
    assert "transformers came first" in done.stderr
