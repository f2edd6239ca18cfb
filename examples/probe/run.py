"""What each standard component does to feature dimension and Jacobian rank, at a size for a laptop.

    python examples/probe/run.py [--out DIR] [--small]

Writes probe.png, probe.csv and probe.json. Some twenty seconds on one CPU core; --small: five components.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import rankscope as rs

FEW = ("fc", "relu", "maxpool", "batchnorm_eval", "layernorm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/example-probe"))
    parser.add_argument("--small", action="store_true", help="five components, 8×4×4 and 80 samples")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.small:
        results = rs.probe_all(FEW, input_shape=(8, 4, 4), samples=80, progress=False, device="cpu")
    else:
        results = rs.probe_all(scale="small", progress=False, device="cpu")
    print(results)
    results.plot().figure.savefig(arguments.out / "probe.png")
    results.table().to_csv(arguments.out / "probe.csv", index=False)
    (arguments.out / "probe.json").write_text(json.dumps(results.to_dict(), indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote probe.png, probe.csv and probe.json in {arguments.out}")


if __name__ == "__main__":
    main()
