# The shield, part of `ring.pyx`: steps that a Ctrl-C does not come between (c/shield.h).

import os

from manycore._native.step cimport enter_step, leave_step

cdef extern from "shield.h" nogil:
    bint mc_shield_raise()
    bint mc_shield_lower()
    void mc_shield_drop()

cdef object MAIN = threading.main_thread().ident


cdef class Shield:
    """`with SHIELD:` the steps inside belong together: KeyboardInterrupt comes after them, or before the `with`.

    For short steps that wait for nobody's code but ours. In other threads than the main one, where no signal's handler
    runs, it does nothing. Entering and leaving are single steps; shields may be nested. What other signals' handlers
    raise still comes between.
    """

    cdef object held  # what a signal that had come before brought, to be raised at the end

    def __enter__(self):
        if get_ident() != MAIN:
            return
        enter_step()
        if mc_shield_raise():
            try:
                PyErr_CheckSignals()
            except BaseException as error:
                self.held = error

    def __exit__(self, kind, error, traceback):
        if get_ident() != MAIN:
            return
        outermost = mc_shield_lower()
        leave_step()
        if outermost and self.held is not None:
            held, self.held = self.held, None
            raise held

    @property
    def main(self):
        """Whether this is the thread that Ctrl-C comes to."""
        return get_ident() == MAIN


SHIELD = Shield()


def _forked() -> None:
    global MAIN
    MAIN = get_ident()
    mc_shield_drop()
    (<Shield>SHIELD).held = None


os.register_at_fork(after_in_child=_forked)
