"""Whether a reference's log-probs are kept on disk, and why."""

from __future__ import annotations

from prefopt.errors import RecipeError
from prefopt.models.reference_config import ReferenceConfig
from prefopt.models.references.base import NoReference, Reference
from prefopt.models.references.cached import CachedReference
from prefopt.models.references.identity import Identity
from prefopt.models.references.moving import MovingCopy
from prefopt.models.references.store import FORMAT, Store, default_folder


def cached(reference: Reference, config: ReferenceConfig, *, repeats: bool, needs_states: bool) -> Reference:
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
    identity = None if needs_states else reference.identity()
    if identity is None:
        why = (
            "the loss compares whole distributions, and a cache holds log-probs of single tokens"
            if needs_states
            else "its weights can't be read whole by this process, so a cache could not tell them from others"
        )
        if asked:
            raise RecipeError(
                f"reference.cache is true, but {why}: write reference.cache: auto, or choose another loss."
            )
        return _uncached(reference, f"Nothing of it is kept: {why}.")
    folder = config.cache_dir or default_folder()
    if not (asked or repeats or (folder / f"v{FORMAT}").is_dir()):
        return _uncached(reference, "Nothing of it is kept: the run looks at each example once.")
    store = Store(folder, required=asked)
    if asked:
        return CachedReference(reference, identity, store, f"Its log-probs are kept in {folder}, as the recipe asks.")
    if not store.works:
        return _uncached(reference, f"Nothing of it is kept: {folder} can't be written.")
    if repeats:
        why = f"Its log-probs are kept in {folder}, since the run looks at its examples more than once."
        return CachedReference(reference, identity, store, why)
    if _known(store, identity):
        return CachedReference(reference, identity, store, f"Its log-probs are read from {folder}, which has some.")
    store.close()
    return _uncached(reference, "Nothing of it is kept: the run looks at each example once.")


def _known(store: Store, identity: Identity) -> bool:
    """Whether the store has values of this very reference: its weights are read only where the rest is the same."""
    rows = store.knows(identity.setting_key)
    return bool(rows) and any(row.weights == identity.weights_key for row in rows)


def _uncached(reference: Reference, why: str) -> Reference:
    reference.reason = f"{reference.reason} {why}"
    return reference
