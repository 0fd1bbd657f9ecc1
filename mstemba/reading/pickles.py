"""Check a pickle before it is read: a few bytes of one can ask for any amount of memory or time.

The unpicklers of Python and torch allocate a memo as large as its highest index, and a text as long
as its length, before they look at what follows. They also hash a tuple that holds the same tuple
twice, which does so again, and so on, value by value.
"""

from __future__ import annotations

import pickle
import pickletools

from mstemba.limits import LONGEST_NAME, SHARED_VALUES, SPARE_MEMORY

_MARK = pickletools.markobject
_PUSH, _NAME, _COLLECT, _CALL, _ADD, _GET, _PUT, _OTHER = range(8)
_ACTIONS = {
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _NAME),
    **dict.fromkeys(("REDUCE", "NEWOBJ", "NEWOBJ_EX"), _CALL),
    **dict.fromkeys(("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"), _ADD),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _GET),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _PUT),
    **dict.fromkeys(("MARK", "POP", "POP_MARK", "DUP", "STOP", "PROTO", "FRAME"), _OTHER),
}
# Bytes of memory that an operation takes, apart from its argument and its place in a list.
_MEMORY = {
    **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE", "BININT1", "EMPTY_TUPLE"), 0),
    **dict.fromkeys(("EMPTY_LIST", "LIST"), 60),
    **dict.fromkeys(("EMPTY_DICT", "DICT", "EMPTY_SET", "FROZENSET"), 250),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL", "REDUCE", "INST", "OBJ", "NEWOBJ"), 200),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), 100),
}
_PLACE, _VALUE = 16, 32


def _action(operation: pickletools.OpcodeInfo) -> int:
    takes = operation.stack_before
    return _ACTIONS.get(operation.name, _COLLECT if takes else _PUSH)


# By code: name, action, length of the argument (negative: see below), whether it takes what is
# above the mark, how many values it takes, its memory.
_OPERATIONS = {
    ord(operation.code): (
        operation.name,
        _action(operation),
        operation.arg.n if operation.arg else 0,
        _MARK in operation.stack_before,
        len(operation.stack_before) - (_action(operation) == _ADD),
        _PLACE + _MEMORY.get(operation.name, _VALUE),
    )
    for operation in pickletools.opcodes
}
# Of numbers and the like, which most operations are of: the length with its argument.
_SMALL = {
    code: 1 + length
    for code, (_, action, length, _, _, memory) in _OPERATIONS.items()
    if action == _PUSH and length >= 0 and memory <= _PLACE + _VALUE
}
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_SHORT = 1000
_SCATTERED = 1000
"""How far the indexes of a memo may be from dense."""
_Weight = list[int]
"""How many bytes and values an object holds if each counts wherever it occurs. Objects that grow
have their own list; all small values share one."""


def check_pickle(content: bytes, begin: int = 0) -> int:
    """Check that a pickle is complete, and would not take much memory or time.

    Args:
        content: A file, which may hold several pickles and more.
        begin: Where the pickle begins.

    Returns:
        Where it ends.

    Raises:
        ValueError: It is incomplete, or would take much memory or time.
        UnpicklingError: It calls something other than a class or a function that it names.
    """
    try:
        return _Machine(content).run(begin)
    except IndexError:
        raise ValueError("it is damaged or incomplete") from None


class _Machine:
    """Follows the operations of a pickle without making its objects."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._stack: list[_Weight] = []
        self._marks: list[int] = []
        self._memo: dict[int, _Weight] = {}
        self._shared = len(content) + SHARED_VALUES
        self._one: _Weight = [1]
        self._named: _Weight = [1]
        """A class or a function that the pickle names."""

    def run(self, place: int) -> int:
        content, stack, one = self._content, self._stack, self._one
        memory, most = 0, 3 * len(content) + SPARE_MEMORY
        while True:
            before = len(stack)
            while step := _SMALL.get(content[place]):
                place += step
                stack.append(one)
            memory += (_PLACE + _VALUE) * (len(stack) - before)
            operation = _OPERATIONS.get(content[place])
            if operation is None:
                raise ValueError(f"it is damaged: unknown operation at byte {place}")
            name, action, length, to_mark, takes, cost = operation
            begin = end = place + 1
            weight = one
            if length:
                begin, end = self._argument(name, length, place + 1)
                if length < 0:
                    size = self._size(name, begin, end)
                    cost += size
                    weight = one if size <= _SHORT else [size]
            memory += cost
            if memory > most:
                raise ValueError(
                    f"{len(content) / 2**20:,.0f} MB of values so small that they would take much "
                    f"more memory: save arrays, not lists"
                )
            if action == _PUSH:
                stack.append(weight if length else [1])  # a list, a dict or a set grows
            elif action == _COLLECT:
                stack.append([1 + self._take(to_mark, takes)])
            elif action == _NAME:
                self._take(to_mark, takes)
                stack.append(self._named)
            elif action == _CALL:
                # torch takes hours to say that it cannot call a long text.
                if stack[-takes] is not self._named:
                    raise pickle.UnpicklingError("it calls what is not a class or a function")
                stack.append([1 + self._take(to_mark, takes)])
            elif action == _ADD:
                self._add(self._take(to_mark, takes))
            elif action == _OTHER:
                if name == "STOP":
                    return end
                self._move(name)
            else:
                index = self._index(name, content[begin:end])
                if action == _GET:
                    self._push_again(self._memo[index])
                else:
                    self._memo[index] = stack[-1]
            place = end

    def _argument(self, name: str, length: int, place: int) -> tuple[int, int]:
        """Return begin and end of an operation's argument."""
        content = self._content
        if length == pickletools.UP_TO_NEWLINE:
            end = content.index(b"\n", place) + 1
            if name not in ("GLOBAL", "INST"):
                return place, end
            end = content.index(b"\n", end) + 1
            if end - place > LONGEST_NAME:  # torch takes hours to say what it does not know
                raise ValueError(f"the name of a class has {end - place:,} bytes")
            return place, end
        if length < 0:
            width = _LENGTHS[length]
            length = int.from_bytes(content[place : place + width], "little")
            place += width
        if place + length > len(content):
            raise ValueError(f"it promises {length:,} bytes at byte {place}, where it ends before")
        return place, place + length

    def _size(self, name: str, begin: int, end: int) -> int:
        """Return the memory that a text or bytes take."""
        size = end - begin
        if name in ("STRING", "BINSTRING", "SHORT_BINSTRING"):
            return 2 * size  # an array of Python 2, of which the bytes are made
        if "UNICODE" not in name or (text := self._content[begin:end]).isascii():
            return size
        widest = max(text)
        return size * (4 if widest >= 0xF0 or name == "UNICODE" else 2 if widest >= 0xC4 else 1)

    def _take(self, to_mark: bool, count: int) -> int:
        """Remove values from the stack, and return their weight."""
        stack = self._stack
        first = self._marks.pop() if to_mark else len(stack) - count
        if first < 0:
            raise IndexError
        weight = sum([item[0] for item in stack[first:]])
        del stack[first:]
        return weight

    def _add(self, weight: int) -> None:
        """Let the last value on the stack grow."""
        if self._stack[-1] is self._one or self._stack[-1] is self._named:
            self._stack[-1] = [1]
        self._stack[-1][0] += weight

    def _push_again(self, weight: _Weight) -> None:
        self._shared -= weight[0] - 1
        if self._shared < 0:
            raise ValueError("it names the same lists or arrays too often: save arrays, not lists")
        self._stack.append(weight)

    def _move(self, name: str) -> None:
        if name == "MARK":
            self._marks.append(len(self._stack))
        elif name == "POP_MARK" or (name == "POP" and self._marks[-1:] == [len(self._stack)]):
            self._take(True, 0)
        elif name == "POP":
            self._stack.pop()
        elif name == "DUP":
            self._push_again(self._stack[-1])

    def _index(self, name: str, argument: bytes) -> int:
        """Return the place in the memo that an operation names."""
        memo = self._memo
        if name == "MEMOIZE":
            return len(memo)
        index = int(argument) if name in ("GET", "PUT") else int.from_bytes(argument, "little")
        if "GET" in name and index not in memo:
            raise ValueError(f"it names value {index}, which it does not have")
        if not 0 <= index <= 2 * len(memo) + _SCATTERED:
            raise ValueError(f"it has {len(memo)} values, and calls the next one {index}")
        return index
