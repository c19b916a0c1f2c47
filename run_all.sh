#!/usr/bin/env bash
# bash run_all.sh                 tiny: made on the spot, trained, decoded and scored; two CPU cores, no download
# bash run_all.sh tiny26          the same for the 2026 system: SpeechMapper, a tiny Qwen3, multiple choice
# bash run_all.sh digits          the same on real voices; FSDD=folder of recordings, HOLDOUT=speaker of the test set
# bash run_all.sh iwslt25         the 2025 system on one A100-80GB; also iwslt25-a2, iwslt25-short, iwslt25-a2-short
# bash run_all.sh iwslt26         the 2026 system, setup 1; also iwslt26-setup2
# bash run_all.sh tiny-listeners  multilingual listeners: Whisper, window Q-Former, a tiny Cohere LLM, four languages
# bash run_all.sh listeners       the same at real size; also listeners-ast, listeners-ten, listeners-ten-ast;
#                                 TTS=command speaks what Seamless does not, see python -m data.multispeechqa --help
# bash run_all.sh tiny ablations  after that: the variants of C in Tables 10 and 11 of the 2025 paper (or: iwslt25)
# bash run_all.sh tiny sweep      after that: Speech-IFEval, what each stage forgets and what weaker adapters give back;
#                                 any preset; JUDGE=a chat LLM where it is not a small world
# WORK=folder SEED=n bash run_all.sh ...     another root folder, another seed
# A stage that is finished says so and is not run again; one that was killed goes on where it was.
set -euo pipefail
cd "$(dirname "$0")"
PRESET=${1:-tiny}
case $PRESET in smoke*) WORK=${WORK:-work/$PRESET} ;; esac   # smaller worlds, for the tests, of their own
[ -t 2 ] || export TQDM_MININTERVAL=30                        # progress bars: into a file, a line every 30 s
ARGS=(--preset "$PRESET" --work "${WORK:-work}")
SEEDED=("${ARGS[@]}" --seed "${SEED:-0}")

# rows: a recipe's --help says what to download first
case $PRESET in
  *-listeners)    python -m data.tiny_listeners "${SEEDED[@]}" ;;
  tiny* | smoke*) python -m data.tiny "${SEEDED[@]}" ;;
  digits)         python -m data.digits "${SEEDED[@]}" ;;
  iwslt25*) for corpus in acl6060 covost2 europarlst spokensquad; do
              python -m "data.$corpus" --work "${WORK:-work}"
            done ;;
  iwslt26*) for corpus in covost2 europarlst librispeech librisqa gigast fakacl mcif; do
              python -m "data.$corpus" --work "${WORK:-work}"
            done ;;
  listeners*) python -m data.commonvoice --work "${WORK:-work}"
              python -m data.multispeechqa --work "${WORK:-work}" ${TTS:+--tts "$TTS"}
              python -m data.covost2 --work "${WORK:-work}" --into-english ;;
esac
python extract_features.py "${ARGS[@]}"                                              # 0
python train_projector.py "${SEEDED[@]}"                                             # A
case $PRESET in
  tiny | smoke | digits) python train_projector.py "${SEEDED[@]}" --mixture A.2 --out projector-A.2 ;;
esac
case $PRESET in
  *listeners*)    python merge_sft.py "${SEEDED[@]}" --preset "${PRESET%-ast}-align" ;;
  *)              python train_lora.py "${SEEDED[@]}" ;;                             # B, needs nothing of A
esac
python merge_sft.py "${SEEDED[@]}"                                                   # C = A + B
python infer.py "${ARGS[@]}"
python eval.py "${ARGS[@]}"

# each variant of C: name and what it changes; two of them have no meaning in the tiny world, which has one corpus
if [ "${2:-}" = ablations ]; then
  STEPS=2000 TEST=acl6060.dev SYNTHETIC="no-synthetic --shares no-synthetic
only-synthetic --shares only-synthetic"
  case $PRESET in tiny | smoke) STEPS=400 TEST=tiny.test SYNTHETIC="" ;; esac
  SYSTEMS=
  while read -r NAME CHANGE; do
    [ -n "$NAME" ] || continue
    # shellcheck disable=SC2086  # CHANGE is several words
    python merge_sft.py "${SEEDED[@]}" --out "merged-$NAME" $CHANGE </dev/null
    SYSTEMS+=${SYSTEMS:+,}C-$NAME:merged-$NAME
  done <<TABLE
random-lora-no-text --lora random --no-text
random-lora --lora random
no-sqa-no-text --mixture C-no-sqa --no-text
no-sqa --mixture C-no-sqa
no-text --no-text
$SYNTHETIC
2k --steps $STEPS
0.2-0.5-0.3 --mixture C-0.2-0.5-0.3
0.2-0.6-0.2 --mixture C-0.2-0.6-0.2
0.25-0.5-0.25 --mixture C-0.25-0.5-0.25
0.3-0.5-0.2 --mixture C-0.3-0.5-0.2
TABLE
  python infer.py "${ARGS[@]}" --systems "$SYSTEMS" --test_sets "$TEST"
  python eval.py "${ARGS[@]}"
fi

# Speech-IFEval of the text LLM and, in a small world, of A and B; of C with its adapters at six strengths
if [ "${2:-}" = sweep ]; then
  case $PRESET in
    tiny | smoke | digits) SYSTEMS=llm,A.1:projector,B:lora ;;
    tiny26)                SYSTEMS=llm,A:projector,B:lora ;;
    iwslt25 | iwslt26)     SYSTEMS=llm ;;
    *) echo "sweep: of tiny, tiny26, digits, iwslt25, iwslt26" >&2; exit 1 ;;
  esac
  case $PRESET in
    iwslt*) CORPUS=speech_ifeval TESTS= LONG=(--max_new_tokens 2048)
            JUDGE=${JUDGE:-Qwen/Qwen3-30B-A3B-Instruct-2507}
            FORGET=$CORPUS.closed,$CORPUS.plain,$CORPUS.creative,$CORPUS.cot
            python -m data.speech_ifeval --work "${WORK:-work}"
            python extract_features.py "${ARGS[@]}" --corpora speech_ifeval ;;
    *)      CORPUS=${PRESET/smoke/tiny} LONG=() JUDGE=contains
            TESTS=$CORPUS.test, FORGET=$CORPUS.closed,$CORPUS.plain ;;
  esac
  python infer.py "${ARGS[@]}" --systems "$SYSTEMS" --test_sets "$FORGET" ${LONG[@]+"${LONG[@]}"}
  python infer.py "${ARGS[@]}" --systems C:merged --lora_scale 0,0.125,0.25,0.5,0.75,1 --test_sets "$TESTS$FORGET" \
    ${LONG[@]+"${LONG[@]}"}
  MADE=${WORK:-work}/$PRESET/predictions SCORED=()
  for FILE in "$MADE"/[ABC]*/"$CORPUS.closed.jsonl"; do SCORED+=("${FILE%/*}"); done
  python -m metrics.speech_ifeval "${SCORED[@]}" --reference "$MADE/llm" --corpus "$CORPUS" --judge "$JUDGE"
  python eval.py "${ARGS[@]}"
fi
