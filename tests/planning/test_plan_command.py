"""`nearstep plan` as a user types it: a 7 B and a 70 B model on up to 512 GPUs from configurations alone."""

import json
import shlex
from functools import cache

import pytest
import torch
from transformers import LlamaConfig, Qwen3MoeConfig

from nearstep.cli import doctor, main
from nearstep.config.planning import PlanConfig
from nearstep.config.ppo import PPOConfig
from nearstep.config.settings import from_mapping
from nearstep.planning import network_models as planned
from nearstep.planning.passes import _Trace, inner_share, pass_bytes
from nearstep.planning.plan import make_plan
from tests.tiny import tiny_config

SIZES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 32, "vocab_size": 32_000},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "vocab_size": 128_256},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
           "num_key_value_heads": 4, "vocab_size": 32_000},
}  # fmt: skip
COUNTS = {"7b": 6_738_415_616, "70b": 70_553_706_496}
SCALAR_1B = 1_034_514_432  # embedding, 22 layers, the last norm, one number in the place of logits


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    for name, widths in SIZES.items():
        LlamaConfig(**widths, architectures=["LlamaForCausalLM"]).save_pretrained(place / name)
    tiny_config("gpt2").save_pretrained(place / "gpt2")
    return place


@cache
def traced_once(text, *arguments):
    return pass_bytes(CONFIGS[text], *arguments[:1], autocast=arguments[1], is_gpu=arguments[2])


CONFIGS = {}


def passes(config, bytes_each, *, autocast, is_gpu, adapters=None):
    if adapters is not None:
        return pass_bytes(config, bytes_each, autocast=autocast, is_gpu=is_gpu, adapters=adapters)
    CONFIGS[config.to_json_string()] = config
    return traced_once(config.to_json_string(), bytes_each, autocast, is_gpu)


INNER = {}


def inner(config, passes, bytes_each, *, is_gpu):
    key = config.to_json_string()
    if key not in INNER:
        INNER[key] = inner_share(config, passes, bytes_each, is_gpu=is_gpu)
    return INNER[key]


@pytest.fixture
def plan(folders, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    monkeypatch.setattr(planned, "pass_bytes", passes)
    monkeypatch.setattr(planned, "inner_share", inner)

    def ask(words):
        code = main.main(["plan", *shlex.split(words)])
        return code, capsys.readouterr()

    return ask


def test_7b_on_8_gpus_needs_pieces(plan):
    words = "7b --reward_funcs length --dtype bfloat16 --gpus 8 --gpu h100 --json"
    code, told = plan(words)
    found = json.loads(told.out)
    assert code == 0
    assert [each["weights"] for each in found["networks"]] == [COUNTS["7b"]] * 2 + [COUNTS["7b"] - 31_999 * 4096]
    # Whole: weights, masters, moments and gradients of two networks that train, and the reference.
    assert not found["asked"]["fits"]
    assert found["asked"]["peak_bytes"] > (2 + 4 + 8 + 4) * 2 * 6.6e9
    best = found["proposed"][0]
    assert best["fits"]
    assert best["settings"]["dp_shard"] * best["settings"].get("tp_size", 1) == 8


def test_7b_in_eight_pieces_by_hand(plan):
    """Policy, reference, and a critic and a reward model of 1.1 B: 64 rows of 512 + 53 tokens, 8 on each process."""
    words = "7b --reward_model_path 1b --dtype bfloat16 --gpus 8 --gpu h100 --dp_shard 8 --json"
    asked = json.loads(plan(words)[1].out)["asked"]
    stages = {stage["name"]: {(term["role"], term["what"]): term["bytes"] for term in stage["terms"]}
              for stage in asked["stages"]}  # fmt: skip
    step, decoding = stages["optimizer step"], stages["decoding"]
    # Of what trains, a process has an eighth of float32 weights, of their gradients, and of two moments.
    assert step["policy", "weights"] == step["policy", "gradients"] == 4 * COUNTS["7b"] // 8 == 3_369_207_808
    assert step["policy", "moments"] == 6_738_415_616
    assert step["value", "weights"] == 4 * SCALAR_1B // 8
    assert step["value", "moments"] == 8 * SCALAR_1B // 8
    # The reference is bfloat16 in eighths, the reward model whole.
    assert step["reference", "weights"] == 2 * COUNTS["7b"] // 8
    assert step["reward", "weights"] == 2 * SCALAR_1B
    assert sum(step.values()) == asked["stages"][-1]["bytes"]
    # Keys and values of 32 layers, 4096 wide, in 2 bytes: half a MiB for each of 8 rows of 565 tokens.
    assert decoding["policy", "keys and values"] == 2 * 32 * 4096 * 2 * 8 * 565
    # The policy whole, and the message in which its largest unit comes: embedding, head and last norm.
    assert decoding["policy", "weights gathered"] == 2 * (COUNTS["7b"] + 2 * 32_000 * 4096 + 4096)
    sent = {
        (each["phase"], each["role"]): each["bytes"] for each in asked["sent"] if each["what"] == "weights gathered"
    }
    assert sent["generate", "policy"] == 2 * COUNTS["7b"] * 7 / 8  # once for a rollout, from seven others


def test_what_is_proposed_are_settings_of_a_run(plan):
    words = "7b --reward_funcs length --dtype bfloat16 --gpus 16 --gpu h200"
    proposed = json.loads(plan(f"{words} --json")[1].out)["proposed"][0]["settings"]
    from_mapping(PPOConfig, proposed, texts=False)
    text = " ".join(plan(words)[1].out.split())
    assert "The best as settings: --batch_size 128 --dp_shard" in text
    assert "Time is an estimate" in text


@pytest.mark.slow
def test_70b_on_512_gpus_and_not_on_8(plan):
    words = "70b --reward_funcs length --dtype bfloat16 --gpu h100 --batch_size 1024 --gradient_checkpointing"
    code, told = plan(f"{words} --gpus 8 --plans 1")
    assert code == 3
    text = " ".join(told.out.split())
    assert "No layout fits. The nearest, " in text
    assert "devices with dp_shard" in text
    code, told = plan(f"{words} --gpus 512 --json --plans 20")
    found = json.loads(told.out)
    assert found["networks"][0]["weights"] == COUNTS["70b"]
    # The policy is gathered whole for a rollout, in 2 bytes a weight: no number of pieces makes that fit here, but
    # layers that processes compute together.
    assert code == 0
    fitting = [each["settings"] for each in found["proposed"] if each["fits"]]
    assert all(settings["tp_size"] > 1 for settings in fitting)
    assert not any(each["fits"] for each in found["proposed"] if each["settings"].get("tp_size", 1) == 1)


def test_what_is_wrong_is_said_in_words(plan, tmp_path):
    assert "known are h100" in plan("7b --gpu h1000 --gpus 8")[1].err
    assert "say how many" in plan("7b --gpu h100")[1].err
    assert "at most 1024" in plan("7b --gpu h100 --gpus 2000")[1].err
    assert "doctor --measure" in plan("7b --machine nowhere.json")[1].err
    assert "no policy" in plan("--gpu h100 --gpus 1")[1].err
    assert "no-such" in plan("./no-such --gpu h100 --gpus 1")[1].err
    assert "dp_shard = 3 with 8 processes" in plan("gpt2 --gpu h100 --gpus 8 --dp_shard 3")[1].err


def test_what_can_be_asked_for_together_is_planned_and_what_cannot_is_refused(plan):
    pytest.importorskip("peft")
    words = "gpt2 --reward_funcs length --gpu h100 --json"
    two = json.loads(plan(f"{words} --gpus 2 --zero_stage 3")[1].out)["asked"]
    assert two["settings"]["zero_stage"] == 3
    idle = json.loads(plan(f"{words} --gpus 1 --offload_roles reference")[1].out)["asked"]
    assert any(each["what"] == "from the host" for each in idle["sent"])
    rows = json.loads(
        plan(f"{words} --gpus 2 --sp_size 2 --gradient_checkpointing --gradient_checkpointing_every 2")[1].out
    )
    assert rows["asked"]["settings"]["sp_size"] == 2
    assert rows["asked"]["settings"]["gradient_checkpointing_every"] == 2
    packed = "--use_peft --load_in_4bit --optim adamw_8bit --dtype bfloat16 --critic_trunk adapter"
    four_bits = json.loads(plan(f"{words} --gpus 4 {packed}")[1].out)
    assert four_bits["proposed"]
    assert {each["settings"]["dp_shard"] for each in four_bits["proposed"]} == {1}  # the run would refuse pieces
    assert "cannot be divided over so many processes" in plan(f"{words} --gpus 2 --tp_size 2")[1].err
    assert "has 4 attention heads" in plan(f"{words} --gpus 3 --sp_size 3")[1].err


def test_adapters_share_the_weights_and_a_trunk_the_pass(plan):
    pytest.importorskip("peft")
    words = "gpt2 --reward_funcs length --gpu l4 --gpus 1 --json"
    whole, lora, trunk = (
        json.loads(plan(f"{words} {more}")[1].out) for more in ("", "--use_peft", "--critic_trunk shared")
    )
    trained = {each["role"]: each["trained"] for each in lora["networks"]}
    assert 0 < trained["policy"] < whole["networks"][0]["trained"] / 5
    assert next(each["weights"] for each in lora["networks"] if each["role"] == "reference") == 0
    assert next(each["weights"] for each in trunk["networks"] if each["role"] == "value") == 32
    moments = [
        next(term["bytes"] for term in found["asked"]["stages"][-1]["terms"]
             if (term["role"], term["what"]) == ("policy", "moments"))
        for found in (whole, lora)
    ]  # fmt: skip
    assert moments[1] < moments[0] / 5
    assert trunk["asked"]["peak_bytes"] < whole["asked"]["peak_bytes"]


def test_experts_are_counted_and_their_passes_traced():
    config = Qwen3MoeConfig(
        hidden_size=64, intermediate_size=128, moe_intermediate_size=32, num_experts=8, num_experts_per_tok=2,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=300,
    )  # fmt: skip
    assert pass_bytes(config, torch.bfloat16.itemsize, autocast=False, is_gpu=True).is_traced


def test_what_cannot_be_traced_is_reckoned_by_rule_and_said(folders, monkeypatch):
    def branches(*arguments):
        raise RuntimeError("a branch on numbers")

    monkeypatch.setattr(_Trace, "of", branches)
    assert not pass_bytes(tiny_config("gpt2"), 4, autocast=False, is_gpu=True).is_traced
    settings = PlanConfig(
        model_name_or_path=str(folders / "gpt2"), reward_funcs=("length",), gpu="h100", gpus=1, critic_trunk="shared"
    )
    assert any("rule of thumb" in note for note in make_plan(settings).notes)


def test_the_rates_of_a_machine_are_kept_for_the_plan(plan, tmp_path, monkeypatch, capsys):
    from nearstep.planning import measure

    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "TRIES", 1)
    monkeypatch.setattr(measure, "GROUPS", ())
    monkeypatch.setattr(measure, "STREAM_BYTES", 2**20)
    monkeypatch.setattr(measure, "SIDES", {"cpu": 64, "cuda": 64})
    file = tmp_path / "machine.json"
    assert main.main(["doctor", "--measure", str(file)]) == 0
    assert f"nearstep plan --machine {file}" in capsys.readouterr().out
    code, told = plan(f"gpt2 --reward_funcs length --machine {file} --json")
    assert code == 0
    assert json.loads(told.out)["machine"]["measured"]
    assert main.main(["doctor", str(tmp_path), "--measure", str(file)]) == 2
    assert doctor.ILL == 3
