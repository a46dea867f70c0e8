"""Claims on pages about to be computed. Owns who computes which page; knows no pool."""

from __future__ import annotations

from collections.abc import Collection

from kea.memory.contexts import ClaimKey, ContextPages


class Claims:
    """At most one claim per page and per context, so that concurrent requests compute a common page once."""

    def __init__(self) -> None:
        self._owners: dict[ClaimKey, ContextPages] = {}

    def is_taken(self, ctx: ContextPages, key: ClaimKey) -> bool:
        """Say whether another context claimed the page; if not, `ctx` claims it, instead of what it claimed before."""
        owner = self._owners.get(key)
        if owner is not None and owner is not ctx:
            return True
        self.drop(ctx)
        self._owners[key] = ctx
        ctx.claim = key
        return False

    def drop(self, ctx: ContextPages) -> None:
        """End the context's claim if it has one."""
        if ctx.claim is not None:
            del self._owners[ctx.claim]
            ctx.claim = None

    def clear(self, but: Collection[ContextPages] = ()) -> None:
        """End all claims but those of some contexts."""
        for owner in list(self._owners.values()):
            if owner not in but:
                self.drop(owner)

    def check(self, contexts: Collection[ContextPages]) -> None:
        """Prove that every claim is of an open context and names the page that this context computes next."""
        for key, owner in self._owners.items():
            assert owner in contexts, "a claim belongs to a context that was freed"
            assert owner.claim == key, "a claim's owner knows of another claim"
            assert owner.node is key[0], "a claim's owner has moved on"
        num_claiming = sum(ctx.claim is not None for ctx in contexts)
        assert num_claiming == len(self._owners), f"{num_claiming} contexts have a claim, {len(self._owners)} are kept"
