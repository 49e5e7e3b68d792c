"""The verdict on a model's code: what tests may take from it, and that no code writes its own verdict."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from nearstep.rewards.sandbox.run import run_python
from tests.lanes import sampled
from tests.rewards.test_sandbox import shut_in


def verdict(code, test, *, setup="", isolation="process", timeout=10.0):
    outcome = run_python(code, [test], setup=setup, timeout_seconds=timeout, memory_bytes=1 << 30, isolation=isolation)
    return outcome.passed[0], outcome.stderr


def test_without_an_attack_a_test_says_what_is_true():
    assert verdict("def f(x): return 2", "assert f(1) == 2")[0]
    assert not verdict("def f(x): return 1", "assert f(1) == 2")[0]


# --- Forging: every attack tries to pass `assert f(1) == 2`, or the test beside it, without knowing the 2

WRONG = "def f(x): return 1\n"
EQUAL_TO_ALL = (
    "class Any:\n"
    + "".join(
        f"    def __{name}__(self, *a): return True\n" for name in ("eq", "ne", "lt", "le", "gt", "ge", "contains")
    )
    + "".join(f"    def __{name}__(self, *a): return 0\n" for name in ("sub", "rsub", "abs", "round", "float", "hash"))
)
EVERY_FRAME = """import sys
frame = sys._getframe()
while frame := frame.f_back:
    for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
        for method in ('write', 'sendall', 'send', 'send_bytes'):
            for word in ('passed 0', b'passed 0\\n', b'started\\nran\\npassed 0\\nend\\n'):
                try: getattr(value, method)(word)
                except BaseException: pass
"""
SEARCH = """import gc
for value in gc.get_objects():
    name = type(value).__name__
    if name in ('socket', 'BufferedRWPair', 'SocketIO'):
        for method in ('write', 'sendall'):
            for word in ('passed 0', b'passed 0\\n', b'["return", true, null]\\n', b'["return", 2.5, null]\\n'):
                try: getattr(value, method)(word); value.flush()
                except BaseException: pass
"""
OPEN_FILES = """import os
for fd in range(3, 64):
    for word in (b'passed 0\\n', b'key passed 0\\n', b'ran\\npassed 0\\nend\\n'):
        try: os.write(fd, word)
        except OSError: pass
"""
OTHERS_FILES = """import glob
for path in glob.glob('/proc/[0-9]*/fd/*'):
    if any(word in __import__('os').readlink(path) for word in ('socket', 'deleted', 'pipe')):
        try: open(path, 'ab', buffering=0).write(b'passed 0\\n')
        except OSError: pass
"""
OWN_MEMORY = """import re
try:
    with open('/proc/self/maps') as maps, open('/proc/self/mem', 'r+b', 0) as memory:
        for line in maps:
            first, last, rights = re.match(r'(\\w+)-(\\w+) (\\S+)', line).groups()
            if rights.startswith('rw') and int(last, 16) - int(first, 16) < 1 << 24:
                memory.seek(int(first, 16))
                try: text = memory.read(int(last, 16) - int(first, 16))
                except OSError: continue
                for found in re.finditer(b'f[(]1[)] == ([0-9])', text): answer = int(found.group(1))
except OSError: pass
def f(x): return globals().get('answer', 1)
"""
SPEAKS_FIRST = """import os, socket, json
for fd in range(3, 64):
    for message in (['ran'], ['return', None, None], ['return', True, None], ['call', 0, ['tuple', []], ['dict', []]]):
        try: os.write(fd, json.dumps(message).encode() + b'\\n')
        except OSError: pass
"""
TAKES_THE_QUESTIONS = """import os, socket
if os.fork() == 0:
    for fd in range(3, 64):
        try: ends = socket.recv_fds(socket.socket(fileno=fd), 1, 9)[1]
        except OSError: continue
        for end in ends:
            while os.read(end, 1 << 16): os.write(end, b'["return", true, null]\\n')
"""
BUILTINS = """import builtins
builtins.exec = builtins.compile = builtins.print = lambda *a, **k: None
builtins.AssertionError = type('A', (), {})
builtins.__build_class__ = None
"""
STANDARD_LIBRARY = """import os, sys, json, io, socket, pickle, atexit, unittest
os.fork = lambda: 1
os.waitpid = lambda *a: (1, 0)
json.dumps = lambda *a, **k: '["return", 0, null]'
pickle.loads = pickle.Unpickler = None
unittest.TestCase.assertEqual = lambda *a: None
atexit.register(lambda: os.write(1, b'passed 0'))
sys.modules['__main__'] = sys.modules['builtins']
"""
ATTACKS = {
    "two lines of a review": 'import sys\nf=sys._getframe(1).f_locals; f["report"].write("passed 0")\n' + WRONG,
    "every frame": EVERY_FRAME + WRONG,
    "all objects": SEARCH + WRONG,
    "open files": OPEN_FILES + WRONG,
    "the files of others": OTHERS_FILES + WRONG,
    "own memory": OWN_MEMORY,
    "the tests' words": SPEAKS_FIRST + WRONG,
    "leaves at once": "import os; os._exit(0)",
    "exits at once": "import sys; sys.exit(0)",
    "leaves in the call": "import os\ndef f(x): os._exit(0)",
    "exits in the call": "def f(x): raise SystemExit(0)",
    "leaves with the launcher's number": "import os\ndef f(x): os._exit(77)",
    "exits in the call with the launcher's number": "def f(x): raise SystemExit(77)",
    "exits with the launcher's number": "raise SystemExit(77)",
    "takes the tests' questions": TAKES_THE_QUESTIONS + WRONG,
    "is killed in the call": "import os\ndef f(x): os.kill(os.getpid(), 9)",
    "ends its parent": "import os\ndef f(x): os.kill(os.getppid(), 9); return 1",
    "builtins": BUILTINS + WRONG,
    "the standard library": STANDARD_LIBRARY + WRONG,
    "a value equal to all": EQUAL_TO_ALL + "def f(x): return Any()",
    "a class equal to all": "class Kind(type):\n    def __eq__(a, b): return True\nclass f(metaclass=Kind):\n"
    "    def __new__(cls, x): return cls",
    "an int equal to all": "class N(int):\n    def __eq__(a, b): return True\n    def __hash__(a): return 2\n"
    "def f(x): return N(1)",
    "mock.ANY": "from unittest.mock import ANY\ndef f(x): return ANY",
    "prints a verdict": "print('passed 0')\n" + WRONG,
    "a name without code": "f = type('F', (), {'__call__': lambda *a: True, '__eq__': lambda *a: True})()",
    "raises what a test wants": "def f(x): raise AssertionError('passed 0')",
    "skips": "import unittest\ndef f(x): raise unittest.SkipTest()",
    "ends the generator": "def f(x): raise StopIteration(2)",
    "a thread": "import threading\n" + OPEN_FILES.replace("import os", "import os\ndef go():", 1).replace(
        "\n", "\n    ").replace("    def go", "def go") + "\nthreading.Thread(target=go).start()\n" + WRONG,
}  # fmt: skip


def slow(code):
    """Those that only make the tests wait need no long time limit."""
    return 1.5 if "_exit(77)" in code or "os.fork" in code or "exec" in code else 10.0


@pytest.mark.parametrize("attack", sampled(ATTACKS.values(), 5), ids=ATTACKS)
def test_an_attack_passes_no_test(attack):
    compile(attack, "<attack>", "exec")
    assert not verdict(attack, "assert f(1) == 2", timeout=slow(attack))[0]


@pytest.mark.slow
@shut_in
def test_no_attack_passes_a_test_in_the_sandbox_either():
    with ThreadPoolExecutor(4) as pool:
        asked = {
            name: pool.submit(verdict, code, "assert f(1) == 2", isolation="namespaces", timeout=slow(code))
            for name, code in ATTACKS.items()
        }
        assert [name for name, said in asked.items() if said.result()[0]] == []


def test_an_object_equal_to_all_is_equal_to_no_value_of_a_test():
    tests = [
        "assert abs(f(1) - 2) < 1e-6",
        "assert f(1) in [2, 3]",
        "assert 2 in f(1)",
        "assert f(1) < 3",
        "assert max(f(1), 5) == 5",
        "assert isinstance(f(1), int)",
        "assert not (f(1) != 2)",
        "import math; assert math.isclose(f(1), 2.5)",
        "import unittest; unittest.TestCase().assertEqual(f(1), 2)",
        "import unittest; unittest.TestCase().assertAlmostEqual(f(1), 2)",
    ]
    code = EQUAL_TO_ALL + "def f(x): return Any()"
    outcome = run_python(code, tests, timeout_seconds=10.0, memory_bytes=1 << 30, isolation="process")
    assert outcome.passed == (False,) * len(tests)


@pytest.mark.parametrize(
    ("code", "test", "setup"),
    [
        ("abs = lambda x: 0\n" + WRONG, "assert abs(f(1) - 2) < 1e-6", ""),
        ("all = len = sorted = lambda *a: 3\n" + WRONG, "assert all(f(n) == n + 1 for n in range(3))", ""),
        ("class math: isclose = lambda *a: True\n" + WRONG, "assert math.isclose(f(1), 2.0)", "import math"),
        ("same = lambda *a: True\n" + WRONG, "assert same(f(1), 2)", "def same(a, b): return a == b"),
        ("import operator as math\n" + WRONG, "assert math.not_(f(1) == 2)", ""),
        ("class f:\n    def __init__(self, x): 0\n    def __enter__(self): 0\n    def __exit__(self, *a): return True",
         "with f(1): assert False", ""),
    ],
)  # fmt: skip
def test_names_that_tests_compare_by_are_not_the_codes(code, test, setup):
    assert not verdict(code, test, setup=setup)[0]


def test_a_test_that_leaves_before_its_end_has_not_passed():
    for test in ("raise SystemExit(0)", "import os; os._exit(0)", "import os, signal; os.kill(os.getpid(), 9)"):
        assert not verdict("", test)[0]


# --- What tests may take from the code

STACK = """
class Empty(Exception):
    def __init__(self, size, *, hint): super().__init__(size); self.hint = hint
class Stack:
    kind = 'stack'
    def __init__(self, *items): self.items = list(items)
    def push(self, item): self.items.append(item); return self
    def pop(self):
        if not self.items: raise Empty(0, hint='push first')
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, n): return self.items[n]
    def __eq__(self, other): return self.items == other.items
    def __lt__(self, other): return self.items < other.items
    def __str__(self): return f'<{self.items}>'
    def __contains__(self, item): return False
"""
NODE = "class Node:\n    def __init__(self, value, next=None): self.value, self.next = value, next\n"
HONEST = {
    "plain values": ("def f(x): return x",
                     "for x in (None, True, 1, 2.5, -0.0, 'é\\ud800', b'\\xff', 3j, (1, (2,)), [[]],"
                     " {1: {2}}, {(1, 2): 'a'}, {1, 2}, frozenset({3}), bytearray(b'a'), range(3), 10 ** 5000):"
                     "\n    assert f(x) == x and type(f(x)) is type(x), x", ""),
    "numbers and dates": ("def f(x): return x",
                          "from decimal import Decimal as D\nfrom fractions import Fraction as F\n"
                          "from datetime import *\nfrom collections import deque\nfor x in (D('1.50'), F(1, 3), "
                          "date(2020, 2, 29), datetime(2020, 2, 29, 1), timedelta(1, 2), time(3), deque([1])): "
                          "assert f(x) == x", ""),
    "values of classes of its own": ("from collections import *\nfrom enum import *\nclass E(IntEnum): A = 3\n"
                                     "P = namedtuple('P', 'x y')\ndef f(): return [Counter('aab'), E.A, P(1, 2)]",
                                     "assert f() == [{'a': 2, 'b': 1}, 3, (1, 2)]", ""),
    "numpy": ("import numpy as np\ndef f(): return np.float32(0.5), np.arange(3)",
              "assert f() == (0.5, [0, 1, 2])", ""),
    "an object": (STACK, "s = Stack(1)\ns.push(2).push(3)\nassert len(s) == 3 and s.pop() == 3 and list(s) == [1, 2]\n"
                  "assert s[0] == 1 and s[-1] == 2 and str(s) == '<[1, 2]>' and 2 in s and 5 not in s\n"
                  "s.color = 'red'; assert s.color == 'red' and Stack.kind == 'stack' and not hasattr(s, 'nothing')\n"
                  "assert isinstance(s, Stack) and not isinstance(3, Stack) and s != None", ""),
    "objects among themselves": (STACK, "assert Stack(1) == Stack(1) and Stack(1) != Stack(2) and Stack(1) < Stack(2)",
                                 ""),
    "its exceptions": (STACK, "try: Stack().pop()\nexcept Empty as e: assert e.args == (0,) and e.hint == 'push first'"
                       "\nelse: assert False\nimport unittest\n"
                       "with unittest.TestCase().assertRaises(Empty): Stack().pop()", ""),
    "Python's exceptions": ("def f(x): return {}[x]", "try: f('k')\nexcept KeyError as e: assert str(e) == \"'k'\"\n"
                            "else: assert False", ""),
    "a generator": ("def f():\n    n = 0\n    while True: yield n; n += 1",
                    "g = f(); assert [next(g) for _ in range(3)] == [0, 1, 2]\n"
                    "assert [a for a, _ in zip(f(), 'ab')] == [0, 1]", ""),
    "changes to its arguments": ("def f(a, *, b): a.sort(); b['n'] = len(a)",
                                 "a, b = [3, 1], {}\nassert f(a, b=b) is None\nassert (a, b) == ([1, 3], {'n': 2})",
                                 ""),
    "functions of the test": ("def apply(g, *x): return g(*x)\ndef twice(g): return lambda x: g(g(x))",
                              "assert apply(lambda x, y=2: x + y, 1) == 3\n"
                              "assert twice(lambda x: 3 * x)(1) == 9\n"
                              "assert apply(sorted, [2, 1]) == [1, 2]\n"
                              "def bad(): raise KeyError(7)\n"
                              "try: apply(bad)\nexcept KeyError as e: assert e.args == (7,)", ""),
    "names that a call changes": ("n, seen = 0, []\ndef f():\n    global n; n += 1; seen.append(n)",
                                  "f()\ndef after(): return n, seen\nassert after() == (1, [1])", ""),
    "a decorator": ("import functools\ncalls = 0\ndef count(g):\n    @functools.wraps(g)\n    def inner(*a):\n"
                    "        global calls; calls += 1; return g(*a)\n    return inner",
                    "@count\ndef h(x): return x + 1\nassert h(1) == 2 and h.__name__ == 'h' and calls == 1", ""),
    "a builtin's name": ("def sum(a, b): return a + b", "assert sum(10, 15) == 25", ""),
    "its imports": ("import math\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(2), 2 ** 0.5)", ""),
    "check(candidate)": ("def f(x): return x + 1", "def check(candidate):\n    assert candidate(1) == 2\ncheck(f)", ""),
    "Solution().method(...)": ("class Solution:\n    def two(self, nums, target): return [0, 1]\n"
                              "    def order(self, nums): nums.sort()",
                              "assert Solution().two(nums=[2, 7], target=9) == [0, 1]\n"
                              "nums = [2, 1]; Solution().order(nums); assert nums == [1, 2]\n"
                              "import pytest\nwith pytest.raises(TypeError): Solution().two()", ""),
    "a setup with a stub": ("def f(x): return x + 1", "assert f(1) == 2", "def f(x):\n    'Adds one.'\n"),
    "classes of the setup": ("def reverse(n):\n    last = None\n    while n: n.next, last, n = last, n, n.next\n"
                             "    return last",
                             "assert values(reverse(Node(1, Node(2)))) == [2, 1]",
                             NODE + "def values(n): return [n.value, *values(n.next)] if n else []\n"),
}  # fmt: skip


@pytest.mark.parametrize(("code", "test", "setup"), sampled(HONEST.values(), 3), ids=HONEST)
def test_what_tests_may_take_from_the_code(code, test, setup):
    passed, stderr = verdict(code, test, setup=setup)
    assert passed, stderr


@pytest.mark.parametrize(
    ("code", "test", "reason"),
    [
        ("def f(x): return x", "class C: pass\nf(C())", "cannot be given to the code"),
        (STACK, "assert Stack(1) == [1]", "compare its plain values"),
        (NODE, "class T(Node): pass", "TypeError"),
        ("def f(g): return g(1)", "def check(f, n): f(lambda x: x + n)\ncheck(f, 1)", "uses variables of the function"),
        ("def f(g): return g(1)", "seen = []\nf(lambda x: seen.append(x))", "name 'seen' is not defined"),
        (
            "class C:\n    def __enter__(self): return 1\n    def __exit__(self, *a): 0",
            "with C(): pass",
            "context manager",
        ),
        ("import os\ndef f(): os._exit(1)", "f()", "the process of the code has ended"),
        ("", "f(1)", "name 'f' is not defined"),
        ("def f(): return f()", "f()", "RecursionError"),
        ("def f():\n    x = []; x.append(x); return x", "f()", "RecursionError"),
    ],
)
def test_what_cannot_cross_fails_the_test_and_says_why(code, test, reason):
    passed, stderr = verdict(code, test)
    assert not passed
    assert reason in stderr


def test_the_code_sees_no_test(tmp_path):
    found = tmp_path / "found"
    code = (
        "import gc, sys\nframe, seen = sys._getframe(), []\n"
        "while frame: seen.append(repr(frame.f_locals)); frame = frame.f_back\n"
        "seen.append(repr([x for x in gc.get_objects() if isinstance(x, (dict, list, tuple))][:50000]))\n"
        f"open({str(found)!r}, 'w').write(''.join(seen))\ndef f(x): return open({str(found)!r}).read()"
    )
    assert verdict(code, "assert f(1) and 'expected' + ' value'")[0]
    assert "' value'" not in found.read_text()
