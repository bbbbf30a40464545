"""`multiprocessing.resource_sharer` itself, under the name by which a program that was moved here imports it.

Nothing here uses it: manycore sends descriptors to processes that run already by its own means.
"""

import sys
from multiprocessing import resource_sharer as _standard

sys.modules[__name__] = _standard
