"""Divergence PPO: a divergence says how far a step may go, not a clip. Takes all flags of `nearstep ppo`.

    python examples/scripts/ppo/divergence.py \\
        --dataset_name runs/demo/prompts.jsonl \\
        --reward_model_path runs/demo/reward \\
        --model_name_or_path runs/demo/sft \\
        --trust_region topk_tv --divergence_top_k 20 \\
        --learning_rate 3e-6 \\
        --output_dir runs/divergence \\
        --per_device_train_batch_size 64 \\
        --total_episodes 10000

With a critic; `--advantage group_normalized --num_generations 8` is the form without one. docs/recipes/divergence.md
has the objective and the settings.
"""

import sys

from nearstep.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["ppo", "--recipe", "divergence", *sys.argv[1:]]))
