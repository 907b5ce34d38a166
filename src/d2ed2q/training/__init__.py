"""Training of any module in resumable phases.

Names are imported when they are first used: who reads a run's files does not wait for what trains.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
