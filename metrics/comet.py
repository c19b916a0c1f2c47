"""
COMET scores from the published weights, without the published package.

    model = load_comet("models/wmt22-comet-da", "cuda")                # or wmt22-cometkiwi-da: no "ref"
    score(model, [{"src": "Hi.", "mt": "Hallo.", "ref": "Guten Tag."}])    -> [one float], higher is better

unbabel-comet 2.2.7 cannot be installed beside transformers 5 and numpy 2, so the two metrics are written out
here: the RegressionMetric (wmt22-comet-da: source, translation and reference are encoded one by one) and the
UnifiedMetric (wmt22-cometkiwi-da: translation and source are one sequence). Fetch the weights first:

    hf download Unbabel/wmt22-comet-da --local-dir models/wmt22-comet-da   # kiwi: accept its licence first

The score of a corpus is the mean over its rows; the 2026 paper's Table 1 prints it times 100.
"""
import os

import torch
from torch import nn

from speech_llm.normalize import nfc


# B batch   S tokens   L layers + 1 (the embeddings count)   D encoder width

# Hub names, for shape and tokenizer alone: the weights come from the checkpoint
ENCODERS = {"regression": "FacebookAI/xlm-roberta-large", "unified": "microsoft/infoxlm-large"}

# Every tensor of these parts is needed. Checkpoints have others: layer dropout's, those of cometkiwi's word-level head
SCORING = ("encoder.model.encoder.", "layerwise_attention.scalar_parameters.", "estimator.ff.")


class LayerMix(nn.Module):
    """Mix the encoder's layers: gamma * sum of weight * layer, where the weights are positive and sum to 1."""
    def __init__(self, layers, normalise):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1))
        self.scalar_parameters = nn.ParameterList(torch.zeros(1) for _ in range(layers))
        self.normalise = normalise

    def forward(self, layers):                             # L times (B, S, D)
        weights = self.normalise(torch.cat(list(self.scalar_parameters)))   # (L,)
        return self.gamma * sum(weight * layer for weight, layer in zip(weights, layers))


class Comet(nn.Module):
    """Score rows. The names of the parts are the checkpoint's."""
    def __init__(self, kind, config, tokenizer, hidden):
        super().__init__()
        from transformers import XLMRobertaModel
        self.kind, self.tokenizer = kind, tokenizer
        self.pad = config.pad_token_id
        self.positions = config.max_position_embeddings - 2    # 512: RoBERTa's positions begin behind padding's index
        self.encoder = nn.ModuleDict({"model": XLMRobertaModel(config, add_pooling_layer=False)})
        # cometkiwi's hparams name "sparsemax_patch"; every release of unbabel-comet but 2.2.4 takes softmax for it
        # (COMET issues 195 and 244)
        mix = sparsemax if kind == "regression" else lambda z: z.softmax(0)
        self.layerwise_attention = LayerMix(config.num_hidden_layers + 1, mix)
        sizes = [config.hidden_size * (6 if kind == "regression" else 1), *hidden]
        parts = []
        for a, b in zip(sizes, sizes[1:]):
            parts += [nn.Linear(a, b), nn.Tanh(), nn.Dropout(0.1)]   # dropout, because the checkpoint numbers it
        self.estimator = nn.ModuleDict({"ff": nn.Sequential(*parts, nn.Linear(sizes[-1], 1))})

    def encode(self, ids):
        """Return the mixed layer (B, S, D) and the mask (B, S) of lists of token ids."""
        device = self.layerwise_attention.gamma.device
        ids = [torch.tensor(row, device=device) for row in ids]
        ids = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.pad)   # (B, S)
        mask = ids != self.pad
        out = self.encoder["model"](input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        return self.layerwise_attention(out.hidden_states), mask

    def tokens(self, texts):
        """Return lists of token ids, 510 at most with <s> and </s>: COMET takes two off the encoder's 512."""
        texts = [nfc(text) for text in texts]
        return self.tokenizer(texts, truncation=True, max_length=self.positions - 2)["input_ids"]

    def sentence(self, texts):
        """Return the mean over each text's tokens, <s> and </s> included: (B, D)."""
        tokens, mask = self.encode(self.tokens(texts))
        return (tokens * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    def forward(self, rows):                               # B rows -> (B,)
        mt, src = [row["mt"] for row in rows], [row["src"] for row in rows]
        if self.kind == "regression":
            h, r, s = self.sentence(mt), self.sentence([row["ref"] for row in rows]), self.sentence(src)
            features = torch.cat([h, r, h * r, (h - r).abs(), h * s, (h - s).abs()], dim=1)   # (B, 6D)
        else:
            end = self.tokenizer.eos_token_id   # <s> mt </s></s> src </s>; the end beyond 512 is cut off
            pairs = [(m + [end] + s[1:])[:self.positions] for m, s in zip(self.tokens(mt), self.tokens(src))]
            features = self.encode(pairs)[0][:, 0]         # <s>: (B, D)
        return self.estimator["ff"](features)[:, 0]


def sparsemax(z):
    """Return the point of the simplex nearest to scores (L,): as softmax, but small scores become exactly 0."""
    ordered = z.sort(descending=True).values
    above = ordered.cumsum(0) - 1
    count = torch.arange(1, len(z) + 1, device=z.device, dtype=z.dtype)
    positive = int((count * ordered > above).sum())        # how many of the result are above 0
    return (z - above[positive - 1] / positive).clamp(min=0)


# ----------------------------------------------------------------------------------------------------

def load_comet(path, device="cpu", encoder=""):
    """
    Return the model of a COMET checkpoint for score(), in float32 and evaluation mode.
    `path` is a downloaded folder (with checkpoints/model.ckpt) or a file: Lightning's .ckpt, a plain state dict,
    .safetensors. `encoder` is a folder or hub name with the encoder's config and tokenizer; "" is the published one.
    FileNotFoundError if the file is missing, ValueError if the weights belong to neither of the two metrics.
    """
    from transformers import AutoConfig, AutoTokenizer
    state = read_state(path)
    if not {"estimator.ff.0.weight", "encoder.model.embeddings.word_embeddings.weight"} <= set(state):
        raise ValueError(f"{path} holds no COMET estimator; wanted wmt22-comet-da or wmt22-cometkiwi-da")
    width = state["encoder.model.embeddings.word_embeddings.weight"].shape[1]
    kinds = {6 * width: "regression", width: "unified"}   # the metrics differ in the estimator's input width
    features = state["estimator.ff.0.weight"].shape[1]
    if features not in kinds:
        raise ValueError(f"{path}: the estimator reads {features} features, wanted one of {sorted(kinds)}")
    kind = kinds[features]
    encoder = encoder or ENCODERS[kind]
    hidden = [state[f"estimator.ff.{i}.weight"].shape[0] for i in (0, 3)]
    model = Comet(kind, AutoConfig.from_pretrained(encoder), AutoTokenizer.from_pretrained(encoder), hidden)
    wanted = model.state_dict().keys()
    differ = [name for name in wanted if name not in state]
    differ += [name for name in state if name.startswith(SCORING) and name not in wanted]
    if differ:
        raise ValueError(f"{path} and {encoder} differ in {len(differ)} tensors: {', '.join(differ[:3])} ...")
    model.load_state_dict({name: state[name] for name in wanted})
    return model.to(device).eval()


def read_state(path):
    """Return {name: tensor} of a checkpoint. FileNotFoundError if it is missing, ValueError if it is damaged."""
    path = str(path)
    if os.path.isdir(path):
        path = os.path.join(path, "checkpoints", "model.ckpt")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} is missing; run: hf download Unbabel/<model> --local-dir <folder>")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)   # never runs code from the file
    except Exception as error:                                        # each kind of damage has an error of its own
        raise ValueError(
            f"{path} is incomplete, or holds Python objects beside its tensors. If you trust it, write the "
            "tensors alone: torch.save(torch.load(path, weights_only=False)['state_dict'], 'comet.pt')"
        ) from error
    return state.get("state_dict", state)                             # Lightning's checkpoints have it one level down


@torch.no_grad()
def score(model, rows, batch_size=16):
    """Return the scores of rows {"src", "mt", "ref"} (cometkiwi: no "ref") as floats, in the rows' order."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["src"] + rows[i]["mt"]))   # for little padding
    scores = [0.0] * len(rows)
    for begin in range(0, len(order), batch_size):
        batch = order[begin:begin + batch_size]
        for i, value in zip(batch, model([rows[i] for i in batch]).tolist()):
            scores[i] = value
    return scores
