"""Prompts tokenised ahead of a run, under the name and with the flags of MindSpeed-LLM's script: `nearstep prepare`.

    python ./preprocess_data.py \\
        --input ./dataset/train-00000-of-00001-a09b74b3ef9c3b56.parquet \\
        --tokenizer-name-or-path ./model_from_hf/Llama-3.2-1B-Instruct \\
        --output-prefix ./finetune_dataset/llama-3.2-1b-trl/alpaca \\
        --handler-name PPOAlpacaStyleInstructionHandler \\
        --prompt-type empty
"""

import sys

from nearstep.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
