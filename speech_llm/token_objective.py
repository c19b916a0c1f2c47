"""
The third objective of stage A: the transcript's tokens on the LLM's table, where they are spoken (our choice).

B batch   D LLM width   V vocabulary   N slots of a batch   R tokens that compete
"""
import torch
import torch.nn.functional as F

from speech_llm.batches import padding_mask
from speech_llm.speechmapper import CHUNK, TableObjective, ctc_loss, root_mean_square, slot_outputs

RIVALS = 4096                                # random tokens of the table beside those of a batch (our choice)
SHARPNESS = 25                               # the cosines' factor in the softmax over the table (our choice)


class TokenObjective(TableObjective):
    """
    The transcript's tokens in the order of time, at slots that the projector finds, by CTC (our choice). SpeechMapper's
    own targets stand at the first slots, so that it has to count; these have to be near the right token only. A slot's
    score for a token is the cosine of output and embedding, both less the table's mean, times SHARPNESS: in the tables
    of real LLMs two random tokens have a cosine of 0.4, of which the mean is the cause. The pad token is the blank.
    """
    losses = {"tokens": 1.0, "size": 1.0, "CTC": 1.0}

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.mean = self.table.mean(0)
        centred = self.table - self.mean
        self.directions, self.radius = F.normalize(centred), centred.square().sum(1).mean().sqrt()

    def target(self, row, slots):
        """Return the transcript's tokens; None if CTC needs more slots for them."""
        tokens = self.targets.tokens(row)
        repeats = sum(first == second for first, second in zip(tokens, tokens[1:]))
        return tokens if len(tokens) + repeats <= slots else None

    def counts(self, samples):
        """Return how many terms each loss has: utterances, slots, utterances."""
        return torch.tensor([len(samples), sum(s["slots"] for s in samples), len(samples)], dtype=torch.float32)

    def table_losses(self, batch, output, lengths):
        """Return the sums (2,) of CTC a token over utterances and of the squared error of the size over slots."""
        centred = output - self.mean
        sizes = (centred.norm(dim=2) / self.radius - 1).square()[~padding_mask(output, lengths)]
        spoken = torch.tensor([self.targets.pad, *(token for s in batch.samples for token in s["target"])])
        rows = torch.cat([spoken, torch.randint(len(self.table), (RIVALS,))]).unique()               # (R,), sorted
        scores = SHARPNESS * F.normalize(centred, dim=2) @ self.directions[rows.to(output.device)].T     # (B, slots, R)
        places = [torch.searchsorted(rows, torch.tensor(s["target"])).tolist() for s in batch.samples]
        ctc = ctc_loss(scores, lengths, places, torch.searchsorted(rows, self.targets.pad).item())
        return torch.stack([ctc, sizes.sum()])

    def report(self, samples):
        """
        Return "RMS" and "table RMS", the sizes of the output and of the embeddings; "token errors", in % of the
        transcripts' tokens, of the nearest tokens without repeats and blanks; "blank", % of slots that are blank.
        """
        from torchaudio.functional import edit_distance
        squares, errors, blanks, slots = 0.0, 0, 0, sum(s["slots"] for s in samples)
        for output, batch in slot_outputs(self.mapper, self.batches(samples), self.table.device):
            squares += output.square().mean(1).sum().item()
            nearest = torch.cat([(F.normalize(rows - self.mean) @ self.directions.T).argmax(1)
                                 for rows in output.split(CHUNK)])
            blanks += nearest.eq(self.targets.pad).sum().item()
            for sample, tokens in zip(batch.samples, nearest.split([s["slots"] for s in batch.samples])):
                path = [token for token in tokens.unique_consecutive().tolist() if token != self.targets.pad]
                errors += edit_distance(path, sample["target"])
        return {"RMS": (squares / slots) ** 0.5, "table RMS": root_mean_square(self.table),
                "token errors": 100 * errors / sum(len(s["target"]) for s in samples), "blank": 100 * blanks / slots}
