#!/usr/bin/env bash
# bash run_all.sh                 tiny: made on the spot, trained, decoded and scored; two CPU cores, no download
# bash run_all.sh iwslt25         another system: a page of config/, such as iwslt26, or a page of yours
# bash run_all.sh tiny ablations  after it: the variants of stage C in Tables 10 and 11 of the 2025 paper
# bash run_all.sh tiny sweep      after it: Speech-IFEval of each stage, and of C with its LoRA adapters scaled down
# bash run_all.sh iwslt25 rehearse   before a real run: what is missing, and all of it in miniature; data/rehearse.py
# WORK=folder SEED=n NPROC=gpus bash run_all.sh ...     another root folder, another seed, several GPUs
# BF16=1 bash run_all.sh ...      a CPU that has bfloat16 instructions (lscpu: avx512_bf16, amx_bf16) is twice as fast
#
# The commands are those of the system's page; `python -m speech_llm.pipeline tiny --dry` prints them.
# A finished stage says so and is not run again; a stage that was killed goes on where it was.
set -euo pipefail
cd "$(dirname "$0")"
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}            # idle threads sleep: a busy machine stays fast
[ -t 2 ] || export TQDM_MININTERVAL=${TQDM_MININTERVAL:-30}   # into a file, a progress bar writes a line every 30 s
exec python -m speech_llm.pipeline "$@" --work "${WORK:-work}" --seed "${SEED:-0}"
