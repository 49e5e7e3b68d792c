"""PPO with TRL's flags, under the name of TRL's script: `nearstep ppo`. A first try without a reward model:

    python -i examples/scripts/ppo/ppo.py \\
        --learning_rate 3e-6 \\
        --num_ppo_epochs 1 \\
        --num_mini_batches 1 \\
        --output_dir models/minimal/ppo \\
        --per_device_train_batch_size 64 \\
        --gradient_accumulation_steps 1 \\
        --total_episodes 10000 \\
        --model_name_or_path EleutherAI/pythia-1b-deduped \\
        --non_eos_penalty \\
        --reward_funcs length

Without --dataset_name it takes the prompts of TRL's script from the hub. The reward model of that script was a
base model with a random head; here `--reward_model_path EleutherAI/pythia-1b-deduped --random_reward_head` says so.
"""

import sys

from nearstep.cli.main import main

PROMPTS = ("trl-internal-testing/descriptiveness-sentiment-trl-style", "--dataset_train_split", "descriptiveness")

if __name__ == "__main__":
    given = any(word.partition("=")[0] in ("--dataset_name", "--dataset-name", "--config") for word in sys.argv[1:])
    sys.exit(main(["ppo", *([] if given else ["--dataset_name", *PROMPTS]), *sys.argv[1:]]))
