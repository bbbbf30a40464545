"""`multiprocessing.util` itself, under the name by which a program that was moved here imports it.

Finalizers, the logger and what is called after a fork are one for both libraries, so there is nothing to be ours.
"""

import sys
from multiprocessing import util as _standard

sys.modules[__name__] = _standard
