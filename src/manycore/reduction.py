"""`multiprocessing.reduction` itself, under the name by which a program that was moved here imports it.

What is registered with its `ForkingPickler` is honoured by manycore, so there must be one for both libraries.
"""

import sys
from multiprocessing import reduction as _standard

sys.modules[__name__] = _standard
