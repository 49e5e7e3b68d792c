"""What launchers leave in the environment: done, refused with the setting that does it, or harmless."""

import pytest

from nearstep.common.errors import ConfigError
from nearstep.config.launched import as_launched
from nearstep.config.launcher import check_launch, cpu_is_asked_for
from nearstep.config.ppo import PPOConfig
from nearstep.config.reward_model import RewardConfig
from tests.training.runs import settings

# What accelerate 1.15 sets in every process of a plain launch on a CPU, torchrun's variables beside it.
PLAIN = {
    "ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default", "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False", "OMP_NUM_THREADS": "1",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False", "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
}  # fmt: skip
TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(("environment", "given"), [
    ({}, {}), (PLAIN, {}), (TORCHRUN, {}), (PLAIN | TORCHRUN, {}), ({"ACCELERATE_USE_FSDP": "false"}, {}),
    ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {"bf16": True}),
    ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}, {"gradient_accumulation_steps": 4}),
    ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, {"gradient_accumulation_steps": 4}),
    ({"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, {"max_grad_norm": 0.5}), ({"ACCELERATE_GRADIENT_CLIPPING": "none"}, {}),
    ({"SLURM_NTASKS": "1"}, {}), ({"SLURM_NTASKS": "2", **TORCHRUN}, {}),
    ({"OMPI_COMM_WORLD_SIZE": "2", **TORCHRUN}, {}),
    ({"ACCELERATE_DEBUG_MODE": "true"}, {}), ({"WORLD_SIZE": "1", "RANK": "0"}, {}),
])  # fmt: skip
def test_what_is_done_and_what_asks_for_nothing_passes(environment, given):
    assert as_launched(environment, PPOConfig(**given)) == PPOConfig(**given)
    check_launch(environment, RewardConfig(**given))


@pytest.mark.parametrize(("environment", "words"), [
    ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"), ({"MEGATRON_LM_TP_DEGREE": "2"}, "Megatron-LM"),
    ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism beyond data"),
    ({"ACCELERATE_USE_SAGEMAKER": "true"}, "what is not done here"),
    ({"ACCELERATE_USE_NEXT_THING": "1"}, "not done here"),
    ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed precision here is bfloat16"),
    ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed precision here is bfloat16"),
    ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "models are not compiled"),
    ({"ACCELERATE_CPU_AFFINITY": "1"}, "numactl"), ({"XLA_USE_BF16": "1"}, "on a TPU"),
    ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8"}, "gradient_accumulation_steps is 1: give gradient_acc"),
    ({"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, "max_grad_norm is 1.0: give max_grad_norm = 0.5"),
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, "SLURM_NTASKS=4: 4 processes are meant"),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "torchrun --nproc_per_node 2"), ({"PMI_SIZE": "8"}, "for WORLD_SIZE is 1"),
    ({"SLURM_NTASKS": "4", **TORCHRUN}, "WORLD_SIZE is 2"),
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2, but not RANK, MASTER_ADDR, MASTER_PORT"),
    ({**PLAIN, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, "accelerate launch was told of several processes"),
])  # fmt: skip
def test_what_is_asked_for_and_not_done_is_refused(environment, words):
    for check, config in ((as_launched, PPOConfig()), (check_launch, RewardConfig())):
        with pytest.raises(ConfigError) as refusal:
            check(environment, config)
        assert words in str(refusal.value)
        assert str(refusal.value).count("\n  - ") == 1


@pytest.mark.parametrize(("environment", "words"), [
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED=true asks for DeepSpeed: the networks of"),
    ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ACCELERATE_DEEPSPEED_ZERO_STAGE=3 asks for DeepSpeed"),
    ({"ACCELERATE_USE_FSDP": "True", "FSDP_VERSION": "2"}, "ACCELERATE_USE_FSDP=True, FSDP_VERSION=2 asks for FSDP"),
    ({"FSDP_SHARDING_STRATEGY": "FULL_SHARD"}, "asks for FSDP"),
    ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "give bf16 = true"),
])  # fmt: skip
def test_a_reward_model_is_trained_whole(environment, words):
    with pytest.raises(ConfigError, match=words):
        check_launch(environment, RewardConfig())


def test_everything_that_is_asked_for_is_told_at_once():
    environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "fp16", "SLURM_NTASKS": "2"}
    with pytest.raises(ConfigError) as refusal:
        check_launch(environment, RewardConfig())
    assert str(refusal.value).count("\n  - ") == 3


def test_accelerates_cpu_is_a_cpu():
    assert cpu_is_asked_for(PLAIN)
    assert not cpu_is_asked_for({"ACCELERATE_USE_CPU": "False"})


def test_both_entrances_ask(monkeypatch, tmp_path, capsys):
    from nearstep import PPOTrainer, RewardModelTrainer
    from nearstep.cli.main import main

    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")  # without a stage
    with pytest.raises(ConfigError, match="DeepSpeed"):
        PPOTrainer(args=settings(tmp_path))
    with pytest.raises(ConfigError, match="DeepSpeed"):
        RewardModelTrainer(args=RewardConfig(output_dir=str(tmp_path)))
    words = "--model_name_or_path me/policy --reward_funcs length --dataset_name me/prompts"
    assert main(["ppo", *words.split()]) == 2
    assert "DeepSpeed" in capsys.readouterr().err
