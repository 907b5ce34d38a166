"""A trained ensemble ↔ one file, and the engines that run it behind one face.

Names are imported when they are first used: what needs no PyTorch works where it is not installed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
