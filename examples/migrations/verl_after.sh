# The same with nearstep.
nearstep ppo \
    --model_name_or_path policy \
    --reward_model_path reward \
    --dataset_name prompts.jsonl \
    --output_dir verl \
    --batch_size 8 \
    --num_mini_batches 2 \
    --num_ppo_epochs 1 \
    --per_device_train_batch_size 4 \
    --num_train_epochs 1 \
    --max_prompt_length 64 \
    --on_long_prompt drop \
    --response_length 16 \
    --temperature 1.0 \
    --learning_rate 1e-6 \
    --vf_learning_rate 1e-5 \
    --kl_coef 0.001 \
    --lam 1.0 \
    --cliprange_value 0.5
