"""Scores of texts, the judge and BERTScore: by hand, and against the reference code."""
import json
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest
import sacrebleu
import torch
from references import PARITY, reference, vectors

from metrics import bertscore, judge
from metrics.bleu import bleu, chrf
from metrics.chat import encode_chat
from metrics.dev_scores import best_steps, score_answers
from metrics.exact import contains, exact_match
from metrics.rouge import recall, rouge1_recall
from metrics.scores import TEXT_SCORES, score_texts
from speech_llm.prompts import NOT_ANSWERABLE


# --- ROUGE-1 recall.

@pytest.mark.parametrize("reference, prediction, language, value", [
    ("The cat sat.", "the CAT", "en", 2 / 3),
    ("the the cat", "the cat", "en", 2 / 3),                      # a word counts as often as it is there
    ("the cat", "the the the cat", "en", 1),                      # and no oftener
    ("Zürich", "Z. is rich", "de", 1),                            # the tokeniser cuts at the umlaut
    ("5,000", "5000", "en", 0),
    ("...", "...", "en", 0), ("one", "", "en", 0),
    ("无法回答。", "无法回答", "zh", 1),                              # the full stop is no character to recall
    ("安娜有3只猫", "安娜有2只狗", "zh", 4 / 6),
    ("好好好", "好", "zh", 1 / 3),
    ("伦敦", "London", "zh", 0),
    ("Он живёт в Москве.", "в москве", "ru", 1 / 2),              # other scripts: whole words
    ("서울 특별시", "서울", "ko", 1 / 2), ("दिल्ली में", "दिल्ली", "hi", 1 / 2),
    ("東京タワー", "東京", "ja", 2 / 5), ("กรุงเทพ", "กรุง", "th", 4 / 7),         # no spaces: characters
    ("القاهرة", "القاهرة", "ar", 1), ("NATO", "NATO", "ru", 1), ("IBM", "IBM", "zh", 1)])      # another script's word
def test_rouge_recall_by_hand(reference, prediction, language, value):
    assert recall(reference, prediction, language) == pytest.approx(value, abs=0)


def test_rouge_of_a_corpus_is_the_mean_in_percent():
    assert rouge1_recall(["a b", "c", "..."], ["a", "c", "x"], "en") == 75.0          # the last has no word to recall
    assert rouge1_recall(["..."], ["x"], "en") is None
    with pytest.raises(ValueError):
        rouge1_recall(["a"], [], "en")


def test_rouge_agrees_with_rouge_score():
    for v in vectors("rouge_recall.jsonl"):
        assert recall(v["reference"], v["prediction"], "en") == v["rouge_score_rouge1"]["recall"]


# --- BLEU and chrF.

def test_bleu_agrees_with_sacrebleu_2_3_1():
    for v in vectors("sacrebleu.jsonl", kind="corpus"):
        assert bleu(v["refs"], v["hyps"], v["lang"]) == v["bleu"]


def test_chrf_by_hand():
    """All letters and pairs of "ab" are right, 2 of the 3 letters and 1 of the 2 pairs are there; recall counts 4:1."""
    precision, recall_ = 1, (2/3 + 1/2) / 2
    assert chrf(["abc"], ["ab"], "en") == pytest.approx(100 * 5 * precision * recall_ / (4 * precision + recall_))
    theirs = sacrebleu.corpus_chrf(["the cat sat"], [["the cat is here"]])
    assert chrf(["the cat is here"], ["the cat sat"], "de") == theirs.score


# --- Exact match and contains.

@pytest.mark.parametrize("language, prediction, reference, equal, inside", [
    ("en", "London.", "London", True, True),
    ("en", "In london!", "London", False, True),
    ("en", "", "London", False, False),
    ("en", "In 15 days", "15", False, True),                                          # numbers stay
    ("en", "3, 4, 5.", "3 4 5", True, True),
    ("de", "„Zürich“", "Zürich", True, True),
    ("de", "Zurich", "Zürich", False, False),
    ("zh", "答案是伦敦。", "伦敦", False, True),
    ("zh", "无法回答", NOT_ANSWERABLE["zh"], True, True),
    ("zh", "2008 年", "2008年", True, True), ("zh", "是 2008 年", "2008年", False, True),   # no space is an error
    ("zh", "在IBM 工作", "在 IBM工作", True, True), ("ja", "第 3 回", "第3回", True, True)])
def test_exact_match_and_contains_by_hand(language, prediction, reference, equal, inside):
    assert exact_match([reference], [prediction], language) == 100 * equal
    assert contains([reference], [prediction], language) == 100 * inside


# --- What all scores of texts share.

def test_the_two_normal_forms_of_a_text_are_equal_for_every_score():
    text = "Die Größe für Müller über Äpfel ist höher."
    other = unicodedata.normalize("NFD", text)
    for name in set(TEXT_SCORES) - {"language"}:
        perfect, _ = score_texts(name, [text], [text], "de")
        assert perfect == pytest.approx(0 if name in ("WER", "CER") else 100)
        for pair in (([other], [text]), ([text], [other]), ([other], [other])):
            assert score_texts(name, *pair, "de")[0] == perfect, name


@pytest.mark.parametrize("name", ["WER", "CER", "EM", "CONTAINS", "ROUGE-1"])
def test_a_reference_of_which_nothing_is_left_is_named_and_the_rest_is_scored(name):
    scored, _ = score_texts(name, ["Rome"], ["In Rome"], "en")
    assert score_texts(name, ["...", "Rome", "?!"], ["anything", "In Rome", ""], "en") == (scored, [0, 2])
    assert score_texts(name, ["...", "?!"], ["a", "b"], "en") == (None, [0, 1])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("metrics.language.available", lambda: False)
    with pytest.raises(ImportError, match="pip install py3langid"):
        score_texts("language", ["x"], ["x"], "en")
    monkeypatch.setitem(sys.modules, "MeCab", None)
    with pytest.raises(ImportError, match=r"into ja it needs MeCab; run: pip install 'sacrebleu\[ja\]'"):
        bleu(["今日は良い天気"], ["今日"], "ja")


# --- Scores of the dev set.

def test_dev_scores_of_several_languages_are_apart_and_averaged():
    rows = [{"task": task, "language": language, "target": target} for task, language, target in [
        ("ASR", "en", "one two"), ("ASR", "de", "eins zwei drei vier"), ("ASR", "zh", "一二三四"),
        ("ST", "de", "Anna hat drei Katzen."), ("SQA", "en", "Rome"), ("SQA", "zh", "2008年"), ("SQA", "en", "...")]]
    scores = score_answers(rows, ["one three", "eins zwei drei vier", "一二三", "Anna hat drei Katzen.", "In Rome.",
                                  "2009 年", "x"])
    assert scores["WER en"] == 50 and scores["WER de"] == 0 and scores["CER zh"] == 25 and "WER zh" not in scores
    assert scores["WER"] == 25 and scores["BLEU de"] == scores["BLEU"] == pytest.approx(100)
    assert scores["SQA"] == 50                                               # of the two that have a reference
    assert score_answers(rows[:1], ["one two"]) == {"WER en": 0, "WER": 0} and score_answers(rows[-1:], ["x"]) == {}


def test_the_best_steps_of_the_dev_scores():
    """A tie: the first."""
    assert best_steps([{"step": 4, "WER": 9.0, "WER en": 9.0}, {"step": 8, "WER": 7.0, "WER en": 7.0}]) == {
        "ASR": 8, "all": 8}
    assert best_steps([{"step": 1, "BLEU": 20.0, "WER": 12.0, "SQA": 1.0},
                       {"step": 2, "BLEU": 25.0, "WER": 15.0, "SQA": 0.5},
                       {"step": 3, "BLEU": 25.0, "WER": 11.0, "SQA": 0.0}]) == {"ST": 2, "ASR": 3, "SQA": 1, "all": 3}


# --- The judge.

def test_prompts_agree_with_bergen():
    for v in vectors("bergen.jsonl", kind="prompt", config="default_qa"):
        assert judge.messages(v["question"], v["answer"], v["prediction"], v["has_system"]) == v["messages"]


def test_scores_agree_with_bergen():
    for v in vectors("bergen.jsonl", kind="text_score"):
        assert judge.parse(v["text"], v["options"]) == v["score"], v["text"]
    for v in vectors("bergen.jsonl", kind="logits_score"):
        assert v["sorted_options"] == sorted(v["sorted_options"])
        assert judge.expectation(torch.tensor(v["option_logits"]), [1, 0.5, 0]).tolist() == v["scores"]


@pytest.mark.parametrize("text, score", [
    ("Yes", 1), ("No", 0), ("Yes.", 1), ("yes", -100), ("", -100), ("Nothing", 0), ("Yes, not No", -100),
    ("<think>Yes or No?</think>No", 0), ("<think>Yes", -100), ("thought without a beginning</think>\n\nYes", 1)])
def test_written_verdicts_by_hand(text, score):
    assert judge.parse(text) == score


def test_accuracy_leaves_out_what_cannot_be_parsed():
    assert judge.accuracy([1, 0, 1, -100]) == (pytest.approx(200 / 3), 25.0)
    assert judge.accuracy([0.5, 0.25]) == (37.5, 0.0)
    assert judge.accuracy([-100]) == (0.0, 100.0)


TURN = "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>"
TEMPLATE = ("{{ bos_token }}{% for m in messages %}" + TURN + "{% endfor %}"
            "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")
ITEMS = [["Who has a cat?", "Anna", "Anna."],
         ["How many books are needed by Tuesday?", "seven", "It is seven or eight."],
         ["Wo?", "London", ""], ["谁有猫？", "Anna", "安娜有三只猫。"]]


@pytest.fixture(scope="module")
def llms(llama, tmp_path_factory):
    """The tiny LLM with a chat template: one that knows a system turn, one that does not -> their folders."""
    from transformers import AutoTokenizer
    folders = {}
    for name, template in (("system", "{# system and user #}" + TEMPLATE), ("alone", TEMPLATE)):
        folders[name] = str(tmp_path_factory.mktemp("judges") / name)
        shutil.copytree(llama, folders[name])
        tokenizer = AutoTokenizer.from_pretrained(llama)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folders[name])
    return folders


def probability_by_hand(ask, chat):
    """Return Yes / (Yes + No) of the first token that a judge writes after a chat."""
    model, tokenizer = ask.args
    logits = model(torch.tensor([encode_chat(tokenizer, chat, add_special_tokens=True)])).logits[0, -1]
    no, yes = (logits[tokenizer.encode(word, add_special_tokens=False)[0]].item() for word in ("No", "Yes"))
    return 1 / (1 + 2.718281828459045 ** (no - yes))


@pytest.mark.parametrize("name", ["system", "alone"])
def test_probability_is_that_of_the_first_token(llms, name):
    ask = judge.load_judge(llms[name], "probability", torch.device("cpu"))
    values = ask(ITEMS)
    for item, value in zip(ITEMS, values):
        assert value == pytest.approx(probability_by_hand(ask, judge.messages(*item, name == "system")), abs=1e-5)
        assert ask([item]) == pytest.approx([value], abs=1e-5)                           # a batch changes nothing
    assert len({round(value, 3) for value in values}) == len(ITEMS)


THINKER = TEMPLATE.replace("assistant<|end_header_id|>\n\n{% endif %}",
                           "assistant<|end_header_id|>\n\n{% if enable_thinking is false %}<think>\n\n</think>\n\n"
                           "{% elif not enable_thinking is defined %}<think>\n{% endif %}{% endif %}")
OPENER = TEMPLATE.replace("assistant<|end_header_id|>\n\n{% endif %}",
                          "assistant<|end_header_id|>\n\n<think>\n{% endif %}")


@pytest.mark.parametrize("template", [THINKER, OPENER])
def test_a_judge_is_read_after_an_empty_thought(llms, template):
    """Qwen3's template closes the thought when it is asked to, that of an R1 distillation opens one always."""
    ask = judge.load_judge(llms["alone"], "probability", torch.device("cpu"))
    tokenizer = ask.args[1]
    tokenizer.chat_template = template
    chat = judge.messages(*ITEMS[0], False)
    end = "<|start_header_id|>assistant<|end_header_id|>\n\n<think>\n\n</think>\n\n"
    assert tokenizer.decode(encode_chat(tokenizer, chat, add_special_tokens=True)).endswith(end)
    assert ask(ITEMS[:1]) == pytest.approx([probability_by_hand(ask, chat)], abs=1e-5)


def test_a_judge_s_prompts_are_the_template_s_with_special_tokens_and_padded_on_the_left(llms):
    _, tokenizer = judge.load_judge(llms["system"], "probability", torch.device("cpu")).args
    inputs = judge.tokenize(tokenizer, ITEMS, "cpu")
    text = tokenizer.apply_chat_template(judge.messages(*ITEMS[0], True), add_generation_prompt=True, tokenize=False)
    assert inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist() == tokenizer(text)["input_ids"]
    assert (inputs["attention_mask"].diff() >= 0).all() and inputs["attention_mask"][:, -1].all()    # padded left


def test_text_mode_writes_greedily_and_a_batch_changes_nothing(llms, monkeypatch):
    ask = judge.load_judge(llms["system"], "text", torch.device("cpu"))
    assert set(ask(ITEMS)) <= {0, 1, -100}
    monkeypatch.setattr(judge, "parse", lambda text: text)
    model, tokenizer = ask.args
    written = ask(ITEMS)
    assert written == [ask([item])[0] for item in ITEMS] and len(set(written)) > 1
    ids = judge.tokenize(tokenizer, ITEMS[1:2], "cpu")["input_ids"]
    greedy = model.generate(input_ids=ids, max_new_tokens=judge.MAX_NEW_TOKENS, do_sample=False)[0, ids.shape[1]:]
    assert written[1] == tokenizer.decode(greedy, skip_special_tokens=True)


def test_judges_that_cannot_judge(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        judge.load_judge(str(tmp_path / "base"), "text", torch.device("cpu"))
    with pytest.raises(FileNotFoundError, match="hf download nobody/nothing"):
        judge.load_judge("nobody/nothing", "text", torch.device("cpu"))


# --- BERTScore.

def test_models_and_baselines_are_the_package_s():
    bert_score = pytest.importorskip("bert_score")
    from bert_score.utils import lang2model, model2layers
    wanted = {**{f"{lang}/{model}": layer for lang, (model, layer) in bertscore.ORGANISERS.items()},
              **{f"{lang}/{bertscore.XLMR[0]}": bertscore.XLMR[1] for lang in bertscore.ORGANISERS}}
    assert {lang: (lang2model[lang], model2layers[lang2model[lang]]) for lang in bertscore.ORGANISERS
            } == bertscore.ORGANISERS
    measured = json.loads(reference(PARITY / "bertscore_baselines.json").read_text())
    assert {name: v["layer"] for name, v in measured.items()} == wanted
    for name, v in measured.items():
        file = Path(bert_score.__file__).parent / "rescale_baseline" / f"{name}.tsv"
        assert file.exists() is (v["baseline"] is not None)
        if v["baseline"]:
            line = file.read_text().splitlines()[1 + v["layer"]].split(",")
            assert [float(x) for x in line] == [v["layer"], *v["baseline"]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A random BERT of two narrow layers over letters -> its folder."""
    import transformers
    folder = tmp_path_factory.mktemp("bert")
    letters = "abcdefghijklmnopqrstuvwxyz.,äöü猫"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2,
                                     num_attention_heads=2, intermediate_size=32, initializer_range=0.5)
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


def test_bertscore_runs_the_package(bert, tmp_path):
    """An empty side has the score 0 before rescaling, which the package would not give."""
    bert_score = pytest.importorskip("bert_score")
    pairs = [["anna has a cat", "anna has a cat"], ["a cat", "anna has a dog, or two"], ["", "anna"], ["a" * 600, "b"],
             ["abcd", "  "], ["\n", ""]]
    f1 = bertscore.load_bertscore("en", bert, 2, "cpu")          # no baseline for such a model: raw
    values = f1(pairs)
    assert values[0] == pytest.approx(1) and 0 < values[1] < 0.999 and [values[n] for n in (2, 4, 5)] == [0, 0, 0]
    assert values == pytest.approx([f1([pair])[0] for pair in pairs], abs=1e-6)
    assert f1([["Mu\u0308ller", "Müller"]]) == pytest.approx([1])
    (tmp_path / "baseline.tsv").write_text("LAYER,P,R,F\n0,0,0,0\n1,0,0,0\n2,0.1,0.2,0.25\n")
    scorer = bert_score.BERTScorer(bert, 2, lang="en", rescale_with_baseline=True,
                                   baseline_path=str(tmp_path / "baseline.tsv"))
    scorer._tokenizer.model_max_length = 512
    assert bertscore.f1(scorer, pairs) == pytest.approx([(x - 0.25) / 0.75 for x in values], abs=1e-6)


def test_bertscore_says_what_is_missing(monkeypatch):
    pytest.importorskip("bert_score")
    with pytest.raises(FileNotFoundError, match="hf download nobody/nothing"):
        bertscore.load_bertscore("en", "nobody/nothing", 2, "cpu")
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(ImportError, match="pip install bert-score"):
        bertscore.load_bertscore("en", "roberta-large", 17, "cpu")


# --- The language of a text.

def test_a_share_in_a_language_beyond_the_four_is_chosen_among_the_23():
    pytest.importorskip("py3langid", reason="py3langid is not installed")
    from metrics.language import share_in_language
    texts = ["Dit is een korte zin in het Nederlands.", "This is a short English sentence.", "これは日本語の文です。", "7"]
    assert share_in_language(texts, "nl") == share_in_language(texts, "ja") == share_in_language(texts, "en") == 25
    assert share_in_language(texts, "uk") == 0
