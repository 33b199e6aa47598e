"""Tokenizers with merges, small enough to train in a test: ChatML's, and Llama-, Gemma-, Mistral- and Phi-like ones."""

from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "The quick brown fox jumps over the lazy dog and asks the user what is the answer.",
    "assistant\n\nuser\n\nsystem\n\nHuman: what is the best tea?\n\nAssistant: I think the best tea is green tea.",
    "  four  spaces    and tabs\t\tand newlines\n\n\n\nI like it. I do not like it. Yes, no, maybe, always, never.",
    "The answer is forty two. The film is a great film and the film is a terrible film.",
] * 8

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|header|>{{ m['role'] }}<|/header|>\n\n{{ m['content'] | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|header|>assistant<|/header|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
# Writes an empty thinking block into the last answer, and drops the thoughts of earlier ones.
THINKING = (
    "{% for m in messages %}{% set said = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in said %}"
    "{% set said = said.split('</think>')[-1].lstrip() %}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ said }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Opens a thinking block only when asked, so that no answered conversation begins with an open one.
OPENS_THINKING = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
# Ends the whole text with EOS behind the end-of-turn.
EOS_BEHIND = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# No token ends a turn.
WORDS_ONLY = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

SPECIALS = {
    "gpt2": ["<|begin|>", "<|end_of_text|>", "<|header|>", "<|/header|>", "<|eot|>"],
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama": ["<|begin|>", "<|end_of_text|>", "<|header|>", "<|/header|>", "<|eot|>"],
    "gemma": ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
    "mistral": ["<s>", "</s>"],
    "phi": ["<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"],
}

# How Llama 3 and Qwen cut text into words: a run of newlines is one.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@cache
def byte_level(
    kind: str, template: str | None, *, bos: str | None, eos: str, adds_bos: bool
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE; with `adds_bos` it puts BOS before plain text as Llama's does.

    "gpt2" cuts words as GPT-2 and SmolLM2: the last of several newlines goes by itself when a word follows.
    """
    backend = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")
    backend.pre_tokenizer = whole if kind == "gpt2" else pre_tokenizers.Sequence([words, whole])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=600, special_tokens=SPECIALS[kind], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return _wrap(backend, template, bos, eos, adds_bos)


@cache
def sentencepiece_like(template: str | None) -> PreTrainedTokenizerFast:
    """Train a BPE with `▁` for spaces and one before the text, as Llama 2's and Mistral's."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", *SPECIALS["mistral"], *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [word for line in TEXT for word in line.split(" ")]
    backend.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=700, special_tokens=specials, show_progress=False)
    )
    return _wrap(backend, template, "<s>", "</s>", adds_bos=True)


def _wrap(
    backend: Tokenizer, template: str | None, bos: str | None, eos: str, adds_bos: bool
) -> PreTrainedTokenizerFast:
    if adds_bos and bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


def chatml(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level, no BOS of its own, EOS `<|im_end|>`."""
    return byte_level("chatml", template, bos=None, eos="<|im_end|>", adds_bos=False)


def llama() -> PreTrainedTokenizerFast:
    return byte_level("llama", LLAMA, bos="<|begin|>", eos="<|eot|>", adds_bos=True)


def gpt2() -> PreTrainedTokenizerFast:
    """Llama's template over GPT-2's words: the template's two newlines are one token only where nothing follows."""
    return byte_level("gpt2", LLAMA, bos="<|begin|>", eos="<|eot|>", adds_bos=False)


def gemma() -> PreTrainedTokenizerFast:
    return byte_level("gemma", GEMMA, bos="<bos>", eos="<eos>", adds_bos=True)


def mistral() -> PreTrainedTokenizerFast:
    return sentencepiece_like(MISTRAL)


def phi() -> PreTrainedTokenizerFast:
    return byte_level("phi", EOS_BEHIND, bos=None, eos="<|endoftext|>", adds_bos=False)
