"""TODO"""
import torch
import torch.nn.functional as F
from torch import nn

from speech_llm.batches import padding_mask, micro_batches, pad_frames
from speech_llm.normalize import mms_normalize
from speech_llm.turns import encode_text


def encoder_layers(count, width, heads, ffn, dropout):
    """Pre-norm Transformer encoder layers with ReLU, torch's own."""
    return nn.ModuleList(nn.TransformerEncoderLayer(width, heads, ffn, dropout, batch_first=True, norm_first=True)
                         for _ in range(count))


class Block(nn.Module):
    """Half of a SpeechMapper: convolution, self-attention, projection to a larger width (2026, section 4)."""

    def __init__(self, width, out, stride, layers, heads, ffn, dropout):
        super().__init__()
        # kernel 6 as in the original; padding, GELU, LayerNorm, sinusoidal positions: the paper is silent (our choice)
        self.stride, self.dropout = stride, nn.Dropout(dropout)
        self.convolution = nn.Conv1d(width, width, 6, stride, padding=3)
        self.first_norm = nn.LayerNorm(width)
        self.layers = encoder_layers(layers, width, heads, ffn, dropout)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, out)

    def forward(self, x, lengths):
        """x (B, T, W), lengths (B,) -> (B, T // stride + 1, out), its lengths (B,)."""
        x = x.masked_fill(padding_mask(x, lengths)[..., None], 0)            # the convolution looks across a sample's end
        x = F.gelu(self.convolution(x.transpose(1, 2))).transpose(1, 2)
        lengths = lengths // self.stride + 1
        x = self.dropout(self.first_norm(x) + sinusoids(x.shape[1], x.shape[2], x.device))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding_mask(x, lengths))
        return self.output(self.norm(x)), lengths


def sinusoids(length, width, device):
    """Positions of the original Transformer -> (length, width): sines, then cosines."""
    angle = torch.arange(length, device=device)[:, None] / 10_000 ** (torch.arange(0, width, 2, device=device) / width)
    return torch.cat([angle.sin(), angle.cos()], 1)


class SpeechMapper(nn.Module):
    """
    Frames -> what the transcript's embeddings would be, one token a slot from the first slot on, then the pad token's
    (2026, section 3). 25 frames a second; block 1 keeps the rate, for the CTC head; block 2 makes 6.25 slots a second.
    """

    def __init__(self, width=1024, llm_width=2560, layers=6, heads=8, ffn=2048, dropout=0.1, middle=2048):
        super().__init__()
        self.first = Block(width, middle, 1, layers, heads, ffn, dropout)
        self.second = Block(middle, llm_width, 4, layers, heads, ffn, dropout)

    @staticmethod
    def slots(frames):
        """Output vectors of so many frames."""
        return (frames + 1) // 4 + 1

    def forward(self, frames, lengths):
        """frames (B, T, W), lengths (B,) -> (B, slots(T), D); what lies beyond a sample's length changes nothing."""
        return self.second(*self.first(frames, lengths))[0]
LOSSES = {"L1": 1.0, "cosine": 1.0, "softmax": 0.1, "CTC": 1.0}        # weights in the total; section 3.1
LETTERS = " 'abcdefghijklmnopqrstuvwxyz0123456789"                     # CTC labels 1.. ; 0 is the blank (our choice)
CHUNK = 512                                                            # slots scored against all V rows at once


def encode_slots(row, tokenizer, pad, features, slots):
    """
    One row as a SpeechMapper learns it: the frames, a token id for every slot - the normalised transcript's, then the
    pad's - and the letters for CTC. None if the transcript has more tokens than there are slots.
    """
    frames = features[row["utterance"]]                                                         # (T, W)
    text = mms_normalize(row["transcript"], "en", remove_numbers=False)                         # (our choice)
    tokens, count = encode_text(tokenizer, text), slots(len(frames))
    if len(tokens) > count:
        return None
    letters = [LETTERS.index(letter) + 1 for letter in text if letter in LETTERS]
    return {"id": row["id"], "frames": frames, "slots": count, "target": tokens + [pad] * (count - len(tokens)),
            "letters": letters, "length": len(frames), "counts": (count, count, count, 1)}


class RowLoss(torch.autograd.Function):
    """
    Summed cross-entropy of cosines: said (N, D) and unit (V, D) of length one, target (N,). Its gradient is made with
    it, CHUNK slots at a time, so that (N, V) scores are neither kept nor made twice.
    """

    @staticmethod
    def forward(ctx, said, target, unit):
        total, gradient = said.new_zeros(()), torch.zeros_like(said)
        for rows, right, its in zip(said.split(CHUNK), target.split(CHUNK), gradient.split(CHUNK)):
            scores = rows @ unit.T                                                                   # (CHUNK, V)
            whole = scores.logsumexp(1, keepdim=True)
            total += (whole - scores.gather(1, right[:, None])).sum()
            if ctx.needs_input_grad[0]:
                its.copy_(scores.sub_(whole).exp_() @ unit - unit[right])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, outer):
        return ctx.saved_tensors[0] * outer, None, None


def embedding_losses(mapper, head, table, unit, samples):
    """
    The sums (4,) of L1, cosine and softmax over a micro-batch's slots and of CTC over its utterances. unit: the table's
    rows at length one.
    """
    frames, lengths = pad_frames(samples, table.device)
    with torch.autocast(table.device.type, torch.bfloat16, enabled=table.device.type == "cuda"):
        middle, middle_lengths = mapper.first(frames, lengths)                                       # (B, T', M)
        output, lengths = mapper.second(middle, middle_lengths)                                      # (B, slots, D)
        labels = head(middle)                                                                        # (B, T', labels)
    said = output.float()[~padding_mask(output, lengths)]                                                  # (N, D)
    target = torch.tensor([token for s in samples for token in s["target"]], device=table.device)    # (N,)
    wanted, direction = table[target], F.normalize(said)
    softmax = RowLoss.apply(direction, target, unit)
    letters = torch.tensor([len(s["letters"]) for s in samples], device=table.device)
    spelled = torch.tensor([letter for s in samples for letter in s["letters"]], device=table.device)
    ctc = F.ctc_loss(labels.float().log_softmax(-1).transpose(0, 1), spelled, middle_lengths, letters,
                     reduction="none", zero_infinity=True) / letters.clamp(min=1)
    return torch.stack([(said - wanted).abs().mean(1).sum(), (1 - F.cosine_similarity(said, wanted)).sum(), softmax,
                        ctc.sum()])


@torch.no_grad()
def inspect_slots(projector, table, samples, micro_tokens, unit=None):
    """
    {"RMS", "table RMS"}: sizes of what the projector says to samples with frames and of the LLM's embeddings; with
    `unit` also "nearest", % of slots whose nearest row is the right one. Dropout is off while it lasts.
    """
    projector.eval()
    squares, right, count = 0.0, 0, sum(s["slots"] for s in samples)
    for micro in micro_batches(samples, micro_tokens):
        output = projector(*pad_frames(micro, table.device))
        said = output[~padding_mask(output, torch.tensor([s["slots"] for s in micro], device=table.device))]
        squares += said.square().mean(1).sum().item()
        if unit is not None:
            target = torch.tensor([token for s in micro for token in s["target"]], device=table.device)
            right += sum((F.normalize(a) @ unit.T).argmax(1).eq(b).sum().item()
                         for a, b in zip(said.split(CHUNK), target.split(CHUNK)))
    projector.train()
    sizes = {"RMS": (squares / count) ** 0.5,
             "table RMS": (torch.linalg.vector_norm(table, dtype=torch.float32) / table.numel() ** 0.5).item()}
    return sizes if unit is None else {**sizes, "nearest": 100 * right / count}
