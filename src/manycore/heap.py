"""`multiprocessing.heap` itself, under the name by which a program that was moved here imports it.

Nothing here uses it: shared memory is `manycore.shared_memory`'s.
"""

import sys
from multiprocessing import heap as _standard

sys.modules[__name__] = _standard
