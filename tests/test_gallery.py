"""The page of the maps, in a browser: what it shows, how it is operated, how fast it answers."""

import random
import shutil

import pytest
from PIL import Image

from gallery import write_gallery

CLASSES = ["church", "chain saw", "golf ball", "English springer", "French horn", "gas pump"]
PROGRAMS = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
BROWSER = next(filter(None, PROGRAMS), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync", "--no-first-run"]


def make_row(index, draw, classes=CLASSES):
    """A row of cam's manifest; a third are wrong, a quarter have no box."""
    raw = [draw.random() ** 5 + 1e-3 for _ in classes]
    shares = [share / sum(raw) for share in raw]
    predicted = classes[shares.index(max(shares))]
    outside = draw.random() if index % 4 else None
    return {
        "index": index,
        "path": "large.png",
        "thumbnail": "small.png" if index % 3 else None,
        "true": predicted if draw.random() < 0.66 else draw.choice(classes),
        "predicted": predicted,
        "shown": predicted,
        "confidence": max(shares),
        "probabilities": shares,
        "logit": draw.gauss(0, 4),
        "completeness_error": draw.random() * 1e-6,
        "limit": 12.5,
        "contrast": None,
        "inside": None if outside is None else 1 - outside,
        "outside": outside,
        "box_area": None if outside is None else draw.random(),
    }


def make_rows(count, classes=CLASSES):
    draw = random.Random(0)
    return [make_row(3 * number + 1, draw, classes) for number in range(count)]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    if not BROWSER:
        pytest.skip("no chromium, chromium-browser or google-chrome to open the page with")
    with playwright.sync_playwright() as driver:
        program = driver.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield program
        program.close()


@pytest.fixture
def visit(browser, tmp_path):
    """visit(rows) -> the page that shows them; fails at the end if it complained or asked out."""
    seen, contexts = [], []

    def note(request):
        if not request.url.startswith(("file:", "data:")):
            seen.append(request.url)

    def go(rows, classes=CLASSES, state="", title="Class activation maps", **options):
        Image.new("RGB", (96, 40), "navy").save(tmp_path / "large.png")
        Image.new("RGB", (32, 32), "teal").save(tmp_path / "small.png")
        write_gallery(tmp_path, rows, title, classes)
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("request", note)
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
        page.goto((tmp_path / "index.html").as_uri() + state)
        return page

    yield go
    for context in contexts:
        context.close()
    assert seen == []


def shown_indices(page):
    """The index of every tile that is visible, in the order of the page."""
    script = """tiles => tiles.filter(tile => tile.checkVisibility())
        .map(tile => Number(tile.querySelector("i").textContent))"""
    return page.locator("#pictures li").evaluate_all(script)


def expected_indices(rows, keep, key="index", descending=False):
    """What Python shows: rows without the key come last in either order."""
    kept = [row for row in rows if keep(row)]
    there = [row for row in kept if row[key] is not None]
    there.sort(key=lambda row: (-row[key] if descending else row[key], row["index"]))
    return [row["index"] for row in there + [row for row in kept if row[key] is None]]


def wait_for_state(page, text):
    page.wait_for_function("text => decodeURIComponent(location.hash).includes(text)", arg=text)


def test_every_picture_is_shown_with_what_it_is_in_its_alt_text(visit):
    rows = make_rows(12)
    rows[5] |= {"shown": "church", "contrast": "golf ball"}
    page = visit(rows)
    alts = page.locator("#pictures img").evaluate_all("all => all.map(one => one.alt)")
    for row, alt in zip(rows, alts, strict=True):
        share = f"{max(row['probabilities']):.2f}"
        sentence = f"{row['true']}, image {row['index']}, predicted {row['predicted']} {share}"
        assert alt == sentence + (", map of church against golf ball" if row is rows[5] else "")
    sources = page.locator("#pictures img").evaluate_all(
        "all => all.map(one => one.getAttribute('src'))"
    )
    assert sources == [row["thumbnail"] or row["path"] for row in rows]
    marks = page.locator("#pictures li").evaluate_all(
        "all => all.map(one => one.textContent.includes('✗'))"
    )
    assert marks == [row["true"] != row["predicted"] for row in rows]  # a sign, not a colour alone
    worst = max(row["completeness_error"] for row in rows)
    assert f"{worst:.1e}" in page.locator(".muted").first.text_content()
    assert page.locator(".scale").text_content() == "\N{MINUS SIGN}12.5+12.5 logit units"


FILTERS = [
    ({"true": "church"}, lambda row: row["true"] == "church"),
    ({"predicted": "gas pump"}, lambda row: row["predicted"] == "gas pump"),
    ({"wrong": True}, lambda row: row["true"] != row["predicted"]),
    ({"confidence_from": "0.5"}, lambda row: row["confidence"] >= 0.5),
    (
        {"confidence_from": "0.4", "confidence_to": "0.6", "wrong": True},
        lambda row: 0.4 <= row["confidence"] <= 0.6 and row["true"] != row["predicted"],
    ),
    ({"outside_from": "0.3"}, lambda row: row["outside"] is not None and row["outside"] >= 0.3),
    ({"outside_to": "0.3"}, lambda row: row["outside"] is not None and row["outside"] <= 0.3),
    ({"confidence_from": "", "outside_to": ""}, lambda row: True),
    ({"confidence_from": "0.9", "confidence_to": "0.1"}, lambda row: False),
]


def set_filters(page, wanted):
    for name, value in wanted.items():
        control = page.locator(f"[name={name}]")
        if value is True:
            control.check()
        elif name in ("true", "predicted", "sort", "order"):
            control.select_option(value)
        else:
            control.fill(value)


def test_filters_show_exactly_the_rows_that_python_keeps(visit):
    rows = make_rows(120)
    page = visit(rows[::-1])  # written in any order, shown by index
    assert shown_indices(page) == [row["index"] for row in rows]
    for wanted, keep in FILTERS:
        set_filters(page, wanted)
        expected = expected_indices(rows, keep)
        assert shown_indices(page) == expected, wanted
        assert page.locator("#count").text_content() == f"{len(expected)} of 120 pictures"
        assert page.locator("#empty").is_visible() == (not expected)
        page.get_by_role("button", name="Reset").click()
        page.wait_for_function("document.getElementById('count').textContent.startsWith('120 ')")


def test_sorting_is_pythons_with_rows_without_the_number_last(visit):
    rows = make_rows(120)
    for row in rows[::7]:
        row["confidence"] = 0.5  # ties keep the order of the indices
    page = visit(rows)
    keys = {"confidence": "confidence", "outside": "outside", "error": "completeness_error"}
    for name, key in {**keys, "index": "index"}.items():
        for order in ("ascending", "descending"):
            set_filters(page, {"sort": name, "order": order})
            expected = expected_indices(rows, lambda row: True, key, order == "descending")
            assert shown_indices(page) == expected, (name, order)


def test_what_asks_for_boxes_is_there_only_where_rows_have_them(visit):
    rows = make_rows(4)
    assert visit(rows).locator(".boxes").count() == 2
    for row in rows:
        for name in ("inside", "outside", "box_area", "thumbnail", "contrast"):
            del row[name]
    page = visit(rows, state="#sort=outside&outside_from=0.5")
    assert page.locator(".boxes").count() == 0
    assert shown_indices(page) == [row["index"] for row in rows]


def test_where_nobody_knows_the_classes_nothing_asks_for_them(visit):
    rows = make_rows(4)
    assert visit(rows).locator("[name=true], [name=wrong]").count() == 2
    for row in rows:
        row["true"] = None
    page = visit(rows, state="#wrong=1&true=cat")
    assert page.locator("[name=true], [name=wrong]").count() == 0
    assert shown_indices(page) == [row["index"] for row in rows]


def test_a_page_of_contrasts_says_what_their_means_are(visit):
    rows = make_rows(2)
    for against in (None, "dog"):
        for row in rows:
            row["contrast"] = against
        text = " ".join(visit(rows).locator("p").first.inner_text().split())
        assert ("difference of the biases" in text) == bool(against)
        assert ("bias of its class is the logit" in text) == (not against)
    page = visit(rows)  # what is filtered and sorted by is the share of the first of the two
    words = page.locator(".share").evaluate_all("parts => parts.map((part) => part.textContent)")
    assert words == [f"P({rows[0]['shown']})"] * 2


def test_the_keyboard_alone_opens_turns_and_closes_the_large_view(visit):
    rows = make_rows(9)
    page = visit(rows, state="#sort=confidence&order=descending")
    expected = expected_indices(rows, lambda row: True, "confidence", descending=True)
    focused = "document.activeElement.querySelector('i')?.textContent"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate(focused):
            break
    assert page.evaluate(focused) == str(expected[0])
    outline = "getComputedStyle(document.activeElement.closest('li')).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    title = page.locator("#large-title")
    assert title.text_content().endswith(f" {expected[1]}")
    assert page.locator("#place").text_content() == "2 of 9"
    for key, position in [("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowLeft", 0), ("ArrowLeft", 8)]:
        page.keyboard.press(key)
        assert title.text_content().endswith(f" {expected[position]}")
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('dialog').open")
    page.wait_for_function(f"{focused} === '{expected[8]}'")  # the picture that was open last


def test_the_large_view_shows_the_numbers_of_its_row(visit):
    rows = make_rows(3)
    row = rows[2]
    row |= {"shown": "church", "contrast": "golf ball", "logit": -2.5}
    page = visit(rows)
    page.locator("#pictures a").nth(2).click()
    pairs = page.evaluate(
        """Object.fromEntries([...document.querySelectorAll("dialog dt")].map(
            term => [term.textContent, term.nextSibling.textContent]))"""
    )
    assert pairs["true"] == row["true"]
    assert pairs["predicted"].endswith(row["predicted"])
    assert pairs["map of"] == "church against golf ball"
    assert pairs["confidence"].startswith(f"{row['confidence']:.3f}")
    assert pairs["logit"].startswith("\N{MINUS SIGN}2.50")
    assert pairs["completeness error"].startswith(f"{row['completeness_error']:.1e}")
    assert pairs["outside the box"].startswith(f"{row['outside']:.3f}")
    assert pairs["area of the box"].startswith(f"{row['box_area']:.3f}")
    best = sorted(zip(row["probabilities"], CLASSES, strict=True), reverse=True)[:5]
    bars = page.locator("dialog li").evaluate_all(
        """all => all.map(one => [Number(one.lastChild.textContent), one.firstChild.textContent,
            getComputedStyle(one.children[1], '::before').width.replace('px', '')
            / one.children[1].clientWidth])"""
    )
    for (share, name), (text, label, length) in zip(best, bars, strict=True):
        assert (label, text) == (name, pytest.approx(share, abs=6e-4))
        assert length == pytest.approx(share, abs=1e-2)
    page.get_by_role("button", name="Next").click()
    assert page.locator("#place").text_content() == "1 of 3"
    page.get_by_role("button", name="Close").click()
    assert not page.locator("dialog").is_visible()


HOSTILE = [
    "</script><script>alert(1);window.hacked=1</script>",
    "<img src=x onerror='window.hacked=1'>",
    '"><svg onload="window.hacked=1">',
    "<!-- content -->",
    "a & b &lt; c",
    "\udce9t\u00e9 \U0001f388",  # a folder's name that is not UTF-8
]


def test_hostile_names_are_text_everywhere(visit):
    rows = make_rows(12, HOSTILE)
    page = visit(rows, HOSTILE, title=HOSTILE[0])
    assert page.locator("h1").text_content() == page.title() == HOSTILE[0]
    names = page.locator("#pictures b:first-child").all_text_contents()
    readable = [row["true"].replace("\udce9", "?") for row in rows]
    assert names == readable
    for row in range(12):
        page.locator("#pictures a").nth(row).click()
        page.keyboard.press("Escape")
    for name in {row["true"] for row in rows} - {HOSTILE[-1]}:
        page.locator("[name=true]").select_option(name)
        assert shown_indices(page) == expected_indices(rows, lambda row, n=name: row["true"] == n)
        wait_for_state(page, name.replace(" ", "+"))
    assert page.evaluate("window.hacked") is None
    assert page.locator("svg, img[src=x]").count() == 0


def test_a_path_with_any_character_leads_to_its_picture(visit, tmp_path):
    name = "100% #1? \u00e9 & 'so'/a:b.png"
    (tmp_path / name).parent.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    page = visit([make_rows(1)[0] | {"path": name, "thumbnail": None}])
    page.wait_for_function("document.querySelector('#pictures img').naturalWidth === 8")


def test_the_address_restores_filters_order_and_the_open_picture(visit):
    rows = make_rows(40)
    page = visit(rows)
    wanted = {"wrong": True, "confidence_to": "0.8", "sort": "outside", "order": "descending"}
    set_filters(page, wanted)
    before = shown_indices(page)
    page.locator("#pictures li:visible a").nth(2).click()
    wait_for_state(page, "picture=")
    again = visit(rows, state=page.evaluate("location.hash"))
    assert shown_indices(again) == before
    assert len(before) > 3
    assert again.locator("#large-title").text_content().endswith(f" {before[2]}")
    assert again.locator("[name=confidence_to]").input_value() == "0.8"
    again.evaluate("location.hash = '#true=nowhere&sort=x&confidence_from=y&picture=999'")
    again.wait_for_function("!document.querySelector('dialog').open")
    assert shown_indices(again) == [row["index"] for row in rows]


@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (1600, "light")])
def test_nothing_is_wider_than_the_window(visit, width, scheme):
    rows = make_rows(30)
    rows[0] |= {"true": "x" * 200, "predicted": "y" * 200}
    size = {"width": width, "height": 700}
    page = visit(rows, title="t" * 200, viewport=size, color_scheme=scheme)
    fits = "document.scrollingElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    page.locator("#pictures a").first.click()
    assert page.evaluate(fits)
    assert page.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.querySelector('dialog'))")


CONTRASTS = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    const colour = parse(getComputedStyle(element).backgroundColor);
    return colour.length === 4 && colour[3] === 0 ? behind(element.parentElement) : colour;
  };
  return [...document.querySelectorAll("h1, h2, h3, p, label, legend, select, input, button,"
    + " output, #pictures b, #pictures i, dt, dd, dialog li span, dialog li b")].map(element => {
      const pair = [light(parse(getComputedStyle(element).color)), light(behind(element))];
      return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_the_contrast_that_wcag_aa_asks_for(visit, scheme):
    page = visit(make_rows(12), state="#picture=1", color_scheme=scheme)
    assert min(page.evaluate(CONTRASTS)) >= 4.5
    brightness = page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.slice(4))")
    assert (brightness < 128) == (scheme == "dark")


def test_without_scripts_the_page_still_shows_every_picture(visit):
    rows = make_rows(12)
    page = visit(rows, java_script_enabled=False)
    assert page.locator("#pictures li:visible img").count() == 12
    assert page.locator("#pictures a").first.get_attribute("href") == "large.png"
    assert not page.locator("#filters").is_visible()
    assert not page.locator("dialog").is_visible()


def test_numbers_that_are_none_are_said_to_be_none(visit):
    rows = make_rows(3)
    bad = {"confidence": float("nan"), "logit": float("nan"), "completeness_error": float("nan")}
    rows[1] |= bad | {"probabilities": [float("nan")] * len(CLASSES)}
    page = visit(rows, state="#picture=1")
    assert page.locator("dialog dd").nth(4).text_content() == "not a number"
    assert "nan" in page.locator(".muted").first.text_content()
    assert visit([]).locator("#count").text_content() == "0 of 0 pictures"


CHANGE = """([name, value]) => {
  const control = document.querySelector(`[name=${name}]`);
  if (typeof value === "boolean") control.checked = value; else control.value = value;
  control.dispatchEvent(new Event("input", { bubbles: true }));
  document.body.getBoundingClientRect(); // lays the page out
}"""


def stopwatch(page):
    """measure(work) -> seconds of the page's main thread: (scripts, all), whoever else computes."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def read():
        pairs = session.send("Performance.getMetrics")["metrics"]
        found = {pair["name"]: pair["value"] for pair in pairs}
        return found["ScriptDuration"], found["TaskDuration"]

    def measure(work):
        before = read()
        work()
        return tuple(after - start for after, start in zip(read(), before, strict=True))

    return measure


PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
SCROLL = """async () => {
  let moved = 0;
  new PerformanceObserver(list => list.getEntries().forEach(entry => moved += entry.value))
    .observe({ type: "layout-shift" });
  const before = document.scrollingElement.scrollHeight;
  for (const share of [0.1, 0.5, 1]) {
    scrollTo(0, before * share);
    await new Promise(done => requestAnimationFrame(() => setTimeout(done, 30)));
  }
  return [moved, document.scrollingElement.scrollHeight - before];
}"""


@pytest.mark.slow
def test_3925_pictures_open_within_a_second_and_answer_within_a_tenth(visit, tmp_path):
    rows = make_rows(3925)
    page = visit(rows)
    assert (tmp_path / "index.html").stat().st_size < 3e6
    measure = stopwatch(page)
    assert min(measure(page.reload)[1] for _ in range(2)) < 1
    assert page.evaluate(PAINTED) is not None
    changes = [("true", "church"), ("true", ""), ("wrong", True), ("wrong", False)]
    changes += [("confidence_from", "0.5"), ("confidence_from", "0"), ("sort", "confidence")]
    changes += [("order", "descending"), ("sort", "index"), ("order", "ascending")]
    best = [(float("inf"), float("inf"))] * len(changes)
    for _ in range(6):  # rounds, until one was not slowed by others that compute
        times = [measure(lambda c=change: page.evaluate(CHANGE, c)) for change in changes]
        best = [tuple(map(min, *pair)) for pair in zip(best, times, strict=True)]
        if all(scripting < 0.1 and with_layout < 1 for scripting, with_layout in best):
            break
    else:
        pytest.fail(f"seconds of scripts, and with layout: {dict(zip(changes, best, strict=True))}")
    page.evaluate("document.querySelector('form').reset()")
    assert page.evaluate(SCROLL) == [0, 0]  # nothing moves where pictures come into view
