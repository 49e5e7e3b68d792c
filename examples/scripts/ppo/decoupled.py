"""Decoupled PPO: the critic on an optimizer of its own, trained after the policy. Takes all flags of `nearstep ppo`.

    python examples/scripts/ppo/decoupled.py \\
        --dataset_name runs/demo/prompts.jsonl \\
        --reward_model_path runs/demo/reward \\
        --model_name_or_path runs/demo/sft \\
        --learning_rate 3e-6 \\
        --vf_learning_rate 1e-4 \\
        --output_dir runs/decoupled \\
        --per_device_train_batch_size 64 \\
        --total_episodes 10000

On several processes: `torchrun --nproc_per_node 2 examples/scripts/ppo/decoupled.py …`. The settings that matter here
are vf_learning_rate, num_vf_epochs and vf_update_frequency; docs/recipes/decoupled.md has the rest.
"""

import sys

from nearstep.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["ppo", "--recipe", "decoupled", *sys.argv[1:]]))
