"""The benchmark of loading: both loads are measured and say the same of the rows. Nothing about what comes out."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.toys import byte_tokenizer

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "data.py"


def test_a_file_is_loaded_cold_and_warm(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = [sys.executable, str(BENCHMARK), "--rows", "30", "--words", "4", "--repeats", "1", "--no-trl",
               "--workers", "0", "--model", str(tmp_path / "tokenizer")]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARK.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report["sides"]) == {"cold", "warm"}
    assert report["settings"]["rows"] == 30
    assert report["tokens_per_row"] > 3 * 4 * 3  # three texts of four words of three letters
    assert report["times_trl"] is None
