"""The paper index: which paper is which settings, from the recipes and from the docstrings that name their source."""

import re
from collections.abc import Iterator

from benchmarks.harness.results import table
from benchmarks.recipe_pages import FILES, read

from nearstep.config.recipes import RECIPES

PAPER = re.compile(r"\b(\d{4}\.\d{5})(†?)")
# Papers behind one setting, of which no recipe is made. Formulas: docs/algorithms.md, where the tests look for each.
SINGLE = (
    ("1707.06347", "PPO", "the defaults: `trust_region = clip`, `cliprange = 0.2`", "algorithms/ppo.md"),
    ("1506.02438", "generalised advantage estimation", "`advantage = gae`, `gamma`, `lam`", "algorithms.md"),
    ("1909.08593", "fine-tuning from human preferences", "`kl_controller = adaptive`, `kl_target`", "algorithms.md"),
    ("1912.09729", "dual clip", "`dual_clip = 3`", "algorithms.md"),
    ("2203.02155", "InstructGPT, PPO-ptx", "`ptx_dataset_name`, `ptx_coef = 27.8`", "algorithms.md"),
    ("2204.02311", "PaLM, z-loss", "`z_loss_coef = 1e-4`", "algorithms.md"),
    ("2401.16025", "SPO", "`trust_region = spo`, `region_threshold = 0.2`", "algorithms.md"),
    ("2511.20347", "SAPO", "`trust_region = sapo`, `sapo_tau`, `sapo_tau_negative`", "algorithms.md"),
    ("2512.06547", "A-3PO", "`anchor = interpolated`", "algorithms.md"),
    ("2512.17008", "Turn-PPO", "`advantage = turn_gae`, `ratio_level = turn`", "algorithms.md"),
    ("2512.23075", "TRM", "`trust_region = trm`, `region_threshold = 0.15`", "algorithms.md"),
    ("2601.05242", "GDPO", "`advantage = gdpo`; with a critic `gae_by_reward`", "algorithms.md"),
    ("2603.01365", "VACO", "`trust_region = vaco`, `region_threshold = 0.2`", "algorithms.md"),
    ("2604.19485", "EVPO", "`baseline_fallback = batch_mean`", "algorithms.md"),
    ("2607.05378†", "CompactionRL", "episodes of several rows, with every `advantage`", "algorithms.md"),
    ("2607.18722†", "SAT", "`trust_region = sat`, `sat_share`, `sat_contraction`", "algorithms.md"),
)


def page() -> str:
    """The page docs/papers.md."""
    rows = sorted([*_of_recipes(), *_single()])
    return (
        "# Paper index\n\nWhich paper is which settings, by number on arXiv. † second hand: taken from other implementations "
        "or reports; the page says what. A recipe's page has its settings, its code, and what is not as in the paper.\n\n"
        + table(("paper", "what", "here"), rows)
    )


def _of_recipes() -> Iterator[tuple[str, str, str]]:
    for name in RECIPES:
        title = read(FILES / f"{name}.yaml").title
        found = PAPER.search(title)
        if found:
            what = PAPER.sub("", title).replace(" ()", "")
            yield f"{found[1]}{found[2]}", what, f"[`--recipe {name}`](recipes/{name}.md)"


def _single() -> Iterator[tuple[str, str, str]]:
    for paper, what, settings, page in SINGLE:
        yield paper, what, f"{settings} ([page]({page}))"
