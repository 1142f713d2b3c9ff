"""A JSON parser that takes nothing but RFC 8259: the standard library's, its leniencies turned off."""

import json


def strict_loads(text, **options):
    """Parse UTF-8 bytes; raise ValueError for NaN, Infinity, a key that comes twice, or bytes that are no UTF-8."""
    return json.loads(text.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_unique, **options)


def _refuse(name):
    raise ValueError(f"{name} is no JSON")


def _unique(pairs):
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError("a key comes twice")
    return dict(pairs)
