"""Draw the figure of docs/guides/probe.md: what each standard component does, at a size for a laptop.

    python examples/probe/run.py [--out docs/images/probe.png]

Some seconds on one CPU core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import rankscope as rs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/probe.png"))
    args = parser.parse_args()
    results = rs.probe_all(scale="small", device="cpu", progress=False)
    print(results)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results.plot().figure.savefig(args.out)
    print(f"\nwritten: {args.out}")


if __name__ == "__main__":
    main()
