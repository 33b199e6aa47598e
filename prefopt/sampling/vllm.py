"""The `vllm` engine: vLLM samples with the base model and the adapter's files; log-probs are computed here.

Thin on purpose. vLLM's own distribution is not the training model's to the bit: its kernels round otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefopt.errors import ModelError, RecipeError
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.sampling.draw import Sampler, sample_seed
from prefopt.sampling.engine import Drawn, Judge
from prefopt.sampling.generation import encode
from prefopt.sampling.prompts import end_of_turn_ids
from prefopt.sampling.rollouts import Prompt, Rollout


class VllmEngine:
    """Samples with vLLM, which loads the base model a second time.

    Args:
        policy: the model whose log-probs are wanted, and whose ends of turn are.
        tokenizer: its tokenizer.
        sampler: what tokens are drawn from.
        base: name or folder of the base model that vLLM loads.
        adapter: folder of the adapter as it is now; None for the base alone.
        rank: the adapter's rank, which vLLM must know to make room for it.
        quantization: as vLLM calls it ("bitsandbytes"); None for none.
        reference: what log-probs are compared with, if anything.
        token_budget: tokens scored at once; None takes what suits the device.

    Raises:
        ModelError: vLLM is not installed.
    """

    name = "vllm"

    def __init__(
        self,
        policy: PackedModel,
        tokenizer: Any,
        sampler: Sampler,
        *,
        base: str,
        adapter: Path | None = None,
        rank: int = 16,
        quantization: str | None = None,
        reference: Reference | None = None,
        token_budget: int | None = None,
    ) -> None:
        try:
            import vllm
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise ModelError(
                f"sample.engine=vllm needs vLLM, which can't be imported ({error}): pip install 'prefopt[vllm]', or "
                "use sample.engine=hf."
            ) from error
        self._policy, self._tokenizer, self._sampler = policy, tokenizer, sampler
        self.judge = Judge(policy, tokenizer, tuple(end_of_turn_ids(policy.model, tokenizer)), reference, token_budget)
        self._params = vllm.SamplingParams
        self._adapter = None if adapter is None else LoRARequest("policy", 1, str(adapter))
        self._quantization = quantization
        lora = {} if adapter is None else {"enable_lora": True, "max_lora_rank": rank}
        self._llm = vllm.LLM(model=base, quantization=quantization, **lora)

    @property
    def q(self) -> dict[str, Any]:
        """The sampler's settings, and how the base is quantized."""
        return {"engine": self.name, "quantization": self._quantization, **self._sampler.q}

    def sample(self, shard: Sequence[Prompt], *, n: int, seed: int) -> list[Rollout]:
        """Return n rollouts of each prompt, in order; each is a request with its own seed.

        Raises:
            RecipeError: `n` is below 1.
            DataError: a prompt can't be encoded, or leaves no room for a completion.
        """
        if n < 1:
            raise RecipeError(f"sample.n is {n}; it must be at least 1.")
        model, limit = self._policy.model, self._sampler.max_new_tokens
        asked = []
        for one in shard:
            ids = tuple(encode(model, self._tokenizer, one.prompt, limit, f"prompt {one.prompt_id}"))
            asked += [(one.prompt_id, at, sample_seed(seed, one.prompt_id, at), ids) for at in range(n)]
        if not asked:
            return []
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(ids)} for *_, ids in asked],
            [self._settings(own) for _, _, own, _ in asked],
            use_tqdm=False,
            lora_request=self._adapter,
        )
        drawn = [Drawn(*one, tuple(output.outputs[0].token_ids)) for one, output in zip(asked, outputs, strict=True)]
        return self.judge.rollouts(drawn)

    def _settings(self, seed: int) -> Any:
        return self._params(
            n=1,
            temperature=self._sampler.temperature,
            top_p=self._sampler.top_p,
            top_k=self._sampler.top_k,
            max_tokens=self._sampler.max_new_tokens,
            seed=seed,
            stop_token_ids=list(self.judge.ends),
            detokenize=False,
        )
