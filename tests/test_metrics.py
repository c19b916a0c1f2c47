"""Normal forms, scores of texts, the judge, COMET, BERTScore, languages: by hand, and against the reference code."""
import json
import shutil
import unicodedata
from pathlib import Path

import pytest
import sacrebleu
import torch
import transformers
from conftest import PARITY, reference, vectors
from test_bad_input import refused

from metrics import bertscore, judge, language
from metrics.bleu import bleu, chrf
from metrics.chat import encode_chat
from metrics.comet import load_comet, score, sparsemax
from metrics.dev_scores import best_steps, score_answers
from metrics.error_rates import cer, character_error_rate, wer, word_error_rate
from metrics.exact import contains, exact_match
from metrics.ifeval import follows
from metrics.pairwise import agreement
from metrics.resegment import resegment
from metrics.rouge import rouge1_recall
from metrics.scores import TEXT_SCORES, score_texts
from metrics.speech_ifeval import normalize, verdict
from speech_llm.normalize import mms_normalize
from speech_llm.prompts import NOT_ANSWERABLE


@pytest.mark.parametrize("name, chosen, ours, theirs", [  # a file of reference cases, and which of them
    ("wer_cer.jsonl", {}, lambda v: [rate(v["references"], v["predictions"]) for rate in (
        word_error_rate, character_error_rate)], lambda v: [100 * v["wer"], 100 * v["cer"]]),
    ("mms_norm.jsonl", {"kwargs": {}}, lambda v: mms_normalize(v["text"], v["iso_code"]), lambda v: v["expected"]),
    ("rouge_recall.jsonl", {}, lambda v: rouge1_recall([v["reference"]], [v["prediction"]], "en") or 0,
     lambda v: 100 * v["rouge_score_rouge1"]["recall"]),                   # theirs is 0 for a reference without a word
    ("sacrebleu.jsonl", {"kind": "corpus"}, lambda v: bleu(v["refs"], v["hyps"], v["lang"]), lambda v: v["bleu"]),
    ("bergen.jsonl", {"kind": "prompt", "config": "default_qa"}, lambda v: str(judge.messages(
        v["question"], v["answer"], v["prediction"], v["has_system"])), lambda v: str(v["messages"])),
    ("bergen.jsonl", {"kind": "text_score", "options": judge.OPTIONS}, lambda v: judge.parse(v["text"]),
     lambda v: v["score"]),
    ("bergen.jsonl", {"kind": "logits_score"}, lambda v: judge.expectation(
        torch.tensor(v["option_logits"]), [1, 0.5, 0]).tolist(), lambda v: v["scores"]),
    ("kappa.jsonl", {}, lambda v: agreement(v["human"], v["llm"]), lambda v: (100 * v["agreement"], v["cohen_kappa"])),
    ("mwer_segmenter.jsonl", {}, lambda v: resegment(v["prediction"], v["reference_sentences"], v["character_level"]),
     lambda v: v["segments"]),
    ("ifeval_verifiers.jsonl", {}, lambda v: follows(v["instruction_id"], v["kwargs"], v["response"]),
     lambda v: v["expected"]),
    ("speech_ifeval_llm_step.jsonl", {"kind": "extract_result"}, lambda v: verdict(v["text"]),
     lambda v: v["expected"] and v["expected"].lower() == "yes"),
    ("speech_ifeval_llm_step.jsonl", {"kind": "asr"}, lambda v: [normalize(v["label"]), normalize(v["eval_response"]),
                                                                 word_error_rate([v["norm_label"]], [v["norm_hyp"]])],
     lambda v: [v["norm_label"], v["norm_hyp"], 100 * v["wer"]])])
def test_scores_agree_with_the_reference_code(name, chosen, ours, theirs):
    """Javanese has rules that none of the 23 languages of the rows needs."""
    for v in (v for v in vectors(name, **chosen) if v.get("iso_code") != "jav"):
        assert ours(v) == pytest.approx(theirs(v), abs=1e-9), v


@pytest.mark.parametrize("text, language, expected", [
    ("well-known: it's C:\\ `x`", "en", "well-known it's c \\ `x`"),             # ' - \ ` stay
    ("a\u2013b\u2014c 5\u20ac", "en", "a\u2013b\u2014c"),                        # dashes stay, the euro and the 5 go
    ("rock\u2019n\u2019roll", "en", "rock n'roll"),                              # a word's last curly apostrophe alone
    ("2020", "en", "2020"), ("2020.", "en", ""), ("in 2020", "en", "in"),        # only a text of digits keeps its word
    ("1st b2b 1-800 3.14", "en", "1st b2b 1-800"),
    ("(laughs) hello (aged 20)", "en", "laughs hello"),
    ("\u201cquoted\u201d  and\u00a0spaced\n", "en", "quoted and spaced"), ("a &lt;b&gt; c&nbsp;d", "en", "a b c d"),
    ("\u05d0\u05b0\u05d1", "he", "\u05d0\u05d1"), ("\u05d0\u05b0\u05d1", "en", "\u05d0\u05b0\u05d1"),    # a vowel
    ("你好，世界。", "zh", "你好 世界"), ("U\u0308", "en", "ü")])                      # not split into characters
def test_normal_forms_by_hand(text, language, expected):
    assert mms_normalize(text, language) == expected


def test_error_rates_by_hand():
    references = ["The cat sat on the mat.", "Anna has three books!"]       # 6 + 4 words
    predictions = ["the cat sits on mat", "anna has three new books"]       # 1 substituted, 1 deleted; 1 inserted
    assert wer(references, predictions, "en") == pytest.approx(30) and wer(references, ["", ""], "en") == 100
    assert wer(references, ["THE CAT, sat on; the mat?", "Anna has three books"], "en") == 0
    # 22 + 20 characters: sat -> sits 2, "the " 4, "new " 4
    assert cer(references, predictions, "en") == pytest.approx(100 * 10 / 42)
    assert cer(["ab"], ["AB, abc"], "en") == 200                            # spaces count ...
    assert cer(["你好，世界"], ["你好世"], "zh") == 25 and cer(["，8年。 雨"], ["8 年雨"], "ja") == 0    # not here


def test_a_reference_of_numbers_only_keeps_them():
    """MMS removes words of digits; a reference would be empty without them."""
    assert wer(["3 4 5"], ["3, 4, 6."], "en") == pytest.approx(100 / 3) and wer(["(2019)"], ["2019"], "en") == 0
    assert wer(["in 1990", "7."], ["in 1991", "8"], "en") == 50                    # in the first pair no number counts
    for references, predictions in [(["", " "], ["a", "b"]), ([], []), (["a"], [])]:
        refused(word_error_rate, references, predictions)
    for rate in (character_error_rate, lambda *texts: wer(*texts, "en")):
        with pytest.raises(TypeError, match="lists"):
            rate("abc", "abd")


@pytest.mark.parametrize("reference, prediction, language, value", [
    ("The cat sat.", "the CAT", "en", 2 / 3),
    ("the the cat", "the cat", "en", 2 / 3),                      # a word counts as often as it is there
    ("the cat", "the the the cat", "en", 1),                      # and no oftener
    ("Zürich", "Z. is rich", "de", 1),                            # the tokeniser cuts at the umlaut
    ("5,000", "5000", "en", 0), ("one", "", "en", 0), ("伦敦", "London", "zh", 0),
    ("无法回答。", "无法回答", "zh", 1),                              # the full stop is no character to recall
    ("安娜有3只猫", "安娜有2只狗", "zh", 4 / 6), ("好好好", "好", "zh", 1 / 3),
    ("Он живёт в Москве.", "в москве", "ru", 1 / 2), ("दिल्ली में", "दिल्ली", "hi", 1 / 2),     # other scripts: words
    ("２００８年", "2008年", "ja", 1),                              # wide digits
    ("東京タワー", "東京", "ja", 2 / 5), ("กรุงเทพ", "กรุง", "th", 4 / 7),         # no spaces: characters
    ("NATO", "NATO", "ru", 1), ("IBM", "IBM", "zh", 1)])          # another script's word
def test_rouge_recall_by_hand(reference, prediction, language, value):
    assert rouge1_recall([reference], [prediction], language) == pytest.approx(100 * value, abs=1e-9)


def test_rouge_of_a_corpus_is_the_mean_in_percent():
    assert rouge1_recall(["a b", "c", "..."], ["a", "c", "x"], "en") == 75.0          # the last has no word to recall
    refused(rouge1_recall, ["a"], [], "en")


def test_chrf_by_hand():
    """All letters and pairs of "ab" are right, 2 of the 3 letters and 1 of the 2 pairs are there; recall counts 4:1."""
    precision, recall = 1, (2/3 + 1/2) / 2
    assert chrf(["abc"], ["ab"], "en") == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))
    theirs = sacrebleu.corpus_chrf(["the cat sat"], [["the cat is here"]])
    assert chrf(["the cat is here"], ["the cat sat"], "de") == theirs.score


@pytest.mark.parametrize("language, prediction, reference, equal, inside", [
    ("en", "London.", "London", True, True), ("en", "In london!", "London", False, True),
    ("en", "", "London", False, False), ("en", "3, 4, 5.", "3 4 5", True, True),
    ("en", "In 15 days", "15", False, True), ("en", "the year (1990)", "1990", False, True),   # numbers stay
    ("de", "„Zürich“", "Zürich", True, True), ("de", "Zurich", "Zürich", False, False),
    ("zh", "答案是伦敦。", "伦敦", False, True), ("zh", "无法回答", NOT_ANSWERABLE["zh"], True, True),
    ("zh", "2008 年", "2008年", True, True), ("zh", "是 2008 年", "2008年", False, True),   # no space is an error
    ("zh", "在IBM 工作", "在 IBM工作", True, True), ("ja", "第 3 回", "第3回", True, True)])
def test_exact_match_and_contains_by_hand(language, prediction, reference, equal, inside):
    assert exact_match([reference], [prediction], language) == 100 * equal
    assert contains([reference], [prediction], language) == 100 * inside


@pytest.mark.parametrize("text, references, pieces", [
    ("the cat\nsat it purred", ["The cat sat.", "It purred."], ["the cat sat", "it purred"]),
    ("a b x c d", ["a b", "c d"], ["a b x", "c d"]),                      # an extra word stays where it is
    ("c d", ["a b", "c d"], ["", "c d"]), ("A b", ["a", "A b"], ["", "A b"]),             # case-sensitive
    # what mwerSegmenter cannot do
    ("", ["ein Satz.", "noch einer."], [".", ""]),                       # as MCIF, which feeds a "."
    ("a # b c", ["a # b", "c"], ["a # b", "c"]),
    ("a b c", ["a", "", "b c", " "], ["a", "", "b c", ""]), ("a b", ["", ""], ["", "a b"]),
    ("a\u00a0b c", ["a\u00a0b", "c"], ["a\u00a0b", "c"])])                # part of the word
def test_resegmentation_by_hand(text, references, pieces):
    assert resegment(text, references) == pieces


def test_resegmentation_of_chinese_is_by_characters():
    assert resegment("你好。再见", ["你好。", "再见。"], characters=True) == ["你好。", "再见"]
    assert resegment("听 Easy on Me\n好", ["听Easy on Me", "好"], characters=True) == ["听EasyonMe", "好"]
    refused(resegment, "a", [], says="no reference")
    with pytest.raises(TypeError, match="list"):
        resegment("a", "a b")


def test_the_two_normal_forms_of_a_text_are_equal_for_every_score():
    text = "Die Größe für Müller über Äpfel ist höher."
    other = unicodedata.normalize("NFD", text)
    for name in set(TEXT_SCORES) - {"language"}:
        perfect, _ = score_texts(name, [text], [text], "de")
        assert perfect == pytest.approx(0 if name in ("WER", "CER") else 100)
        for pair in (([other], [text]), ([text], [other]), ([other], [other])):
            assert score_texts(name, *pair, "de")[0] == perfect, name


@pytest.mark.parametrize("name", ["WER", "CER", "EM", "CONTAINS", "ROUGE-1"])
def test_a_reference_of_which_nothing_is_left_is_counted_and_the_rest_is_scored(name):
    scored, _ = score_texts(name, ["Rome"], ["In Rome"], "en")
    assert score_texts(name, ["...", "Rome", "?!"], ["anything", "In Rome", ""], "en") == (scored, [0, 2])
    assert score_texts(name, ["...", "?!"], ["a", "b"], "en") == (None, [0, 1])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(language, "available", lambda: False)
    language.load_identifier.cache_clear()
    refused(language.identify, ["Ciao."], says="pip install py3langid")


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


@pytest.mark.parametrize("text, score", [
    ("Yes", 1), ("No", 0), ("Yes.", 1), ("yes", -100), ("", -100), ("Nothing", 0), ("Yes, not No", -100),
    ("<think>Yes or No?</think>No", 0), ("<think>Yes", -100), ("thought without a beginning</think>\n\nYes", 1)])
def test_written_verdicts_by_hand(text, score):
    assert judge.parse(text) == score


ITEMS = [["Who has a cat?", "Anna", "Anna."],
         ["How many books are needed by Tuesday?", "seven", "It is seven or eight."],
         ["Wo?", "London", ""], ["谁有猫？", "Anna", "安娜有三只猫。"]]
# a judge's chat template; a comment ends it, or jinja would cut its last line break off
TEMPLATE = ("{# system and user #}{{ bos_token }}{% for m in messages %}"
            "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>{% endfor %}"
            "<|start_header_id|>assistant<|end_header_id|>\n\n{# end #}")


def load(llama, mode, template=TEMPLATE):
    """Return a judge, which is the tiny LLM with a chat template, its model and its tokenizer."""
    ask = judge.load_judge(llama, mode, torch.device("cpu"))
    ask.args[1].chat_template = template
    return ask, *ask.args


@pytest.mark.parametrize("template", [TEMPLATE, TEMPLATE.replace("system and ", "")])
def test_probability_is_that_of_the_first_token(llama, template):
    """P(Yes) is Yes / (Yes + No) of the first token after each prompt, and a batch changes nothing."""
    ask, model, tokenizer = load(llama, "probability", template)
    values = ask(ITEMS)
    no, yes = (tokenizer.encode(word, add_special_tokens=False)[0] for word in ("No", "Yes"))
    for item, value in zip(ITEMS, values):
        ids = encode_chat(tokenizer, judge.messages(*item, "system" in template), add_special_tokens=True)
        logits = model(torch.tensor([ids])).logits[0, -1]
        assert value == pytest.approx((logits[yes] - logits[no]).sigmoid().item(), abs=1e-5)
        assert ask([item]) == pytest.approx([value], abs=1e-5)
    assert len({round(value, 3) for value in values}) == len(ITEMS)


def test_text_mode_reads_the_template_s_prompts(llama):
    """They have the tokenizer's special tokens and are padded on the left. What is written: test_pairwise.py."""
    ask, _, tokenizer = load(llama, "text")
    inputs = judge.tokenize(tokenizer, ITEMS, "cpu")
    text = tokenizer.apply_chat_template(judge.messages(*ITEMS[0], True), add_generation_prompt=True, tokenize=False)
    assert inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist() == tokenizer(text)["input_ids"]
    assert (inputs["attention_mask"].diff() >= 0).all() and inputs["attention_mask"][:, -1].all()
    assert set(ask(ITEMS)) <= {0, 1, -100} and judge.accuracy([0.5, 0.25]) == (37.5, 0)
    assert judge.accuracy([1, 0, 1, -100]) == (pytest.approx(200 / 3), 25) and judge.accuracy([-100]) == (0, 100)


def test_judges_that_cannot_judge(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    refused(judge.load_judge, str(tmp_path / "base"), "text", torch.device("cpu"), says="no chat template")
    refused(judge.load_judge, "nobody/nothing", "text", torch.device("cpu"), says="hf download nobody/nothing")


TINY = PARITY / "comet_tiny"


@pytest.fixture
def expected():
    """Return {model: its "data" and the "scores" that unbabel-comet gave}."""
    return json.loads(reference(TINY / "expected.json").read_text(encoding="utf-8"))


def test_sparsemax_by_hand():
    assert sparsemax(torch.tensor([1.0, 0.8, -1.0])).tolist() == pytest.approx([0.6, 0.4, 0.0])   # tau = 0.4
    assert sparsemax(torch.tensor([0.0, 5.0])).tolist() == [0.0, 1.0]
    assert sparsemax(torch.zeros(4)).tolist() == [0.25] * 4


@pytest.mark.parametrize("name, batch_size", [("da_sparsemax", 1), ("da_sparsemax", 16), ("kiwi_softmax", 2)])
def test_agrees_with_unbabel_comet(expected, name, batch_size):
    model = load_comet(TINY / f"{name}.pt", encoder=TINY / "encoder")
    values = score(model, expected[name]["data"], batch_size)
    assert values == pytest.approx(expected[name]["scores"], abs=1e-6)
    assert sum(values) / len(values) == pytest.approx(expected[name]["system_score"], abs=1e-6)
    assert score(model, []) == []


def test_reads_lightning_folders_and_safetensors(expected, tmp_path):
    from safetensors.torch import save_file
    state = torch.load(TINY / "kiwi_softmax.pt", weights_only=True)
    (tmp_path / "checkpoints").mkdir()
    lightning = {"state_dict": {**state, "hidden2tag.weight": torch.zeros(2, 32)}, "epoch": 1}
    torch.save(lightning, tmp_path / "checkpoints" / "model.ckpt")
    save_file(state, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        values = score(load_comet(path, encoder=TINY / "encoder"), expected["kiwi_softmax"]["data"])
        assert values == pytest.approx(expected["kiwi_softmax"]["scores"], abs=1e-6)


def test_refuses_other_weights(expected, tmp_path):
    refused(load_comet, tmp_path / "none.ckpt", says="hf download")
    state, gamma = torch.load(TINY / "da_sparsemax.pt", weights_only=True), "layerwise_attention.gamma"
    layer = "layerwise_attention.scalar_parameters.4"                        # one more than the encoder has
    for content, says in (({"weight": torch.zeros(1)}, "no COMET estimator"),
                          ({"state_dict": {}, "callbacks": {Path: 1}}, "tensors alone"),
                          ({**state, "estimator.ff.0.weight": torch.zeros(2, 7)}, "the estimator reads 7 features"),
                          ({name: state[name] for name in state if name != gamma}, gamma),
                          ({**state, layer: torch.zeros(1)}, layer)):
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=says):
            load_comet(tmp_path / "weights.pt", encoder=TINY / "encoder")


def test_bertscore_runs_the_package(tmp_path):
    """On a random BERT. An empty side has the score 0 before rescaling, which the package would not give."""
    bert_score = pytest.importorskip("bert_score")
    letters = "abcdefghijklmnopqrstuvwxyz.,äöü猫"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2,
                                     num_attention_heads=2, intermediate_size=32, initializer_range=0.5)
    for part in (transformers.BertTokenizer(str(tmp_path / "vocab.txt")), transformers.BertModel(config)):
        part.save_pretrained(tmp_path)
    pairs = [["anna has a cat", "anna has a cat"], ["a cat", "anna has a dog, or two"], ["", "anna"], ["a" * 600, "b"],
             ["abcd", "  "], ["\n", ""]]
    f1 = bertscore.load_bertscore("en", str(tmp_path), 2, "cpu")         # no baseline for such a model: raw
    values = f1(pairs)
    assert values[0] == pytest.approx(1) and 0 < values[1] < 0.999 and [values[n] for n in (2, 4, 5)] == [0, 0, 0]
    assert values == pytest.approx([f1([pair])[0] for pair in pairs], abs=1e-6)
    assert f1([["Mu\u0308ller", "Müller"]]) == pytest.approx([1])
    (tmp_path / "baseline.tsv").write_text("LAYER,P,R,F\n0,0,0,0\n1,0,0,0\n2,0.1,0.2,0.25\n")
    scorer = bert_score.BERTScorer(str(tmp_path), 2, lang="en", rescale_with_baseline=True,
                                   baseline_path=str(tmp_path / "baseline.tsv"))
    scorer._tokenizer.model_max_length = 512
    assert bertscore.f1(scorer, pairs) == pytest.approx([(x - 0.25) / 0.75 for x in values], abs=1e-6)
    refused(bertscore.load_bertscore, "en", "nobody/nothing", 2, "cpu", says="hf download nobody/nothing")


def test_languages_by_hand():
    """One of the four languages of the tasks, or of all 23 if another one is asked for."""
    pytest.importorskip("py3langid", reason="py3langid is not installed")
    sentences = {"en": "The train leaves on Friday.", "de": "Der Zug fährt am Freitag ab.",
                 "it": "Il treno parte venerdì da Milano.", "zh": "火车星期五出发。"}
    assert language.identify(sentences.values()) == list(sentences)
    assert language.identify(["", "42.", "1,5 %"]) == [""] * 3           # no letter, no language
    assert language.identify([sentences["de"]], ("en", "it"))[0] in ("en", "it")
    texts = ["Dit is een korte zin in het Nederlands.", "This is a short English sentence.", "これは日本語の文です。", "7"]
    assert [language.share_in_language(texts, code) for code in ("nl", "ja", "en", "uk")] == [25, 25, 25, 0]
    refused(language.share_in_language, [], "en", says="no texts")
