"""Which float32 has a shortest decimal that a reader who parses doubles takes for another number.

    python tests/benchmarks/float32_decimals.py
    python tests/benchmarks/float32_decimals.py 0x15000000 0x16000000  # from one number's bits to another's

Goes through each positive float32 there is, two thousand million of them, in some ten minutes, and prints those that
don't come back. `trackmetrics.json_text` knows them.
"""

import sys

import numpy as np
import orjson

STEP = 1 << 20
FIRST_INFINITE = 0x7F800000


def misread(numbers):
    """Those of some float32 numbers that don't come back from their shortest decimals by way of doubles."""
    text = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)
    return numbers[np.array(orjson.loads(text)).astype(np.float32) != numbers]


def main():
    first, stop = (int(argument, 0) for argument in sys.argv[1:]) if sys.argv[1:] else (0, FIRST_INFINITE)
    for start in range(first, stop, STEP):
        for number in misread(np.arange(start, min(start + STEP, stop), dtype=np.uint32).view(np.float32)):
            print(f"{number.item().hex()} is {number!s} to those who read float32")
    print(f"{stop - first} numbers seen")


if __name__ == "__main__":
    main()
