"""
A speech LLM of the hub as a system of infer.py: the model's processor and chat template around audio and text.

    python infer.py --preset listeners --systems hub:Qwen/Qwen2-Audio-7B-Instruct
    python infer.py --preset listeners --systems hub:microsoft/Phi-4-multimodal-instruct@refs/pr/70      # a revision

    loaded = load_hub("Qwen/Qwen2-Audio-7B-Instruct", device)            # (model, tokenizer, processor)
    jobs, decode = hub_jobs(loaded, rows, "listeners", 300)              # see speech_llm/predictions.py

Any model will do that transformers loads without code from the hub and that reads audio and text: Qwen2-Audio,
Qwen2.5-Omni (needs torchvision; config/omni.py runs it without), Phi-4-Multimodal (peft, torchvision), Voxtral
(mistral-common), Granite-Speech (peft).
"""
import base64
import io
import os
from itertools import takewhile

import soundfile
import torch
from tqdm import tqdm

from speech_llm.audio import SAMPLE_RATE, read_audio
from speech_llm.llm import end_ids, load_checkpoint, loading
from speech_llm.predictions import Job
from speech_llm.prompts import instruction
from speech_llm.thoughts import NO_THOUGHT, close_thought
from speech_llm.turns import without_markers


THINKERS = {  # model types that also speak: the class of the part that reads audio and writes text
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerForConditionalGeneration"}
SPEECH_ADAPTER = {"phi4_multimodal": "speech-lora"}       # model types with adapters for speech: the adapters' folder
ALONE = ("granite_speech", "phi4_multimodal")             # model types whose encoders read the padding of a batch
ENDLESS = ("voxtral", "granite_speech")                   # model types whose processors take audio of any length


def load_hub(name, device):
    """
    Return (model, tokenizer, processor) of "owner/model", "owner/model@revision" or a folder; the model is frozen, in
    eval mode, bfloat16 on a GPU, float32 on the CPU. ValueError, naming the model, if transformers cannot load it or if
    it takes no audio.
    """
    import transformers
    path, _, revision = name.partition("@")
    options = {"revision": revision} if revision else {}
    with loading(path):
        config = transformers.AutoConfig.from_pretrained(path, **options)
        processor = transformers.AutoProcessor.from_pretrained(path, **options)
    if not hasattr(processor, "audio_token"):
        raise ValueError(f"{path} is a {config.model_type}, which takes no audio beside text; choose a speech LLM")
    kind = getattr(transformers, THINKERS.get(config.model_type, "AutoModelForMultimodalLM"))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = load_checkpoint(kind, path, dtype=dtype, **options)
    if config.model_type in SPEECH_ADAPTER:
        with loading(path):                              # transformers reads no subfolder of a local folder
            folder = SPEECH_ADAPTER[config.model_type]
            below, more = (os.path.join(path, folder), {}) if os.path.isdir(path) else (path, {"subfolder": folder})
            model.load_adapter(below, adapter_kwargs={**more, **options})
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"                      # the next token follows the last position of every row
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if not hasattr(tokenizer, "get_added_vocab"):        # mistral-common's never reads a marker out of a text
        tokenizer.get_added_vocab = dict
    return model.to(device).eval().requires_grad_(False), tokenizer, processor


def render(processor, text):
    """
    Return the turn of the processor's chat template around one audio and a text, which may be empty.
    Templates that take plain text alone get the audio's placeholder before it. ValueError for other templates.
    """
    template = processor.chat_template or processor.tokenizer.chat_template
    parts = [{"type": "audio"}, {"type": "text", "text": text}]
    for content in (parts[:1 + bool(text)], processor.audio_token + text):
        try:
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], chat_template=template,
                                                   tokenize=False, add_generation_prompt=True, **NO_THOUGHT)
        except Exception:                                # a template may raise any error for such content
            continue
        if prompt.count(processor.audio_token) == 1:
            return close_thought(prompt)
    raise ValueError(f"the chat template of {type(processor).__name__} has no place for audio")


def voxtral_inputs(processor, texts, waves):
    """Return the model's inputs for texts and waves at 16 kHz; mistral-common writes Voxtral's turns."""
    chats = []
    for text, wave in zip(texts, waves):
        file = io.BytesIO()
        soundfile.write(file, wave, SAMPLE_RATE, format="WAV", subtype="FLOAT")
        audio = {"type": "audio", "base64": base64.b64encode(file.getvalue()).decode()}
        chats.append([{"role": "user", "content": [audio, {"type": "text", "text": text}][:1 + bool(text)]}])
    return processor.apply_chat_template(chats, return_tensors="pt")


def model_inputs(model, processor, texts, waves):
    """Return the model's inputs for texts and waves at 16 kHz, padded on the left, on the model's device."""
    if model.config.model_type == "voxtral":
        return voxtral_inputs(processor, texts, waves).to(model.device, model.dtype)
    prompts = [render(processor, text) for text in texts]
    special = not prompts[0].startswith(processor.tokenizer.bos_token or " ")     # a template may write it already
    inputs = processor(text=prompts, audio=waves, return_tensors="pt", audio_kwargs={"sampling_rate": SAMPLE_RATE},
                       text_kwargs={"padding": True, "padding_side": "left", "add_special_tokens": special})
    return inputs.to(model.device, model.dtype)          # of the tensors, only those of real numbers change their type


def read_wave(row):
    """Return the wave of a row's audio at 16 kHz; None if it cannot be read."""
    try:
        return read_audio(row["audio"], row.get("start"), row.get("end"))
    except ValueError:
        return None


@torch.no_grad()
def generate(model, tokenizer, processor, texts, waves, max_new_tokens):
    """Return the new token ids for each text and wave, greedily, the token that ends the answer left out."""
    inputs = model_inputs(model, processor, texts, waves)
    ends = (end_ids(model) | {tokenizer.eos_token_id}) - {None}
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1,
                         eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id)
    rows = ids[:, inputs["input_ids"].shape[1]:].tolist()
    return [list(takewhile(lambda token: token not in ends, row)) for row in rows]


def hub_jobs(loaded, rows, prompt, max_new_tokens):
    """
    Return (jobs, decode) of speech_llm/predictions.py. `prompt` says whose instruction stands beside the audio.
    Markers of the chat that stand in a question stay ordinary text. A warning names audio that the processor cuts.
    """
    model, tokenizer, processor = loaded
    jobs = [Job(row, row["task"], len(row["transcript"]), row) for row in rows if "utterance" in row]
    kind, extractor = model.config.model_type, getattr(processor, "feature_extractor", None)
    window = None if kind in ENDLESS else getattr(extractor, "n_samples", None)

    def decode(batch):
        waves = {row["id"]: wave for row in batch if (wave := read_wave(row)) is not None}
        long = [name for name, wave in waves.items() if window and len(wave) > window]
        if long:
            tqdm.write(f"warning: the processor reads the first {window / SAMPLE_RATE:g} s of {', '.join(long)}")
        texts = {row["id"]: " ".join(without_markers(tokenizer, instruction(row, prompt))) for row in batch}
        names, answers = [*waves], {}
        size = 1 if kind in ALONE else len(batch)
        for first in range(0, len(names), size):
            part = names[first:first + size]
            answers |= zip(part, generate(model, tokenizer, processor, [texts[name] for name in part],
                                          [waves[name] for name in part], max_new_tokens))
        return [answers.get(row["id"]) for row in batch]
    return jobs, decode
