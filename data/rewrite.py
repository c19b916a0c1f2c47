"""
What an instruction-tuned LLM writes: bare answers as sentences (2025, section A.2), or any prompts of a recipe.

    rewrite([["It rained in Rome.", "Where did it rain?", "rome"]])     # -> ["It rained in Rome."]
    generate(["Name three rivers."], max_new_tokens=50)                 # -> one text for each prompt
    python -m data.rewrite --rows in.jsonl --out out.jsonl              # the answerable SQA rows of a file

reads   rows; the LLM, from the hub or from a folder
writes  <out>: the answerable SQA rows, their target a sentence, their corpus <corpus>-fluent; <out>.dropped.txt, those
        whose answer is empty or in the wrong language; <out>.kept, from which a killed run goes on
"""
import argparse
import functools
import os
import tempfile

from data.translate import write_made
from speech_llm.llm import load_checkpoint
from speech_llm.resumable import resumable
from speech_llm.rows import corpus_of, read_rows
from speech_llm.turns import encode, end_id, turn_of


LLM = "meta-llama/Llama-3.1-8B-Instruct"
MAX_NEW_TOKENS = 100        # of a rewritten answer (our choice)


def fluent_prompt(context, question, answer):
    """The user's turn of 2025, Table 4."""
    return (f"Context: {context}\nQuestion: {question}\nAnswer: {answer}\n"
            "Instruction: Reformulate the answer to be a natural sounding sentence that answers the question in the "
            "correct language. Produce text in the same language of the question and answer. Do not make it too long, "
            "or add too much information. Don't add anything else to your answer.")


def load_llm(path):
    """(LLM, tokenizer) for inference: bfloat16 on a GPU, float32 on the CPU. ValueError without a chat format."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    llm = load_checkpoint(AutoModelForCausalLM, path, dtype=dtype).to(device)
    tokenizer = AutoTokenizer.from_pretrained(path)
    turn_of(tokenizer)
    return llm, tokenizer


def generate_batch(llm, tokenizer, prompts, max_new_tokens):
    """-> a {"text", "capped"} for each prompt, a user's turn; greedy."""
    import torch
    turn, end = turn_of(tokenizer), end_id(tokenizer)
    ids = [encode(tokenizer, turn.head, prompt, turn.tail) for prompt in prompts]
    width = max(map(len, ids))
    # on the left, so that every row's last token is its newest; the mask hides it, so any token will do
    padded = torch.tensor([[end] * (width - len(row)) + row for row in ids], device=llm.device)         # (B, L)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=llm.device)
    ends = llm.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), end} - {None}
    outputs = llm.generate(input_ids=padded, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False,
                           num_beams=1, eos_token_id=sorted(ends), pad_token_id=end)[:, width:].tolist()
    stops = [next((n for n, token in enumerate(row) if token in ends), None) for row in outputs]
    return [{"text": tokenizer.decode(row[:stop], skip_special_tokens=True).strip(), "capped": stop is None}
            for row, stop in zip(outputs, stops)]


def generate(prompts, model=LLM, kept=None, batch=32, max_new_tokens=MAX_NEW_TOKENS):
    """
    Prompts, each the user's turn of a conversation -> the LLM's answers, greedy (our choice). Equal prompts are
    answered once, and the LLM is loaded only if something is left to do. kept: from which a killed run goes on.
    """
    loaded = functools.cache(lambda: load_llm(model))
    settings = {"model": model, "max_new_tokens": max_new_tokens}
    with tempfile.TemporaryDirectory() as nowhere:
        results = resumable(kept or os.path.join(nowhere, "kept"), settings, prompts,
                            lambda some: generate_batch(*loaded(), some, max_new_tokens), batch, "LLM")
    capped = sum(result["capped"] for result in results)
    print(f"{len(results)} prompts answered, {capped} answers cut at {max_new_tokens} tokens")
    return [result["text"] for result in results]


def rewrite(items, model=LLM, kept=None, batch=32):
    """[context, question, answer] of each -> the answer as a sentence; its language is for the caller to check."""
    return generate([fluent_prompt(*item) for item in items], model, kept, batch)


# --- Rows: the same for a file.

def fluent_rows(rows, model=LLM, kept=None):
    """Rows -> (the answerable SQA rows with sentences as targets, [(id, reason)] of those that failed)."""
    from metrics.language import identify
    rows = [row for row in rows if row["task"] == "SQA" and row["answerable"]]
    identify([])                        # stops here without its optional package, not after hours
    answers = rewrite([[row["transcript"], row["question"], row["target"]] for row in rows], model, kept)
    new, dropped = [], []
    for row, answer, language in zip(rows, answers, identify(answers)):
        corpus = corpus_of(row)
        row = {**row, "id": f"{corpus}-fluent{row['id'].removeprefix(corpus)}", "target": answer}
        if not answer:
            dropped.append((row["id"], f"empty answer in {row['language']}"))
        elif language != row["language"]:
            dropped.append((row["id"], f"not in {row['language']}: {language or 'no letters'}: {answer}"))
        else:
            new.append(row)
    return new, dropped


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--llm", default=LLM, help="hub name, or folder of the model")
    args = parser.parse_args(argv)
    rows = read_rows(args.rows)
    new, dropped = fluent_rows(rows, args.llm, f"{args.out}.kept")
    write_made(args.out, new, dropped)
    print(f"left out, for they are not answerable SQA rows: {len(rows) - len(new) - len(dropped)}")


if __name__ == "__main__":
    main()
