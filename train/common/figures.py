"""Names in figures."""


def as_label(name: str) -> str:
    """A name for matplotlib to show as it is: what stands between two dollar signs is no formula, and no character stops it."""
    return name.replace("$", r"\$").encode("utf-8", "replace").decode("utf-8")
