"""Prompts: the strings of the papers byte for byte, and their ids in the two real vocabularies."""
import pytest

from speech_llm.prompts import encode_answer, encode_prompt, user_turn


SPOKEN = {"id": "tiny/1", "transcript": " The cat sleeps. ", "question": "Who sleeps?", "target": "x"}
WORDS = [  # task, language, question (2025, Table 5), suffix (2026, Table 7: two of four have a space at their end)
    ("ASR", "en", "Can you transcribe the Speech content into English text?",
     "Do not add anything else to your answer. "),
    ("ST", "de", "Können Sie den Inhalt der Rede in den deutschen Text übersetzen?",
     "Antworten Sie nur mit der Übersetzung. Fügen Sie Ihrer Antwort nichts weiter hinzu."),
    ("ST", "it", "Puoi tradurre il contenuto del discorso in testo italiano?",
     "Rispondi solo con la traduzione. Non aggiungere altro alla tua risposta."),
    ("ST", "zh", "你能把演讲内容翻译成中文吗?", "仅回复翻译。请勿在答案中添加任何其他内容。 "),
    ("SQA", "en", "Who sleeps?", ""), ("MCQ", "en", "Who sleeps?", "")]


@pytest.mark.parametrize("task, language, question, suffix", WORDS)
def test_prompt_is_the_papers_byte_for_byte(task, language, question, suffix):
    row = {**SPOKEN, "task": task, "language": language}
    assert user_turn(row) == ("Content: <speech>", f"</speech>\nQuestion: {question}\nYour answer:")
    assert user_turn(row, text=True) == (
        f"Content: <text>The cat sleeps.</text>\nQuestion: {question}\nYour answer:", "")
    assert user_turn(row, prompt="2026")[1] == f"</speech>\nQuestion: {question}\n\nYour answer:"
    assert user_turn(row, prompt="2026-zero-shot")[1] == f"</speech>\nQuestion: {question}\n{suffix}\nYour answer:"


@pytest.mark.parametrize("lines", ["\n", "\r\n", "\r", "\u2028", "\u2029", "\x85", "\v", "\f"])
def test_a_question_of_several_lines_becomes_one(lines):
    row = {**SPOKEN, "task": "MCQ", "language": "en",
           "question": f"Who sleeps?{lines}A. The cat{lines}B. The dog{lines}"}
    assert user_turn(row)[1] == "</speech>\nQuestion: Who sleeps? A. The cat B. The dog\nYour answer:"


@pytest.mark.parametrize("task, language, prompt, says", [
    ("ASR", "de", "2025", "row tiny/1: no prompt for ASR in 'de'; there is one for .*'zh'"),
    ("ST", "en", "2025", "row tiny/1: no prompt for ST in 'en'"), ("TTS", "en", "2026", "no prompt for TTS in 'en'"),
    ("ASR", "en", "2027", "prompt '2027' is not one of 2025, 2026, 2026-zero-shot")])
def test_a_prompt_that_is_not_there_is_an_error_that_names_the_row_or_the_prompt(task, language, prompt, says):
    with pytest.raises(ValueError, match=says):
        user_turn({**SPOKEN, "task": task, "language": language}, prompt=prompt)


# --- Ids, architecture.md 4.2 and 4.3.

ASR, ST = {**SPOKEN, "task": "ASR", "language": "en"}, {**SPOKEN, "task": "ST", "language": "de"}


def test_ids_of_llama(tokenizers):
    before, after = encode_prompt(tokenizers["llama"], ASR)
    # <|begin_of_text|> <|start_header_id|> user <|end_header_id|> \n\n, then Content : _< speech >
    assert before == [128000, 128006, 882, 128007, 271, 2831, 25, 366, 89325, 29]
    assert after[:3] == [524, 89325, 397]                                     # </ speech >\n
    assert after[-5:] == [128009, 128006, 78191, 128007, 271]                 # <|eot_id|>, the assistant's header
    assert after[-9] == 5380                                                  # ?\n is one token
    assert tokenizers["llama"].decode(after[-8:-5]) == "Your answer:"
    assert 16761 in encode_prompt(tokenizers["llama"], ST, text=True)[0]      # ">The" of "<text>The" is one token


def test_ids_of_qwen_in_2026(tokenizers):
    """No BOS, no think block; the blank line is one token: "?" and two newlines together (architecture 4.3)."""
    before, after = encode_prompt(tokenizers["qwen3"], ASR, prompt="2026")
    assert before == [151644, 872, 198, 2762, 25, 366, 88225, 29]
    one_newline = encode_prompt(tokenizers["qwen3"], ASR)[1]
    assert after[-8:] == [7771, 4226, 25, 151645, 198, 151644, 77091, 198] == one_newline[-8:]
    assert len(after) == len(one_newline) and [a for a, b in zip(after, one_newline) if a != b] == [1939]


@pytest.mark.parametrize("model, end", [("llama", 128009), ("qwen3", 151645)])
def test_a_text_turn_is_tokenised_whole_and_an_answer_is_stripped_and_ends_its_turn(tokenizers, model, end):
    ids, nothing = encode_prompt(tokenizers[model], ST, text=True)
    assert nothing == [] and user_turn(ST, text=True)[0] in tokenizers[model].decode(ids)
    ids = encode_answer(tokenizers[model], {"target": "  The cat.\n"})
    assert ids[-1] == end and end not in ids[:-1] and tokenizers[model].decode(ids[:-1]) == "The cat."
