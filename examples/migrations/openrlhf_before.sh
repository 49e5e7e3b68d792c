# OpenRLHF: PPO with a critic on Ray.
SAVE=openrlhf
ray job submit --address="http://127.0.0.1:8265" -- python3 -m openrlhf.cli.train_ppo_ray \
    --ref_num_nodes 1 --ref_num_gpus_per_node 1 \
    --actor_num_nodes 1 --actor_num_gpus_per_node 1 \
    --vllm_num_engines 1 --vllm_tensor_parallel_size 1 --colocate_all_models \
    --pretrain policy \
    --reward_pretrain reward \
    --save_path $SAVE \
    --micro_train_batch_size 4 --train_batch_size 8 \
    --micro_rollout_batch_size 4 --rollout_batch_size 8 \
    --n_samples_per_prompt 2 \
    --max_epochs 1 --num_episodes 1 \
    --prompt_max_len 64 --generate_max_len 16 \
    --actor_learning_rate 5e-7 --critic_learning_rate 9e-6 \
    --init_kl_coef 0.01 --gamma 1.0 --lambd 0.95 --value_clip 0.2 --eps_clip 0.2 \
    --prompt_data prompts.jsonl --input_key prompt \
    --zero_stage 2 --adam_offload --packing_samples
