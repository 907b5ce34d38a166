"""The paper's training command: python train.py --backbone CE-Net --dataset DRIVE --alpha 0.005 --epoch 1200."""

import sys

from d2ed2q.errors import D2ED2QError
from d2ed2q.recipes.paper import train_paper

if __name__ == "__main__":
    try:
        print(f"weights: {train_paper()}")
    except D2ED2QError as error:
        print(f"train.py: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
