"""Images and masks from the disk to augmented batches, and a built-in phantom that needs no data at all.

Names are imported when they are first used: what needs no PyTorch works where it is not installed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
