"""Decoupled PPO under the name that its draft for TRL gave the script; `decoupled.py` is the same.

    accelerate launch --config_file examples/accelerate_configs/deepspeed_zero3.yaml \\
        examples/scripts/ppo/dppo.py \\
        --dataset_name runs/demo/prompts.jsonl \\
        --reward_model_path runs/demo/reward \\
        --model_name_or_path runs/demo/sft \\
        --learning_rate 3e-6 \\
        --vf_learning_rate 1e-4 \\
        --output_dir runs/decoupled

TRL has an algorithm of the same name that replaces the clip by a divergence: `divergence.py`. So flags of the critic's
own optimizer are asked for here.
"""

import sys

from nearstep.cli.main import main

DECOUPLED = ("--vf_learning_rate", "--num_vf_epochs", "--vf_update_frequency")

if __name__ == "__main__":
    if not any("--" + word.partition("=")[0].lstrip("-").replace("-", "_") in DECOUPLED for word in sys.argv[1:]):
        sys.exit(
            "dppo.py: the name has two meanings. A critic on an optimizer of its own: give --vf_learning_rate, "
            "--num_vf_epochs or --vf_update_frequency. A divergence in the place of the clip: "
            "examples/scripts/ppo/divergence.py"
        )
    sys.exit(main(["ppo", "--recipe", "decoupled", *sys.argv[1:]]))
