"""
Make the tiny LLM of a toy world: a Llama, Qwen3 or Cohere with a byte-level BPE tokenizer and its own turns.

    python -m data.tiny_llm --preset tiny        # beside `python -m data.tiny`: neither needs anything of the other

reads   `world` in the preset's page of config/; the texts come from the world's recipe, such as data/tiny.py
writes  <work>/<llm of the page>, such as models/tiny-llama, in the hub's own format

The LLM learns to transcribe, translate and answer from text alone. All of it is our choice.
"""
import importlib
import json
import os
import random

import torch
import torch.nn.functional as F

from data.recipe import world_settings
from data.speech_ifeval import CONSTRAINTS, constrained
from data.tiny_models import is_saved, optimizers, save, train
from speech_llm.batches import cut_by_length
from speech_llm.constants import read_page
from speech_llm.files import differences, read_json, write_json
from speech_llm.normalize import mms_normalize
from speech_llm.prompts import encode_answer, encode_prompt, user_turn
from speech_llm.turns import CHAT, encode_text

VOCABULARY = 2000   # tokens at most
CHATTER = {  # (answerable, unanswerable): as chat models do, the tiny LLM talks on until stage B trains it
    "en": ("{} is the answer.", "{} Please ask something else."),
    "de": ("{} ist die Antwort.", "{} Bitte frag etwas anderes."),
    "it": ("{} è la risposta.", "{} Chiedi qualcosa di diverso."),
    "zh": ("{}是答案。", "{}请问别的问题。"),
}
ROWS = 40           # a step reads at least so many rows
OBEY = 0.1          # share of the English transcripts and answers in a form that A, B and C never ask for
FAMILIES = {  # special tokens: begin of text or None, pad, ends of turn, the other markers of the chat format
    "llama": ("<|begin_of_text|>", "<|finetune_right_pad_id|>", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
              ("<|start_header_id|>", "<|end_header_id|>")),
    "qwen3": (None, "<|endoftext|>", ("<|endoftext|>", "<|im_end|>"), ("<|im_start|>", "<|file_sep|>")),
    "cohere": ("<BOS_TOKEN>", "<PAD_TOKEN>", ("<|END_OF_TURN_TOKEN|>",),
               ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")),
}
PROMPTS = {"llama": ["2025"], "qwen3": ["2026", "2026-zero-shot"], "cohere": ["listeners"]}   # that a family learns
SHARES = {("ASR", True): 0.15, ("ST", True): 0.30, ("SQA", True): 0.44, ("SQA", False): 0.11}  # (task, answerable)
SHARES_WITH_CHOICES = {**SHARES, ("SQA", True): 0.30, ("MCQ", True): 0.14}


def instruction_of(rows, rng):
    """
    Return one of the rows of a sentence, drawn by SHARES. An answer gets CHATTER; some of the English answers and
    transcripts get one of the CONSTRAINTS.
    """
    kinds = [(row["task"], row["answerable"]) for row in rows]
    shares = SHARES_WITH_CHOICES if ("MCQ", True) in kinds else SHARES
    row = rng.choices(rows, [shares[kind] / kinds.count(kind) for kind in kinds])[0]
    if row["task"] == "SQA":
        row["target"] = CHATTER[row["language"]][not row["answerable"]].format(row["target"])
    if row["language"] == "en" and row["answerable"] and row["task"] in ("ASR", "SQA") and rng.random() < OBEY:
        return constrained(row, rng.choice(CONSTRAINTS))
    return row


def make_tokenizer(texts, vocabulary, family="llama"):
    """Return a byte-level BPE tokenizer with the family's turn markers and chat format."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    begin, pad, ends, others = FAMILIES[family]
    bpe = Tokenizer(models.BPE())
    # words with their leading space, Chinese characters and digits apart, punctuation with its newlines, other white
    # space: a Chinese sentence as one token would hide its words
    words = Regex(r"\p{Han}| ?[\p{L}&&\P{Han}]+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+")
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


def llm_model(tokenizer, family):
    """Return an untrained LLM of the family: 3 layers of width 192, tied embeddings."""
    from transformers import AutoModelForCausalLM, CohereConfig, LlamaConfig, Qwen3Config
    config = {"llama": LlamaConfig, "qwen3": Qwen3Config, "cohere": CohereConfig}[family]
    constants = {"logit_scale": 0.125} if family == "cohere" else {
        "head_dim": 32, "rope_theta": 500000.0,
        "initializer_range": 0.04}           # transformers' 0.02 takes a quarter more steps to learn to copy and answer
    return AutoModelForCausalLM.from_config(config(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=3, max_position_embeddings=1024, tie_word_embeddings=True, **constants,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.convert_tokens_to_ids(list(FAMILIES[family][2])),
        pad_token_id=tokenizer.pad_token_id))


def llm_optimizers(model, family):
    """Return the optimizers of llm_model's LLM."""
    embedding = model.model.embed_tokens.weight
    rate, rate_embedding = 5e-3, 3e-3
    if family == "cohere":  # its logits are scaled down: they need large embeddings, which large steps move
        rate, rate_embedding = 1e-2, 2e-2
        with torch.no_grad():
            embedding *= 10
    matrices = [p for p in model.parameters() if p is not embedding]
    return [*optimizers(matrices, lr_matrix=rate, lr_rest=3e-3), torch.optim.AdamW([embedding], lr=rate_embedding)]


def encode_prompts(tokenizer, family, rows, prompt, rng, like_speech):
    """
    Return the prompt's token ids for each of the rows, which have one transcript. With `like_speech` the transcript
    resembles what a projector hands to the LLM: an LLM of three layers that has read only written text does not read
    speech. Llama: up to four "uh" before every word, so that the text is as long as the speech in frames. Qwen3: lower
    case without punctuation and pads at the end, the output of a perfect SpeechMapper. Cohere: up to two pads before
    every token, as many positions as a Q-Former's.
    """
    transcript = rows[0]["transcript"]
    if like_speech and family == "llama":
        transcript = " ".join(piece for word in transcript.split() for piece in ["uh"] * rng.randint(0, 4) + [word])
    if not like_speech or family == "llama":
        return [encode_prompt(tokenizer, {**row, "transcript": transcript}, True, prompt)[0] for row in rows]
    if family == "cohere":
        spare = tokenizer.pad_token_id
        speech = [token for text_token in encode_text(tokenizer, transcript)
                  for token in [spare] * rng.randint(0, 2) + [text_token]]
    else:
        spare = tokenizer.convert_tokens_to_ids("<|file_sep|>")
        text = mms_normalize(transcript, "en", remove_numbers=False)
        speech = encode_text(tokenizer, text) + [spare] * rng.randint(0, 8)
    turns = [encode_prompt(tokenizer, row, False, prompt) for row in rows]
    return [before + speech + after for before, after in turns]


def answer_loss(model, examples):
    """
    Return the mean loss on the answers' tokens of (prompt ids, answer ids) pairs; pairs of like length share a batch.
    """
    loss = 0.0
    for group in cut_by_length(examples, lambda pair: len(pair[0]) + len(pair[1]), most=4096, padding=100):
        tokens, labels = (torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, padding)
                          for rows, padding in (([prompt + answer for prompt, answer in group], 0),
                                                ([[-100] * len(prompt) + answer for prompt, answer in group], -100)))
        hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state[labels[:, 1:] != -100]
        logits = model.lm_head(hidden) * getattr(model.config, "logit_scale", 1.0)
        loss = loss + F.cross_entropy(logits, labels[labels != -100], reduction="sum")
    return loss / sum(len(answer) for _, answer in examples)


def make_llm(folder, draw_rows, steps, seed, family, like_speech_from):
    """
    Train a tiny LLM with the loss on the answers and save it with its tokenizer. draw_rows(rng) returns a few rows on
    one transcript. From step `like_speech_from` on half of the transcripts are made like speech, see encode_prompts.
    """
    from transformers import GenerationConfig
    if is_saved(folder):
        return
    torch.manual_seed(seed)
    rng, prompts = random.Random(seed), PROMPTS[family]
    sample = [row for _ in range(3000) for row in draw_rows(rng)]
    texts = [f"user\n\n{user_turn(row, True, prompts[-1])[0]}\nassistant\n\n{row['target']}" for row in sample]
    if family == "cohere":                                                       # few tokens around the speech
        texts += ["".join(user_turn(row, False, prompts[-1])) for row in sample]
    if family == "qwen3":
        texts += [mms_normalize(row["transcript"], "en", remove_numbers=False) for row in sample]
    tokenizer = make_tokenizer(texts, VOCABULARY, family)
    model = llm_model(tokenizer, family)

    def losses_of(step):
        examples = []
        while len(examples) < ROWS:
            rows, like_speech = draw_rows(rng), step >= like_speech_from and rng.random() < 0.5
            questions = encode_prompts(tokenizer, family, rows, rng.choice(prompts), rng, like_speech)
            examples += zip(questions, [encode_answer(tokenizer, row) for row in rows])
        return {"loss": answer_loss(model, examples)}
    train(list(model.parameters()), llm_optimizers(model, family), steps, losses_of, "LLM, text")
    # the real checkpoints sample by default, so this one does: every stage must ask for greedy decoding
    model.generation_config = GenerationConfig(do_sample=True, eos_token_id=model.config.eos_token_id)
    save(folder, model.eval(), tokenizer)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")


def main(argv=None):
    work, preset, settings = world_settings(__doc__, "", argv)
    folder = os.path.join(work, read_page(preset)["common"]["llm"])
    settings_path = folder + ".made.json"    # written before the training: a folder belongs to one world and seed
    old = read_json(settings_path, f"remove it and {folder}") if os.path.exists(settings_path) else settings
    if different := differences(old, settings):
        raise SystemExit(f"{folder} was made with {different}; choose another --work, or remove {folder}*")
    write_json(settings_path, settings)
    recipe = importlib.import_module(f"data.{settings['recipe']}")
    make_llm(folder, recipe.text_rows(settings), settings["llm_steps"], settings["seed"], settings["family"],
             settings["like_speech_from"])


if __name__ == "__main__":
    main()
