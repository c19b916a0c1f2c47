"""
A large language model as the judge of answers: bergen's yes/no question (naver/bergen 1b0ee2c, default_qa).

    ask = load_judge("google/gemma-3-12b-it", "probability", torch.device("cuda"))
    ask([["Who wrote it?", "Elena", "It was Elena."]])          -> [0.98]: P(Yes)
    ask = load_judge("google/gemma-3-12b-it", "text", torch.device("cuda"))         -> [1]: Yes; 0: No; -100: neither
    accuracy([1, 0, 1, -100])                                   -> (66.7, 25.0): percent Yes, percent without a verdict

The judge sees a question, the golden answer and the answer, not the speech. "probability" (bergen's default) reads the
first token's logits of Yes and No; "text" lets the judge write up to 10 tokens. Which one the papers used is not known.
The 2025 paper takes the mean over EuroLLM-9B, Gemma3-12B, Gemma3-27B and Llama-3.1-70B, all -Instruct (section 4).
"""
from functools import partial

import torch

from metrics.chat import encode_chat


OPTIONS = {"No": 0, "Yes": 1}        # sorted, as bergen sorts them before it takes their first tokens
UNPARSABLE = -100
MAX_NEW_TOKENS = 10                  # of a written verdict

# With a system turn, and for templates that know none. The trailing spaces and the ?. are bergen's
SYSTEM = "You are an evaluation tool. Answer with one of Yes, No."
USER = ("Here is a question, a golden answer and an AI-generated answer. Can you judge whether the AI-generated answer "
        "is correct according to the question and golden answer, simply answer with one of Yes, No.\n"
        " Question: {question}. \nGolden answer: {golden} \n Generated answer: {answer}")
USER_ALONE = ("You are an evaluation tool. Just answer by Yes, No. Here is a question, a golden answer and an "
              "AI-generated answer. Judge whether the AI-generated answer is correct according to the question and "
              "golden answer, answer with Yes, No.\n"
              "Question: {question}.\nGolden answer: {golden}\nGenerated answer: {answer}")


def messages(question, golden, answer, has_system):
    """The chat that asks for one verdict."""
    texts = {"question": question, "golden": golden, "answer": answer}
    if has_system:
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER.format(**texts)}]
    return [{"role": "user", "content": USER_ALONE.format(**texts)}]


def encode(tokenizer, items, device):
    """Items [question, golden, answer] -> {"input_ids", "attention_mask", "position_ids"}, (B, L), left-padded."""
    has_system = "system" in tokenizer.chat_template
    # special tokens are added as in bergen, so that a template that writes <bos> itself gets a second one
    rows = [encode_chat(tokenizer, messages(*item, has_system), add_special_tokens=True) for item in items]
    length = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_token_id] * (length - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@torch.no_grad()
def probabilities(model, tokenizer, items):
    """P(Yes) for each [question, golden, answer], among Yes and No as the first token of the verdict."""
    first = [tokenizer.encode(option, add_special_tokens=False)[0] for option in OPTIONS]
    logits = model(**encode(tokenizer, items, model.device), use_cache=False, logits_to_keep=1).logits     # (B, 1, V)
    return expectation(logits[:, -1, first], OPTIONS.values()).tolist()


def expectation(logits, values):
    """(B, options) logits of the options and what each is worth -> (B,) the mean worth, by a softmax in float32."""
    return logits.float().softmax(-1) @ torch.tensor(list(values), dtype=torch.float32, device=logits.device)


@torch.no_grad()
def verdicts(model, tokenizer, items):
    """1, 0 or UNPARSABLE for each [question, golden, answer], from what the judge writes, greedily."""
    from transformers import GenerationConfig
    inputs = encode(tokenizer, items, model.device)
    del inputs["position_ids"]                     # generate counts them itself, from the mask
    greedy = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id,
                              eos_token_id=model.generation_config.eos_token_id)
    written = model.generate(**inputs, generation_config=greedy)[:, inputs["input_ids"].shape[1]:]
    return [parse(text) for text in tokenizer.batch_decode(written, skip_special_tokens=True)]


def parse(text, options=OPTIONS):
    """The worth of the one option that stands in the text, case and all, even inside a word; else UNPARSABLE."""
    found = [value for option, value in options.items() if option in text]
    return found[0] if len(found) == 1 else UNPARSABLE


def accuracy(scores):
    """Scores of either kind -> (mean in percent of those that can be parsed, 0 if none; percent that cannot)."""
    parsed = [score for score in scores if score != UNPARSABLE]
    return 100 * sum(parsed) / max(len(parsed), 1), 100 * (1 - len(parsed) / len(scores))


# ----------------------------------------------------------------------------------------------------

def load_judge(name, mode, device):
    """
    A chat model, a folder or a hub name -> a function from [question, golden, answer] items to their scores, by
    probabilities or, in the mode "text", by verdicts. bfloat16 on a GPU (our choice), spread over all GPUs where there
    are several; float32 without one. FileNotFoundError naming the download, ValueError where there is no chat template.
    """
    score = {"probability": probabilities, "text": verdicts}[mode]
    from transformers import AutoModelForCausalLM, AutoTokenizer
    several = device.type == "cuda" and torch.cuda.device_count() > 1
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)     # no download unasked for
        model, info = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32, local_files_only=True,
            output_loading_info=True, device_map="auto" if several else None)      # "auto" needs the package accelerate
    except OSError as error:
        raise FileNotFoundError(f"the LLM {name} is not here; accept its licence on the hub and run: hf download {name}"
                                ) from error
    except Exception as error:                           # a library's own for every kind of damage
        raise ValueError(f"the LLM {name} cannot be loaded ({error}); get it again") from error
    if info["missing_keys"]:                             # transformers leaves them random and goes on
        raise ValueError(f"the LLM {name} lacks {len(info['missing_keys'])} weights, such as "
                         f"{min(info['missing_keys'])}; get it again")
    if not tokenizer.chat_template:
        raise ValueError(f"{name} has no chat template: a judge must be an instructed model")
    # bergen pads with the first; it is masked, and changes nothing
    tokenizer.pad_token = tokenizer.bos_token or tokenizer.pad_token or tokenizer.eos_token
    return partial(score, (model if several else model.to(device)).eval(), tokenizer)
