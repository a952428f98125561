"""The page of the ladder: its models against torch's, its content, and the page in a browser."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, rung_id, runs
from einops import rearrange
from markupsafe import escape
from torch.nn import functional as F

import bigram
import gpt
from helper_scripts import page
from helper_scripts.ladder_page import lesson, weights
from helper_scripts.models import Trained, config_of, rung_module
from stages import feed_forward, modern, multi_head, post_norm, pre_norm, residual, rotary, self_attention
from training.checkpoint import checkpoint_path, save_checkpoint
from training.generation import generate, stream
from training.run import count_parameters
from training.state import State

PAGE = ROOT / "docs" / "ladder.html"
MODELS_JS = ROOT / "helper_scripts" / "ladder_page" / "models.js"
KNOWN = (bigram, self_attention, multi_head, feed_forward, residual, post_norm, pre_norm, gpt, modern)
TEXT = (
    "Is it new and old too? how may that be?\n\nBIONDELLO:\nWhy, is it not news, to hear of Petruchio's coming?\n" * 2
)

NODE = shutil.which("node")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed, which runs the page's JavaScript here")


def in_page(html: str) -> tuple[dict, dict]:
    """The data of a page, and its models by rung: the JSON in its script elements."""
    found = re.findall(
        r'<script type="application/json" (?:id="data"|class="model" data-rung="(\w+)")>(.*?)</script>', html
    )
    scripts = {rung: json.loads(text) for rung, text in found}
    return scripts.pop(""), scripts


@pytest.fixture(scope="module")
def committed() -> tuple[dict, dict]:
    return in_page(PAGE.read_text(encoding="utf-8"))


def as_torch(packed: dict) -> torch.nn.Module:
    """A model of the page in torch, its weights decoded by numpy."""
    data, at, state = base64.b64decode(packed["data"]), 0, {}
    for tensor in packed["tensors"]:
        rows, size, factor = tensor["shape"][0], int(np.prod(tensor["shape"])), np.float32(1)
        if tensor["int8"]:
            factor, at = np.frombuffer(data, "<f4", rows, at)[:, None], at + 4 * rows
        values = np.frombuffer(data, "i1" if tensor["int8"] else "<f4", size, at).reshape(tensor["shape"])
        state[tensor["name"]], at = torch.from_numpy(values * factor), at + values.nbytes
    assert at == len(data)
    module = rung_module(packed["rung"])
    model = module.LanguageModel(65, module.Config(**packed["config"]))
    model.load_state_dict(state)
    return model.eval()


def node(code: str, given: dict) -> dict:
    """Runs `code`, the body of a JavaScript function, with `given` and models.js; returns its result."""
    script = f"""
        const {{ Reader, draw, randomNumbers, unpack, writeOn }} = require({json.dumps(str(MODELS_JS))});
        const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
        console.log(JSON.stringify((() => {{ {code} }})()));
    """
    done = subprocess.run([NODE, "-e", script], input=json.dumps(given), capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# The models


@needs_node
@torch.no_grad()
def test_logits_of_the_page_equal_torchs(committed):
    """Every model of the committed page, with the page's weights, on a text that is longer than most contexts."""
    data, models = committed
    assert list(models) == [rung_id(module) for module in KNOWN]
    idx = torch.tensor([data["alphabet"].index(character) for character in TEXT])
    code = "return given.models.map((m) => new Reader(unpack(m)).read(given.ids).map((row) => [...row.logits]))"
    for packed, logits in zip(
        models.values(), node(code, {"models": [*models.values()], "ids": idx.tolist()}), strict=True
    ):
        model, T = as_torch(packed), packed["config"]["block_size"]
        hop = {"learned": T // 2, None: 1, "rotary": len(idx)}[packed["cache"]]
        for t in (0, 1, T - 1, T, T + T // 2, len(idx) - 1):
            if t < len(idx):
                start = -(-max(0, t + 1 - T) // hop) * hop
                torch.testing.assert_close(
                    torch.tensor(logits[t]), model(idx[None, start : t + 1])[0, -1], atol=1e-3, rtol=0
                )


def random_model(module, small) -> Trained:
    """A small model with random weights, as if it had been trained."""
    torch.manual_seed(0)
    config = small(module)
    model = module.LanguageModel(65, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return Trained(None, model, config, None, {"rung": rung_id(module)}, seconds=0.0)


@needs_node
def test_the_page_generates_the_same_text_as_generation(small):
    """Greedy text, past the context of 8, where the window of a cache moves."""
    trained, prompt = [random_model(module, small) for module in KNOWN], torch.tensor([5, 3, 60])
    code = """return given.models.map((m) => {
        const text = writeOn(new Reader(unpack(m)), given.ids, { temperature: given.temperature, topK: 1, seed: 3 });
        return Array.from({ length: 40 }, () => text.next().value);
    })"""
    packed = [weights.pack(each, int8=False) for each in trained]
    for temperature in (0, 1):
        written = node(code, {"models": packed, "ids": prompt.tolist(), "temperature": temperature})
        for each, ids in zip(trained, written, strict=True):
            assert ids == generate(each.model, prompt, 40, 8, temperature=0)[3:].tolist(), each.metadata
            assert len(set(ids)) > 1, each.metadata


@needs_node
def test_attention_weights_of_the_page_equal_torchs(small):
    """The last query and its keys by hand, in the last block of rung 7. torch computes the input of the block."""
    trained, idx, seen = random_model(pre_norm, small), torch.tensor([[5, 3, 60, 11, 11, 4]]), []
    attention = trained.model.blocks[-1].attention
    attention.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    trained.model(idx)
    q, k, _ = attention.qkv(seen[0]).view(6, 3, 4, 8).permute(1, 2, 0, 3)
    weights_of_last = (q @ k.mT / 8**0.5)[:, -1].softmax(dim=-1)
    code = "return [...new Reader(unpack(given.model)).read(given.ids).at(-1).weights[2]]"
    flat = node(code, {"model": weights.pack(trained, int8=False), "ids": idx[0].tolist()})
    torch.testing.assert_close(torch.tensor(flat).view(4, 6), weights_of_last, atol=1e-5, rtol=1e-4)


@needs_node
def test_a_changed_text_has_the_logits_of_a_new_text(small):
    """The cache of an earlier text must not affect a later text."""
    for module in (pre_norm, gpt, modern):
        packed = weights.pack(random_model(module, small), int8=False)
        code = """
            const long = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
            const texts = [[...long, 11], [1, 2, 9, 4, 5], [1, 2], [...long, 12, 13]];
            const reader = new Reader(unpack(given)), last = (reader, text) => [...reader.read(text).at(-1).logits];
            return texts.map((text) => [last(reader, text), last(new Reader(unpack(given)), text)]);
        """
        for again, anew in node(code, packed):
            assert again == pytest.approx(anew, abs=1e-5)


@needs_node
def test_characters_are_drawn_with_their_probabilities():
    logits, n = [0.3, 2.0, -1.0, 1.0, -40.0], 1000
    code = """return [[1, 0], [0.5, 0], [1, 2], [0, 0]].map(([temperature, topK]) => given.numbers.map(
        (number) => draw(Float32Array.from(given.logits), temperature, topK, number)))"""
    numbers = [(k + 0.5) / n for k in range(n)]
    drawn = [np.bincount(ids, minlength=5) / n for ids in node(code, {"logits": logits, "numbers": numbers})]
    x = torch.tensor(logits)
    top = torch.where(x >= 1.0, x, -torch.inf).softmax(dim=0)
    for share, wanted in zip(drawn, (x.softmax(0), (x / 0.5).softmax(0), top, F.one_hot(x.argmax(), 5)), strict=True):
        assert np.abs(share - wanted.numpy()).max() <= 1 / n
    uniform = node("const r = randomNumbers(7); return Array.from({ length: 20000 }, () => r.next().value)", {})
    assert np.histogram(uniform, bins=10, range=(0, 1))[0] == pytest.approx(2000, abs=200)


def test_int8_weights_are_within_half_a_step(small):
    trained = random_model(modern, small)
    decoded = as_torch(weights.pack(trained, int8=True) | {"config": vars(trained.config)}).state_dict()
    for name, tensor in trained.model.state_dict().items():
        step = tensor.abs().amax(dim=-1, keepdim=True) / 127 if tensor.ndim == 2 else torch.tensor(0.0)
        assert ((decoded[name] - tensor).abs() <= 0.501 * step).all(), name


@torch.no_grad()
def test_int8_hardly_changes_the_loss(committed, small, shakespeare):
    """The page shows the change of the loss by packed weights; on the committed page the change is small."""
    shown = [rung["live"]["rounding"] for rung in committed[0]["rungs"] if rung["live"] and rung["live"]["large"]]
    assert len(shown) == 2 and max(map(abs, shown)) < 0.003
    trained = replace(random_model(modern, small), tokenizer=shakespeare.tokenizer)
    packed = as_torch(weights.pack(trained, int8=True) | {"config": vars(trained.config)})
    ids = shakespeare.tokenizer.encode(TEXT[:9]).long()
    fp32, int8 = (F.cross_entropy(model(ids[None, :-1])[0], ids[1:]).item() for model in (trained.model, packed))
    metadata = page.live_metadata(page.Rung("modern", None, trained, trained, None), [{"text": TEXT[:9]}])
    assert metadata["rounding"] == pytest.approx(int8 - fp32, abs=1e-3)  # losses have three decimals
    assert abs(int8 - fp32) > 2e-3


# The content of the page


@pytest.fixture
def folder(tmp_path, log, shakespeare, monkeypatch):
    """A log with four rungs, and a folder with a checkpoint of three of them."""
    monkeypatch.setattr(page, "PASSAGES", page.PASSAGES[-1:])
    monkeypatch.setattr(page, "SAMPLE", 20)
    rows = [runs("bigram", 2.5, 2.4), runs("pre_norm", 2.1, 2.0), runs("gpt --preset laptop", 1.9, 1.8)]
    rows += [runs("rotary --preset laptop", 1.7, 1.65), runs("rms_norm --preset laptop", 1.6)]
    alphabet = "".join(shakespeare.tokenizer.chars)
    for label, own in zip(
        ("bigram", "gpt --preset laptop", "rotary --preset laptop"), (rows[0], rows[2], rows[3]), strict=True
    ):
        config = config_of(label, runs_dir=tmp_path)
        model = rung_module(label.split()[0]).LanguageModel(65, config)
        row = own[2] | {"alphabet": alphabet, "parameters": count_parameters(model), "device": "cpu", "threads": 1}
        state = State.at_start(model, config)
        state.step = row["steps"]
        save_checkpoint(checkpoint_path(row["rung"], config, shakespeare.sha256), state, config, row)
    for row in itertools.chain(*rows):
        row["corpus_sha256"] = shakespeare.sha256
    return tmp_path, log(*rows)


def test_a_rung_without_javascript_is_computed_beforehand(folder, command, shakespeare):
    runs_dir, log_path = folder
    out = runs_dir / "page.html"
    printed = command(page, "--runs-dir", runs_dir, "--loss-csv", log_path, "--out", out)
    html = out.read_text(encoding="utf-8")
    data, models = in_page(html)
    assert [(rung["name"], rung["number"]) for rung in data["rungs"]] == [
        ("bigram", "1"),
        ("gpt", "2"),
        ("rotary", "3"),
    ]
    assert [*models] == ["bigram", "gpt"]
    for words in ("missing: pre_norm:", "missing: rms_norm --preset laptop:", "missing: modern --preset quick:"):
        assert words in printed
    assert "train it with python stages/rms_norm.py --preset laptop" in printed

    config = config_of("rotary --preset laptop")
    (path,) = runs_dir.glob("rotary-*.pt")
    model = rotary.LanguageModel(65, config)
    model.load_state_dict(torch.load(path, weights_only=True)["weights"])
    ids = shakespeare.tokenizer.encode(data["passages"][0]["text"]).long()
    assert len(ids) <= config.block_size
    wanted = F.cross_entropy(model.eval()(ids[None, :-1])[0], ids[1:], reduction="none").tolist()
    assert data["rungs"][2]["losses"] == [pytest.approx(wanted, abs=1e-3)]
    start = torch.tensor([shakespeare.tokenizer.chars.index("\n")])
    ids = list(itertools.islice(stream([(model, 128)], start, generator=torch.Generator().manual_seed(0)), 20))
    article = html.partition('<article id="rotary"')[2].partition("</article>")[0]
    text = shakespeare.tokenizer.decode(torch.tensor(ids))
    assert f'sample">{text}</pre>'.replace("&", "&amp;").replace("'", "&#39;") in article
    assert (
        "-0.175" in article and "(2 seeds: they cannot tell the two apart)" in article
    )  # of 1.7 and 1.65 against 1.9 and 1.8
    removed = re.sub("<.*?>", "", "\n".join(re.findall(r'class="old"><b>-</b>(.*)', article)))
    assert "position_embedding" in removed and "apply_rotary" not in removed


def test_past_its_context_a_rung_has_the_window_of_generation(small):
    """Learned positions: the window by hand. Rotary positions: the same weights on the whole text, with a mask."""
    idx = torch.arange(24) * 7 % 65
    learned, rotating = random_model(gpt, small), random_model(rotary, small)
    with torch.no_grad():
        logits = page.expected(learned, idx)
        for t in range(24):
            start = -(-max(0, t + 1 - 8) // 4) * 4
            torch.testing.assert_close(logits[t], learned.model(idx[None, start : t + 1])[0, -1], atol=1e-4, rtol=1e-4)
        whole = rotary.LanguageModel(65, small(rotary, block_size=24)).eval()
        whole.load_state_dict(rotating.model.state_dict())
        whole.causal_mask += torch.full((24, 24), float("-inf")).tril(-8)
        torch.testing.assert_close(page.expected(rotating, idx), whole(idx[None])[0], atol=1e-4, rtol=1e-4)


def test_without_a_checkpoint_there_is_no_page(log, tmp_path, command, shakespeare):
    path = log(runs("bigram", 2.5, corpus_sha256=shakespeare.sha256))
    printed = command(page, "--runs-dir", tmp_path, "--loss-csv", path, "--out", tmp_path / "page.html", fails=True)
    assert "no rung has both finished runs in the log and a checkpoint" in printed
    path.write_bytes(path.read_bytes()[:-20])
    printed = command(page, "--runs-dir", tmp_path, "--loss-csv", path, "--out", tmp_path / "page.html", fails=True)
    assert "is incomplete" in printed  # and not that there are no runs
    assert not (tmp_path / "page.html").exists()


def test_the_committed_page_is_made_of_the_committed_files(committed):
    """Its style, scripts, and text and code of each rung are those of the files; it is small and loads nothing."""
    html = PAGE.read_bytes()
    rungs = committed[0]["rungs"]
    for rung in rungs:
        article = html.decode("utf-8").partition(f'<article id="{rung["name"]}"')[2].partition("</article>")[0]
        _, paragraphs = lesson.explanation(rung["name"])
        assert all(f"<p>{escape(paragraph)}</p>" in article for paragraph in paragraphs), rung["name"]
        code = [(line["sign"], str(line["html"])) for line in lesson.diff(rung["name"], rung["before"])]
        assert re.findall(r'<span class="(?:new|old|skip|)"><b>(.)</b>(.*)\n', article) == code, rung["name"]
    assert len(html) <= 5_000_000
    for name in ("page.css", "models.js", "views.js"):
        assert (MODELS_JS.parent / name).read_text(encoding="utf-8") in html.decode("utf-8"), name
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', html.decode("utf-8"))[1]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert not re.search(rb'(?:src|href)="(?!data:,"|#)', html)


# The page in a browser


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed, in which the page is opened here")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed, which drives Chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens the page from disk. At the end, the page must have had no errors and loaded nothing else."""
    requests, errors, contexts = [], [], []

    def open_page(width=1280, height=900, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(120_000)
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.goto(PAGE.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    assert {url.partition("#")[0] for url in requests if not url.startswith(("blob:", "data:"))} == {PAGE.as_uri()}


def until(tab, expression: str, given=None) -> None:
    """Wait until an expression is true of the page. (`wait_for_function` evaluates text, which the page forbids.)"""
    for _ in range(600):
        if tab.evaluate(expression, given):
            return
        tab.wait_for_timeout(200)
    pytest.fail(f"never true: {expression}")


def averages(tab) -> dict[str, str]:
    """The losses that the bars show, by rung."""
    pairs = (
        "[...document.querySelectorAll('#bars button')].map((each) => [each.dataset.rung, each.lastChild.textContent])"
    )
    return dict(tab.evaluate(pairs))


@torch.no_grad()
def average(packed: dict, alphabet: list[str], text: str) -> float:
    """The mean loss of a text no longer than the context, or of a small rung over windows of its context."""
    model, T = as_torch(packed), packed["config"]["block_size"]
    idx = torch.tensor([alphabet.index(character) for character in text])
    logits = torch.stack([model(idx[None, max(0, t - T) : t])[0, -1] for t in range(1, len(idx))])
    return F.cross_entropy(logits, idx[1:]).item()


def test_the_page_follows_the_typed_text_and_the_chosen_rung(opened, committed):
    (data, models), tab, text = committed, opened(), "ROMEO:\nWhat is it? The thing"
    tab.locator("#text").fill(text)
    tab.locator("#rung").focus()
    tab.keyboard.press("Home")
    for rung in data["rungs"]:
        if rung["live"]:
            last = "name => document.querySelector(`#bars [data-rung=${name}]`).lastChild.textContent"
            until(tab, f"name => /\\d/.test(({last})(name))", rung["name"])
    shown = averages(tab)
    for name, packed in models.items():
        assert float(shown[name]) == pytest.approx(average(packed, data["alphabet"], text), abs=0.0051), name
    assert {shown[rung["name"]] for rung in data["rungs"] if not rung["live"]} == {"\u2013"}

    assert tab.locator("article:visible").get_attribute("id") == "bigram"
    assert tab.locator("#table").is_visible() and not tab.locator("#maps").is_visible()
    for rung in data["rungs"][1:]:
        tab.keyboard.press("ArrowRight")
        assert tab.locator("article:visible").get_attribute("id") == rung["name"]
        assert rung["name"] in tab.locator("#rung-title").inner_text()
        maps = tab.locator("#maps canvas")
        assert maps.count() == (rung["live"]["layers"] * rung["live"]["heads"] if rung["live"] else 0)

    tab.locator('[data-passage="1"]').click()
    shown = averages(tab)
    beforehand = next(rung for rung in data["rungs"] if not rung["live"])
    assert float(shown[beforehand["name"]]) == pytest.approx(np.mean(beforehand["losses"][1]), abs=0.0051)


def test_a_character_can_be_chosen_with_the_keyboard(opened, committed):
    """The text for a screen reader has the probability and the loss of the bigram's table."""
    (data, models), tab = committed, opened()
    tab.goto(PAGE.as_uri() + "#rung=bigram")
    until(tab, "document.querySelector('article:not([hidden])').id === 'bigram'")
    tab.locator("#text").fill("the")
    tab.locator("#reading").focus()
    tab.keyboard.press("ArrowLeft")
    p = as_torch(models["bigram"]).token_embedding.weight[data["alphabet"].index("h")].softmax(dim=0)
    e = data["alphabet"].index("e")
    description = tab.locator("#reading").get_attribute("aria-valuetext")
    assert f"It was \u201ce\u201d: probability {100 * p[e]:.0f}%, loss {-p[e].log():.2f} nats" in description
    assert tab.locator("#reading .here").inner_text() == "e"
    assert tab.locator(".guess.true code").inner_text() == "\u2192 e"
    assert "It was" in tab.locator("#guesses").inner_text()


def test_characters_outside_the_alphabet_are_left_out(opened):
    tab = opened()
    tab.locator("#text").fill("caf\u00e9 \u6771 \u2019tis 7\U0001f600")
    assert tab.locator("#text").input_value() == "caf  'tis "
    notice = tab.locator("#notice").inner_text()
    assert all(f"\u201c{character}\u201d" in notice for character in "\u00e9\u67717\U0001f600") and "left out" in notice
    tab.locator("#text").fill("cafe")
    assert tab.locator("#notice").inner_text() == ""
    tab.locator("#text").fill("to be or not " * 400)
    assert len(tab.locator("#text").input_value()) == 240
    tab.locator("#text").evaluate("box => box.setSelectionRange(5, 5)")
    tab.keyboard.type("abc")  # into the full text; the caret stays behind what is typed
    assert tab.locator("#text").input_value()[:10] == "to be" + "abc" + " o"
    assert "Only the first 240 characters" in tab.locator("#notice").inner_text()
    tab.locator("#text").fill("")
    assert "Nothing comes before" in tab.locator("#guesses").inner_text()


@pytest.mark.parametrize("rung", ["pre_norm", "modern"])
def test_a_rung_generates_the_same_text_for_the_same_seed(opened, rung):
    tab, written = opened(reduced_motion="reduce"), []
    tab.goto(f"{PAGE.as_uri()}#rung={rung}")
    until(tab, "name => document.querySelector('article:not([hidden])').id === name", rung)
    for seed in ("1", "2", "1"):
        tab.locator("#seed").fill(seed)
        tab.locator("#write").click()
        until(tab, "document.getElementById('written').textContent.length > 160")
        tab.locator("#write").click()
        until(tab, "document.getElementById('write').textContent === 'Continue'")
        written.append(tab.locator("#written").text_content()[:160])
    assert written[0] == written[2] != written[1]


@torch.no_grad()
def test_what_the_page_shows_of_a_character_is_what_the_models_compute(opened, committed):
    """Attention marks, the change from the rung before, and greedy text from a chosen character, for rung 7."""
    (data, models), tab, text = committed, opened(reduced_motion="reduce"), "ROMEO:\nWhat is it? The thing"
    ids, i = torch.tensor([data["alphabet"].index(character) for character in text]), 20
    tab.locator("#text").fill(text)
    tab.locator("#reading").focus()
    tab.keyboard.press("Home")
    for _ in range(i):
        tab.keyboard.press("ArrowRight")

    model, window = as_torch(models["pre_norm"]), ids[i - 8 : i]
    seen = []
    attention = model.blocks[1].attention
    attention.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    logits = model(window[None])[0, -1]
    q, k, _ = rearrange(attention.qkv(seen[0][0]), "time (qkv head d) -> qkv head time d", qkv=3, head=4)
    wanted = (q[2, -1] @ k[2].mT / 8**0.5).softmax(dim=-1)
    tab.locator("#head").select_option("1.2")
    marks = tab.evaluate(
        "[...document.querySelectorAll('#reading > span')].map((each) => each.style.getPropertyValue('--w'))"
    )
    shown = np.array([float(mark or 0) ** 2 for mark in marks])
    assert shown[i - 8 : i] == pytest.approx(wanted.numpy(), abs=2e-3) and shown[: i - 8].max() == shown[i:].max() == 0

    tab.locator("#mode").select_option("gain")
    before = as_torch(models["post_norm"])(window[None])[0, -1]
    change = F.cross_entropy(logits, ids[i]) - F.cross_entropy(before, ids[i])
    assert tab.locator(".card.chosen .value").inner_text().endswith(f"here {change:+.2f}")

    tab.locator("#temperature").fill("0")
    tab.locator("#write").click()
    until(tab, "document.getElementById('written').textContent.length > 60")
    written = generate(model, ids[:i], 40, 8, temperature=0)
    assert tab.locator("#written").text_content()[: i + 40] == "".join(data["alphabet"][id] for id in written)


SIZES = (("wide", 1280, "light"), ("middle", 720, "light"), ("phone", 390, "light"), ("dark", 1280, "dark"))


def test_the_page_fits_wide_and_narrow_windows_and_has_a_dark_version(opened, tmp_path):
    """Nothing is wider than the window, and the dark page is dark. Screenshots are in the folder of the test."""
    shown = {}
    for name, width, scheme in SIZES:
        tab = opened(width, 900, color_scheme=scheme)
        until(tab, "/\\d/.test(document.querySelector('#bars [aria-pressed=true]').lastChild.textContent)")
        for rung in range(tab.locator("article").count()):
            tab.evaluate("number => chooseRung(number)", rung)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, (name, rung)
        shown[name] = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        tab.screenshot(path=tmp_path / f"{name}.png", full_page=True)
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000
    light, dark = (sum(map(int, re.findall(r"\d+", shown[name])[:3])) / 3 for name in ("wide", "dark"))
    assert dark < 60 < 200 < light


def test_the_page_can_load_nothing(browser):
    """A script in the page cannot fetch anything."""
    tab = browser.new_page()
    tab.goto(PAGE.as_uri())
    refused = """url => new Promise((done) => {
        document.addEventListener("securitypolicyviolation", (event) => done(event.violatedDirective));
        fetch(url).then(() => done("fetched"), () => {});
    })"""
    assert tab.evaluate(refused, "https://example.invalid/") == "connect-src"
    tab.close()
