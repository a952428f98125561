"""The results that README.md, notes.md and docs/results.md name are those of the committed log."""

from __future__ import annotations

import re

import pytest
from conftest import staged

from data import read_log
from helper_scripts.results import Selection, load_results
from helper_scripts.results_page import all_sections, page, readme_table
from training.provenance import shared_code

NUMBER = re.compile(r"(?<![\d.,])\d\.\d{3,4}(?!\d)")  # of three or four decimals, as losses have
BY_HAND = ("README.md", "notes.md")  # pages whose numbers have to be in docs/results.md
NO_RESULTS = {  # numbers that are no results of this project
    "4.174": "ln 65, the loss of equally likely characters",
    "2.482": "pairs of characters counted, one added to each (test_oracles.py)",
    "1.487": "the lecture's, as its repository publishes it",
    "1.470": "nanoGPT's, as its repository publishes it",
}


def test_results_and_readmes_table_match_what_the_command_writes(published_log):
    sections = all_sections(published_log)
    assert not sections[0].without_runs and not sections[1].without_runs  # every rung has a row
    assert page(sections) == staged("docs/results.md")
    assert f"<!-- ladder table: begin -->\n{readme_table(sections)}\n<!-- ladder table: end -->" in staged("README.md")


@pytest.mark.parametrize("name", BY_HAND)
def test_numbers_written_by_hand_are_in_the_results(name):
    results = set(NUMBER.findall(staged("docs/results.md")))
    written = NUMBER.findall(re.sub("```.*?```", "", staged(name), flags=re.DOTALL))
    assert written and not set(written) - results - NO_RESULTS.keys()


def test_losses_beside_commands_match_the_log(published_log):
    """README's comments on commands, within their rounding."""
    final = read_log(published_log).groupby("run").last()
    final = final[final["shared_code"] == shared_code()]
    by_minutes = re.compile(r"(--preset quick )?--steps \d+( --(warmup-steps|n-layer|dropout) \S+)*")
    commands = re.findall(r"python (?:stages/)?(\w+)\.py( --[^#]*?)? +# [^\n]*?: (\d\.\d+)", staged("README.md"))
    assert commands
    for rung, flags, written in commands:
        if flags.startswith(" --minutes"):  # the minutes chose the steps
            fits = final["seconds"] < 60 * float(flags.split()[1])
            losses = final[(final["rung"] == rung) & fits & final["flags"].str.fullmatch(by_minutes)]["val_loss"]
        else:
            losses = load_results(Selection(published_log), (rung + flags,)).losses(rung + flags)
        digits = len(written.partition(".")[2])
        assert written in {f"{loss:.{digits}f}" for loss in (*losses, losses.mean())}, rung + flags
