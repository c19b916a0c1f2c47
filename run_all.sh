#!/usr/bin/env bash
# bash run_all.sh                 tiny: made on the spot, trained, decoded and scored; two CPU cores, no download
# bash run_all.sh digits          the same on real voices; FSDD=folder of recordings, HOLDOUT=speaker of the test set
# bash run_all.sh iwslt25         the 2025 system on one A100-80GB; make the rows of each corpus first (README)
# WORK=folder SEED=n bash run_all.sh ...     another root folder, another seed
# A stage that is finished says so and is not run again; one that was killed goes on where it was.
set -euo pipefail
cd "$(dirname "$0")"
PRESET=${1:-tiny}
[ "$PRESET" = smoke ] && WORK=${WORK:-work/smoke}      # a smaller tiny world, for the tests, of its own
[ -t 2 ] || export TQDM_MININTERVAL=30                  # progress bars: into a file, a line every 30 s
ARGS=(--preset "$PRESET" --work "${WORK:-work}")
SEEDED=("${ARGS[@]}" --seed "${SEED:-0}")
case $PRESET in
  tiny | smoke) python data/tiny.py   "${SEEDED[@]}" ;;
  digits)       python data/digits.py "${SEEDED[@]}" ;;
esac
python extract_features.py "${ARGS[@]}"                                              # 0
python train_projector.py "${SEEDED[@]}"                                             # A.1
case $PRESET in
  tiny | smoke | digits) python train_projector.py "${SEEDED[@]}" --mixture A.2 --out projector-A.2 ;;
esac
python train_lora.py "${SEEDED[@]}"                                                  # B, needs nothing of A
python merge_sft.py "${SEEDED[@]}"                                                   # C = A.1 + B
python infer.py "${ARGS[@]}"
python eval.py "${ARGS[@]}"
