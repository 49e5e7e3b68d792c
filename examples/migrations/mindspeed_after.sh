# The same with nearstep. Take --do_sample true with it: greedy responses try nothing new.
nearstep ppo \
    --recipe mindspeed \
    --model_name_or_path policy \
    --ref_model_path policy \
    --reward_model_path reward \
    --dataset_name prompts.jsonl \
    --output_dir mindspeed \
    --per_device_train_batch_size 4 \
    --batch_size 8 \
    --total_episodes 16 \
    --learning_rate 1e-7 \
    --lr_scheduler_type constant \
    --max_grad_norm 1.0 \
    --adam_beta1 0.9 \
    --adam_beta2 0.95 \
    --response_length 16 \
    --max_length 64
