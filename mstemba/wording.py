"""Words for numbers in messages."""


def counted(count: int, one: str, many: str = "") -> str:
    """Return `1 video`, `2 videos` or `2 classes`; `many` is a plural that is not formed so."""
    plural = many or f"{one}{'es' if one.endswith('s') else 's'}"
    return f"{count} {one if count == 1 else plural}"
