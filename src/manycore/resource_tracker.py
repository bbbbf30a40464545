"""`multiprocessing.resource_tracker` itself, under the name by which a program that was moved here imports it.

Nothing here uses it: what manycore makes has no name that could be left over.
"""

import sys
from multiprocessing import resource_tracker as _standard

sys.modules[__name__] = _standard
