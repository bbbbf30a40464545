"""`multiprocessing.spawn` itself, under the name by which a program that was moved here imports it.

Only the processes of the standard start method "spawn" use it; manycore's own are the zygote's.
"""

import sys
from multiprocessing import spawn as _standard

sys.modules[__name__] = _standard
