"""TODO"""
from speech_llm.turns import encode, turn_of


TASK_LINES = {  # the language of the instruction is the language of the answer (2025, appendix A.4)
    ("ASR", "en"): "Can you transcribe the Speech content into English text?",
    ("ST", "de"): "Können Sie den Inhalt der Rede in den deutschen Text übersetzen?",
    ("ST", "it"): "Puoi tradurre il contenuto del discorso in testo italiano?",
    ("ST", "zh"): "你能把演讲内容翻译成中文吗?",
}
SUFFIXES = {  # what stands before "Your answer:"; 2026: then a newline more, so that the prompt holds a blank line
    "2025": {}, "2026": {},
    "2026-zero-shot": {  # 2026, Table 7; two of them have a space before the newline
        ("ASR", "en"): "Do not add anything else to your answer. ",
        ("ST", "de"): "Antworten Sie nur mit der Übersetzung. Fügen Sie Ihrer Antwort nichts weiter hinzu.",
        ("ST", "it"): "Rispondi solo con la traduzione. Non aggiungere altro alla tua risposta.",
        ("ST", "zh"): "仅回复翻译。请勿在答案中添加任何其他内容。 ",
    },
}
SPOKEN = {  # prompt "listeners": the speech is the whole turn, but for these tasks (multilingual listeners, A.6)
    "ASR": "Transcribe this utterance",
    "ST": "Translate this utterance into {}",                                  # the paper is silent (our choice)
}
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
    """The line after the speech: the task's own instruction, or the row's question."""
    if row["task"] in ("SQA", "MCQ"):
        # one line, always: options and instructions with newlines are joined by spaces (2026, Table 7)
        return "Question: " + " ".join(row["question"].split("\n")).strip() + "\n"
    key = (row["task"], row["language"])
    if key not in TASK_LINES:
        raise ValueError(f"row {row['id']}: no prompt for {key[0]} in {key[1]!r}; there is one for {list(TASK_LINES)}")
    return f"Question: {TASK_LINES[key]}\n"


def spoken_instruction(row):
    """Of the prompt "listeners": what is written beside the speech; nothing where the question is what is spoken."""
    if row["task"] in ("SQA", "MCQ"):
        return "" if row["question"] == row["transcript"] else row["question"].strip()
    if row["task"] == "ST" and row["language"] not in TRANSLATED_INTO:
        raise ValueError(f"row {row['id']}: no prompt to translate into {row['language']!r}; "
                         f"there is one for {list(TRANSLATED_INTO)}")
    return SPOKEN[row["task"]].format(TRANSLATED_INTO.get(row["language"]))


def user_turn(row, text=False, prompt="2025"):
    """The user's turn around the speech -> (before, after); with `text` it is one piece and `after` is empty."""
    if prompt == "listeners":
        asked = spoken_instruction(row)
        if text:
            return "\n".join(filter(None, (row["transcript"].strip(), asked))), ""
        return "<Speech>", f"</Speech> {asked}".rstrip()               # as SALMONN has it
    if prompt not in SUFFIXES:
        raise ValueError(f"prompt {prompt!r} is not one of {', '.join(SUFFIXES)}, listeners")
    ending = SUFFIXES[prompt].get((row["task"], row["language"]), "")
    after = question_line(row) + ending + ("" if prompt == "2025" else "\n") + "Your answer:"
    if text:
        return f"Content: <text>{row['transcript'].strip()}</text>\n{after}", ""
    return "Content: <speech>", f"</speech>\n{after}"


def encode_prompt(tokenizer, row, text=False, prompt="2025"):
    """Return the token ids (before, after) of the speech; the pieces are tokenised apart (2025, section 4)."""
    turn, (before, after) = turn_of(tokenizer), user_turn(row, text, prompt)
    if text:
        return encode(tokenizer, turn.head, before, turn.tail), []
    return encode(tokenizer, turn.head, before, ""), encode(tokenizer, "", after, turn.tail)


def encode_answer(tokenizer, row):
    """
    Return the token ids of the target and its end-of-turn token; the loss falls on these and on nothing else. They are
    the ids that the target has after the assistant's header, where a word may have no space before it.
    """
    turn, answer = turn_of(tokenizer), row["target"].strip()
    header = encode(tokenizer, turn.tail, "", "")
    ids = encode(tokenizer, turn.tail + turn.lead, answer, turn.end)
    return ids[len(header):] if ids[:len(header)] == header else encode(tokenizer, turn.lead, answer, turn.end)


def prompts_of(tokenizer, prompt):
    """Return {"task language mode": the prompt as text}, on which a stage is trained and which infer.py compares."""
    row = {"id": "example", "question": "QUESTION", "transcript": "TRANSCRIPT"}
    prompts = {(task, language, text): encode_prompt(tokenizer, {**row, "task": task, "language": language}, text, prompt)
               for task, language in [*TASK_LINES, ("SQA", "en")] for text in (False, True)}
    return {f"{task} {language} {'text' if text else 'speech'}": "SPEECH".join(map(tokenizer.decode, pieces))
            for (task, language, text), pieces in prompts.items()}
