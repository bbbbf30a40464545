# Included by ring.pyx: the task ring's side of c/task_ring.h.


cdef class TaskRing:
    """One process publishes tasks, many workers claim them; the bell tells the publisher of results.

    Args:
        buffer: Writable shared memory of at least `TaskRing.nbytes(slots)` bytes.
        slots: How many tasks can be published at once, to create the ring; 0 to use one that exists.

    Raises:
        ValueError: The memory is too small, or holds no task ring of this version.

    Attributes:
        sent_bytes: Of all frames that this object has published.

    Process-safety: publish, kick, withdraw, repair and the bell belong to one process, under a lock of its own;
    claim, begin, wait and notify to the workers. If a process dies: see c/task_ring.h.
    """

    cdef mc_tasks *tasks
    cdef mc_slot *slot
    cdef mc_spinner spinner
    cdef mc_spinner fg_spinner
    cdef int64_t notified_ns
    cdef int64_t lease          # a worker's, see c/task_ring.h
    cdef readonly uint64_t sent_bytes
    cdef char *sign_at
    cdef uint32_t sign_length
    cdef uint64_t sign_before
    cdef char[SIGN_BYTES] sign
    cdef object buffer
    cdef const uint8_t[::1] view

    def __cinit__(self, uint8_t[::1] buffer, uint32_t slots=0):
        self.tasks = <mc_tasks *>&buffer[0]
        if slots:
            if mc_tasks_bytes(slots) > <size_t>buffer.shape[0]:
                raise ValueError(f"a task ring of {slots} slots needs {mc_tasks_bytes(slots)} bytes, not {buffer.shape[0]}")
            mc_tasks_init(self.tasks, slots)
        elif not mc_tasks_valid(self.tasks, buffer.shape[0]):
            raise ValueError("this memory holds no task ring of this version of manycore")
        self.buffer = buffer

    @staticmethod
    def nbytes(uint32_t slots):
        """The bytes that a ring of `slots` slots takes."""
        return mc_tasks_bytes(slots)

    def address(self):
        """Where it is, for another extension; good as long as this object is."""
        return <uintptr_t>self.tasks

    cdef mc_page *page(self, unsigned worker) except NULL:
        if worker >= MC_WORKERS_MAX:
            raise ValueError(f"worker {worker} is not below {MC_WORKERS_MAX}")
        return &self.tasks.pages[worker]

    # the parent

    def publish(self, uint64_t task, uint32_t function, uint32_t flags, bytes head, bytes payload, record=None,
                state=None):
        """Publish a task, its frame being `head + payload`, and wake a worker.

        Where there is a `record`, its `ticket` and its `state` are set here: no signal can come between.

        Returns:
            Its ticket, or -1 when the ring is full.
        """
        cdef Py_ssize_t length = PyBytes_GET_SIZE(head) + PyBytes_GET_SIZE(payload)
        if length > MC_SLOT_PAYLOAD:
            raise ValueError(f"a task's frame is {length} bytes, more than the {MC_SLOT_PAYLOAD} of a slot")
        cdef int64_t ticket = mc_publish(
            self.tasks, task, function, flags, PyBytes_AS_STRING(head), <uint32_t>PyBytes_GET_SIZE(head),
            PyBytes_AS_STRING(payload), <uint32_t>PyBytes_GET_SIZE(payload),
        )
        if ticket >= 0:
            self.sent_bytes += length
            if record is not None:
                record.ticket = ticket
                record.state = state
            mc_kick(self.tasks)
        return ticket

    def holds(self, uint64_t ticket):
        """Whether a published task is still in its slot: not claimed, or being copied by the worker that claimed it."""
        return mc_holds(self.tasks, ticket)

    def ready(self):
        """Tasks that are published and not claimed."""
        return mc_ready(self.tasks)

    def kick(self):
        """Wake a worker if a task is ready; after a death, since the dead may have taken a wake-up along."""
        if mc_ready(self.tasks):
            mc_wake_one(self.tasks)

    def withdraw(self, uint64_t ticket):
        """Take a published task back; False when a worker has claimed it."""
        return mc_withdraw(self.tasks, ticket)

    def repair(self, unsigned worker):
        """Free what the dead worker claimed and never began; returns the ids of these tasks."""
        self.page(worker)
        cdef uint64_t[64] tasks
        cdef uint32_t found = mc_repair(self.tasks, worker, tasks, 64)
        return [tasks[i] for i in range(min(found, 64))]

    def reset(self, unsigned worker):
        """Clear the page of a worker that is gone, for its successor."""
        cdef mc_page *page = self.page(worker)
        MC_STORE(page.asleep, 0)
        MC_STORE(page.stop, 0)
        MC_STORE(page.task, 0)
        MC_STORE(page.item, 0)
        MC_STORE(page.started_ns, 0)
        MC_STORE(page.items_done, 0)
        MC_STORE(page.busy_ns, 0)
        MC_STORE(page.heard, 0)

    def unclaimed(self):
        """How many published tasks no worker has claimed. Counts them: for the few of a small window."""
        cdef mc_tasks *tasks = self.tasks
        cdef uint64_t ticket, head = MC_LOAD(tasks.head), found = 0
        for ticket in range(max(MC_LOAD(tasks.tail), head - tasks.slots), head):
            found += mc_is_ready(tasks, ticket)
        return found

    def recall(self, dict records, state):
        """Take back all that no worker has claimed.

        Args:
            records: The tasks by id; of each that is taken back, `ticket` and `state` are set here.
            state: What `state` becomes.

        Returns:
            These tasks, in the order of their publication.
        """
        cdef mc_tasks *tasks = self.tasks
        cdef uint64_t ticket, head = MC_LOAD(tasks.head)
        cdef list taken = []
        for ticket in range(max(MC_LOAD(tasks.tail), head - tasks.slots), head):
            if mc_withdraw(tasks, ticket):
                record = records.get(mc_slot_of(tasks, ticket).task)
                if record is not None:
                    record.ticket = -1
                    record.state = state
                    taken.append(record)
        return taken

    def stop(self, unsigned worker, bint now=False):
        """Tell a worker to leave when no task is ready; `now`: after the one that it has."""
        MC_STORE(self.page(worker).stop, 2 if now else 1)
        mc_wake_worker(self.tasks, worker)

    def hear(self, unsigned worker):
        """As the parent: one more log record of the worker's has been handled."""
        cdef mc_page *page = self.page(worker)
        MC_STORE(page.heard, MC_LOAD(page.heard) + 1)

    def heard(self, unsigned worker):
        """How many log records of the worker's the parent has handled."""
        return MC_LOAD(self.page(worker).heard)

    def status(self, unsigned worker):
        """What a worker does: (task or 0, item, started_ns, items_done, busy_ns)."""
        cdef mc_page *page = self.page(worker)
        return (MC_LOAD(page.task), MC_LOAD(page.item), <int64_t>MC_LOAD(page.started_ns), MC_LOAD(page.items_done),
                <int64_t>MC_LOAD(page.busy_ns))

    # the bell

    def alarms(self):
        """How many alarms there were; ask before looking for what they tell of, and hand it to the wait after."""
        return MC_LOAD(self.tasks.alarms)

    def wait(self, list rings, uint64_t alarms, object deadline_ns=None, Turn turn=None):
        """As the thread that entered: wait for a result in `rings`, an alarm after `alarms`, or the deadline (False).

        It spins before it sleeps, unless the workers that are awake need all cores, or this one. The turn is given up before a
        signal's handler is called, which may take long, or wait for others.
        """
        if turn is not None and not turn.is_mine():
            return True
        cdef int64_t deadline = deadline_of(deadline_ns)
        cdef Rings waiting = Rings(rings)
        cdef int e = 0
        cdef int64_t since_ns
        cdef mc_tasks *tasks = self.tasks
        cdef bint spins = (
            <Py_ssize_t>len(rings) - mc_asleep(tasks) < <Py_ssize_t>mc_spin_cores(&self.fg_spinner)
            and not mc_is_here(&tasks.claimer_cpu)
        )
        with nogil:
            if not (spins and mc_spin(&self.fg_spinner, rings_ready, <void *>waiting.pointers)):
                MC_STORE(tasks.fg, 2)
                if not rings_ready(<void *>waiting.pointers) and MC_LOAD(tasks.alarms) == alarms:
                    if mc_ready(tasks):
                        mc_wake_one(tasks)
                    since_ns = mc_now_ns()
                    e = mc_wait(&tasks.fg, 2, deadline)
                    mc_slept(&self.fg_spinner, since_ns)
                MC_STORE(tasks.fg, 1)
        if e == EINTR:
            if turn is not None:
                turn.abandon()
            PyErr_CheckSignals()
        return e != ETIMEDOUT

    def wait_background(self, list rings, uint64_t alarms, object deadline_ns=None):
        """As the collector thread: sleep until a result is there and nobody else collects, an alarm, or the deadline."""
        cdef int64_t deadline = deadline_of(deadline_ns)
        cdef Rings waiting = Rings(rings)
        cdef mc_tasks *tasks = self.tasks
        cdef int e = 0
        with nogil:
            MC_STORE(tasks.bg, 1)
            if (MC_LOAD(tasks.fg) != 0 or not rings_ready(<void *>waiting.pointers)) and MC_LOAD(tasks.alarms) == alarms:
                e = mc_wait(&tasks.bg, 1, deadline)
            MC_STORE(tasks.bg, 0)
        return e != ETIMEDOUT

    def alarm(self):
        """Wake whoever waits for results: something else has happened."""
        mc_alarm(self.tasks)

    # a worker

    def claim(self, unsigned worker):
        """Claim a task: (task, function, flags, payload), or None when none is ready.

        From here on the worker's page says that the task's code may have begun.
        """
        cdef mc_page *page = self.page(worker)
        if MC_LOAD(page.stop) == 2:
            return None
        cdef mc_slot *slot = mc_claim(self.tasks, worker, &self.lease)
        if slot == NULL:
            return None
        cdef uint32_t length = slot.length
        if length > <uint32_t>MC_SLOT_PAYLOAD:
            raise ValueError(f"the task ring is damaged: a payload of {length} bytes")
        claimed = (slot.task, slot.function, slot.flags, PyBytes_FromStringAndSize(<char *>slot.payload, length))
        MC_STORE(page.item, <uint64_t>0xffffffffffffffff)  # DECODING
        MC_STORE(page.started_ns, mc_now_ns())
        MC_STORE(page.task, slot.task)
        mc_free(slot)
        return claimed

    def post(self, unsigned long address, uint32_t room, bytes text):
        """What is to stand behind this process's title while a task runs: `text`, at `address`, where there is room.

        Nothing is written once the task has given the process another title. A copy of some ten bytes when a task
        begins and when it ends is all that it costs: `ps` reads them itself.
        """
        if self.sign_at == NULL and room:
            self.sign_at = <char *>address
            memcpy(&self.sign_before, self.sign_at - 8, 8)
        self.sign_length = <uint32_t>min(PyBytes_GET_SIZE(text), <Py_ssize_t>SIGN_BYTES)
        if self.sign_length > room:
            self.sign_length = 0
        memcpy(self.sign, PyBytes_AS_STRING(text), self.sign_length)

    cdef inline void hang_out(self) noexcept:
        if self.sign_length and memcmp(&self.sign_before, self.sign_at - 8, 8) == 0:
            memcpy(self.sign_at, self.sign, self.sign_length)

    cdef inline void take_in(self) noexcept:
        if self.sign_length and memcmp(&self.sign_before, self.sign_at - 8, 8) == 0:
            memset(self.sign_at, 0, self.sign_length)

    def begin(self, unsigned worker, uint64_t item):
        """The code of this item of the claimed task begins; returns now, in ns."""
        self.hang_out()
        cdef mc_page *page = &self.tasks.pages[worker & (MC_WORKERS_MAX - 1)]
        cdef int64_t now = mc_now_ns()
        MC_STORE(page.started_ns, now)
        MC_STORE(page.item, item)
        return now

    def done(self, unsigned worker, int64_t took_ns, uint64_t items):
        """The claimed task is over and its results are in the result ring."""
        self.take_in()
        cdef mc_page *page = &self.tasks.pages[worker & (MC_WORKERS_MAX - 1)]
        MC_STORE(page.items_done, MC_LOAD(page.items_done) + items)
        MC_STORE(page.busy_ns, <int64_t>MC_LOAD(page.busy_ns) + took_ns)
        MC_STORE(page.task, 0)

    def wait_task(self, unsigned worker, object deadline_ns=None, bint collected=False):
        """Wait until a task may be ready or `stop` is set; False at the deadline.

        The collector is told before the worker sleeps, unless it has `collected` all that the worker put.
        """
        cdef int64_t deadline = deadline_of(deadline_ns)
        cdef int e
        self.page(worker)
        with nogil:
            e = mc_worker_wait(self.tasks, worker, &self.spinner, &self.lease, collected, deadline)
        if e == EINTR:
            PyErr_CheckSignals()
        return e != ETIMEDOUT

    def decline(self):
        """This worker takes no more tasks for a while, or none at all: another is woken for those that it was to have."""
        mc_decline(self.tasks, &self.lease)

    def stopped(self, unsigned worker):
        """Whether the parent wants this worker to leave."""
        return MC_LOAD(self.page(worker).stop) != 0

    cdef inline void notify_of(self, mc_results *results) noexcept:
        """As `notify`, unless all that was put in these has been collected: who waited spun, and was faster."""
        cdef int64_t now
        if not mc_results_empty(results):
            now = mc_now_ns()
            if now - self.notified_ns > NOTIFY_NS:
                self.notified_ns = now
                mc_notify(self.tasks, True)
            else:
                mc_notify(self.tasks, False)

    def notify(self, bint urgent=False):
        """Records were put: tell a thread that waits for one; the collector thread too if it is `urgent`, else at most
        once a millisecond.
        """
        cdef int64_t now = mc_now_ns()
        urgent = urgent or now - self.notified_ns > NOTIFY_NS
        if urgent:
            self.notified_ns = now
        mc_notify(self.tasks, urgent)
