"""
The window Q-Former of the multilingual listeners (listeners, section 6; as in SALMONN), a projector.

B batch   T frames   W encoder width   M width inside   D LLM width
"""
import torch
import torch.nn.functional as F
from torch import nn

from speech_llm.batches import padding_mask


class QFormer(nn.Module):
    """
    One learned query reads each window of frames through two BERT layers with cross-attention; then a linear map to
    the LLM's width. Windows do not overlap: of 17 frames they make 3 slots a second.
    """

    def __init__(self, width=1280, llm_width=4096, layers=2, heads=12, ffn=3072, dropout=0.1, middle=768, window=17):
        super().__init__()
        self.window = window
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(1, middle) * 0.02)
        self.query_norm, self.dropout = nn.LayerNorm(middle, 1e-12), nn.Dropout(dropout)
        # BERT's layer is torch's decoder layer: post-norm, GELU; its cross-attention reads the encoder's width
        self.layers = nn.ModuleList(nn.TransformerDecoderLayer(middle, heads, ffn, dropout, F.gelu, 1e-12, True)
                                    for _ in range(layers))
        for layer in self.layers:
            layer.multihead_attn = nn.MultiheadAttention(middle, heads, dropout, kdim=width, vdim=width,
                                                         batch_first=True)
            layer.dropout = nn.Identity()        # BERT has no dropout inside its feed-forward part
        for p in self.layers.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02 * (768 / middle) ** 0.5)     # BERT's initial weights at its width
        self.output = nn.Linear(middle, llm_width)

    def slots(self, frames):
        """
        Return the number of output vectors for a number of frames. Less than half a window at the end is left out:
        88 slots of 1500 frames in windows of 17, as in SALMONN.
        """
        return max(1, (frames + self.window // 2) // self.window)

    def forward(self, frames, lengths):
        """frames (B, T, W), lengths (B,) -> (B, slots(T), D). Values beyond a sample's length have no effect."""
        windows = self.slots(frames.shape[1])
        missing = windows * self.window - frames.shape[1]              # negative where frames at the end are left out
        padding = F.pad(padding_mask(frames, lengths), (0, missing), value=True).view(-1, self.window).clone()
        padding[:, 0] = False                                          # attention over nothing but padding gives NaN
        frames = F.pad(self.norm(frames), (0, 0, 0, missing)).reshape(-1, self.window, frames.shape[2])
        x = self.dropout(self.query_norm(self.query)).expand(len(frames), 1, -1)                 # (B * slots, 1, M)
        for layer in self.layers:
            x = layer(x, frames, memory_key_padding_mask=padding)
        return self.output(x.view(len(lengths), windows, -1))                                    # (B, slots, D)


@torch.no_grad()
def start_from_bert(qformer, path):
    """
    Copy the first layers of a BERT into the query's self-attention and feed-forward part, where shapes agree.
    Cross-attention keeps its fresh weights (our choice). Return how many tensors are copied and how many are fresh.
    """
    from transformers import BertModel
    bert, tensors = BertModel.from_pretrained(path, add_pooling_layer=False).state_dict(), qformer.state_dict()
    bert_names = {"self_attn.out_proj": "attention.output.dense", "norm1": "attention.output.LayerNorm",
                  "linear1": "intermediate.dense", "linear2": "output.dense", "norm3": "output.LayerNorm"}
    copies = {f"query_norm.{kind}": bert[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")}
    bert_layers = 1 + max(int(name.split(".")[2]) for name in bert if ".layer." in name)
    for n in range(min(len(qformer.layers), bert_layers)):
        source = f"encoder.layer.{n}."
        for kind in ("weight", "bias"):
            copies |= {f"layers.{n}.{name}.{kind}": bert[f"{source}{bert_name}.{kind}"]
                       for name, bert_name in bert_names.items()}
            copies[f"layers.{n}.self_attn.in_proj_{kind}"] = torch.cat(
                [bert[f"{source}attention.self.{name}.{kind}"] for name in ("query", "key", "value")])
    copies = {name: tensor for name, tensor in copies.items() if tensors[name].shape == tensor.shape}
    qformer.load_state_dict(copies, strict=False)
    return len(copies), len(tensors) - len(copies)
