"""
A large language model as the judge of answers: bergen's yes/no question (naver/bergen 1b0ee2c, default_qa).

    ask = load_judge("google/gemma-3-12b-it", "probability", torch.device("cuda"))
    ask([["Who wrote it?", "Elena", "It was Elena."]])          -> [0.98]: P(Yes)
    ask = load_judge("google/gemma-3-12b-it", "text", torch.device("cuda"))         -> [1]: Yes; 0: No; -100: neither
    accuracy([1, 0, 1, -100])                                   -> (66.7, 25.0): percent Yes, percent without a verdict

The judge sees a question, the golden answer and the answer, but not the speech. "probability" (bergen's default) reads
the logits of Yes and No as the first token of the verdict; "text" lets the judge write up to 10 tokens. The papers do
not say which of the two they used. The 2025 paper takes the mean over EuroLLM-9B, Gemma3-12B, Gemma3-27B and
Llama-3.1-70B, all -Instruct (section 4); the 2026 paper takes the first three (section 5).
"""
from functools import partial

import torch

from metrics.chat import encode_chat, load_chat, pad_left, write_greedily
from speech_llm.llm import decode_text
from speech_llm.normalize import nfc
from speech_llm.thoughts import after_thought


OPTIONS = {"No": 0, "Yes": 1}        # sorted, as bergen sorts them before it takes their first tokens
UNPARSABLE = -100
MAX_NEW_TOKENS = 10                  # of a written verdict

# With a system turn, and for templates that know none. The spaces before line breaks and the full stop after the
# question are bergen's
SYSTEM = "You are an evaluation tool. Answer with one of Yes, No."
USER = ("Here is a question, a golden answer and an AI-generated answer. Can you judge whether the AI-generated answer "
        "is correct according to the question and golden answer, simply answer with one of Yes, No.\n"
        " Question: {question}. \nGolden answer: {golden} \n Generated answer: {answer}")
USER_ALONE = ("You are an evaluation tool. Just answer by Yes, No. Here is a question, a golden answer and an "
              "AI-generated answer. Judge whether the AI-generated answer is correct according to the question and "
              "golden answer, answer with Yes, No.\n"
              "Question: {question}.\nGolden answer: {golden}\nGenerated answer: {answer}")


def messages(question, golden, answer, has_system):
    """Return the chat that asks for one verdict."""
    texts = {"question": question, "golden": golden, "answer": answer}
    if has_system:
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER.format(**texts)}]
    return [{"role": "user", "content": USER_ALONE.format(**texts)}]


def tokenize(tokenizer, items, device):
    """Return {"input_ids", "attention_mask", "position_ids"}, (B, L), of items [question, golden, answer]."""
    has_system = "system" in tokenizer.chat_template
    # special tokens are added as in bergen, so that a template that writes <bos> itself gets a second one
    rows = [encode_chat(tokenizer, messages(*map(nfc, item), has_system), add_special_tokens=True) for item in items]
    ids, mask = pad_left(rows, tokenizer.pad_token_id, device)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@torch.no_grad()
def probabilities(model, tokenizer, items):
    """Return P(Yes) for each [question, golden, answer], among Yes and No as the first token of the verdict."""
    first = [tokenizer.encode(option, add_special_tokens=False)[0] for option in OPTIONS]
    logits = model(**tokenize(tokenizer, items, model.device), use_cache=False, logits_to_keep=1).logits     # (B, 1, V)
    return expectation(logits[:, -1, first], OPTIONS.values()).tolist()


def expectation(logits, values):
    """Return the mean of the options' values, (B,), weighted by a float32 softmax over their logits (B, options)."""
    return logits.float().softmax(-1) @ torch.tensor(list(values), dtype=torch.float32, device=logits.device)


def verdicts(model, tokenizer, items):
    """Return 1, 0 or UNPARSABLE for each [question, golden, answer], from what the judge writes greedily."""
    inputs = tokenize(tokenizer, items, model.device)            # generate derives position_ids from the mask
    written = write_greedily(model, tokenizer, inputs["input_ids"], inputs["attention_mask"], MAX_NEW_TOKENS)
    return [parse(decode_text(tokenizer, row)) for row in written]


def parse(text):
    """
    Return the value of the one option that stands in the text after its thought, else UNPARSABLE.
    Case matters, and an option inside a longer word counts, as in bergen.
    """
    values = [value for option, value in OPTIONS.items() if option in after_thought(text)]
    return values[0] if len(values) == 1 else UNPARSABLE


def accuracy(scores):
    """Return (mean in percent of the scores that are verdicts, 0 if none is; percent of the scores that are none)."""
    parsed = [score for score in scores if score != UNPARSABLE]
    return 100 * sum(parsed) / max(len(parsed), 1), 100 * (1 - len(parsed) / len(scores))


def load_judge(name, mode, device):
    """
    Return a function from [question, golden, answer] items to their scores: probabilities, or in the mode "text"
    verdicts. `name` is a chat LLM, a folder or a hub name; errors as metrics.chat.load_chat's.
    """
    return partial({"probability": probabilities, "text": verdicts}[mode], *load_chat(name, device))
