#!/bin/bash
# MindSpeed-LLM's --stage trl_ppo.
SFT_LOAD_DIR="policy"
REWARD_LOAD_DIR="reward"
DISTRIBUTED_ARGS="
    --nproc_per_node 1 \
    --nnodes 1
"
GPT_ARGS="
    --tensor-model-parallel-size 1 \
    --pipeline-model-parallel-size 1 \
    --num-layers 16 \
    --hidden-size 2048 \
    --micro-batch-size 4 \
    --global-batch-size 8 \
    --lr 1e-7 \
    --train-iters 2 \
    --lr-decay-style constant \
    --clip-grad 1.0 \
    --adam-beta1 0.9 \
    --adam-beta2 0.95 \
"
RL_ARGS="
    --stage trl_ppo \
    --max-new-tokens 16 \
    --max-length 64
"
torchrun $DISTRIBUTED_ARGS posttrain_gpt.py \
    $GPT_ARGS \
    $RL_ARGS \
    --data-path prompts.jsonl \
    --split 100,0,0 \
    --ref-model ${SFT_LOAD_DIR} \
    --reward-model ${REWARD_LOAD_DIR} \
    --save mindspeed \
    | tee trl_ppo.log
