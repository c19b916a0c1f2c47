"""
The prompts of the papers: from a row to the token ids that the LLM reads, in training and inference alike.

    before, after = encode_prompt(tokenizer, row)              # the speech stands between them
    ids, _ = encode_prompt(tokenizer, row, text=True)          # the transcript stands in place of the speech
    answer = encode_answer(tokenizer, row)

Prompt styles: "2025" (IWSLT 2025, section 4 and appendix A.4), "2026" and "2026-zero-shot" (IWSLT 2026, Table 7),
"listeners" (multilingual listeners, A.6), "omni" (Qwen2.5-Omni).
"""
from speech_llm.rows import QUESTION_TASKS
from speech_llm.turns import tokenize, turn_of


TASK_LINES = {  # the language of the instruction is the language of the answer (2025, appendix A.4)
    ("ASR", "en"): "Can you transcribe the Speech content into English text?",
    ("ST", "de"): "Können Sie den Inhalt der Rede in den deutschen Text übersetzen?",
    ("ST", "it"): "Puoi tradurre il contenuto del discorso in testo italiano?",
    ("ST", "zh"): "你能把演讲内容翻译成中文吗?",
}
SUFFIXES = {  # the line before "Your answer:"; in 2026 it is there even when empty, as a blank line
    "2025": {}, "2026": {},
    "2026-zero-shot": {  # 2026, Table 7; two of them have a space before the newline
        ("ASR", "en"): "Do not add anything else to your answer. ",
        ("ST", "de"): "Antworten Sie nur mit der Übersetzung. Fügen Sie Ihrer Antwort nichts weiter hinzu.",
        ("ST", "it"): "Rispondi solo con la traduzione. Non aggiungere altro alla tua risposta.",
        ("ST", "zh"): "仅回复翻译。请勿在答案中添加任何其他内容。 ",
    },
}
SPOKEN_PROMPTS = ("listeners", "omni")     # styles in which the speech may be the question itself
SPOKEN = {  # SPOKEN_PROMPTS: tasks with words beside the speech (multilingual listeners, A.6)
    "ASR": "Transcribe this utterance",
    "ST": "Translate this utterance into {}",                      # the paper has no words for it (our choice)
}
AUDIO_TAGS = "<|audio_bos|>", "<|audio_eos|>"      # prompt "omni": what Qwen2.5-Omni's processor puts around speech
TRANSLATED_INTO = {  # CoVoST 2's target languages among the 23, and Italian
    "en": "English", "ar": "Arabic", "de": "German", "fa": "Persian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "tr": "Turkish", "zh": "Chinese",
}
NOT_ANSWERABLE = {  # the organisers' answer to a question that the speech does not answer
    "en": "Not answerable.",
    "de": "Nicht zu beantworten.",
    "it": "Non è possibile rispondere.",
    "zh": "无法回答。",
}


def question_line(row):
    """Return the line after the speech: the task's instruction, or the row's question."""
    if row["task"] in QUESTION_TASKS:
        # one line, always: options and instructions with line breaks are joined by spaces (2026, Table 7)
        return "Question: " + " ".join(row["question"].splitlines()).strip() + "\n"
    key = (row["task"], row["language"])
    if key not in TASK_LINES:
        raise ValueError(f"row {row['id']}: no prompt for {key[0]} in {key[1]!r}; TASK_LINES of speech_llm/prompts.py "
                         f"has one for {list(TASK_LINES)}")
    return f"Question: {TASK_LINES[key]}\n"


def spoken_instruction(row):
    """Return what is written beside the speech: nothing where the speech is the question itself."""
    if row["task"] in QUESTION_TASKS:
        return "" if row["question"] == row["transcript"] else row["question"].strip()
    if row["task"] == "ST" and row["language"] not in TRANSLATED_INTO:
        raise ValueError(f"row {row['id']}: no prompt to translate into {row['language']!r}; "
                         f"there is one for {list(TRANSLATED_INTO)}")
    return SPOKEN[row["task"]].format(TRANSLATED_INTO.get(row["language"]))


def instruction(row, prompt="2025"):
    """Return the instruction alone, for a model that puts it beside the audio itself; "" where the speech asks."""
    if prompt in SPOKEN_PROMPTS:
        return spoken_instruction(row)
    if row["task"] in QUESTION_TASKS:
        return row["question"].strip()
    return question_line(row).removeprefix("Question: ").strip()


def user_turn(row, text=False, prompt="2025"):
    """Return the user's words (before, after) the speech; with `text` all of them, and `after` is empty."""
    if prompt in SPOKEN_PROMPTS:
        instruction = spoken_instruction(row)
        if text:
            return "\n".join(filter(None, (row["transcript"].strip(), instruction))), ""
        if prompt == "omni":
            return "", instruction
        return "<Speech>", f"</Speech> {instruction}".rstrip()         # as SALMONN has it
    if prompt not in SUFFIXES:
        raise ValueError(f"prompt {prompt!r} is not one of {', '.join([*SUFFIXES, *SPOKEN_PROMPTS])}")
    ending = SUFFIXES[prompt].get((row["task"], row["language"]), "")
    after = question_line(row) + ending + ("" if prompt == "2025" else "\n") + "Your answer:"
    if text:
        return f"Content: <text>{row['transcript'].strip()}</text>\n{after}", ""
    return "Content: <speech>", f"</speech>\n{after}"


def audio_tags(tokenizer, prompt):
    """Return the two tokens, as text, that a prompt style puts around the speech. ValueError if the LLM lacks them."""
    if prompt != "omni":
        return "", ""
    if not {*AUDIO_TAGS} <= tokenizer.get_added_vocab().keys():
        raise ValueError(f"prompt 'omni': the tokenizer of {tokenizer.name_or_path} lacks {' or '.join(AUDIO_TAGS)}")
    return AUDIO_TAGS


def encode_prompt(tokenizer, row, text=False, prompt="2025"):
    """Return the token ids (before, after) of the speech; the two are tokenised apart (2025, section 4)."""
    turn, (before, after) = turn_of(tokenizer), user_turn(row, text, prompt)
    if text:
        return tokenize(tokenizer, turn.head, before, turn.tail), []
    begin, end = audio_tags(tokenizer, prompt)
    return tokenize(tokenizer, turn.head, before, begin), tokenize(tokenizer, end, after, turn.tail)


def encode_answer(tokenizer, row):
    """
    Return the token ids of the target and its end-of-turn token; the loss falls on these and on nothing else. They are
    the ids that the target has after the assistant's header, where a word may have no space before it.
    """
    turn, answer = turn_of(tokenizer), row["target"].strip()
    header = tokenize(tokenizer, turn.tail, "", "")
    ids = tokenize(tokenizer, turn.tail + turn.lead, answer, turn.end)
    return ids[len(header):] if ids[:len(header)] == header else tokenize(tokenizer, turn.lead, answer, turn.end)


def prompts_of(tokenizer, prompt):
    """Return {"TASK LANGUAGE speech or text": the prompt as text}, which a stage keeps and a later stage compares."""
    row, prompts = {"id": "example", "question": "QUESTION", "transcript": "TRANSCRIPT"}, {}
    for task, language in [*TASK_LINES, ("SQA", "en")]:
        for kind in ("speech", "text"):
            pieces = encode_prompt(tokenizer, {**row, "task": task, "language": language}, kind == "text", prompt)
            prompts[f"{task} {language} {kind}"] = "SPEECH".join(map(tokenizer.decode, pieces))
    return prompts
