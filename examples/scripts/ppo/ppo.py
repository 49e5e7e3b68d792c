"""PPO with TRL's flags, under the name of TRL's script: `nearstep ppo`. A first try without a reward model:

    python -i examples/scripts/ppo/ppo.py \\
        --learning_rate 3e-6 \\
        --num_ppo_epochs 1 \\
        --num_mini_batches 1 \\
        --output_dir models/minimal/ppo \\
        --per_device_train_batch_size 64 \\
        --gradient_accumulation_steps 1 \\
        --total_episodes 10000 \\
        --model_name_or_path runs/demo/sft \\
        --non_eos_penalty \\
        --dataset_name runs/demo/prompts.jsonl \\
        --reward_funcs length
"""

import sys

from nearstep.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["ppo", *sys.argv[1:]]))
