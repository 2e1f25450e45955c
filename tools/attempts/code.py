"""Code of the user's that raises, ends the program, or returns nonsense: factories of networks, PHOSPHENE_CODE."""

from __future__ import annotations

import shlex

from . import judge
from .attempt import Attempt
from .forks import Ended
from .stock import FACTORY, HERE

RAISED = (
    *(
        "ValueError('x')",
        "KeyError('x')",
        "OSError(28, 'x', 'y')",
        "MemoryError()",
        "KeyboardInterrupt()",
        "SystemExit(3)",
    ),
    *(
        "SystemExit('x')",
        "SystemExit(0)",
        "GeneratorExit()",
        "StopIteration()",
        "BaseException('x')",
        "Exception('a\\nb')",
    ),
    *(
        "RecursionError()",
        "ImportError('x')",
        "AttributeError('[red]x[/red]')",
        "RuntimeError('é🦆')",
        "AssertionError()",
    ),
    *("type('Own', (BaseException,), {})()", "UnicodeDecodeError('a', b'', 0, 1, 'b')", "NotImplementedError"),
)
RETURNED = (
    *(
        "None",
        "3",
        "'x'",
        "nn.Linear",
        "lambda x: x",
        "[nn.Linear(2, 2)]",
        "nn.Module()",
        "nn.Identity()",
        "torch.zeros(3)",
    ),
    *("{'state_dict': {}}", "nn.Sequential()", "nn.Linear(64, 10)", "nn.Sequential(nn.Flatten(), nn.Linear(64, 3))"),
    *(
        "nn.Sequential(nn.Flatten(), nn.Linear(64, 10).double())",
        "nn.Sequential(nn.Flatten(), nn.Linear(64, 10).half())",
    ),
    *(
        "nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(10))",
        "nn.Sequential(nn.Flatten(), nn.LazyLinear(10))",
    ),
    *("nn.Conv2d(1, 10, 3)", "nn.Sequential(nn.Flatten(), nn.Linear(64, 10, device='meta'))", "nn.Embedding(3, 4)"),
)
FORWARD = (
    *(
        "raise ValueError('x')",
        "raise SystemExit(3)",
        "raise KeyboardInterrupt",
        "return None",
        "return 3",
        "return (x, x)",
    ),
    *("return {'a': x}", "return x.flatten(1)[:, :10] * float('nan')", "return x.flatten(1)[:, :10] / 0", "return x"),
    *("return x.flatten(1)[:, :10].int()", "return x.flatten(1)[:, :10].detach()", "return x.flatten(1)[:3, :10]"),
    *("return x.flatten(1)[:, :1]", "return x.flatten(1)[:, :0]", "return 'x'", "return [x.flatten(1)[:, :10]]"),
    *(
        "return self.forward(x)",
        "return x.flatten(1)[:, :10].numpy()",
        "return x.flatten()[0]",
        "return x[:, :, :, :, 0]",
    ),
    *(
        "return torch.full((len(x), 10), 1e38) * 1e38",
        "return self(x)",
        "return x.flatten(1)[:, :10].to(torch.complex64)",
    ),
    *("return torch.zeros(len(x), 10, dtype=torch.float64)", "return x.flatten(1)[:, :10]", "del x; return x"),
)
FILES = (
    *(
        "",
        "network = 3\n",
        "def network(:\n",
        "\x00",
        "import nothing_like_this\n",
        "from . import x\n",
        "network = None\n",
    ),
    *(
        "def other(): pass\n",
        "def network(a): return a\n",
        "async def network(): pass\n",
        "class network: pass\n",
        "é = 1\n",
    ),
    *(
        "def network():\n    yield 1\n",
        "network = property()\n",
        "import sys; sys.exit(0)\n",
        "while True: raise SystemExit\n",
    ),
)
MEANS = "--size 8 --mean .3056 --std .3759"
GREY = f"--channels 1 {MEANS}"
TAIL = f"--out out {HERE} --json"
WORDS = (
    f"teacher show user.py:network {GREY} --json",
    f"compress user.py:network {MEANS} --macs 50% --images 20 --preset smoke --steps 2 --batch 8 "
    f"--to safetensors {TAIL}",
    f"quantize rtn user.py:network {GREY} --out out --device cpu --json",
    f"synthesize user.py:network {GREY} --images 10 --iterations 2 --rounds 1 --batch 10 {TAIL}",
    f"noise user.py:network {GREY} --images 10 {TAIL}",
    f"dataset label stock/noise-stored/out --teacher user.py:network {GREY} --out out --device cpu --json",
    f"prune magnitude user.py:network {MEANS} --data stock/made/out --macs 50% --steps 2 --batch 8 {TAIL}",
    f"export user.py:network {GREY} --to safetensors --out out --json",
    f"distill data digits user.py:network --data stock/made/out --steps 2 --batch 8 {TAIL}",
    f"distill data user.py:network cifar-resnet8 {MEANS} --data stock/made/out --steps 2 --batch 8 {TAIL}",
    f"generator train user.py:network {GREY} --arch gdfq-cifar --scale .25 --steps 2 --batch 8 {TAIL}",
)
SPACE = f"search random --data stock/made/out --space {{space}} {TAIL}"
SEARCH = f"search hill --data stock/made/out --space macro --width .1 --depths 1,2 --steps 3 {TAIL}"
HILL = """import phosphene
from phosphene.core import Architecture
from phosphene.spaces.moves import sample


@phosphene.register_search("hill")
def hill(space, data, objective, score, budget, run, *, steps: int = 3):
    \"\"\"Climb.\"\"\"
    import torch

    for step in run.steps("climb", steps):
        {step}
        run.log(step=step)
    return {result}
"""
FOUND = "Architecture(space.spec, sample(space, torch.Generator().manual_seed(0), budget.fits))"
RESULTS = (
    "None",
    "3",
    "'x'",
    "space",
    "run",
    "{}",
    "[]",
    "object()",
    "Architecture({}, {})",
    "Architecture(space.spec, {})",
)
VARIABLES = (
    *("missing.py", "user.py", ":", "", "user.py:user.py", "/", ".", "os", "é.py", "a\nb.py", "stock/files/images.npz"),
    *("user", "user.py:"),
)


def attempt(made: Attempt) -> str:
    """One file of code, one command that runs it."""
    random = made.random
    environment: dict[str, str | None] = {}
    kind = random.random()
    if kind < 0.15:
        text, words = _search(made), SEARCH
        environment["PHOSPHENE_CODE"] = "user.py"
    elif kind < 0.3:
        text, words = _text(made), SPACE.format(space=random.choice(("macro", "tiny")))
        environment["PHOSPHENE_CODE"] = random.choice(VARIABLES)
        made.what += f" {environment}"
    else:
        text, words = _text(made), random.choice(WORDS)
    made.command = " ".join(words.split()[:2])
    (made.folder / "user.py").write_text(text)
    ended = made.run(shlex.split(words), 20.0, environment=environment)
    if ended.status == 130 and "KeyboardInterrupt" in made.what:
        return ""  # as the user's Ctrl-C while his code runs
    return judge.problem(ended) or judge.undefined(made.folder / "out")


def sound(made: Attempt, words: str) -> Ended:
    """The command with code that is in order."""
    own = words == SEARCH
    (made.folder / "user.py").write_text(HILL.format(step="pass", result=FOUND) if own else FACTORY)
    return made.run(shlex.split(words), environment={"PHOSPHENE_CODE": "user.py" if own else None})


def _search(made: Attempt) -> str:
    """A search of the user's that raises at a step, or returns nonsense."""
    step, result = "pass", FOUND
    if made.random.random() < 0.5:
        step = f"raise {made.random.choice(RAISED)}"
    else:
        result = made.random.choice(RESULTS)
    made.what = f"a search: {step}, {result}"
    return HILL.format(step=step, result=result)


def _text(made: Attempt) -> str:
    random, head = made.random, "import torch\nfrom torch import nn\n\n"
    kind = random.choice(("raise", "raise", "return", "forward", "forward", "forward", "file", "import"))
    if kind == "file":
        made.what = repr(text := random.choice(FILES))
        return text
    if kind in ("raise", "import"):
        made.what = f"{'at import' if kind == 'import' else 'factory'}: raise {(one := random.choice(RAISED))}"
        return head + (f"raise {one}\n" if kind == "import" else f"def network():\n    raise {one}\n")
    if kind == "return":
        made.what = f"factory returns {(one := random.choice(RETURNED))}"
        return head + f"def network():\n    return {one}\n"
    made.what = f"forward: {(one := random.choice(FORWARD))}"
    lines = [
        *("class Network(nn.Module):", "    def __init__(self):", "        super().__init__()"),
        *("        self.conv = nn.Conv2d(1, 2, 3, padding=1)", "        self.norm = nn.BatchNorm2d(2)"),
        *("        self.last = nn.Linear(2 * 64, 64)", "", "    def forward(self, x):"),
        *(
            "        x = self.last(self.norm(self.conv(x)).flatten(1))[:, None]",
            f"        {one}",
            "",
            "network = Network",
        ),
    ]
    return head + "\n".join(lines) + "\n"
