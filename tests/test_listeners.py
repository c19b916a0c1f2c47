"""The multilingual listeners: window Q-Former, prompts and mixtures."""
import pytest
import torch
import transformers

import merge_sft
from data.covost2 import INTO_ENGLISH
from speech_llm.constants import configure
from speech_llm.prompts import user_turn
from speech_llm.qformer import QFormer, start_from_bert
from speech_llm.rows import ALL_LANGUAGES


ROW = {"id": "x/1", "utterance": "x/1", "task": "SQA", "language": "it", "transcript": "Chi sei?",
       "question": "Chi sei?"}


def small_qformer(dropout=0.0):
    torch.manual_seed(0)
    return QFormer(width=12, llm_width=20, layers=2, heads=2, ffn=24, dropout=dropout, middle=16)


# --- The window Q-Former.

def test_the_qformer_of_the_paper_has_20478720_parameters():
    """At Whisper large-v3's width, as counted in the published code; with its norm and the map to Aya 23,631,104."""
    with torch.device("meta"):
        qformer = QFormer(width=1280, llm_width=4096)
    whole = sum(p.numel() for p in qformer.parameters())
    outside = sum(p.numel() for part in (qformer.norm, qformer.output) for p in part.parameters())
    assert (whole, whole - outside) == (23_631_104, 20_478_720)


def test_a_window_is_17_frames_and_30_seconds_are_88():
    assert [QFormer.slots(frames) for frames in (1, 17, 25, 26, 34, 42, 43, 1500)] == [1, 1, 1, 2, 2, 2, 3, 88]


def test_a_batch_of_mixed_lengths_equals_single_samples():
    qformer = small_qformer(dropout=0.1).eval()
    frames = [torch.randn(n, 12) for n in (60, 5, 26, 25, 1)]
    lengths = torch.tensor([len(f) for f in frames])
    padded = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)
    together = qformer(padded, lengths)
    for row, alone in zip(together, frames):
        single = qformer(alone[None], torch.tensor([len(alone)]))[0]
        assert torch.allclose(row[:len(single)], single, atol=1e-6)
        assert len(single) == QFormer.slots(len(alone))
    padded[2, 26:] = torch.nan                                           # what lies beyond a sample is never looked at
    assert torch.allclose(qformer(padded.nan_to_num(1e4), lengths)[2, :2], together[2, :2], atol=1e-6)


def test_a_window_sees_its_own_frames_only():
    qformer, frames = small_qformer().eval(), torch.randn(1, 51, 12)
    first = qformer(frames, torch.tensor([51]))
    frames[:, 17:34] = torch.randn(17, 12)
    changed = (qformer(frames, torch.tensor([51])) - first).abs().amax(2)[0] > 1e-6
    assert changed.tolist() == [False, True, False]


def test_gradients_are_finite_where_a_sample_is_much_shorter_than_its_batch():
    qformer = small_qformer()
    qformer(torch.randn(2, 170, 12), torch.tensor([170, 3]))[1, 0].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in qformer.parameters() if p.grad is not None)
    assert qformer.query.grad.abs().sum() > 0


def test_the_qformer_is_that_of_blip2():
    """SALMONN's is BLIP-2's with cross-attention in every layer; transformers' own gives the same vector."""
    ours = small_qformer().eval()
    theirs = transformers.Blip2QFormerModel(transformers.Blip2QFormerConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, encoder_hidden_size=12,
        cross_attention_frequency=1, layer_norm_eps=1e-12)).eval()
    names = {"attention.output.dense": "self_attn.out_proj", "attention.output.LayerNorm": "norm1",
             "crossattention.output.dense": "multihead_attn.out_proj", "crossattention.output.LayerNorm": "norm2",
             "intermediate_query.dense": "linear1", "output_query.dense": "linear2", "output_query.LayerNorm": "norm3"}
    with torch.no_grad():
        theirs.layernorm.load_state_dict(ours.query_norm.state_dict())
        for mine, layer in zip(ours.layers, theirs.encoder.layer):
            for name, own in names.items():
                layer.get_submodule(name).load_state_dict(mine.get_submodule(own).state_dict())
            own = mine.self_attn
            for n, name in enumerate(("query", "key", "value")):
                part = slice(16 * n, 16 * n + 16)
                layer.get_submodule(f"attention.attention.{name}").weight.copy_(own.in_proj_weight[part])
                layer.get_submodule(f"attention.attention.{name}").bias.copy_(own.in_proj_bias[part])
                cross = layer.get_submodule(f"crossattention.attention.{name}")
                cross.weight.copy_(getattr(mine.multihead_attn, f"{name[0]}_proj_weight"))
                cross.bias.copy_(mine.multihead_attn.in_proj_bias[part])
        frames = torch.randn(1, 17, 12)
        expected = theirs(query_embeds=ours.query[None], encoder_hidden_states=ours.norm(frames)).last_hidden_state
        assert torch.allclose(ours(frames, torch.tensor([17])), ours.output(expected), atol=1e-5)


def test_bert_is_loaded_where_it_fits(tmp_path):
    """26 tensors: the first norm's 2 and 12 of each layer; fresh are the query, cross-attention and the two ends."""
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=3,
                                                          num_attention_heads=2, intermediate_size=24))
    bert.save_pretrained(tmp_path / "bert")
    qformer = small_qformer()
    assert start_from_bert(qformer, str(tmp_path / "bert")) == (26, 21)
    layer = bert.encoder.layer[1]
    assert torch.equal(qformer.layers[1].linear1.weight, layer.intermediate.dense.weight)
    assert torch.equal(qformer.layers[1].self_attn.in_proj_weight[16:32], layer.attention.self.key.weight)
    assert torch.equal(qformer.query_norm.bias, bert.embeddings.LayerNorm.bias)
    wide = QFormer(width=12, llm_width=20, layers=2, heads=2, ffn=32, middle=16)           # another feed-forward width
    assert start_from_bert(wide, str(tmp_path / "bert")) == (20, 27)


# --- The prompt.

def test_the_question_is_what_is_spoken():
    """(A.6) no text beside a spoken question, the paper's instruction beside ASR."""
    assert user_turn(ROW, prompt="listeners") == ("<Speech>", "</Speech>")
    assert user_turn({**ROW, "task": "ASR"}, prompt="listeners") == ("<Speech>", "</Speech> Transcribe this utterance")
    translate = user_turn({**ROW, "task": "ST", "language": "en"}, prompt="listeners")
    assert translate == ("<Speech>", "</Speech> Translate this utterance into English")
    assert user_turn({**ROW, "question": "Who?"}, prompt="listeners") == ("<Speech>", "</Speech> Who?")
    assert user_turn(ROW, True, "listeners") == ("Chi sei?", "")           # the cascade: the transcript alone
    assert user_turn({**ROW, "task": "ST", "language": "en"}, True, "listeners") == (
        "Chi sei?\nTranslate this utterance into English", "")
    with pytest.raises(ValueError, match="row x/1: no prompt to translate into 'ko'"):
        user_turn({**ROW, "task": "ST", "language": "ko"}, prompt="listeners")


# --- The mixtures.

def test_the_mixtures_of_the_listeners():
    """(section 6) languages alike, 23 or ten of them; translation at most a fifth; AST of the ten from the ten."""
    ten = {"en", "fr", "nl", "tr", "de", "ar", "es", "ru", "id", "pl"}
    for page, languages in {"listeners": {*ALL_LANGUAGES}, "listeners_ast": {*ALL_LANGUAGES}, "listeners_ten": ten,
                            "listeners_ten_ast": ten}.items():
        c = stage_c(page)
        assert {*c.mixture["SQA"][1]} == languages and {*c.mixture["SQA"][1].values()} == {1 / len(languages)}
        assert c.mixture.get("ST", [0])[0] == (0.2 if page.endswith("ast") else 0)
        assert c.batch * c.accumulate == 256                              # Table 5
        into_english = {corpus[len("covost2-"):-len("_en")] for corpus in c.corpora.split(",")[1:]}
        assert into_english == ({*INTO_ENGLISH} & languages if page.endswith("ast") else set())
    for page, languages in {"listeners_align": {*ALL_LANGUAGES}, "listeners_ten_align": ten}.items():
        c = stage_c(page)
        assert {*c.mixture} == {"ASR"} and {*c.mixture["ASR"][1]} == languages
        assert c.lora == "random" and c.batch * c.accumulate == 128


def stage_c(page):
    return configure(merge_sft.Config, "merge_sft", ["--preset", page])
