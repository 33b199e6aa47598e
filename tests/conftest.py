"""Fixtures that several rooms use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.toys import save_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama and its tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(autouse=True, scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for tokenized data, so that no test finds or leaves some in the user's."""
    folder = tmp_path_factory.mktemp("data-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefopt.data.cache.default_folder", lambda: folder)
        yield folder


@pytest.fixture(autouse=True)
def reference_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for a test's log-probs of references, so that it finds none that another left."""
    folder = tmp_path_factory.mktemp("reference-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefopt.models.references.caching.default_folder", lambda: folder)
        yield folder
