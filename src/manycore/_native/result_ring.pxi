# Included by ring.pyx: the result ring, c/result_ring.h, and the loop that fills it.


class BrokenRing(Exception):
    """The bytes of a result ring are not what a worker's runtime writes."""


cdef class ResultRing:
    """Records of bytes from one worker to the parent.

    Args:
        buffer: Writable shared memory.
        create: Make an empty ring that fills the memory; otherwise use the one that is there.

    Attributes:
        taken_bytes: Of all payloads that this object has taken.

    Raises:
        ValueError: The memory is too small, or holds no result ring of this version.
    """

    cdef mc_results *results
    cdef object buffer
    cdef TaskRing bell
    cdef public uint64_t taken_bytes
    cdef uint64_t put_task, put_next        # what a short record would be taken for, as the worker knows it;
    cdef uint64_t taken_task, taken_next    # as the parent knows it; item 0: for nothing
    cdef object leave                       # None but in a fork of the worker

    def __cinit__(self, uint8_t[::1] buffer, bint create=False, TaskRing bell=None):
        cdef uint64_t capacity = 4096
        self.results = <mc_results *>&buffer[0]
        self.bell = bell
        if create:
            if <size_t>buffer.shape[0] < sizeof(mc_results) + 4096:
                raise ValueError(f"a result ring needs more than {buffer.shape[0]} bytes")
            while capacity * 2 <= <uint64_t>buffer.shape[0] - sizeof(mc_results):
                capacity *= 2
            mc_results_init(self.results, capacity)
        elif not mc_results_valid(self.results, buffer.shape[0]):
            raise ValueError("this memory holds no result ring of this version of manycore")
        self.buffer = buffer

    def address(self):
        """Where it is, for another extension; good as long as this object is."""
        return <uintptr_t>self.results

    def disown(self, leave):
        """In a fork of the worker, which has no say here: whatever would write a record calls `leave` instead."""
        self.leave = leave
        self.put_next = 0  # no short record: they do not look

    def check(self):
        """In a fork of the worker, call what `disown` was given."""
        if self.leave is not None:
            self.leave()

    cdef mc_record *reserve(self, uint32_t length) except NULL:
        cdef uint32_t size = (<uint32_t>sizeof(mc_record) + length + 7) & ~<uint32_t>7
        cdef mc_record *record = mc_reserve(self.results, size)
        cdef int e
        if size > self.results.capacity // 2:
            raise ValueError(f"a record of {length} bytes does not fit the result ring")
        while record == NULL:
            if self.bell is not None:
                mc_decline(self.bell.tasks, &self.bell.lease)
                mc_notify(self.bell.tasks, True)
            with nogil:
                e = mc_wait_room(self.results, size)
            if e == EINTR:
                PyErr_CheckSignals()
            record = mc_reserve(self.results, size)
        record.size = size
        record.length = length
        return record

    cdef int write(self, uint64_t task, uint64_t item, uint8_t status, uint8_t kind, uint16_t flags, int64_t took_ns,
                   const void *payload, uint32_t length) except -1:
        if self.leave is not None:
            self.leave()
        cdef mc_record *record = self.reserve(length)
        record.status = status
        record.kind = kind
        record.flags = flags
        record.task = task
        record.item = item
        record.took_ns = took_ns
        memcpy(<uint8_t *>record + sizeof(mc_record), payload, length)
        self.put_task = task
        self.put_next = 0 if kind == KIND_PICKLE else item + 1
        mc_commit(self.results, record.size)
        return 0

    cdef int write_small(self, uint64_t task, uint64_t item, uint8_t kind, int64_t took_ns, uint64_t value) except -1:
        """A result of at most 8 bytes: a short record, where the one before it is of the item before."""
        cdef mc_short *record
        if self.put_next == item and self.put_task == task and item and took_ns <= 0xffff:
            record = <mc_short *>mc_reserve(self.results, sizeof(mc_short))
            if record != NULL:
                record.size = sizeof(mc_short)
                record.status = 0
                record.kind = kind
                record.took_ns = <uint16_t>took_ns
                record.value = value
                self.put_next = item + 1
                mc_commit(self.results, sizeof(mc_short))
                return 0
        return self.write(task, item, 0, kind, 0, took_ns, &value, 8 if kind == KIND_INT or kind == KIND_FLOAT else 0)

    def put(self, uint64_t task, uint64_t item, uint8_t status, int64_t took_ns, bytes payload, uint16_t flags=0):
        """Append a record; a payload longer than FRAGMENT_BYTES goes in several. Waits while the ring is full."""
        cdef const char *at = PyBytes_AS_STRING(payload)
        cdef Py_ssize_t left = PyBytes_GET_SIZE(payload)
        cdef Py_ssize_t most = FRAGMENT_BYTES
        while left > most:
            self.write(task, item, status, KIND_PICKLE, flags | MORE, took_ns, at, <uint32_t>most)
            at += most
            left -= most
        self.write(task, item, status, KIND_PICKLE, flags, took_ns, at, <uint32_t>left)

    def offer(self, uint64_t task, uint64_t item, uint8_t status, bytes payload):
        """As `put`, from any thread, if there is room now and to spare; False otherwise."""
        cdef Py_ssize_t length = PyBytes_GET_SIZE(payload)
        if length > FRAGMENT_BYTES:
            raise ValueError(f"{length} bytes are too long for one record")
        if mc_results_used(self.results) > self.results.capacity // 2:
            return False
        self.write(task, item, status, KIND_PICKLE, 0, 0, PyBytes_AS_STRING(payload), <uint32_t>length)
        return True

    cpdef bint put_plain(self, uint64_t task, uint64_t item, int64_t took_ns, object value) except -1:
        """Append a result that needs no pickling (None, bool, int, float, short str or bytes); False for any other."""
        cdef int64_t number
        cdef double real
        cdef int overflow = 0
        cdef const char *text
        cdef Py_ssize_t length
        kind = type(value)
        if value is None:
            self.write_small(task, item, KIND_NONE, took_ns, 0)
        elif kind is int:
            number = PyLong_AsLongLongAndOverflow(value, &overflow)
            if overflow:
                return False
            self.write_small(task, item, KIND_INT, took_ns, <uint64_t>number)
        elif kind is float:
            real = PyFloat_AS_DOUBLE(value)
            memcpy(&number, &real, 8)
            self.write_small(task, item, KIND_FLOAT, took_ns, <uint64_t>number)
        elif value is True:
            self.write_small(task, item, KIND_TRUE, took_ns, 0)
        elif value is False:
            self.write_small(task, item, KIND_FALSE, took_ns, 0)
        elif kind is str:
            if len(value) > 4096:
                return False
            try:
                text = PyUnicode_AsUTF8AndSize(value, &length)
            except UnicodeEncodeError:  # lone surrogates
                return False
            self.write(task, item, 0, KIND_STR, 0, took_ns, text, <uint32_t>length)
        elif kind is bytes and PyBytes_GET_SIZE(value) <= 16384:
            self.write(task, item, 0, KIND_BYTES, 0, took_ns, PyBytes_AS_STRING(value), <uint32_t>PyBytes_GET_SIZE(value))
        else:
            return False
        return True

    def run(self, TaskRing tasks, unsigned worker, uint64_t task, Py_ssize_t first, function, list items, bint star,
            bint awaited, raised, pickled):
        """Run a chunk: begin, call, and put each item from `first` on.

        Args:
            tasks: Whose page of this worker names the item at each moment.
            worker: The worker's index.
            task: The chunk's task.
            first: The first item to run.
            function: Called with an item, or with `star` with the items of the item.
            items: The chunk.
            star: See above.
            awaited: Whether somebody waits for single results; else he is told of some at a time.
            raised: Called with (task, item, took_ns, error) for an item that raised; puts its record.
            pickled: Called with (task, item, took_ns, result) for a result that is not plain; puts its record.

        Returns:
            The time since the chunk began, in ns.
        """
        cdef mc_page *page = tasks.page(worker)
        cdef Py_ssize_t item, count = len(items)
        cdef int64_t begun = mc_now_ns(), started = begun, now, looked = begun, tick = mc_coarse_ns()
        cdef int64_t notify_ns = NOTIFY_NS if awaited else LATE_NOTIFY_NS
        cdef int64_t untimed = 0  # items that go on before the clock is read, unless its next tick comes first
        MC_STORE(page.started_ns, started)
        MC_STORE(page.item, <uint64_t>first)
        tasks.hang_out()
        for item in range(first, count):
            try:
                result = function(*items[item]) if star else function(items[item])
            except BaseException as error:  # also SystemExit: it is the item that ends, not the worker
                now = mc_now_ns()
                raised(task, item, now - started, error)
                untimed = 0
            else:
                if untimed > 0 and mc_coarse_ns() == tick:
                    untimed -= 1
                    now = started
                else:
                    now = mc_now_ns()
                    tick = mc_coarse_ns()
                    untimed = TOGETHER - 1 if now - started < TINY_NS * TOGETHER else 0
                if not self.put_plain(task, item, now - started, result):
                    pickled(task, item, now - started, result)
                    now = mc_now_ns()
            if now != started:
                started = now
                MC_RELEASE(page.started_ns, now)
                if now - tasks.notified_ns > notify_ns:
                    tasks.notify()
                elif now - looked > CROWDED_NS:
                    looked = now
                    if mc_results_used(self.results) > self.results.capacity // 2:
                        mc_notify(tasks.tasks, True)
            MC_RELEASE(page.item, <uint64_t>(item + 1))  # after the record
        return mc_now_ns() - begun

    def used(self):
        """Bytes that wait for the parent."""
        return mc_results_used(self.results)

    def crowded(self):
        """Whether the ring is more than half full, so that the parent should come soon."""
        return mc_results_used(self.results) > self.results.capacity // 2

    def empty(self):
        """Whether nothing waits."""
        return mc_results_empty(self.results)

    def serve(self, TaskRing tasks, unsigned worker, bytes head, function, Py_ssize_t most, raised, pickled, opened):
        """Claim tasks and run them, as long as they are calls of one function with packed arguments.

        Args:
            tasks: Where they come from.
            worker: The worker's index.
            head: What the frame of each begins with; the packed arguments follow.
            function: The function that `head` names.
            most: How many at the most.
            raised: Called with (task, item, took_ns, error) for one that raised; puts its record.
            pickled: Called with (task, item, took_ns, result) for a result that is not plain; puts its record.
            opened: Called with (task, frame) for arguments in a block; returns them, or None when it has put a record
                that says why they cannot be had.

        Returns:
            (how many were run, the claimed task that came after them and is another's to run, or None).
        """
        cdef mc_page *page = tasks.page(worker)
        cdef Py_ssize_t done = 0, length = PyBytes_GET_SIZE(head)
        cdef int64_t started, took
        cdef const uint8_t *frame
        while done < most:
            claimed = tasks.claim(worker)
            if claimed is None:
                return done, None
            number, tries, flags, data = claimed
            frame = <const uint8_t *>PyBytes_AS_STRING(data)
            if tries or PyBytes_GET_SIZE(data) <= length or memcmp(frame, PyBytes_AS_STRING(head), length) != 0:
                return done, claimed
            if flags == IN_BLOCKS:
                payload = opened(number, data)
                if payload is None:
                    done += 1
                    continue
                args, kwargs = payload
                payload = None
            elif flags or frame[length] != PACKED:
                return done, claimed
            else:
                try:
                    args, kwargs = unpack(data, length)
                except BaseException:  # who runs it decodes it again, and tells
                    return done, claimed
            started = tasks.begin(worker, 0)
            try:
                result = PyObject_Call(function, args, <PyObject *>kwargs if kwargs else NULL)
            except BaseException as error:  # also SystemExit: it is the task that ends, not the worker
                took = mc_now_ns() - started
                raised(number, 0, took, error)
            else:
                took = mc_now_ns()
                if flags == 0 and mc_ready(tasks.tasks) == 0 and done + 1 < most:  # and arguments whose end is short
                    mc_lease(tasks.tasks, &tasks.lease, took)
                took -= started
                if not self.put_plain(number, 0, took, result):
                    mc_decline(tasks.tasks, &tasks.lease)
                    pickled(number, 0, took, result)
            tasks.done(worker, took, 1)
            tasks.notify_of(self.results)
            claimed = data = args = kwargs = result = None  # nothing of a task is kept until the next one comes
            done += 1
        return done, None

    def take(self, list records, Py_ssize_t most=16384):
        """Append what waits to `records`, at most `most` of it; returns how many records were read.

        An entry is (task, item, status, took_ns, plain, flags, value). Where `plain` is true, `value` is a list of the
        results of this task's items from `item` on, which came one after the other, and took_ns is their sum; where
        it is false, `value` is the bytes of one pickle, or of a part of it (flag MORE).

        Raises:
            BrokenRing: Something else than a worker's runtime has written into the ring.
        """
        cdef mc_record *record
        cdef mc_short *small
        cdef c_bool broken = False
        cdef Py_ssize_t taken = 0
        cdef uint32_t length
        cdef const char *payload
        cdef uint8_t kind
        cdef uint64_t task, item
        cdef int64_t took_ns
        cdef list run = None
        cdef uint64_t run_task = 0, run_first = 0, run_next = 0
        cdef int64_t run_took = 0
        cdef mc_results *results = self.results
        cdef uint64_t head = 0, tail = MC_LOAD(results.tail), told = tail  # the worker knows of what is before `told`
        try:
            while taken < most:
                record = mc_look(results, head, &tail, &broken) if taken else NULL
                if record == NULL and not broken:
                    head = MC_LOAD(results.head)
                    record = mc_look(results, head, &tail, &broken)
                if record == NULL:
                    break
                kind = record.kind
                if record.size == sizeof(mc_short):
                    small = <mc_short *>record
                    payload = <const char *>&small.value
                    length = 8 if kind == KIND_INT or kind == KIND_FLOAT else 0
                    task = self.taken_task
                    item = self.taken_next
                    took_ns = small.took_ns
                    if not item or not KIND_PICKLE < kind <= KIND_FLOAT:
                        broken = True
                        break
                else:
                    payload = <const char *>record + sizeof(mc_record)
                    length = record.length
                    task = record.task
                    item = record.item
                    took_ns = record.took_ns
                    if kind > KIND_LAST or (kind == KIND_INT or kind == KIND_FLOAT) and length != 8:
                        broken = True
                        break
                if kind == KIND_INT:
                    value = (<int64_t *>payload)[0]
                elif kind == KIND_FLOAT:
                    value = (<double *>payload)[0]
                elif kind == KIND_NONE:
                    value = None
                elif kind == KIND_PICKLE or kind == KIND_BYTES:
                    value = PyBytes_FromStringAndSize(payload, length)
                elif kind == KIND_STR:
                    value = PyUnicode_DecodeUTF8(payload, length, NULL)
                else:
                    value = kind == KIND_TRUE
                if run is not None and (kind == KIND_PICKLE or task != run_task or item != run_next):
                    records.append((run_task, run_first, 0, run_took, True, 0, run))
                    run = None
                if kind == KIND_PICKLE:
                    records.append((task, item, record.status, took_ns, False, record.flags, value))
                elif run is None:
                    run = [value]
                    run_task = task
                    run_first = item
                    run_next = item + 1
                    run_took = took_ns
                else:
                    run.append(value)
                    run_next += 1
                    run_took += took_ns
                self.taken_task = task
                self.taken_next = 0 if kind == KIND_PICKLE else item + 1
                tail += record.size
                self.taken_bytes += length
                taken += 1
                if tail - told > results.capacity // 4:
                    told = tail
                    mc_take_to(results, tail)
        finally:
            if tail != told:
                mc_take_to(results, tail)
        if run is not None:
            records.append((run_task, run_first, 0, run_took, True, 0, run))
        if broken:
            raise BrokenRing("a record of a result ring cannot be: its worker's memory is damaged")
        return taken
