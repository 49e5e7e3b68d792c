"""What one of several processes does in test_two_processes: whole runs in float64, weights and numbers to files."""

from pathlib import Path

import torch
from examples.several_turns import TwoSegments
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nearstep import PPOConfig
from nearstep.models.distribution import Sampling
from nearstep.models.forward import action_logprobs
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import make_policy
from nearstep.scale import torch_backend
from nearstep.scale.shards import whole_tensor
from nearstep.training.loop import train
from nearstep.training.optimizers import make_learner
from nearstep.training.state import State
from tests.models.test_forward import rollout_of
from tests.tiny import tiny_causal_lm
from tests.training.runs import low_ids, small_recipe

torch.set_num_threads(1)
torch_backend.BUCKET_BYTES = 2**14  # several buckets for the gradients of a tiny model

SHARED = {
    "dtype": torch.float64, "batch_size": 9, "num_mini_batches": 4, "total_episodes": 27,
    "per_device_train_batch_size": 2,
    "response_length": 8, "num_generations": 3,
}  # fmt: skip

LAYOUT: dict[str, object] = {}  # settings that say how networks lie over the processes

ONE_TRUNK = {"critic_trunk": "shared", "vf_warmup_updates": 1, "value_head": "ensemble"}

# What depends on all episodes of an update: the moments of scores, the KL coefficient, the end of the epochs.
ADAPTING = {
    "normalize_scores": "shift_and_scale", "kl_target": 0.5, "kl_horizon": 30, "kl_coef": 0.5, "num_ppo_epochs": 3,
    "kl_estimator": "k3", "early_stop_kl": 0.02, "on_reward_error": "drop", "learning_rate": 3e-3,
    "stop_token_id": tuple(range(0, 258, 6)),
}  # fmt: skip

# Groups that begin in one process and end in the other are dropped, and others are sampled in their place; prompts are
# drawn by how they scored; or copies fill the places, by the critic's gaps.
REFILLED = {
    "advantage": "group_mean", "gate": "score_range", "gate_low": 0.3, "gate_fill": "refill", "refill_rounds": 2,
    "sampler": "difficulty", "pool_borders": (0.3, 0.4), "normalize_scores": "scale",
}  # fmt: skip
REPLACED = {"gate": "value_gap", "gate_share": 0.5, "gate_fill": "replace"}

# Evaluations of an odd number of prompts, in chunks that do not come out even; the best of them is saved.
EVALUATED = {
    "eval_steps": 1, "eval_on_start": True, "eval_temperature": 1.5, "eval_num_generations": 2, "keep_best": True,
    "local_rollout_forward_batch_size": 4, "num_sample_generations": 3, "early_stopping_patience": 9,
    "kl_estimator": "k3", "learning_rate": 3e-3, "eval_reward_funcs": "tests/scale/judge.py:length",
}  # fmt: skip
# The critic first on what another run of as many processes has dumped, then alone for one update of at most two, then
# reweighted; advantages against the mean of the batch while it explains nothing.
CRITIC = {
    "critic": "decoupled", "vf_reweight": "ratio", "vf_reweight_high": 1.05, "vf_warmup_updates": 2,
    "vf_warmup_until": -50.0, "baseline_fallback": "batch_mean", "learning_rate": 3e-3,
}  # fmt: skip

# Every auxiliary loss: an odd number of texts in each step, so that the processes' shares differ; few rows are good.
AUXILIARY = {
    "nll_coef": 0.3, "nll_min_score": 0.5, "z_loss_coef": 0.01, "teacher_in": "loss", "ptx_coef": 0.5,
    "ptx_batch_size": 3, "ptx_row_length": 9, "learning_rate": 3e-3,
}  # fmt: skip
TEXTS = [{"text": "some words of it " * number} for number in range(1, 5)]
HELD_OUT = [{"prompt": f"q{number}" * number, "completion": "zz" if number % 2 else None} for number in range(1, 8)]


# Episodes of two rows each, and a critic that reads more than the policy.
SEVERAL = {"critic_columns": ["reference"], "critic_text_tokens": 16, "lam_length_alpha": 0.5}
READ = [{"prompt": text, "reference": text * number} for number, text in enumerate(("ab", "c", "def", "gh", "ijkl"))]


def some_unscored(completion_ids, **kwargs):
    """None where a response begins with a multiple of 4: with on_reward_error = drop its row has no score."""
    return [None if ids[0] % 4 == 0 else sum(token % 7 for token in ids) / len(ids) for ids in completion_ids]


def main(where: Path | str, saved_by_other: Path | str | None = None) -> None:
    """Nine episodes over the processes in four minibatches: a critic, one on the policy's trunk, and what adapts.

    `saved_by_other` is a checkpoint that another number of processes has written; a run goes on from it.
    """
    folder = Path(where)
    play_always(folder)
    if saved_by_other is not None:
        resume(folder, Path(saved_by_other))
        play(folder / "sharded", **ONE_TRUNK, save_steps=1, dp_shard=2)
    under_ddp(folder)
    master_weights(folder)
    dist_close()


def play_all(folder: Path) -> None:
    """Every run but one that goes on."""
    play_always(folder)
    play_more(folder, folder / "dumped")


def play_always(folder: Path) -> None:
    play(folder, whiten_rewards=True, dump_rollouts=str(folder / "dumped"))
    play(folder / "one_trunk", **ONE_TRUNK)
    play(folder / "adapting", reward=some_unscored, save_steps=1, **ADAPTING)


def play_more(folder: Path, dumped: Path) -> None:
    """The runs of the slow lane; one of them trains on what `play_always` has dumped."""
    play(folder / "critic", vf_pretrain_rollouts=str(dumped), **CRITIC)
    play(folder / "groups", advantage="leave_one_out", trust_region="topk_tv", whiten_advantages=True)
    play(folder / "several", parts={"engine": TwoSegments, "train_dataset": READ}, **SEVERAL)
    play(folder / "refilled", **REFILLED)
    play(folder / "replaced", **REPLACED)
    teacher = tiny_causal_lm("gpt2", dtype=torch.float64, seed=3)
    play(folder / "auxiliary", parts={"teacher_model": teacher, "ptx_dataset": TEXTS}, **AUXILIARY)
    play(folder / "evaluated", held_out=HELD_OUT, **EVALUATED)


def master_weights(folder: Path) -> None:
    """Four steps on bfloat16 weights whose gradients are whole numbers, rows dealt to processes; the masters after it.

    The sum over processes goes from 256 + 1, which bfloat16 would round, to the masters.
    """
    backend = torch_backend.torch_backend(use_cpu=True)
    model = torch.nn.Linear(2, 1, bias=False, dtype=torch.bfloat16)
    model.weight.data.fill_(1.0)
    config = PPOConfig(learning_rate=1e-5, lr_scheduler_type="constant", optim="sgd")
    learner = make_learner(model, config, config.learning_rate, updates=1)
    for _ in range(4):
        learner.free_gradients()
        for row in ([256.0, 2.0], [1.0, 3.0])[backend.rank :: backend.world_size]:
            model(torch.tensor([row], dtype=torch.bfloat16)).sum().backward()
            learner.take_gradients()
        backend.add_up_gradients(learner.parameters)
        learner.optimizer.step()
    torch.save((learner.parameters, model.state_dict()), folder / f"masters{backend.rank}.pt")


def play(folder: Path, reward=low_ids, held_out=None, parts=None, **changes) -> None:
    """Three updates, with all that a run writes."""
    # Processes pack rows otherwise than one does; Llama's norms, which compute in float32, would round otherwise.
    model = tiny_causal_lm("gpt2", dtype=torch.float64)
    given = {"model": model, "reward_funcs": (reward,), "eval_dataset": held_out, **(parts or {})}
    recipe = small_recipe(folder, parts=given, **{**SHARED, **LAYOUT, **changes})
    state = State()
    with recipe.report.reporter as reporter:
        train(recipe, state)
        recipe.checkpoint.save_final(state)
        reporter.end()
    models = {"policy": whole_weights(recipe.models.policy.model)}
    if recipe.models.critic is not None:
        models["value"] = whole_weights(recipe.models.critic.model)
    if recipe.backend.rank == 0:
        torch.save(models, folder / "weights.pt")


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: whole_tensor(weights) for name, weights in model.state_dict().items()}


def resume(folder: Path, saved: Path) -> None:
    """The last two updates of the adapting run, from a checkpoint."""
    play(folder / "resumed", reward=some_unscored, resume=str(saved), **ADAPTING)


class SquaredLogprobs(nn.Module):
    """A loss on a policy's log-probs, as a module that torch's DistributedDataParallel wraps."""

    def __init__(self, model) -> None:
        super().__init__()
        self.policy = make_policy(model)
        self.model = model

    def forward(self, rollout):
        return rollout_logprobs(self.policy, rollout, Sampling(0.7)).sampled.square().sum()


def under_ddp(folder: Path) -> None:
    """Gradients of two backward passes, over the processes by DistributedDataParallel, with a head in three chunks."""
    action_logprobs.LOGITS_HELD["cpu"] = 1
    rollout = rollout_of([([row, row + 1], [(7 * row + place) % 250 for place in range(20)]) for row in range(4)])
    loss = SquaredLogprobs(tiny_causal_lm("gpt2", dtype=torch.float64))
    parallel, world, rank = loss, 1, 0
    if torch.distributed.is_initialized():
        parallel, world, rank = DistributedDataParallel(loss), *ranks()
    for _ in range(2):
        (parallel(rollout.select(torch.arange(rank, 4, world))) * world).backward()  # the wrapper takes the mean
    if rank == 0:
        torch.save({name: weight.grad for name, weight in loss.model.named_parameters()}, folder / "ddp.pt")


def ranks() -> tuple[int, int]:
    return torch.distributed.get_world_size(), torch.distributed.get_rank()


def dist_close() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
