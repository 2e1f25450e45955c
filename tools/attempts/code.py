"""Code of the user's that raises, ends the program, or returns nonsense: factories of networks, PHOSPHENE_CODE."""

from __future__ import annotations

import shlex

from . import judge
from .attempt import Attempt
from .stock import HERE

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
GREY = "--channels 1 --mean .3056 --std .3759"
TAIL = f"--out out {HERE} --json"
WORDS = (
    f"teacher show user.py:network --size 8 {GREY} --json",
    f"evaluate user.py:network --mean .3056 --std .3759 --data digits {TAIL}",
    f"train user.py:network --data stock/made/out --steps 3 --batch 8 {TAIL}",
    f"quantize rtn user.py:network --size 8 {GREY} --out out --device cpu --json",
    f"synthesize user.py:network --size 8 {GREY} --images 10 --iterations 2 --rounds 1 --batch 10 {TAIL}",
    f"noise user.py:network --size 8 {GREY} --images 10 {TAIL}",
    f"dataset label stock/noise-stored/out --teacher user.py:network --size 8 {GREY} --out out --device cpu --json",
    f"prune magnitude user.py:network --size 8 {GREY} --data stock/made/out --macs 50% --steps 2 --batch 8 {TAIL}",
    f"export user.py:network --size 8 {GREY} --to safetensors --out out --json",
    f"distill data digits user.py:network --data stock/made/out --steps 2 --batch 8 {TAIL}",
    f"distill data user.py:network cifar-resnet8 --size 8 {GREY} --data stock/made/out --steps 2 --batch 8 {TAIL}",
    f"generator train user.py:network --size 8 {GREY} --arch gdfq-cifar --scale .25 --steps 2 --batch 8 {TAIL}",
    f"search random --data stock/noise-stored/out --teacher user.py:network --space macro --depths 1,2 {TAIL}",
)
PLUGIN = "search random --data stock/made/out --space {space} --json --out out " + HERE
VARIABLES = (
    "missing.py",
    "user.py",
    ":",
    "",
    "user.py:user.py",
    "/",
    ".",
    "os",
    "é.py",
    "a\nb.py",
    "stock/files/images.npz",
    "user",
    "user.py:",
)


def attempt(made: Attempt) -> str:
    """One file of code, one command that runs it."""
    random = made.random
    text = _text(made)
    (made.folder / "user.py").write_text(text)
    environment: dict[str, str | None] = {}
    if random.random() < 0.15:
        environment["PHOSPHENE_CODE"] = random.choice(VARIABLES)
        words = shlex.split(PLUGIN.format(space=random.choice(("macro", "tiny"))))
    else:
        words = shlex.split(random.choice(WORDS))
    made.command = " ".join(words[:2])
    made.what += f" {environment}" if environment else ""
    ended = made.run(words, 20.0, environment=environment)
    if ended.status == 130 and "KeyboardInterrupt" in made.what:
        return ""  # as the user's Ctrl-C while his code runs
    return judge.problem(ended) or judge.undefined(made.folder / "out")


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
