"""The paper's evaluation command: python eval.py --model-path D2ED2Q_DRIVE.pth."""

import sys

from d2ed2q.errors import D2ED2QError
from d2ed2q.recipes.console import show
from d2ed2q.recipes.paper import evaluate_paper
from d2ed2q.recipes.tables import figures_table

if __name__ == "__main__":
    try:
        show(*figures_table(evaluate_paper()))
    except D2ED2QError as error:
        print(f"eval.py: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("eval.py: stopped", file=sys.stderr)
        raise SystemExit(130) from None
