"""The paper's training command: python train.py --backbone CE-Net --dataset DRIVE --alpha 0.005 --epoch 1200."""

import sys

from d2ed2q.errors import D2ED2QError, Interrupted
from d2ed2q.recipes.paper import train_paper

if __name__ == "__main__":
    try:
        print(f"weights: {train_paper()}")
    except D2ED2QError as error:
        hint = "; go on with the same command and --resume" if isinstance(error, Interrupted) else ""
        print(f"train.py: {error}{hint}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("train.py: stopped; go on with the same command and --resume", file=sys.stderr)
        raise SystemExit(130) from None
