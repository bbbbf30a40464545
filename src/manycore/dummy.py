"""`multiprocessing.dummy` itself, under the name by which a program that was moved here imports it.

It is the standard interface over threads; there is no process in it that could be ours.
"""

import sys
from multiprocessing import dummy as _standard
from multiprocessing.dummy import connection as _connection

sys.modules[__name__] = _standard
sys.modules[f"{__name__}.connection"] = _connection
