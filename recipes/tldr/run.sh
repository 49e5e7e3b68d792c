#!/bin/sh
# Summaries of posts, from a base model to a judged policy: supervised start, reward model, PPO, completions, judge,
# report.
#
#   sh recipes/tldr/run.sh 1b models/tldr-1b
#   LAUNCH="torchrun --nproc_per_node 8" sh recipes/tldr/run.sh 1b models/tldr-1b
#
# $1 is a folder of settings beside this file, $2 where everything goes. A step whose result is there is not done again.
# LAUNCH starts the processes of the three trainings (python on one), JUDGE is a judge of docs/judges.md, POSTS is the
# size of the demo's world.
set -eu
here=$(dirname "$0")
settings=$here/$1
out=$2
LAUNCH=${LAUNCH:-python}
mkdir -p "$out"

if [ "$1" = demo ] && [ ! -d "$out/world" ]; then
  python "$here/demo_world.py" "$out/world.part" ${POSTS:-9600}
  mv "$out/world.part" "$out/world"
fi
place() { sed "s#WORLD#$out/world#g" "$settings/$1.yaml" >"$out/$1.yaml"; }  # only the demo's names depend on $2
for step in sft reward ppo generate judge; do place $step; done

# LAUNCH is several words.
# shellcheck disable=SC2086
{
  [ -f "$out/sft/config.json" ] || $LAUNCH "$here/sft.py" --config "$out/sft.yaml" --output_dir "$out/sft"
  [ -f "$out/reward/reward/config.json" ] || $LAUNCH -m nearstep reward --config "$out/reward.yaml" \
    --model_name_or_path "$out/sft" --output_dir "$out/reward"
  [ -f "$out/ppo/policy/config.json" ] || $LAUNCH -m nearstep ppo --config "$out/ppo.yaml" \
    --model_name_or_path "$out/sft" --reward_model_path "$out/reward/reward" --output_dir "$out/ppo"
}

for policy in sft ppo; do
  model=$out/sft
  [ $policy = ppo ] && model=$out/ppo
  [ -f "$out/$policy.jsonl" ] || python -m nearstep generate --config "$out/generate.yaml" \
    --model_name_or_path "$model" --output "$out/$policy.jsonl"
  echo "$policy (response0) against people's summaries (response1)"
  python -m nearstep judge "$out/$policy.jsonl" --config "$out/judge.yaml" ${JUDGE:+--judge "$JUDGE"} \
    --output "$out/$policy.judged.jsonl"
done
python -m nearstep report "$out/ppo"
