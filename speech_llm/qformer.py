"""TODO"""
import torch
import torch.nn.functional as F
from torch import nn

from speech_llm.batches import padding_mask


class QFormer(nn.Module):
    """
    Window-level Q-Former (listeners, section 6; as in SALMONN): one learned query reads every window of frames apart,
    through two BERT layers with cross-attention; then a linear map to the LLM's width. 3 slots a second.
    """
    WINDOW = 17                                  # Whisper frames, no overlap: 1/3 s; listeners, A.6; as in SALMONN

    def __init__(self, width=1280, llm_width=4096, layers=2, heads=12, ffn=3072, dropout=0.1, middle=768):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(1, middle) * 0.02)
        self.query_norm, self.dropout = nn.LayerNorm(middle, 1e-12), nn.Dropout(dropout)
        # BERT's layer is torch's: post-norm, GELU; between the two its cross-attention, to the encoder's width
        self.layers = nn.ModuleList(nn.TransformerDecoderLayer(middle, heads, ffn, dropout, F.gelu, 1e-12, True)
                                    for _ in range(layers))
        for layer in self.layers:
            layer.multihead_attn = nn.MultiheadAttention(middle, heads, dropout, kdim=width, vdim=width,
                                                         batch_first=True)
            layer.dropout = nn.Identity()        # BERT drops nothing inside its feed-forward part
        for p in self.layers.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)     # as BERT starts
        self.output = nn.Linear(middle, llm_width)

    @classmethod
    def slots(cls, frames):
        """Output vectors of so many frames; less than half a window at the end is left out: 88 of 1500, as SALMONN."""
        return max(1, (frames + cls.WINDOW // 2) // cls.WINDOW)

    def forward(self, frames, lengths):
        """frames (B, T, W), lengths (B,) -> (B, slots(T), D); what lies beyond a sample's length changes nothing."""
        windows = self.slots(frames.shape[1])
        short = windows * self.WINDOW - frames.shape[1]                # below 0 where the end is left out
        padding = F.pad(padding_mask(frames, lengths), (0, short), value=True).view(-1, self.WINDOW).clone()
        padding[:, 0] = False                                          # a window of nothing else would give NaN
        frames = F.pad(self.norm(frames), (0, 0, 0, short)).reshape(-1, self.WINDOW, frames.shape[2])
        x = self.dropout(self.query_norm(self.query)).expand(len(frames), 1, -1)                 # (B * slots, 1, M)
        for layer in self.layers:
            x = layer(x, frames, memory_key_padding_mask=padding)
        return self.output(x.view(len(lengths), windows, -1))                                    # (B, slots, D)


@torch.no_grad()
def start_from_bert(qformer, path):
    """
    Copy the first layers of a BERT into the query's own path, self-attention and feed-forward, wherever shapes agree;
    cross-attention stays fresh (our choice) -> how many of the Q-Former's tensors are loaded, how many fresh.
    """
    from transformers import BertModel
    bert, own = BertModel.from_pretrained(path, add_pooling_layer=False).state_dict(), qformer.state_dict()
    parts = {"self_attn.out_proj": "attention.output.dense", "norm1": "attention.output.LayerNorm",
             "linear1": "intermediate.dense", "linear2": "output.dense", "norm3": "output.LayerNorm"}
    found = {f"query_norm.{kind}": bert[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")}
    for n in range(min(len(qformer.layers), 1 + max(int(name.split(".")[2]) for name in bert if ".layer." in name))):
        for kind in ("weight", "bias"):
            source = f"encoder.layer.{n}."
            found |= {f"layers.{n}.{ours}.{kind}": bert[f"{source}{theirs}.{kind}"] for ours, theirs in parts.items()}
            found[f"layers.{n}.self_attn.in_proj_{kind}"] = torch.cat(
                [bert[f"{source}attention.self.{name}.{kind}"] for name in ("query", "key", "value")])
    fit = {name: tensor for name, tensor in found.items() if own[name].shape == tensor.shape}
    qformer.load_state_dict(fit, strict=False)
    return len(fit), len(own) - len(fit)
