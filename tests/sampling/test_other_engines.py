"""Completions from elsewhere, a file or vLLM: what the engine asks for, and what it makes of the answer."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from prefopt.errors import DataError, ModelError
from prefopt.models import PackedModel
from prefopt.sampling import Prompt, SampleConfig, Sampler, encode_prompt, write_rollouts
from prefopt.sampling.draw import sample_seed
from prefopt.sampling.file import FileEngine
from prefopt.sampling.hf import HfEngine
from prefopt.sampling.vllm import VllmEngine
from tests.models.loading import load

CHAT = ({"role": "user", "content": "hi"},)
SHARD = [Prompt.of("once", {"answer": 1}), Prompt.of(CHAT)]


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[PackedModel, Any]:
    policy, tokenizer = load(tiny_model, trainable=False)
    return PackedModel(policy), tokenizer


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---- file ----


def test_rollouts_of_one_engine_are_read_by_the_other(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    sampled = HfEngine(*loaded, Sampler(6)).sample(SHARD, n=3, seed=0)
    write_rollouts(tmp_path / "rollouts.parquet", sampled)
    engine = FileEngine(tmp_path / "rollouts.parquet", *loaded, q={"temperature": 0.5})
    found = engine.sample(SHARD, n=3, seed=99)
    assert [(one.token_ids, one.text, one.finish, one.seed) for one in found] == [
        (one.token_ids, one.text, one.finish, one.seed) for one in sampled
    ]
    assert [one.policy for one in found] == pytest.approx([one.policy for one in sampled])
    assert engine.q == {"engine": "file", "temperature": 0.5}


def test_texts_are_tokenized_and_end_unless_they_were_cut(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    rows = [
        {"prompt": "once", "text": "ab"},
        {"prompt": list(CHAT), "text": "x"},
        {"prompt": "once", "text": "cd", "finish": "length"},
        {"prompt": list(CHAT), "token_ids": [40, 41, 2]},
    ]
    found = FileEngine(lines(tmp_path / "a.jsonl", rows), *loaded).sample(SHARD, n=2, seed=0)
    tokenizer = loaded[1]

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text)["input_ids"])

    assert [one.token_ids for one in found] == [(*ids("ab"), 2), ids("cd"), (*ids("x"), 2), (40, 41, 2)]
    assert [one.finish for one in found] == ["end", "length", "end", "end"]
    assert [one.text for one in found[:3]] == ["ab", "cd", "x"]
    assert [list(one.prompt_ids) for one in found[::2]] == [encode_prompt(tokenizer, p.prompt) for p in SHARD]
    assert [(one.prompt_id, one.sample) for one in found] == [(p.prompt_id, i) for p in SHARD for i in (0, 1)]


def test_a_file_that_lacks_something_is_a_sentence(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    engine = FileEngine(lines(tmp_path / "a.jsonl", [{"prompt": "once", "text": "ab"}]), *loaded)
    with pytest.raises(DataError, match=f"has 1 completions of prompt {SHARD[0].prompt_id}, and 2 are to be taken"):
        engine.sample(SHARD, n=2, seed=0)
    for row, said in (
        ({"text": "a"}, "neither 'prompt_id' nor 'prompt'"),
        ({"prompt": "a"}, "neither 'token_ids' nor 'text'"),
        ({"prompt": "a", "token_ids": [1, 9999]}, "numbers from 0 to 258"),
        ({"prompt": "a", "token_ids": []}, "numbers from 0 to 258"),
        ({"prompt": "a", "text": "", "finish": "length"}, "cut before its first token"),
    ):
        with pytest.raises(DataError, match=rf"b\.jsonl:1.*{said}"):
            FileEngine(lines(tmp_path / "b.jsonl", [row]), *loaded)


# ---- vllm, by a module with its call signature ----


@dataclass
class Settings:
    """The parameters of `vllm.SamplingParams` that are used."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int
    stop_token_ids: list[int]
    detokenize: bool


class FakeLLM:
    """`vllm.LLM`: answers every request with its seed's last digit, and an end."""

    made: dict[str, Any]
    asked: dict[str, Any]

    def __init__(self, model: str, **options: Any) -> None:
        FakeLLM.made = {"model": model, **options}

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: list[Settings],
        *,
        use_tqdm: bool = True,
        lora_request: Any = None,
    ) -> list[Any]:
        FakeLLM.asked = {"prompts": prompts, "settings": sampling_params, "lora": lora_request}
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[40 + s.seed % 10, 2])]) for s in sampling_params]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    vars(module).update(LLM=FakeLLM, SamplingParams=Settings, lora=lora)
    vars(request).update(LoRARequest=lambda name, number, path: (name, number, path))
    for one in (module, lora, request):
        monkeypatch.setitem(sys.modules, one.__name__, one)


@pytest.mark.usefixtures("vllm")
def test_vllm_is_asked_for_each_sample_with_its_own_seed(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    engine = VllmEngine(
        *loaded,
        Sampler(9, temperature=0.7, top_k=5),
        base="base",
        adapter=tmp_path,
        rank=8,
        quantization="bitsandbytes",
    )
    found = engine.sample(SHARD, n=2, seed=4)
    seeds = [sample_seed(4, prompt.prompt_id, i) for prompt in SHARD for i in (0, 1)]
    assert FakeLLM.made == {"model": "base", "quantization": "bitsandbytes", "enable_lora": True, "max_lora_rank": 8}
    assert FakeLLM.asked["lora"] == ("policy", 1, str(tmp_path))
    assert [one.seed for one in FakeLLM.asked["settings"]] == seeds == [one.seed for one in found]
    assert FakeLLM.asked["settings"][0] == Settings(1, 0.7, 1.0, 5, 9, seeds[0], [2], False)
    assert FakeLLM.asked["prompts"] == [{"prompt_token_ids": list(one.prompt_ids)} for one in found]
    assert [one.token_ids for one in found] == [(40 + seed % 10, 2) for seed in seeds]
    assert all(one.policy < 0 and one.finish == "end" for one in found)
    assert engine.q["quantization"] == "bitsandbytes"
    assert engine.q["temperature"] == 0.7


def test_without_vllm_a_sentence_says_what_to_install(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(ModelError, match=r"pip install 'prefopt\[vllm\]'"):
        VllmEngine(*loaded, Sampler(2), base="base")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "file"}, "sample.path is missing"),
        ({"path": "a.jsonl"}, "sample.path is set, but sample.engine=hf"),
        ({"temperature": 0}, "makes 8 equal completions"),
        ({"n": 0}, "greater than or equal to 1"),
        ({"top_p": 0}, "greater than 0"),
    ],
)
def test_sections_that_make_no_sense_name_the_key(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        SampleConfig(**options)
    assert said in str(error.value)
