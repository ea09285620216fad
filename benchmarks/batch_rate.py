"""How fast a checkout of gpt2cli, the one in PYTHONPATH, decodes some texts at once: tokens/s.

PYTHONPATH=CHECKOUT python benchmarks/batch_rate.py DIRECTORY PRECISION COUNT
"""

from __future__ import annotations

import sys
from pathlib import Path

from batch import GREEDY, Bench, decode_rate

if __name__ == "__main__":
    directory, precision, count = sys.argv[1:]
    bench = Bench(Path(directory), 1, [precision])
    rates = [decode_rate(bench, precision, int(count), GREEDY) for _ in range(3)]
    print(max(rates[1:]))  # the first touches memory
