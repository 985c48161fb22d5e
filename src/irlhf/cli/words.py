"""The advice of the library in the words of the command line: ``--ties davidson``, not ``ties=davidson()``.

The library speaks Python, and does not know who reads it. Here, at the edge, what its sentences tell a user of Python
to write is replaced by what a user of the shell has to write. A test holds the table against the library: each phrase
must be in it, and a new one that only Python can follow must be here.
"""

from __future__ import annotations

TIES = "--ties davidson or --ties rao-kupper"
POOL = "--pooling increments"
WORDS = {
    "give a discount below 1, a horizon, states without actions, or destinations=True": (
        "give --discount below 1, --horizon, --destinations, or transitions with a state that has no actions"
    ),
    "give the source ties=davidson() or ties=rao_kupper()": f"give {TIES}",
    "but ties are not modeled; model ties, or drop the row": f"but ties are not modeled; give {TIES}, or drop the row",
    "with destinations give a context": "with --destinations give a context",
    "give log_base, a horizon, or the causal kind": "give --base, --horizon, or --kind causal",
    "give a horizon or use the causal kind": "give --horizon or --kind causal",
    "give next_state, or transitions, or pool increments": f"give next_state, or --transitions, or {POOL}",
    "no step says where it led; give transitions, or next states": (
        "no step says where it led; give --transitions, or next states"
    ),
    "add it to the list, or correct the panel": "give features of it, or correct the panel",
    "list more states, or use pooling 'frequencies'": "give features of more states, or leave out --pooling",
    "too many for increments; use frequencies": f"too many for {POOL}; leave it out",
    "pooling by increments needs": f"{POOL} needs",
    "; correct reset": "; correct --reset",
    "the lower must not exceed the upper": "the lower must not exceed the upper (--bound NAME=LOW:HIGH)",
    "keep the temperature of one source fixed": (
        "keep the temperature of one source fixed: write temperature = 1 under its [sources.NAME] in the file"
    ),
    "give each scale its own source": 'give each scale its own "source"',
    "give a lower start, a discount below 1, or a horizon": "give --start lower, --discount below 1, or --horizon",
    "Give a prior": "Give a prior (for example --prior 1.0)",
    "give a prior": "give a prior (--prior 1.0)",
    "drop or fix a parameter": "drop a parameter or fix it (--fix NAME=VALUE)",
    "Raise the number of steps to go on": "To go on: irlhf fit --resume RUN --max-steps N",
    "start a new run directory": "choose another --out",
    "so they cannot be listed; give it a horizon": "so they cannot be listed; choose another --learner",
    "add some, or draw from Base()": "add some, or choose --proposal base",
    "not the causal one that exact(world) has by default. Say sampled(world, kind='anticipative') if that is meant, or "
    "use exact(world) or variational": (
        "not the causal one. Say --kind anticipative if that is meant, or leave out --likelihood sampled"
    ),
    "but rivals are whole trajectories; leave it out, or use exact(world)": (
        "but rivals are whole trajectories; leave it out, or leave out --likelihood sampled"
    ),
    "choose long='drop' or long='cut', or allow more tokens": (
        "choose --long drop or --long cut, or raise --max-tokens or --max-prompt"
    ),
    "more than max_tokens": "more than --max-tokens",
    "more than max_prompt": "more than --max-prompt",
    "set tokenizer.chat_template (text.HUMAN_ASSISTANT is a plain one), or use an instruct model": (
        "give --template plain, or use an instruct model"
    ),
    "give a horizon, a discount below 1, or no absorbing state": "give --horizon, --discount or --no-absorbing",
    "give GymWorld an encoder, a function from one observation to a vector of numbers": (
        "wrap the environment, for example in gymnasium.wrappers.FlattenObservation, and register it"
    ),
    "lower max_tokens or cut the prompts": "lower --max-tokens, or give --max-prompt and --long cut",
}


def in_the_shell(text: str) -> str:
    """A sentence of the library as the command line says it."""
    for python, shell in WORDS.items():
        text = text.replace(python, shell)
    return text
