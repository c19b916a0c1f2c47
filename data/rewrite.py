"""
Write texts with an instruction-tuned LLM: answers as whole sentences (2025, section A.2), or a recipe's prompts.

    python -m data.rewrite --rows in.jsonl --out out.jsonl            # the answerable SQA rows of a file
    torchrun --nproc_per_node=4 -m data.rewrite ...                   # the same on four GPUs
    generate(["Name three rivers."], LLM, "work/made/x/rivers.jsonl", max_new_tokens=50)      # -> one text a prompt

reads   rows; the LLM, from the hub or from a folder
writes  <out>: the answerable SQA rows, their target a sentence, their corpus <corpus>-fluent. <out>.dropped.txt: the
        rows whose answer is empty or in another language. <out>.results: every answer, appended as it is made, from
        which a killed run continues
"""
import functools

from data.translate import maker_parser, write_made
from metrics.chat import pad_left
from speech_llm.constants import pick_device
from speech_llm.llm import decode_text, load_llm, stop_ids
from speech_llm.resumable import resumable, silence_others
from speech_llm.rows import corpus_of, read_rows
from speech_llm.turns import tokenize, end_id, turn_of


LLM = "meta-llama/Llama-3.1-8B-Instruct"
MAX_NEW_TOKENS = 100        # of a rewritten answer (our choice)


def fluent_prompt(context, question, answer):
    """Return the user's turn of 2025, Table 4."""
    return (f"Context: {context}\nQuestion: {question}\nAnswer: {answer}\n"
            "Instruction: Reformulate the answer to be a natural sounding sentence that answers the question in the "
            "correct language. Produce text in the same language of the question and answer. Do not make it too long, "
            "or add too much information. Don't add anything else to your answer.")


def generate_batch(llm, tokenizer, prompts, max_new_tokens):
    """
    Return {"text", "capped"} of each prompt, which is a user's turn. Decoding is greedy (our choice). capped: the
    answer did not end within max_new_tokens.
    """
    turn, end, ends = turn_of(tokenizer), end_id(tokenizer), stop_ids(llm, tokenizer)
    rows = [tokenize(tokenizer, turn.head, prompt, turn.tail) for prompt in prompts]
    ids, mask = pad_left(rows, end, llm.device)          # (B, L); any masked token will do
    outputs = llm.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False,
                           num_beams=1, eos_token_id=sorted(ends), pad_token_id=end)[:, ids.shape[1]:].tolist()
    stops = [next((n for n, token in enumerate(row) if token in ends), None) for row in outputs]
    return [{"text": decode_text(tokenizer, row[:stop]), "capped": stop is None} for row, stop in zip(outputs, stops)]


def generate(prompts, model, path, batch=32, max_new_tokens=MAX_NEW_TOKENS):
    """
    Return the LLM's answers to prompts, each of which is the user's turn of a conversation. Equal prompts are answered
    once. The LLM is loaded only if a prompt is left to do. path: the file of results, from which a killed run
    continues.
    """
    loaded = functools.cache(lambda: load_llm(model, pick_device()))
    settings = {"model": model, "max_new_tokens": max_new_tokens}
    results = resumable(path, settings, prompts, lambda batch_prompts: generate_batch(*loaded(), batch_prompts,
                                                                                      max_new_tokens), batch, "LLM")
    capped = sum(result["capped"] for result in results)
    print(f"{len(results)} prompts answered, {capped} answers cut at {max_new_tokens} tokens")
    return [result["text"] for result in results]


def rewrite(items, model, path):
    """Return the answer of every [context, question, answer] as a sentence, in whatever language the LLM wrote it."""
    return generate([fluent_prompt(*item) for item in items], model, path)


# --- Rows.

def fluent_rows(rows, model, path):
    """
    Return (the answerable SQA rows with sentences as targets, [(id, reason)] of those whose sentence is empty or in
    another language).
    """
    from metrics.language import identify
    rows = [row for row in rows if row["task"] == "SQA" and row["answerable"]]
    identify([])                        # exits here without its optional package, not after hours
    answers = rewrite([[row["transcript"], row["question"], row["target"]] for row in rows], model, path)
    fluent, dropped = [], []
    for row, answer, language in zip(rows, answers, identify(answers)):
        corpus = corpus_of(row)
        row = {**row, "id": f"{corpus}-fluent{row['id'].removeprefix(corpus)}", "target": answer}
        if not answer:
            dropped.append((row["id"], f"empty answer in {row['language']}"))
        elif language != row["language"]:
            dropped.append((row["id"], f"not in {row['language']}: {language or 'no letters'}: {answer}"))
        else:
            fluent.append(row)
    return fluent, dropped


def main(argv=None):
    parser = maker_parser(__doc__, "rows, of which the answerable SQA rows are rewritten")
    parser.add_argument("--llm", default=LLM, help="hub name, or folder of the model")
    args = parser.parse_args(argv)
    silence_others()
    rows = read_rows(args.rows)
    fluent, dropped = fluent_rows(rows, args.llm, f"{args.out}.results")
    write_made(args.out, fluent, dropped)
    print(f"left out because they are no answerable SQA rows: {len(rows) - len(fluent) - len(dropped)}")


if __name__ == "__main__":
    main()
