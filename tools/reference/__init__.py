"""The reference pages that are made from the code: `docs/reference/`. One module here makes one page."""
