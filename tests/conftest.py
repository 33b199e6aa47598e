"""Fixtures that several rooms use."""

from pathlib import Path

import pytest

from tests.toys import save_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama and its tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")
