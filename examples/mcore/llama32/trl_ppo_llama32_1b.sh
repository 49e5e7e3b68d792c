#!/bin/bash
# PPO under the name and with the flags of MindSpeed-LLM's script: `nearstep prepare`, then `nearstep ppo --recipe mindspeed`.
# Model folders are those of transformers, before any conversion to Megatron. Flags behind the script's name go to PPO:
#
#     MODEL=policy REWARD=reward INPUT=prompts.jsonl bash examples/mcore/llama32/trl_ppo_llama32_1b.sh --do-sample
set -e

MODEL=${MODEL:-./model_from_hf/Llama-3.2-1B-Instruct}
REWARD=${REWARD:?the reward model, which the critic starts from too}
INPUT=${INPUT:-./dataset/train-00000-of-00001-a09b74b3ef9c3b56.parquet}
DATA_PATH=${DATA_PATH:-./finetune_dataset/llama-3.2-1b-trl/alpaca}
SAVE=${SAVE:-./ckpt/llama-3.2-1b-trl-ppo}
NPROC=${NPROC:-1}

if [ ! -e "$DATA_PATH" ]; then
    nearstep prepare \
        --input "$INPUT" \
        --tokenizer-name-or-path "$MODEL" \
        --output-prefix "$DATA_PATH" \
        --workers 16 \
        --log-interval 1000 \
        --tokenizer-type PretrainedFromHF \
        --handler-name PPOAlpacaStyleInstructionHandler \
        --prompt-type empty
fi

# 50 updates of 8 episodes, at the rate of its comparison of losses.
nearstep ppo \
    --nproc "$NPROC" \
    --recipe mindspeed \
    --stage trl_ppo \
    --ref-model "$MODEL" \
    --reward-model "$REWARD" \
    --data-path "$DATA_PATH" \
    --output_dir "$SAVE" \
    --batch_size 8 \
    --total_episodes 400 \
    --lr 1.0e-7 \
    --lr_scheduler_type constant \
    --kl-coef 0.3 \
    --gamma 1.0 \
    --lam 0.95 \
    --clip-ratio 0.2 \
    --cliprange-value 0.2 \
    --max-length 256 \
    --max-new-tokens 128 \
    "$@"
