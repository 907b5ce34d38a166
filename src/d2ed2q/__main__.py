"""``python -m d2ed2q`` is the command line."""

from d2ed2q.cli import main

raise SystemExit(main())
