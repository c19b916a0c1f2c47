"""
Tiny foundation models in the hub's own format, trained on the spot: what stands in for SeamlessM4T-v2 and Llama-3.1.

    make_encoder    a SeamlessM4Tv2Model; its speech encoder learns CTC on the world's audio
    make_whisper    a Whisper that detects the language and transcribes; its encoder learns CTC as well
    make_llm        a Llama, Qwen3 or Cohere with a byte-level BPE tokenizer and its own turns; it learns from texts
    make_bert       a BERT that knows nothing: it has the shapes that a Q-Former starts from
    make_models     encoder and LLM of one world at once, one process each

All are written with save_pretrained, so that every stage loads them by the code that loads the real checkpoints.
Muon (torch.optim) moves the matrices, AdamW the rest. All our choice.
"""
import json
import math
import multiprocessing
import os
import random
import shutil
from functools import partial

import soundfile
import torch
import torch.nn.functional as F
import torchaudio
from tqdm import tqdm

from data.speech_ifeval import CONSTRAINTS, constrained
from speech_llm.normalize import mms_normalize
from speech_llm.prompts import encode_answer, encode_prompt, user_turn
from speech_llm.turns import CHAT, encode_text


CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"  # CTC labels 1.. ; 0 is the blank
CHATTER = {  # the tiny LLM answers and talks on, as chat models do: that the answer alone is wanted is B's to teach
    "en": ("{} is the answer.", "{} Please ask something else."),      # answerable, unanswerable
    "de": ("{} ist die Antwort.", "{} Bitte frag etwas anderes."),
    "it": ("{} è la risposta.", "{} Chiedi qualcosa di diverso."),
    "zh": ("{}是答案。", "{}请问别的问题。"),
}


def optimizers(parameters, lr_matrix, lr_rest):
    """Muon for the matrices, AdamW for everything else, both on a common schedule."""
    parameters = list(parameters)
    matrices = [p for p in parameters if p.ndim == 2 and min(p.shape) > 1]
    rest = [p for p in parameters if not (p.ndim == 2 and min(p.shape) > 1)]
    return [torch.optim.Muon(matrices, lr=lr_matrix, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=lr_rest, weight_decay=0.0)]


def step_all(optimizer_list, progress):
    """One step of each optimizer; 5 % linear warm-up, then a half cosine down to 5 % of the peak rate."""
    scale = min(1.0, progress / 0.05) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
    for optimizer in optimizer_list:
        for group in optimizer.param_groups:
            group.setdefault("peak", group["lr"])
            group["lr"] = group["peak"] * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def save_whole(folder, *parts):
    """save_pretrained of every part into `folder`, which appears only when it is complete."""
    temporary = folder + ".tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    for part in parts:
        part.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


# ---------------------------------------------------------------------------------------------------------------------
# the speech encoder
def seamless_config():
    """SeamlessM4T-v2 with the real layer types, 4 layers of 128; the parts that nothing here trains are minimal."""
    from transformers import SeamlessM4Tv2Config
    return SeamlessM4Tv2Config(
        hidden_size=128, speech_encoder_layers=4, speech_encoder_attention_heads=4,
        speech_encoder_intermediate_size=256, speech_encoder_layerdrop=0.0, speech_encoder_dropout=0.05,
        vocab_size=64, t2u_vocab_size=64, char_vocab_size=64, unit_hifi_gan_vocab_size=64,
        encoder_layers=1, encoder_ffn_dim=64, encoder_attention_heads=4,
        decoder_layers=1, decoder_ffn_dim=64, decoder_attention_heads=4,
        t2u_encoder_layers=1, t2u_encoder_ffn_dim=64, t2u_encoder_attention_heads=4,
        t2u_decoder_layers=1, t2u_decoder_ffn_dim=64, t2u_decoder_attention_heads=4,
        variance_predictor_embed_dim=32, variance_predictor_hidden_dim=32, unit_embed_dim=32, lang_embed_dim=8,
        spkr_embed_dim=8, upsample_initial_channel=32, max_position_embeddings=256)


def read_features(extractor, audio):
    """One mono file -> what the Seamless encoder reads, [T50, 160] at 50 Hz, an odd last half frame left out."""
    wave, rate = soundfile.read(audio, dtype="float32")
    wave = torchaudio.functional.resample(torch.from_numpy(wave), rate, 16000).numpy()
    out = extractor(wave, sampling_rate=16000, return_tensors="np", return_attention_mask=True)
    return torch.from_numpy(out["input_features"][0][:int(out["attention_mask"].sum())])


def spec_augment(x, lengths, generator):
    """Mask two bands of 10 of the 80 mel bins and two spans of up to 8 frames in each utterance; x (B, T, 160)."""
    x = x.clone()
    for i, length in enumerate(lengths):
        for _ in range(2):
            band = int(torch.randint(0, 70, (), generator=generator))
            x[i, :, band:band + 10] = 0
            x[i, :, 80 + band:90 + band] = 0  # the second frame of each stacked pair
            span = int(torch.randint(0, 9, (), generator=generator))
            start = int(torch.randint(0, max(1, length - span), (), generator=generator))
            x[i, start:start + span] = 0
    return x


def hidden_states(encoder, batch, augment=None):
    """Output (B, T, 128) of the second and of the last layer, and frame counts, of a list of feature arrays."""
    lengths = torch.tensor([len(x) for x in batch])
    x = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
    if augment is not None:
        x = spec_augment(x, lengths.tolist(), augment)
    mask = (torch.arange(x.shape[1])[None] < lengths[:, None]).long()
    middle = []
    hook = encoder.encoder.layers[1].register_forward_hook(lambda *call: middle.append(call[2]))
    last = encoder.encoder(encoder.feature_projection(x), attention_mask=mask)
    hook.remove()
    first = middle[0] if torch.is_tensor(middle[0]) else middle[0][0]
    return first, last, lengths


def average(hidden):
    """(B, T, W) -> (B, ceil(T / 3), W): what stage 0 will keep; only a batch's last group may hold padding."""
    return F.avg_pool1d(hidden.transpose(1, 2), 3, ceil_mode=True).transpose(1, 2)


def ctc(logits, lengths, targets):
    """CTC loss of a padded batch; targets: one label tensor an utterance."""
    return F.ctc_loss(F.log_softmax(logits, -1).transpose(0, 1), torch.cat(targets), lengths,
                      torch.tensor([len(t) for t in targets]), zero_infinity=True)


def batches_of_like_length(rng, lengths, batch):
    """Endless lists of indices: shuffled, sorted in groups of eight batches, cut, and the batches shuffled again."""
    while True:
        order, cut = rng.sample(range(len(lengths)), len(lengths)), []
        for i in range(0, len(order), 8 * batch):
            group = sorted(order[i:i + 8 * batch], key=lambda n: lengths[n])
            cut += [group[j:j + batch] for j in range(0, len(group), batch)]
        rng.shuffle(cut)
        yield from cut


def spell(text):
    """Character labels of a transcript, letters and apostrophes only."""
    return torch.tensor([CHARACTERS.index(c) + 1 for c in text.lower() if c in CHARACTERS])


def words_of(text):
    """Lower-case words without punctuation."""
    return "".join(c for c in text.lower() if c in CHARACTERS).split()


@torch.no_grad()
def ctc_word_errors(encoder, head, vocabulary, features, texts):
    """Greedy CTC word error rate in percent: how good the tiny encoder is, apart from any LLM."""
    import jiwer
    encoder.eval()
    heard = []
    for x in features:
        best = head(average(hidden_states(encoder, [x])[1]))[0].argmax(-1).unique_consecutive()
        heard.append(" ".join(vocabulary[i - 1] for i in best.tolist() if i))
    return 100 * jiwer.wer([" ".join(words_of(text)) for text in texts], heard)


def make_encoder(folder, train_rows, dev_rows, steps, seed, batch=32):
    """
    Train the tiny Seamless speech encoder on the rows' audio and save the whole model in `folder`: CTC over characters
    after layer 2, which finds the alignment, and CTC over words after layer 4, so that frames carry words as the real
    encoder's do, which was trained to translate.
    """
    from transformers import SeamlessM4TFeatureExtractor, SeamlessM4Tv2Model
    if os.path.exists(os.path.join(folder, "config.json")):
        print(f"{folder} exists already")
        return
    torch.manual_seed(seed)
    extractor = SeamlessM4TFeatureExtractor()
    clips = [list({row["utterance"]: (row["audio"], row["transcript"]) for row in rows}.values())
             for rows in (train_rows, dev_rows)]
    features, dev_features = ([read_features(extractor, audio) for audio, _ in tqdm(c, desc="filterbanks", unit=" utt")]
                              for c in clips)
    texts, dev_texts = ([text for _, text in c] for c in clips)
    vocabulary = sorted({word for text in texts for word in words_of(text)})
    spelled = [spell(text) for text in texts]
    worded = [torch.tensor([vocabulary.index(word) + 1 for word in words_of(text)]) for text in texts]

    model = SeamlessM4Tv2Model(seamless_config())
    encoder = model.speech_encoder
    character_head = torch.nn.Linear(128, len(CHARACTERS) + 1)
    word_head = torch.nn.Linear(128, len(vocabulary) + 1)
    parts = (encoder.feature_projection, encoder.encoder, character_head, word_head)
    trained = [p for part in parts for p in part.parameters()]
    optimizer_list = optimizers(trained, lr_matrix=2e-2, lr_rest=3e-3)
    rng, augment = random.Random(seed), torch.Generator().manual_seed(seed)
    draws = batches_of_like_length(rng, [len(x) for x in features], batch)
    bar = tqdm(zip(range(steps), draws), total=steps, desc="encoder, CTC", unit=" step")
    encoder.train()
    for step, picked in bar:
        first, last, lengths = hidden_states(encoder, [features[n] for n in picked], augment)
        characters = ctc(character_head(first), lengths, [spelled[n] for n in picked])
        words = ctc(word_head(average(last)), -(-lengths // 3), [worded[n] for n in picked])
        (characters + words).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        step_all(optimizer_list, (step + 1) / steps)
        if step % 20 == 0:
            bar.set_postfix(characters=f"{characters.item():.2f}", words=f"{words.item():.2f}")
    error = ctc_word_errors(encoder, word_head, vocabulary, dev_features, dev_texts)
    print(f"{folder}: greedy CTC word error rate on the dev utterances {error:.1f} %")
    save_whole(folder, model.eval(), extractor)


# ---------------------------------------------------------------------------------------------------------------------
# Whisper
WINDOW = 5  # seconds: Whisper's encoder reads a whole window, whatever was said


def split_words(text):
    """Lower-case words, and every Chinese character apart, without punctuation."""
    text = "".join(f" {c} " if "\u4e00" <= c <= "\u9fff" else c for c in text.lower() if c.isalpha() or c in " '")
    return text.split()


def make_whisper_tokenizer(texts, vocabulary):
    """Byte-level BPE with Whisper's own tokens in their own order, all languages, without the time stamps."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(bpe.to_str())["model"]
    tokenizer = WhisperTokenizer(model["vocab"], [tuple(pair) for pair in model["merges"]], pad_token="<|endoftext|>")
    names = ["startoftranscript", *LANGUAGES, "translate", "transcribe", "startoflm", "startofprev", "nospeech",
             "notimestamps"]
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in names]})
    return tokenizer


def read_mel(extractor, audio):
    """One mono file at 16 kHz -> Whisper's log mel without the padding, (80, T100), T100 even."""
    wave, rate = soundfile.read(audio, dtype="float32")
    if rate != 16000 or len(wave) > WINDOW * rate:
        raise ValueError(f"{audio}: {len(wave) / rate:.1f} s at {rate} Hz; the tiny Whisper takes {WINDOW} s at 16 kHz")
    mel = extractor(wave, sampling_rate=rate, return_tensors="pt").input_features[0]
    return mel[:, :2 * math.ceil(len(wave) / 320)].clone()


def whisper_frames(encoder, mel):
    """Output (B, T, W) of the second and of the last layer at 50 Hz; mel (B, 80, 2T), and T may be below the window."""
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)
    x, middle = x + encoder.embed_positions.weight[:x.shape[1]], []
    for layer in encoder.layers:
        x = layer(x, None)
        middle.append(x)
    return middle[1], encoder.layer_norm(x)


def make_whisper(folder, train_rows, dev_rows, steps, seed, batch=16):
    """
    Train a tiny Whisper on the ASR rows and save it in `folder`: its encoder as in make_encoder, its decoder to name
    the language and to write the transcript. Most batches see no more silence than they must: the last twentieth of
    the steps, and some before, the whole window.
    """
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
    if os.path.exists(os.path.join(folder, "config.json")):
        print(f"{folder} exists already")
        return
    torch.manual_seed(seed)
    rows, dev_rows = ([row for row in some if row["task"] == "ASR"] for some in (train_rows, dev_rows))
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW)
    mels = [read_mel(extractor, row["audio"]) for row in tqdm(rows, desc="log mel", unit=" utt")]
    words = [split_words(row["transcript"]) for row in rows]
    vocabulary = sorted({word for said in words for word in said})
    letters = sorted({letter for word in vocabulary for letter in word})
    spelled = [torch.tensor([1 + letters.index(letter) for word in said for letter in word]) for said in words]
    worded = [torch.tensor([1 + vocabulary.index(word) for word in said]) for said in words]

    tokenizer = make_whisper_tokenizer([row["transcript"] for row in rows], 800)
    number = tokenizer.convert_tokens_to_ids
    start, end = number(["<|startoftranscript|>", "<|endoftext|>"])
    ask = number(["<|transcribe|>", "<|notimestamps|>"])
    written = [torch.tensor([start, number(f"<|{row['language']}|>"), *ask, *encode_text(tokenizer, row["transcript"]), end])
               for row in rows]
    model = WhisperForConditionalGeneration(WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=80, d_model=128, encoder_layers=4, encoder_attention_heads=4,
        encoder_ffn_dim=256, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=256,
        max_source_positions=50 * WINDOW, max_target_positions=64, pad_token_id=end, bos_token_id=end,
        eos_token_id=end, decoder_start_token_id=start))
    encoder, decoder = model.model.encoder, model.model.decoder
    character_head = torch.nn.Linear(128, len(letters) + 1)
    word_head = torch.nn.Linear(128, len(vocabulary) + 1)
    tables = [decoder.embed_tokens.weight, decoder.embed_positions.weight]
    trained = [p for part in (model, character_head, word_head) for p in part.parameters()
               if p.requires_grad and all(p is not table for table in tables)]
    optimizer_list = optimizers(trained, lr_matrix=1e-2, lr_rest=2e-3) + [torch.optim.AdamW(tables, lr=3e-3)]

    rng, augment = random.Random(seed), torch.Generator().manual_seed(seed)
    draws = batches_of_like_length(rng, [mel.shape[1] for mel in mels], batch)
    bar = tqdm(zip(range(steps), draws), total=steps, desc="Whisper", unit=" step")
    model.train()
    for step, picked in bar:
        lengths = torch.tensor([mels[n].shape[1] // 2 for n in picked])
        whole = step >= 0.95 * steps or rng.random() < 0.05
        frames = 50 * WINDOW if whole else min(50 * WINDOW, int(lengths.max()) + rng.randrange(25))
        mel = pad_mel([mels[n] for n in picked], frames)
        first, last = whisper_frames(encoder, mask_mel(mel, lengths.tolist(), augment))
        characters = ctc(character_head(first), lengths, [spelled[n] for n in picked])
        groups = ctc(word_head(average(last)), -(-lengths // 3), [worded[n] for n in picked])
        tokens = torch.nn.utils.rnn.pad_sequence([written[n] for n in picked], batch_first=True, padding_value=-100)
        hidden = decoder(input_ids=tokens[:, :-1].clamp(min=0), encoder_hidden_states=last).last_hidden_state
        wanted = tokens[:, 1:]
        text = F.cross_entropy(model.proj_out(hidden[wanted >= 0]), wanted[wanted >= 0])
        (characters + groups + text).backward()
        torch.nn.utils.clip_grad_norm_(trained + tables, 1.0)
        step_all(optimizer_list, (step + 1) / steps)
        if step % 20 == 0:
            bar.set_postfix(characters=f"{characters.item():.2f}", words=f"{groups.item():.2f}",
                            text=f"{text.item():.2f}")
    languages = {f"<|{la}|>": number(f"<|{la}|>") for la in sorted({row["language"] for row in rows})}
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start, bos_token_id=end, eos_token_id=end, pad_token_id=end, max_length=64,
        is_multilingual=True, lang_to_id=languages, task_to_id={"transcribe": ask[0], "translate": ask[0] - 1},
        no_timestamps_token_id=ask[1], return_timestamps=False)
    save_whole(folder, model.eval(), extractor, tokenizer)
    error = whisper_word_errors(model, extractor, tokenizer, dev_rows)
    print(f"{folder}: word error rate on the dev utterances {error:.1f} %")


def pad_mel(mels, frames):
    """List of (80, T100) -> (B, 80, 2 * frames), silence as the extractor pads: the floor, 8 below the loudest bin."""
    return torch.stack([F.pad(mel, (0, 2 * frames - mel.shape[1]), value=mel.max().item() - 2) for mel in mels])


def mask_mel(mel, lengths, generator):
    """Two bands of 10 bins of each clip in (B, 80, 2T) set to its mean; no spans in time: they hide words."""
    mel = mel.clone()
    for x, length in zip(mel, lengths):
        mean = x[:, :2 * length].mean()
        for _ in range(2):
            band = int(torch.randint(0, 70, (), generator=generator))
            x[band:band + 10] = mean
    return mel


@torch.no_grad()
def whisper_word_errors(model, extractor, tokenizer, rows):
    """Word error rate in percent of what it generates, the language detected by itself; Chinese in characters."""
    import jiwer
    heard = []
    for row in rows:
        mel = pad_mel([read_mel(extractor, row["audio"])], 50 * WINDOW)
        tokens = model.generate(mel, task="transcribe", max_new_tokens=48)
        heard.append(" ".join(split_words(tokenizer.decode(tokens[0], skip_special_tokens=True))))
    return 100 * jiwer.wer([" ".join(split_words(row["transcript"])) for row in rows], heard)


# ---------------------------------------------------------------------------------------------------------------------
# the LLM
def hesitate(rng, text):
    """A text with up to four "uh" before every word: as long as speech is, in frames."""
    return " ".join(word for said in text.split() for word in ["uh"] * rng.randint(0, 4) + [said])


OBEY = 0.1          # of the English transcripts and answers, asked for in a form that A, B and C never ask for


def instruction(draw_rows, rng):
    """One training example from a fresh sentence's rows: copy, translate, choose, or answer and talk on."""
    rows = draw_rows(rng)
    kinds = {("ASR", True): 0.18, ("ST", True): 0.36, ("SQA", True): 0.38, ("SQA", False): 0.08}
    if any(row["task"] == "MCQ" for row in rows):
        kinds |= {("SQA", True): 0.26, ("MCQ", True): 0.12}
    task, answerable = rng.choices(list(kinds), kinds.values())[0]
    row = dict(rng.choice([r for r in rows if r["task"] == task and r["answerable"] is answerable]))
    if task == "SQA":
        row["target"] = CHATTER[row["language"]][not answerable].format(row["target"])
    if row["language"] == "en" and answerable and task in ("ASR", "SQA") and rng.random() < OBEY:
        row = constrained(row, rng.choice(CONSTRAINTS))
    return row


FAMILIES = {  # special tokens: begin of text or None, pad, ends of turn, the chat format's own last; the rest
    "llama": ("<|begin_of_text|>", "<|finetune_right_pad_id|>", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
              ("<|start_header_id|>", "<|end_header_id|>")),
    "qwen3": (None, "<|endoftext|>", ("<|endoftext|>", "<|im_end|>"), ("<|im_start|>", "<|file_sep|>")),
    "cohere": ("<BOS_TOKEN>", "<PAD_TOKEN>", ("<|END_OF_TURN_TOKEN|>",),
               ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")),
}
PROMPTS = {"llama": ["2025"], "qwen3": ["2026", "2026-zero-shot"], "cohere": ["listeners"]}   # what each is trained on


def make_tokenizer(texts, vocabulary, family="llama"):
    """Byte-level BPE with the family's turn markers and chat format."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    begin, pad, ends, others = FAMILIES[family]
    bpe = Tokenizer(models.BPE())
    # words with their leading space, digits apart, punctuation with its newlines, other white space
    words = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=sorted({begin, pad, *ends, *others} - {None}), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=begin, eos_token=ends[-1], pad_token=pad)
    head, between, end = CHAT[family]
    head, tail = head.removeprefix(begin or ""), between.removeprefix(end)
    tokenizer.chat_template = (
        "{{ bos_token or '' }}{% for m in messages %}{{ TAIL if m['role'] == 'assistant' else HEAD }}"
        "{{ m['content'] | trim }}{{ END }}{% endfor %}{% if add_generation_prompt %}{{ TAIL }}{% endif %}")
    for name, text in (("HEAD", head), ("END", end), ("TAIL", tail)):
        tokenizer.chat_template = tokenizer.chat_template.replace(name, json.dumps(text))
    return tokenizer


def stretch(rng, tokens, spare):
    """Token ids with up to two spare ones before each: as many positions as a Q-Former makes of slow speech."""
    return [token for known in tokens for token in [spare] * rng.randint(0, 2) + [known]]


def make_llm(folder, draw_row, steps, seed, hesitate_from=0, family="llama", batch=40, vocabulary=2000):
    """
    Train a tiny LLM on drawn rows, draw_row(rng), loss on the answers, and save it with its tokenizer. From step
    `hesitate_from` on half of the transcripts are unlike written text. Llama: they hesitate, since three layers that
    only saw compact text do not read speech. Qwen3: they are what a SpeechMapper would say at its best, lower case
    without punctuation and some pads. Cohere: they stand where speech will, with pads between their tokens.
    """
    from transformers import AutoModelForCausalLM, CohereConfig, GenerationConfig, LlamaConfig, Qwen3Config
    if os.path.exists(os.path.join(folder, "config.json")):
        print(f"{folder} exists already")
        return
    torch.manual_seed(seed)
    rng = random.Random(seed)
    sample, prompts = [draw_row(rng) for _ in range(3000)], PROMPTS[family]
    texts = [user_turn(row, True, prompts[-1])[0] + "\n" + row["target"] for row in sample]
    if family == "qwen3":
        texts += [mms_normalize(row["transcript"], "en", remove_numbers=False) for row in sample]
    tokenizer = make_tokenizer(texts, vocabulary, family)
    ends = tokenizer.convert_tokens_to_ids(list(FAMILIES[family][2]))
    spare = tokenizer.convert_tokens_to_ids("<|file_sep|>")
    config = {"llama": LlamaConfig, "qwen3": Qwen3Config, "cohere": CohereConfig}[family]
    own = {"logit_scale": 0.125} if family == "cohere" else {"head_dim": 32, "rope_theta": 500000.0}
    model = AutoModelForCausalLM.from_config(config(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=3, max_position_embeddings=1024, tie_word_embeddings=True, **own,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id))
    embedding = model.model.embed_tokens.weight
    matrices, rate, rate_embedding = [p for p in model.parameters() if p is not embedding], 5e-3, 3e-3
    if family == "cohere":  # its logits are scaled down: they need large embeddings, which large steps move
        rate, rate_embedding = 1e-2, 2e-2
        with torch.no_grad():
            embedding *= 10
    optimizer_list = (optimizers(matrices, lr_matrix=rate, lr_rest=3e-3)
                      + [torch.optim.AdamW([embedding], lr=rate_embedding)])
    bar = tqdm(range(steps), desc="LLM, text", unit=" step")
    for step in bar:
        rows = [draw_row(rng) for _ in range(batch)]
        questions = []
        for row in rows:
            unlike, prompt = step >= hesitate_from and rng.random() < 0.5, rng.choice(prompts)
            if unlike and family == "llama":
                row["transcript"] = hesitate(rng, row["transcript"])
            if unlike and family == "cohere":
                before, after = encode_prompt(tokenizer, row, False, prompt)
                said = stretch(rng, encode_text(tokenizer, row["transcript"]), tokenizer.pad_token_id)
                questions.append(before + said + after)
            elif unlike and family == "qwen3":
                before, after = encode_prompt(tokenizer, row, False, prompt)
                said = encode_text(tokenizer, mms_normalize(row["transcript"], "en", remove_numbers=False))
                questions.append(before + said + [spare] * rng.randint(0, 8) + after)
            else:
                questions.append(encode_prompt(tokenizer, row, True, prompt)[0])
        answers = [encode_answer(tokenizer, row) for row in rows]
        width = max(len(p) + len(a) for p, a in zip(questions, answers))
        tokens = torch.zeros(batch, width, dtype=torch.long)
        labels = torch.full((batch, width), -100)
        for i, (p, a) in enumerate(zip(questions, answers)):
            tokens[i, :len(p) + len(a)] = torch.tensor(p + a)
            labels[i, len(p):len(p) + len(a)] = torch.tensor(a)
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        logits = model.lm_head(hidden[wanted != -100]) * own.get("logit_scale", 1.0)
        loss = F.cross_entropy(logits, wanted[wanted != -100])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        step_all(optimizer_list, (step + 1) / steps)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    # sampling by default, as the real checkpoint has it: greedy decoding must be asked for
    model.generation_config = GenerationConfig(do_sample=True, eos_token_id=ends)
    save_whole(folder, model.eval(), tokenizer)
    print(f"{folder}: last loss {loss.item():.3f}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")


def make_bert(folder, seed):
    """A random BERT of the Q-Former's width: loading it shows which tensors fit, and teaches nothing."""
    from transformers import BertConfig, BertModel
    torch.manual_seed(seed)
    save_whole(folder, BertModel(BertConfig(vocab_size=100, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
                                            intermediate_size=256, max_position_embeddings=64)))


def in_parallel(*jobs):
    """Call each job in a process of its own, of one thread: small matrices gain little from two."""
    with multiprocessing.get_context("spawn").Pool(len(jobs), torch.set_num_threads, (1,)) as pool:
        for result in [pool.apply_async(job) for job in jobs]:
            result.get()


def make_models(prefix, splits, draw_rows, sizes, seed, family="llama"):
    """<prefix>-seamless and <prefix>-<family>, both at once."""
    in_parallel(partial(make_encoder, f"{prefix}-seamless", splits["train"], splits["dev"], sizes["encoder_steps"],
                        seed),
                partial(make_llm, f"{prefix}-{family}", partial(instruction, draw_rows), sizes["llm_steps"], seed,
                        sizes["hesitate_from"], family))
