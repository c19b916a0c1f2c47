"""
Make tiny speech models in the hub's own format, which stand in for the real checkpoints; tiny_llm.py makes the LLM.

    make_encoder    a SeamlessM4Tv2Model; its speech encoder learns CTC on the world's audio
    make_whisper    a Whisper that detects the language and transcribes; its encoder learns CTC as well
    make_bert       an untrained BERT with the shapes that a Q-Former starts from

All models are written with save_pretrained, so every stage loads them by the code that loads the real checkpoints.
Muon (torch.optim) trains the matrices, AdamW the other parameters. All of it is our choice.
"""
import json
import math
import os
import random
import shutil

import soundfile
import torch
import torch.nn.functional as F
import torchaudio
from tqdm import tqdm

from speech_llm.turns import encode_text


# ---------------------------------------------------------------------------------------------------------------------
# training and saving
def optimizers(parameters, lr_matrix, lr_rest):
    """Return [Muon for the matrices, AdamW for the other parameters]."""
    matrices, rest = [], []
    for p in parameters:
        (matrices if p.ndim == 2 and min(p.shape) > 1 else rest).append(p)
    return [torch.optim.Muon(matrices, lr=lr_matrix, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=lr_rest, weight_decay=0.0)]


def train(parameters, optimizer_list, steps, losses_of, description):
    """
    Run `steps` optimizer steps on the sum of the losses; losses_of(step) returns {name: loss}.
    Rates rise over the first 5 % of the steps, then fall along half a cosine to 5 % of their peak.
    """
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizer_list]
    bar = tqdm(range(steps), desc=description, unit=" step")
    for step in bar:
        losses = losses_of(step)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        progress = (step + 1) / steps
        scale = min(1.0, progress / 0.05) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        for optimizer, peak in zip(optimizer_list, peaks):
            optimizer.param_groups[0]["lr"] = peak * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            bar.set_postfix({name: f"{loss.item():.2f}" for name, loss in losses.items()})


def is_saved(folder):
    """Return whether a folder holds a finished model, and say so."""
    saved = os.path.exists(os.path.join(folder, "config.json"))
    if saved:
        print(f"{folder} exists already")
    return saved


def save(folder, *parts):
    """Write the parts of a model (model, tokenizer, feature extractor); `folder` appears when it is complete."""
    temporary = folder + ".tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    for part in parts:
        part.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


# ---------------------------------------------------------------------------------------------------------------------
# CTC: label 0 is the blank, the symbols have the labels from 1 on
def ctc_labels(symbols, texts):
    """Return one tensor of labels for each text, a sequence of items of the list `symbols`."""
    label = {symbol: number for number, symbol in enumerate(symbols, 1)}
    return [torch.tensor([label[symbol] for symbol in text]) for text in texts]


def ctc(logits, lengths, labels):
    """Return the CTC loss of padded logits (B, T, symbols + 1); lengths (B,), labels: one tensor an utterance."""
    return F.ctc_loss(F.log_softmax(logits, -1).transpose(0, 1), torch.cat(labels), lengths,
                      torch.tensor([len(label) for label in labels]), zero_infinity=True)


def average(hidden):
    """Return the means (B, ceil(T / 3), W) of three frames of (B, T, W); a batch's last mean may be of fewer frames."""
    return F.avg_pool1d(hidden.transpose(1, 2), 3, ceil_mode=True).transpose(1, 2)


def batches_of_like_length(rng, lengths, batch):
    """Yield lists of indices without end: shuffled, sorted by length in groups of eight batches, cut into batches."""
    while True:
        order, batches = rng.sample(range(len(lengths)), len(lengths)), []
        for i in range(0, len(order), 8 * batch):
            group = sorted(order[i:i + 8 * batch], key=lambda n: lengths[n])
            batches += [group[j:j + batch] for j in range(0, len(group), batch)]
        rng.shuffle(batches)
        yield from batches


# ---------------------------------------------------------------------------------------------------------------------
# the Seamless speech encoder
CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"


def seamless_config():
    """Return a SeamlessM4Tv2Config with the real layer types: 4 layers of width 128; the unused parts are minimal."""
    from transformers import SeamlessM4Tv2Config
    return SeamlessM4Tv2Config(
        hidden_size=128, speech_encoder_layers=4, speech_encoder_attention_heads=4,
        speech_encoder_intermediate_size=256, speech_encoder_layerdrop=0.0, speech_encoder_dropout=0.0,
        vocab_size=64, t2u_vocab_size=64, char_vocab_size=64, unit_hifi_gan_vocab_size=64,
        encoder_layers=1, encoder_ffn_dim=64, encoder_attention_heads=4,
        decoder_layers=1, decoder_ffn_dim=64, decoder_attention_heads=4,
        t2u_encoder_layers=1, t2u_encoder_ffn_dim=64, t2u_encoder_attention_heads=4,
        t2u_decoder_layers=1, t2u_decoder_ffn_dim=64, t2u_decoder_attention_heads=4,
        variance_predictor_embed_dim=32, variance_predictor_hidden_dim=32, unit_embed_dim=32, lang_embed_dim=8,
        spkr_embed_dim=8, upsample_initial_channel=32, max_position_embeddings=256)


def read_features(extractor, audio):
    """Return the encoder's input (T, 160) at 50 Hz of one mono file; an odd last frame of 10 ms is left out."""
    wave, rate = soundfile.read(audio, dtype="float32")
    wave = torchaudio.functional.resample(torch.from_numpy(wave), rate, 16000).numpy()
    out = extractor(wave, sampling_rate=16000, return_tensors="np", return_attention_mask=True)
    return torch.from_numpy(out["input_features"][0][:int(out["attention_mask"].sum())])


def spec_augment(x, lengths, generator):
    """Return (B, T, 160) with two bands of 10 of the 80 mel bins and two spans of up to 8 frames set to 0."""
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


def hidden_states(encoder, features, generator=None):
    """Return the outputs (B, T, 128) of the second and the last layer and the lengths (B,); a generator augments."""
    lengths = torch.tensor([len(x) for x in features])
    x = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    if generator is not None:
        x = spec_augment(x, lengths.tolist(), generator)
    mask = (torch.arange(x.shape[1])[None] < lengths[:, None]).long()
    second = []
    hook = encoder.encoder.layers[1].register_forward_hook(lambda *call: second.append(call[2]))
    last = encoder.encoder(encoder.feature_projection(x), attention_mask=mask)
    hook.remove()
    return second[0] if torch.is_tensor(second[0]) else second[0][0], last, lengths


def letters_of(text):
    """Return a text in lower case with letters, spaces and apostrophes alone."""
    return "".join(character for character in text.lower() if character in CHARACTERS)


@torch.no_grad()
def ctc_word_errors(encoder, head, vocabulary, features, texts):
    """Return the word error rate in percent of greedy CTC: how good the tiny encoder is without any LLM."""
    import jiwer
    encoder.eval()
    hypotheses = []
    for x in features:
        labels = head(average(hidden_states(encoder, [x])[1]))[0].argmax(-1).unique_consecutive()
        hypotheses.append(" ".join(vocabulary[label - 1] for label in labels.tolist() if label))
    return 100 * jiwer.wer([" ".join(letters_of(text).split()) for text in texts], hypotheses)


def make_encoder(folder, train_rows, dev_rows, steps, seed, batch=32):
    """
    Train the tiny Seamless speech encoder on the rows' audio and save the whole model in `folder`.
    CTC over characters after layer 2 learns the alignment. CTC over words after layer 4, on means of three frames,
    makes the frames carry words, as the frames of the real encoder do, which was trained to translate.
    """
    from transformers import SeamlessM4TFeatureExtractor, SeamlessM4Tv2Model
    if is_saved(folder):
        return
    torch.manual_seed(seed)
    extractor = SeamlessM4TFeatureExtractor()
    clips = [list({row["utterance"]: (row["audio"], row["transcript"]) for row in rows}.values())
             for rows in (train_rows, dev_rows)]
    features, dev_features = ([read_features(extractor, audio) for audio, _ in tqdm(c, desc="filterbanks", unit=" utt")]
                              for c in clips)
    texts, dev_texts = ([text for _, text in c] for c in clips)
    vocabulary = sorted({word for text in texts for word in letters_of(text).split()})
    characters = ctc_labels(CHARACTERS, [letters_of(text) for text in texts])
    words = ctc_labels(vocabulary, [letters_of(text).split() for text in texts])

    model = SeamlessM4Tv2Model(seamless_config())
    encoder = model.speech_encoder
    character_head = torch.nn.Linear(128, len(CHARACTERS) + 1)
    word_head = torch.nn.Linear(128, len(vocabulary) + 1)
    parameters = [p for part in (encoder.feature_projection, encoder.encoder, character_head, word_head)
                  for p in part.parameters()]
    generator = torch.Generator().manual_seed(seed)
    batches = batches_of_like_length(random.Random(seed), [len(x) for x in features], batch)

    def losses_of(step):
        picked = next(batches)
        second, last, lengths = hidden_states(encoder, [features[n] for n in picked], generator)
        return {"characters": ctc(character_head(second), lengths, [characters[n] for n in picked]),
                "words": ctc(word_head(average(last)), -(-lengths // 3), [words[n] for n in picked])}
    encoder.train()
    train(parameters, optimizers(parameters, lr_matrix=2e-2, lr_rest=3e-3), steps, losses_of, "encoder, CTC")
    error = ctc_word_errors(encoder, word_head, vocabulary, dev_features, dev_texts)
    print(f"{folder}: greedy CTC word error rate on the dev utterances {error:.1f} %")
    save(folder, model.eval(), extractor)


# ---------------------------------------------------------------------------------------------------------------------
# Whisper
WINDOW = 5  # seconds: Whisper's encoder reads a whole window, whatever the length of the speech


def split_words(text):
    """Return the lower-case words of a text, every Chinese character apart, without punctuation."""
    text = "".join(f" {c} " if "\u4e00" <= c <= "\u9fff" else c for c in text.lower() if c.isalpha() or c in " '")
    return text.split()


def make_whisper_tokenizer(texts, vocabulary):
    """Return a byte-level BPE tokenizer with Whisper's own tokens in their own order, without its time stamps."""
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
    """Return Whisper's log mel (80, T) at 100 Hz of one mono file at 16 kHz, without the padding; T is even."""
    wave, rate = soundfile.read(audio, dtype="float32")
    if rate != 16000 or len(wave) > WINDOW * rate:
        raise ValueError(f"{audio}: {len(wave) / rate:.1f} s at {rate} Hz; the tiny Whisper takes {WINDOW} s at 16 kHz")
    mel = extractor(wave, sampling_rate=rate, return_tensors="pt").input_features[0]
    return mel[:, :2 * math.ceil(len(wave) / 320)].clone()


def pad_mel(mels, frames):
    """Return (B, 80, 2 * frames) of (80, T) each; silence is 2 below the loudest bin, as in the extractor's padding."""
    return torch.stack([F.pad(mel, (0, 2 * frames - mel.shape[1]), value=mel.max().item() - 2) for mel in mels])


def mask_mel(mel, lengths, generator):
    """Return (B, 80, 2T) with two bands of 10 bins of each clip set to its mean. Masks in time would hide words."""
    mel = mel.clone()
    for x, length in zip(mel, lengths):
        mean = x[:, :2 * length].mean()
        for _ in range(2):
            band = int(torch.randint(0, 70, (), generator=generator))
            x[band:band + 10] = mean
    return mel


def whisper_frames(encoder, mel):
    """Return the outputs (B, T, W) of the second and the last layer at 50 Hz; mel (B, 80, 2T), T up to the window."""
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)
    x, outputs = x + encoder.embed_positions.weight[:x.shape[1]], []
    for layer in encoder.layers:
        x = layer(x, None)
        outputs.append(x)
    return outputs[1], encoder.layer_norm(x)


def whisper_model(tokenizer):
    """Return an untrained Whisper: 4 encoder layers and 2 decoder layers of width 128."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration
    start, end = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|endoftext|>"])
    return WhisperForConditionalGeneration(WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=80, d_model=128, encoder_layers=4, encoder_attention_heads=4,
        encoder_ffn_dim=256, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=256,
        max_source_positions=50 * WINDOW, max_target_positions=64, pad_token_id=end, bos_token_id=end,
        eos_token_id=end, decoder_start_token_id=start))


def whisper_generation(tokenizer, languages):
    """Return the generation config with which generate() of transformers detects one of `languages` and transcribes."""
    from transformers import GenerationConfig
    token = tokenizer.convert_tokens_to_ids
    start, end, translate, transcribe, no_timestamps = token(
        ["<|startoftranscript|>", "<|endoftext|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"])
    return GenerationConfig(
        decoder_start_token_id=start, bos_token_id=end, eos_token_id=end, pad_token_id=end, max_length=64,
        is_multilingual=True, lang_to_id={f"<|{language}|>": token(f"<|{language}|>") for language in languages},
        task_to_id={"transcribe": transcribe, "translate": translate}, no_timestamps_token_id=no_timestamps,
        return_timestamps=False)


def make_whisper(folder, train_rows, dev_rows, steps, seed, batch=16):
    """
    Train a tiny Whisper on the ASR rows and save it in `folder`. The encoder learns CTC as in make_encoder, the decoder
    learns to name the language and to write the transcript. Most batches are padded to their longest clip; 5 % of them
    and the last 5 % of the steps are padded to the whole window.
    """
    from transformers import WhisperFeatureExtractor
    if is_saved(folder):
        return
    torch.manual_seed(seed)
    rows, dev_rows = ([row for row in split if row["task"] == "ASR"] for split in (train_rows, dev_rows))
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW)
    mels = [read_mel(extractor, row["audio"]) for row in tqdm(rows, desc="log mel", unit=" utt")]
    texts = [split_words(row["transcript"]) for row in rows]
    vocabulary = sorted({word for text in texts for word in text})
    letters = sorted({letter for word in vocabulary for letter in word})
    characters, words = ctc_labels(letters, ["".join(text) for text in texts]), ctc_labels(vocabulary, texts)
    tokenizer = make_whisper_tokenizer([row["transcript"] for row in rows], 800)
    token = tokenizer.convert_tokens_to_ids
    transcripts = [torch.tensor([*token(["<|startoftranscript|>", f"<|{row['language']}|>", "<|transcribe|>",
                                         "<|notimestamps|>"]),
                                 *encode_text(tokenizer, row["transcript"]), token("<|endoftext|>")]) for row in rows]

    model = whisper_model(tokenizer)
    encoder, decoder = model.model.encoder, model.model.decoder
    character_head = torch.nn.Linear(128, len(letters) + 1)
    word_head = torch.nn.Linear(128, len(vocabulary) + 1)
    tables = [decoder.embed_tokens.weight, decoder.embed_positions.weight]
    parameters = [p for part in (model, character_head, word_head) for p in part.parameters()
                  if p.requires_grad and all(p is not table for table in tables)]
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    batches = batches_of_like_length(rng, [mel.shape[1] for mel in mels], batch)

    def losses_of(step):
        picked = next(batches)
        lengths = torch.tensor([mels[n].shape[1] // 2 for n in picked])
        whole = step >= 0.95 * steps or rng.random() < 0.05
        frames = 50 * WINDOW if whole else min(50 * WINDOW, int(lengths.max()) + rng.randrange(25))
        mel = mask_mel(pad_mel([mels[n] for n in picked], frames), lengths.tolist(), generator)
        second, last = whisper_frames(encoder, mel)
        tokens = torch.nn.utils.rnn.pad_sequence([transcripts[n] for n in picked], batch_first=True, padding_value=-100)
        hidden = decoder(input_ids=tokens[:, :-1].clamp(min=0), encoder_hidden_states=last).last_hidden_state
        targets = tokens[:, 1:]
        return {"characters": ctc(character_head(second), lengths, [characters[n] for n in picked]),
                "words": ctc(word_head(average(last)), -(-lengths // 3), [words[n] for n in picked]),
                "text": F.cross_entropy(model.proj_out(hidden[targets >= 0]), targets[targets >= 0])}
    model.train()
    optimizer_list = [*optimizers(parameters, lr_matrix=1e-2, lr_rest=2e-3), torch.optim.AdamW(tables, lr=3e-3)]
    train(parameters + tables, optimizer_list, steps, losses_of, "Whisper")
    model.generation_config = whisper_generation(tokenizer, sorted({row["language"] for row in rows}))
    save(folder, model.eval(), extractor, tokenizer)
    error = whisper_word_errors(model, extractor, tokenizer, dev_rows)
    print(f"{folder}: word error rate on the dev utterances {error:.1f} %")


@torch.no_grad()
def whisper_word_errors(model, extractor, tokenizer, rows):
    """Return Whisper's word error rate in percent, Chinese in characters; Whisper detects the language itself."""
    import jiwer
    hypotheses = []
    for row in rows:
        mel = pad_mel([read_mel(extractor, row["audio"])], 50 * WINDOW)
        tokens = model.generate(mel, task="transcribe", max_new_tokens=48)
        hypotheses.append(" ".join(split_words(tokenizer.decode(tokens[0], skip_special_tokens=True))))
    return 100 * jiwer.wer([" ".join(split_words(row["transcript"])) for row in rows], hypotheses)


def make_bert(folder, seed):
    """Save an untrained BERT of the Q-Former's width: a Q-Former can start from it, but learns nothing from it."""
    from transformers import BertConfig, BertModel
    torch.manual_seed(seed)
    save(folder, BertModel(BertConfig(vocab_size=100, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
                                      intermediate_size=256, max_position_embeddings=64)))
