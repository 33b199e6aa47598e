"""Whether a reference's log-probs are kept on disk, and why."""

from __future__ import annotations

import json
from functools import partial

from prefopt.errors import RecipeError
from prefopt.models.reference_config import ReferenceConfig
from prefopt.models.references.base import NoReference, Reference
from prefopt.models.references.cached import CachedReference
from prefopt.models.references.identity import Identity
from prefopt.models.references.later import LaterModel
from prefopt.models.references.moving import MovingCopy
from prefopt.models.references.store import FORMAT, Store, default_folder


def with_cache(reference: Reference, config: ReferenceConfig, *, repeats: bool, needs_states: bool) -> Reference:
    """Return the reference behind a cache, where the recipe asks for one or it pays; `reason` says which.

    Args:
        reference: what computes.
        config: `cache` and `cache_dir` of the recipe's section.
        repeats: whether the run looks at its examples more than once.
        needs_states: whether the loss compares whole distributions, which no cache holds.

    Raises:
        RecipeError: the recipe asks for a cache, and this reference or this loss can have none.
        RunError: the recipe asks for a cache, and its folder can't be used.
    """
    if config.cache is False or isinstance(reference, NoReference | MovingCopy):
        return reference
    asked = config.cache is True
    if needs_states:
        return _uncached(reference, "the loss compares whole distributions, and a cache holds log-probs alone", asked)
    folder = config.cache_dir or default_folder()
    once = "the run looks at each example once"
    if not (asked or repeats or (folder / f"v{FORMAT}").is_dir()):
        return _uncached(reference, once)
    store = Store(folder, required=asked)
    identity = _identity(reference, store)
    if identity is None:
        return _uncached(reference, "its weights are not all in this process, so they can't be told from others", asked)
    if asked:
        return CachedReference(reference, identity, store, f"Its log-probs are kept in {folder}, as the recipe asks.")
    if repeats and store.works:
        why = f"Its log-probs are kept in {folder}, since the run looks at its examples more than once."
        return CachedReference(reference, identity, store, why)
    if _known(store, identity):
        return CachedReference(reference, identity, store, f"Its log-probs are read from {folder}, which has some.")
    why = once if store.works else f"{folder} can't be written"
    store.close()
    return _uncached(reference, why)


def _identity(reference: Reference, store: Store) -> Identity | None:
    """Return a reference's identity; of a model that an earlier run loaded from the same files without loading it."""
    if not isinstance(reference, LaterModel):
        return reference.identity()
    source = reference.source()
    if (known := store.remembered(source)) is not None:
        setting, weights, about = known
        reference.reason += " It is loaded when a log-prob is asked for that is not kept."
        expected = Identity(json.loads(setting), about, tuple, known_weights=weights)
        reference.expect(expected, partial(store.forget, source))
        return expected
    identity = reference.identity()
    if identity is not None:
        setting = json.dumps(identity.setting)
        store.remember(source, setting, identity.weights_key, identity.about)
    return identity


def _known(store: Store, identity: Identity) -> bool:
    """Whether the store has values of this very reference: its weights are read only where the rest is the same."""
    rows = store.knows(identity.setting_key)
    return bool(rows) and any(row.weights == identity.weights_key for row in rows)


def _uncached(reference: Reference, why: str, asked: bool = False) -> Reference:
    """Return a reference that keeps nothing, and says why; refuse that where the recipe asks for a cache."""
    if asked:
        raise RecipeError(f"reference.cache is true, but {why}: write reference.cache: auto.")
    if isinstance(reference, LaterModel):
        reference = reference.model
    reference.reason = f"{reference.reason} Nothing of it is kept: {why}."
    return reference
