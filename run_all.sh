#!/usr/bin/env bash
# bash run_all.sh                 tiny: made on the spot, trained, decoded and scored; two CPU cores, no download
# bash run_all.sh digits          the same on real voices; FSDD=folder of recordings, HOLDOUT=speaker of the test set
# bash run_all.sh iwslt25         the 2025 system on one A100-80GB; make the rows of each corpus first (README)
# WORK=folder SEED=n bash run_all.sh ...     another root folder, another seed
set -euo pipefail
cd "$(dirname "$0")"
PRESET=${1:-tiny}
WORK=${WORK:-work}
RUN=$WORK/$PRESET
SEEDED="--preset $PRESET --work $WORK --seed ${SEED:-0}"
case $PRESET in
  tiny|smoke) [ -f "$WORK/rows/tiny/config.json" ]   || python data/tiny.py $SEEDED ;;
  digits)     [ -f "$WORK/rows/digits/config.json" ] || python data/digits.py $SEEDED ;;
esac
python extract_features.py --preset "$PRESET" --work "$WORK"
[ -f "$RUN/projector/config.json" ]       || python train_projector.py $SEEDED                                          # A.1
case $PRESET in
  tiny|smoke|digits) [ -f "$RUN/projector-A.2/config.json" ] || python train_projector.py $SEEDED --mixture A.2 --out projector-A.2 ;;
esac
[ -f "$RUN/lora/config.json" ]            || python train_lora.py $SEEDED                                               # B, needs no A
[ -f "$RUN/merged/config.json" ]          || python merge_sft.py $SEEDED                                                # C = A.1 + B
python infer.py --preset "$PRESET" --work "$WORK"
python eval.py  --preset "$PRESET" --work "$WORK"
