"""
Speak texts with SeamlessM4T-v2, every utterance in one of its 200 voices (2025, section A.1).

    python -m data.speak --rows in.jsonl --out out.jsonl --folder work/audio
    torchrun --nproc_per_node=4 -m data.speak ...                     # the same on four GPUs
    speak({"x/train/7": "Who works there?"}, "work/audio")            # -> {"x/train/7": "work/audio/x/train/7.flac"}

reads   rows without audio; the model, from the hub or from a folder
writes  <folder>/<name>.flac: 16 kHz, mono. <folder>/spoken.jsonl: speaker and words of each, appended as they are
        spoken, from which a killed run continues. <out>: the rows with utterance and audio. <out>.dropped.txt: the
        rows that could not be spoken

The model first rewrites the text in its own language and speaks the rewritten text, so that words may change. The
number of texts whose words changed is printed.
"""
import functools
import os
import random
import re

import numpy as np

from data.translate import CODES, SEAMLESS, load_seamless, maker_parser, write_made
from speech_llm.audio import write_flac
from speech_llm.constants import pick_device
from speech_llm.llm import load_checkpoint, loading
from speech_llm.resumable import resumable, silence_others
from speech_llm.rows import name_defect, read_rows


MMS = {"el": "facebook/mms-tts-ell", "he": "facebook/mms-tts-heb"}     # SeamlessM4T-v2 does not speak these two
MAX_TOKENS = 256            # of the text that is spoken: the checkpoint's own limit, well over 30 s of speech
SILENCE = 1e-3              # of full scale: a wave that never exceeds it counts as silent (our choice)


def rewrite_batch(model, tokenizer, texts, language="en"):
    """Return the token ids of the text that the model will speak for each text; greedy, as is the model's default."""
    import torch
    from transformers import GenerationMixin
    inputs = tokenizer(texts, src_lang=CODES[language], split_special_tokens=True, padding=True, return_tensors="pt")
    begin = torch.full((len(texts), 1), model.generation_config.text_decoder_lang_to_code_id[CODES[language]])
    # the generate method of the model's own class would go on to speech
    rows = GenerationMixin.generate(model, **inputs.to(model.device), decoder_input_ids=begin.to(model.device),
                                    do_sample=False, num_beams=1, max_new_tokens=MAX_TOKENS)
    control = set(tokenizer.all_special_ids)             # a row is </s>, language, text, </s>, padding
    return [[token for token in row if token not in control] for row in rows.tolist()]


def text_to_wave(model, tokenizer, text, words, speaker, language="en"):
    """
    Return a float32 wave at 16 kHz of one text that rewrite_batch turned into the ids `words`. Texts are spoken one by
    one: in a batch the shorter texts keep their end token on the way to speech units, and the padding is heard in the
    vocoder's last frames.
    """
    import torch
    from transformers.generation import GenerateEncoderDecoderOutput
    control = model.generation_config
    begin = [control.decoder_start_token_id, control.text_decoder_lang_to_code_id[CODES[language]]]
    decided = torch.tensor([[*begin, *words, control.eos_token_id]], device=model.device)

    def given(_, input_ids, encoder_outputs, **others):                  # in place of the search for the text
        return GenerateEncoderDecoderOutput(sequences=decided, encoder_hidden_states=encoder_outputs.hidden_states)

    inputs = tokenizer(text, src_lang=CODES[language], split_special_tokens=True, return_tensors="pt").to(model.device)
    wave, length = model.generate(**inputs, tgt_lang=CODES[language], speaker_id=speaker, text_custom_generate=given)
    return wave[0, :int(length)].float().cpu().numpy()


def draw_speaker(seed, name, count, voices=(0.0, 1.0)):
    """Return the speaker of one utterance, drawn at random from a share of 0 to count - 1 (2025, section A.1)."""
    return random.Random(f"{seed} {name}").randrange(*(round(share * count) for share in voices))


def write_wave(path, wave):
    """Write the wave as FLAC and return True; return False if it is empty, silent or not finite."""
    if not len(wave) or not np.isfinite(wave).all() or np.abs(wave).max() < SILENCE:
        return False
    write_flac(path, wave)
    return True


def bare(text):
    """Return a text's words without case and punctuation."""
    return re.findall(r"\w+", text.casefold())


def speak(texts, folder, model=SEAMLESS, seed=0, batch=16, language="en", voices=(0.0, 1.0)):
    """
    Return {name: path of its FLAC file, or None if it could not be spoken} of {name: text}. The speakers depend on
    seed and name alone. A killed run continues with the texts that are not in <folder>/spoken.jsonl.
    voices: the share of the model's speakers that is drawn from. SystemExit for a name that would leave the folder.
    """
    def path_of(name):
        return os.path.join(folder, f"{name}.flac")

    @functools.cache
    def loaded():
        from transformers import SeamlessM4Tv2ForTextToSpeech
        return load_seamless(SeamlessM4Tv2ForTextToSpeech, model)

    def speak_batch(items):
        net, tokenizer = loaded()
        results = []
        for (name, text), words in zip(items, rewrite_batch(net, tokenizer, [text for _, text in items], language)):
            speaker = draw_speaker(seed, name, net.config.vocoder_num_spkrs, voices)
            spoken = bool(words) and write_wave(path_of(name),
                                                text_to_wave(net, tokenizer, text, words, speaker, language))
            results.append({"speaker": speaker, "text": tokenizer.decode(words).strip(), "spoken": spoken})
        return results

    for name in texts:
        if name_defect(name) or os.path.normpath(name) != name:
            raise SystemExit(f"{name!r} is no name of a file below {folder}")
    log = os.path.join(folder, "spoken.jsonl")
    settings = {"model": model, "seed": seed, "language": language, "voices": list(voices)}
    results = resumable(log, settings, [list(item) for item in texts.items()], speak_batch, batch, "speak",
                        size=lambda item: len(item[1]))
    spoken = {name: result for name, result in zip(texts, results) if result["spoken"]}
    lost = [name for name in spoken if not os.path.exists(path_of(name))]
    if lost:
        raise SystemExit(f"{path_of(lost[0])} and {len(lost) - 1} more are gone; remove {log} and run the same again")
    changed = sum(bare(result["text"]) != bare(texts[name]) for name, result in spoken.items())
    print(f"{len(spoken)} of {len(texts)} texts spoken, in {folder}; {changed} of them in other words, see {log}")
    return {name: path_of(name) if name in spoken else None for name in texts}


# --- MMS-TTS: transformers' VITS, one voice a language.

def load_mms(path):
    """Return (model, tokenizer) of an MMS-TTS checkpoint. SystemExit if it needs romanised text or has another rate."""
    import torch
    from transformers import AutoTokenizer, VitsModel
    model = load_checkpoint(VitsModel, path, dtype=torch.float32).to(pick_device())
    with loading(path):
        tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.is_uroman or model.config.sampling_rate != 16_000:
        raise SystemExit(f"{path} reads Latin letters only or does not speak at 16 kHz; name another model in MMS")
    return model, tokenizer


def say_mms(model, tokenizer, text, seed):
    """Return the speech of one text, a float32 wave at 16 kHz; empty if the model knows none of its letters."""
    import torch
    inputs = tokenizer(text, return_tensors="pt").to(model.device)
    if inputs["input_ids"].shape[1] < 2:                 # the tokenizer puts a blank around every letter
        return np.zeros(0, np.float32)
    torch.manual_seed(seed)                              # VITS draws durations and noise
    with torch.no_grad():
        return model(**inputs).waveform[0].float().cpu().numpy()


def speak_mms(texts, folder, language, seed=0, batch=16):
    """
    Speak {name: text} with the MMS model of a language. Return {name: path of its FLAC, or None without any sound}.
    The random numbers depend on seed and name alone; a killed run continues from <folder>/spoken.jsonl.
    """
    loaded = functools.cache(lambda: load_mms(MMS[language]))

    def make(items):
        seeds = [random.Random(f"{seed} {name}").getrandbits(63) for name, _ in items]
        return [write_wave(os.path.join(folder, f"{name}.flac"), say_mms(*loaded(), text, number))
                for (name, text), number in zip(items, seeds)]

    results = resumable(os.path.join(folder, "spoken.jsonl"), {"model": MMS[language], "seed": seed},
                        [list(item) for item in texts.items()], make, batch, "speak", size=lambda item: len(item[1]))
    return {name: os.path.join(folder, f"{name}.flac") if spoken else None for name, spoken in zip(texts, results)}


# --- Rows.

def speak_rows(rows, folder, model=SEAMLESS, seed=0):
    """
    Return (the rows that have audio, [(id, reason)] of those that could not be spoken). A row's utterance is its id
    without the last part. SystemExit if two rows of an utterance have different transcripts.
    """
    texts = {}
    for row in rows:
        if "utterance" not in row:
            name = os.path.dirname(row["id"])
            if texts.setdefault(name, row["transcript"]) != row["transcript"]:
                raise SystemExit(f"row {row['id']}: another row of utterance {name!r} has another transcript")
    paths = speak(texts, folder, model, seed)
    spoken, dropped = [], []
    for row in rows:
        name = os.path.dirname(row["id"])
        if "utterance" in row:
            spoken.append(row)
        elif paths[name]:
            spoken.append({**row, "utterance": name, "audio": paths[name]})
        else:
            dropped.append((row["id"], "could not be spoken"))
    return spoken, dropped


def main(argv=None):
    parser = maker_parser(__doc__, "rows, of which those without audio are spoken")
    parser.add_argument("--folder", required=True, help="root folder of the audio")
    parser.add_argument("--seamless", default=SEAMLESS, help="hub name, or folder of the model")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of the speakers")
    args = parser.parse_args(argv)
    silence_others()
    write_made(args.out, *speak_rows(read_rows(args.rows), args.folder, args.seamless, args.seed))


if __name__ == "__main__":
    main()
