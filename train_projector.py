"""
Stage A: train the speech projector, through the frozen LLM (2025, section 3) or on the LLM's embedding table alone
(SpeechMapper; 2026, section 3).

    python train_projector.py --preset tiny                    # A.1: ASR and ST; two minutes on 2 cores
    python train_projector.py --preset iwslt25                 # one A100-80GB; the paper reports 4.6 days
    torchrun --nproc_per_node 4 train_projector.py --preset iwslt26                # the paper reports 2 days

reads   <work>/rows/<corpus>/{train,dev}.jsonl, <work>/features/..., the LLM
writes  <work>/<run>/projector/: see speech_llm/run.py

The splice and the loss that the stages B and C also train with are defined here.
"""
import os
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from metrics.dev_scores import best_steps, score_answers
from speech_llm.batches import PADDING, Batch, micro_batches, padding_mask
from speech_llm.cache import load_rows
from speech_llm.constants import configure, locate, mixed_precision, next_command, pick_device
from speech_llm.decode import generate
from speech_llm.draws import draw, draw_frames, pick_validation
from speech_llm.llm import (decode_text, embedding_scale, load_llm, load_table, load_tokenizer, logits_at,
                            stop_ids)
from speech_llm.prompts import encode_answer, encode_prompt, prompts_of
from speech_llm.qformer import QFormer, start_from_bert
from speech_llm.rows import corpus_of
from speech_llm.run import Run
from speech_llm.stage import already_finished, open_stage
from speech_llm.speechmapper import (SlotTargets, SpeechMapper, TableObjective, identity_layers, root_mean_square,
                                     slot_outputs)
from speech_llm.token_objective import Speller, TokenObjective, units_of, with_merges
from speech_llm.training import learning_rate, processes, set_rate, total_loss, validate


@dataclass(frozen=True)
class Config:                               # the 2025 paper's values; a page of config/ or --name value changes them
    preset: str = "tiny"                    # a page of config/, or the path of a page
    work: str = "work"                      # everything that is written lies below this folder
    run: str = ""                           # the system's folder below work; the page names it
    out: str = "projector"                  # <work>/<run>/<out>
    corpora: str = "covost2,europarlst,spokensquad,acl6060"          # folders of work/rows; train and dev of each
    encoder: str = "facebook/seamless-m4t-v2-large"
    mean: int = 3                           # consecutive encoder frames that are averaged; section 3
    pad: bool = False                       # whether Whisper's frames are those of its whole window
    llm: str = "meta-llama/Llama-3.1-8B-Instruct"
    prompt: str = "2025"                    # whose prompt; speech_llm/prompts.py
    objective: str = "answers"              # "embeddings" (SpeechMapper), "tokens" (speller): on the LLM's table alone
    mixture: dict = field(default_factory=lambda: {                  # A.1; section 5.1
        "ASR": (0.4, {"en": 1.0}),
        "ST": (0.6, {"de": 0.3, "it": 0.3, "zh": 0.4})})             # the text; Table 13: it 0.4, zh 0.3 (our choice)
    shares: dict = field(default_factory=lambda: {"ASR": {"covost2": 0.8, "europarlst": 0.2}})      # section 5.1
    projector: str = "transformer"          # a key of PROJECTORS
    layers: int = 4                         # section 3; SpeechMapper: of each block
    heads: int = 8                          # section 3
    ffn: int = 2048                         # section 3
    dropout: float = 0.1                    # section 3
    middle: int = 2048                      # SpeechMapper: width between its blocks; Q-Former: width inside
    window: int = 17                        # Q-Former: Whisper frames a slot, 1/3 s; listeners, A.6; as in SALMONN
    text_encoder: str = ""                  # Q-Former: the BERT that its layers start from; empty: fresh weights
    start: str = ""                         # a finished projector to go on from, a folder of <work>/<run>
    sigma: float = 0.0                      # share of the embeddings' squared error in the loss (SpeechMapper, stage 2)
    pad_token: str = "<|file_sep|>"         # its embedding fills SpeechMapper's spare slots; 2026, section 6.1
    merges: int = 0                         # of the LLM's tokenizer that spell the targets; 0: all (our choice)
    normalize: bool = True                  # SpeechMapper's targets are MMS-normalised; 2026 is silent (our choice)
    batch: int = 16                         # rows in a draw; section 5.1
    batch_sqa: int = 8                      # appendix C.1
    batch_frames: int = 12_000              # frames in a draw, where the objective is embeddings (our choice)
    accumulate: int = 16                    # draws in one optimizer step, over all processes; section 5.1
    steps: int = 15_090                     # optimizer steps: 4 epochs; section 5.1. 0: a fresh projector, for stage C
    lr: float = 1e-4                        # section 5.1
    warmup: int = 0                         # steps
    cosine: bool = False                    # down to 0 at the last step; else constant after the warm-up
    weight_decay: float = 0.01              # the paper is silent; torch's default (our choice)
    clip: float = 0.0                       # largest gradient norm; 0: none
    micro_tokens: int = 8192                # padded positions of the LLM, or frames without the LLM, in a forward pass
    validate_every: int = 250               # steps between validations, which are also the checkpoints (our choice)
    validate_rows: int = 100                # dev rows for each task and language: the loss, SQA's score (our choice)
    decode: str = "acl6060"                 # the corpus whose dev split is decoded whole at every validation: ASR, ST
    decode_batch: int = 64                  # rows decoded together
    max_new_tokens: int = 150               # of these answers (our choice)
    keep: str = "ST"                        # the step kept: best in ST (mean BLEU: our choice), ASR, SQA or all
    seed: int = 0

# B batch   T frames   W encoder width   L sequence   D LLM width   V vocabulary   N answer tokens


# ---------------------------------------------------------------------------------------------------------------------
# the projector
class Projector(nn.Module):
    """Pre-norm Transformer encoder over the averaged frames, then a linear map to the LLM's width (2025, section 3)."""

    def __init__(self, width=1024, llm_width=4096, layers=4, heads=8, ffn=2048, dropout=0.1):
        super().__init__()
        # ReLU, no positions (the frames carry them), a closing LayerNorm: the paper is silent (our choice)
        self.layers = identity_layers(layers, width, heads, ffn, dropout)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, llm_width)

    @staticmethod
    def slots(frames):
        """Return the number of output vectors for a number of frames."""
        return frames

    def forward(self, frames, lengths):
        """frames (B, T, W), lengths (B,) -> (B, T, D). Values beyond a sample's length have no effect."""
        for layer in self.layers:
            frames = layer(frames, src_key_padding_mask=padding_mask(frames, lengths))
        return self.output(self.norm(frames))                                                   # (B, T, D)


class Identity(nn.Module):
    """The projector of an encoder whose frames already are the LLM's, such as Qwen2.5-Omni's; it has no parameters."""

    slots = staticmethod(Projector.slots)

    def __init__(self, width, llm_width):
        super().__init__()
        if width != llm_width:
            raise SystemExit(f"--projector identity: the encoder's frames have {width} numbers, the LLM's embeddings "
                             f"{llm_width}; choose the encoder and the LLM of one model, or another projector")

    def forward(self, frames, lengths):
        """frames (B, T, D), lengths (B,) -> the same frames."""
        return frames


TABLE_OBJECTIVES = {"embeddings": TableObjective, "tokens": TokenObjective}                    # without the LLM
PROJECTORS = {"transformer": Projector, "speller": Speller, "mapper": SpeechMapper, "qformer": QFormer,
              "identity": Identity}


def make_projector(kind, **sizes):
    """Return a fresh projector of one of PROJECTORS. SystemExit for another kind and for sizes that do not fit."""
    if kind not in PROJECTORS:
        raise SystemExit(f"--projector {kind} is not one of {', '.join(PROJECTORS)}")
    if kind == "identity":
        return Identity(**sizes)
    # attention runs in the encoder's width; in a Q-Former in the width `middle`; in a SpeechMapper in both
    for name in {"qformer": ["middle"], "mapper": ["width", "middle"]}.get(kind, ["width"]):
        if sizes[name] % sizes["heads"]:
            raise SystemExit(f"--heads {sizes['heads']} does not divide the projector's width {sizes[name]}")
    return PROJECTORS[kind](**sizes)


def load_projector(stage, device):
    """Return the projector of a finished stage, rebuilt from the stage's own constants."""
    try:
        projector = make_projector(**stage.config["sizes"])
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError, ZeroDivisionError) as error:
        raise SystemExit(f"{stage.folder}/config.json: no projector has such sizes ({error}); train it again") from None
    fill_projector(projector, stage)
    return projector.to(device)


def fill_projector(projector, stage):
    """Copy the weights of a finished stage into a projector of the same sizes."""
    if "projector" not in stage.weights:
        raise SystemExit(f"{stage.folder} holds no projector; choose a folder of stage A or C")
    try:
        projector.load_state_dict(stage.weights["projector"])
    except RuntimeError as error:
        raise SystemExit(f"{stage.folder}/weights.pt is of a projector of other sizes ({error}); choose another, or "
                         "train it again") from None


# ---------------------------------------------------------------------------------------------------------------------
# the splice and the loss
def encode_sample(row, text, tokenizer, features, prompt="2025", slots=Projector.slots):
    """
    Return a row as the LLM reads and answers it: token ids before and after the speech, the frames (T, W), the number
    of slots that the projector makes of the frames, and the token ids of the answer.
    """
    before, after = encode_prompt(tokenizer, row, text, prompt)
    frames = None if text else features[row["utterance"]]                                       # (T, W)
    return {"id": row["id"], "before": before, "frames": frames, "slots": 0 if text else slots(len(frames)),
            "after": after, "answer": encode_answer(tokenizer, row)}


def positions(sample):
    """Return the length L of the sequence that the LLM reads for a sample; after a speller it may be shorter."""
    return len(sample["before"]) + sample["slots"] + len(sample["after"]) + len(sample["answer"])


def splice(llm, projector, batch):
    """Return a list of (L, D): [before | speech | after | answer] of each sample as embeddings (2025, section 4)."""
    table = llm.get_input_embeddings()
    device = table.weight.device
    ids = [torch.tensor(s["before"] + s["after"] + s["answer"]) for s in batch.samples]
    embedded = table(torch.cat(ids).to(device, non_blocking=True)).split([len(i) for i in ids])
    if batch.frames is not None:
        speech = projector(*batch.speech(device))
        speech = iter((speech * embedding_scale(llm)).to(table.weight.dtype))                        # (B, slots, D)
    sequences = []
    for sample, tokens in zip(batch.samples, embedded):
        if sample["frames"] is not None:
            n, slots = len(sample["before"]), next(speech)[:sample["slots"]]
            slots = slots[slots.any(1)] if isinstance(projector, Speller) else slots
            tokens = torch.cat([tokens[:n], slots, tokens[n:]])                                      # (L, D)
        sequences.append(tokens)
    return sequences


def answer_loss(llm, projector, batch):
    """
    Return the summed cross-entropy of a micro-batch over the tokens of its answers, (1,) float32.
    Logits are made for these N positions only. Padding on the right needs no mask: attention is causal, so no position
    of a sample ever looks at the padding behind it.
    """
    device = next(llm.parameters()).device
    with mixed_precision(device):
        sequences = splice(llm, projector, batch)
        places = [(b, len(sequences[b]) - len(s["answer"]) - 1 + i) for b, s in enumerate(batch.samples)
                  for i in range(len(s["answer"]))]                    # position i predicts token i + 1
        row, column = torch.tensor(places).to(device, non_blocking=True).unbind(1)
        inputs = nn.utils.rnn.pad_sequence(sequences, batch_first=True)                              # (B, L, D)
        logits = logits_at(llm, row, column, inputs_embeds=inputs, use_cache=False)                  # (N, V)
    target = torch.tensor([token for s in batch.samples for token in s["answer"]]).to(device, non_blocking=True)
    return F.cross_entropy(logits, target, reduction="sum")[None]                                    # (1,)


class AnswerObjective:
    """
    The cross-entropy of answers through the LLM: stages A, B and C (2025, sections 3 and 4).
    `projector` is None for text alone. See speech_llm/training.py for the methods of an objective.
    """
    losses = {"cross-entropy": 1.0}

    def __init__(self, llm, tokenizer, projector, prompt, features, micro_tokens):
        self.llm, self.tokenizer, self.projector = llm, tokenizer, projector
        self.prompt, self.features, self.micro_tokens = prompt, features, micro_tokens

    def sample(self, row, text):
        """Return encode_sample of a row; `text`: the transcript is read in place of the speech."""
        return encode_sample(row, text, self.tokenizer, self.features, self.prompt,
                             self.projector and self.projector.slots)

    def batches(self, samples):
        """Return micro-batches of at most `micro_tokens` padded positions."""
        return micro_batches(samples, positions, self.micro_tokens, PADDING)

    def counts(self, samples):
        """Return the number of answer tokens, (1,)."""
        return torch.tensor([sum(len(sample["answer"]) for sample in samples)], dtype=torch.float32)

    def loss(self, batch):
        """Return the sum (1,) of the cross-entropy over the answers of a micro-batch."""
        return answer_loss(self.llm, self.projector, batch)

    def report(self, samples, losses):
        """
        Return "listening", how much larger the loss per answer token is with the frames of the next sample, in nats,
        None if all samples have the same frames; "RMS" and "table RMS", the sizes of the projector's output and of the
        LLM's embeddings. All samples have speech.
        """
        others, squares, listening = samples[1:] + samples[:1], 0.0, None
        if any(sample["frames"].tobytes() != samples[0]["frames"].tobytes() for sample in others):
            exchanged = [{**sample, **{key: other[key] for key in ("frames", "slots", "target") if key in other}}
                         for sample, other in zip(samples, others)]
            listening = validate([self.projector], self, exchanged)[0] - losses[0]
        for output, _ in slot_outputs(self.projector, self.batches(samples), self.llm.device):
            squares += output.square().mean(1).sum().item()
        return {"listening": listening, "RMS": (squares / sum(sample["slots"] for sample in samples)) ** 0.5,
                "table RMS": root_mean_square(self.llm.get_input_embeddings().weight)}


class MixedObjective(AnswerObjective):
    """The second stage of the original SpeechMapper: answers, and the squared error of the embeddings (ICASSP 2026)."""

    def __init__(self, llm, tokenizer, projector, prompt, features, micro_tokens, sigma, targets):
        super().__init__(llm, tokenizer, projector, prompt, features, micro_tokens)
        self.losses, self.targets = {"cross-entropy": 1 - sigma, "embedding": sigma}, targets

    def sample(self, row, text):
        """Return encode_sample of a row with a "target" for each slot; None for more tokens than slots."""
        sample = super().sample(row, text)
        target = self.targets(row, sample["slots"])
        return target and {**sample, "target": target}

    def counts(self, samples):
        """Return the numbers of answer tokens and of slots, (2,)."""
        slots = sum(sample["slots"] for sample in samples)
        return torch.cat([super().counts(samples), torch.tensor([float(slots)])])

    def loss(self, batch):
        """Return the sums (2,) of the cross-entropy over answer tokens and of the squared error over slots."""
        outputs = []

        def projector(frames, lengths):      # answer_loss calls it; the output is kept for the squared error
            outputs.append(self.projector(frames, lengths))
            return outputs[0]
        cross_entropy, table = answer_loss(self.llm, projector, batch), self.llm.get_input_embeddings().weight
        slots = torch.cat([output[:s["slots"]] for output, s in zip(outputs[0].float(), batch.samples)])  # (N, D)
        target = torch.tensor([token for s in batch.samples for token in s["target"]], device=table.device)
        return torch.cat([cross_entropy, (slots - table[target]).square().mean(1).sum()[None]])


# ---------------------------------------------------------------------------------------------------------------------
# answers
def answer(llm, tokenizer, projector, samples, max_new_tokens):
    """Return a list of new token ids for each sample of encode_sample. The LLM does not see the sample's own answer."""
    device = next(llm.parameters()).device
    with torch.no_grad(), mixed_precision(device):
        prompts = splice(llm, projector, Batch.of([{**s, "answer": []} for s in samples]))
        return generate(llm, prompts, max_new_tokens, stop_ids(llm, tokenizer))


def decode_all(llm, tokenizer, projector, samples, batch, max_new_tokens):
    """Return the answers to samples as texts, in the samples' order; `batch` of like length at a time, no dropout."""
    order, texts = sorted(range(len(samples)), key=lambda i: positions(samples[i])), [""] * len(samples)
    projector.eval()
    for first in range(0, len(order), batch):
        numbers = order[first:first + batch]
        for i, ids in zip(numbers, answer(llm, tokenizer, projector, [samples[i] for i in numbers], max_new_tokens)):
            texts[i] = decode_text(tokenizer, ids)
    projector.train()
    return texts


def rows_to_decode(c, dev_rows, picked):
    """Return the dev rows that a validation decodes: ASR and ST of one whole corpus, and the SQA rows of the loss."""
    rows = [row for row in dev_rows if corpus_of(row) == c.decode and "utterance" in row
            and row["task"] in ("ASR", "ST") and row["task"] in c.mixture]
    rows += [row for row in picked if row["task"] == "SQA"]
    if c.keep not in best_steps([{"step": 0, **score_answers(rows, [""] * len(rows))}]):
        raise SystemExit(f"--keep {c.keep}: the dev rows of {c.decode} that the mixture trains on do not score that")
    return rows


# ---------------------------------------------------------------------------------------------------------------------
def build_projector(c, width, llm_width, device, units=0):
    """Return (projector, its sizes): fresh, from a BERT (--text_encoder), or finished (--start). units: a speller's."""
    sizes = dict(kind=c.projector, width=width, llm_width=llm_width)
    if c.projector != "identity":
        sizes |= dict(layers=c.layers, heads=c.heads, ffn=c.ffn, dropout=c.dropout)
    if c.projector in ("mapper", "qformer"):
        sizes["middle"] = c.middle
    if c.projector == "qformer":
        sizes["window"] = c.window
    if c.projector == "speller":
        sizes["units"] = units
    projector = make_projector(**sizes)
    if c.text_encoder and c.projector != "qformer":
        raise SystemExit(f"--text_encoder {c.text_encoder}: only a qformer starts from a BERT, not a {c.projector}")
    if c.text_encoder:
        copied, fresh = start_from_bert(projector, locate(c.work, c.text_encoder))
        print(f"{copied} tensors of the Q-Former from {c.text_encoder}, {fresh} fresh")
    if c.start:
        fill_projector(projector, open_stage(os.path.join(c.work, c.run, c.start)))
    return projector.to(device), sizes


def main(argv=None):
    c = configure(Config, "train_projector", argv)
    if c.objective not in ("answers", *TABLE_OBJECTIVES):
        raise SystemExit(f"--objective {c.objective} is not one of answers, {', '.join(TABLE_OBJECTIVES)}")
    if (c.projector == "speller") != (c.objective == "tokens"):
        raise SystemExit("--objective tokens and --projector speller need each other")
    if c.objective in TABLE_OBJECTIVES and c.shares:
        raise SystemExit(f"--objective {c.objective} draws every corpus by its size; set --shares '{{}}'")
    if already_finished(c):
        return
    device = pick_device()
    processes()
    torch.manual_seed(c.seed)

    # 1. rows, and the frames of stage 0
    origin = {"encoder": c.encoder, "mean": c.mean, "pad": c.pad}
    (rows, features), (dev_rows, dev_features) = load_rows(c, "train", origin), load_rows(c, "dev", origin)

    # 2. the frozen LLM or its table alone, a projector from the encoder's width to the LLM's, and the objective
    path, width = locate(c.work, c.llm), features.maps[0].config["width"]
    if c.objective in TABLE_OBJECTIVES:
        llm, tokenizer, table = None, load_tokenizer(path), load_table(path, device)
        targets = SlotTargets(with_merges(tokenizer, c.merges), c.pad_token, c.normalize)
        units = units_of(targets.tokenizer, targets.pad) if c.projector == "speller" else []
        projector, sizes = build_projector(c, width, table.shape[1], device, len(units))
        objective = TABLE_OBJECTIVES[c.objective](projector, table, targets, features, c.micro_tokens)
        modules = {"projector": projector} | ({"ctc_head": objective.head} if c.objective == "embeddings" else {})
    else:
        llm, tokenizer = load_llm(path, device)
        projector, sizes = build_projector(c, width, llm.get_input_embeddings().weight.shape[1], device)
        arguments = llm, tokenizer, projector, c.prompt, features, c.micro_tokens
        objective = (MixedObjective(*arguments, c.sigma, SlotTargets(tokenizer, c.pad_token, c.normalize)) if c.sigma
                     else AnswerObjective(*arguments))
        modules = {"projector": projector}
    parameters = [p for module in modules.values() for p in module.parameters()]
    if c.steps and not parameters:
        raise SystemExit(f"--projector {c.projector} has nothing to train: set --steps 0")
    optimizer = torch.optim.AdamW([{"params": parameters}], lr=c.lr, weight_decay=c.weight_decay)
    run = Run(c, {name: (module.state_dict, module.load_state_dict) for name, module in modules.items()}, [optimizer],
              llm, projector.buffers(), sizes=sizes, **({"prompts": prompts_of(tokenizer, c.prompt)} if llm else {}))
    if not c.steps:                                      # a fresh projector: stage C trains it together with LoRA
        run.finish(next_command("train_projector", c))
        return

    # 3. what is drawn, and what is validated
    if llm:
        draws = draw(rows, c.mixture, c.shares, c.batch, c.batch_sqa, c.seed)
    else:
        draws = draw_frames(rows, c.batch_frames, c.seed)
    objective.features = dev_features                    # an utterance of dev may have the name of one of train
    picked = pick_validation(dev_rows, c.mixture, c.shares, c.validate_rows)
    dev = [sample for sample in (objective.sample(row, False) for row in picked) if sample]
    if not dev:
        raise SystemExit("no dev transcript has as few tokens as its speech has slots: look at --mean and --llm")
    pairs = [(row, objective.sample(row, False)) for row in (rows_to_decode(c, dev_rows, picked) if llm else [])]
    decoded, questions = [row for row, sample in pairs if sample], [sample for _, sample in pairs if sample]

    # 4. train
    objective.features = features
    for samples, batches, dropped in run.samples(draws, objective):
        set_rate(optimizer, learning_rate(c.lr, run.step, c.steps, c.warmup, c.cosine))
        result = run.optimizer_step(objective, samples, batches, c.clip)     # loss, backward, step of the optimizer
        run.log_step(objective, result, dropped, lr=optimizer.param_groups[0]["lr"])
        if run.validation_is_due():
            losses = validate([*modules.values()], objective, dev)
            figures = objective.report(dev, losses)
            if decoded:
                texts = decode_all(llm, tokenizer, projector, questions, c.decode_batch, c.max_new_tokens)
                figures |= score_answers(decoded, texts)
            run.validated(total_loss(losses, objective.losses), choose_later=bool(decoded), **figures)

    # 5. the step that did best on the dev set (2025, section 5.1 A: in ST); without an LLM the last one
    steps = best_steps(run.scored_lines()) if decoded and run.rank == 0 else {}
    run.finish(next_command("train_projector", c), steps.get(c.keep), best_steps=steps)


if __name__ == "__main__":
    main()
