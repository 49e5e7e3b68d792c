"""PPO on TL;DR summaries, with TRL's flags. Without --dataset_name it takes TRL's data set of posts from the hub.

    accelerate launch --config_file examples/accelerate_configs/deepspeed_zero2.yaml \\
        examples/scripts/ppo/ppo_tldr.py \\
        --output_dir models/minimal/ppo_tldr \\
        --learning_rate 3e-6 \\
        --per_device_train_batch_size 16 \\
        --gradient_accumulation_steps 4 \\
        --total_episodes 1000000 \\
        --model_name_or_path EleutherAI/pythia-1b-deduped \\
        --sft_model_path cleanrl/EleutherAI_pythia-1b-deduped__sft__tldr \\
        --reward_model_path cleanrl/EleutherAI_pythia-1b-deduped__reward__tldr \\
        --local_rollout_forward_batch_size 16 \\
        --non_eos_penalty \\
        --stop_token eos
"""

import sys

from nearstep.cli.main import main

POSTS = "trl-internal-testing/tldr-preference-sft-trl-style"

if __name__ == "__main__":
    given = any(word.partition("=")[0] in ("--dataset_name", "--dataset-name", "--config") for word in sys.argv[1:])
    sys.exit(main(["ppo", *([] if given else ["--dataset_name", POSTS]), *sys.argv[1:]]))
