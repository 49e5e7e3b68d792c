"""Completions of unseen TL;DR posts, under the name and with the flags of TRL's script: `nearstep generate`.

    python examples/scripts/evals/generate_tldr.py \\
        --model_name_or_path cleanrl/EleutherAI_pythia-1b-deduped__sft__tldr \\
        --output_path sft_tldr.csv \\
        --n 1000

Without --dataset_name it takes posts of the hub. `nearstep judge sft_tldr.csv` compares them with the references.
"""

import sys

from nearstep.cli.main import main

POSTS = "trl-internal-testing/tldr-preference-sft-trl-style"


def _given(*names: str) -> bool:
    return any(word.partition("=")[0].replace("-", "_") in names for word in sys.argv[1:])


if __name__ == "__main__":
    own = [] if _given("__dataset_name", "__config") else ["--dataset_name", POSTS]
    own += [] if _given("__split", "__config") else ["--split", "validation"]
    sys.exit(main(["generate", *own, *sys.argv[1:]]))
