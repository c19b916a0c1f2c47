"""
SpeechMapper: a projector that is trained on the LLM's embedding table alone, without the LLM (2026, sections 3 and 4).

Frames at 25 Hz become slots at 6.25 Hz. The first slots should be the embeddings of the transcript's tokens, the rest
the embedding of a pad token. TableObjective is its training objective: four losses.

B batch   T frames   W encoder width   M width between the blocks   D LLM width   V vocabulary   N slots of a batch
"""
import torch
import torch.nn.functional as F
from torch import nn

from speech_llm.batches import PADDING, micro_batches, padding_mask
from speech_llm.constants import mixed_precision
from speech_llm.normalize import mms_normalize
from speech_llm.turns import encode_text

LETTERS = " 'abcdefghijklmnopqrstuvwxyz0123456789"       # CTC labels from 1 on; 0 is the blank (our choice)
CHUNK = 512                                              # slots that are scored against all V rows of the table at once
FRAME_PADDING = 12 * PADDING         # frames: SpeechMapper's layers are 12 times smaller than those of an 8B LLM


# ---------------------------------------------------------------------------------------------------------------------
# the model
def encoder_layers(count, width, heads, ffn, dropout):
    """Return `count` pre-norm Transformer encoder layers with ReLU, torch's own."""
    return nn.ModuleList(nn.TransformerEncoderLayer(width, heads, ffn, dropout, batch_first=True, norm_first=True)
                         for _ in range(count))


def identity_layers(count, width, heads, ffn, dropout):
    """
    Return encoder_layers of which each starts as the identity, so that frames reach the LLM from the first step.
    Appendix C.1 of 2025 has random weights: this is a departure (our choice).
    """
    layers = encoder_layers(count, width, heads, ffn, dropout)
    for layer in layers:
        nn.init.zeros_(layer.self_attn.out_proj.weight)
        nn.init.zeros_(layer.linear2.weight)
    return layers


def sinusoids(length, width, device):
    """Return the positions of the original Transformer, (length, width): sines, then cosines."""
    angle = torch.arange(length, device=device)[:, None] / 10_000 ** (torch.arange(0, width, 2, device=device) / width)
    return torch.cat([angle.sin(), angle.cos()], 1)


class Block(nn.Module):
    """Half of a SpeechMapper: convolution, self-attention, projection to a larger width (2026, section 4)."""

    def __init__(self, width, out, stride, layers, heads, ffn, dropout):
        super().__init__()
        # kernel 6 as in the original; the paper is silent on padding, GELU, LayerNorm and positions (our choice)
        self.stride, self.dropout = stride, nn.Dropout(dropout)
        self.convolution = nn.Conv1d(width, width, 6, stride, padding=3)
        self.first_norm = nn.LayerNorm(width)
        self.layers = encoder_layers(layers, width, heads, ffn, dropout)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, out)

    def forward(self, x, lengths):
        """x (B, T, W), lengths (B,) -> (B, T // stride + 1, out) and its lengths (B,)."""
        x = x.masked_fill(padding_mask(x, lengths)[..., None], 0)      # the convolution reads beyond a sample's end
        x = F.gelu(self.convolution(x.transpose(1, 2))).transpose(1, 2)
        lengths = lengths // self.stride + 1
        x = self.dropout(self.first_norm(x) + sinusoids(x.shape[1], x.shape[2], x.device))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding_mask(x, lengths))
        return self.output(self.norm(x)), lengths


class SpeechMapper(nn.Module):
    """Two blocks: the first keeps 25 Hz, for the CTC head; the second makes 6.25 slots a second (2026, section 4)."""

    def __init__(self, width=1024, llm_width=2560, layers=6, heads=8, ffn=2048, dropout=0.1, middle=2048):
        super().__init__()
        self.first = Block(width, middle, 1, layers, heads, ffn, dropout)
        self.second = Block(middle, llm_width, 4, layers, heads, ffn, dropout)

    @staticmethod
    def slots(frames):
        """Return the number of output vectors for a number of frames."""
        return (frames + 1) // 4 + 1

    def forward(self, frames, lengths):
        """frames (B, T, W), lengths (B,) -> (B, slots(T), D). Values beyond a sample's length have no effect."""
        return self.second(*self.first(frames, lengths))[0]


# ---------------------------------------------------------------------------------------------------------------------
# its training
class SoftmaxLoss(torch.autograd.Function):
    """
    Cross-entropy of cosines, summed over slots: output (N, D) and table (V, D), rows of length one; target (N,) rows.
    The gradient is made with the loss, CHUNK slots at a time, so the scores (N, V) are never stored.
    """

    @staticmethod
    def forward(ctx, output, target, table):
        loss, gradient = output.new_zeros(()), torch.zeros_like(output)
        for rows, right, rows_gradient in zip(output.split(CHUNK), target.split(CHUNK), gradient.split(CHUNK)):
            scores = rows @ table.T                                                                  # (CHUNK, V)
            normaliser = scores.logsumexp(1, keepdim=True)
            loss += (normaliser - scores.gather(1, right[:, None])).sum()
            if ctx.needs_input_grad[0]:
                rows_gradient.copy_(scores.sub_(normaliser).exp_() @ table - table[right])
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx, outer):
        return ctx.saved_tensors[0] * outer, None, None


class TableObjective:
    """
    What SpeechMapper learns from a row: an embedding for each slot, and the letters at the rate of the first block
    (2026, section 3.1). See speech_llm/training.py for the methods of an objective.
    """
    losses = {"L1": 1.0, "cosine": 1.0, "softmax": 0.1, "CTC": 1.0}    # weights; section 3.1

    def __init__(self, mapper, table, targets, features, micro_frames):
        self.mapper, self.table, self.directions = mapper, table, F.normalize(table)                 # (V, D)
        self.head = nn.Linear(mapper.second.convolution.in_channels, len(LETTERS) + 1).to(table.device)
        self.targets, self.features, self.micro_frames = targets, features, micro_frames
        if table.device.type == "cuda":      # TF32 for the scores: an A100 has 156 TFLOP/s of it, of float32 19.5
            torch.set_float32_matmul_precision("high")

    def sample(self, row, text=False):
        """
        Return a sample: the frames, a token id for every slot and the letters for CTC, of the normalised transcript.
        Return None if the transcript has more tokens than there are slots.
        """
        frames = self.features[row["utterance"]]                                                     # (T, W)
        slots = self.mapper.slots(len(frames))
        target = self.targets(row, slots)
        if target is None:
            return None
        letters = [LETTERS.index(letter) + 1 for letter in normalized(row) if letter in LETTERS]
        return {"id": row["id"], "frames": frames, "slots": slots, "target": target, "letters": letters}

    def batches(self, samples):
        """Return micro-batches of at most `micro_frames` padded frames."""
        return micro_batches(samples, lambda sample: len(sample["frames"]), self.micro_frames, FRAME_PADDING)

    def counts(self, samples):
        """Return how many terms each loss has: slots three times, and utterances for CTC."""
        slots = sum(sample["slots"] for sample in samples)
        return torch.tensor([slots, slots, slots, len(samples)], dtype=torch.float32)

    def loss(self, batch):
        """Return the sums (4,) of L1, cosine and softmax over a micro-batch's slots, and of CTC over its utterances."""
        device = self.table.device
        with mixed_precision(device):
            middle, middle_lengths = self.mapper.first(*batch.speech(device))                        # (B, T', M)
            output, lengths = self.mapper.second(middle, middle_lengths)                             # (B, slots, D)
            labels = self.head(middle)                                                               # (B, T', labels)
        ctc = ctc_loss(labels, middle_lengths, [s["letters"] for s in batch.samples], 0)
        return torch.cat([self.table_losses(batch, output.float(), lengths), ctc[None]])

    def table_losses(self, batch, output, lengths):
        """Return the sums (3,) of L1, cosine and softmax over the slots of a micro-batch: output (B, slots, D)."""
        output = output[~padding_mask(output, lengths)]                                              # (N, D)
        target = torch.tensor([token for s in batch.samples for token in s["target"]], device=output.device)
        wanted = self.table[target]                                                                  # (N, D)
        return torch.stack([(output - wanted).abs().mean(1).sum(), (1 - F.cosine_similarity(output, wanted)).sum(),
                            SoftmaxLoss.apply(F.normalize(output), target, self.directions)])

    def report(self, samples, losses):
        """
        Return "RMS" and "table RMS", the sizes of the output and of the embeddings, and "nearest": % of slots whose
        nearest row of the table is the right one.
        """
        squares, right, slots = 0.0, 0, sum(sample["slots"] for sample in samples)
        for output, batch in slot_outputs(self.mapper, self.batches(samples), self.table.device):
            target = torch.tensor([token for s in batch.samples for token in s["target"]], device=self.table.device)
            squares += output.square().mean(1).sum().item()
            right += sum((F.normalize(rows) @ self.directions.T).argmax(1).eq(tokens).sum().item()
                         for rows, tokens in zip(output.split(CHUNK), target.split(CHUNK)))
        return {"RMS": (squares / slots) ** 0.5, "table RMS": root_mean_square(self.table),
                "nearest": 100 * right / slots}


def ctc_loss(scores, lengths, targets, blank):
    """Return the sum over utterances of CTC a label: scores (B, T, V), their lengths (B,), B lists of labels."""
    counts = torch.tensor([len(target) for target in targets], device=scores.device)
    labels = torch.tensor([label for target in targets for label in target], device=scores.device)
    losses = F.ctc_loss(scores.float().log_softmax(-1).transpose(0, 1), labels, lengths, counts, blank,
                        reduction="none", zero_infinity=True)
    return (losses / counts.clamp(min=1)).sum()


class SlotTargets:
    """
    targets(row, slots) -> a token id for each slot: the tokens of the transcript, then pads; None for too many tokens.
    `normalize`: the tokens are those of the MMS-normalised transcript, as in the original SpeechMapper.
    """

    def __init__(self, tokenizer, pad_token, normalize):
        self.tokenizer, self.normalize = tokenizer, normalize
        self.pad = tokenizer.convert_tokens_to_ids(pad_token)
        if pad_token not in tokenizer.get_vocab():
            raise SystemExit(f"--pad_token {pad_token}: the LLM's tokenizer has no such token")

    def __call__(self, row, slots):
        tokens = self.tokens(row)
        return tokens + [self.pad] * (slots - len(tokens)) if len(tokens) <= slots else None

    def tokens(self, row):
        """Return the token ids of the transcript."""
        return encode_text(self.tokenizer, normalized(row) if self.normalize else row["transcript"].strip())


def normalized(row):
    """Return the MMS-normalised English transcript of a row, with its numbers."""
    return mms_normalize(row["transcript"], "en", remove_numbers=False)


@torch.no_grad()
def slot_outputs(projector, batches, device):
    """Yield (output (N, D) float32 of all slots of a batch, the batch) without dropout."""
    projector.eval()
    for batch in batches:
        output = projector(*batch.speech(device))                                                    # (B, slots, D)
        slots = torch.tensor([s["slots"] for s in batch.samples if s["frames"] is not None], device=device)
        yield output.float()[~padding_mask(output, slots)], batch
    projector.train()


def root_mean_square(table):
    """Return the root of the mean square of a table's numbers, a float."""
    return (torch.linalg.vector_norm(table, dtype=torch.float32) / table.numel() ** 0.5).item()
